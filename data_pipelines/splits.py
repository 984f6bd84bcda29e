"""Splits of data that come without: by a hash of the name, the same on every machine and in every order."""

import hashlib


def hashed_split(name: str, val: float, test: float = 0.0, seed: int = 0) -> str:
    """The split of a tile, or of a group of tiles that must stay together: "train", "val" or "test".

    Args:
      name: of the tile or the group; nothing else plays a part, so that tiles which come later move no other.
      val: share that is held out for validation, 0 to 1.
      test: share that is held out for testing.
      seed: another seed gives another split.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") / 2**64
    return "val" if number < val else "test" if number < val + test else "train"

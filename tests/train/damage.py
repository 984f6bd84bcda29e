"""What happens to files on disks."""

import pathlib


def flip_bit(file: pathlib.Path, place: float = 0.5) -> None:
    """Flips one bit of the byte at a share of the file's length."""
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(bytes(content))


def cut_short(file: pathlib.Path) -> None:
    """Leaves the first half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

"""The progress bar of a preparation."""

from typing import Any, Self


class ProgressBar:
    """Tiles, tiles/s, MB/s and remaining time, over all processes."""

    def __init__(self, description: str, total: int, done: int) -> None:
        """Args:
        description: what is going on.
        total: tiles in all.
        done: tiles that were there before; they do not count for the speed.
        """
        import tqdm

        self._bar: Any = tqdm.tqdm(total=total, initial=done, unit="tile", desc=description, mininterval=0.5)
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, tile: str) -> None:
        """Nothing to show before a tile is done."""

    def end(self, record_bytes: int) -> None:
        """One more tile, of so many bytes."""
        self._bytes += record_bytes
        elapsed = self._bar.format_dict["elapsed"]
        self._bar.set_postfix_str(f"{self._bytes / 1e6 / max(elapsed, 1e-3):.1f} MB/s", refresh=False)
        self._bar.update()

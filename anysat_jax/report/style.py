"""Colours, fonts and size of every figure."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, TypeVar

from data_pipelines.plots import tile

RANDOM_COLOUR = "#b8b8b8"
PRETRAINED_COLOUR = "#1b6ca8"
ACCENT_COLOUR = "#d1495b"
TEXT_COLOUR, FAINT_COLOUR = tile.TEXT_COLOUR, tile.FAINT_COLOUR
DATASET_COLOURS = ("#1b6ca8", "#e07a1f", "#3a8f5c", "#8e5aa8", "#c8446b", "#7a6a53", "#2aa5a0")
DOTS_PER_INCH = 150
T = TypeVar("T")

SETTINGS = tile.SETTINGS | {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.titlelocation": "left",
    "legend.fontsize": 10,
}


@contextlib.contextmanager
def new_figure(path: pathlib.Path | IO[bytes], size: tuple[float, float], title: str) -> Iterator[Any]:
    """Yields a figure of `size` (width, height) inches to draw on, which is saved as a PNG at the end."""
    with tile.saved_figure(path, SETTINGS, DOTS_PER_INCH, figsize=size, layout="constrained") as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=TEXT_COLOUR)
        yield figure


def coloured(items: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Yields items with a colour each; colours repeat after the last."""
    for index, item in enumerate(items):
        yield DATASET_COLOURS[index % len(DATASET_COLOURS)], item

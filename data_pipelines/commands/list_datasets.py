"""`list`: a table of all datasets."""

import argparse
import re

from data_pipelines.card import DatasetCard
from data_pipelines.commands.text import table, terminal_width
from data_pipelines.registry import dataset_names, get_entry

NAME = "list"
HELP = """A table of all datasets: sensors, extent, patch sizes, labels, splits, size, licence.

The mini datasets are made by this project's code; the others are read from their published archives. Then:

  python -m data_pipelines show treesatai_ts      all about one of them
"""
HEADER = ("name", "title", "sensors", "extent", "patches (m)", "labels", "splits", "size", "licence")
_KINDS = {
    "multi_label": "multi-label",
    "class": "class",
    "regression": "number",
    "segmentation": "class map",
    "change": "change map",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: the table is always whole."""


def run(arguments: argparse.Namespace) -> None:
    """Prints the table."""
    print(table(HEADER, [row(get_entry(name).card) for name in dataset_names()], terminal_width()))


def row(card: DatasetCard) -> tuple[str, ...]:
    """A dataset's cells, in the order of HEADER."""
    return (
        card.name,
        card.title,
        " ".join(card.sensors),
        f"{card.extent:g} m",
        " ".join(map(str, card.patch_sizes)),
        labels(card),
        " ".join(card.splits),
        in_short(card.size),
        in_short(card.licence),
    )


def in_short(text: str) -> str:
    """A field up to its first parenthesis or semicolon; `show` has the rest."""
    return re.split(r"\s*[;(]", text)[0]


def labels(card: DatasetCard) -> str:
    """Kinds of a dataset's labels with the number of classes, or the unit of what is predicted."""
    parts = []
    for kind, classes, what in (
        (card.tile_label, card.tile_classes, ""),
        (card.dense_label, card.dense_classes, "map of "),
    ):
        if kind == "regression":
            parts.append(f"{what}{card.label_unit}")
        elif kind != "none":
            parts.append(f"{_KINDS[kind]} of {len(classes)}")
    return ", ".join(parts) or "none"

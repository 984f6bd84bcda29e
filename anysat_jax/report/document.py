"""The parts of a page, before it is written as markdown or HTML. All texts are plain; the writers escape them."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: what is shown.
      number: what the column is sorted by; nan for text.
      bold: whether it stands out.
    """

    text: str = ""
    number: float = math.nan
    bold: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      name: its heading.
      numeric: whether its cells are numbers, set to the right.
      ours: whether it has measurements of ours, which stand out.
    """

    name: str
    numeric: bool = False
    ours: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
      caption: what it shows.
      columns: the first one names the rows.
      rows: cells by column.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
      file: relative to the page.
      caption: below it.
      alt: what it shows, for those who cannot see it.
      size: width and height in pixels.
    """

    file: str
    caption: str
    alt: str
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Listing:
    """A list of sentences."""

    items: tuple[str, ...]


Block = str | Sheet | Figure | Listing
"""A paragraph, a table, a picture or a list."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    sections: tuple[Section, ...]

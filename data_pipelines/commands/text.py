"""Text for terminals: tables that fit, wrapped paragraphs, coloured squares."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

GAP = "  "
NARROWEST, WIDEST = 60, 170  # of the text, whatever the terminal


def terminal_width() -> int:
    """Columns to fill: the terminal's or $COLUMNS, within bounds; 140 where neither is known."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((140, 24)).columns))


def shows_colour() -> bool:
    """Whether standard output is a terminal with colours, and colours are wanted (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def square(colour: str) -> str:
    """A square in a colour "#rrggbb", for a terminal with 24-bit colours."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"\x1b[48;2;{red};{green};{blue}m  \x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Columns side by side within `width`: cells are wrapped, those of the widest columns first."""
    widths = _column_widths([header, *rows], width)
    rule = ["-" * width for width in widths]
    return "\n".join(_line(row, widths) for row in (header, rule, *rows))


def _column_widths(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    columns = list(zip(*rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    narrowest = [max(len(word) for cell in column for word in (cell.split() or [""])) for column in columns]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        slack = [(have, number) for number, have in enumerate(widths) if have > narrowest[number]]
        if not slack:
            break
        widths[max(slack)[1]] -= 1
    return widths


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    filled = [cell + [""] * (height - len(cell)) for cell in cells]
    lines = [
        GAP.join(text.ljust(w) for text, w in zip(line, widths, strict=True)) for line in zip(*filled, strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)


def paragraph(text: str, width: int, indent: str = "  ", bullet: str = "") -> str:
    """Text within `width`, indented; a bullet stands before its first line."""
    hanging = indent + " " * len(bullet)
    return textwrap.fill(
        text,
        width,
        initial_indent=indent + bullet,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )

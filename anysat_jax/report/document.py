"""The parts of a page, before it is written as markdown or HTML. All texts are plain; the writers escape them."""

import dataclasses
import math
import re
from html import escape


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


def to_markdown(page: Page) -> str:
    """The whole page; texts are escaped, so that nothing in them is markup."""
    parts = [f"# {_escape(page.title)}", *(_section(section) for section in page.sections)]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {_escape(section.title)}", *(_block(block) for block in section.blocks)])


def _block(block: Block) -> str:
    match block:
        case Sheet():
            return f"**{_escape(block.caption)}**\n\n{_table(block)}"
        case Figure():
            return f"![{_escape(block.alt)}]({block.file})\n\n*{_escape(block.caption)}*"
        case Listing():
            return "\n".join(f"- {_escape(item)}" for item in block.items)
        case _:
            return _escape(block)


def _table(sheet: Sheet) -> str:
    names = " | ".join(_escape(column.name) for column in sheet.columns)
    rule = "|".join("---:" if column.numeric else "---" for column in sheet.columns)
    rows = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in sheet.rows]
    return "\n".join([f"| {names} |", f"|{rule}|", *rows])


def _cell(cell: Cell) -> str:
    text = _escape(cell.text)
    return f"**{text}**" if cell.bold and text else text


def _escape(text: str) -> str:
    """No character of a text is markup: of tables, links, emphasis, code or HTML."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#~!])", r"\\\1", line)


STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #55606b; --line: #d9dee3; --band: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: .75rem; }
h2 { border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
a { color: #14588f; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0; padding: 0; }
.sheet { overflow-x: auto; overflow-wrap: normal; margin: 1.75rem 0; }
table { border-collapse: collapse; font-size: .875rem; min-width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; font-size: 1rem; padding-bottom: .4rem; }
caption span { display: block; max-width: calc(100vw - 2rem); }
th, td { padding: .35rem .55rem; text-align: left; vertical-align: top; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); vertical-align: bottom; border-bottom: 2px solid #9aa5b0; }
tbody th { font-weight: 400; background: #fff; }
.long { min-width: 14rem; max-width: 20rem; white-space: normal; overflow-wrap: anywhere; }
tbody tr:hover > * { background: var(--band); }
.number { text-align: right; }
thead .number { white-space: normal; min-width: 5.5rem; }
td.ours:not(:empty) { background: #e7f1fa; color: #0d4672; font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:focus-visible, .sheet:focus-visible { outline: 2px solid #14588f; outline-offset: 2px; }
th button::after { content: "\\a0\\2195"; color: #8a949e; }
th[aria-sort="ascending"] button::after { content: "\\a0\\2191"; color: inherit; }
th[aria-sort="descending"] button::after { content: "\\a0\\2193"; color: inherit; }
figure { margin: 1.5rem 0; }
img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
@media (max-width: 500px) { tbody th { max-width: 9rem; white-space: normal; } }
@media (min-width: 700px) { tbody th, thead th:first-child { position: sticky; left: 0; } }
@media print { th button::after { content: ""; } .sheet { overflow: visible; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
  };
  const order = (a, b) => typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b))
    : (typeof a === "number" ? -1 : 1);
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sorted = head.getAttribute("aria-sort");
      const down = sorted ? sorted === "ascending" : head.classList.contains("number");
      const sign = down ? -1 : 1, rows = [...body.rows], empty = row => value(row, i) === "";
      rows.sort((a, b) => empty(a) - empty(b) || sign * order(value(a, i), value(b, i)));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}
"""


LONG_TEXT = 28


def to_html(page: Page) -> str:
    """The whole page; texts are escaped, so that nothing in them is markup."""
    links = "".join(f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in enumerate(page.sections))
    sections = "\n".join(_section_of_web(section, i) for i, section in enumerate(page.sections))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(page.title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav>
{sections}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section_of_web(section: Section, index: int) -> str:
    blocks = "\n".join(_block_of_web(block) for block in section.blocks)
    return f'<section aria-labelledby="s{index}">\n<h2 id="s{index}">{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block_of_web(block: Block) -> str:
    match block:
        case Sheet():
            return _table_of_web(block)
        case Figure():
            return _figure(block)
        case Listing():
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>"
        case _:
            return f"<p>{escape(block)}</p>"


def _figure(figure: Figure) -> str:
    width, height = figure.size
    image = f'<img src="{escape(figure.file)}" alt="{escape(figure.alt)}" width="{width}" height="{height}">'
    return (
        f'<figure style="max-width: {width // 2}px"><a href="{escape(figure.file)}">{image}</a>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _table_of_web(sheet: Sheet) -> str:
    head = "".join(_heading(column) for column in sheet.columns)
    body = "\n".join(_row(sheet, row) for row in sheet.rows)
    caption = escape(sheet.caption)
    return (
        f'<div class="sheet" role="region" tabindex="0" aria-label="{caption}">'
        f"<table><caption><span>{caption}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _heading(column: Column) -> str:
    kind = _classes(column)
    return f'<th scope="col"{kind}>{escape(column.name)}</th>'


def _row(sheet: Sheet, row: tuple[Cell, ...]) -> str:
    first = f'<th scope="row"{_classes(sheet.columns[0], row[0].text)}>{escape(row[0].text)}</th>'
    return f"<tr>{first}{''.join(map(_cell, sheet.columns[1:], row[1:]))}</tr>"


def _cell_of_web(column: Column, cell: Cell) -> str:
    kind = _classes(column, cell.text)
    key = "" if math.isnan(cell.number) else f' data-key="{cell.number!r}"'
    text = f"<b>{escape(cell.text)}</b>" if cell.bold and cell.text else escape(cell.text)
    return f"<td{kind}{key}>{text}</td>"


def _classes(column: Column, text: str = "") -> str:
    """The attribute that the style goes by; long texts may be broken into lines."""
    marks = {"number": column.numeric, "ours": column.ours, "long": len(text) > LONG_TEXT}
    names = " ".join(name for name, there in marks.items() if there)
    return f' class="{names}"' if names else ""

"""A page as HTML: one static file without anything from the network, for wide and narrow screens."""

import math
from html import escape

from anysat_jax.report.document import Block, Cell, Column, Figure, Listing, Page, Section, Sheet
from anysat_jax.report.web_look import SCRIPT, STYLE

LONG_TEXT = 28


def to_html(page: Page) -> str:
    """The whole page; texts are escaped, so that nothing in them is markup."""
    links = "".join(f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in enumerate(page.sections))
    sections = "\n".join(_section(section, i) for i, section in enumerate(page.sections))
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


def _section(section: Section, index: int) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f'<section aria-labelledby="s{index}">\n<h2 id="s{index}">{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Sheet():
            return _table(block)
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


def _table(sheet: Sheet) -> str:
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


def _cell(column: Column, cell: Cell) -> str:
    kind = _classes(column, cell.text)
    key = "" if math.isnan(cell.number) else f' data-key="{cell.number!r}"'
    text = f"<b>{escape(cell.text)}</b>" if cell.bold and cell.text else escape(cell.text)
    return f"<td{kind}{key}>{text}</td>"


def _classes(column: Column, text: str = "") -> str:
    """The attribute that the style goes by; long texts may be broken into lines."""
    marks = {"number": column.numeric, "ours": column.ours, "long": len(text) > LONG_TEXT}
    names = " ".join(name for name, there in marks.items() if there)
    return f' class="{names}"' if names else ""

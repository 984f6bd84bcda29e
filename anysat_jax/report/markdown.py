"""A page as markdown."""

import re

from anysat_jax.report.document import Block, Cell, Figure, Listing, Page, Section, Sheet


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

"""Writes pages in Markdown, and HTML made from it. Texts are escaped, so that nothing in them is markup."""

import html
import re
from collections.abc import Container, Iterable, Sequence

from tabulate import tabulate

STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #55606b; --line: #d9dee3; --band: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: .75rem; }
h2 { border-top: 1px solid var(--line); }
p, main li { max-width: 46rem; }
a { color: #14588f; }
.toc ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0; padding: 0; }
table { display: block; overflow-x: auto; overflow-wrap: normal; margin: .4rem 0 1.75rem; border-collapse: collapse; }
table { font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; max-width: 20rem; overflow: hidden; text-overflow: ellipsis; }
thead th { color: var(--soft); vertical-align: bottom; border-bottom: 2px solid #9aa5b0; min-width: 4.5rem; }
tbody tr:hover > * { background: var(--band); }
td em { font-style: normal; font-weight: 600; color: #0d4672; background: #e7f1fa; padding: .1rem .3rem; }
p:has(+ table) { margin: 1.75rem 0 0; }
img { max-width: 100%; height: auto; }
p:has(img) { max-width: none; margin-bottom: .4rem; }
p:has(img) + p { color: var(--soft); font-size: .9rem; margin-top: 0; }
p:has(img) + p em { font-style: normal; }
@media (min-width: 700px) { tbody td:first-child, th:first-child { position: sticky; left: 0; background: #fff; } }
"""
TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<nav aria-label="Sections">{{ contents | safe }}</nav>
{{ body | safe }}
</main>
</body>
</html>
"""


class Markup(str):
    """A text that is Markdown already."""

    __slots__ = ()


def escape(text: str) -> str:
    """Returns a text on one line in which no character is markup of Markdown or HTML; `Markup` as it is."""
    if isinstance(text, Markup):
        return text
    # Inside of a word Markdown reads an underscore as it is, so names such as mean_iou stay readable in the source.
    marks = r'[&<>"\\`*\[\]|#~!]|(?<!\w)_|_(?!\w)'
    return re.sub(marks, lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def bold(text: str) -> Markup:
    """Returns a text in bold."""
    return Markup(f"**{escape(text)}**")


def emphasis(text: str) -> Markup:
    """Returns a text in italics; the style of the HTML page highlights such cells of a table."""
    return Markup(f"*{escape(text)}*")


def heading(text: str, level: int = 2) -> str:
    """Returns a heading."""
    return f"{'#' * level} {escape(text)}"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Container[str] = (), caption: str = ""
) -> str:
    """Returns a table; the columns in `numeric` are aligned right, and a caption is a line above it."""
    text = tabulate(
        [[escape(cell) for cell in row] for row in rows],
        headers=[escape(name) for name in columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if name in numeric else "left" for name in columns],
    )
    return f"{bold(caption)}\n\n{text}" if caption else text


def figure(file: str, width: int, caption: str, alt: str) -> str:
    """Returns a picture, linked to its file: `width` in pixels of the page, `alt` for those who cannot see it."""
    return f'[<img src="{file}" alt="{escape(alt)}" width="{width}">]({file})\n\n{emphasis(caption)}'


def listing(items: Iterable[str]) -> str:
    """Returns a list of sentences."""
    return "\n".join(f"- {escape(item)}" for item in items)


def join(blocks: Iterable[str]) -> str:
    """Returns a page of headings, paragraphs, tables, pictures and lists."""
    return "\n\n".join(blocks) + "\n"


def to_html(page: str) -> str:
    """Returns a page as HTML with a table of its contents; its title is its first heading."""
    # Only this page needs them, while jobs import this module for its tables.
    import jinja2
    import markdown

    title = html.unescape(page.partition("\n")[0].removeprefix("# "))
    writer = markdown.Markdown(extensions=["tables", "toc"], extension_configs={"toc": {"toc_depth": "2-2"}})
    body = writer.convert(page)
    # The title is escaped; body and contents are markup of texts that `escape` has made safe.
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(TEMPLATE).render(title=title, style=STYLE, contents=writer.toc, body=body)

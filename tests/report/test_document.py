"""Pages in Markdown and HTML: texts are never markup."""

import html.parser

import pytest

from anysat_jax.report.document import bold, emphasis, escape, figure, heading, join, listing, table, to_html

NASTY = "<script>alert(1)</script> | **x** ![y](z) `code` ~~gone~~ # \\ [a] \"'&amp; _b_ \n\nnext"


class Tags(html.parser.HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    blocks = [
        heading(f"Title {NASTY}", 1),
        heading(NASTY),
        escape(NASTY),
        table(("Name", "Score"), [(NASTY, bold(NASTY)), ("a", emphasis("85.0 ± 1.0"))], ("Score",), NASTY),
        listing([NASTY]),
        figure("figures/a.png", 300, NASTY, NASTY),
    ]
    return Tags(to_html(join(blocks)))


def test_no_text_becomes_markup(page):
    names = [tag for tag, _ in page.tags]
    assert not {"script", "code", "del"} & set(names)
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == ["figures/a.png"]
    assert names.count("tr") == 3 and names.count("th") == 2  # a pipe in a text would break a row


def test_every_text_is_shown_as_it_is(page):
    shown = " ".join(NASTY.split())
    # In the title (twice), a section and the link to it, a paragraph, a caption, two cells, a list, below a figure.
    assert page.text.count(shown) == 10
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [shown]


def test_a_table_in_markdown():
    caption, space, *lines = table(("Task", "Ours"), [("a", "1.0"), ("b|c", "")], ("Ours",), "Caption").splitlines()
    assert (caption, space) == ("**Caption**", "")
    names, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert names == ["Task", "Ours"] and rule[0].startswith(":-") and rule[1].endswith("-:")
    assert rows == [["a", "1.0"], ["b&#124;c", ""]]


def test_sections_are_listed_at_the_top(page):
    targets = [attributes["href"] for tag, attributes in page.tags if tag == "a" and "#" in attributes["href"]]
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert len(targets) == 1 and targets[0].removeprefix("#") in ids

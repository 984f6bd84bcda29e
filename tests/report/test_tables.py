"""Tables of scores as Markdown and as text."""

import math

from anysat_jax.report.tables import Score, score_table, score_text

SCORES = [
    Score("Mini A", "tile", "weighted F1", 0.25, 0.5, headline=True),
    Score("Mini A", "tile", "macro F1", 0.2, 0.1),
    Score("A longer name", "tile", "accuracy", 0.75, 1.0, headline=True),
    Score("A longer name", "dense", "mIoU", math.nan, 0.5, headline=True),
]


def test_text_is_aligned_and_signed():
    lines = score_text(SCORES).splitlines()
    assert lines[0].split() == ["dataset", "task", "metric", "(%)", "random", "pretrained", "difference"]
    assert [line.split()[-3:] for line in lines[2:]] == [
        ["25.0", "50.0", "+25.0"],
        ["20.0", "10.0", "-10.0"],
        ["75.0", "100.0", "+25.0"],
        ["-", "50.0", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_table_shows_the_headline_in_bold():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in score_table(SCORES).splitlines()]
    assert rows[2] == ["Mini A", "tile", "weighted F1", "**25.0**", "**50.0**", "**+25.0**"]
    assert rows[3] == ["Mini A", "tile", "macro F1", "20.0", "10.0", "-10.0"]
    assert len({len(row) for row in rows}) == 1

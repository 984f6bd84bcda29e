"""Scores as text."""

import math

from anysat_jax.report.tables import Score, markdown_table, score_tree, task_means, text_table

SCORES = [
    Score("Mini A", "tile", "weighted F1", 0.25, 0.5, headline=True),
    Score("Mini A", "tile", "macro F1", 0.2, 0.1),
    Score("A longer name", "tile", "accuracy", 0.75, 1.0, headline=True),
    Score("A longer name", "dense", "mIoU", math.nan, 0.5, headline=True),
]


def test_text_table_is_aligned_and_signed():
    lines = text_table(SCORES).splitlines()
    assert lines[0].split() == ["dataset", "task", "metric", "(%)", "random", "pretrained", "difference"]
    assert lines[2].endswith("25.0        50.0       +25.0")
    assert lines[3].endswith("20.0        10.0       -10.0")
    assert lines[5].endswith("-        50.0           -")
    assert len({len(line) for line in lines}) == 1


def test_markdown_table_shows_the_headline_in_bold():
    lines = markdown_table(SCORES).splitlines()
    assert lines[2] == "| Mini A | tile | weighted F1 | **25.0** | **50.0** | **+25.0** |"
    assert lines[3] == "| Mini A | tile | macro F1 | 20.0 | 10.0 | -10.0 |"
    assert len({line.count("|") for line in lines}) == 1


def test_means_are_of_headline_scores_and_none_without_any():
    assert task_means(SCORES) == {
        "tile": {"random": 0.5, "pretrained": 0.75},
        "dense": {"random": None, "pretrained": None},
    }


def test_score_tree_has_no_nan():
    tree = score_tree(SCORES)
    assert tree["A longer name"]["dense"]["mIoU"] == {"random": None, "pretrained": 0.5}
    assert tree["Mini A"]["tile"]["macro F1"]["random"] == 0.2

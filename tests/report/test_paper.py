"""The paper's numbers are the paper's: read again from its supplement, where that is at hand."""

import re

import pytest

from anysat_jax.downstream.task import METRICS
from anysat_jax.report import paper
from tests.conftest import optional_folder

USED = re.compile("[✓🗑🗓]")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The supplement's lines."""
    folder = optional_folder("ANYSAT_PAPER", "shared/seed")
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))).splitlines()


def plain(text: str) -> str:
    """Without bold and without the numbers of references."""
    return re.sub(r"\s*\[[\d, ]+\]", "", text.replace("<b>", "").replace("</b>", "")).strip()


def printed_block(lines: list[str], block: paper.PaperBlock) -> tuple[list[str], list[list[str]]]:
    """The cells of a block's heading, by column, and of the rows below it, up to the next heading."""
    start = next(i for i, line in enumerate(lines) if plain(line.split("\t")[0]) == block.heading and "\t" in line)
    headings = {other.heading for other in paper.BLOCKS}
    rows = []
    for line in lines[start + 1 :]:
        cells = line.split("\t")
        if len(cells) < 2 or plain(cells[0]) in headings or plain(cells[0]) == "Model":
            break
        rows.append(cells)
    return lines[start].split("\t"), rows


@pytest.mark.parametrize("block", paper.BLOCKS, ids=lambda block: block.heading)
class TestAgainstTheSupplement:
    def test_columns_are_those_of_the_heading(self, lines, block):
        heading, _ = printed_block(lines, block)
        names = [*block.modalities, *(paper.METRIC_NAMES[metric] for metric in block.metrics)]
        assert [cell for cell in heading[1:] if cell] == names

    def test_every_row_and_number_is_there(self, lines, block):
        heading, printed = printed_block(lines, block)
        assert [plain(cells[0]) for cells in printed] == [row.model for row in block.rows]
        for cells, row in zip(printed, block.rows, strict=True):
            for metric, score in zip(block.metrics, row.scores, strict=True):
                number = plain(cells[heading.index(paper.METRIC_NAMES[metric])])
                assert number == ("-" if score is None else f"{score:.1f}")

    def test_the_highest_number_is_the_bold_one(self, lines, block):
        _, printed = printed_block(lines, block)
        bold = {(i, text) for i, cells in enumerate(printed) for text in re.findall(r"<b>([\d.]+)</b>", str(cells))}
        best = {
            (i, f"{score:.1f}")
            for i, row in enumerate(block.rows)
            for metric, score in enumerate(row.scores)
            if score == block.best(metric)
        }
        assert bold == best

    def test_inputs_and_pretraining(self, lines, block):
        heading, printed = printed_block(lines, block)
        for cells, row in zip(printed, block.rows, strict=True):
            for modality, sign in zip(block.modalities, row.inputs, strict=True):
                cell = cells[heading.index(modality)]
                assert sign == ("✓" if "✓" in cell else "◦" if USED.search(cell) else "")
            assert row.pretraining == (plain(cells[1]) if block.table == "A" else "")


@pytest.mark.parametrize("block", paper.BLOCKS, ids=lambda block: block.heading)
def test_rows_are_as_wide_as_their_block(block):
    for row in block.rows:
        assert (len(row.inputs), len(row.scores)) == (len(block.modalities), len(block.metrics))
        assert row.row.startswith(f"{block.table}/") == row.model.startswith("AnySat")
    assert set(block.metrics) <= {name for names in METRICS.values() for name in names}


def test_ids_are_unique():
    ids = list(paper.row_ids())
    assert len(ids) == len(set(ids)) == 21

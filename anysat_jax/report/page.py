"""The results page: our numbers beside the paper's, with figures, from the folders of finished runs."""

import pathlib
from collections.abc import Mapping, Sequence

from anysat_jax.report import paper
from anysat_jax.report.document import Block, Listing, Page, Section, to_html, to_markdown
from anysat_jax.report.figures import FigureFolder, describe
from anysat_jax.report.runs import Group, by_row, group_runs, read_runs, split
from anysat_jax.report.tables import Score, markdown_table, other_sheets, overview_sheet, paper_sheet

NUMBERS = (
    "Our numbers are measured by the runs that are listed beside them, on the test split, or on the split in "
    "parentheses where the dataset has no test split. Where several runs differ in their seed only, the number is "
    "their mean ± sample standard deviation. A cell is empty where nothing was run: no number of ours comes from the "
    "paper. Runs on synthetic tiles or on a part of the labels do not repeat the paper's rows, and are listed among "
    "the other runs."
)
INPUTS = (
    "The paper's numbers are those of tables A and B of its supplement, test sets, in percent, the best of each column "
    "in bold. ◦ marks inputs of which a single date was used, or seasonal medians. LP stands for linear probing. The "
    "paper scores SICKLE on its validation split, since the test split has not been released."
)


def write_results(runs: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Writes results.md, results.html and their figures.

    Args:
      runs: workdirs of fine-tuning, probing and evaluation runs; those that are not finished or that are broken are
        named on the page with the reason, and the others are shown.
      out: the folder of the pages, made where there is none; figures go to `<out>/figures`.

    Returns:
      The path of results.html.
    """
    found, problems = read_runs(runs)
    groups = group_runs(found)
    figures = FigureFolder(out)
    shown = [*_paper_sections(groups, figures), *_other_section(groups, figures), *_group_sections(groups, figures)]
    problems += figures.problems
    page = Page("AnySat: results", (_introduction(len(found), problems), *shown))
    (out / "results.md").write_text(to_markdown(page), encoding="utf-8")
    path = out / "results.html"
    path.write_text(to_html(page), encoding="utf-8")
    return path


def _introduction(count: int, problems: Sequence[str]) -> Section:
    blocks: list[Block] = [f"{count} {'run' if count == 1 else 'runs'} shown.", NUMBERS]
    if problems:
        blocks += ["Not everything could be shown:", Listing(tuple(problems))]
    return Section("What is shown", tuple(blocks))


def _paper_sections(groups: Sequence[Group], figures: FigureFolder) -> list[Section]:
    rows = by_row(groups)
    return [
        Section("Overview", (figures.radar(rows), overview_sheet(rows))),
        Section("Table A: test sets of GeoPlex", (INPUTS, *_sheets(paper.TABLE_A, rows))),
        Section("Table B: external datasets", _sheets(paper.TABLE_B, rows)),
    ]


def _sheets(blocks: Sequence[paper.PaperBlock], rows: Mapping[str, Sequence[Group]]) -> tuple[Block, ...]:
    return tuple(paper_sheet(block, rows) for block in blocks)


def _other_section(groups: Sequence[Group], figures: FigureFolder) -> list[Section]:
    others = [group for group in groups if not group.paper_row]
    same = split(groups, lambda group: (group.first.task, group.first.split, group.first.synthetic))
    curves = [figure for number, some in enumerate(same, 1) for figure in figures.by_labels(some, number)]
    return [Section("Other runs", (*other_sheets(others), *curves))] if others else []


def _group_sections(groups: Sequence[Group], figures: FigureFolder) -> list[Section]:
    drawn = [(group, figures.of_group(group, number)) for number, group in enumerate(groups, 1)]
    return [Section(describe(group), tuple(blocks)) for group, blocks in drawn if blocks]


PROTOCOL = """\
Each score is a linear probe's (LayerNorm and one linear layer) on features that stay frozen: fitted on the training
split, its weight penalty chosen on a fifth of it, scored on held-out tiles. *Random* is the same network at its random
start, *pretrained* the teacher at the end of the run; both are probed alike. Bold: the score that stands for the probe
in the figures and in `summary.json`, which gives means over the datasets.

Pictures of features show their three main components relative to each tile's mean; colours compare down a column."""


def write_page(
    folder: pathlib.Path, run: str, scores: Sequence[Score], figures: Sequence[tuple[str, str]]
) -> pathlib.Path:
    """Writes `README.md` beside the figures.

    Args:
      folder: where the figures are.
      run: what the run was, for the title.
      scores: the table's rows; without any, the page says so.
      figures: file name and caption of each figure.

    Returns:
      The page's path.
    """
    parts = [f"# {run}", "## Linear probes"]
    parts += [markdown_table(scores), PROTOCOL] if scores else ["Nothing was probed."]
    for file, caption in figures:
        parts.append(f"## {caption}\n\n![{caption}]({file})")
    page = folder / "README.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page

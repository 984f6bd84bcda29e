"""The report's page: one markdown file that shows the table and the figures."""

import pathlib
from collections.abc import Sequence

from anysat_jax.report.tables import Score, markdown_table

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

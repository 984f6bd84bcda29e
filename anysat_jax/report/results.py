"""The results page: our numbers beside the paper's, with figures, from the folders of finished runs."""

import pathlib
from collections.abc import Sequence


def write_results(runs: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Writes results.md, results.html and their figures.

    Args:
      runs: workdirs of fine-tuning, probing and evaluation runs; those that are not finished or that are broken are
        named on the page with the reason, and the others are shown.
      out: the folder of the pages, made where there is none; figures go to `<out>/figures`.

    Returns:
      The path of results.html.
    """
    raise NotImplementedError("being written")

"""Comparison of finished runs with the paper's tables: writes results.md and results.html.

python -m anysat_jax.report runs/a runs/b --out results

Runs that cannot be read are listed on stderr and on the page; the exit code is 1 if there is no other run.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from anysat_jax.errors import complain, reason
from anysat_jax.report.page import write_results
from anysat_jax.report.runs import read_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the pages, prints their path and the runs that cannot be read, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m anysat_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="a run's folder (--workdir)")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results"), metavar="DIR", help="default: results"
    )
    given = parser.parse_args(argv)
    found, problems = read_runs(given.runs)
    for problem in problems:
        complain(problem, "anysat_jax.report")
    if not found:
        return 1
    try:
        page = write_results(given.runs, given.out)
    except OSError as error:
        return complain(f"{given.out} cannot be written: {reason(error)}", "anysat_jax.report")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How scores grow with the share of labels that training has seen."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from anysat_jax.report import style
from anysat_jax.report.groups import Group
from anysat_jax.report.results_tables import MODE_WORDS

Point = tuple[float, float, float]
"""Share of the labels, mean score, spread (nan for a single run)."""


def label_lines(groups: Iterable[Group]) -> dict[str, list[Point]]:
    """The scores of each method that was tried with several shares of the labels, by its name in words.

    Args:
      groups: runs of one task; the score is the metric that each chose its best epoch by.
    """
    lines: dict[str, list[Point]] = {}
    for group in groups:
        run = group.first
        mean, spread = group.score(run.task.metric)
        if run.job != "evaluate" and math.isfinite(mean):
            name = f"{MODE_WORDS.get(run.mode, run.mode)}, start: {run.start.partition(' ')[0]}"
            lines.setdefault(name, []).append((run.fraction, mean, spread))
    return {name: sorted(points) for name, points in lines.items() if len({point[0] for point in points}) > 1}


def draw_label_curves(path: pathlib.Path, title: str, metric: str, lines: Mapping[str, Sequence[Point]]) -> None:
    """Draws `label_lines` over a logarithmic axis of shares, with the spread as bars.

    Args:
      path: the PNG file.
      title: of the figure.
      metric: what the scores are, in words.
      lines: at least one.
    """
    from matplotlib.ticker import NullLocator

    with style.new_figure(path, (7.5, 4.8), title) as figure:
        ax = figure.subplots()
        for colour, (name, points) in zip(_colours(len(lines)), lines.items(), strict=True):
            shares, means, spreads = zip(*points, strict=True)
            bars = [0.0 if math.isnan(spread) else spread for spread in spreads]
            ax.errorbar(shares, means, bars, color=colour, marker="o", linewidth=1.8, capsize=3, label=name)
        ax.set_xscale("log")
        ticks = sorted({point[0] for points in lines.values() for point in points})
        ax.set_xticks(ticks, [f"{100 * share:g} %" for share in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("share of the training labels")
        ax.set_ylabel(metric)
        ax.grid(visible=True)
        figure.legend(loc="outside lower center", ncols=1 if len(lines) > 2 else 2)


def _colours(count: int) -> list[str]:
    return [style.DATASET_COLOURS[index % len(style.DATASET_COLOURS)] for index in range(count)]

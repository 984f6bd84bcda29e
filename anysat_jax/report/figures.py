"""The report's figures: training curves, probe scores, and held-out tiles with their features."""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from anysat_jax.report import style
from anysat_jax.report.curves import draw_curves, read_curves
from anysat_jax.report.mosaic import draw_mosaic
from anysat_jax.report.pictures import Picture
from anysat_jax.report.plan import Plan
from anysat_jax.report.tables import Score


def draw_all(
    folder: pathlib.Path,
    run: str,
    metrics_csv: pathlib.Path,
    scores: Sequence[Score],
    pictures: Sequence[tuple[Plan, list[Picture]]],
) -> list[tuple[str, str]]:
    """Draws everything that there is something to draw of.

    Args:
      folder: gets the files.
      run: what the run was, for the titles.
      metrics_csv: the training's log; without it there are no curves.
      scores: of the probes.
      pictures: held-out tiles by dataset.

    Returns:
      File name and caption of each figure.
    """
    written = []
    curves = read_curves(metrics_csv)
    if curves:
        draw_curves(folder / "curves.png", run, curves)
        written.append(("curves.png", "Training"))
    else:
        logging.warning("no training curves: %s has no rows", metrics_csv)
    if scores:
        draw_scores(folder / "probes.png", run, scores)
        written.append(("probes.png", "Probe scores"))
    for plan, shown in pictures:
        file = f"features_{plan.card.name}.png"
        draw_mosaic(folder / file, run, plan, shown)
        written.append((file, f"Dense features and land cover: {plan.card.title}"))
    return written


def draw_scores(path: pathlib.Path, run: str, scores: Sequence[Score]) -> None:
    """Bars of each probe's headline score, random start against pretrained, a panel for each task."""
    panels = [(task, [s for s in scores if s.headline and s.task == task]) for task in ("tile", "dense")]
    panels = [(task, chosen) for task, chosen in panels if chosen]
    widths = [len(chosen) + 0.6 for _, chosen in panels]
    size = (max(6.0, 1.9 * sum(widths) + 1.2), 4.6)
    with style.new_figure(path, size, f"Linear probes of frozen features: {run}") as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0]
        for ax, (task, chosen) in zip(axes, panels, strict=True):
            _draw_bars(ax, chosen)
            ax.set_title("One answer a tile" if task == "tile" else "One answer a 10 m pixel")
        highest = max((v for s in scores if s.headline for v in (s.random, s.pretrained) if v == v), default=1.0)
        axes[0].set_ylim(0, min(105, 120 * highest + 1))
        axes[0].set_ylabel("score on held-out tiles (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _draw_bars(ax: Any, scores: Sequence[Score]) -> None:
    """Two bars for each score, with their values above."""
    for offset, name, label, colour in (
        (-0.19, "random", "random start", style.RANDOM_COLOUR),
        (0.19, "pretrained", "pretrained", style.PRETRAINED_COLOUR),
    ):
        heights = [100 * getattr(score, name) for score in scores]
        bars = ax.bar([i + offset for i in range(len(scores))], heights, 0.36, label=label, color=colour)
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=10, color=style.TEXT_COLOUR)
    ax.set_xticks(range(len(scores)), [f"{score.dataset}\n{score.metric}" for score in scores])
    ax.set_xlim(-0.6, len(scores) - 0.4)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y")

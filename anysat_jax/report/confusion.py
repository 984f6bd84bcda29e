"""Confusion matrices as pictures: each row sums to 100 %."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from anysat_jax.report import style

CELL_INCHES = 0.36
LETTER_INCHES = 0.085
FEWEST_CELLS = 8  # a matrix of two classes gets larger cells, so that the title has room
LONGEST_NAME = 28
OUTCOMES = ("carried,\nfound", "carried,\nmissed", "not carried,\nclaimed", "not carried,\nnot claimed")


def draw_confusion(path: pathlib.Path, title: str, classes: Sequence[str], counts: Int[np.ndarray, "K ..."]) -> None:
    """Draws a matrix of classes, or for several labels a tile a row of outcomes for each label.

    Args:
      path: the PNG file.
      title: above the matrix.
      classes: K names.
      counts: (K, K) with the truth in the rows, or (K, 2, 2): [[true negatives, false alarms], [misses, hits]].
    """
    several = counts.ndim == 3
    shares = label_shares(counts) if several else row_shares(counts)
    totals = counts[:, 1].sum(axis=-1) if several else counts.sum(axis=1)
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in classes]
    rows = [f"{name} ({total:,})" for name, total in zip(names, totals, strict=True)]
    _draw_shares(path, title, shares, rows, OUTCOMES if several else names)


def row_shares(counts: Int[np.ndarray, "K L"]) -> Float[np.ndarray, "K L"]:
    """Each row over its sum; nan in rows without any count."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)


def label_shares(counts: Int[np.ndarray, "K 2 2"]) -> Float[np.ndarray, "K 4"]:
    """Of the tiles that carry a label the shares found and missed; of the others the shares claimed and not claimed."""
    carried, others = row_shares(counts[:, 1, ::-1]), row_shares(counts[:, 0, ::-1])
    return np.concatenate([carried, others], axis=1)


def _draw_shares(
    path: pathlib.Path, title: str, shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    height, width = shares.shape
    cell = CELL_INCHES * max(1.0, FEWEST_CELLS / max(height, width))
    upright = len(columns) == len(OUTCOMES) and columns[0] == OUTCOMES[0]
    beside = LETTER_INCHES * max(map(len, rows))
    above = 0.5 if upright else LETTER_INCHES * max(map(len, columns))
    cell_width = max(cell, 1.0) if upright else cell
    with style.new_figure(path, (cell_width * width + beside + 1.6, cell * height + above + 1.4), title) as figure:
        ax = figure.subplots()
        colours = _colours()
        image = ax.imshow(100 * shares, cmap=colours, vmin=0, vmax=100, aspect="auto")
        ax.set_xticks(range(width), columns, rotation=0 if upright else 90, fontsize=9)
        ax.set_yticks(range(height), rows, fontsize=9)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("outcome" if upright else "prediction")
        ax.set_ylabel("truth (count)")
        _write_shares(ax, shares)
        bar = figure.colorbar(image, ax=ax, shrink=min(1.0, 4 / (cell * height)), pad=0.02)
        bar.set_label("% of the row")


def _colours() -> Any:
    """White to blue; grey where nothing was counted."""
    from matplotlib import colormaps

    return colormaps["Blues"].with_extremes(bad="#dddddd")


def _write_shares(ax: Any, shares: np.ndarray) -> None:
    """Whole percents in the cells, none where they round to 0."""
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005):
        share = shares[row, column]
        colour = "white" if share > 0.55 else style.TEXT_COLOUR
        text = ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        text.set_in_layout(False)  # it is inside anyway, and thousands of them take long to lay out

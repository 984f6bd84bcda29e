"""The picture of held-out tiles: a row for each tile, a column for each way to see it."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from anysat_jax.report import style
from anysat_jax.report.pictures import Picture, principal_colours, stretch
from anysat_jax.report.plan import Plan
from anysat_jax.sensors import get_sensor

UNKNOWN_COLOUR = "#ffffff"
COLUMN_INCHES = 2.25

Column = tuple[str, list[Float[np.ndarray, "h w 3"]]]


def draw_mosaic(path: pathlib.Path, run: str, plan: Plan, pictures: Sequence[Picture]) -> None:
    """Draws tiles in natural colour, their dense features as colours, and land cover as probed and as labelled.

    Args:
      path: the PNG file.
      run: what the run was, for the title.
      plan: the dataset's.
      pictures: tiles, all of one dataset.
    """
    columns = mosaic_columns(plan, pictures)
    size = (COLUMN_INCHES * len(columns) + 1.9, COLUMN_INCHES * len(pictures) + 1.0)
    with style.new_figure(path, size, f"{plan.card.title}, held-out tiles: {run}") as figure:
        axes = figure.subplots(len(pictures), len(columns), squeeze=False)
        for row, picture in enumerate(pictures):
            for column, (title, images) in enumerate(columns):
                _show(axes[row, column], images[row], picture.extent)
                if row == 0:
                    axes[row, column].set_title(title, fontsize=10.5)
                axes[row, column].tick_params(labelbottom=row == len(pictures) - 1, labelleft=column == 0)
            axes[row, 0].set_ylabel("metres")
        for ax in axes[-1]:
            ax.set_xlabel("metres")
        _add_legend(figure, plan, pictures)


def mosaic_columns(plan: Plan, pictures: Sequence[Picture]) -> list[Column]:
    """Title and images of each column; colours compare down a column, not between the two networks."""
    metres = get_sensor(plan.picture_sensor).subpatch_metres
    columns: list[Column] = [
        (f"Natural colour\n{pictures[0].natural_sensor}", stretch([picture.natural for picture in pictures]))
    ]
    for network, title in (("random", "random start"), ("pretrained", "pretrained")):
        colours = principal_colours([picture.features[network] for picture in pictures])
        columns.append((f"Features, {title}\n{plan.picture_sensor}, {metres:g} m, PCA", colours))
    for kind, title in (
        ("random", "Land cover, probe of\nrandom start"),
        ("pretrained", "Land cover, probe of\npretrained"),
        ("label", "Land cover,\nlabel"),
    ):
        if kind in pictures[0].land_cover:
            columns.append((title, [paint(plan, picture.land_cover[kind]) for picture in pictures]))
    return columns


def paint(plan: Plan, classes: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """A class map in the card's colours; what is unknown is white."""
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(colour) for colour in (*plan.card.dense_colours, UNKNOWN_COLOUR)])
    known = (classes >= 0) & (classes < len(plan.card.dense_classes)) & (classes != plan.card.ignore_label)
    return palette[np.where(known, classes, len(palette) - 1)]


def _show(ax: Any, image: Float[np.ndarray, "h w 3"], extent: tuple[float, float]) -> None:
    """An image with its sides in metres, the origin at the upper left."""
    height, width = extent
    ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    ax.set_xticks(np.linspace(0, width, 3))
    ax.set_yticks(np.linspace(0, height, 3))
    ax.tick_params(length=2, labelsize=9)
    ax.spines[:].set_visible(False)


def _add_legend(figure: Any, plan: Plan, pictures: Sequence[Picture]) -> None:
    """The classes that occur on the maps, in the card's order."""
    from matplotlib.patches import Patch

    shown = {int(number) for picture in pictures for one in picture.land_cover.values() for number in np.unique(one)}
    handles = [
        Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=name)
        for number, (name, colour) in enumerate(zip(plan.card.dense_classes, plan.card.dense_colours, strict=True))
        if number in shown and number != plan.card.ignore_label
    ]
    if plan.card.ignore_label in shown:
        handles.append(Patch(facecolor=UNKNOWN_COLOUR, edgecolor="#999999", linewidth=0.5, label="no label"))
    figure.legend(handles=handles, loc="outside right center", title="Land cover", handlelength=1.2, handleheight=1.2)

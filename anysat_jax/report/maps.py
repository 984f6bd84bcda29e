"""The qualitative panels of the paper's figure B: inputs, prediction and ground truth of a few tiles."""

import dataclasses
import pathlib
import re
import textwrap
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from anysat_jax.downstream.task import Task
from anysat_jax.report import style
from anysat_jax.report.runs import BrokenRun, Run, clean
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard

FILE = "panels.npz"
LARGEST_BYTES = 2**30  # of the unpacked file
MOST_TILES = 6
COLUMN_INCHES = 2.3
CLASSES_BESIDE_A_TILE = 10
VOID_COLOUR = "#ffffff"
BROKEN = (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
SPREAD = (1.0, 99.0)  # percentiles that are the ends of a colour bar


@dataclasses.dataclass(frozen=True)
class Panels:
    """A few samples of a run.

    Attributes:
      ids: n names.
      inputs: (n, H, W, 3) of each sensor.
      truth, prediction: (n, h, w), classes with -1 for void, or numbers with nan; for tile tasks n texts.
      extent: side of a tile in metres.
    """

    ids: Sequence[str]
    inputs: dict[str, UInt8[np.ndarray, "n H W 3"]]
    truth: Shaped[np.ndarray, "n ..."]
    prediction: Shaped[np.ndarray, "n ..."]
    extent: float


def read_panels(run: Run) -> Panels | None:
    """The panels of a run; None where it has none.

    Raises:
      BrokenRun: the file is not what an evaluation writes.
    """
    path, where = run.folder / FILE, f"{run.label}/{FILE}"
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_BYTES:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as arrays:
            panels = _make_panels(run.task, dict(arrays))
    except BROKEN as error:
        reason = f"it has no array {error}" if isinstance(error, KeyError) else clean(error)
        raise BrokenRun(f"{where} cannot be shown: {reason}; evaluate the run again to write it anew.") from None
    return panels if len(panels.ids) else None


def _make_panels(task: Task, arrays: dict[str, np.ndarray]) -> Panels:
    suffix = "_text" if task.level == "tile" else ""
    ids = [clean(text) for text in arrays["ids"][:MOST_TILES]]
    inputs = {clean(name): arrays[f"input_{i}"][:MOST_TILES] for i, name in enumerate(arrays["sensors"])}
    truth, prediction = (arrays[f"{name}{suffix}"][:MOST_TILES] for name in ("truth", "prediction"))
    dims = 1 if task.level == "tile" else 3
    kinds = "U" if task.level == "tile" else "f" if task.kind == "regression" else "iu"
    if not ids:
        return Panels([], {}, truth, prediction, 0.0)
    for name, answers in (("truth", truth), ("prediction", prediction)):
        if (
            answers.ndim != dims
            or len(answers) != len(ids)
            or answers.dtype.kind not in kinds
            or not all(answers.shape[1:])
        ):
            raise ValueError(f"{name} is {answers.dtype} {answers.shape}")
    for name, images in inputs.items():
        if (
            images.ndim != 4
            or images.shape[0] != len(ids)
            or images.shape[3] != 3
            or images.dtype != np.uint8
            or not images.size
        ):
            raise ValueError(f"the input of {name} is {images.dtype} {images.shape}")
    return Panels(ids, inputs, truth, prediction, float(arrays["extent"]))


def draw_panels(path: pathlib.Path, title: str, task: Task, panels: Panels) -> None:
    """Draws a row for each tile: its inputs, the prediction, the ground truth; white is void."""
    columns = len(panels.inputs) + 2
    size = (COLUMN_INCHES * columns + 1.9, COLUMN_INCHES * len(panels.ids) + 0.9)
    with style.new_figure(path, size, title) as figure:
        axes = figure.subplots(len(panels.ids), columns, squeeze=False)
        for row, cells in enumerate(axes):
            for ax, (name, images) in zip(cells, panels.inputs.items(), strict=False):
                ax.imshow(images[row], interpolation="nearest")
                ax.set_title(name if row == 0 else "")
            for ax, name in zip(cells[-2:], ("prediction", "truth"), strict=True):
                ax.set_title({"prediction": "Prediction", "truth": "Ground truth"}[name] if row == 0 else "")
                _draw_answer(ax, task, panels, name, row)
            for ax in cells:
                _frame(ax)
            cells[0].set_ylabel(textwrap.fill(panels.ids[row], 26), fontsize=8)
        if task.level == "dense":
            _add_key(figure, axes, task, panels)


def _draw_answer(ax: Any, task: Task, panels: Panels, name: str, row: int) -> None:
    answers = getattr(panels, name)
    if task.level == "tile":
        text = textwrap.fill(clean(answers[row]), 22)
        ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, transform=ax.transAxes, color=style.TEXT_COLOUR)
    elif task.kind == "regression":
        low, high = value_range(panels)
        ax.imshow(answers[row], cmap=_value_colours(), vmin=low, vmax=high, interpolation="nearest")
    else:
        ax.imshow(paint(task, answers[row]), interpolation="nearest")


def class_colours(task: Task) -> list[str]:
    """The dataset's official colours, or evenly spread ones where it has none."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    official = [colour for colour in task.colours if re.fullmatch("#[0-9a-fA-F]{6}", colour)]
    if len(official) == len(task.classes):
        return official
    spread = colormaps["turbo"](np.linspace(0.05, 0.95, len(task.classes)))
    return [to_hex(colour) for colour in spread]


def paint(task: Task, classes: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """A class map in colours; what is no class is void, which is white."""
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(colour) for colour in (*class_colours(task), VOID_COLOUR)])
    void = len(task.classes)
    return palette[np.where((classes >= 0) & (classes < void), classes, void)]


def value_range(panels: Panels) -> tuple[float, float]:
    """The ends of the colour bar, from the truth and the predictions of all tiles together."""
    values = np.concatenate([panels.truth.ravel(), panels.prediction.ravel()])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, SPREAD)
    return float(low), float(high if high > low else low + 1)


def _value_colours() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=VOID_COLOUR)


def _frame(ax: Any) -> None:
    """A thin frame without ticks, so that white is seen to be inside."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.6)


def _add_key(figure: Any, axes: np.ndarray, task: Task, panels: Panels) -> None:
    """The colour bar of a regression, or the classes that occur."""
    from matplotlib.patches import Patch

    if task.kind == "regression":
        bar = figure.colorbar(axes[0, -1].images[0], ax=axes, shrink=0.8, pad=0.02)
        bar.set_label(task.unit)
        return
    shown = set(np.unique(panels.truth).tolist()) | set(np.unique(panels.prediction).tolist())
    looks = dict(edgecolor="#999999", linewidth=0.5)
    pairs = zip(task.classes, class_colours(task), strict=True)
    handles = [Patch(facecolor=colour, label=name, **looks) for i, (name, colour) in enumerate(pairs) if i in shown]
    if any(number < 0 or number >= len(task.classes) for number in shown):
        handles.append(Patch(facecolor=VOID_COLOUR, label="void", **looks))
    columns = -(-len(handles) // (CLASSES_BESIDE_A_TILE * len(panels.ids)))
    figure.legend(handles=handles, loc="outside right center", ncols=columns, handlelength=1.2, handleheight=1.2)


STRETCH = (2.0, 98.0)  # percentiles that become black and white


@dataclasses.dataclass
class Picture:
    """One tile, ready to be drawn.

    Attributes:
      extent: height and width of the tile in metres.
      natural: red, green and blue of the sensor in `natural_sensor`, not stretched yet.
      natural_sensor: that sensor's name.
      features: dense features by network.
      land_cover: class maps by what they are: a network's name (the probe's answer) or "label".
    """

    extent: tuple[float, float]
    natural: Float[np.ndarray, "H W 3"]
    natural_sensor: str
    features: dict[str, Float[np.ndarray, "h w F"]]
    land_cover: dict[str, Int[np.ndarray, "h w"]]


@dataclasses.dataclass
class Mosaic:
    """Pictures of one dataset.

    Attributes:
      card: of the dataset.
      picture_sensor: sensor of the dense features.
      pictures: of its tiles.
    """

    card: DatasetCard
    picture_sensor: str
    pictures: list[Picture]


def stretch(images: list[Float[np.ndarray, "H W 3"]]) -> list[Float[np.ndarray, "H W 3"]]:
    """Each channel from percentiles over all images to [0, 1], so that colours compare between the images."""
    values = np.concatenate([image.reshape(-1, 3) for image in images])
    low, high = np.percentile(values, STRETCH, axis=0)
    scale = np.maximum(high - low, 1e-6)
    return [np.clip((image - low) / scale, 0, 1) for image in images]


def principal_colours(maps: list[Float[np.ndarray, "h w F"]]) -> list[Float[np.ndarray, "h w 3"]]:
    """The three main directions in which features vary inside the tiles, as red, green and blue in [0, 1].

    Features are LayerNormed, as the probes read them, and taken relative to their tile's mean: whole tiles differ more
    than their parts, and would be one colour each. Directions point to where their largest weight is positive, so that
    colours do not depend on the eigensolver.
    """
    flat = np.concatenate([_about_mean(one) for one in maps])
    flat /= flat.std(axis=0) + 1e-3  # a feature that hardly varies stays small
    _, axes = np.linalg.eigh(flat.T @ flat)
    axes = axes[:, :-4:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(3)])
    ends = np.cumsum([one.shape[0] * one.shape[1] for one in maps])[:-1]
    colours = [part.reshape(*one.shape[:2], 3) for part, one in zip(np.split(flat @ axes, ends), maps, strict=True)]
    return stretch(colours)


def _about_mean(features: Float[np.ndarray, "h w F"]) -> Float[np.ndarray, "h*w F"]:
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= flat.std(axis=1, keepdims=True) + 1e-6
    return flat - flat.mean(axis=0)


UNKNOWN_COLOUR = "#ffffff"
MOSAIC_COLUMN_INCHES = 2.25

Column = tuple[str, list[Float[np.ndarray, "h w 3"]]]


def draw_mosaic(path: pathlib.Path, run: str, mosaic: Mosaic) -> None:
    """Draws tiles in natural colour, their dense features as colours, and land cover as probed and as labelled.

    Args:
      path: the PNG file.
      run: what the run was, for the title.
      mosaic: the pictures.
    """
    columns, pictures = mosaic_columns(mosaic), mosaic.pictures
    size = (MOSAIC_COLUMN_INCHES * len(columns) + 1.9, MOSAIC_COLUMN_INCHES * len(pictures) + 1.0)
    with style.new_figure(path, size, f"{mosaic.card.title}, held-out tiles: {run}") as figure:
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
        _add_legend(figure, mosaic)


def mosaic_columns(mosaic: Mosaic) -> list[Column]:
    """Title and images of each column; colours compare down a column, not between the two networks."""
    pictures, sensor = mosaic.pictures, mosaic.picture_sensor
    metres = get_sensor(sensor).subpatch_metres
    columns: list[Column] = [
        (f"Natural colour\n{pictures[0].natural_sensor}", stretch([picture.natural for picture in pictures]))
    ]
    for network, title in (("random", "random start"), ("pretrained", "pretrained")):
        colours = principal_colours([picture.features[network] for picture in pictures])
        columns.append((f"Features, {title}\n{sensor}, {metres:g} m, PCA", colours))
    for kind, title in (
        ("random", "Land cover, probe of\nrandom start"),
        ("pretrained", "Land cover, probe of\npretrained"),
        ("label", "Land cover,\nlabel"),
    ):
        if kind in pictures[0].land_cover:
            columns.append((title, [paint_mosaic(mosaic.card, picture.land_cover[kind]) for picture in pictures]))
    return columns


def paint_mosaic(card: DatasetCard, classes: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """A class map in the card's colours; what is unknown is white."""
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(colour) for colour in (*card.dense_colours, UNKNOWN_COLOUR)])
    known = (classes >= 0) & (classes < len(card.dense_classes)) & (classes != card.ignore_label)
    return palette[np.where(known, classes, len(palette) - 1)]


def _show(ax: Any, image: Float[np.ndarray, "h w 3"], extent: tuple[float, float]) -> None:
    """An image with its sides in metres, the origin at the upper left."""
    height, width = extent
    ax.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    ax.set_xticks(np.linspace(0, width, 3))
    ax.set_yticks(np.linspace(0, height, 3))
    ax.tick_params(length=2, labelsize=9)
    ax.spines[:].set_visible(False)


def _add_legend(figure: Any, mosaic: Mosaic) -> None:
    """The classes that occur on the maps, in the card's order."""
    from matplotlib.patches import Patch

    shown = {
        int(number) for picture in mosaic.pictures for one in picture.land_cover.values() for number in np.unique(one)
    }
    handles = [
        Patch(facecolor=colour, edgecolor="#999999", linewidth=0.5, label=name)
        for number, (name, colour) in enumerate(zip(mosaic.card.dense_classes, mosaic.card.dense_colours, strict=True))
        if number in shown and number != mosaic.card.ignore_label
    ]
    if mosaic.card.ignore_label in shown:
        handles.append(Patch(facecolor=UNKNOWN_COLOUR, edgecolor="#999999", linewidth=0.5, label="no label"))
    figure.legend(handles=handles, loc="outside right center", title="Land cover", handlelength=1.2, handleheight=1.2)

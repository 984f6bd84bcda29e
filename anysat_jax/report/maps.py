"""Maps of a few tiles: samples of an evaluation (the paper's figure B); features and land cover of a pretraining."""

import dataclasses
import pathlib
import re
import textwrap
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from anysat_jax.principal import principal_axes
from anysat_jax.report import style
from anysat_jax.report.runs import BrokenRun, Run, TaskInfo, clean
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.plots.colours import NO_LABEL, paint
from data_pipelines.plots.tile import EDGE_COLOUR

COLUMN_INCHES = 2.3

# ---------------------------------------------------------------- samples of an evaluation

FILE = "panels.npz"
LARGEST_BYTES = 2**30  # of the unpacked file
MOST_TILES = 6
CLASSES_BESIDE_A_TILE = 10
BROKEN = (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
SPREAD = (1.0, 99.0)  # percentiles at the ends of a colour bar


@dataclasses.dataclass(frozen=True)
class Samples:
    """A few samples of an evaluation."""

    ids: Sequence[str]  # n names
    inputs: dict[str, UInt8[np.ndarray, "n H W 3"]]  # (n, H, W, 3) of each sensor
    # truth, prediction: (n, h, w), classes with -1 for void, or numbers with nan; for tile tasks n texts.
    truth: Shaped[np.ndarray, "n ..."]
    prediction: Shaped[np.ndarray, "n ..."]
    extent: float  # side of a tile in metres


def read_samples(run: Run) -> Samples | None:
    """Reads the samples of a run; None if it has none.

    Raises:
      BrokenRun: the file is not of an evaluation.
    """
    path, where = run.folder / FILE, f"{run.label}/{FILE}"
    if not path.exists():
        return None
    try:
        # A few kilobytes can unpack to any size; the limit is checked before numpy allocates.
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_BYTES:
                raise ValueError("it is too large")
        # Unpickling an array of objects would run code of the file.
        with np.load(path, allow_pickle=False) as arrays:
            samples = _make_samples(run.task, dict(arrays))
    except BROKEN as error:
        reason = f"it has no array {error}" if isinstance(error, KeyError) else clean(error)
        raise BrokenRun(f"{where} cannot be shown: {reason}; evaluate the run again to write it anew.") from None
    return samples if len(samples.ids) else None


def _make_samples(task: TaskInfo, arrays: dict[str, np.ndarray]) -> Samples:
    suffix = "_text" if task.level == "tile" else ""
    ids = [clean(text) for text in arrays["ids"][:MOST_TILES]]
    inputs = {clean(name): arrays[f"input_{i}"][:MOST_TILES] for i, name in enumerate(arrays["sensors"])}
    truth, prediction = (arrays[f"{name}{suffix}"][:MOST_TILES] for name in ("truth", "prediction"))
    if not ids:
        return Samples([], {}, truth, prediction, 0.0)
    ndim, kinds = (1, "U") if task.level == "tile" else (3, "f" if task.kind == "regression" else "iu")
    for name, answers in (("truth", truth), ("prediction", prediction)):
        whole = answers.ndim == ndim and len(answers) == len(ids) and all(answers.shape[1:])
        if not whole or answers.dtype.kind not in kinds:
            raise ValueError(f"{name} is {answers.dtype} {answers.shape}")
    for name, images in inputs.items():
        coloured = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8
        if not coloured or len(images) != len(ids) or not images.size:
            raise ValueError(f"the input of {name} is {images.dtype} {images.shape}")
    return Samples(ids, inputs, truth, prediction, float(arrays["extent"]))


def draw_samples(path: pathlib.Path, title: str, task: TaskInfo, samples: Samples) -> None:
    """Draws a row for each tile: its inputs, the prediction, the ground truth; white is void."""
    from matplotlib import colormaps

    numbers, (low, high) = task.kind == "regression", value_range(samples)
    viridis = colormaps["viridis"].with_extremes(bad=NO_LABEL)
    looks = dict(interpolation="nearest", **(dict(cmap=viridis, vmin=low, vmax=high) if numbers else {}))
    columns = len(samples.inputs) + 2
    size = (COLUMN_INCHES * columns + 1.9, COLUMN_INCHES * len(samples.ids) + 0.9)
    with style.new_figure(path, size, title) as figure:
        axes = figure.subplots(len(samples.ids), columns, squeeze=False)
        for name, ax in zip((*samples.inputs, "Prediction", "Ground truth"), axes[0], strict=True):
            ax.set_title(name)
        for row, cells in enumerate(axes):
            for ax, images in zip(cells, samples.inputs.values(), strict=False):
                ax.imshow(images[row], interpolation="nearest")
            for ax, answers in zip(cells[-2:], (samples.prediction, samples.truth), strict=True):
                if task.level == "tile":
                    text = textwrap.fill(clean(answers[row]), 22)
                    where = dict(ha="center", va="center", transform=ax.transAxes)
                    ax.text(0.5, 0.5, text, fontsize=12, color=style.TEXT_COLOUR, **where)
                else:
                    ax.imshow(answers[row] if numbers else paint(class_colours(task), answers[row]), **looks)
            for ax in cells:
                # A thin frame without ticks, so that white is recognised as part of a map.
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.6)
            cells[0].set_ylabel(textwrap.fill(samples.ids[row], 26), fontsize=8)
        if task.level == "dense" and numbers:
            figure.colorbar(axes[0, -1].images[0], ax=axes, shrink=0.8, pad=0.02).set_label(task.unit)
        elif task.level == "dense":
            handles = class_handles(task.classes, class_colours(task), (samples.truth, samples.prediction), "void")
            columns = -(-len(handles) // (CLASSES_BESIDE_A_TILE * len(samples.ids)))
            _draw_legend(figure, handles, ncols=columns)


def value_range(samples: Samples) -> tuple[float, float]:
    """Returns the ends of the colour bar, from the truth and the predictions of all tiles together."""
    if samples.truth.dtype.kind != "f":
        return 0.0, 1.0
    values = np.concatenate([samples.truth.ravel(), samples.prediction.ravel()])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    # Percentiles: a single outlier of the labels would leave one colour for all else.
    low, high = np.percentile(values, SPREAD)
    return float(low), float(high if high > low else low + 1)


def class_colours(task: TaskInfo) -> list[str]:
    """Returns the dataset's official colours, or evenly spread ones if it has none."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    official = [colour for colour in task.colours if re.fullmatch("#[0-9a-fA-F]{6}", colour)]
    if len(official) == len(task.classes):
        return official
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0.05, 0.95, len(task.classes)))]


def class_handles(
    classes: Sequence[str], colours: Sequence[str], maps: Iterable[Int[np.ndarray, "..."]], void: str
) -> list[Any]:
    """Returns the legend of the classes that occur on maps, and of what is outside of the classes."""
    from matplotlib.patches import Patch

    shown = {int(number) for one in maps for number in np.unique(one)}
    handles = [
        Patch(facecolor=colour, edgecolor=EDGE_COLOUR, linewidth=0.5, label=name)
        for number, (name, colour) in enumerate(zip(classes, colours, strict=True))
        if number in shown
    ]
    if any(number < 0 or number >= len(classes) for number in shown):
        handles.append(Patch(facecolor=NO_LABEL, edgecolor=EDGE_COLOUR, linewidth=0.5, label=void))
    return handles


def _draw_legend(figure: Any, handles: Sequence[Any], **options: Any) -> None:
    figure.legend(handles=handles, loc="outside right center", handlelength=1.2, handleheight=1.2, **options)


# ---------------------------------------------------------------- features and land cover of a pretraining

STRETCH = (2.0, 98.0)  # percentiles that become black and white
FEATURE_TITLES = {"random": "random start", "pretrained": "pretrained"}
COVER_TITLES = {"random": " probe of\nrandom start", "pretrained": " probe of\npretrained", "label": "\nlabel"}


@dataclasses.dataclass
class Picture:
    """One tile, ready to be drawn."""

    extent: tuple[float, float]  # height and width of the tile in metres
    natural: Float[np.ndarray, "H W 3"]  # red, green and blue of the sensor in `natural_sensor`, not stretched yet
    natural_sensor: str  # that sensor's name
    features: dict[str, Float[np.ndarray, "h w F"]]  # dense features by network, "random" and "pretrained"
    land_cover: dict[str, Int[np.ndarray, "h w"]]  # class maps by a network's name (its probe's prediction) or "label"


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """Tiles of one dataset."""

    card: DatasetCard  # of the dataset
    picture_sensor: str  # the sensor of the dense features
    pictures: list[Picture]  # at least one


def draw_mosaic(path: pathlib.Path, run: str, mosaic: Mosaic) -> None:
    """Draws tiles in natural colour, their dense features as colours, and land cover as probed and as labelled."""
    columns, pictures = mosaic_columns(mosaic), mosaic.pictures
    size = (COLUMN_INCHES * len(columns) + 1.9, COLUMN_INCHES * len(pictures) + 1.0)
    with style.new_figure(path, size, f"{mosaic.card.title}, held-out tiles: {run}") as figure:
        axes = figure.subplots(len(pictures), len(columns), squeeze=False)
        for column, (title, images) in enumerate(columns.items()):
            axes[0, column].set_title(title, fontsize=10.5)
            for row, picture in enumerate(pictures):
                ax, (height, width) = axes[row, column], picture.extent
                ax.imshow(images[row], extent=(0, width, height, 0), interpolation="nearest")
                ax.set(xticks=np.linspace(0, width, 3), yticks=np.linspace(0, height, 3))
                ax.tick_params(length=2, labelsize=9)
                ax.tick_params(labelbottom=row == len(pictures) - 1, labelleft=column == 0)
                ax.spines[:].set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("metres")
        for ax in axes[-1]:
            ax.set_xlabel("metres")
        maps = [one for picture in pictures for one in picture.land_cover.values()]
        handles = class_handles(mosaic.card.dense_classes, mosaic.card.dense_colours, maps, "no label")
        _draw_legend(figure, handles, title="Land cover")


def mosaic_columns(mosaic: Mosaic) -> dict[str, list[Float[np.ndarray, "h w 3"]]]:
    """Returns the images of each column by its title; colours compare down a column, not between the two networks."""
    pictures = mosaic.pictures
    columns = {f"Natural colour\n{pictures[0].natural_sensor}": stretch([picture.natural for picture in pictures])}
    for network, title in FEATURE_TITLES.items():
        where = f"{mosaic.picture_sensor}, {get_sensor(mosaic.picture_sensor).subpatch_metres:g} m, PCA"
        columns[f"Features, {title}\n{where}"] = principal_colours([picture.features[network] for picture in pictures])
    for kind, title in COVER_TITLES.items():
        if kind in pictures[0].land_cover:
            maps = [paint(mosaic.card.dense_colours, picture.land_cover[kind]) for picture in pictures]
            columns[f"Land cover,{title}"] = maps
    return columns


def stretch(images: Sequence[Float[np.ndarray, "H W 3"]]) -> list[Float[np.ndarray, "H W 3"]]:
    """Maps each channel from percentiles over all images to [0, 1], so that colours compare between the images."""
    low, high = np.percentile(np.concatenate([image.reshape(-1, 3) for image in images]), STRETCH, axis=0)
    scale = np.maximum(high - low, 1e-6)
    return [np.clip((image - low) / scale, 0, 1) for image in images]


def principal_colours(maps: Sequence[Float[np.ndarray, "h w F"]]) -> list[Float[np.ndarray, "h w 3"]]:
    """Maps the three main directions in which features vary inside the tiles to red, green and blue in [0, 1].

    Features are LayerNormed, as the probes read them.
    """
    centred = []
    for one in maps:
        flat = one.reshape(-1, one.shape[-1]).astype(np.float64)
        flat = flat - flat.mean(axis=1, keepdims=True)
        flat /= flat.std(axis=1, keepdims=True) + 1e-6
        # Whole tiles differ more than their parts, and would be one colour each.
        centred.append(flat - flat.mean(axis=0))
    flat = np.concatenate(centred)
    # A feature that hardly varies stays small: its noise would count as much as the others' signal.
    flat /= flat.std(axis=0) + 1e-3
    axes = principal_axes(flat)[:3].T
    ends = np.cumsum([one.shape[0] * one.shape[1] for one in maps])[:-1]
    colours = [part.reshape(*one.shape[:2], 3) for part, one in zip(np.split(flat @ axes, ends), maps, strict=True)]
    return stretch(colours)

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

from anysat_jax.adapt.tasks import Task
from anysat_jax.report import style
from anysat_jax.report.runs import BrokenRun, Run, clean

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

"""Tiles of an evaluation that the report shows (panels.npz): inputs, truth and prediction of a few samples."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from anysat_jax.batch import Batch
from anysat_jax.downstream.task import Task, prediction
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.plots.colours import view_of
from data_pipelines.plots.gallery import as_read
from data_pipelines.prepared import Records
from data_pipelines.windows import IGNORE

MISSING_GREY = 0.75  # of pixels without a valid value, and of sensors that a tile lacks


class Highest:
    """Keeps the items with the highest values; of equal values the first."""

    def __init__(self, size: int) -> None:
        self.size = size  # number of items to keep
        self._kept: list[tuple[float, Any]] = []

    def add(self, value: float, make: Callable[[], Any]) -> None:
        """Adds the item of `make`, which is called only if the item is kept."""
        if len(self._kept) < self.size or (self._kept and value > self._kept[-1][0]):
            # Sorting is stable: of equal values the first stays.
            self._kept.append((value, make()))
            self._kept = sorted(self._kept, key=lambda one: -one[0])[: self.size]

    @property
    def items(self) -> list[Any]:
        """The kept items, highest value first."""
        return [item for _, item in self._kept]


class ExampleChoice:
    """Chooses samples of an evaluation while it runs, by their truth alone: the predictions have no influence."""

    def __init__(self, task: Task, size: int) -> None:
        self._task, self._kept = task, Highest(size)

    def __call__(self, batch: Batch, logits: Float[np.ndarray, "B ..."]) -> None:
        """Adds the samples of a batch on the host, with the network's logits; padding is left out."""
        labels, task = batch.labels, self._task

        def sample(row: int) -> dict[str, Any]:  # of copies, so that the batch can be freed
            return {
                "index": int(labels["index"][row]),
                "offset": tuple(labels["window"][row].tolist()) if "window" in labels else (0.0, 0.0),
                "truth": np.array(labels[task.level][row]),
                "prediction": prediction(task, logits[row]),
            }

        for row in np.flatnonzero(np.asarray(labels["valid"])):
            # The most varied class maps, since most tiles of some archives show one class or none; else random samples,
            # the same in every evaluation.
            if task.level == "dense" and task.kind == "class":
                value = class_entropy(np.asarray(labels["dense"][row]))
            else:
                value = float(np.random.default_rng(int(labels["index"][row])).random())
            self._kept.add(value, lambda row=row: sample(row))

    def arrays(self, card: DatasetCard, records: Records, extent: float) -> dict[str, np.ndarray]:
        """Returns the content of panels.npz, from the records of the evaluated split; `extent` is in metres.

        Returns:
          "sensors" (S,) text; "input_<i>" (n, H, W, 3) uint8, the i-th sensor in natural colour, radar as false colour;
          "ids" (n,) text; "extent" () float64, metres. Dense tasks: "truth" and "prediction" (n, h, w), int32 classes
          with -1 for void, or float32. Tile tasks: "truth_text" and "prediction_text" (n,). n is 0 without any sample.
        """
        samples = self._kept.items
        tiles = [as_read(card, records[sample["index"]]) for sample in samples]
        shown = (get_sensor(name) for name in card.sensors)
        sensors = [sensor.name for sensor in shown if sensor.kind != "context" and sensor.pixels(extent) > 1]
        arrays = {"sensors": np.array(sensors, np.str_), "extent": np.float64(extent)}
        for number, name in enumerate(sensors):
            side = get_sensor(name).pixels(extent)
            images = [
                input_image(card, name, tile, sample["offset"], extent)
                for tile, sample in zip(tiles, samples, strict=True)
            ]
            arrays[f"input_{number}"] = np.array(images, np.uint8).reshape(-1, side, side, 3)
        for name in ("truth", "prediction"):
            values = [sample[name] for sample in samples]
            if self._task.level == "tile":
                arrays[f"{name}_text"] = np.array([label_text(self._task, one) for one in values], np.str_)
            else:
                arrays[name] = np.array(values, np.float32 if self._task.kind == "regression" else np.int32)
        # Text as np.str_, not as objects: reading needs no pickle.
        return arrays | {"ids": np.array([tile["id"] for tile in tiles], np.str_)}


def label_text(task: Task, label: Shaped[np.ndarray, "..."]) -> str:
    """Returns a tile's label, true or predicted, as text."""
    if task.kind == "regression":
        return f"{float(label):.4g} {task.unit}".strip() if np.isfinite(label) else "unknown"
    if task.kind == "multi_label":
        return ", ".join(name for name, there in zip(task.classes, label, strict=True) if there) or "none"
    return task.classes[int(label)] if 0 <= int(label) < len(task.classes) else "unknown"


def class_entropy(classes: Shaped[np.ndarray, "*shape"]) -> float:
    """Returns the entropy of the classes in nats, `IGNORE` left out: 0 where there is one class, or none."""
    _, counts = np.unique(classes[classes != IGNORE], return_counts=True)
    fractions = counts / max(counts.sum(), 1)
    return float(-(fractions * np.log(fractions)).sum())


def input_image(
    card: DatasetCard, name: str, example: Example, offset: tuple[float, float], extent: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a sensor's image of a sample of a tile; of a series the median of the clear dates.

    Args:
      offset: of the sample, metres from the tile's upper and left edge.
      extent: side of the sample in metres.
    """
    sensor = get_sensor(name)
    side = sensor.pixels(extent)
    shown = view_of(card, name, example)
    if shown is None:
        return np.full((side, side, 3), round(255 * MISSING_GREY), np.uint8)
    # Of the whole tile, whose contrast is stretched, so that the windows of a tile compare.
    colours, seen = shown.summary()
    top, left = (round(start / sensor.metres_per_pixel) for start in offset)
    part = np.where(seen[..., None], colours, MISSING_GREY)[top : top + side, left : left + side]
    return np.round(255 * part).astype(np.uint8)

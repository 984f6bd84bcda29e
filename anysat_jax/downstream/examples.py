"""Samples of an evaluation to look at: what the sensors saw, the truth and the prediction (panels.npz)."""

import pathlib
from collections.abc import Mapping
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

NOT_SEEN = 0.75  # grey of pixels without a valid value, and of sensors that a tile lacks
FILE_NAME = "panels.npz"


class PanelBook:
    """Keeps a few samples of all that it is shown.

    Of class maps those with the most varied truth, since most tiles of some archives show one class or none; of other
    tasks some at random, always the same. The prediction has no part in the choice.
    """

    def __init__(self, task: Task, size: int) -> None:
        """Takes the task, and how many samples to keep."""
        self._task, self.size = task, size
        self._best: list[tuple[float, dict[str, Any]]] = []

    def __call__(self, batch: Batch, logits: Float[np.ndarray, "B ..."]) -> None:
        """Shows a batch of an evaluation, on the host, with the network's answer; padding is passed over."""
        for row in np.flatnonzero(np.asarray(batch.labels["valid"])):
            worth = self._worth(batch, row)
            if len(self._best) < self.size or worth > self._lowest:
                self._best.append((worth, self._sample(batch, row, logits[row])))
                self._best = sorted(self._best, key=lambda one: -one[0])[: self.size]

    @property
    def _lowest(self) -> float:
        return self._best[-1][0] if self._best else float("inf")

    def _sample(self, batch: Batch, row: int, logits: np.ndarray) -> dict[str, Any]:
        """Copies of what is kept, so that the batch can go."""
        labels = batch.labels
        return {
            "index": int(labels["index"][row]),
            "corner": tuple(labels["window"][row].tolist()) if "window" in labels else (0.0, 0.0),
            "truth": np.array(labels[self._task.level][row]),
            "prediction": prediction(self._task, logits),
        }

    def _worth(self, batch: Batch, row: int) -> float:
        if self._task.level == "dense" and self._task.kind == "class":
            truth = np.asarray(batch.labels["dense"][row])
            return class_entropy(truth[truth != IGNORE])
        return float(np.random.default_rng(int(batch.labels["index"][row])).random())

    def arrays(self, card: DatasetCard, records: Records, extent: float) -> dict[str, np.ndarray]:
        """The content of panels.npz.

        Args:
          card: the dataset.
          records: the split that was shown.
          extent: side of a sample in metres.

        Returns:
          "sensors" (S,) text; "input_<i>" (n, H, W, 3) uint8, the i-th sensor in natural colour, radar as false colour;
          "ids" (n,) text; "extent" () float64, metres. Dense tasks: "truth" and "prediction" (n, h, w), int32 classes
          with -1 for void, or float32. Tile tasks: "truth_text" and "prediction_text" (n,). Without any sample, n is 0.
        """
        samples = [sample for _, sample in self._best]
        examples = [as_read(card, records[sample["index"]]) for sample in samples]
        sensors = [name for name in card.sensors if _is_image(name, extent)]
        arrays = {"sensors": np.array(sensors, np.str_), "extent": np.float64(extent)}
        for number, name in enumerate(sensors):
            side = get_sensor(name).pixels(extent)
            shown = [picture(card, name, one, sample["corner"], extent) for one, sample in zip(examples, samples)]
            arrays[f"input_{number}"] = np.array(shown, np.uint8).reshape(-1, side, side, 3)
        return arrays | self._answers(samples) | {"ids": np.array([one["id"] for one in examples], np.str_)}

    def _answers(self, samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        both = {name: [sample[name] for sample in samples] for name in ("truth", "prediction")}
        if self._task.level == "tile":
            return {
                f"{name}_text": np.array([in_words(self._task, one) for one in values], np.str_)
                for name, values in both.items()
            }
        dtype = np.float32 if self._task.kind == "regression" else np.int32
        return {name: np.array(values, dtype) for name, values in both.items()}


def write_panels(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes panels.npz into a folder: no objects in it, so that it can be read without pickle."""
    with (folder / FILE_NAME).open("wb") as file:
        np.savez_compressed(file, **arrays)


def in_words(task: Task, answer: Shaped[np.ndarray, "..."]) -> str:
    """A tile's answer, true or predicted, as text."""
    if task.kind == "regression":
        return f"{float(answer):.4g} {task.unit}".strip() if np.isfinite(answer) else "unknown"
    if task.kind == "multi_label":
        return ", ".join(name for name, there in zip(task.classes, answer, strict=True) if there) or "none"
    return task.classes[int(answer)] if 0 <= int(answer) < len(task.classes) else "unknown"


def class_entropy(classes: Shaped[np.ndarray, "n"]) -> float:
    """Entropy of the classes in nats: 0 where there is only one, or none."""
    _, counts = np.unique(classes, return_counts=True)
    shares = counts / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def picture(
    card: DatasetCard, name: str, example: Example, corner: tuple[float, float], extent: float
) -> UInt8[np.ndarray, "H W 3"]:
    """What a sensor sees of a sample: of a series the median over what is clear.

    Stretched over its whole tile, so that the windows of a tile compare.

    Args:
      card: the dataset.
      name: the sensor.
      example: the tile.
      corner: where the sample begins, metres from the tile's upper and left edge.
      extent: side of the sample in metres.
    """
    sensor = get_sensor(name)
    side = sensor.pixels(extent)
    shown = view_of(card, name, example)
    if shown is None:
        return np.full((side, side, 3), round(255 * NOT_SEEN), np.uint8)
    colours, seen = shown.summary()
    top, left = (round(start / sensor.metres_per_pixel) for start in corner)
    part = np.where(seen[..., None], colours, NOT_SEEN)[top : top + side, left : left + side]
    return np.round(255 * part).astype(np.uint8)


def _is_image(name: str, extent: float) -> bool:
    """Whether there is anything to see: neither a context sensor nor a single pixel."""
    return get_sensor(name).kind != "context" and get_sensor(name).pixels(extent) > 1

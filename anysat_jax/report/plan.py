"""What can be probed of a dataset, and the scores of each kind of task."""

import dataclasses
from collections.abc import Callable

import numpy as np

from anysat_jax.adapt import metrics
from anysat_jax.report.tables import Task
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard

METRICS: dict[str, dict[str, Callable[[metrics.Counts], float]]] = {
    "class": {"accuracy": metrics.accuracy, "macro F1": metrics.macro_f1},
    "multi_label": {"weighted F1": metrics.weighted_f1, "macro F1": metrics.macro_f1},
    "dense": {"mIoU": metrics.mean_iou, "accuracy": metrics.accuracy},
}
"""Scores of each kind of task; the first is the headline (for several labels a tile, the paper's on TreeSatAI)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What can be probed and shown of a dataset.

    Attributes:
      card: the dataset.
      tasks: "tile", "dense", both or none.
      dense_sensor: the sensor whose sub-patches are the pixels of the dense label; None where dense is not probed.
      picture_sensor: the sensor with the finest sub-patches, whose dense features the picture shows.
    """

    card: DatasetCard
    tasks: tuple[Task, ...]
    dense_sensor: str | None
    picture_sensor: str

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors whose dense maps are needed."""
        return tuple(sorted({name for name in (self.dense_sensor, self.picture_sensor) if name is not None}))

    @property
    def held_out(self) -> str:
        """The split that scores are from: "test", or "val" where there is no test split."""
        return "test" if "test" in self.card.splits else "val"

    def metrics(self, task: Task) -> dict[str, Callable[[metrics.Counts], float]]:
        """Scores of a task by name, the headline first."""
        return METRICS[self.card.tile_label if task == "tile" else "dense"]

    def classes(self, task: Task) -> tuple[str, ...]:
        return self.card.tile_classes if task == "tile" else self.card.dense_classes


def make_plan(card: DatasetCard) -> Plan:
    """A tile probe where tiles have classes, a dense one where some sensor's sub-patches are the label's pixels.

    Sentinel-2 is preferred for the dense probe: the mini datasets, TreeSatAI-TS and PASTIS-HD all have it.
    """
    spatial = [name for name in card.sensors if get_sensor(name).kind != "context"]
    fitting = [name for name in spatial if np.isclose(get_sensor(name).subpatch_metres, card.dense_metres)]
    dense_sensor = "s2" if "s2" in fitting else next(iter(fitting), None)
    dense_sensor = dense_sensor if card.dense_label in ("segmentation", "change") else None
    finest = min(spatial, key=lambda name: (get_sensor(name).subpatch_metres, name != dense_sensor))
    tasks = [task for task, there in (("tile", card.tile_label in METRICS), ("dense", dense_sensor)) if there]
    return Plan(card, tuple(tasks), dense_sensor, finest)

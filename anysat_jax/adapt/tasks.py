"""Tasks: what is asked of a dataset's tiles, and which answers there are."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard

Level = Literal["tile", "dense"]
Kind = Literal["class", "multi_label", "regression"]

METRICS: dict[Kind, tuple[str, ...]] = {
    "class": ("accuracy", "macro_f1", "weighted_f1", "micro_f1", "mean_iou"),
    "multi_label": ("weighted_f1", "macro_f1", "micro_f1"),
    "regression": ("rmse", "r2", "mae"),
}
"""What is measured of each kind of task; the paper's tables call accuracy OA, mean_iou mIoU, macro_f1 maF1 and
weighted_f1 wF1."""

LOWER_IS_BETTER = ("rmse", "mae")


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about tiles, or about each pixel of their label maps.

    Attributes:
      dataset: the dataset's name.
      title: the name that people use.
      level: "tile" for one answer a tile, "dense" for one a pixel of the label map; also the key of `Batch.labels`.
      kind: "class" for one class of several, "multi_label" for any number of them, "regression" for a number.
      classes: names of the classes; none for a regression.
      colours: a colour "#rrggbb" for each class of a dense task; may be empty.
      metric: what the best checkpoint is chosen by, one of `METRICS[kind]`.
      metres: side of a pixel of the label map; 0 for a tile task.
      sensor: the sensor whose sub-patches a dense answer is made of; "" for a tile task.
      unit: of a regression.
      offset, scale: of a regression: the label is offset + scale * the network's output.
    """

    dataset: str
    title: str
    level: Level
    kind: Kind
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    metric: str = "accuracy"
    metres: float = 0.0
    sensor: str = ""
    unit: str = ""
    offset: float = 0.0
    scale: float = 1.0

    @property
    def num_outputs(self) -> int:
        """Numbers that the network gives for each answer."""
        return 1 if self.kind == "regression" else len(self.classes)

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is an error."""
        return self.metric in LOWER_IS_BETTER

    @property
    def pixels_per_subpatch(self) -> int:
        """Label pixels along a side of a sub-patch of `sensor`."""
        return round(get_sensor(self.sensor).subpatch_metres / self.metres)

    def to_json(self) -> dict[str, Any]:
        """The task as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The task of `to_json`."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def make_task(card: DatasetCard, level: Level, *, metric: str = "", sensor: str = "") -> Task:
    """The task that a dataset's labels of a level make.

    Args:
      card: the dataset.
      level: which of its labels.
      metric: what the best checkpoint is chosen by; "": the first of the kind, and mean_iou for class maps.
      sensor: whose sub-patches a dense answer is made of; "": the one whose sub-patches are the label's pixels, or else
        the finest that is a whole multiple of them; Sentinel-2 where several are.

    Raises:
      ValueError: the dataset has no such label, no sensor fits, or the metric is not one of the kind's.
    """
    if level not in get_args(Level):
        raise ValueError(f"task.level = {level!r} must be 'tile' or 'dense'")
    label = card.tile_label if level == "tile" else card.dense_label
    if label == "none":
        other = "dense" if level == "tile" else "tile"
        has = "no labels at all" if card.tile_label == card.dense_label == "none" else f"labels of level {other!r} only"
        raise ValueError(f"task.level = {level!r}: dataset {card.name!r} has {has}")
    kind: Kind = {"segmentation": "class", "change": "class"}.get(label, label)
    metric = metric or ("mean_iou" if level == "dense" and kind == "class" else METRICS[kind][0])
    if metric not in METRICS[kind]:
        raise ValueError(
            f"task.metric = {metric!r}: the labels of {card.name!r} are of kind {kind!r}, measured by "
            f"{', '.join(METRICS[kind])}"
        )
    dense = level == "dense"
    return Task(
        dataset=card.name,
        title=card.title,
        level=level,
        kind=kind,
        classes=card.dense_classes if dense else card.tile_classes,
        colours=card.dense_colours if dense else (),
        metric=metric,
        metres=card.dense_metres if dense else 0.0,
        sensor=_dense_sensor(card, sensor) if dense else "",
        unit=card.label_unit if kind == "regression" else "",
    )


def _dense_sensor(card: DatasetCard, wanted: str) -> str:
    """The sensor whose sub-patches are one or a square of the label's pixels."""
    multiples = {}
    for name in card.sensors:
        sensor = get_sensor(name)
        ratio = sensor.subpatch_metres / card.dense_metres
        if sensor.kind != "context" and round(ratio) >= 1 and abs(ratio - round(ratio)) < 1e-6:
            multiples[name] = round(ratio)
    if wanted and wanted not in multiples:
        raise ValueError(
            f"task.sensor = {wanted!r}: a dense answer for {card.name!r} can be made of the sub-patches of "
            f"{', '.join(multiples) or 'no sensor'}"
        )
    if not multiples:
        raise ValueError(
            f"dataset {card.name!r}: no sensor's sub-patches are squares of label pixels of {card.dense_metres:g} m"
        )
    return wanted or min(multiples, key=lambda name: (multiples[name], name != "s2"))

"""The config of a fine-tuning, a probing or an evaluation: its sections as frozen dataclasses, and its task.

configs/adaptation.py and configs/common.py explain every key.
"""

import dataclasses
import math
from typing import ClassVar, get_args

from ml_collections import ConfigDict

from anysat_jax.downstream.network import HeadConfig
from anysat_jax.downstream.task import Task, make_task
from anysat_jax.downstream.trainable import Mode
from anysat_jax.errors import ConfigError
from anysat_jax.train.config import (
    BELOW_ONE,
    COUNT,
    FLAG,
    POSITIVE,
    POSITIVE_OR_NONE,
    SIZES,
    OptimizerConfig,
    Rule,
    RunConfig,
    Section,
    checked,
    one_of,
    read_section,
)
from anysat_jax.weights.load import CHOICES
from data_pipelines.card import DatasetCard
from data_pipelines.load import read_options

NORM_GROUPS = Rule(lambda value: value in (None, "width", "published"), "None, 'width' or 'published'")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Section):
    """The section `model`: what the weights of `init` must agree with; None: as they are, or as the preset is.

    `input_gain` is of a random start alone, see `init_encoder`.
    """

    NAME = "model"
    preset: str | None = None
    dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    predictor_depth: int | None = None
    predictor_heads: int | None = None
    positions: str | None = None
    norm_groups: str | None = checked(NORM_GROUPS, None)
    remat: str = "none"
    dropout: bool = checked(FLAG, True)
    drop_path: float = checked(BELOW_ONE, 0.0)
    input_gain: float = checked(POSITIVE, 1.0)


@dataclasses.dataclass(frozen=True)
class FakeDataConfig(Section):
    """Part of the section `data`: tiles of each split made on the spot instead of read from data.root; 0: none."""

    NAME = "data"
    fake_tiles: int = checked(COUNT, 0)


CLASS_WEIGHTS = Rule(
    lambda value: value in ("none", "balanced") or (any(value) and min(value) >= 0 and sum(value) < math.inf),
    "'none', 'balanced', or a number of 0 or more for each class, not all 0",
)


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    """The section `task`; `make_task` checks level, metric and sensor against the dataset."""

    NAME = "task"
    level: str = "tile"
    metric: str = ""
    sensor: str = ""
    class_weights: str | tuple[float, ...] = checked(CLASS_WEIGHTS, "none")
    label_smoothing: float = checked(BELOW_ONE, 0.0)
    allow_absent_classes: bool = checked(FLAG, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownstreamOptimizerConfig(OptimizerConfig):
    """The section `optimizer`: the warm-up counts in epochs, and the plateau looks at the validation metric."""

    warmup_epochs: float = checked(COUNT, 0.0)
    layer_decay: float = checked(Rule(lambda value: 0 < value <= 1, "above 0 and at most 1"), 1.0)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """The section `evaluate`: `every` some epochs on val, and at the end on `splits` with the best parameters."""

    NAME = "evaluate"
    every: int = checked(POSITIVE, 1)
    splits: tuple[str, ...] = checked(Rule(lambda value: len(value) > 0, "at least one split"), ("val", "test"))
    patch_sizes: tuple[float, ...] | None = checked(SIZES, None)
    batch_size: int = checked(POSITIVE, 16)
    panels: int = checked(COUNT, 4)


@dataclasses.dataclass(frozen=True)
class CacheConfig(Section):
    """The section `cache`: frozen features on disk."""

    NAME = "cache"
    folder: str = ""
    max_gb: float = checked(POSITIVE, 50.0)
    pixels_per_tile: int | None = checked(POSITIVE_OR_NONE, None)


@dataclasses.dataclass(frozen=True)
class NeighboursConfig(Section):
    """The section `knn`: nearest training tiles that vote; 0: no such probe."""

    NAME = "knn"
    neighbours: int = checked(COUNT, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownstreamConfig(RunConfig):
    """The config of a fine-tuning, a probing or an evaluation, its data aside, which `data_pipelines` reads and checks.

    `epochs` may be 0 where the head starts as a probe of the frozen features: then nothing trains.
    """

    # A config of an earlier version is refused with the new name, not run with a default.
    RENAMED: ClassVar = {"head_start": "it is head_init now, and its 'solved' is 'probe'"}
    row: str = ""
    mode: Mode = checked(Rule(lambda value: value in get_args(Mode), f"one of {', '.join(get_args(Mode))}"), "finetune")
    new_sensors: tuple[str, ...] = ()
    dtype: str = "float32"
    epochs: int = checked(COUNT, 100)
    model: EncoderConfig = EncoderConfig()
    data: FakeDataConfig = FakeDataConfig()
    task: TaskConfig = TaskConfig()
    head: HeadConfig = HeadConfig()
    head_init: str = checked(one_of("random", "probe"), "random")
    optimizer: DownstreamOptimizerConfig
    average_decay: float = checked(BELOW_ONE, 0.0)
    early_stopping: int | None = checked(POSITIVE_OR_NONE, None)
    evaluate: EvaluateConfig = EvaluateConfig()
    cache: CacheConfig = CacheConfig()
    knn: NeighboursConfig = NeighboursConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init:
            raise ConfigError(f"config.init is empty; give {CHOICES}")
        if self.mode == "scratch" and self.init != "none":
            raise ConfigError(
                f"mode = 'scratch' starts at random, and init = {self.init!r} names weights; set init to 'none', or "
                "mode to 'finetune'"
            )
        if self.epochs == 0 and self.head_init != "probe":
            raise ConfigError("epochs = 0 trains nothing; give at least 1, or head_init = 'probe'")
        # With 0 epochs the probe-initialised head is evaluated once, and neither limit matters.
        if 0 < self.epochs < self.evaluate.every:
            raise ConfigError(
                f"evaluate.every = {self.evaluate.every} must be at most epochs = {self.epochs}: the best checkpoint "
                "is chosen among those that are evaluated"
            )
        if 0 < self.epochs <= self.optimizer.warmup_epochs:
            raise ConfigError(
                f"optimizer.warmup_epochs = {self.optimizer.warmup_epochs} must be below epochs = {self.epochs}"
            )

    def make_task(self, card: DatasetCard) -> Task:
        """Returns the task of the dataset's labels.

        Raises:
          ConfigError: the dataset has no such labels, splits or sensors, or they do not fit the head, the class
            weights, or the neighbours.
        """
        task = make_task(card, self.task.level, metric=self.task.metric, sensor=self.task.sensor)
        # An evaluation may be of a dataset that has its test split only.
        training = () if self.job == "evaluate" else ("train", "val")
        missing = [split for split in (*training, *self.evaluate.splits) if split not in card.splits]
        if missing:
            wanted = "evaluate.splits" if missing[0] in self.evaluate.splits else "training"
            raise ConfigError(
                f"dataset {card.name!r} has no split {missing[0]!r}, which {wanted} needs; it has "
                f"{', '.join(card.splits)}"
            )
        sensors = ", ".join(card.sensors)
        unknown = [name for name in self.new_sensors if name not in card.sensors]
        if unknown:
            raise ConfigError(f"new_sensors names {unknown[0]!r}; the sensors of {card.name!r} are {sensors}")
        if self.mode == "projector" and not self.new_sensors:
            raise ConfigError(
                f"mode = 'projector' trains the projectors of new_sensors, and that is empty; name one of {sensors}"
            )
        self._check_class_options(task)
        self.head.check_fits(task.level)
        if self.knn.neighbours and task.level == "dense":
            raise ConfigError(
                f"knn.neighbours = {self.knn.neighbours} compares tiles, and the task of {task.dataset!r} is dense: "
                "its pixels are too many; set it to 0"
            )
        return task

    def _check_class_options(self, task: Task) -> None:
        weights, smoothing = self.task.class_weights, self.task.label_smoothing
        if task.kind == "regression":
            if weights != "none" or smoothing:
                raise ConfigError(
                    f"task.class_weights = {weights!r} and task.label_smoothing = {smoothing} are for classes, and the "
                    f"labels of {task.dataset!r} are a regression; leave them 'none' and 0"
                )
        elif not isinstance(weights, str) and len(weights) != task.num_outputs:
            raise ConfigError(
                f"task.class_weights has {len(weights)} numbers, and {task.dataset!r} has {task.num_outputs} classes: "
                f"{', '.join(task.classes)}"
            )


def check(config: ConfigDict) -> tuple[DownstreamConfig, Task]:
    """Returns the config's sections and the task that it describes, before anything is read or compiled.

    Raises:
      ConfigError: a value is missing, unknown, out of range, or does not fit another one or the dataset's card.
    """
    values = config.to_dict()
    # The other keys of `data` are those of `data_pipelines`, which checks them in `read_options`.
    values["data"] = {key: value for key, value in values["data"].items() if key == "fake_tiles"}
    settings = read_section(DownstreamConfig, values, "configs/adaptation.py")
    names = sorted(config.data.datasets)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"data.datasets must name one dataset, whose labels are learnt; it names {listed}")
    try:
        (options,) = read_options(config.data).values()
        for patch_size in settings.evaluate.patch_sizes or ():
            options.check_patch_size(patch_size)
    except (ValueError, OSError) as error:  # which name the field or the dataset
        raise ConfigError(str(error)) from None
    return settings, settings.make_task(options.card)

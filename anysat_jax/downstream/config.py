"""The config of a fine-tuning, a probing or an evaluation: checked before anything is read or compiled."""

import math
from typing import Any, get_args

from ml_collections import ConfigDict

from anysat_jax.downstream.network import HeadConfig
from anysat_jax.downstream.task import Task, make_task
from anysat_jax.downstream.trainable import Mode
from anysat_jax.errors import ConfigError
from anysat_jax.train.config import COUNT, OPTIONAL_POSITIVE, POSITIVE, SHARED_RULES, SIZES, Rule, check_values, flatten
from anysat_jax.weights.load import CHOICES
from data_pipelines.card import DatasetCard
from data_pipelines.load import read_options

_BELOW_ONE = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
_ABOVE_ZERO_TO_ONE = Rule(lambda value: 0 < value <= 1, "above 0 and at most 1")

RULES: dict[str, Rule] = {
    **SHARED_RULES,
    "mode": Rule(lambda value: value in get_args(Mode), f"one of {', '.join(get_args(Mode))}"),
    "epochs": COUNT,
    "head_start": Rule(lambda value: value in ("random", "solved"), "'random' or 'solved'"),
    "early_stopping": OPTIONAL_POSITIVE,
    "average_decay": _BELOW_ONE,
    "model.drop_path": _BELOW_ONE,
    "data.fake_tiles": COUNT,
    "task.class_weights": Rule(
        lambda value: value in ("none", "balanced") or _are_weights(value),
        "'none', 'balanced', or a number of 0 or more for each class, not all 0",
    ),
    "task.label_smoothing": _BELOW_ONE,
    "optimizer.warmup_epochs": COUNT,
    "optimizer.layer_decay": _ABOVE_ZERO_TO_ONE,
    "evaluate.every": POSITIVE,
    "evaluate.splits": Rule(lambda value: len(value) > 0, "at least one split"),
    "evaluate.patch_sizes": SIZES,
    "evaluate.batch_size": POSITIVE,
    "evaluate.panels": COUNT,
    "cache.max_gb": POSITIVE,
    "cache.pixels_per_tile": OPTIONAL_POSITIVE,
    "knn.neighbours": COUNT,
}
DATASET_RULES: dict[str, Rule] = {
    "batch_size": POSITIVE,
    "patch_sizes": SIZES,
    "max_dates": OPTIONAL_POSITIVE,
    "fraction": _ABOVE_ZERO_TO_ONE,
    "fraction_seed": COUNT,
}


def check(config: ConfigDict) -> Task:
    """Refuses values that cannot work, alone or together.

    The weights of `init` and the labels themselves are looked at later, when they are read.

    Returns:
      The task that the config asks of its dataset.

    Raises:
      ConfigError: a value is missing, out of range, or does not fit another one or the dataset.
    """
    flat = flatten(config)
    check_values(flat, RULES, shown_in="configs/adaptation.py")
    name = the_dataset(config)
    check_values(flat, DATASET_RULES, f"data.datasets.{name}.", shown_in="configs/adaptation.py")
    _check_start(config)
    _check_epochs(config)
    try:
        (options,) = read_options(config.data).values()
        card = options.card
        task = make_task(card, config.task.level, metric=config.task.metric, sensor=config.task.sensor)
        head = HeadConfig.from_json(config.head.to_dict())
        for patch_size in config.evaluate.patch_sizes or ():
            options.check_patch_size(patch_size)
    except (ValueError, OSError) as error:  # which name the field or the dataset
        raise ConfigError(str(error)) from None
    _check_head(head, task)
    _check_splits(config, card)
    _check_class_options(config, task)
    _check_projectors(config, card)
    if config.knn.neighbours and task.level == "dense":
        raise ConfigError(
            f"knn.neighbours = {config.knn.neighbours} compares tiles, and the task of {task.dataset!r} is dense: its "
            "pixels are too many; set it to 0"
        )
    return task


def the_dataset(config: ConfigDict) -> str:
    """Name of the one dataset.

    Raises:
      ConfigError: there is none, or several.
    """
    names = sorted(config.data.datasets)
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"data.datasets must name one dataset, whose labels are learnt; it names {listed}")
    return names[0]


def _are_weights(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not all(isinstance(weight, int | float) for weight in value):
        return False
    return all(0 <= weight < math.inf for weight in value) and any(value)


def _check_start(config: ConfigDict) -> None:
    if not config.init:
        raise ConfigError(f"config.init is empty; give {CHOICES}")
    if config.mode == "scratch" and config.init != "none":
        raise ConfigError(
            f"mode = 'scratch' starts at random, and init = {config.init!r} names weights; set init to 'none', or mode "
            "to 'finetune'"
        )


def _check_epochs(config: ConfigDict) -> None:
    if config.epochs == 0:
        if config.head_start != "solved":
            raise ConfigError("epochs = 0 trains nothing; give at least 1, or head_start = 'solved'")
        return
    if config.evaluate.every > config.epochs:
        raise ConfigError(
            f"evaluate.every = {config.evaluate.every} must be at most epochs = {config.epochs}: the best checkpoint "
            "is chosen among those that are evaluated"
        )
    if config.optimizer.warmup_epochs >= config.epochs and config.optimizer.warmup_epochs > 0:
        raise ConfigError(
            f"optimizer.warmup_epochs = {config.optimizer.warmup_epochs} must be below epochs = {config.epochs}"
        )


def _check_head(head: HeadConfig, task: Task) -> None:
    if (head.input == "dense") != (task.level == "dense"):
        fitting = "'dense'" if task.level == "dense" else "'tile' or 'mean'"
        raise ConfigError(
            f"head.input = {head.input!r} does not fit task.level = {task.level!r}, which wants {fitting}"
        )


def _check_splits(config: ConfigDict, card: DatasetCard) -> None:
    training = () if config.job == "evaluate" else ("train", "val")
    missing = [split for split in (*training, *config.evaluate.splits) if split not in card.splits]
    if missing:
        wanted = "evaluate.splits" if missing[0] in config.evaluate.splits else "training"
        raise ConfigError(
            f"dataset {card.name!r} has no split {missing[0]!r}, which {wanted} asks for; it has "
            f"{', '.join(card.splits)}"
        )


def _check_class_options(config: ConfigDict, task: Task) -> None:
    weights, smoothing = config.task.class_weights, config.task.label_smoothing
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


def _check_projectors(config: ConfigDict, card: DatasetCard) -> None:
    strangers = [name for name in config.new_sensors if name not in card.sensors]
    if strangers:
        raise ConfigError(f"new_sensors names {strangers[0]!r}; the sensors of {card.name!r} are {_listed(card)}")
    if config.mode == "projector" and not config.new_sensors:
        raise ConfigError(
            f"mode = 'projector' trains the projectors of new_sensors, and that is empty; name one of {_listed(card)}"
        )


def _listed(card: DatasetCard) -> str:
    return ", ".join(card.sensors)

"""What a run needs of its datasets before the first step: that they are there, and projectors for their sensors."""

from collections.abc import Callable
from typing import TypeVar

from ml_collections import ConfigDict

from anysat_jax.model.config import ModelConfig
from anysat_jax.sensors import SENSORS
from anysat_jax.train import settings
from anysat_jax.train.distributed import check_same, on_all
from anysat_jax.train.errors import ConfigError
from data_pipelines import load

T = TypeVar("T")


def prepare_data(config: ConfigDict) -> tuple[ConfigDict, ModelConfig]:
    """Makes sure that every dataset is there, and that the model has a projector for each of its sensors.

    Returns:
      The config, its `model.sensors` filled in where it names none: those of the datasets. And its model.

    Raises:
      ConfigError: a dataset is unknown, missing or unreadable, in this process or in another, or has a sensor that
        `model.sensors` lacks.
    """
    config = config.copy_and_resolve_references()
    return agreed(config, lambda: _prepare(config))


def agreed(config: ConfigDict, prepare: Callable[[], T]) -> T:
    """Has every process prepare its datasets, and makes sure that they all hold the same.

    Raises:
      ConfigError: a dataset is missing in one process, or is another one than that of the first process.
    """
    prepared = on_all(prepare)
    check_same(
        lambda: {f"dataset {name!r}": facts for name, facts in load.prepared_facts(config.data).items()},
        "give all hosts the same prepared data, best below one data.root that they share",
    )
    return prepared


def _prepare(config: ConfigDict) -> tuple[ConfigDict, ModelConfig]:
    try:
        cards = [load.dataset_card(name, config.data.root) for name in config.data.datasets]
        wanted = {sensor for card in cards for sensor in card.sensors}
        if config.model.sensors is None:
            config.model.sensors = tuple(name for name in SENSORS if name in wanted)
        for card in cards:
            missing = [sensor for sensor in card.sensors if sensor not in config.model.sensors]
            if missing:
                raise ConfigError(f"dataset {card.name!r} has sensors that model.sensors lacks: {', '.join(missing)}")
        load.prepare(config.data)
    except (ValueError, OSError) as error:  # the readers say what is wrong, in one sentence
        raise ConfigError(str(error)) from error
    return config, settings.model_of(config)

"""The config of a pretraining: its sections as frozen dataclasses."""

import dataclasses
from collections.abc import Sequence
from typing import Self

from ml_collections import ConfigDict

from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.collapse import HealthConfig
from anysat_jax.pretrain.masking import MaskConfig
from anysat_jax.pretrain.objective import LossConfig
from anysat_jax.sensors import SENSORS, get_sensor
from anysat_jax.train.config import (
    COUNT,
    FLAG,
    FRACTION,
    POSITIVE,
    POSITIVE_OR_NONE,
    OptimizerConfig,
    PlateauConfig,
    RunConfig,
    Section,
    checked,
    model_config,
    read_section,
)
from data_pipelines.card import DatasetCard
from data_pipelines.options import DatasetOptions


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(MaskConfig, LossConfig):
    """The section `pretrain`: masks, losses, and the decay of the teacher's moving average at the first step."""

    ema_start: float = checked(FRACTION, 0.996)


@dataclasses.dataclass(frozen=True)
class LossPlateauConfig(PlateauConfig):
    """The plateau of the training loss: each look is at its mean over `window` steps."""

    window: int = checked(POSITIVE, 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptimizerConfig(OptimizerConfig):
    """The section `optimizer`: the warm-up counts in steps."""

    warmup_steps: int = checked(COUNT, 0)
    plateau: LossPlateauConfig = LossPlateauConfig()


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """The section `evaluate`: what the report of a pretraining probes and shows."""

    NAME = "evaluate"
    probe: bool = checked(FLAG, True)  # whether to probe at all; without, the report has the training curves alone
    datasets: tuple[str, ...] | None = None  # names of the datasets; None: every dataset of the run
    # Side of a patch in metres; None: each dataset's smallest.
    patch_size: float | None = checked(POSITIVE_OR_NONE, None)
    batch_size: int = checked(POSITIVE, 16)  # tiles in a forward pass
    max_tiles: int = checked(POSITIVE, 256)  # largest number of tiles of each split
    # Largest number of labelled pixels of each training tile that fit the dense probe.
    pixels_per_tile: int = checked(POSITIVE, 48)
    pictures: int = checked(COUNT, 4)  # tiles of each dataset that the picture shows; 0: no pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """The config of a pretraining, its data aside, which `data_pipelines` reads and checks."""

    total_steps: int = checked(POSITIVE)  # updates
    accumulate: int = checked(POSITIVE, 1)  # micro-batches of each step
    # With the sensors that the config names; where it names none, those of the datasets are filled in later.
    model: ModelConfig
    pretrain: ObjectiveConfig = ObjectiveConfig()
    optimizer: PretrainOptimizerConfig
    health: HealthConfig = HealthConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (steps := self.optimizer.warmup_steps) > self.total_steps:
            raise ConfigError(f"optimizer.warmup_steps = {steps} must be at most total_steps = {self.total_steps}")
        if self.pretrain.predictive_weight == self.pretrain.contrastive_weight == 0:
            raise ConfigError("pretrain.predictive_weight and pretrain.contrastive_weight are 0; one must be above 0")

    @classmethod
    def read(cls, config: ConfigDict) -> Self:
        """Checks a config, before anything is loaded or compiled.

        Raises:
          ConfigError: a value is missing, unknown or out of range, or the model's values do not fit together.
        """
        values = {key: value for key, value in config.to_dict().items() if key not in ("data", "dtype", "model")}
        if isinstance(steps := values.get("total_steps"), int) and steps < 1:  # before the warm-up, its part
            raise ConfigError(f"total_steps = {steps} must be {POSITIVE.wanted}")
        return read_section(cls, values, "configs/pretrain.py", model=model_config(config))

    def problems_of(self, options: DatasetOptions) -> list[str]:
        """Returns sentences on the parts of the objective that a dataset gives nothing to learn from.

        Raises:
          ConfigError: none is left.
        """
        card, loss, problems = options.card, self.pretrain, []
        spatial = [name for name in card.sensors if get_sensor(name).kind != "context"]
        if loss.contrastive_weight and len(spatial) == 1:
            problems.append(
                f"{card.name} has one sensor with patches, {spatial[0]}: its contrastive loss, between sensors, is 0"
            )
            if not loss.predictive_weight:
                raise ConfigError(f"{problems[0]}, and pretrain.predictive_weight, too; set that to 1")
        single = loss.predictive_weight and min(options.patch_sizes) == options.extent
        if single and loss.objective == "paper":
            problems.append(
                f"{card.name} has tiles of a single patch, of which none can be hidden: its predictive loss teaches "
                "little; set pretrain.objective=reconstruction, which predicts hidden dates"
            )
        elif single and all(get_sensor(name).kind == "image" for name in spatial):
            problems.append(f"{card.name} has tiles of a single patch and no dates: nothing of them can be hidden")
        return problems

    def with_sensors(self, named: Sequence[str] | None, cards: Sequence[DatasetCard]) -> Self:
        """Returns the config whose model has a projector for each sensor of the datasets.

        `named` is `model.sensors` of the config file; None: the sensors of the datasets.

        Raises:
          ConfigError: a dataset has a sensor that `named` lacks.
        """
        found = {sensor for card in cards for sensor in card.sensors}
        # In the order of the registry, not of the config: the same datasets must make the same parameters.
        sensors = tuple(name for name in SENSORS if name in found) if named is None else tuple(named)
        for card in cards:
            missing = [sensor for sensor in card.sensors if sensor not in sensors]
            if missing:
                raise ConfigError(f"dataset {card.name!r} has sensors that model.sensors lacks: {', '.join(missing)}")
        decoder = self.pretrain.objective == "reconstruction"
        return dataclasses.replace(self, model=dataclasses.replace(self.model, sensors=sensors, decoder=decoder))

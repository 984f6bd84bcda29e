"""The programs that a config trains with: one for each (dataset, patch size), as shapes, without any data."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from anysat_jax import flops
from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.masks import MaskConfig, PatchMasks, context_sizes, target_sizes
from anysat_jax.sensors import SENSORS, get_sensor
from anysat_jax.train import settings
from anysat_jax.train.errors import ConfigError
from anysat_jax.train.mesh import MASK_SPECS, batch_sharding
from data_pipelines.dates_choice import padded_lengths
from data_pipelines.options import DatasetOptions, dataset_options
from data_pipelines.transforms import TileTransform

LONGEST = {
    "treesatai_ts": {"s2": 146, "s1-asc": 60},
    "pastis_hd": {"s2": 61, "s1": 70},
    "flair": {"s2": 110},
    "planted": {"s2": 8, "s1": 8, "l7": 20, "alos": 4, "modis": 60},
    "s2naip": {"s2": 32, "s1": 8, "l8": 4},
}
"""Dates of the longest series of each dataset, as its card says in words; data that are prepared know their own."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One program of the step.

    Attributes:
      options: of the dataset.
      patch_size: metres.
      batch_size: tiles of a step, over all chips.
    """

    options: DatasetOptions
    patch_size: float
    batch_size: int

    @property
    def dataset(self) -> str:
        return self.options.card.name

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.patch_size:g}"

    def with_batch(self, batch_size: int) -> "Case":
        return dataclasses.replace(self, batch_size=batch_size)


def all_cases(config: ConfigDict, only: str = "") -> list[Case]:
    """Every (dataset, patch size) of a config, in its order, with its batch size.

    Args:
      only: names of datasets or of single cases, "pastis_hd,flair-20"; "" for all.

    Raises:
      ConfigError: a name stands for nothing, or a dataset of the config cannot be.
    """
    try:
        options = dataset_options(config.data)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    cases = [Case(one, size, one.batch_size) for one in options for size in one.patch_sizes]
    wanted = [name for name in only.split(",") if name]
    known = {name for case in cases for name in (case.dataset, case.name)}
    if strangers := [name for name in wanted if name not in known]:
        raise ConfigError(f"--only={strangers[0]}: the config has no such dataset; it has {', '.join(sorted(known))}")
    return [case for case in cases if not wanted or case.dataset in wanted or case.name in wanted]


def model_of(config: ConfigDict) -> ModelConfig:
    """The config's model, with projectors for the sensors of its datasets where it names none."""
    config = config.copy_and_resolve_references()
    if config.model.sensors is None:
        wanted = {sensor for one in dataset_options(config.data) for sensor in one.card.sensors}
        config.model.sensors = tuple(name for name in SENSORS if name in wanted)
    return settings.model_of(config)


def batch_shapes(case: Case) -> Batch:
    """A case's batch of shapes, as training gets it: masks of pixels, padded dates, sensors that may be missing.

    Raises:
      ConfigError: nothing says how many dates the dataset's series have.
    """
    card, sampling = case.options.card, case.options.sampling
    series = [name for name in card.sensors if get_sensor(name).has_dates]
    known = LONGEST.get(card.name, {})
    longest = {name: known.get(name, sampling.limit) for name in series}
    if missing := [name for name in series if longest[name] is None]:
        raise ConfigError(
            f"nothing says how many dates {missing[0]!r} of {card.name!r} has; set data.datasets.{card.name}.max_dates"
        )
    lengths = padded_lengths(longest, sampling, training=True)
    one = TileTransform(card, {}, sampling).empty_batch(1, lengths, case.patch_size).replace(labels={})
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct((case.batch_size, *array.shape[1:]), array.dtype), one)


def mask_shapes(model: ModelConfig, batch: Batch, config: MaskConfig) -> PatchMasks:
    """The patch masks of the static sizes that cost most."""
    return max(_all_masks(batch, config), key=lambda masks: flops.step_flops(model, batch, masks))


def _all_masks(batch: Batch, config: MaskConfig) -> Iterator[PatchMasks]:
    """Masks of all pairs of static sizes, see `pretrain.masks.sample_patch_masks`."""
    if batch.grid == (1, 1):
        yield _masks(batch.batch_size, 1, 1, 1)
        return
    targets = target_sizes(batch.grid, config)
    for smallest, target in zip([1, *(size + 1 for size in targets[:-1])], targets, strict=True):
        for context in context_sizes(batch.grid, smallest, config):
            yield _masks(batch.batch_size, context, config.num_target_blocks, target)


def _masks(batch_size: int, context: int, blocks: int, target: int) -> PatchMasks:
    shape = jax.ShapeDtypeStruct
    return PatchMasks(
        context_index=shape((batch_size, context), np.int32),
        context_mask=shape((batch_size, context), np.bool_),
        target_index=shape((blocks, batch_size, target), np.int32),
        target_mask=shape((target,), np.bool_),
    )


def on_mesh(batch: Batch, masks: PatchMasks, mesh: Mesh) -> tuple[Batch, PatchMasks]:
    """Where training puts them, see `train.mesh.put_batch`."""
    sharding = batch_sharding(mesh)
    batch = jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding), batch)
    placed = {}
    for name, spec in MASK_SPECS.items():
        one = getattr(masks, name)
        placed[name] = jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=NamedSharding(mesh, spec))
    return batch, masks.replace(**placed)

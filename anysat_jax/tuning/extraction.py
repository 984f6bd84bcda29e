"""Frozen features of a split, from the cache or from one pass of the encoder."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from anysat_jax.adapt.labels import known_labels
from anysat_jax.adapt.network import NetworkConfig, Params, network_features
from anysat_jax.adapt.tasks import Task
from anysat_jax.batch import Batch
from anysat_jax.sensors import get_sensor
from anysat_jax.train.compiled import Compiled
from anysat_jax.train.errors import ConfigError, DataError
from anysat_jax.train.mesh import put_batch, replicated
from anysat_jax.train.share import put_params
from anysat_jax.tuning.evaluating import one_ahead, sample_bar, skipped_tiles, split_batches
from anysat_jax.tuning.feature_cache import Features, Writer, features_folder, find_or_make, key_of, open_features
from anysat_jax.tuning.subpatches import draw_subpatches, label_blocks, take_subpatches
from anysat_jax.tuning.vitals import Vitals
from data_pipelines import load
from data_pipelines.contents import FILE_NAME as CONTENTS
from data_pipelines.locate import locate
from data_pipelines.options import sampling_options, skips_corrupt

FORMAT = 1  # of the entries; raise it when the same facts give other features
ONLY_TRAINING = ("augment", "temporal_dropout", "noise")  # parts of the sampling that do not touch features
MODEL_FACTS = ("dim", "depth", "num_heads", "mlp_ratio", "positions", "dtype")


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What features are wanted of.

    Attributes:
      network: gives them; its head says which, and its task which labels go with them.
      encoder: the encoder's parameters.
      digest: of those parameters.
      config: the run's; `data`, `cache` and `evaluate.batch_size` are read.
      mesh: where to compute.
      vitals: of the job.
    """

    network: NetworkConfig
    encoder: Params
    digest: str
    config: ConfigDict
    mesh: Mesh
    vitals: Vitals = dataclasses.field(default_factory=Vitals)

    @property
    def dtype(self) -> jnp.dtype:
        """What the features are kept in: the dtype that the encoder gives them in. A mean has more digits."""
        return jnp.dtype("float32") if self.network.head.input == "mean" else self.network.model.compute_dtype

    @property
    def drawn(self) -> int | None:
        """Sub-patches that are drawn of each sample of a dense task; None: all."""
        pixels, task = self.config.cache.pixels_per_tile, self.network.task
        if task.level != "dense" or pixels is None:
            return None
        return max(1, pixels // task.pixels_per_subpatch**2)

    @property
    def values(self) -> int:
        """Numbers that are kept of each sample."""
        task, data = self.network.task, self.config.data
        width = self.network.head.features(self.network.model.dim)
        if task.level != "dense":
            return width
        extent = data.datasets[task.dataset].get("extent") or load.dataset_card(task.dataset, data.root).extent
        subpatches = round(extent / get_sensor(task.sensor).subpatch_metres) ** 2
        return width * min(subpatches, self.drawn or subpatches)

    def facts(self, split: str, patch_size: float, tiles: Sequence[int] | None) -> dict[str, Any]:
        """All that the features of a split depend on, JSON values."""
        task, data = self.network.task, self.config.data
        sampling = dataclasses.asdict(
            sampling_options(load.dataset_card(task.dataset, data.root), data.datasets[task.dataset])
        )
        prepared = locate(task.dataset, data.root)
        return {
            "format": FORMAT,
            "weights": self.digest,
            "model": {name: getattr(self.network.model, name) for name in MODEL_FACTS},
            "head_input": self.network.head.input,
            "task": [task.level, task.sensor],
            "dataset": [task.dataset, (prepared.folder / CONTENTS).read_text(encoding="utf-8")],
            "split": split,
            "tiles": None if tiles is None else [int(tile) for tile in tiles],
            "sampling": {name: value for name, value in sampling.items() if name not in ONLY_TRAINING},
            "patch_size": float(patch_size),
            "drawn": self.drawn,
            "stored_as": str(self.dtype),
        }


def frozen_features(wanted: Extraction, split: str, patch_size: float, tiles: Sequence[int] | None = None) -> Features:
    """The features of a split at a patch size; a progress bar where they have to be made.

    Samples stand in the order of an evaluation, and are not augmented. With several processes all must ask; they make
    them together, the first one writes, and all read the same folder.

    With `data.skip_corrupt`, tiles that cannot be read are left out; features that lack some are made again as soon as
    these can be read, or may not be left out.

    Args:
      wanted: of which encoder, for which task.
      split: name of the split.
      patch_size: metres.
      tiles: positions of the tiles to take; None: all.

    Raises:
      ConfigError: they would be larger than `cache.max_gb`, cannot be kept, or drawing pixels does not fit the head.
      ValueError, OSError: the data cannot be had.
      DataError: a tile cannot be read, or with `data.skip_corrupt` none can.
    """
    rows = load.num_samples(wanted.config.data, wanted.network.task.dataset, split, tiles)
    _check(wanted, split, rows)
    folder, facts = features_folder(wanted.config.cache.folder), wanted.facts(split, patch_size, tiles)
    extract = functools.partial(_extract, wanted, split, patch_size, tiles, rows)
    if jax.process_index() != 0:
        if _broadcast(False):
            extract(None)
        return _open_shared(folder / key_of(facts))
    asked: list[bool] = []

    def make(writer: Writer) -> None:
        asked.append(_broadcast(True))
        extract(writer)

    found = find_or_make(folder, facts, make, functools.partial(_lacks_nothing_else, wanted, split))
    if not asked:
        _broadcast(False)
    multihost_utils.sync_global_devices("features are written")
    return found


def _lacks_nothing_else(wanted: Extraction, split: str, left_out: Sequence[int]) -> bool:
    """Whether features that were made without some tiles would be made without them again."""
    data = wanted.config.data
    return not left_out or (
        skips_corrupt(data) and load.unreadable_tiles(data, wanted.network.task.dataset, split, left_out) == [*left_out]
    )


def _broadcast(value: bool) -> bool:
    """What the first process says: whether features are being made, for which it needs the others."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def _open_shared(entry: pathlib.Path) -> Features:
    multihost_utils.sync_global_devices("features are written")
    try:
        return open_features(entry)
    except FileNotFoundError as error:
        raise ConfigError(f"{error} on this machine: set cache.folder to one that all processes share") from error


def _extract(
    wanted: Extraction, split: str, patch_size: float, tiles: Sequence[int] | None, rows: int, writer: Writer | None
) -> None:
    """Computes the features and gives them to the writer; without one, only helps the other processes."""
    task, config, mesh = wanted.network.task, wanted.config, wanted.mesh
    if writer is not None:
        writer.begin(rows)
    program = _program(wanted.network, wanted.dtype, mesh)
    params = {"encoder": put_params(wanted.encoder, mesh)}
    chosen = {} if tiles is None else {"tiles": tiles}
    batches = split_batches(config.data, task.dataset, split, (patch_size,), config.evaluate.batch_size, mesh, **chosen)
    title = f"features of {split} at {patch_size:g} m"
    some = False
    with (
        sample_bar(f"{task.title}: {title}", rows) as bar,
        wanted.vitals.passing("extracting", title, rows, program) as passing,
    ):
        for _, (features, labels) in one_ahead(
            passing.timed(batches),
            lambda batch: program(params, put_batch(with_labels(batch, task, wanted.drawn), mesh)),
        ):
            valid = np.asarray(labels["valid"])
            some = some or bool(valid.any())
            bar.update(int(valid.sum()))
            passing.done(int(valid.sum()))
            if writer is not None:
                writer.leave_out(skipped_tiles(labels.get("skipped")))
                kept = {"features": features, "labels": labels[task.level], "index": labels["index"]}
                writer.add(**{name: np.asarray(array)[valid] for name, array in kept.items()})
    if not some:
        raise DataError(f"dataset {task.dataset!r}: no tile of split {split!r} can be read; prepare it again")


@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, dtype: jnp.dtype, mesh: Mesh) -> Compiled:
    """(params, batch) -> features and labels of a batch, the whole of them on every process."""

    def extract(params: Params, batch: Batch) -> tuple[Array, dict[str, Array]]:
        features = network_features(network, params, batch)
        if "drawn" in batch.labels:
            features = take_subpatches(features, batch.labels["drawn"])
        return features.astype(dtype), batch.labels

    return Compiled(extract, out_shardings=replicated(mesh))


def with_labels(batch: Batch, task: Task, drawn: int | None) -> Batch:
    """The batch with the labels that are kept; where sub-patches are drawn, with their numbers and their labels."""
    names = (task.level, "index", "valid", "skipped")
    labels = {name: batch.labels[name] for name in names if name in batch.labels}
    if drawn is not None:
        blocks = label_blocks(labels["dense"], task.pixels_per_subpatch)
        chosen = draw_subpatches(np.asarray(known_labels(task, blocks)).any(axis=(2, 3)), labels["index"], drawn)
        taken = np.take_along_axis(blocks, chosen[:, :, None, None], axis=1)
        labels |= {"dense": taken.reshape(len(taken), -1, taken.shape[-1]), "drawn": chosen}
    return batch.replace(labels=labels)


def _check(wanted: Extraction, split: str, rows: int) -> None:
    """Refuses what would not fit.

    Raises:
      ConfigError: see `frozen_features`.
    """
    network, cache = wanted.network, wanted.config.cache
    if wanted.drawn is not None and network.head.upsample == "bilinear" and network.task.pixels_per_subpatch > 1:
        raise ConfigError(
            f"cache.pixels_per_tile = {cache.pixels_per_tile} draws single sub-patches, and head.upsample = 'bilinear' "
            "interpolates between neighbours; use head.upsample = 'shuffle', or no cache.pixels_per_tile"
        )
    gigabytes = rows * wanted.values * wanted.dtype.itemsize / 1e9
    if gigabytes > cache.max_gb:
        remedy = "raise cache.max_gb"
        if network.task.level == "dense":
            remedy = f"set cache.pixels_per_tile, so that fewer of each tile's pixels are kept, or {remedy}"
        raise ConfigError(
            f"the features of {rows} samples of split {split!r} take {gigabytes:.3g} GB, more than cache.max_gb = "
            f"{cache.max_gb:g}; {remedy}"
        )

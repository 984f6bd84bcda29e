"""Frozen features of a split: read from the cache, or computed in one pass of the encoder."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped

from anysat_jax.batch import Batch
from anysat_jax.downstream.config import CacheConfig
from anysat_jax.downstream.feature_cache import Features, Writer, features_folder, find_or_make, key_of, open_features
from anysat_jax.downstream.network import NetworkConfig, Params, network_features
from anysat_jax.downstream.split_pass import pass_over_split, skipped_tiles, split_batches, whole_batch
from anysat_jax.downstream.task import Task, known_labels
from anysat_jax.errors import ConfigError, DataError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, dense_features, stack_patches
from anysat_jax.sensors import get_sensor
from anysat_jax.train.compile import Compiled
from anysat_jax.train.sharding import host_shard, put_batch, put_params, replicated
from anysat_jax.train.status import JobStatus
from data_pipelines.batches import HostShard, Pick
from data_pipelines.load import OpenDataset
from data_pipelines.options import DatasetOptions
from data_pipelines.prepare.storage import MANIFEST_FILE
from data_pipelines.sampler import StepIterator, Stream

FORMAT = 1  # of the cache's entries; raise it when the same facts give other features
ONLY_TRAINING = ("augment", "temporal_dropout", "noise")  # options of sampling without influence on features
MODEL_FACTS = ("dim", "depth", "num_heads", "mlp_ratio", "positions", "dtype")
WRITTEN = "features are written"  # barrier of the processes


# ---------------------------------------------------------------- sampled sub-patches


def label_blocks(labels: Shaped[np.ndarray, "B H W"], side: int) -> Shaped[np.ndarray, "B n p p"]:
    """Cuts label maps into the squares of the sub-patches, of `side` pixels, in raster order."""
    batch, height, width = labels.shape
    blocks = labels.reshape(batch, height // side, side, width // side, side).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(batch, -1, side, side)


def sample_subpatches(
    labelled: Bool[np.ndarray, "B n"], index: Int[np.ndarray, "B"], count: int
) -> Int32[np.ndarray, "B m"]:
    """Samples `count` sub-patches of each tile, or all if there are fewer; those with a label come first.

    The sample depends on the tile's `index` alone: it is the same at every patch size and in every batch.
    """
    order = np.stack([np.random.default_rng(int(tile)).permutation(labelled.shape[1]) for tile in index])
    return np.argsort(order + labelled.shape[1] * ~labelled, axis=1)[:, :count].astype(np.int32)


def take_subpatches(features: Float[Array, "B h w F"], chosen: Int[Array, "B m"]) -> Float[Array, "B m 1 F"]:
    """Returns the chosen sub-patches of each map, as a map of one column."""
    flat = features.reshape(features.shape[0], -1, features.shape[-1])
    return jnp.take_along_axis(flat, chosen[:, :, None], axis=1)[:, :, None]


def with_labels(batch: Batch, task: Task, sampled: int | None) -> Batch:
    """Returns the batch with the labels to keep; of `sampled` sub-patches, their labels and positions ("sampled")."""
    names = (task.level, "index", "valid", "skipped")
    labels = {name: batch.labels[name] for name in names if name in batch.labels}
    if sampled is not None:
        blocks = label_blocks(labels["dense"], task.pixels_per_subpatch)
        chosen = sample_subpatches(np.asarray(known_labels(task, blocks)).any(axis=(2, 3)), labels["index"], sampled)
        taken = np.take_along_axis(blocks, chosen[:, :, None, None], axis=1)
        labels |= {"dense": taken.reshape(len(taken), -1, taken.shape[-1]), "sampled": chosen}
    return batch.replace(labels=labels)


# ---------------------------------------------------------------- extraction


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Encoder and dataset of frozen features.

    Attributes:
      network: its head defines which features are kept, its task which labels.
      encoder: the encoder's parameters.
      digest: SHA-256 of those parameters.
      dataset: with the samples.
      cache: options of the cache.
      batch_size: samples of a batch over all processes.
      mesh: computes the features.
      status: of the job.
    """

    network: NetworkConfig
    encoder: Params
    digest: str
    dataset: OpenDataset
    cache: CacheConfig
    batch_size: int
    mesh: Mesh
    status: JobStatus = dataclasses.field(default_factory=JobStatus)

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the stored features: that of the encoder's output; a mean has more digits."""
        return jnp.dtype("float32") if self.network.head.input == "mean" else self.network.model.compute_dtype

    @property
    def sampled(self) -> int | None:
        """Sub-patches that are sampled of each sample of a dense task; None: all are kept."""
        pixels, task = self.cache.pixels_per_tile, self.network.task
        if task.level != "dense" or pixels is None:
            return None
        return max(1, pixels // task.pixels_per_subpatch**2)

    @property
    def numbers_per_sample(self) -> int:
        """Stored numbers of each sample."""
        task = self.network.task
        width = self.network.head.features(self.network.model.dim)
        if task.level != "dense":
            return width
        subpatches = round(self.dataset.options.extent / get_sensor(task.sensor).subpatch_metres) ** 2
        return width * min(subpatches, self.sampled or subpatches)

    def facts(self, split: str, patch_size: float, tiles: Sequence[int] | None) -> dict[str, Any]:
        """Returns all that the features of a split depend on, JSON values: the key of the cache."""
        task, sampling = self.network.task, dataclasses.asdict(self.dataset.options.sampling)
        return {
            "format": FORMAT,
            "weights": self.digest,
            "model": {name: getattr(self.network.model, name) for name in MODEL_FACTS},
            "head_input": self.network.head.input,
            "task": [task.level, task.sensor],
            "dataset": [task.dataset, (self.dataset.prepared.folder / MANIFEST_FILE).read_text(encoding="utf-8")],
            "split": split,
            "tiles": None if tiles is None else [int(tile) for tile in tiles],
            "sampling": {name: value for name, value in sampling.items() if name not in ONLY_TRAINING},
            "patch_size": float(patch_size),
            "drawn": self.sampled,
            "stored_as": str(self.dtype),
        }

    def check_size(self, split: str, rows: int) -> None:
        """Checks that the features of a split fit the head and the limit of the cache.

        Raises:
          ConfigError: they do not; the message names the option to change.
        """
        network, cache = self.network, self.cache
        if self.sampled is not None and network.head.upsample == "bilinear" and network.task.pixels_per_subpatch > 1:
            raise ConfigError(
                f"cache.pixels_per_tile = {cache.pixels_per_tile} samples single sub-patches, and head.upsample = "
                "'bilinear' interpolates between neighbours; use head.upsample = 'shuffle', or no cache.pixels_per_tile"
            )
        gigabytes = rows * self.numbers_per_sample * self.dtype.itemsize / 1e9
        if gigabytes > cache.max_gb:
            remedy = "raise cache.max_gb"
            if network.task.level == "dense":
                remedy = f"set cache.pixels_per_tile, so that fewer of each tile's pixels are kept, or {remedy}"
            raise ConfigError(
                f"the features of {rows} samples of split {split!r} take {gigabytes:.3g} GB, more than cache.max_gb = "
                f"{cache.max_gb:g}; {remedy}"
            )


def frozen_features(
    extraction: Extraction, split: str, patch_size: float, tiles: Sequence[int] | None = None
) -> Features:
    """Returns the features of a split at a patch size; computes them, with a progress bar, unless they are cached.

    Samples are in the order of an evaluation, without augmentation. All processes must call this: they compute
    together, the first one writes, and all read the same folder.

    With `skip_corrupt`, tiles that cannot be read are left out; such features are computed again as soon as the tiles
    can be read, or may not be left out.

    Args:
      extraction: encoder, dataset and cache.
      split: name of the split.
      patch_size: metres.
      tiles: positions of the tiles to take; None: all.

    Raises:
      ConfigError: they do not fit the cache or the head, or cannot be written.
      ValueError, OSError: the split or the patch size cannot be.
      DataError: a tile cannot be read, or with `skip_corrupt` none can.
    """
    rows = extraction.dataset.num_samples(split, tiles)
    extraction.check_size(split, rows)
    folder, facts = features_folder(extraction.cache.folder), extraction.facts(split, patch_size, tiles)
    extract = functools.partial(_extract, extraction, split, patch_size, tiles, rows)
    if jax.process_index() != 0:
        if _broadcast(False):  # the first process found none
            extract(None)
        return _open_shared(folder / key_of(facts))
    computed = False

    def make(writer: Writer) -> None:
        nonlocal computed
        computed = _broadcast(True)
        extract(writer)

    def may_lack(left_out: Sequence[int]) -> bool:
        dataset = extraction.dataset
        return not left_out or (dataset.skip_corrupt and dataset.unreadable_tiles(split, left_out) == [*left_out])

    found = find_or_make(folder, facts, make, may_lack)
    if not computed:
        _broadcast(False)
    multihost_utils.sync_global_devices(WRITTEN)
    return found


def _broadcast(value: bool) -> bool:
    """Returns the first process' value on every process: whether features have to be computed."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def _open_shared(entry: pathlib.Path) -> Features:
    multihost_utils.sync_global_devices(WRITTEN)
    try:
        return open_features(entry)
    except FileNotFoundError as error:
        raise ConfigError(f"{error} on this machine: set cache.folder to one that all processes share") from error


def _extract(
    extraction: Extraction, split: str, patch_size: float, tiles: Sequence[int] | None, rows: int, writer: Writer | None
) -> None:
    """Computes the features and passes them to the writer; None in processes that only compute."""
    task, mesh = extraction.network.task, extraction.mesh
    if writer is not None:
        writer.begin(rows)
    program = _program(extraction.network, extraction.dtype, mesh)
    params = {"encoder": put_params(extraction.encoder, mesh)}
    batches = split_batches(extraction.dataset, split, (patch_size,), extraction.batch_size, mesh, tiles)
    total = 0
    for _, (features, labels) in pass_over_split(
        batches,
        program,
        lambda batch: program(params, put_batch(with_labels(batch, task, extraction.sampled), mesh)),
        lambda outputs: int(np.asarray(outputs[1]["valid"]).sum()),
        extraction.status,
        state="extracting",
        dataset=extraction.dataset,
        title=f"features of {split} at {patch_size:g} m",
        total=rows,
    ):
        valid = np.asarray(labels["valid"])
        total += int(valid.sum())
        if writer is not None:
            writer.leave_out(skipped_tiles(labels.get("skipped")))
            kept = {"features": features, "labels": labels[task.level], "index": labels["index"]}
            writer.add(**{name: np.asarray(array)[valid] for name, array in kept.items()})
    if not total:
        raise DataError(f"dataset {task.dataset!r}: no tile of split {split!r} can be read; prepare it again")


@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, dtype: jnp.dtype, mesh: Mesh) -> Compiled:
    """Returns (params, batch) -> features and labels of the whole batch, on every process."""

    def extract(params: Params, batch: Batch) -> tuple[Array, dict[str, Array]]:
        features = network_features(network, params, batch)
        if "sampled" in batch.labels:
            features = take_subpatches(features, batch.labels["sampled"])
        return features.astype(dtype), batch.labels

    return Compiled(extract, out_shardings=replicated(mesh))


# ---------------------------------------------------------------- batches of features


@flax.struct.dataclass
class FeatureBatch:
    """Batch of frozen features, the counterpart of `Batch` for observations.

    Attributes:
      features: (B, F), or (B, h, w, F) for a dense task; float32 or bfloat16.
      labels: of the task's level, and "index" (B,); in an evaluation "valid" (B,), False for padding.
      dataset: the dataset's name. Static.
      patch_size: side of a patch in metres. Static.
    """

    features: Float[Array, "B *hw F"]
    labels: dict[str, Shaped[Array, "B ..."]]
    dataset: str = flax.struct.field(pytree_node=False, default="")
    patch_size: float = flax.struct.field(pytree_node=False, default=10.0)

    @property
    def batch_size(self) -> int:
        return len(self.features)


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Frozen features of a split at one or several patch sizes.

    Attributes:
      dataset: its name.
      level: of the task, the key of the labels.
      sizes: features by patch size in metres: the same samples in the same order.
    """

    dataset: str
    level: str
    sizes: Mapping[float, Features]

    def __len__(self) -> int:
        return len(next(iter(self.sizes.values())))

    def rows(self, rows: Int[np.ndarray, "B"], patch_size: float) -> FeatureBatch:
        """Returns a batch of some samples."""
        one = self.sizes[patch_size]
        labels = {self.level: np.asarray(one.labels[rows]), "index": np.asarray(one.index[rows])}
        return FeatureBatch(np.asarray(one.features[rows]), labels, self.dataset, patch_size)

    def training(self, options: DatasetOptions, seed: int, shard: HostShard) -> StepIterator:
        """Returns this process' part of the endless training batches; their position is a number of batches.

        Args:
          options: batch size and patch sizes.
          seed: of order and patch sizes.
          shard: the rows of this process.
        """

        def make(picks: Sequence[Pick], together: Sequence[int], patch_size: float) -> FeatureBatch:
            return self.rows(np.asarray([row for row, _ in picks]), patch_size)

        stream = Stream(len(self), options, make, seed, shard)
        return StepIterator(grain.MapDataset.range(sys.maxsize).map(stream))

    def in_order(self, batch_size: int, mesh: Mesh) -> Iterator[list[FeatureBatch]]:
        """Yields every sample once, at each patch size, on the devices.

        The last batch is padded with its last sample; the label "valid" is False there.

        Args:
          batch_size: of all processes; rounded up to a multiple of the mesh's devices.
          mesh: the devices.
        """
        size = whole_batch(batch_size, mesh)
        for first in range(0, len(self), size):
            wanted = first + host_shard(mesh).rows(size)
            rows, valid = np.minimum(wanted, len(self) - 1), wanted < len(self)
            batches = [self.rows(rows, patch_size) for patch_size in self.sizes]
            yield [put_batch(one.replace(labels=one.labels | {"valid": valid}), mesh) for one in batches]


# ---------------------------------------------------------------- tile and dense features in one pass


@flax.struct.dataclass
class FrozenFeatures:
    """Frozen features for the probes of a pretraining.

    Attributes:
      tile: the tile's vector.
      dense: by sensor, map of [patch vector, sub-patch feature] of its sub-patches.
    """

    tile: Float[Array, "B D"]
    dense: dict[str, Float[Array, "B h w 2*D"]]


Extractor = Callable[[Params, Batch], FrozenFeatures]


def make_extractor(config: ModelConfig, dense_sensors: tuple[str, ...]) -> Extractor:
    """Returns a compiled function of (encoder parameters, batch); one program for each dataset and patch size.

    Args:
      config: the model.
      dense_sensors: sensors of the maps; those that a batch lacks are left out.
    """

    def forward(encoder: Encoder, batch: Batch) -> FrozenFeatures:
        embedded = encoder.embed(batch)
        combined = encoder.combine(stack_patches(batch, embedded.patches))
        maps = {
            name: dense_features(combined[:, 1:], embedded.subpatches[name], batch.grid)
            for name in dense_sensors
            if name in batch.observations
        }
        return FrozenFeatures(tile=combined[:, 0], dense=maps)

    @jax.jit
    def extract(params: Params, batch: Batch) -> FrozenFeatures:
        return Encoder(config).apply({"params": params}, batch, method=forward)

    return lambda params, batch: extract(params, batch.replace(labels={}))

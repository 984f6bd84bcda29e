"""Frozen features of a split: read from the cache, or computed in one pass of the encoder."""

import contextlib
import dataclasses
import functools
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
from anysat_jax.downstream import feature_cache
from anysat_jax.downstream.config import CacheConfig
from anysat_jax.downstream.data import Data, Start
from anysat_jax.downstream.network import NetworkConfig, Params, network_features
from anysat_jax.downstream.split_pass import pass_over_split, skipped_tiles, whole_batch
from anysat_jax.downstream.task import Task, known_labels
from anysat_jax.errors import ConfigError, DataError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import Encoder, dense_features, stack_patches
from anysat_jax.sensors import get_sensor
from anysat_jax.train.compile import Compiled
from anysat_jax.train.sharding import host_shard, put_batch, put_params, replicated
from anysat_jax.train.status import JobStatus
from data_pipelines.batches import HostShard, Pick
from data_pipelines.options import DatasetOptions
from data_pipelines.prepare.storage import MANIFEST_FILE
from data_pipelines.sampler import StepIterator, Stream

FORMAT = 2  # of the cache's entries; raise it when the same facts give other features
ONLY_TRAINING = ("augment", "temporal_dropout", "noise")  # options of sampling without influence on features
MODEL_FACTS = ("dim", "depth", "num_heads", "mlp_ratio", "positions", "norm_groups", "dtype")


# ---------------------------------------------------------------- sampled sub-patches


def label_blocks(labels: Shaped[np.ndarray, "B H W"], side: int) -> Shaped[np.ndarray, "B n p p"]:
    """Cuts label maps into the squares of the sub-patches, of `side` pixels, in raster order."""
    batch, height, width = labels.shape
    blocks = labels.reshape(batch, height // side, side, width // side, side).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(batch, -1, side, side)


def sample_subpatches(
    labelled: Bool[np.ndarray, "B n"], index: Int[np.ndarray, "B"], count: int
) -> Int32[np.ndarray, "B m"]:
    """Samples `count` sub-patches of each tile, or all if there are fewer; those with a label come first."""
    # Seeded by the tile's index alone, so that the sample is the same at every patch size and in every batch.
    order = np.stack([np.random.default_rng(int(tile)).permutation(labelled.shape[1]) for tile in index])
    return np.argsort(order + labelled.shape[1] * ~labelled, axis=1)[:, :count].astype(np.int32)


def take_subpatches(features: Float[Array, "B h w F"], chosen: Int[Array, "B m"]) -> Float[Array, "B m 1 F"]:
    """Returns the chosen sub-patches of each map, as a map of one column."""
    flat = features.reshape(features.shape[0], -1, features.shape[-1])
    return jnp.take_along_axis(flat, chosen[:, :, None], axis=1)[:, :, None]


def with_labels(batch: Batch, task: Task, sampled: int | None = None) -> Batch:
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


def sampled_subpatches(cache: CacheConfig, task: Task) -> int | None:
    """Returns the number of sub-patches that are sampled of each sample of a dense task; None: all are kept."""
    if task.level != "dense" or cache.pixels_per_tile is None:
        return None
    return max(1, cache.pixels_per_tile // task.pixels_per_subpatch**2)


def stored_dtype(network: NetworkConfig) -> jnp.dtype:
    """Returns the dtype of the stored features: that of the encoder's output; a mean has more digits."""
    return jnp.dtype("float32") if network.head.input == "mean" else network.model.compute_dtype


def feature_facts(
    data: Data, start: Start, split: str, patch_size: float, tiles: Sequence[int] | None
) -> dict[str, Any]:
    """Returns all that the features of a split depend on, JSON values: the key of the cache."""
    network, task = start.network, start.network.task
    sampling = dataclasses.asdict(data.dataset.options.sampling)
    # Keys and spelling are part of the names of entries on disk: another "drawn" would make all features again.
    return {
        "format": FORMAT,
        "weights": start.source["digest"],
        "model": {name: getattr(network.model, name) for name in MODEL_FACTS},
        "head_input": network.head.input,
        "task": [task.level, task.sensor],
        "dataset": [task.dataset, (data.dataset.prepared.folder / MANIFEST_FILE).read_text(encoding="utf-8")],
        "split": split,
        "tiles": None if tiles is None else [int(tile) for tile in tiles],
        "sampling": {name: value for name, value in sampling.items() if name not in ONLY_TRAINING},
        "patch_size": float(patch_size),
        "drawn": sampled_subpatches(data.config.cache, task),
        "stored_as": str(stored_dtype(network)),
    }


def check_size(data: Data, network: NetworkConfig, split: str, rows: int) -> None:
    """Checks that the features of a split fit the head and the limit of the cache.

    Raises:
      ConfigError: they do not; the message names the option to change.
    """
    cache, task, dense = data.config.cache, network.task, network.task.level == "dense"
    sampled = sampled_subpatches(cache, task)
    if sampled is not None and network.head.upsample == "bilinear" and task.pixels_per_subpatch > 1:
        raise ConfigError(
            f"cache.pixels_per_tile = {cache.pixels_per_tile} samples single sub-patches, and head.upsample = "
            "'bilinear' interpolates between neighbours; use head.upsample = 'shuffle', or no cache.pixels_per_tile"
        )
    vectors = 1
    # Before anything is computed, which may take hours.
    if dense:
        vectors = round(data.dataset.options.extent / get_sensor(task.sensor).subpatch_metres) ** 2
        vectors = min(vectors, sampled or vectors)
    width = network.head.features(network.model.dim)
    gigabytes = rows * vectors * width * stored_dtype(network).itemsize / 1e9
    if gigabytes > cache.max_gb:
        fewer = "set cache.pixels_per_tile, so that fewer of each tile's pixels are kept, or " if dense else ""
        raise ConfigError(
            f"the features of {rows} samples of split {split!r} take {gigabytes:.3g} GB, more than cache.max_gb = "
            f"{cache.max_gb:g}; {fewer}raise cache.max_gb"
        )


def features_of(
    data: Data, start: Start, split: str, patch_sizes: Sequence[float], status: JobStatus | None = None
) -> "FeatureSet":
    """Returns the frozen features of a split; of the training split those of the tiles that training uses.

    They are the features of an evaluation: of whole tiles or of all windows, in its order, without augmentation and
    dropout. With `skip_corrupt`, tiles that cannot be read are left out at every patch size; such features are computed
    again as soon as the tiles can be read, or may not be left out.

    All processes must call this: they compute together, the first one writes, and all read the same folder.

    Raises:
      ConfigError: they do not fit the cache or the head, or cannot be written.
      ValueError, OSError: the split is unknown, or the patch size does not fit.
      DataError: a tile cannot be read, or with `skip_corrupt` none can.
    """
    status = status or JobStatus()
    tiles = data.dataset.training_tiles if split == "train" and data.dataset.options.fraction < 1 else None
    sizes = {float(size): frozen_features(data, start, split, size, tiles, status) for size in patch_sizes}
    left_out = {tile for one in sizes.values() for tile in one.left_out}
    status.leave_out(split, left_out)
    first, *others = sizes.values()
    # A file that was damaged in between leaves a tile out at some patch sizes only.
    if not all(np.array_equal(first.index, other.index) for other in others):
        sizes = {size: one.without(left_out) for size, one in sizes.items()}
    return FeatureSet(data.task, sizes)


def frozen_features(
    data: Data, start: Start, split: str, patch_size: float, tiles: Sequence[int] | None, status: JobStatus
) -> feature_cache.Features:
    """Returns the features at one patch size, in metres; computes them, with a progress bar, unless they are cached.

    `tiles` are the positions of the tiles to take; None: all.
    """
    dataset, rows, is_first = data.dataset, data.dataset.num_samples(split, tiles), jax.process_index() == 0
    check_size(data, start.network, split, rows)
    facts = feature_facts(data, start, split, patch_size, tiles)
    entry = feature_cache.features_folder(data.config.cache.folder) / feature_cache.key_of(facts)

    def may_lack(left_out: Sequence[int]) -> bool:
        return not left_out or (dataset.skip_corrupt and dataset.unreadable_tiles(split, left_out) == [*left_out])

    with feature_cache.hold_entry(entry) if is_first else contextlib.nullcontext():
        found = feature_cache.find_features(entry, may_lack) if is_first else None
        # The first process decides for all: its folder may not be shared, or another job may just have filled it.
        if multihost_utils.broadcast_one_to_all(np.asarray(found is None)):
            with feature_cache.Writer(entry, facts, rows) if is_first else contextlib.nullcontext() as writer:
                extract(data, start, split, patch_size, tiles, status, writer)
    multihost_utils.sync_global_devices("features are written")
    try:
        return feature_cache.open_features(entry) if found is None else found
    except FileNotFoundError as error:
        raise ConfigError(f"{error} on this machine: set cache.folder to one that all processes share") from error


def extract(
    data: Data,
    start: Start,
    split: str,
    patch_size: float,
    tiles: Sequence[int] | None,
    status: JobStatus,
    writer: feature_cache.Writer | None,
) -> None:
    """Computes the features and passes them to the writer; None in processes that only compute."""
    task, sampled = start.network.task, sampled_subpatches(data.config.cache, start.network.task)
    total = 0
    for _, (features, labels) in pass_over_split(
        data,
        split,
        (patch_size,),
        _program(start.network, stored_dtype(start.network), data.mesh),
        {"encoder": put_params(start.params["encoder"], data.mesh)},
        lambda batch: with_labels(batch, task, sampled),
        lambda outputs: int(np.asarray(outputs[1]["valid"]).sum()),
        status,
        state="extracting",
        title=f"features of {split} at {patch_size:g} m",
        tiles=tiles,
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

    def compute(params: Params, batch: Batch) -> tuple[Array, dict[str, Array]]:
        features = network_features(network, params, batch)
        if "sampled" in batch.labels:
            features = take_subpatches(features, batch.labels["sampled"])
        return features.astype(dtype), batch.labels

    return Compiled(jax.jit(compute, out_shardings=replicated(mesh)))


# ---------------------------------------------------------------- batches of features


@flax.struct.dataclass
class FeatureBatch:
    """Batch of frozen features, the counterpart of `Batch` for observations."""

    features: Float[Array, "B *hw F"]  # (B, F), or (B, h, w, F) for a dense task; float32 or bfloat16
    # Of the task's level, and "index" (B,); in an evaluation "valid" (B,), False for padding.
    labels: dict[str, Shaped[Array, "B ..."]]
    dataset: str = flax.struct.field(pytree_node=False, default="")  # the dataset's name; static
    patch_size: float = flax.struct.field(pytree_node=False, default=10.0)  # side of a patch in metres; static

    @property
    def batch_size(self) -> int:
        return len(self.features)


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Frozen features of a split at one or several patch sizes."""

    task: Task  # of the labels
    # Features by patch size in metres: the same samples in the same order.
    sizes: Mapping[float, feature_cache.Features]

    def __len__(self) -> int:
        return len(next(iter(self.sizes.values())))

    def rows(self, rows: Int[np.ndarray, "B"], patch_size: float) -> FeatureBatch:
        """Returns a batch of some samples."""
        one = self.sizes[patch_size]
        labels = {self.task.level: np.asarray(one.labels[rows]), "index": np.asarray(one.index[rows])}
        return FeatureBatch(np.asarray(one.features[rows]), labels, self.task.dataset, patch_size)

    def training(self, options: DatasetOptions, seed: int, shard: HostShard) -> StepIterator:
        """Returns this process' part of the endless training batches; their position is a number of batches.

        `options` has batch size and patch sizes; `seed` is that of the order and of the choice of patch sizes.
        """

        def make(picks: Sequence[Pick], together: Sequence[int], patch_size: float) -> FeatureBatch:
            return self.rows(np.asarray([row for row, _ in picks]), patch_size)

        # Rows are sampled as tiles are: a resumed run continues at a number of batches.
        stream = Stream(len(self), options, make, seed, shard)
        return StepIterator(grain.MapDataset.range(sys.maxsize).map(stream))

    def in_order(self, batch_size: int, mesh: Mesh) -> Iterator[list[FeatureBatch]]:
        """Yields every sample once, at each patch size, on the devices; the label "valid" is False for padding.

        `batch_size` is that of all processes; it is rounded up to a multiple of the mesh's devices.
        """
        size = whole_batch(batch_size, mesh)
        for first in range(0, len(self), size):
            wanted = first + host_shard(mesh).rows(size)
            # Padded with the last sample, so that every batch has the shape of the one compiled program.
            rows, valid = np.minimum(wanted, len(self) - 1), wanted < len(self)
            batches = [self.rows(rows, patch_size) for patch_size in self.sizes]
            yield [put_batch(one.replace(labels=one.labels | {"valid": valid}), mesh) for one in batches]


# ---------------------------------------------------------------- tile and dense features in one pass


@flax.struct.dataclass
class FrozenFeatures:
    """Frozen features for the probes of a pretraining."""

    tile: Float[Array, "B D"]  # the tile's vector
    # By sensor, map of [patch vector, sub-patch feature] of its sub-patches.
    dense: dict[str, Float[Array, "B h w 2*D"]]


Extractor = Callable[[Params, Batch], FrozenFeatures]


def make_extractor(config: ModelConfig, dense_sensors: tuple[str, ...]) -> Extractor:
    """Returns a compiled function of (encoder parameters, batch) -> features, with maps of the given sensors it has."""

    def forward(encoder: Encoder, batch: Batch) -> FrozenFeatures:
        embedded = encoder.embed(batch, dense=dense_sensors)
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

    # Without labels, whose shapes may differ from dataset to dataset, fewer programs are compiled.
    return lambda params, batch: extract(params, batch.replace(labels={}))

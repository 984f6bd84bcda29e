"""Ahead-of-time compilation of the training step for TPUs that are not attached; results are cached in files.

`launch.aot` runs it in a child process, because libtpu ends the whole process over an unknown topology.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import msgspec
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from anysat_jax import flops
from anysat_jax.batch import Batch
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import MASK_SPECS, MaskConfig, PatchMasks, static_sizes
from anysat_jax.pretrain.step import abstract_state, make_train_step, pretraining_optimizer
from anysat_jax.sensors import get_sensor
from anysat_jax.train.config import flatten
from anysat_jax.train.sharding import batch_sharding, check_heads, make_mesh, replicated
from data_pipelines.load import read_options
from data_pipelines.options import DatasetOptions
from data_pipelines.transforms import TileTransform, padded_lengths

from .chips import Topology, libtpu_version, topology_devices
from .hlo import Collective, Program

LONGEST = {
    "treesatai_ts": {"s2": 146, "s1-asc": 60},
    "pastis_hd": {"s2": 61, "s1": 70},
    "flair": {"s2": 110},
    "planted": {"s2": 8, "s1": 8, "l7": 20, "alos": 4, "modis": 60},
    "s2naip": {"s2": 32, "s1": 8, "l8": 4},
}
"""Dates of the longest series of each dataset, from its card's text; prepared data have their own numbers."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One program of the step: a dataset, a patch size in metres, and the tiles of a step over all chips."""

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
    """Returns every (dataset, patch size) of a config, in its order, with its batch size.

    `only` has names of datasets or of single cases, "pastis_hd,flair-20"; "" for all.

    Raises:
      ConfigError: a name is unknown, or a dataset of the config is invalid.
    """
    try:
        # From cards and config alone: an estimate needs no data on disk.
        options = read_options(config.data).values()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    cases = [Case(one, size, one.batch_size) for one in options for size in one.patch_sizes]
    wanted = [name for name in only.split(",") if name]
    known = {name for case in cases for name in (case.dataset, case.name)}
    if strangers := [name for name in wanted if name not in known]:
        raise ConfigError(f"--only={strangers[0]}: the config has no such dataset; it has {', '.join(sorted(known))}")
    return [case for case in cases if not wanted or case.dataset in wanted or case.name in wanted]


def settings_of(config: ConfigDict) -> PretrainConfig:
    """Returns the config's sections; a model that names no sensors has those of the datasets."""
    cards = [one.card for one in read_options(config.data).values()]
    return PretrainConfig.read(config).with_sensors(config.model.sensors, cards)


def batch_shapes(case: Case) -> Batch:
    """Returns a case's batch of shapes as in training: pixel masks, padded dates, sensors that may be missing.

    Raises:
      ConfigError: the number of dates of the dataset's series is unknown.
    """
    card, sampling = case.options.card, case.options.sampling
    series = [name for name in card.sensors if get_sensor(name).has_dates]
    # Only the longest series matters: a program has padded dates, and memory grows with their number.
    known = LONGEST.get(card.name, {})
    longest = {name: known.get(name, sampling.limit) for name in series}
    if missing := [name for name in series if longest[name] is None]:
        raise ConfigError(
            f"the number of dates of {missing[0]!r} in {card.name!r} is unknown; "
            f"set data.datasets.{card.name}.max_dates"
        )
    lengths = padded_lengths(longest, sampling, training=True)
    one = TileTransform(card, {}, sampling).empty_batch(1, lengths, case.patch_size).replace(labels={})
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct((case.batch_size, *array.shape[1:]), array.dtype), one)


def mask_shapes(model: ModelConfig, batch: Batch, config: MaskConfig) -> PatchMasks:
    """Returns the patch masks of those static sizes that take most FLOPs."""
    return max(possible_masks(batch, config), key=lambda masks: flops.step_flops(model, batch, masks))


def possible_masks(batch: Batch, config: MaskConfig) -> list[PatchMasks]:
    """Returns masks of all pairs of static sizes, see `pretrain.masking.sample_patch_masks`."""
    shape, tiles, single = jax.ShapeDtypeStruct, batch.batch_size, batch.grid == (1, 1)
    # A single patch is the context and the one target block.
    blocks, sizes = (1, {1: [1]}) if single else (config.num_target_blocks, static_sizes(batch.grid, config))
    return [
        PatchMasks(
            context_index=shape((tiles, context), np.int32),
            context_mask=shape((tiles, context), np.bool_),
            target_index=shape((blocks, tiles, target), np.int32),
            target_mask=shape((target,), np.bool_),
        )
        for target, contexts in sizes.items()
        for context in contexts
    ]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One compiled program, or one that does not fit."""

    # topology, dataset, patch_size, batch_size: what was compiled.
    topology: str
    dataset: str
    patch_size: float
    batch_size: int
    mesh: tuple[int, int, int]  # sizes of the axes data, fsdp, tensor
    settings: dict[str, Any]  # accumulate, remat, negatives
    fits: bool
    peak: float  # bytes of a chip's memory at its maximum; where the program does not fit, what it needs
    limit: float | None = None  # bytes available to XLA; None where unknown
    state: float = 0.0  # bytes of the arguments on each chip: parameters, teacher, optimizer, batch
    # Bytes that a chip reads from and writes to its memory in a step, see `hlo.Program.memory_traffic`.
    traffic: float = 0.0
    collectives: tuple[Collective, ...] = ()  # messages of one step
    seconds: float = 0.0  # compile time on this machine
    versions: str = ""  # of jax and libtpu

    @property
    def tiles_per_chip(self) -> float:
        return self.batch_size / math.prod(self.mesh)

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def write(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))
        # Renamed when whole: a start after an interruption would take half a file for a measurement.
        part.replace(path)


def mesh_shape(config: ConfigDict, topology: Topology) -> tuple[int, int, int]:
    """Returns the sizes of the axes data, fsdp and tensor on a slice.

    Raises:
      ConfigError: their product is not the number of chips.
    """
    fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
    data = config.mesh.data or max(1, topology.chips // (fsdp * tensor))
    if data * fsdp * tensor != topology.chips:
        raise ConfigError(
            f"mesh.data x mesh.fsdp x mesh.tensor = {data} x {fsdp} x {tensor} is not the {topology.chips} chips of "
            f"{topology.name}; change one of them"
        )
    return data, fsdp, tensor


def batch_unit(config: ConfigDict, topology: Topology) -> int:
    """Returns the number of tiles of which batch sizes on a slice are multiples."""
    data, fsdp, _ = mesh_shape(config, topology)
    return data * fsdp * config.accumulate


@dataclasses.dataclass(frozen=True)
class Results:
    """The measurements of one config, each in a file below `folder`."""

    config: ConfigDict
    folder: pathlib.Path
    quick: bool = False  # whether XLA optimised the programs little; these have files of their own

    def path(self, topology: Topology, case: Case) -> pathlib.Path:
        """Returns the file of a case's measurements."""
        mesh = "x".join(map(str, mesh_shape(self.config, topology)))
        name = f"{case.name}-b{case.batch_size}-m{mesh}-{self._key(case)}.json"
        return self.folder / topology.name.replace(":", "-") / name

    def largest(self, topology: Topology, case: Case) -> tuple[int, bool]:
        """Returns the largest batch of a case that fits, 0 for none, and whether it is predicted from others."""
        path, unit = self.path(topology, case), batch_unit(self.config, topology)
        every_batch = path.name.replace(f"-b{case.batch_size}-", "-b*-")
        known = [Measured.read(one) for one in path.parent.glob(every_batch)]
        fits, fails = bounds(known)
        if found(fits, fails, unit):
            return fits, False
        return max(fits, predicted(known, unit, topology.chip.usable_memory)), True

    def like(self, case: Case, tiles_per_chip: float) -> Measured | None:
        """Returns the data-parallel program of the case on any slice with the nearest number of tiles on a chip."""
        paths = self.folder.glob(f"*/{case.name}-b*-m*x1-{self._key(case)}.json")
        found = [one for one in map(Measured.read, paths) if one.fits and one.mesh[1] == 1]
        return min(found, key=lambda one: abs(math.log(one.tiles_per_chip / tiles_per_chip)), default=None)

    def _key(self, case: Case) -> str:
        """Returns a digest of the values that the program depends on, without batch size and mesh."""
        section = self.config.data.datasets[case.dataset].to_dict()
        # Batch size and mesh are in the file's name; weight and patch sizes of other cases change no program.
        free = {"batch_size": None, "weight": None, "patch_sizes": None}
        parts = [self.config.model.to_dict(), self.config.pretrain.to_dict(), section | free]
        parts += [self.config.dtype, self.config.accumulate, self.config.optimizer.to_dict()]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return f"{digest}-quick" if self.quick else digest


TOLERANCE = 1 / 16  # the search ends when a batch larger by this fraction does not fit
MOST_TRIES = 6  # programs that one search compiles


def bounds(known: Sequence[Measured]) -> tuple[int, int | None]:
    """Returns the largest batch known to fit, 0 for none, and the smallest known not to."""
    fits = max((one.batch_size for one in known if one.fits), default=0)
    return fits, min((one.batch_size for one in known if not one.fits), default=None)


def found(fits: int, fails: int | None, unit: int) -> bool:
    """Returns whether the bounds differ by one unit, or within the tolerance."""
    return fails is not None and fails - fits <= max(unit, TOLERANCE * fits)


def search(measure: Callable[[int], Measured], first: Measured, unit: int, limit: float) -> tuple[int, int | None]:
    """Returns the bounds of the largest batch that fits into `limit` bytes, multiples of `unit`.

    Memory grows about linearly.
    """
    tried = {first.batch_size: first}
    while True:
        fits, fails = bounds(list(tried.values()))
        if found(fits, fails, unit) or len(tried) >= MOST_TRIES:
            return fits, fails
        # Within the bounds: outside of them the answer is known.
        guess = max(fits + unit, predicted(list(tried.values()), unit, limit))
        guess = guess if fails is None else min(guess, fails - unit)
        tried[guess] = measure(guess)


def predicted(measured: Sequence[Measured], unit: int, limit: float) -> int:
    """Returns the batch that just fits, on a line through the last two measurements, or through one and its state."""
    last = sorted(measured, key=lambda one: one.batch_size)[-2:]
    if len(last) == 1:
        # The state does not grow with the batch, so only the rest is divided by it.
        slope = max(1.0, last[0].peak - last[0].state) / last[0].batch_size
    else:
        slope = max(1.0, last[1].peak - last[0].peak) / (last[1].batch_size - last[0].batch_size)
    room = last[0].batch_size + (limit - last[0].peak) / slope
    return max(unit, int(room // unit) * unit)


QUICK = {"optimization_level": "O0"}
"""Options of XLA: compiling takes a quarter of the time, and the program moves a third more through memory."""


class Compiler:
    """Compiles the cases of one config for one topology and writes their measurements."""

    def __init__(self, topology: Topology, results: Results):
        """Makes the config's mesh of the topology's devices.

        Raises:
          ConfigError: the mesh does not fit the topology or the model.
        """
        self.topology, self.results = topology, results
        self.settings = settings_of(results.config)
        self.mesh: Mesh = make_mesh(self.settings.mesh, topology_devices(topology.name))
        check_heads(self.settings.model, self.mesh)

    def measure(self, case: Case) -> Measured:
        """Returns the case's measurements, from its file if there is one."""
        path = self.results.path(self.topology, case)
        if path.exists():
            return Measured.read(path)
        print(f"{self.topology.name}: compiling {case.name}, batch {case.batch_size}", file=sys.stderr, flush=True)
        measured = self._compile(case)
        # Each program holds gigabytes of this machine's memory.
        jax.clear_caches()
        measured.write(path)
        return measured

    def largest(self, case: Case, first: Measured) -> tuple[int, int | None]:
        """Returns the bounds of the largest batch that fits, by compiling."""
        unit, limit = batch_unit(self.results.config, self.topology), self.topology.chip.usable_memory
        return search(lambda size: self.measure(case.with_batch(size)), first, unit, limit)

    def _compile(self, case: Case) -> Measured:
        flat = flatten(self.results.config)
        chosen = {name: flat[name] for name in ("accumulate", "model.remat", "pretrain.negatives")}
        known = dict(topology=self.topology.name, dataset=case.dataset, patch_size=case.patch_size, settings=chosen)
        known |= dict(batch_size=case.batch_size, mesh=tuple(self.mesh.shape.values()))
        known |= dict(versions=f"jax {jax.__version__}, libtpu {libtpu_version()}")
        start = time.monotonic()
        try:
            compiled = self.lower(case).compile(QUICK if self.results.quick else None)
        except jax.errors.JaxRuntimeError as error:
            used, limit = out_of_memory(str(error))
            return Measured(**known, fits=False, peak=used, limit=limit, seconds=time.monotonic() - start)
        seconds, memory = time.monotonic() - start, compiled.memory_analysis()
        program = Program.parse(compiled.as_text())
        return Measured(
            **known,
            fits=True,
            peak=float(memory.peak_memory_in_bytes),
            state=float(memory.argument_size_in_bytes),
            traffic=program.memory_traffic(),
            collectives=tuple(program.collectives()),
            seconds=seconds,
        )

    def lower(self, case: Case) -> jax.stages.Lowered:
        """Lowers the step with shapes, shardings and donation of `pretrain.train`."""
        config, mesh = self.settings, self.mesh
        batch = batch_shapes(case)
        masks = mask_shapes(config.model, batch, config.pretrain)
        specs = {name: NamedSharding(mesh, spec) for name, spec in MASK_SPECS.items()}
        masks = masks.replace(**{name: getattr(masks, name).update(sharding=at) for name, at in specs.items()})
        batch = jax.tree.map(lambda one: one.update(sharding=batch_sharding(mesh)), batch)
        optimizer = pretraining_optimizer(config)
        state = abstract_state(config.model, optimizer, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = make_train_step(config, optimizer, mesh)
        # The donated state shares its memory with the new one; without it the program would need both.
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))).lower(state, batch, masks)


def out_of_memory(message: str) -> tuple[float, float]:
    """Reads from XLA's message how many bytes a program needs and how many there are.

    Raises:
      ConfigError: the message is about something else.
    """
    found = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        raise ConfigError(f"XLA cannot compile the step: {message.splitlines()[0]}")
    units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    return float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]

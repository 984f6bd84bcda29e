"""Compiles the training step for chips that are not there: what `launch.aot` runs in a process of its own.

libtpu ends the whole process over a topology that it does not know. Each program's measurements go to a file as soon as
they are known, and what has a file is not compiled again.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from anysat_jax import flops
from anysat_jax.batch import Batch
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import MASK_SPECS, MaskConfig, PatchMasks, context_sizes, target_sizes
from anysat_jax.pretrain.step import abstract_state, make_train_step, pretraining_optimizer
from anysat_jax.sensors import SENSORS, get_sensor
from anysat_jax.train import config as settings
from anysat_jax.train.sharding import batch_parts, batch_sharding, check_heads, make_mesh, replicated
from data_pipelines.load import read_options
from data_pipelines.options import DatasetOptions
from data_pipelines.transforms import TileTransform, padded_lengths

from .chips import Chip, Topology
from .hlo import Collective, Program

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
        options = read_options(config.data).values()
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
        wanted = {sensor for one in read_options(config.data).values() for sensor in one.card.sensors}
        config.model.sensors = tuple(name for name in SENSORS if name in wanted)
    return settings.model_config(config)


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


Mesh = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One compiled program, or one that does not fit.

    Attributes:
      topology, dataset, patch_size, batch_size: what was compiled.
      mesh: sizes of the axes data, fsdp, tensor.
      settings: what else matters: accumulate, remat, negatives.
      fits: whether it did.
      peak: bytes of a chip's memory at the fullest moment; where it does not fit, what it would take.
      limit: bytes that XLA may use; None where it did not say.
      state: bytes of the arguments on each chip: parameters, teacher, optimizer, batch.
      traffic: bytes that a chip reads from and writes to its memory in a step, see `hlo.Program.memory_traffic`.
      collectives: messages of one step.
      seconds: that compiling took here.
      versions: of jax and libtpu.
    """

    topology: str
    dataset: str
    patch_size: float
    batch_size: int
    mesh: Mesh
    settings: dict[str, Any]
    fits: bool
    peak: float
    limit: float | None = None
    state: float = 0.0
    traffic: float = 0.0
    collectives: tuple[Collective, ...] = ()
    seconds: float = 0.0
    versions: str = ""

    @property
    def tiles_per_chip(self) -> float:
        return self.batch_size / math.prod(self.mesh)

    @classmethod
    def read(cls, path: pathlib.Path) -> Self:
        values = json.loads(path.read_text())
        collectives = tuple(Collective(**one) for one in values.pop("collectives"))
        return cls(**values | {"mesh": tuple(values["mesh"]), "collectives": collectives})

    def write(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        part.replace(path)


def mesh_shape(config: ConfigDict, topology: Topology) -> Mesh:
    """Sizes of the axes data, fsdp and tensor on a slice.

    Raises:
      ConfigError: they do not make up the slice.
    """
    fsdp, tensor = config.mesh.fsdp, config.mesh.get("tensor", 1)
    data = config.mesh.data or max(1, topology.chips // (fsdp * tensor))
    if data * fsdp * tensor != topology.chips:
        raise ConfigError(
            f"mesh.data x mesh.fsdp x mesh.tensor = {data} x {fsdp} x {tensor} is not the {topology.chips} chips of "
            f"{topology.name}; change one of them"
        )
    return data, fsdp, tensor


@dataclasses.dataclass(frozen=True)
class Results:
    """The measurements of one config, each in a file below `folder`.

    Attributes:
      quick: whether they are of programs that XLA optimised little; those are kept apart.
    """

    config: ConfigDict
    folder: pathlib.Path
    quick: bool = False

    def path(self, topology: Topology, case: Case) -> pathlib.Path:
        """Where a case's measurements are kept."""
        mesh = "x".join(map(str, mesh_shape(self.config, topology)))
        name = f"{case.name}-b{case.batch_size}-m{mesh}-{self._key(case)}.json"
        return self.folder / topology.name.replace(":", "-") / name

    def of_all_batches(self, topology: Topology, case: Case) -> list[Measured]:
        """What is known of a case on a slice and mesh, smallest batch first."""
        pattern = self.path(topology, case).name.replace(f"-b{case.batch_size}-", "-b*-")
        found = [Measured.read(path) for path in self.path(topology, case).parent.glob(pattern)]
        return sorted(found, key=lambda one: one.batch_size)

    def like(self, case: Case, tiles_per_chip: float) -> Measured | None:
        """A program of the case on any slice, each tile on one chip, whose chips have about so many tiles."""
        paths = self.folder.glob(f"*/{case.name}-b*-m*x1-{self._key(case)}.json")
        found = [one for one in map(Measured.read, paths) if one.fits and one.mesh[1] == 1]
        return min(found, key=lambda one: abs(math.log(one.tiles_per_chip / tiles_per_chip)), default=None)

    def _key(self, case: Case) -> str:
        """Tells configs apart by what the program depends on, but for batch size and mesh."""
        section = self.config.data.datasets[case.dataset].to_dict()
        free = {"batch_size": None, "weight": None, "patch_sizes": None}
        parts = [self.config.model.to_dict(), self.config.pretrain.to_dict(), section | free]
        parts += [self.config.dtype, self.config.get("accumulate", 1), self.config.optimizer.to_dict()]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return f"{digest}-quick" if self.quick else digest


SYSTEM_MEMORY = 2.0**28  # bytes of a TPU's memory that XLA leaves alone
NEAR = 1 / 16  # a largest batch is known well enough when so much more does not fit
MOST_TRIES = 6  # programs that the search for one compiles


def usable_memory(chip: Chip) -> float:
    """Bytes that a program may use."""
    return chip.memory - SYSTEM_MEMORY


def bounds(known: Sequence[Measured]) -> tuple[int, int | None]:
    """The largest batch that was seen to fit, 0 for none, and the smallest that was seen not to."""
    fits = max((one.batch_size for one in known if one.fits), default=0)
    return fits, min((one.batch_size for one in known if not one.fits), default=None)


def found(fits: int, fails: int | None, unit: int) -> bool:
    """Whether these bounds are as near to each other as anyone wants to know."""
    return fails is not None and fails - fits <= max(unit, NEAR * fits)


def search(measure: Callable[[int], Measured], first: Measured, unit: int, limit: float) -> tuple[int, int | None]:
    """The largest batch that fits and the smallest seen not to, multiples of `unit`: memory grows about linearly.

    Args:
      limit: bytes that a program may use.
    """
    tried = {first.batch_size: first}
    while True:
        fits, fails = bounds(list(tried.values()))
        if found(fits, fails, unit) or len(tried) >= MOST_TRIES:
            return fits, fails
        guess = between(fits, fails, unit, predicted(list(tried.values()), unit, limit))
        tried[guess] = measure(guess)


def between(fits: int, fails: int | None, unit: int, guess: int) -> int:
    """A guess, moved to where nobody has looked."""
    guess = max(fits + unit, guess)
    return guess if fails is None else min(guess, fails - unit)


def predicted(measured: Sequence[Measured], unit: int, limit: float) -> int:
    """The batch that just fits, by a line through the last two measurements, or through one and the state alone."""
    last = sorted(measured, key=lambda one: one.batch_size)[-2:]
    if len(last) == 1:
        slope = max(1.0, last[0].peak - last[0].state) / last[0].batch_size
    else:
        slope = max(1.0, last[1].peak - last[0].peak) / (last[1].batch_size - last[0].batch_size)
    room = last[0].batch_size + (limit - last[0].peak) / slope
    return max(unit, int(room // unit) * unit)


QUICK = {"exec_time_optimization_effort": -1.0}
"""Of XLA: a quarter of the time to compile, for a program that moves about a third more through memory."""


class Compiler:
    """Compiles the cases of one config for one topology, and keeps what it measured."""

    def __init__(self, config: ConfigDict, topology: Topology, results: Results):
        """Lays the config's mesh over the topology.

        Args:
          results: where measurements are kept, and whether XLA should hurry.

        Raises:
          ConfigError: the mesh does not fit the topology or the model.
        """
        self.config, self.topology, self.results = config, topology, results
        self.model: ModelConfig = model_of(config)
        self.settings = dataclasses.replace(PretrainConfig.read(config), model=self.model)
        self.mesh: Mesh = make_mesh(self.settings.mesh, topology_devices(topology.name))
        check_heads(self.model, self.mesh)

    @property
    def unit(self) -> int:
        """Every batch is a multiple of it."""
        return batch_parts(self.mesh) * self.config.get("accumulate", 1)

    def measure(self, case: Case) -> Measured:
        """The case's measurements, from its file if there is one."""
        path = self.results.path(self.topology, case)
        if path.exists():
            return Measured.read(path)
        print(f"{self.topology.name}: compiling {case.name}, batch {case.batch_size}", file=sys.stderr, flush=True)
        measured = self._compile(case)
        jax.clear_caches()  # each program holds gigabytes of this machine's memory
        measured.write(path)
        return measured

    def largest(self, case: Case, first: Measured) -> tuple[int, int | None]:
        """The largest batch that fits (0 for none) and the smallest that was seen not to, by compiling."""

        def measure(batch_size: int) -> Measured:
            return self.measure(case.with_batch(batch_size))

        return search(measure, first, self.unit, usable_memory(self.topology.chip))

    def _compile(self, case: Case) -> Measured:
        known = dict(topology=self.topology.name, dataset=case.dataset, patch_size=case.patch_size)
        known |= dict(batch_size=case.batch_size, mesh=tuple(self.mesh.shape.values()), settings=self._settings())
        known |= dict(versions=f"jax {jax.__version__}, libtpu {libtpu_version()}")
        start = time.monotonic()
        try:
            compiled = self._lower(case).compile(QUICK if self.results.quick else None)
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

    def _lower(self, case: Case) -> Any:
        """The step as training jits it, see `train.loop.train`."""
        config, model, mesh = self.settings, self.model, self.mesh
        batch = batch_shapes(case)
        masks = mask_shapes(model, batch, config.pretrain)
        batch, masks = on_mesh(batch, masks, mesh)
        optimizer = pretraining_optimizer(config)
        state = abstract_state(model, optimizer, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = jax.jit(
            make_train_step(config, optimizer, mesh), donate_argnums=0, out_shardings=(shardings, replicated(mesh))
        )
        return step.lower(state, batch, masks)

    def _settings(self) -> dict[str, Any]:
        flat = settings.flatten(self.config)
        return {name: flat[name] for name in ("accumulate", "model.remat", "pretrain.negatives") if name in flat}


def out_of_memory(message: str) -> tuple[float, float]:
    """Bytes that a program would take and those that there are, from XLA's message.

    Raises:
      ConfigError: the message is about something else.
    """
    found = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        raise ConfigError(f"XLA cannot compile the step: {message.splitlines()[0]}")
    units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
    return float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]


def topology_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU topology, of which none needs to be there.

    Raises:
      ConfigError: libtpu is not installed, or refuses the topology.
    """
    libtpu_version()
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"libtpu refuses --topology={topology}: {str(error).splitlines()[0]}") from None


def libtpu_version() -> str:
    """The installed version.

    Raises:
      ConfigError: there is none.
    """
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise ConfigError("compiling for TPUs needs libtpu: pip install -e '.[tpu]'; no TPU is needed") from None

"""Roofline estimates of training steps on slices of chips, and their tables as text, JSON and Markdown."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from anysat_jax import flops
from anysat_jax.batch import Batch
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import is_context
from anysat_jax.model.init import count_parameters, student_shapes
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import PatchMasks

from .aot_compile import (
    Case,
    Measured,
    Results,
    batch_shapes,
    bounds,
    found,
    mask_shapes,
    mesh_shape,
    model_of,
    predicted,
)
from .chips import GIB, Topology
from .hlo import Collective


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of one step on all chips together.

    Attributes:
      parts: what counts for MFU, see `flops.step_flops_by_part`; the contrastive part is done in float32.
      again: FLOPs that rematerialisation adds.
      tiles: of the step.
    """

    parts: dict[str, float]
    again: float
    tiles: int

    @property
    def model(self) -> float:
        return sum(self.parts.values())

    @property
    def per_tile(self) -> float:
        return self.model / self.tiles

    def seconds(self, slice_: Topology) -> float:
        """Returns the time at the chips' peak rates, evenly shared."""
        precise = self.parts["contrastive"]
        fast = self.model - precise + self.again
        return (fast / slice_.chip.flops + precise / slice_.chip.flops32) / slice_.chips


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step for compute, memory and network, each at its peak rate.

    Attributes:
      compute, memory, network: products; reading and writing memory; messages between chips.
      work: of the step.
      peak: FLOP/s of all chips.
      messages: of the step.
    """

    compute: float
    memory: float
    network: float
    work: Work
    peak: float
    messages: tuple[Collective, ...]

    @property
    def least(self) -> float:
        """Lower bound of the step time: all three overlap."""
        return max(self.compute, self.memory, self.network)

    @property
    def one_by_one(self) -> float:
        """Step time where messages overlap with nothing."""
        return max(self.compute, self.memory) + self.network

    @property
    def mfu(self) -> float:
        """Upper bound of the model FLOP utilisation."""
        return self.work.model / (self.peak * self.least)

    @property
    def bound(self) -> str:
        """The longest of "compute", "memory" and "network"."""
        return max(("compute", "memory", "network"), key=lambda part: getattr(self, part))


def work_of(config: ConfigDict, model: ModelConfig, case: Case, batch_parts: int) -> Work:
    """Returns the FLOPs of a step.

    Args:
      batch_parts: number of devices that share a batch.
    """
    batch, masks = shapes_of(config, model, case)
    parts = negative_parts(config, batch_parts)
    by_part = flops.step_flops_by_part(model, batch, masks, mask_dates=config.pretrain.mask_dates, negative_parts=parts)
    again = flops.recomputed_flops(model, batch, masks) if model.remat == "full" else 0.0
    return Work(by_part, again, case.batch_size)


def shapes_of(config: ConfigDict, model: ModelConfig, case: Case) -> tuple[Batch, PatchMasks]:
    """Returns the case's batch and its most expensive masks, as shapes."""
    batch = batch_shapes(case)
    return batch, mask_shapes(model, batch, PretrainConfig.read(config).pretrain)


def negative_parts(config: ConfigDict, batch_parts: int) -> int:
    """Returns the number of parts of a batch with negatives of their own in the contrastive loss."""
    per_device = batch_parts if config.pretrain.get("negatives", "global") == "device" else 1
    return per_device * config.get("accumulate", 1)


def compiled_estimate(measured: Measured, work: Work, slice_: Topology) -> Estimate:
    """Returns the estimate from a compiled program's memory traffic and messages."""
    return _estimate(work, slice_, measured.traffic, measured.collectives)


def paper_estimate(config: ConfigDict, model: ModelConfig, case: Case, slice_: Topology, traffic: float) -> Estimate:
    """Returns the analytic estimate, without compiling, for data parallelism.

    Args:
      traffic: bytes of memory that the whole step reads and writes, on all chips.

    Raises:
      ConfigError: the config also shards the model.
    """
    if config.mesh.fsdp * config.mesh.get("tensor", 1) > 1:
        raise ConfigError("the analytic estimate covers data parallelism only; set mesh.fsdp and mesh.tensor to 1")
    work = work_of(config, model, case, slice_.chips)
    messages = paper_messages(config, model, case, slice_.chips)
    return _estimate(work, slice_, traffic / slice_.chips, tuple(messages))


def paper_messages(config: ConfigDict, model: ModelConfig, case: Case, chips: int) -> list[Collective]:
    """Returns the messages of data parallelism: gradients in the compute dtype, contrastive tokens in float32."""
    if chips == 1:
        return []
    used = tuple(name for name in model.sensors if name in case.options.card.sensors)
    gradients = _parameters(dataclasses.replace(model, sensors=used)) * model.compute_dtype.itemsize
    messages = [Collective("all-reduce", chips, 1, float(gradients))]
    if config.pretrain.get("negatives", "global") == "global":
        batch = batch_shapes(case)
        sensors = sum(not is_context(name) for name in batch.sensors)
        tokens = case.batch_size * sensors * math.prod(batch.grid)
        # The loss gathers them forward and backward, of which XLA makes one.
        messages.append(Collective("all-gather", chips, 1, tokens * model.dim * 4.0))
    return messages


@functools.lru_cache
def _parameters(model: ModelConfig) -> int:
    return count_parameters(student_shapes(model))


def _estimate(work: Work, slice_: Topology, traffic: float, messages: tuple[Collective, ...]) -> Estimate:
    memory = traffic / slice_.chip.bandwidth
    network = sum(one.sent / slice_.ring_bandwidth(one.group) for one in messages)
    return Estimate(work.seconds(slice_), memory, network, work, slice_.chips * slice_.chip.flops, messages)


ABOUT = "about "  # before a predicted largest batch


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one slice.

    Attributes:
      mesh: sizes of the axes data, fsdp, tensor.
      fits: None where its memory is unknown.
      peak: maximum of the bytes used of a chip's memory; memory: bytes that a chip has.
      largest: the largest batch that fits, 0 for none; guessed: predicted from compiled ones, whose bounds are too far
        apart.
      flops_per_tile: of the model, forward and backward, counted analytically; by part.
      collectives: messages of one step.
      intensity: FLOPs per byte of memory traffic.
      step_ms: lower bound; bound: compute, memory or network; mfu: upper bound of the model FLOP utilisation.
      one_by_one_ms: step time where messages overlap with nothing.
      network_ms: part of it for messages.
      about: source of memory and traffic, if not this very program.
    """

    topology: str
    mesh: tuple[int, int, int]
    dataset: str
    patch_size: float
    batch_size: int
    fits: bool | None
    peak: float | None
    memory: float
    largest: int | None
    guessed: bool
    flops_per_tile: dict[str, float]
    collectives: tuple[Collective, ...]
    intensity: float | None
    step_ms: float | None
    bound: str
    mfu: float | None
    one_by_one_ms: float | None
    network_ms: float | None
    about: str = ""

    @property
    def sent(self) -> float:
        """Bytes sent by each chip in a step."""
        return sum(one.sent for one in self.collectives)


def compiled_row(results: Results, case: Case, topology: Topology) -> Row:
    """Returns the row of a compiled program."""
    measured = Measured.read(results.path(topology, case))
    known = results.of_all_batches(topology, case)
    data, fsdp, _ = measured.mesh
    unit = data * fsdp * results.config.get("accumulate", 1)
    fits, fails = bounds(known)
    exact = found(fits, fails, unit)
    model = model_of(results.config)
    work = work_of(results.config, model, case, data * fsdp)
    estimate = compiled_estimate(measured, work, topology) if measured.fits else None
    return Row(
        **_place(case, topology, measured.mesh),
        fits=measured.fits,
        peak=measured.peak,
        largest=fits if exact else max(fits, predicted(known, unit, topology.chip.usable_memory)),
        guessed=not exact,
        flops_per_tile=_per_tile(work),
        collectives=measured.collectives,
        intensity=work.model / topology.chips / measured.traffic if measured.traffic else None,
        **_times(estimate),
    )


def paper_row(results: Results, case: Case, topology: Topology) -> Row:
    """Returns the row of a program that is not compiled: memory and traffic are scaled from a similar one for TPUs."""
    config, model = results.config, model_of(results.config)
    mesh = mesh_shape(config, topology)
    similar = results.like(case, case.batch_size / topology.chips)
    estimate = paper_estimate(config, model, case, topology, _traffic(similar, case))
    peak = None if similar is None else _scaled_peak(similar, case.batch_size / topology.chips)
    return Row(
        **_place(case, topology, mesh),
        fits=None if peak is None else peak < topology.chip.memory,
        peak=peak,
        largest=None,
        guessed=True,
        flops_per_tile=_per_tile(estimate.work),
        collectives=tuple(estimate.messages),
        intensity=None if similar is None else estimate.work.model / _traffic(similar, case),
        about="" if similar is None else f"{similar.topology}, {similar.tiles_per_chip:g} tiles a chip",
        **_times(estimate),
    )


def _per_tile(work: Work) -> dict[str, float]:
    return {part: flops / work.tiles for part, flops in work.parts.items()}


def _place(case: Case, topology: Topology, mesh: tuple[int, int, int]) -> dict[str, object]:
    what = dict(dataset=case.dataset, patch_size=case.patch_size, batch_size=case.batch_size)
    return dict(topology=topology.name, mesh=mesh, memory=topology.chip.memory) | what


def _times(estimate: Estimate | None) -> dict[str, object]:
    if estimate is None:
        return dict(step_ms=None, bound="", mfu=None, one_by_one_ms=None, network_ms=None)
    times = dict(step_ms=estimate.least, one_by_one_ms=estimate.one_by_one, network_ms=estimate.network)
    return {name: 1e3 * value for name, value in times.items()} | dict(bound=estimate.bound, mfu=estimate.mfu)


def _traffic(similar: Measured | None, case: Case) -> float:
    """Returns the memory traffic of all chips together in a step, bytes; 0 where unknown."""
    return 0.0 if similar is None else similar.traffic * math.prod(similar.mesh) * case.batch_size / similar.batch_size


def _scaled_peak(similar: Measured, tiles_per_chip: float) -> float:
    """Returns the bytes of the state and of memory proportional to the tiles."""
    return similar.state + (similar.peak - similar.state) * tiles_per_chip / similar.tiles_per_chip


Column = tuple[str, Callable[[Row], str]]


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _largest(row: Row) -> str:
    if row.largest is None:
        return ""
    return f"{ABOUT * row.guessed}{row.largest}"


COLUMNS: tuple[Column, ...] = (
    ("slice", lambda row: row.topology),
    ("mesh", lambda row: "x".join(map(str, row.mesh))),
    ("dataset", lambda row: row.dataset),
    ("patch, m", lambda row: f"{row.patch_size:g}"),
    ("batch", lambda row: f"{row.batch_size}"),
    ("fits", lambda row: {True: "yes", False: "NO", None: "?"}[row.fits]),
    ("GiB a chip", lambda row: "" if row.peak is None else f"{row.peak / GIB:.1f} of {row.memory / GIB:.0f}"),
    ("largest batch", _largest),
    ("TFLOP a tile", lambda row: f"{sum(row.flops_per_tile.values()) / 1e12:.3g}"),
    ("MB sent", lambda row: _number(row.sent / 1e6, 0)),
    ("FLOP a byte", lambda row: _number(row.intensity, 0)),
    ("step, ms", lambda row: _number(row.step_ms)),
    ("of messages, ms", lambda row: _number(row.network_ms)),
    ("bound by", lambda row: row.bound),
    ("MFU at most", lambda row: "" if row.mfu is None else f"{row.mfu:.0%}"),
)


def as_text(rows: Sequence[Row]) -> str:
    """Returns aligned columns, the FLOPs and messages of each program, and an explanation."""
    cells = [[name for name, _ in COLUMNS], *([write(row) for _, write in COLUMNS] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    names = [f"{row.topology} {row.dataset} {row.patch_size:g} m" for row in rows]
    parts = [f"{name}: {_parts(row)}" for name, row in zip(names, rows, strict=True)]
    messages = [f"{name}: {_messages(row)}" for name, row in zip(names, rows, strict=True)]
    lines += ["", "TFLOP of a tile by part:", *parts, "", "Messages of a step, bytes of the arrays:", *messages]
    return "\n".join([*lines, "", EXPLANATION])


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns a table for the docs without empty columns."""
    columns = [(name, cells) for name, write in COLUMNS if set(cells := [write(row) for row in rows]) - {"", "?"}]
    head = [f"| {' | '.join(name for name, _ in columns)} |", f"|{'---|' * len(columns)}"]
    lines = zip(*(cells for _, cells in columns), strict=True)
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def as_json(rows: Sequence[Row]) -> str:
    """Returns a list of objects, the fields of `Row`."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n"


def _parts(row: Row) -> str:
    return ", ".join(f"{part} {flops / 1e12:.3g}" for part, flops in row.flops_per_tile.items())


def _messages(row: Row) -> str:
    words = [f"{one.count} {one.kind} in {one.group}s, {one.size / 1e6:,.0f} MB" for one in row.collectives]
    return "; ".join(words) or "none"


EXPLANATION = """\
FLOPs are those of the model's matrix products, forward and backward, without recomputation. The step time is a lower
bound: the longest of products, memory traffic and messages at the published rates (the contrastive loss' products at
the rate of float32); MFU at most follows from it. MB sent: by each chip, in a ring."""

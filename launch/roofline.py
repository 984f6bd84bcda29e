"""Roofline estimates of training steps on slices of chips, and their tables as text, JSON and Markdown."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from anysat_jax import flops
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import is_context
from anysat_jax.model.init import count_parameters, student_shapes
from anysat_jax.pretrain.config import PretrainConfig

from .aot_compile import Case, Measured, Results, batch_shapes, mask_shapes, mesh_shape, settings_of
from .chips import GIB, Topology
from .hlo import Collective


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of one step on all chips together."""

    # FLOPs that count for MFU, see `flops.step_flops_by_part`; the contrastive part is done in float32.
    parts: dict[str, float]
    again: float  # FLOPs that rematerialisation adds
    tiles: int  # of the step

    @property
    def model(self) -> float:
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step for compute, memory and network, each at its peak rate."""

    compute: float  # products
    memory: float  # reading and writing memory
    network: float  # messages between chips
    useful: float  # the part of `compute` that counts for MFU, all of it at the rate of bfloat16

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
        return self.useful / self.least

    @property
    def bound(self) -> str:
        """The longest of "compute", "memory" and "network"."""
        return max(("compute", "memory", "network"), key=lambda part: getattr(self, part))


def estimate(work: Work, topology: Topology, traffic: float, messages: Sequence[Collective]) -> Estimate:
    """Returns the times of a step at the chips' peak rates, evenly shared.

    `traffic` are the bytes that each chip reads from and writes to its memory; `messages` those between the chips.
    """
    chip, chips = topology.chip, topology.chips
    precise = work.parts["contrastive"]
    compute = ((work.model - precise + work.again) / chip.flops + precise / chip.flops32) / chips
    network = sum(one.sent / topology.ring_bandwidth(one.group) for one in messages)
    return Estimate(compute, traffic / chip.bandwidth, network, work.model / (chips * chip.flops))


def work_of(config: PretrainConfig, case: Case, batch_parts: int) -> Work:
    """Returns the FLOPs of a step on a batch that `batch_parts` devices share."""
    model, batch = config.model, batch_shapes(case)
    masks = mask_shapes(model, batch, config.pretrain)
    # Each part of the batch has negatives of its own in the contrastive loss.
    parts = config.accumulate * (batch_parts if config.pretrain.negatives == "device" else 1)
    by_part = flops.step_flops_by_part(model, batch, masks, mask_dates=config.pretrain.mask_dates, negative_parts=parts)
    again = flops.recomputed_flops(model, batch, masks) if model.remat == "full" else 0.0
    return Work(by_part, again, case.batch_size)


def paper_messages(config: PretrainConfig, case: Case, chips: int) -> list[Collective]:
    """Returns the messages of data parallelism: gradients in the compute dtype, contrastive tokens in float32."""
    if chips == 1:
        return []
    model = config.model
    used = tuple(name for name in model.sensors if name in case.options.card.sensors)
    gradients = _parameters(dataclasses.replace(model, sensors=used)) * model.compute_dtype.itemsize
    messages = [Collective("all-reduce", chips, 1, float(gradients))]
    if config.pretrain.negatives == "global":
        batch = batch_shapes(case)
        sensors = sum(not is_context(name) for name in batch.sensors)
        tokens = case.batch_size * sensors * math.prod(batch.grid)
        # The loss gathers them in the forward and the backward pass; XLA merges the two.
        messages.append(Collective("all-gather", chips, 1, tokens * model.dim * 4.0))
    return messages


@functools.lru_cache
def _parameters(model: ModelConfig) -> int:
    return count_parameters(student_shapes(model))


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one slice."""

    topology: str
    mesh: tuple[int, int, int]  # sizes of the axes data, fsdp, tensor
    dataset: str
    patch_size: float
    batch_size: int
    fits: bool | None  # None where its memory is unknown
    peak: float | None  # maximum of the bytes used of a chip's memory
    memory: float  # bytes that a chip has
    largest: int | None  # the largest batch that fits, 0 for none
    guessed: bool  # predicted from compiled ones, whose bounds are too far apart
    flops_per_tile: dict[str, float]  # of the model, forward and backward, counted analytically; by part
    collectives: tuple[Collective, ...]  # messages of one step
    intensity: float | None  # FLOPs per byte of memory traffic
    step_ms: float | None  # lower bound
    bound: str  # compute, memory or network
    mfu: float | None  # upper bound of the model FLOP utilisation
    one_by_one_ms: float | None  # step time where messages overlap with nothing
    network_ms: float | None  # part of it for messages
    about: str = ""  # source of memory and traffic, if not this very program


def compiled_row(results: Results, case: Case, topology: Topology) -> Row:
    """Returns the row of a compiled program."""
    measured = Measured.read(results.path(topology, case))
    largest, guessed = results.largest(topology, case)
    data, fsdp, _ = measured.mesh
    work = work_of(settings_of(results.config), case, data * fsdp)
    # Traffic and messages of a program that does not fit are unknown.
    step = estimate(work, topology, measured.traffic, measured.collectives) if measured.fits else None
    return Row(
        **_common(case, topology, work, measured.traffic, step),
        collectives=measured.collectives,
        mesh=measured.mesh,
        fits=measured.fits,
        peak=measured.peak,
        largest=largest,
        guessed=guessed,
    )


def paper_row(results: Results, case: Case, topology: Topology) -> Row:
    """Returns the row of a program that is not compiled: memory and traffic are scaled from a similar one for TPUs.

    Raises:
      ConfigError: the config also shards the model.
    """
    config = settings_of(results.config)
    if config.mesh.fsdp * config.mesh.tensor > 1:
        raise ConfigError("the analytic estimate covers data parallelism only; set mesh.fsdp and mesh.tensor to 1")
    tiles = case.batch_size / topology.chips
    traffic, peak, about = 0.0, None, ""
    if similar := results.like(case, tiles):
        # The state is as large on every chip; everything else is proportional to the chip's tiles.
        scale = tiles / similar.tiles_per_chip
        traffic, peak = similar.traffic * scale, similar.state + (similar.peak - similar.state) * scale
        about = f"{similar.topology}, {similar.tiles_per_chip:g} tiles a chip"
    work, messages = work_of(config, case, topology.chips), paper_messages(config, case, topology.chips)
    return Row(
        **_common(case, topology, work, traffic, estimate(work, topology, traffic, messages)),
        collectives=tuple(messages),
        mesh=mesh_shape(results.config, topology),
        fits=None if peak is None else peak < topology.chip.memory,
        peak=peak,
        largest=None,
        guessed=True,
        about=about,
    )


def _common(case: Case, topology: Topology, work: Work, traffic: float, step: Estimate | None) -> dict[str, Any]:
    """Returns the fields of a row that follow from its work, its times, and each chip's traffic (0 if unknown)."""
    return dict(
        topology=topology.name,
        dataset=case.dataset,
        patch_size=case.patch_size,
        batch_size=case.batch_size,
        memory=topology.chip.memory,
        flops_per_tile={part: flops / work.tiles for part, flops in work.parts.items()},
        intensity=work.model / topology.chips / traffic if traffic else None,
        step_ms=step and 1e3 * step.least,
        bound=step.bound if step else "",
        mfu=step and step.mfu,
        one_by_one_ms=step and 1e3 * step.one_by_one,
        network_ms=step and 1e3 * step.network,
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("slice", lambda row: row.topology),
    ("mesh", lambda row: "x".join(map(str, row.mesh))),
    ("dataset", lambda row: row.dataset),
    ("patch, m", lambda row: f"{row.patch_size:g}"),
    ("batch", lambda row: f"{row.batch_size}"),
    ("fits", lambda row: {True: "yes", False: "NO", None: "?"}[row.fits]),
    ("GiB a chip", lambda row: "" if row.peak is None else f"{row.peak / GIB:.1f} of {row.memory / GIB:.0f}"),
    ("largest batch", lambda row: "" if row.largest is None else f"{'about ' * row.guessed}{row.largest}"),
    ("TFLOP a tile", lambda row: f"{sum(row.flops_per_tile.values()) / 1e12:.3g}"),
    ("MB sent", lambda row: _number(sum(one.sent for one in row.collectives) / 1e6, 0)),
    ("FLOP a byte", lambda row: _number(row.intensity, 0)),
    ("step, ms", lambda row: _number(row.step_ms)),
    ("of messages, ms", lambda row: _number(row.network_ms)),
    ("bound by", lambda row: row.bound),
    ("MFU at most", lambda row: "" if row.mfu is None else f"{row.mfu:.0%}"),
)


def as_text(rows: Sequence[Row]) -> str:
    """Returns aligned columns, the FLOPs and messages of each program, and an explanation."""
    cells = [[write(row) for _, write in COLUMNS] for row in rows]
    lines = [tabulate(cells, [name for name, _ in COLUMNS], tablefmt="plain", stralign="right", disable_numparse=True)]
    lines += ["", "TFLOP of a tile by part:"]
    for row in rows:
        parts = ", ".join(f"{part} {flops / 1e12:.3g}" for part, flops in row.flops_per_tile.items())
        lines.append(f"{row.topology} {row.dataset} {row.patch_size:g} m: {parts}")
    lines += ["", "Messages of a step, bytes of the arrays:"]
    for row in rows:
        messages = [f"{one.count} {one.kind} in {one.group}s, {one.size / 1e6:,.0f} MB" for one in row.collectives]
        lines.append(f"{row.topology} {row.dataset} {row.patch_size:g} m: {'; '.join(messages) or 'none'}")
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


EXPLANATION = """\
FLOPs are those of the model's matrix products, forward and backward, without recomputation. The step time is a lower
bound: the longest of products, memory traffic and messages at the published rates (the contrastive loss' products at
the rate of float32); MFU at most follows from it. MB sent: by each chip, in a ring."""

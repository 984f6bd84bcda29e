"""How long a step takes at least, from what it computes and moves and from the chips' published rates."""

import dataclasses
import functools
import math

from ml_collections import ConfigDict

from anysat_jax import flops
from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.encoder import is_context
from anysat_jax.model.init import count_parameters, student_shapes
from anysat_jax.pretrain.masks import MaskConfig, PatchMasks
from anysat_jax.train.errors import ConfigError
from launch.aot_cases import Case, batch_shapes, mask_shapes
from launch.aot_result import Measured
from launch.chips import Topology
from launch.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step computes on all chips together, FLOPs.

    Attributes:
      parts: what counts for MFU, see `flops.step_flops_by_part`; the contrastive part is done in float32.
      again: what rematerialisation adds.
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
        """At the chips' full rate, evenly shared."""
        precise = self.parts["contrastive"]
        fast = self.model - precise + self.again
        return (fast / slice_.chip.flops + precise / slice_.chip.flops32) / slice_.chips


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, by what they go to, each at its full rate.

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
        """Where all three go on side by side: the time cannot be less."""
        return max(self.compute, self.memory, self.network)

    @property
    def one_by_one(self) -> float:
        """Where the messages wait for the rest."""
        return max(self.compute, self.memory) + self.network

    @property
    def mfu(self) -> float:
        """Share of the chips' peak that the model can reach at most."""
        return self.work.model / (self.peak * self.least)

    @property
    def bound(self) -> str:
        """What takes longest: "compute", "memory" or "network"."""
        return max(("compute", "memory", "network"), key=lambda part: getattr(self, part))


def work_of(config: ConfigDict, model: ModelConfig, case: Case, batch_parts: int) -> Work:
    """A step's products.

    Args:
      batch_parts: devices that a batch is cut over.
    """
    batch, masks = shapes_of(config, model, case)
    parts = negative_parts(config, batch_parts)
    by_part = flops.step_flops_by_part(model, batch, masks, mask_dates=config.pretrain.mask_dates, negative_parts=parts)
    again = flops.recomputed_flops(model, batch, masks) if model.remat == "full" else 0.0
    return Work(by_part, again, case.batch_size)


def shapes_of(config: ConfigDict, model: ModelConfig, case: Case) -> tuple[Batch, PatchMasks]:
    """The case's batch and its most expensive masks."""
    batch = batch_shapes(case)
    return batch, mask_shapes(model, batch, MaskConfig.from_section(config.pretrain))


def negative_parts(config: ConfigDict, batch_parts: int) -> int:
    """Into how many parts the contrastive loss cuts a batch, each with its own negatives."""
    per_device = batch_parts if config.pretrain.get("negatives", "global") == "device" else 1
    return per_device * config.get("accumulate", 1)


def compiled_estimate(measured: Measured, work: Work, slice_: Topology) -> Estimate:
    """From the compiled program's own traffic and messages."""
    return _estimate(work, slice_, measured.traffic, measured.collectives)


def paper_estimate(config: ConfigDict, model: ModelConfig, case: Case, slice_: Topology, traffic: float) -> Estimate:
    """Without compiling: data parallelism alone.

    Args:
      traffic: bytes of memory that the whole step reads and writes, on all chips.

    Raises:
      ConfigError: the config cuts the model too.
    """
    if config.mesh.fsdp * config.mesh.get("tensor", 1) > 1:
        raise ConfigError("on paper there is data parallelism alone; set mesh.fsdp and mesh.tensor to 1")
    work = work_of(config, model, case, slice_.chips)
    messages = paper_messages(config, model, case, slice_.chips)
    return _estimate(work, slice_, traffic / slice_.chips, tuple(messages))


def paper_messages(config: ConfigDict, model: ModelConfig, case: Case, chips: int) -> list[Collective]:
    """What data parallelism sends in a step: gradients in the compute dtype, and contrastive tokens in float32."""
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
    network = sum(one.sent / slice_.reach(one.group) for one in messages)
    return Estimate(work.seconds(slice_), memory, network, work, slice_.chips * slice_.chip.flops, messages)

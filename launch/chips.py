"""Published chip specifications and slice topologies.

TPUs: cloud.google.com/tpu/docs (v5e, v5p, v6e), read 2026-11. GPUs: data sheets of NVIDIA's SXM modules, dense
products; eight GPUs share NVLink, and between such hosts each has one network card (200 Gbit/s beside A100, 400 beside
H100 and H200), as in NVIDIA's DGX machines.
"""

import dataclasses
import math
import re
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from anysat_jax.errors import ConfigError
from anysat_jax.peak import PEAK_FLOPS

if TYPE_CHECKING:
    import jax

GIB = 2.0**30
GPUS_PER_HOST = 8
CHIPS_PER_HOST = 4  # of every slice of TPUs that spans hosts


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator."""

    name: str  # as in a topology, "v5e"
    kind: Literal["tpu", "gpu"]  # TPUs are compiled for, GPUs are estimated on paper
    flops: float  # peak rate of bfloat16 products, FLOP/s
    flops32: float  # of float32 products at full precision
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes/s
    links: float  # rate of sending to neighbours over all links together, bytes/s
    network: float = 0.0  # rate of sending to other hosts (GPUs only), bytes/s
    axes: int = 0  # dimensions of the torus (TPUs only)
    wraps: int = 0  # sides that are multiples of it close to a ring; others are open (TPUs only)

    @property
    def usable_memory(self) -> float:
        """Bytes that a program may use on a TPU: XLA reserves 256 MiB."""
        return self.memory - 2.0**28


def _tpu(name: str, kind: str, memory: float, bandwidth: float, links: float, axes: int, wraps: int) -> Chip:
    # XLA computes a float32 product at full precision as six of bfloat16.
    peak = PEAK_FLOPS[kind]
    return Chip(name, "tpu", peak, peak / 6, memory, bandwidth, links, axes=axes, wraps=wraps)


CHIPS = {
    chip.name: chip
    for chip in (
        # `links`: half of the published "bidirectional" bandwidth, 400, 1200 and 800 GB/s.
        _tpu("v5e", "TPU v5 lite", 16 * GIB, 819e9, 200e9, axes=2, wraps=16),
        _tpu("v5p", "TPU v5p", 95 * GIB, 2765e9, 600e9, axes=3, wraps=4),
        _tpu("v6e", "TPU v6 lite", 32 * GIB, 1600e9, 400e9, axes=2, wraps=16),
        # `links`: half of NVLink's 600 and 900 GB/s.
        Chip("a100", "gpu", PEAK_FLOPS["A100"], 19.5e12, 80e9, 2039e9, 300e9, network=25e9),
        Chip("h100", "gpu", PEAK_FLOPS["H100"], 67e12, 80e9, 3350e9, 450e9, network=50e9),
        Chip("h200", "gpu", PEAK_FLOPS["H200"], 67e12, 141e9, 4800e9, 450e9, network=50e9),
    )
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """Names by which slices of a TPU generation are ordered."""

    accelerator: str  # beginning of the accelerator type; a number follows
    numbers_per_chip: int  # 1 where that number counts chips, 2 where it counts TensorCores
    runtime: str  # software of the hosts
    gke_label: str  # of the nodes of Kubernetes
    shapes: tuple[str, ...]  # those whose accelerator type gives them by default


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
GENERATIONS = {
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", FLAT),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", (*CUBES, "16x16x24")),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of connected chips."""

    name: str  # "v5e:4x4" or "h100:8"
    chip: Chip
    shape: tuple[int, ...]  # sides of the torus; the number of GPUs

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def generation(self) -> Generation:
        """Returns the generation, by which a slice is ordered (TPUs only)."""
        return GENERATIONS[self.chip.name]

    @property
    def hosts(self) -> int:
        """Virtual machines of a slice of TPUs, each with one process."""
        # Flat slices of up to eight chips are sold on one host; every other host has four chips.
        return 1 if len(self.shape) == 2 and self.chips <= 8 else self.chips // CHIPS_PER_HOST

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's accelerator type: v5litepod-256, v5p-2048."""
        return f"{self.generation.accelerator}-{self.chips * self.generation.numbers_per_chip}"

    def ring_bandwidth(self, group: int) -> float:
        """Returns the bytes/s that each chip sends while `group` adjacent chips pass messages in a ring."""
        if self.chip.kind == "gpu":
            return self.chip.links if group <= GPUS_PER_HOST else self.chip.network
        # An open axis gives half of its links: messages go back the way they came.
        used = [side for side in self.shape if side > 1] or [1]
        closed = sum(1.0 if side % self.chip.wraps == 0 else 0.5 for side in used) / self.chip.axes
        # A group of all chips uses every axis of the torus, a smaller one a single axis.
        return self.chip.links * (closed if group == self.chips else closed / len(used))


def parse_topology(name: str, tpu: bool = False) -> Topology:
    """Parses a name such as "v5e:16x16", "v5p:8x8x16", "h100:8"; with `tpu`, GPUs are refused.

    Raises:
      ConfigError: the chip is unknown, or it has no slice of this shape.
    """
    chip, _, sides = name.partition(":")
    if tpu and chip not in GENERATIONS:
        raise ConfigError(f"--topology={name}: no TPU {chip!r}; write {', '.join(GENERATIONS)}, as in v5e:4x4")
    if chip not in CHIPS:
        raise ConfigError(
            f"--topology={name} is not a topology; write CHIP:SIDES such as v5e:16x16, v5p:8x8x16 or h100:8, with a "
            f"chip of {', '.join(CHIPS)}"
        )
    # libtpu ends the whole process over an unknown shape, so it is refused here.
    if chip in GENERATIONS and sides not in GENERATIONS[chip].shapes:
        shapes = ", ".join(GENERATIONS[chip].shapes)
        raise ConfigError(f"--topology={name}: {chip} has no slice {sides!r}; it has {shapes}")
    if chip not in GENERATIONS and not re.fullmatch("[1-9][0-9]*", sides):
        raise ConfigError(f"--topology={name}: write {chip}:N, with the number N of GPUs from 1")
    return Topology(name, CHIPS[chip], tuple(map(int, sides.split("x"))))


def topology_devices(topology: str) -> "list[jax.Device]":
    """Returns the devices of a TPU topology; none needs to be attached.

    Raises:
      ConfigError: libtpu is not installed, or refuses the topology.
    """
    # Here and not above: `anysat tpu` and `anysat jobset` read this module and start without JAX.
    import jax
    from jax.experimental import topologies

    libtpu_version()
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"libtpu refuses --topology={topology}: {str(error).splitlines()[0]}") from None


def libtpu_version() -> str:
    """Returns the installed version of libtpu.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        raise ConfigError("compiling for TPUs needs libtpu: pip install -e '.[tpu]'; no TPU is needed") from None

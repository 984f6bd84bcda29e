"""What one can rent: published rates of chips, and slices of them.

TPUs: cloud.google.com/tpu/docs (v5e, v5p, v6e), read 2026-11. GPUs: data sheets of NVIDIA's SXM modules, dense
products; eight GPUs share NVLink, and between such hosts each has one network card (200 Gbit/s beside A100, 400 beside
H100 and H200), as in NVIDIA's DGX machines.
"""

import dataclasses
import math
import re
from typing import Literal

from anysat_jax.errors import ConfigError

GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as in a topology, "v5e".
      kind: TPUs are compiled for, GPUs are estimated on paper.
      flops: peak rate of bfloat16 products, FLOP/s.
      flops32: of float32 products at full precision: a TPU makes six of bfloat16 for each.
      memory: bytes, as sold.
      bandwidth: of the memory, bytes/s.
      links: what a chip can send to its neighbours, all links together, bytes/s.
      network: what a chip can send to other hosts (GPUs only), bytes/s.
      axes: dimensions of the torus (TPUs only).
      wraps: sides of which multiples close to a ring; shorter sides have one end at each side (TPUs only).
    """

    name: str
    kind: Literal["tpu", "gpu"]
    flops: float
    flops32: float
    memory: float
    bandwidth: float
    links: float
    network: float = 0.0
    axes: int = 0
    wraps: int = 0

    def reach(self, group: int, chips: int, shape: tuple[int, ...] = ()) -> float:
        """Bytes/s that each chip sends while `group` of `chips` chips, side by side, pass messages in a ring.

        On a torus a group of all chips uses every axis, a smaller one a single axis; an open axis gives half, since
        messages go back the way they came.
        """
        if self.kind == "gpu":
            return self.links if group <= GPUS_PER_HOST else self.network
        used = [side for side in shape if side > 1] or [1]
        closed = sum(1.0 if side % self.wraps == 0 else 0.5 for side in used) / self.axes
        return self.links * (closed if group == chips else closed / len(used))


GIB = 2.0**30
CHIPS = {
    chip.name: chip
    for chip in (
        # `links`: half of the published "bidirectional" bandwidth, 400, 1200 and 800 GB/s.
        Chip("v5e", "tpu", 197e12, 197e12 / 6, 16 * GIB, 819e9, 200e9, axes=2, wraps=16),
        Chip("v5p", "tpu", 459e12, 459e12 / 6, 95 * GIB, 2765e9, 600e9, axes=3, wraps=4),
        Chip("v6e", "tpu", 918e12, 918e12 / 6, 32 * GIB, 1600e9, 400e9, axes=2, wraps=16),
        # `links`: half of NVLink's 600 and 900 GB/s.
        Chip("a100", "gpu", 312e12, 19.5e12, 80e9, 2039e9, 300e9, network=25e9),
        Chip("h100", "gpu", 989e12, 67e12, 80e9, 3350e9, 450e9, network=50e9),
        Chip("h200", "gpu", 989e12, 67e12, 141e9, 4800e9, 450e9, network=50e9),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips that work together.

    Attributes:
      name: "v5e:4x4" or "h100:8".
      shape: sides of the torus; the number of GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    def reach(self, group: int) -> float:
        """See `Chip.reach`."""
        return self.chip.reach(group, self.chips, self.shape)


def parse_topology(name: str) -> Topology:
    """The slice of a name such as "v5e:16x16", "v5p:8x8x16", "h100:8".

    Raises:
      ConfigError: there is no such chip, or its slices have another number of sides.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name)
    if match is None or match[1] not in CHIPS:
        raise ConfigError(
            f"--topology={name} is no topology; write CHIP:SIDES such as v5e:16x16, v5p:8x8x16 or h100:8, with a "
            f"chip of {', '.join(CHIPS)}"
        )
    chip, shape = CHIPS[match[1]], tuple(int(side) for side in match[2].split("x"))
    wanted = max(1, chip.axes)
    if len(shape) != wanted or min(shape) < 1:
        raise ConfigError(f"--topology={name}: write {chip.name}:{'x'.join('N' * wanted)}, each N from 1")
    return Topology(name, chip, shape)


CHIPS_PER_HOST = 4  # of every slice that spans hosts


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation, as slices of it are ordered."""

    accelerator: str  # what accelerator types begin with; a number follows
    numbers_per_chip: int  # that number counts chips, or TensorCores
    runtime: str  # the software of the hosts
    gke_label: str
    shapes: tuple[str, ...]  # those whose accelerator type gives them by default


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
GENERATIONS = {
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", FLAT),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", (*CUBES, "16x16x24")),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips with fast links between them, by the name that `launch.aot` takes too: "v5e:16x16"."""

    generation: str
    shape: str

    @classmethod
    def parse(cls, name: str) -> "Slice":
        """The slice of a name.

        Raises:
          ConfigError: there is no such generation, or it has no slice of this shape.
        """
        generation, _, shape = name.partition(":")
        if generation not in GENERATIONS:
            raise ConfigError(
                f"--topology={name}: no TPU {generation!r}; write {', '.join(GENERATIONS)}, as in v5e:4x4"
            )
        shapes = GENERATIONS[generation].shapes
        if shape not in shapes:
            raise ConfigError(f"--topology={name}: {generation} has no slice {shape!r}; it has {', '.join(shapes)}")
        return cls(generation, shape)

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))

    @property
    def hosts(self) -> int:
        """Virtual machines, each with one process. Up to eight chips of a flat slice hang on one."""
        return 1 if self.shape in FLAT and self.chips <= 8 else self.chips // CHIPS_PER_HOST

    @property
    def accelerator_type(self) -> str:
        """What Cloud TPU calls the slice: v5litepod-256, v5p-2048."""
        maker = GENERATIONS[self.generation]
        return f"{maker.accelerator}-{self.chips * maker.numbers_per_chip}"

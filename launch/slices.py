"""Slices of Cloud TPU chips: how many chips and hosts, and what Google calls them.

Sources: cloud.google.com/tpu/docs/v5e, v5p, v6e and runtimes (types, shapes, software versions), and
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (node labels).
"""

import dataclasses
import math

from anysat_jax.train.errors import ConfigError

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

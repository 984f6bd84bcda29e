"""What compiling a program for a slice told, kept in files."""

import dataclasses
import hashlib
import json
import math
import pathlib
from typing import Any, Self

from ml_collections import ConfigDict

from anysat_jax.train.errors import ConfigError
from launch.aot_cases import Case
from launch.chips import Topology
from launch.hlo import Collective

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

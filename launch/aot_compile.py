"""Compiles the training step for chips that are not there: what `launch.aot` runs in a process of its own.

libtpu ends the whole process over a topology that it does not know. Each program's measurements go to a file as soon as
they are known, and what has a file is not compiled again.
"""

import re
import sys
import time
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.model.config import ModelConfig
from anysat_jax.pretrain.masks import MaskConfig
from anysat_jax.train import settings
from anysat_jax.train.errors import ConfigError
from anysat_jax.train.mesh import batch_parts, check_heads, make_mesh, replicated
from anysat_jax.train.optimizer import make_optimizer
from anysat_jax.train.state import abstract_state
from anysat_jax.train.step import make_train_step
from launch.aot_cases import Case, batch_shapes, mask_shapes, model_of, on_mesh
from launch.aot_result import Measured, Results
from launch.aot_search import search, usable_memory
from launch.chips import Topology
from launch.hlo import Program

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
        self.mesh: Mesh = make_mesh(config.mesh, topology_devices(topology.name))
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
        config, model, mesh = self.config, self.model, self.mesh
        batch = batch_shapes(case)
        masks = mask_shapes(model, batch, MaskConfig.from_section(config.pretrain))
        batch, masks = on_mesh(batch, masks, mesh)
        optimizer = make_optimizer(config.optimizer, config.total_steps)
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

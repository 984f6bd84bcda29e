"""The encoder that a run has trained, to be used elsewhere."""

import os
import pathlib

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import student_shapes
from anysat_jax.train.errors import CheckpointError
from anysat_jax.train.state import Params


def load_teacher(workdir: str | os.PathLike[str]) -> tuple[ModelConfig, Params]:
    """The model of a run, and its teacher's parameters from the newest whole checkpoint.

    Args:
      workdir: what `--workdir` named, or the folder `runs/<name>-<time>`.

    Returns:
      The model's config, and the encoder's parameters, float32 on the first device.

    Raises:
      CheckpointError: the folder holds no whole checkpoint.
      ValueError: the run's model has a sensor that is not registered here.
    """
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{workdir} is not the workdir of a run: it has no folder checkpoints")
    with ocp.CheckpointManager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"there is no whole checkpoint in {folder} yet")
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        config = ModelConfig.from_section(meta["config"]["model"], dtype=meta["config"]["dtype"])
        wanted = {"teacher": _on_first_device(student_shapes(config)["encoder"])}
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        restore = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        state = manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
    return config, state["teacher"]


def _on_first_device(shapes: Params) -> Params:
    """The shapes with a place: a checkpoint of many devices is wanted on one."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)

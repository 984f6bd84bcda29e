"""What a pretraining has trained, read from its newest checkpoint to be used elsewhere."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import student_shapes
from anysat_jax.train.checkpoints import (
    ARGS,
    check_leaves,
    check_not_half_deleted,
    check_same_model,
    leaf_shapes,
    newest_whole,
)
from anysat_jax.train.errors import CheckpointError
from anysat_jax.train.state import Params, TrainState


def load_teacher(workdir: str | os.PathLike[str]) -> tuple[ModelConfig, Params]:
    """The model of a run, and its teacher's parameters from the newest whole checkpoint.

    Args:
      workdir: what `--workdir` named, or the folder `runs/<name>-<time>`.

    Returns:
      The model's config, and the encoder's parameters, float32 on the first device.

    Raises:
      CheckpointError: the folder holds no whole checkpoint of a pretraining.
      ConfigError: another version of the code made it, with other parameters.
      ValueError: the run's model has a sensor that is not registered here.
    """

    def wanted(run: dict[str, Any]) -> Params:
        return {"teacher": _on_first_device(student_shapes(_model_of(run))["encoder"])}

    run, state = _read_newest(pathlib.Path(workdir), wanted)
    return _model_of(run), state["teacher"]


def restore_params(
    workdir: str | os.PathLike[str], abstract: TrainState, config: dict[str, Any]
) -> tuple[Params, Params]:
    """Student and teacher of the newest checkpoint, whatever its optimizer was.

    Args:
      workdir: of the run.
      abstract: shapes, dtypes and shardings that are wanted; only `params` and `teacher` are read.
      config: the config of this run; its model must be that of the checkpoint.

    Raises:
      CheckpointError: the folder holds no whole checkpoint of a pretraining.
      ConfigError: the checkpoint is of another model, or another version of the code made it, with other parameters.
    """

    def wanted(run: dict[str, Any]) -> Params:
        check_same_model(run, config, pathlib.Path(workdir))
        return {"params": abstract.params, "teacher": abstract.teacher}

    _, state = _read_newest(pathlib.Path(workdir), wanted)
    return state["params"], state["teacher"]


def _model_of(run: dict[str, Any]) -> ModelConfig:
    """The model of a run's config."""
    return ModelConfig.from_section(run["model"], dtype=run["dtype"])


def _read_newest(workdir: pathlib.Path, wanted: Callable[[dict[str, Any]], Params]) -> tuple[dict[str, Any], Params]:
    """The run's config, and parts of the state of its newest whole checkpoint.

    Args:
      workdir: of a pretraining run.
      wanted: gives, for the run's config, shapes, dtypes and shardings of the parts.
    """
    folder = workdir.absolute() / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{workdir} is not the workdir of a run: it has no folder checkpoints")
    # A fresh manager, since one remembers the first way in which an item was read.
    with ocp.CheckpointManager(folder) as manager:
        steps = manager.all_steps()
        step = newest_whole(folder, steps)
        if step is None:
            raise CheckpointError(
                f"all checkpoints of {folder} are damaged (steps {sorted(steps)}); give another run"
                if steps
                else f"there is no whole checkpoint in {folder} yet"
            )
        meta = manager.restore(step, args=ARGS.Composite(meta=ARGS.JsonRestore()))["meta"]
        check_not_half_deleted(meta, folder / str(step))
        run = meta["config"]
        if "model" not in run or run.get("job", "pretrain") != "pretrain":
            raise CheckpointError(
                f"{workdir} is of a run that adapts weights and has not ended, so that it has no exported model yet; "
                "start it again to go on with it"
            )
        parts = wanted(run)
        _check_parts(folder / str(step), parts)
        restore_args = ocp.checkpoint_utils.construct_restore_args(parts)
        restore = ARGS.PyTreeRestore(parts, restore_args=restore_args, partial_restore=True)
        return run, manager.restore(step, args=ARGS.Composite(state=restore))["state"]


def _check_parts(folder: pathlib.Path, parts: Params) -> None:
    """Refuses a checkpoint whose leaves are others, as another version of the code has made them."""
    stored = leaf_shapes(ocp.StandardCheckpointHandler().metadata(folder / "state").tree)
    stored = {name: shape for name, shape in stored.items() if name.partition(".")[0] in parts}
    remedy = "read it with the version of the code that made it, or give another run"
    check_leaves(stored, leaf_shapes(parts), folder, remedy)


def _on_first_device(shapes: Params) -> Params:
    """The shapes with a place: a checkpoint of many devices is wanted on one."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)

"""Checkpoints of a run: the state, the position in the data, and what was being trained.

Orbax writes them in the background and renames them when whole, so that a run killed at any moment leaves the last
whole one.
"""

import dataclasses
import pathlib
import types
from collections.abc import Callable
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from anysat_jax.train.errors import CheckpointError, ConfigError
from anysat_jax.train.settings import differences

ARGS = ocp.args
Check = Callable[[dict[str, Any], dict[str, Any], pathlib.Path], None]
"""Of the stored config, this run's, and the folder."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint, read.

    Attributes:
      state: on the mesh that was asked for.
      data: the position in the data, as the iterator gave it.
      meta: {"step", "config", "record"}: see `Checkpoints.save`.
    """

    state: Any
    data: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints below one folder, newest kept."""

    def __init__(self, folder: pathlib.Path, keep: int = 2, check: Check | None = None):
        """Opens the folder, which may not be there yet.

        Args:
          folder: where the checkpoints are.
          keep: how many stay.
          check: refuses the config of a stored run that this one cannot go on with; by default `check_same_model`.
        """
        self.folder = pathlib.Path(folder).absolute()
        self._keep, self._check = keep, check or check_same_model
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(self._keep),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        json = {name: ocp.JsonCheckpointHandler() for name in ("data", "meta")}
        handlers = {"state": ocp.StandardCheckpointHandler(), **json}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Returns once what was saved is whole on disk."""
        self._manager.wait_until_finished()

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        self.wait()
        for later in [one for one in self.steps if one > step]:
            logging.info("dropping %s/%d, which is newer than the state that the run goes on from", self.folder, later)
            self._manager.delete(later)

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: Any, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Copies the state off the devices and writes it in the background; the caller may donate it at once.

        Args:
          data: position in the data after the state's last update, JSON values.
          meta: {"step": int, "config": the whole config, "record": the run's memory for its summary}, JSON values.
        """
        args = ARGS.Composite(state=ARGS.StandardSave(state), data=ARGS.JsonSave(data), meta=ARGS.JsonSave(meta))
        self._manager.save(meta["step"], args=args)

    def preempted(self, step: int) -> bool:
        """Whether the processes were asked to stop; they all agree on the step."""
        return self._manager.reached_preemption(step)

    def restore(self, abstract: Any, config: dict[str, Any]) -> Restored | None:
        """The newest whole checkpoint, or None where there is none.

        A damaged one is set aside in `<folder>-damaged`, saying so, and the one before it is read.

        Args:
          abstract: shapes, dtypes and shardings that are wanted.
          config: the config of this run, JSON values; its model must be that of the checkpoint.

        Raises:
          ConfigError: the checkpoint is of another model or optimizer.
          CheckpointError: there are checkpoints, and none can be read.
        """
        steps = self.steps[::-1]
        for step in steps:
            try:
                return self._restore(step, abstract, config)
            except (ConfigError, MemoryError, jax.errors.JaxRuntimeError):
                raise  # the checkpoint is not to blame
            except Exception as error:  # damage shows as almost any exception, a bare Exception included
                self._set_aside(step, error)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints of {self.folder} could be read (steps {steps[::-1]}, now in "
                f"{self._damaged}); choose another --workdir, or start again to begin from step 0"
            )
        return None

    def _restore(self, step: int, abstract: Any, config: dict[str, Any]) -> Restored:
        meta = self._manager.restore(step, args=ARGS.Composite(meta=ARGS.JsonRestore()))["meta"]
        self._check(meta["config"], config, self.folder)
        stored = self._manager.item_metadata(step)["state"].tree
        _check_same_leaves(stored, abstract, self.folder / str(step))
        args = ARGS.Composite(state=ARGS.StandardRestore(abstract), data=ARGS.JsonRestore())
        whole = self._manager.restore(step, args=args)
        return Restored(whole["state"], whole["data"], meta)

    @property
    def _damaged(self) -> pathlib.Path:
        return self.folder.with_name(self.folder.name + "-damaged")

    def _set_aside(self, step: int, error: Exception) -> None:
        """Moves a step out of the way, so that it can be written again."""
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        logging.warning("checkpoint %s/%d is damaged (%s); trying the one before it", self.folder, step, reason)
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target = self._damaged / f"{step}-{len(list(self._damaged.iterdir()))}"
            (self.folder / str(step)).rename(target)
            logging.warning("moved it to %s", target)
        self._manager.close()
        self._manager = self._open()


def check_same_model(stored: dict[str, Any], config: dict[str, Any], folder: pathlib.Path) -> None:
    """Refuses to go on with another model than the checkpoint's.

    Raises:
      ConfigError: a value of the section `model` differs; the message names both values.
    """
    changed = differences(stored["model"], config["model"])
    # Rematerialisation and dropout change no parameter.
    lines = [f"model.{key}: {old!r} there, {new!r} now" for key, old, new in changed if key not in ("remat", "dropout")]
    if lines:
        raise ConfigError(
            f"the checkpoint in {folder} is of another model ({'; '.join(lines)}); "
            "give the same config or another --workdir"
        )


def _leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _check_same_leaves(stored: Any, abstract: Any, folder: pathlib.Path) -> None:
    old, new = _leaf_shapes(stored), _leaf_shapes(abstract)
    lines = [f"{name} {old.get(name, 'absent')} there, {new.get(name, 'absent')} now" for name in {**old, **new}]
    lines = [line for line, name in zip(lines, {**old, **new}, strict=True) if old.get(name) != new.get(name)]
    if lines:
        shown = "; ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
        raise ConfigError(
            f"the checkpoint {folder} does not fit the config's model and optimizer ({shown}); resume with the "
            "optimizer.schedule and optimizer.clip_norm that it was made with, or choose another --workdir"
        )

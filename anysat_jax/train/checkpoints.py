"""Checkpoints of a run: the state, the position in the data, the config and the run's record.

Orbax writes them in the background and renames them when they are whole, so that a run killed at any moment leaves the
last whole one. Each holds checksums of its files, which are compared before it is read.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from anysat_jax.errors import CheckpointError, ConfigError, StorageError
from anysat_jax.weights.checkpoint_files import (
    SEALED,
    check_leaves,
    check_same_model,
    find_damage,
    has_checksums,
    leaf_shapes,
    write_checksums,
)

ARGS = ocp.args
KEPT = 2  # checkpoints, the newest
# Orbax measures timeouts by the wall clock: a clock that is set forward by an hour would end a save half-way. So its
# timeout is a century; the watchdog ends a save that really hangs.
SAVING = {"timeout_secs": 100 * 365 * 86400, "create_directories_asynchronously": False}
REMEDY = (
    "go on with the config (optimizer.schedule, optimizer.clip_norm) and the version of the code that made it, or "
    "choose another --workdir"
)
# Reasons for which a disk cannot be written, in the words that libraries of every language pass on.
REFUSALS = tuple(
    os.strerror(getattr(errno, name))
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")
)

Check = Callable[[dict[str, Any], dict[str, Any], pathlib.Path], None]
"""(stored config, this run's config, folder) -> None, or raises ConfigError."""


@contextlib.contextmanager
def explained(workdir: pathlib.Path) -> Iterator[None]:
    """Turns an OSError of a disk that cannot be written, below `workdir`, into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        reason, where = refusal(error), error.filename or workdir
        if reason is None or not pathlib.Path(str(where)).is_relative_to(workdir):
            raise
        raise StorageError(
            f"{where} cannot be written ({reason}); make room, or give another --workdir; the checkpoints that were "
            "whole still are, and the same command continues from the last"
        ) from error


def refusal(error: BaseException | None) -> str | None:
    """Returns why the disk cannot be written, if an error or one of its causes names one of `REFUSALS`."""
    while error is not None:
        if found := [words for words in REFUSALS if words in str(error)]:
            return found[0]
        error = error.__cause__ or error.__context__
    return None


class Restored(NamedTuple):
    """State, position in the data and {"step", "config", "record"} of a checkpoint, see `Checkpoints.save`."""

    state: Any
    data: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints below one folder."""

    def __init__(self, folder: pathlib.Path, check: Check = check_same_model):
        """Opens the folder, which may be absent; `check` refuses a stored config that does not go with this run's."""
        self.folder = pathlib.Path(folder).absolute()  # Orbax refuses relative paths
        self._damaged = self.folder.with_name(self.folder.name + "-damaged")
        self._check = check
        self._saving, self._megabytes = 0, 0.0  # step and size of the last save
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(KEPT),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(**SAVING, post_finalization_callback=self._seal),
            cleanup_tmp_directories=True,  # of a killed run
        )
        # Named here, since a manager that has not saved yet would not find the metadata of what another one wrote.
        json = {name: ocp.JsonCheckpointHandler() for name in ("data", "meta")}
        handlers = {"state": ocp.StandardCheckpointHandler(), **json}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.close()
        except KeyboardInterrupt:  # a first one does not cost the checkpoint that is being written
            self.close()
            raise
        except StorageError:
            if not isinstance(error, StorageError):  # one such error is enough; but a lost save must not pass silently
                raise

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Returns once the last save is whole on disk.

        Raises:
          StorageError: it could not be written; the checkpoints before it are unchanged.
        """
        with self._storage_errors():
            self._manager.wait_until_finished()

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        self.wait()
        for later in [one for one in self.steps if one > step]:
            logging.info("dropping %s/%d, which is newer than the state that the run starts from", self.folder, later)
            self._manager.delete(later)

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: Any, data: dict[str, Any], meta: dict[str, Any]) -> None:
        """Copies the state off the devices and writes it in the background; the caller may donate it at once.

        Args:
          state: a tree of arrays.
          data: position in the data after the state's last update, JSON values.
          meta: {"step": int, "config": the whole config, "record": the run's record for its summary}, JSON values.

        Raises:
          StorageError: this checkpoint, or the one before, could not be written.
        """
        self.wait()  # one save at a time: its error belongs to its step, and two would need memory for two copies
        if meta["step"] in self.steps:  # before a stop request that came while the next step's program was compiled
            return
        self._saving, self._megabytes = meta["step"], sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
        meta = {**meta, SEALED: True}
        args = ARGS.Composite(state=ARGS.StandardSave(state), data=ARGS.JsonSave(data), meta=ARGS.JsonSave(meta))
        with self._storage_errors():
            self._manager.save(meta["step"], args=args)

    def _seal(self) -> None:
        # Orbax calls this in the background, when all is written and before the rename: no checkpoint is without them.
        for folder in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            write_checksums(folder)

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Re-raises any write failure as StorageError."""
        try:
            yield
        except Exception as error:
            if (reason := refusal(error)) is None:
                raise
            whole = [step for step in self.steps if step != self._saving]
            last = f"the last whole one is of step {whole[-1]}" if whole else "there is no whole one yet"
            raise StorageError(
                f"the checkpoint of step {self._saving} could not be written to {self.folder} ({reason}); {last}; make "
                f"room for {KEPT + 1} checkpoints of up to {self._megabytes:.0f} MB, and start again with the "
                "same command"
            ) from error

    def preempted(self, step: int) -> bool:
        """Returns whether the processes received a stop signal; all of them agree on the step."""
        return self._manager.reached_preemption(step)

    def restore(self, abstract: Any, config: dict[str, Any]) -> Restored | None:
        """Reads the newest whole checkpoint; returns None where there is none.

        A damaged one, with a file that differs from its checksum, is moved to `<folder>-damaged` with a warning, and
        the one before it is read. A whole one is never moved, whatever keeps it from being read.

        Args:
          abstract: shapes, dtypes and shardings of the state.
          config: the config of this run, JSON values; its model must be that of the checkpoint.

        Raises:
          ConfigError: the checkpoint is of another model or optimizer, or of code with other parameters.
          CheckpointError: there are checkpoints, and none can be read; or the newest is whole and cannot be read.
        """
        steps = self.steps[::-1]
        for step in steps:
            # The first process decides, for all of them must read the same step.
            reason = find_damage(self.folder / str(step)) if jax.process_index() == 0 else None
            if not _in_all_processes(reason is None):
                self._set_aside(step, reason)
                continue
            restored, reason = None, None
            try:
                restored = self._restore(step, abstract, config)
            except (ConfigError, MemoryError, jax.errors.JaxRuntimeError):
                raise  # the checkpoint is not to blame
            except Exception as error:  # damage shows as almost any exception, a bare Exception included
                reason = str(error) or type(error).__name__
            if _in_all_processes(restored is not None):
                return restored
            if has_checksums(self.folder / str(step)):  # and they matched: the files are not to blame
                raise CheckpointError(_unreadable(self.folder / str(step), reason))
            self._set_aside(step, reason)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints of {self.folder} could be read (steps {steps[::-1]}, now in "
                f"{self._damaged}); choose another --workdir, or start again to begin from step 0"
            )
        return None

    def _restore(self, step: int, abstract: Any, config: dict[str, Any]) -> Restored:
        meta = self._manager.restore(step, args=ARGS.Composite(meta=ARGS.JsonRestore()))["meta"]
        # Config and leaves first: Orbax's own errors of a mismatch are pages of shapes, and look like damage.
        self._check(meta["config"], config, self.folder)
        stored = self._manager.item_metadata(step)["state"].tree
        check_leaves(leaf_shapes(stored), leaf_shapes(abstract), self.folder / str(step), REMEDY)
        args = ARGS.Composite(state=ARGS.StandardRestore(abstract), data=ARGS.JsonRestore())
        whole = self._manager.restore(step, args=args)
        return Restored(whole["state"], whole["data"], meta)

    def _set_aside(self, step: int, reason: str | None) -> None:
        """Moves a step out of the way, so that it can be written again."""
        reason = (reason or "as another process found").splitlines()[0][:200]
        logging.warning("checkpoint %s/%d is damaged (%s); trying the one before it", self.folder, step, reason)
        self._manager.close()
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target = self._damaged / f"{step}-{len(list(self._damaged.iterdir()))}"
            (self.folder / str(step)).rename(target)
            logging.warning("moved it to %s", target)
        _in_all_processes(True)  # a barrier: the folder must not be listed before the step is gone
        self._manager = self._open()


def _in_all_processes(fine: bool) -> bool:
    """Returns whether `fine` is True in every process; each waits for the others."""
    return fine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(fine)).all())


@contextlib.contextmanager
def understood(folder: pathlib.Path) -> Iterator[None]:
    """Turns errors of parsing a checkpoint's record into a CheckpointError: another version of the code wrote it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(_unreadable(folder, f"{type(error).__name__}: {error}")) from error


def _unreadable(folder: pathlib.Path, reason: str | None) -> str:
    shown = (reason or "as another process found").splitlines()[0][:300]
    return (
        f"the checkpoint {folder} is whole, and cannot be read ({shown}); go on with the version of the code that "
        "made it, or choose another --workdir; it was left as it is"
    )

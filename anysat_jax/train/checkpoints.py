"""Checkpoints of a run: the state, the position in the data, and what was being trained.

Orbax writes them in the background and renames them when whole, so that a run killed at any moment leaves the last
whole one. Each holds the checksums of its files, which are compared before it is read.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from anysat_jax.errors import CheckpointError, ConfigError, StorageError
from anysat_jax.train.config import differences
from anysat_jax.train.record import write_json

FILE = "checksums.json"
CHANGING = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files at the top of a checkpoint that Orbax writes after its last call to us; they hold times, and nothing is read
from them."""
THREADS = 4  # hashing frees the interpreter


def write_checksums(folder: pathlib.Path) -> None:
    """Writes `checksums.json` into a folder: size in bytes and SHA-256 of every file below it.

    Raises:
      OSError: a file cannot be read, or the checksums cannot be written.
    """
    write_json(folder / FILE, {"files": _measure(folder, _names(folder))})


def find_damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files of a folder, in words; None where nothing is, or where there are no checksums.

    Files that were added later are no damage. Ask `has_checksums` too where there should be checksums.
    """
    try:
        written = json.loads((folder / FILE).read_bytes())["files"]
    except FileNotFoundError:
        return None  # of an earlier version
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FILE} cannot be read: {error}"
    missing = [name for name in written if not (folder / name).is_file()]
    if missing:
        return _said(missing, "is missing")
    try:
        found = _measure(folder, list(written))
    except OSError as error:
        return f"a file cannot be read: {error}"
    changed = [name for name in written if found[name] != written[name]]
    return _said(changed, "is not what was written") if changed else None


def has_checksums(folder: pathlib.Path) -> bool:
    """Whether there are any. They may have been removed by a process that was killed while it removed the folder."""
    return (folder / FILE).is_file()


def _names(folder: pathlib.Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name not in (FILE, *CHANGING))


def _measure(folder: pathlib.Path, names: list[str]) -> dict[str, dict[str, Any]]:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _measure_file(folder / name), names), strict=True))


def _measure_file(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _said(names: list[str], what: str) -> str:
    return f"{names[0]} {what}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


REFUSALS = tuple(
    os.strerror(getattr(errno, name))
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")
)
"""What a disk answers that cannot be written, in the words that libraries of every language hand on."""


@contextlib.contextmanager
def explained(workdir: pathlib.Path) -> Iterator[None]:
    """Says in one sentence that the disk took no more.

    Raises:
      StorageError: instead of an OSError in writing below the folder.
    """
    try:
        yield
    except OSError as error:
        reason, where = refusal(error), error.filename or workdir
        if reason is None or not pathlib.Path(str(where)).is_relative_to(workdir):
            raise
        raise StorageError(
            f"{where} cannot be written ({reason}); make room, or give another --workdir; the checkpoints that were "
            "whole still are, and the same command goes on from the last"
        ) from error


def refusal(error: BaseException | None) -> str | None:
    """What the disk answered, if an error, or what it came from, tells of a disk that cannot be written."""
    while error is not None:
        if found := [words for words in REFUSALS if words in str(error)]:
            return found[0]
        error = error.__cause__ or error.__context__
    return None


ARGS = ocp.args
SAVING = {"timeout_secs": 100 * 365 * 86400, "create_directories_asynchronously": False}
"""Orbax measures how long it waits by the time of the day: a clock that is put right by an hour would end a save
half-way. So it waits for ever, where it can be told to; a save that really hangs is the watchdog's business."""
SEALED = "checksums"  # in `meta`: there are checksums, unlike in checkpoints of earlier versions
REMEDY = (
    "go on with the config (optimizer.schedule, optimizer.clip_norm) and the version of the code that made it, or "
    "choose another --workdir"
)
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
        self._saving, self._megabytes = 0, 0.0  # step and size of what was saved last
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(self._keep),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(**SAVING, post_finalization_callback=self._seal),
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
        try:
            self.close()
        except StorageError:
            if not isinstance(error, StorageError):  # said once is enough; but a run that was not saved must say so
                raise

    def close(self) -> None:
        """Waits for the checkpoint that is being written."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Returns once what was saved is whole on disk.

        Raises:
          StorageError: it could not be written; the checkpoints before it are as they were.
        """
        with self._told():
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

        Raises:
          StorageError: this one, or the one before, could not be written.
        """
        self.wait()
        self._saving, self._megabytes = meta["step"], sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
        meta = {**meta, SEALED: True}
        args = ARGS.Composite(state=ARGS.StandardSave(state), data=ARGS.JsonSave(data), meta=ARGS.JsonSave(meta))
        with self._told():
            self._manager.save(meta["step"], args=args)

    def _seal(self) -> None:
        """Adds the checksums; Orbax calls it in the background when all is written and not renamed yet."""
        for folder in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            write_checksums(folder)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Says in one sentence that a checkpoint could not be written, whatever its writers raise."""
        try:
            yield
        except Exception as error:
            if (reason := refusal(error)) is None:
                raise
            whole = [step for step in self.steps if step != self._saving]
            last = f"the last whole one is of step {whole[-1]}" if whole else "there is no whole one yet"
            raise StorageError(
                f"the checkpoint of step {self._saving} could not be written to {self.folder} ({reason}); {last}; make "
                f"room for {self._keep + 1} checkpoints of up to {self._megabytes:.0f} MB, and start again with the "
                "same command"
            ) from error

    def preempted(self, step: int) -> bool:
        """Whether the processes were asked to stop; they all agree on the step."""
        return self._manager.reached_preemption(step)

    def restore(self, abstract: Any, config: dict[str, Any]) -> Restored | None:
        """The newest whole checkpoint, or None where there is none.

        A damaged one, of which a file is not what was written, is set aside in `<folder>-damaged`, saying so, and the
        one before it is read. One that is whole stays where it is, whatever keeps it from being read.

        Args:
          abstract: shapes, dtypes and shardings that are wanted.
          config: the config of this run, JSON values; its model must be that of the checkpoint.

        Raises:
          ConfigError: the checkpoint is of another model or optimizer, or of code with other parameters.
          CheckpointError: there are checkpoints, and none can be read; or the newest is whole and cannot be read.
        """
        steps = self.steps[::-1]
        for step in steps:
            # The first process looks, for all of them must read the same step.
            reason = find_damage(self.folder / str(step)) if jax.process_index() == 0 else None
            if not _in_all_processes(reason is None):
                self._set_aside(step, reason)
                continue
            restored, reason = self._try(step, abstract, config)
            if _in_all_processes(restored is not None):
                return restored
            if has_checksums(self.folder / str(step)):  # which were found right
                raise CheckpointError(_unreadable(self.folder / str(step), reason))
            self._set_aside(step, reason)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints of {self.folder} could be read (steps {steps[::-1]}, now in "
                f"{self._damaged}); choose another --workdir, or start again to begin from step 0"
            )
        return None

    def _try(self, step: int, abstract: Any, config: dict[str, Any]) -> tuple[Restored | None, str | None]:
        """The checkpoint, or why it could not be read."""
        try:
            return self._restore(step, abstract, config), None
        except (ConfigError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # the checkpoint is not to blame
        except Exception as error:  # damage shows as almost any exception, a bare Exception included
            return None, str(error) or type(error).__name__

    def _restore(self, step: int, abstract: Any, config: dict[str, Any]) -> Restored:
        meta = self._manager.restore(step, args=ARGS.Composite(meta=ARGS.JsonRestore()))["meta"]
        check_not_half_deleted(meta, self.folder / str(step))
        self._check(meta["config"], config, self.folder)
        stored = self._manager.item_metadata(step)["state"].tree
        check_leaves(leaf_shapes(stored), leaf_shapes(abstract), self.folder / str(step), REMEDY)
        args = ARGS.Composite(state=ARGS.StandardRestore(abstract), data=ARGS.JsonRestore())
        whole = self._manager.restore(step, args=args)
        return Restored(whole["state"], whole["data"], meta)

    @property
    def _damaged(self) -> pathlib.Path:
        return self.folder.with_name(self.folder.name + "-damaged")

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
        _in_all_processes(True)  # nobody lists the folder before the step is gone
        self._manager = self._open()


def newest_whole(folder: pathlib.Path, steps: Iterable[int]) -> int | None:
    """The newest of a folder's steps whose files are what was written, for a reader who leaves the folder as it is."""
    for step in sorted(steps, reverse=True):
        reason = find_damage(folder / str(step))
        if reason is None:
            return step
        logging.warning("checkpoint %s/%d is damaged (%s); trying the one before it", folder, step, reason)
    return None


def check_not_half_deleted(meta: dict[str, Any], folder: pathlib.Path) -> None:
    """Refuses what is left of a checkpoint that was being removed when its process was killed.

    Raises:
      CheckpointError: it should have checksums, and has none.
    """
    if meta.get(SEALED) and not has_checksums(folder):
        raise CheckpointError(f"{folder} is half deleted: its checksums are gone; give another run")


def _in_all_processes(fine: bool) -> bool:
    """Whether all is well in every process; each waits for the others."""
    return fine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(fine)).all())


def check_same_model(stored: dict[str, Any], config: dict[str, Any], folder: pathlib.Path) -> None:
    """Refuses to go on with another model than the checkpoint's.

    Raises:
      ConfigError: a value of the section `model` differs; the message names both values.
    """
    changed = differences(section(stored, "model", folder), config["model"])
    # Rematerialisation and dropout change no parameter.
    lines = [f"model.{key}: {old!r} there, {new!r} now" for key, old, new in changed if key not in ("remat", "dropout")]
    if lines:
        raise ConfigError(
            f"the checkpoint in {folder} is of another model ({'; '.join(lines)}); "
            "give the same config or another --workdir"
        )


def section(stored: dict[str, Any], name: str, folder: pathlib.Path) -> dict[str, Any]:
    """A section of a stored config.

    Raises:
      ConfigError: it has none, since the run is of another kind: a pretraining where a fine-tuning should go on.
    """
    if name not in stored:
        raise ConfigError(
            f"the checkpoint in {folder} is of another kind of run: its config has no section {name!r}; "
            "give another --workdir"
        )
    return stored[name]


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf by its dotted name; the same for a state and for what a checkpoint tells of it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def check_leaves(
    stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], folder: pathlib.Path, remedy: str
) -> None:
    """Refuses a checkpoint with other leaves than are wanted; it is left as it is.

    Args:
      stored: shapes of the checkpoint, by name, as of `leaf_shapes`.
      wanted: those that are wanted.
      folder: of the checkpoint.
      remedy: what to do, for the message.

    Raises:
      ConfigError: a leaf is not there, is there and not wanted, or has another shape; the message names the first.
    """
    names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    names.sort(key=lambda name: name.startswith("opt_state."))  # it follows the parameters, which say more
    lines = [f"{name} {stored.get(name, 'absent')} there, {wanted.get(name, 'absent')} now" for name in names[:3]]
    if lines:
        shown = "; ".join(lines) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ConfigError(
            f"the checkpoint {folder} does not fit the config's model and optimizer ({shown}); {remedy}; it is whole, "
            "and was left as it is"
        )


@contextlib.contextmanager
def understood(folder: pathlib.Path) -> Iterator[None]:
    """Says in one sentence that a checkpoint's own memory of its run is not what this version of the code writes.

    Raises:
      CheckpointError: instead of what taking JSON values apart raises.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(_unreadable(folder, f"{type(error).__name__}: {error}")) from error


def _unreadable(folder: pathlib.Path, reason: str | None) -> str:
    said = (reason or "as another process found").splitlines()[0][:300]
    return (
        f"the checkpoint {folder} is whole, and cannot be read ({said}); go on with the version of the code that "
        "made it, or choose another --workdir; it was left as it is"
    )

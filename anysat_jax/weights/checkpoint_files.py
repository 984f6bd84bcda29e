"""Files of checkpoints: their checksums, what they must hold, and reading parts of the newest whole one."""

import concurrent.futures
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from anysat_jax.errors import CheckpointError, ConfigError
from anysat_jax.model.config import effective_groups

Params = dict[str, Any]

FILE = "checksums.json"
# Orbax writes these after its last call to us, into a folder that has its checksums; they hold times, and nothing reads
# them.
CHANGING = ("_CHECKPOINT_METADATA", "commit_success.txt")
SEALED = "checksums"  # in `meta`: this checkpoint has checksums, unlike those of the first versions
THREADS = 4  # hashing releases Python's lock


def write_checksums(folder: pathlib.Path) -> None:
    """Writes `checksums.json` into a folder: size in bytes and SHA-256 of every file below it.

    Raises:
      OSError: a file cannot be read, or the checksums cannot be written.
    """
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted(name for name in files if name not in (FILE, *CHANGING))
    # In place, not by a rename: a checkpoint's folder gets its name only after this file is whole.
    (folder / FILE).write_text(json.dumps({"files": _hash_files(folder, names)}, indent=2) + "\n", encoding="utf-8")


def find_damage(folder: pathlib.Path) -> str | None:
    """Compares the files of a folder with its checksums.

    Returns:
      A description of the first damage; None for a whole folder, and for one without checksums (see `has_checksums`).
      Files that were added later are ignored.
    """
    try:
        written = json.loads((folder / FILE).read_bytes())["files"]
    except FileNotFoundError:
        return _remains(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FILE} cannot be read: {error}"
    missing = [name for name in written if not (folder / name).is_file()]
    if missing:
        return _first_of(missing, "is missing")
    try:
        found = _hash_files(folder, list(written))
    except OSError as error:  # as of a failing disk
        return f"a file cannot be read: {error}"
    changed = [name for name in written if found[name] != written[name]]
    return _first_of(changed, "is not what was written") if changed else None


def _remains(folder: pathlib.Path) -> str | None:
    """Describes what is left of a folder without checksums; None for a whole one of an earlier version."""
    try:
        sealed = json.loads((folder / "meta" / "metadata").read_bytes()).get(SEALED)
    except FileNotFoundError:
        return "its files are gone"
    except (OSError, ValueError, AttributeError) as error:
        return f"meta cannot be read: {error}"
    # A process that is killed while it deletes the folder may have removed the checksums first.
    return "it is half deleted: its checksums are gone" if sealed else None


def has_checksums(folder: pathlib.Path) -> bool:
    """Returns whether a folder has checksums."""
    return (folder / FILE).is_file()


def _hash_files(folder: pathlib.Path, names: list[str]) -> dict[str, dict[str, Any]]:
    def one(name: str) -> dict[str, Any]:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"bytes": file.tell(), "sha256": digest}

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def _first_of(names: list[str], what: str) -> str:
    return f"{names[0]} {what}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def section(stored: dict[str, Any], name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Returns a section of a stored config.

    Raises:
      ConfigError: it has no such section, since a run of another kind wrote it.
    """
    if name not in stored:
        raise ConfigError(
            f"the checkpoint in {folder} is of another kind of run: its config has no section {name!r}; "
            "give another --workdir"
        )
    return stored[name]


def objective_of(config: dict[str, Any]) -> str:
    """Returns the objective of a run's config, JSON values; older runs, and other jobs, have none."""
    found = config.get("pretrain")
    return str(found.get("objective", "paper")) if isinstance(found, dict) else "paper"


def check_same_model(stored: dict[str, Any], config: dict[str, Any], folder: pathlib.Path) -> None:
    """Refuses a checkpoint of another model; `stored` and `config` are JSON values of its config and of this run's.

    Raises:
      ConfigError: a value of the section `model` differs, or the objective of pretraining, by which the student has a
        decoder; the message names both values.
    """
    old, new = section(stored, "model", folder), config["model"]
    old, new = ({**one, "norm_groups": effective_groups(one.get("norm_groups"), one.get("dim"))} for one in (old, new))
    names = sorted({**old, **new}.keys() - {"remat", "dropout"})  # these two change no parameter
    pairs = [(f"model.{name}", old.get(name), new.get(name)) for name in names]
    pairs.append(("pretrain.objective", *(objective_of(one) for one in (stored, config))))
    if lines := [f"{name}: {there!r} there, {now!r} now" for name, there, now in pairs if there != now]:
        raise ConfigError(
            f"the checkpoint in {folder} is of another model ({'; '.join(lines)}); "
            "give the same config or another --workdir"
        )


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf by its dotted name, of a state or of a checkpoint's metadata."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def check_leaves(
    stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], folder: pathlib.Path, remedy: str
) -> None:
    """Refuses a checkpoint whose leaves are not the wanted ones, by the shapes of `leaf_shapes`; changes nothing.

    Raises:
      ConfigError: a leaf is absent, superfluous or of another shape; the message names the first three.
    """
    names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    names.sort(key=lambda name: name.startswith("opt_state."))  # its leaves repeat the parameters', which say more
    lines = [f"{name} {stored.get(name, 'absent')} there, {wanted.get(name, 'absent')} now" for name in names[:3]]
    if lines:
        shown = "; ".join(lines) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ConfigError(
            f"the checkpoint {folder} does not fit the config's model and optimizer ({shown}); {remedy}; it is whole, "
            "and was left as it is"
        )


def read_newest(workdir: pathlib.Path, wanted: Callable[[dict[str, Any]], Params]) -> tuple[dict[str, Any], Params]:
    """Returns the config of a pretraining run, JSON values, and parts of its newest whole checkpoint.

    Args:
      wanted: returns, for the run's config, the parts to read: {"params" or "teacher": shapes, dtypes and shardings}.

    Raises:
      CheckpointError: the folder holds no whole checkpoint of a pretraining run.
      ConfigError: another version of the code wrote it, with other parameters.
    """
    folder = workdir.absolute() / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{workdir} is not the workdir of a run: it has no folder checkpoints")
    # A fresh manager, since one remembers the first way in which an item was read.
    with ocp.CheckpointManager(folder) as manager:
        step = _newest_whole(folder, sorted(manager.all_steps()))
        path = folder / str(step)
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        run = meta["config"]
        if "model" not in run or run.get("job", "pretrain") != "pretrain":
            raise CheckpointError(
                f"{workdir} is of a fine-tuning or probing run that has not finished, so it has no exported model yet; "
                "start it again to go on with it"
            )
        parts = wanted(run)
        stored = leaf_shapes(ocp.StandardCheckpointHandler().metadata(path / "state").tree)
        stored = {name: shape for name, shape in stored.items() if name.partition(".")[0] in parts}
        remedy = "read it with the version of the code that made it, or give another run"
        check_leaves(stored, leaf_shapes(parts), path, remedy)
        # Partial, so that the optimizer's state is neither read nor needs to be known.
        restore_args = ocp.checkpoint_utils.construct_restore_args(parts)
        restore = ocp.args.PyTreeRestore(parts, restore_args=restore_args, partial_restore=True)
        return run, manager.restore(step, args=ocp.args.Composite(state=restore))["state"]


def _newest_whole(folder: pathlib.Path, steps: list[int]) -> int:
    """Returns the newest step whose files match their checksums; raises CheckpointError where there is none."""
    for step in reversed(steps):
        reason = find_damage(folder / str(step))
        if reason is None:
            return step
        # Left where it is: the run that wrote it may be alive, and moves it itself.
        logging.warning("checkpoint %s/%d is damaged (%s); trying the one before it", folder, step, reason)
    raise CheckpointError(
        f"all checkpoints of {folder} are damaged (steps {steps}); give another run"
        if steps
        else f"there is no whole checkpoint in {folder} yet"
    )

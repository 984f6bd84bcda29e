"""Prints the status.json of one run, or a table of several.

python -m anysat_jax.status RUN [RUN ...]

RUN is a workdir. The exit code is 1 if a run failed, its process is gone, or it has no status.
"""

import argparse
import datetime
import fcntl
import json
import pathlib
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

FILE_NAME, LOCK_FILE = "status.json", "run.lock"  # here, since this command must start without importing JAX
ENDED = ("done", "stopped", "failed")
STALE_SECONDS = 600  # compiling a large program may take minutes, in which nothing is written
COLUMNS = ("run", "state", "step", "loss", "tiles/s", "MFU", "input", "checkpoint", "updated")
Status = Mapping[str, Any]


class NoStatusError(Exception):
    """A folder has no status that can be read."""


def read_status(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads a workdir's status.json; adds "trouble", what is wrong with the run, "" if nothing is known to be.

    Raises:
      NoStatusError: there is none, or it is something else.
    """
    path = workdir / FILE_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["trouble"] = _trouble(found, workdir)
        age(found), found["step"], found["total_steps"]
    except FileNotFoundError:
        raise NoStatusError(f"there is no {path}; give the workdir of a run") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoStatusError(f"{path} is not the status of a run ({type(error).__name__}: {error})") from error
    return found


def age(status: Status) -> float:
    """Returns the seconds since it was written, by this machine's clock; 0 if that is behind."""
    written = datetime.datetime.fromisoformat(status["updated"])
    return max(0.0, (datetime.datetime.now(datetime.UTC) - written).total_seconds())


def _trouble(status: Status, workdir: pathlib.Path) -> str:
    if status["state"] == "failed":
        return f"failed: {status.get('error')}"
    if status["state"] in ENDED:
        return ""
    # Locks of another machine need not be visible here, as in mounted buckets.
    if status["host"] == socket.gethostname() and _is_unlocked(workdir / LOCK_FILE):
        return "dead: its process no longer exists (killed?); start the same command again"
    if age(status) > STALE_SECONDS:
        return f"stale: nothing was written for {duration(age(status))}; check whether the run is still alive"
    return ""


def _is_unlocked(path: pathlib.Path) -> bool:
    """Returns whether a file is there and no process holds its lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked, absent, or on a file system without locks
        return False
    return True


def describe(run: str, status: Status) -> str:
    """Returns a few lines about one run."""
    fraction = status["step"] / max(1, status["total_steps"])
    state = status["state"] if status["state"] in ENDED or not status.get("trouble") else f"{status['state']}?"
    lines = [f"{run}: {state}, step {status['step']:,} of {status['total_steps']:,} ({fraction:.0%})"]
    rows = {
        "trouble": status.get("trouble"),
        "progress": _progress(status),
        "losses": _losses(status),
        "best": _best(status),
        "speed": _speed(status),
        "last checkpoint": "" if status.get("last_checkpoint") is None else f"step {status['last_checkpoint']:,}",
        "device memory": _memory(status),
        "set aside": _set_aside(status),
        "updated": f"{duration(age(status))} ago by process {status['pid']} on {status['host']}",
    }
    return "\n".join([*lines, *(f"  {name:16}{text}" for name, text in rows.items() if text)])


def _progress(status: Status) -> str:
    at = status.get("progress")
    return "" if not at else f"{at['of']}: {at['samples']:,} of {at['total']:,} samples"


def _best(status: Status) -> str:
    best = status.get("best")
    return "" if not best else f"{best['metric']} {best['value']:.4f} at epoch {best['epoch']}"


def _losses(status: Status) -> str:
    known = {name: value for name, value in (status.get("losses") or {}).items() if value is not None}
    return ", ".join(f"{name} {value:.4f}" for name, value in known.items())


def _speed(status: Status) -> str:
    if status.get("tiles_per_second") is None:
        return ""
    utilisation = "" if status["mfu"] is None else f", MFU {status['mfu']:.1%}"
    waiting = f", {status['input_wait_share']:.0%} of the time waiting for input"
    return f"{status['tiles_per_second']:.1f} tiles/s{utilisation}{waiting}"


def _memory(status: Status) -> str:
    memory = status.get("device_memory")
    return (
        "" if not memory else f"{memory['peak_bytes'] / 2**30:.1f} of {memory['limit_bytes'] / 2**30:.1f} GiB at most"
    )


def _set_aside(status: Status) -> str:
    names = {
        "nonfinite_steps": "steps not finite",
        "skipped_records": "tiles skipped",
        "left_out_tiles": "tiles left out of evaluations",
        "health_warnings": "warnings of the features' health",
    }
    return ", ".join(f"{status[key]} {words}" for key, words in names.items() if status.get(key))


def table(runs: Mapping[str, Status]) -> str:
    """Returns a table with a line for each run."""
    rows = [COLUMNS, *(_row(run, status) for run, status in runs.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _row(run: str, status: Status) -> tuple[str, ...]:
    losses = [value for value in (status.get("losses") or {}).values() if value is not None]

    def shown(name: str, form: str) -> str:
        return "-" if status.get(name) is None else format(status[name], form)

    return (
        run,
        status.get("trouble", "").partition(":")[0] or status["state"],
        f"{status['step']:,}/{status['total_steps']:,}",
        f"{sum(losses):.4f}" if losses else "-",
        shown("tiles_per_second", ".1f"),
        shown("mfu", ".1%"),
        shown("input_wait_share", ".0%"),
        shown("last_checkpoint", ","),
        f"{duration(age(status))} ago",
    )


def duration(seconds: float) -> str:
    """Returns a time in the largest unit of which there are at least two."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def main(arguments: Sequence[str]) -> int:
    """Prints the runs. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m anysat_jax.status", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the workdir of a run")
    found, code = {}, 0
    for run in parser.parse_args(arguments).runs:
        try:
            found[run] = read_status(pathlib.Path(run))
        except NoStatusError as error:
            print(f"anysat_jax: {error}", file=sys.stderr)
            code = 1
    if found:
        print(table(found) if len(found) > 1 else describe(*next(iter(found.items()))))
    return 1 if code or any(status["trouble"] for status in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

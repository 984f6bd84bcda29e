"""Prints the status.json of one run, or a table of several.

python -m anysat_jax.status RUN [RUN ...]

RUN is a workdir. The exit code is 1 if a run failed, is dead or stale, or does not have a status.
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

from tabulate import tabulate

from anysat_jax.errors import complain, printable

# Not imported from `train`: this command starts without JAX, at once also on a login node.
FILE_NAME, LOCK_FILE = "status.json", "run.lock"
ENDED = ("done", "stopped", "failed")
# Compiling a large program may take minutes, in which nothing is written.
STALE_SECONDS = 600
COLUMNS = ("run", "state", "step", "loss", "tiles/s", "MFU", "input", "checkpoint", "updated")
SET_ASIDE = {
    "nonfinite_steps": "steps not finite",
    "skipped_records": "tiles skipped",
    "left_out_tiles": "tiles left out of evaluations",
    "health_warnings": "warnings of the features' health",
}
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
        describe("", found), table({"": found})  # what cannot be shown is of something else
    except FileNotFoundError:
        raise NoStatusError(f"there is no {path}; give the workdir of a run") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
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
    # Locks of another machine may be invisible here, as in mounted buckets.
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
    rows = {"trouble": status.get("trouble")}
    if progress := status.get("progress"):
        rows["progress"] = f"{progress['of']}: {progress['samples']:,} of {progress['total']:,} samples"
    losses = {name: value for name, value in (status.get("losses") or {}).items() if value is not None}
    rows["losses"] = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    if best := status.get("best"):
        rows["best"] = f"{best['metric']} {best['value']:.4f} at epoch {best['epoch']}"
    if status.get("tiles_per_second") is not None:
        utilisation = "" if status["mfu"] is None else f", MFU {status['mfu']:.1%}"
        waiting = f", {status['input_wait_share']:.0%} of the time waiting for input"
        rows["speed"] = f"{status['tiles_per_second']:.1f} tiles/s{utilisation}{waiting}"
    if status.get("last_checkpoint") is not None:
        rows["last checkpoint"] = f"step {status['last_checkpoint']:,}"
    if memory := status.get("device_memory"):
        peak, limit = (memory[name] / 2**30 for name in ("peak_bytes", "limit_bytes"))
        rows["device memory"] = f"{peak:.1f} of {limit:.1f} GiB at most"
    rows["set aside"] = ", ".join(f"{status[key]} {words}" for key, words in SET_ASIDE.items() if status.get(key))
    rows["updated"] = f"{duration(age(status))} ago by process {status['pid']} on {status['host']}"
    return "\n".join([*lines, *(f"  {name:16}{text}" for name, text in rows.items() if text)])


def table(runs: Mapping[str, Status]) -> str:
    """Returns a table with a line for each run."""
    rows = []
    for run, status in runs.items():
        losses = [value for value in (status.get("losses") or {}).values() if value is not None]
        state = status.get("trouble", "").partition(":")[0] or status["state"]
        cells = [run, state, f"{status['step']:,}/{status['total_steps']:,}", f"{sum(losses):.4f}" if losses else "-"]
        formats = {"tiles_per_second": ".1f", "mfu": ".1%", "input_wait_share": ".0%", "last_checkpoint": ","}
        cells += ["-" if status.get(name) is None else format(status[name], form) for name, form in formats.items()]
        rows.append([*cells, f"{duration(age(status))} ago"])
    return tabulate(rows, COLUMNS, tablefmt="plain", disable_numparse=True)


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
    # A folder without a status must not hide the other runs.
    for run in parser.parse_args(arguments).runs:
        try:
            found[run] = read_status(pathlib.Path(run))
        except NoStatusError as error:
            code = complain(error)
    if found:
        text = table(found) if len(found) > 1 else describe(*next(iter(found.items())))
        print(printable(text))
    return 1 if code or any(status["trouble"] for status in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

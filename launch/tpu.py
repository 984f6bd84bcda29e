"""Cloud TPU slices by queued resources: create, set up, train on all hosts, delete.

  python -m launch.tpu create NAME --zone=ZONE --topology=v5e:16x16 --spot
  python -m launch.tpu wait   NAME --zone=ZONE
  python -m launch.tpu setup  NAME --zone=ZONE --bucket=BUCKET
  python -m launch.tpu run    NAME --zone=ZONE -- --config=configs/pretrain.py:geoplex --workdir=/mnt/anysat/geoplex
  python -m launch.tpu logs   NAME --zone=ZONE
  python -m launch.tpu stop   NAME --zone=ZONE
  python -m launch.tpu delete NAME --zone=ZONE

Arguments after `--` are passed to gcloud by `create`, to anysat_jax.main by `run`, and run as a command on every host
by `exec`. --dry_run prints the commands of an action and runs none. See docs/LAUNCH.md.
"""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from anysat_jax.errors import RunError

from .chips import GENERATIONS, Slice


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words at the first `--`: an action's own, and those for another program."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def bucket(text: str) -> str:
    """Checks a bucket's name.

    Raises:
      ArgumentTypeError: the name is invalid.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+[A-Za-z0-9]", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot name a bucket; give the name alone, without gs:// and folders"
        )
    return text


class Commands:
    """Runs commands, or prints them.

    Args:
      dry_run: print, run nothing.
    """

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run

    def run(self, *words: str) -> None:
        """Runs a command with this process's output.

        Raises:
          RunError: it is not installed, or it failed.
        """
        self._start(words, capture=False)

    def output(self, *words: str) -> str | None:
        """Returns the stripped output of a command; None in a dry run.

        Raises:
          RunError: it is not installed, or it failed.
        """
        answer = self._start(words, capture=True)
        return answer.strip() if answer is not None else None

    def _start(self, words: Sequence[str], capture: bool) -> str | None:
        line = shlex.join(words)
        if self.dry_run:
            print(line)
            return None
        print(f"+ {line}", file=sys.stderr)
        try:
            done = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE if capture else None)
        except FileNotFoundError:
            raise RunError(f"{words[0]} is not installed, or not on the PATH") from None
        except subprocess.CalledProcessError as error:
            raise RunError(f"{words[0]} ended with exit code {error.returncode}: {line}") from None
        return done.stdout


REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
FOLDER = "anysat-jax"  # below the home of every host
ARCHIVE = REPOSITORY / "build" / f"{FOLDER}.tar.gz"
POLL_SECONDS = 30.0
GONE = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")

# A systemd unit outlives the connection, keeps a log, cannot start twice, and gets SIGTERM from `stop` and at shutdown.
# KillMode: only the first process gets it, so that data workers live until the checkpoint is saved.
UNIT = (
    f'sudo systemd-run --collect --unit=anysat --uid="$(id -u)" --working-directory="$HOME/{FOLDER}" '
    "--property=KillMode=mixed --property=TimeoutStopSec=600"
)


def create(given: argparse.Namespace, commands: Commands) -> None:
    """Requests a slice; `wait` returns when it is provisioned."""
    slice_ = Slice.parse(given.topology)
    words = [
        *("gcloud", "compute", "tpus", "queued-resources", "create", given.name, f"--node-id={given.name}"),
        *_place(given),
        f"--accelerator-type={slice_.accelerator_type}",
        f"--runtime-version={GENERATIONS[slice_.generation].runtime}",
    ]
    commands.run(*words, *(["--spot"] if given.spot else []), *given.rest)


def wait(given: argparse.Namespace, commands: Commands) -> None:
    """Waits until the slice is provisioned.

    Raises:
      RunError: the request failed or was suspended.
    """
    before = None
    while (state := _state(given, commands)) not in (None, "ACTIVE"):
        if state in GONE:
            raise RunError(f"{given.name} is {state}: delete it, and create it again")
        if state != before:
            print(f"{given.name}: {state}", flush=True)
        before = state
        time.sleep(POLL_SECONDS)


def setup(given: argparse.Namespace, commands: Commands) -> None:
    """Copies the last commit to all hosts and installs it."""
    if not commands.dry_run:
        _warn_of_changes()
        ARCHIVE.parent.mkdir(exist_ok=True)
    archive = str(ARCHIVE.relative_to(REPOSITORY))
    commands.run(
        *("git", "-C", str(REPOSITORY), "archive", "--format=tar.gz", f"--prefix={FOLDER}/", f"--output={archive}"),
        "HEAD",
    )
    copy = ("gcloud", "compute", "tpus", "tpu-vm", "scp", str(ARCHIVE), f"{given.name}:")
    commands.run(*copy, *_place(given), "--worker=all")
    install = shlex.join(["bash", f"{FOLDER}/launch/tpu_host.sh", *([given.bucket] if given.bucket else [])])
    _ssh(given, commands, "all", f"tar -xzf {ARCHIVE.name} && {install}")


def run(given: argparse.Namespace, commands: Commands) -> None:
    """Starts training on all hosts in the background."""
    main = [".venv/bin/python", "-m", "anysat_jax.main", "--processes=auto", *given.rest]
    _ssh(given, commands, "all", f"{UNIT} bash launch/keep_going.sh {shlex.join(main)}")


def execute(given: argparse.Namespace, commands: Commands) -> None:
    """Runs a command in the checkout of every host."""
    _ssh(given, commands, given.worker, f"cd {FOLDER} && {shlex.join(given.rest)}")


def logs(given: argparse.Namespace, commands: Commands) -> None:
    """Follows the log of a host."""
    _ssh(given, commands, given.worker, "sudo journalctl --unit=anysat --output=cat --lines=100 --follow")


def stop(given: argparse.Namespace, commands: Commands) -> None:
    """Sends SIGTERM to the training on all hosts and waits until it has saved and ended."""
    _ssh(given, commands, "all", "sudo systemctl stop anysat")


def delete(given: argparse.Namespace, commands: Commands) -> None:
    """Deletes the slice with its hosts and their disks; gcloud asks for confirmation."""
    words = ("gcloud", "compute", "tpus", "queued-resources", "delete", given.name)
    commands.run(*words, *_place(given), "--force")


def _place(given: argparse.Namespace) -> list[str]:
    return [f"--zone={given.zone}", *([f"--project={given.project}"] if given.project else [])]


def _state(given: argparse.Namespace, commands: Commands) -> str | None:
    words = ("gcloud", "compute", "tpus", "queued-resources", "describe", given.name)
    return commands.output(*words, *_place(given), "--format=value(state.state)")


def _ssh(given: argparse.Namespace, commands: Commands, worker: str, line: str) -> None:
    words = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", given.name)
    commands.run(*words, *_place(given), f"--worker={worker}", f"--command={line}")


def _warn_of_changes() -> None:
    found = subprocess.run(
        ["git", "-C", str(REPOSITORY), "status", "--porcelain"], capture_output=True, text=True, check=False
    )
    if found.stdout:
        print("launch.tpu: uncommitted changes are not copied to the hosts", file=sys.stderr)


ACTIONS = dict(create=create, wait=wait, setup=setup, run=run, exec=execute, logs=logs, stop=stop, delete=delete)
NEEDS_REST, MAY_HAVE_REST = ("run", "exec"), ("create",)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    whole = argparse.ArgumentParser(
        "python -m launch.tpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = whole.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, function in ACTIONS.items():
        one = actions.add_parser(name, help=(function.__doc__ or "").partition("\n")[0])
        one.add_argument("name", metavar="NAME", help="name of the queued resource and of its slice")
        one.add_argument("--zone", required=True, help="zone of the slice, such as us-west4-a")
        one.add_argument("--project", help="default: gcloud's")
        one.add_argument("--dry_run", action="store_true", help="print the commands, run none")
        if name == "create":
            one.add_argument("--topology", required=True, help="such as v5e:16x16; launch.aot estimates what fits")
            one.add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
        if name == "setup":
            one.add_argument("--bucket", type=bucket, help="mounted at /mnt/anysat; several hosts need a shared disk")
        if name in ("logs", "exec"):
            one.add_argument(
                "--worker", type=worker, default="0" if name == "logs" else "all", help="a host's number, or all"
            )
    return whole


def worker(text: str) -> str:
    """Checks the number of a host.

    Raises:
      ArgumentTypeError: it is neither a number nor "all".
    """
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a host nor all")
    return text


def check_rest(given: argparse.Namespace) -> None:
    """Checks the arguments after `--`.

    Raises:
      RunError: an action needs some and there are none, or takes none.
    """
    if given.rest and given.action not in NEEDS_REST + MAY_HAVE_REST:
        raise RunError(f"{given.action} takes nothing after --, and got {shlex.join(given.rest)}")
    if not given.rest and given.action in NEEDS_REST:
        example = (
            "--config=configs/pretrain.py:geoplex --workdir=/mnt/anysat/geoplex" if given.action == "run" else "df"
        )
        raise RunError(f"{given.action} needs words after --, for instance -- {example}")


def main(words: list[str]) -> int:
    """Runs an action and returns the exit code."""
    own, rest = split(words)
    given = parser().parse_args(own)
    given.rest = rest
    try:
        check_rest(given)
        ACTIONS[given.action](given, Commands(given.dry_run))
    except RunError as error:
        print(f"launch.tpu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # how `logs` ends
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

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

from anysat_jax.errors import RunError, complain

from .chips import parse_topology


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits words at the first `--`: an action's own, and those for another program."""
    cut = words.index("--") if "--" in words else len(words)
    return list(words[:cut]), list(words[cut + 1 :])


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


def call(given: argparse.Namespace, *words: str, capture: bool = False) -> str | None:
    """Runs a command, or prints it in a dry run.

    Returns:
      Its stripped output if `capture`, which is not shown then; None in a dry run.

    Raises:
      RunError: it is not installed, or it failed.
    """
    line = shlex.join(words)
    if given.dry_run:
        print(line)
        return None
    print(f"+ {line}", file=sys.stderr)
    try:
        done = subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE if capture else None)
    except FileNotFoundError:
        raise RunError(f"{words[0]} is not installed, or not on the PATH") from None
    except subprocess.CalledProcessError as error:
        raise RunError(f"{words[0]} ended with exit code {error.returncode}: {line}") from None
    return done.stdout.strip() if capture else None


def gcloud(given: argparse.Namespace, group: str, verb: str, *words: str, capture: bool = False) -> str | None:
    """Runs `gcloud compute tpus GROUP VERB WORDS` in the zone and project of the command line, see `call`."""
    place = [f"--zone={given.zone}", *([f"--project={given.project}"] if given.project else [])]
    return call(given, "gcloud", "compute", "tpus", group, verb, *words, *place, capture=capture)


def ssh(given: argparse.Namespace, worker: str, line: str) -> None:
    """Runs a line of shell on one host, or on "all"."""
    gcloud(given, "tpu-vm", "ssh", given.name, f"--worker={worker}", f"--command={line}")


def create(given: argparse.Namespace) -> None:
    """Requests a slice; `wait` returns when it is provisioned."""
    topology = parse_topology(given.topology, tpu=True)
    words = [
        f"--node-id={given.name}",
        f"--accelerator-type={topology.accelerator_type}",
        f"--runtime-version={topology.generation.runtime}",
        *(["--spot"] if given.spot else []),
    ]
    gcloud(given, "queued-resources", "create", given.name, *words, *given.rest)


def wait(given: argparse.Namespace) -> None:
    """Waits until the slice is provisioned.

    Raises:
      RunError: the request failed or was suspended.
    """
    describe = ("queued-resources", "describe", given.name, "--format=value(state.state)")
    before = None
    while (state := gcloud(given, *describe, capture=True)) not in (None, "ACTIVE"):
        if state in GONE:
            raise RunError(f"{given.name} is {state}: delete it, and create it again")
        if state != before:
            print(f"{given.name}: {state}", flush=True)
        before = state
        time.sleep(POLL_SECONDS)


def setup(given: argparse.Namespace) -> None:
    """Copies the last commit to all hosts and installs it."""
    git = ["git", "-C", str(REPOSITORY)]
    if not given.dry_run:
        if subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=False).stdout:
            print("launch.tpu: uncommitted changes are not copied to the hosts", file=sys.stderr)
        ARCHIVE.parent.mkdir(exist_ok=True)
    archive = str(ARCHIVE.relative_to(REPOSITORY))
    call(given, *git, "archive", "--format=tar.gz", f"--prefix={FOLDER}/", f"--output={archive}", "HEAD")
    gcloud(given, "tpu-vm", "scp", str(ARCHIVE), f"{given.name}:", "--worker=all")
    install = shlex.join(["bash", f"{FOLDER}/launch/tpu_host.sh", *([given.bucket] if given.bucket else [])])
    ssh(given, "all", f"tar -xzf {ARCHIVE.name} && {install}")


def run(given: argparse.Namespace) -> None:
    """Starts training on all hosts in the background."""
    main = [".venv/bin/python", "-m", "anysat_jax.main", "--processes=auto", *given.rest]
    ssh(given, "all", f"{UNIT} bash launch/keep_going.sh {shlex.join(main)}")


def execute(given: argparse.Namespace) -> None:
    """Runs a command in the checkout of every host."""
    ssh(given, given.worker, f"cd {FOLDER} && {shlex.join(given.rest)}")


def logs(given: argparse.Namespace) -> None:
    """Follows the log of a host."""
    ssh(given, given.worker, "sudo journalctl --unit=anysat --output=cat --lines=100 --follow")


def stop(given: argparse.Namespace) -> None:
    """Sends SIGTERM to the training on all hosts and waits until it has saved and ended."""
    ssh(given, "all", "sudo systemctl stop anysat")


def delete(given: argparse.Namespace) -> None:
    """Deletes the slice with its hosts and their disks; gcloud asks for confirmation."""
    # --force deletes the nodes too; without it gcloud refuses a resource that still has some.
    gcloud(given, "queued-resources", "delete", given.name, "--force")


ACTIONS = dict(create=create, wait=wait, setup=setup, run=run, exec=execute, logs=logs, stop=stop, delete=delete)
REST_EXAMPLES = {"run": "--config=configs/pretrain.py:geoplex --workdir=/mnt/anysat/geoplex", "exec": "df"}
"""Arguments after `--` of the actions that need some."""


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
            one.add_argument("--worker", default="0" if name == "logs" else "all", help="a host's number, or all")
    return whole


def main(words: list[str]) -> int:
    """Runs an action and returns the exit code."""
    own, rest = split(words)
    given = (whole := parser()).parse_args(own)
    if (host := getattr(given, "worker", "all")) != "all" and not host.isdecimal():
        whole.error(f"argument --worker: {host!r} is neither the number of a host nor all")
    given.rest = rest
    try:
        if rest and given.action not in ("create", *REST_EXAMPLES):
            raise RunError(f"{given.action} takes nothing after --, and got {shlex.join(rest)}")
        if not rest and given.action in REST_EXAMPLES:
            example = REST_EXAMPLES[given.action]
            raise RunError(f"{given.action} needs words after --, for instance -- {example}")
        ACTIONS[given.action](given)
    except RunError as error:
        return complain(error, "launch.tpu")
    except KeyboardInterrupt:
        # Ctrl-C is the way to leave `logs`; 128 + SIGINT is what a shell returns for it.
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Programs that tests run beside this project: real ones, or stand-ins that note how they were called."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def installed(program: str) -> str:
    """The program's path: beside this Python, or on the PATH; the test skips where there is none."""
    beside = str(pathlib.Path(sys.executable).parent)
    found = shutil.which(program, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def bash(*words: str, cwd: pathlib.Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    """Runs a script to its end."""
    return subprocess.run(
        ["bash", *words], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def gcloud_refuses(lines: list[str], folder: pathlib.Path) -> list[str]:
    """What gcloud, where it is installed, has against commands; it runs none, and needs no account."""
    listed = folder / "commands.json"
    listed.write_text(json.dumps([{"command_string": line} for line in lines]))
    said = subprocess.run(
        [installed("gcloud"), "meta", "lint-gcloud-commands", f"--commands-file={listed}"],
        env=os.environ | {"CLOUDSDK_CONFIG": str(folder)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    verdicts = json.loads(said.stdout or "[]")
    assert len(verdicts) == len(lines), said.stderr
    return [one["error_message"] for one in verdicts if not one["success"]]


class StandIns:
    """A folder for the PATH with programs that write down their words, and do what a test says."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self._calls = folder, folder / "calls"
        self.path = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def add(self, name: str, script: str = "") -> None:
        """A program whose every call is noted, and then runs a bash script."""
        program = self.folder / name
        # Unit and record separators; a single write, since the programs of a pipe write at once.
        note = f"printf -v call '%s\\037' {name} \"$@\"; printf '%s\\036' \"$call\" >> {self._calls}"
        program.write_text(f"#!/usr/bin/env bash\n{note}\n{script}\n")
        program.chmod(0o755)

    def answers(self, name: str, *lines: str) -> None:
        """A program that prints the lines one after the other, one a call."""
        waiting = self.folder / f"{name}.answers"
        waiting.write_text("".join(f"{line}\n" for line in lines))
        self.add(name, f"head -n 1 {waiting}; sed -i 1d {waiting}")

    def exit_codes(self, name: str, *codes: int) -> None:
        """A program that ends with the codes one after the other, one a call; 99 after the last."""
        waiting = self.folder / f"{name}.codes"
        waiting.write_text("".join(f"{code}\n" for code in codes))
        self.add(name, f"code=$(head -n 1 {waiting}); sed -i 1d {waiting}; exit ${{code:-99}}")

    @property
    def calls(self) -> list[list[str]]:
        """The words of every call so far, the program's name first."""
        text = self._calls.read_text() if self._calls.exists() else ""
        return [call.split("\037")[:-1] for call in text.split("\036")[:-1]]

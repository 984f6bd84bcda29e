"""Processes that are forked off a server, which has imported everything and started no thread: imports take seconds."""

import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# The first process starts the server, whichever test it belongs to.
PRELOAD = [
    "tests.train.killed_run",
    "tests.downstream.adapt_toys",
    "tests.downstream.fit_toys",
    "anysat_jax.main",
    "anysat_jax.downstream.finetune",
    "anysat_jax.report.page",
    "anysat_jax.scenes.run",
]


def start(function: Callable[..., None], *args: Any) -> Any:
    """Returns a `multiprocessing.Process` that calls a function."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    process = server.Process(target=function, args=args)
    process.start()
    return process


def call(function: Callable[..., None], *args: Any) -> int | None:
    """Returns the exit code of a process that calls a function."""
    process = start(function, *args)
    process.join(timeout=900)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


def run(
    script: pathlib.Path, words: Sequence[str], environment: Mapping[str, str], folder: pathlib.Path
) -> subprocess.CompletedProcess[str]:
    """Runs a Python script in a folder, as `subprocess.run` does with captured text."""
    with tempfile.TemporaryDirectory() as place:
        files = [pathlib.Path(place) / name for name in ("stdout", "stderr")]
        program = functools.partial(runpy.run_path, str(script), run_name="__main__")
        code = call(command_line, program, [str(script), *words], dict(environment), folder, files)
        said = [file.read_text(encoding="utf-8") for file in files]
    assert code is not None, f"{script} did not end\n{said[1]}"
    return subprocess.CompletedProcess([str(script), *words], code, *said)


def command_line(
    program: Callable[[], Any],
    argv: list[str],
    environment: dict[str, str],
    folder: pathlib.Path,
    files: list[pathlib.Path],
) -> None:
    """Calls a program with these arguments and this environment; `files` get what it prints and its errors."""
    for number, file in enumerate(files, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = argv
    program()

"""Errors that a user can remedy; the command line prints them without a traceback."""

import pathlib
import sys


class RunError(Exception):
    """The run cannot start or continue; the message has the reason and the remedy."""


class ConfigError(RunError, ValueError):
    """A value of the config is wrong, or does not fit the machine or the workdir."""


class CheckpointError(RunError):
    """No checkpoint of the workdir can be read."""


class StorageError(RunError):
    """The workdir cannot be written, or another run holds it."""


class DataError(RunError):
    """The data cannot be read any further."""


class NonFiniteError(RunError, FloatingPointError):
    """A loss or a gradient is infinite or not a number."""


class Preempted(RunError):
    """A signal stopped the run, which has saved its state."""


def printable(text: object) -> str:
    """Returns a text with its control characters escaped, which a terminal would obey; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in str(text))


def reason(error: object) -> str:
    """Returns an error's message; that of the system without its number, or which file lies where a folder must be."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if isinstance(error, NotADirectoryError | FileExistsError) and error.filename:
        path = pathlib.Path(str(error.filename))
        if files := [part for part in (path, *path.parents) if part.is_file()]:
            return f"{files[0]} is a file, and a folder is needed there"
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def complain(error: object, program: str = "anysat_jax") -> int:
    """Prints an error on standard error; returns the exit code of errors."""
    print(f"{program}: {printable(reason(error))}", file=sys.stderr)
    return 1

"""Errors that a user can remedy; the command line prints them without a traceback."""


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

"""AnySat in JAX: one Earth-observation model for any mix of sensors, resolutions and tile sizes."""

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from anysat_jax.sensors import SENSORS, Sensor

if TYPE_CHECKING:
    from anysat_jax.api import AnySat

__version__ = "0.1.0"
EXIT_INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended
__all__ = ["SENSORS", "AnySat", "Sensor", "__version__"]


def end_at_once(*_: Any) -> None:
    """Ends the process in one sentence: the handler of Ctrl-C while a command is imported."""
    os.write(2, b"anysat_jax: interrupted; start the same command again\n")
    os._exit(EXIT_INTERRUPTED)


# Of `python -m anysat_jax.main` and the like, whose imports take seconds; a program that imports this package is left
# alone.
if sys.argv[:1] == ["-m"] and any(word.startswith(("anysat_jax", "data_pipelines")) for word in sys.orig_argv):
    signal.signal(signal.SIGINT, end_at_once)


def __getattr__(name: str) -> Any:
    """Imports AnySat on first access."""
    # JAX and Flax take seconds to import, and tools that only read sensors should start at once.
    if name == "AnySat":
        from anysat_jax.api import AnySat

        return AnySat
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a user names as a sensor's source, as a stack of acquisitions."""

import os
from typing import Any

from anysat_jax.scenes.reading import Stack


def open_stack(sensor: str, source: str | os.PathLike | Any) -> Stack:
    """Opens a sensor's rasters."""
    raise NotImplementedError(sensor, source)

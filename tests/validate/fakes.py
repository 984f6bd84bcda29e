"""Data as a user hands it over."""

from typing import Any

import numpy as np

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.sensors import GEOPLEX_SENSORS


def as_data(batch: Batch) -> dict[str, Any]:
    """A batch as the dict that it would be made from."""
    data = {}
    for name, observation in batch.observations.items():
        data[name] = observation.values
        if observation.dates is not None:
            data[f"{name}_dates"] = observation.dates
    return data


def make_data(*sensors: str, **options: Any) -> dict[str, Any]:
    """Noise of two tiles of 60 x 60 m with four dates, unless told otherwise."""
    return as_data(fake_batch(sensors or ("s2",), **options))


def with_nan(values: np.ndarray, *index: Any) -> np.ndarray:
    """A copy with NaN at `index`."""
    values = values.copy()
    values[index] = np.nan
    return values


ALL = GEOPLEX_SENSORS

"""Statistics that standardise raw values, and the units of values."""

import warnings

import numpy as np

from anysat_jax.sensors import Sensor

# A standardised band has mean 0 and deviation 1 over its data set; a single cloudy tile stays far below these.
MEAN_LIMIT, STD_LIMIT = 10.0, 20.0
UNIT_SHARE, FEW = 0.99, 16  # share of values in 0..1 that standardised bands do not have, unless they are few


def warn_unnormalised(sensor: Sensor, values: np.ndarray, valid: np.ndarray | None) -> None:
    """Warns of bands whose valid values are far from mean 0 and deviation 1."""
    axes = tuple(axis for axis in range(values.ndim) if axis != values.ndim - 3)
    where = True if valid is None else np.broadcast_to(valid, values.shape)
    count = np.maximum(np.sum(where, axis=axes) if valid is not None else values.size / values.shape[-3], 1)
    # Sums over millions of pixels lose digits in float32.
    mean = values.sum(axis=axes, dtype=np.float64) / count
    square = np.square(values, dtype=np.float64).sum(axis=axes) / count
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    texts = [f"{band} (mean {m:.4g}, std {s:.4g})" for band, m, s in zip(sensor.bands, mean, std, strict=True)]
    far = (abs(mean) > MEAN_LIMIT) | (std > STD_LIMIT)
    suspects = [text for text, is_far in zip(texts, far, strict=True) if is_far]
    # Invalid values are 0, which is inside.
    outside, total = np.count_nonzero((values < 0) | (values > 1)), values.shape[-3] * int(np.min(count))
    if not suspects and total >= FEW and values.any() and outside <= (1 - UNIT_SHARE) * total:
        suspects = [f"its values lie between 0 and 1 as those of reflectance or of an image / 255: {', '.join(texts)}"]
    if suspects:
        warnings.warn(
            f"{sensor.name!r} looks unnormalised: {', '.join(suspects)}; the model takes each band standardised to "
            "mean 0 and standard deviation 1 with the statistics of its data set",
            stacklevel=6,
        )

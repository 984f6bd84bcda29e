"""Scores of a regression from moments, which can be merged exactly over batches of any size."""

from typing import Any, Self

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

Array = Any  # numpy on the host, jax on the device

ROUNDING = 1e-12  # variance of equal labels, relative to their square, that float32 may leave


@flax.struct.dataclass
class Moments:
    """What the scores need of a group of labels; or, with an axis in front, of several groups.

    Attributes:
      count: how many labels there are.
      mean: of the labels; 0 where there are none.
      spread: sum of the labels' squared distances from that mean.
      squared_error: sum of the squared errors.
      absolute_error: sum of the absolute errors.
    """

    count: Int[Array, "*groups"]
    mean: Float[Array, "*groups"]
    spread: Float[Array, "*groups"]
    squared_error: Float[Array, "*groups"]
    absolute_error: Float[Array, "*groups"]

    @classmethod
    def zero(cls) -> Self:
        """Of no labels at all."""
        return cls(0, 0.0, 0.0, 0.0, 0.0)


def sample_moments(predicted: Float[Array, "B *n"], truth: Float[Array, "B *n"], known: Bool[Array, "B *n"]) -> Moments:
    """Moments of each sample's labels, with an axis (B,). Traceable.

    One for each sample, so that float32 sums stay short; `merge_moments` adds them up in float64.

    Args:
      predicted: answers; float32 is kept.
      truth: labels, in the same unit, preferably about standardised; anything where they are unknown, NaN too.
      known: which labels count.
    """
    predicted, truth, known = (x.reshape(len(x), -1) for x in (predicted, truth, known))
    truth = jnp.where(known, truth, 0.0)
    errors = jnp.where(known, predicted - truth, 0.0)
    count = known.sum(axis=1)
    mean = truth.sum(axis=1) / jnp.maximum(count, 1)
    spread = jnp.square(jnp.where(known, truth - mean[:, None], 0.0)).sum(axis=1)
    return Moments(count, mean, spread, jnp.square(errors).sum(axis=1), jnp.abs(errors).sum(axis=1))


def merge_moments(*parts: Moments) -> Moments:
    """Moments of all the groups together, in float64 (Chan, Golub and LeVeque 1979). On the host."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.ravel(np.asarray(getattr(part, name), np.float64)) for part in parts])

    counts, means = joined("count"), joined("mean")
    total = counts.sum()
    mean = (counts * means).sum() / max(total, 1)
    spread = joined("spread").sum() + (counts * (means - mean) ** 2).sum()
    errors = (joined(name).sum() for name in ("squared_error", "absolute_error"))
    return Moments(int(total), float(mean), float(spread), *(float(error) for error in errors))


def rmse(moments: Moments) -> float:
    """Root of the mean squared error; nan where nothing was counted."""
    return float(np.sqrt(_over(moments.squared_error, moments.count)))


def mae(moments: Moments) -> float:
    """Mean absolute error; nan where nothing was counted."""
    return float(_over(moments.absolute_error, moments.count))


def r2(moments: Moments) -> float:
    """Share of the labels' variance that is explained, at most 1; nan where the labels do not vary."""
    rounding = ROUNDING * moments.count * (1 + moments.mean**2)
    return float(1 - _over(moments.squared_error, moments.spread if moments.spread > rounding else 0.0))


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")

"""Users' arrays, of any library, as numpy's: torch tensors, masked arrays, calendar days."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped


def is_traced(*values: Any) -> bool:
    """Returns whether jax traces one of some arrays, as inside of jit, grad or vmap: its values are not known then."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def where(condition: Any, values: Any, other: Any) -> Any:
    """Returns `values` where a mask is True, else `other`: an array of numpy, or of jax where one is traced."""
    return (jnp if is_traced(condition, values) else np).where(condition, values, other)


def to_numpy(name: str, value: Any) -> Any:
    """Returns a user's array as one of numpy; masked arrays and arrays that jax traces stay what they are.

    Tensors of torch may have gradients, be on another device, or of bfloat16, which becomes float32.

    Args:
      name: of the array, for errors.

    Raises:
      ValueError: it is not rectangular, or numpy cannot read it, such as a sparse tensor.
    """
    try:
        if isinstance(value, list | tuple):
            parts = [to_numpy(name, one) if hasattr(one, "__array__") else one for one in value]
            if is_traced(*parts):
                return jnp.stack(parts)
            return np.ma.stack(parts) if any(isinstance(one, np.ma.MaskedArray) for one in parts) else np.asarray(parts)
        if is_traced(value):
            return value
        if hasattr(value, "detach"):  # torch is not imported for it
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return np.asanyarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(value, list | tuple):
            raise ValueError(f"{name!r} is not a rectangular array (pad, and give masks): {error}") from None
        raise ValueError(
            f"{name!r} is a {type(value).__name__} that numpy cannot read ({error}); give a numpy array"
        ) from None


def days_of_year(name: str, dates: Shaped[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
    """Returns the days of their years, 1 January = 0, of datetime64, texts like "2020-12-31", or datetime objects.

    Raises:
      ValueError: one of them is not a day; the message has `name`.
    """
    texts = dates.astype(str)
    # numpy would take months and years without a day as well, and read them as their first day.
    wrong = [one for one in texts.flat if not re.fullmatch(r"\d{4}-\d\d-\d\d([T ].*)?", str(one), re.ASCII)]
    try:
        days = texts.astype("U10").astype("datetime64[D]")
    except ValueError as error:
        wrong = wrong or [str(error)]
    if wrong:
        raise ValueError(f"{name!r} holds {str(wrong[0])!r}; dates with a year are days like 2020-12-31")
    return (days - days.astype("datetime64[Y]")).astype(np.int32)

"""AnySat in JAX: one Earth-observation model for any mix of sensors, resolutions and tile sizes."""

from typing import TYPE_CHECKING, Any

from anysat_jax.sensors import SENSORS, Sensor

if TYPE_CHECKING:
    from anysat_jax.api import AnySat

__version__ = "0.1.0"
__all__ = ["SENSORS", "AnySat", "Sensor", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports AnySat on first access."""
    # JAX and Flax take seconds to import, and tools that only read sensors should start at once.
    if name == "AnySat":
        from anysat_jax.api import AnySat

        return AnySat
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

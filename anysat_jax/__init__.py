"""AnySat in JAX: one Earth-observation model for any mix of sensors, resolutions and tile sizes."""

from anysat_jax.sensors import SENSORS, Sensor

__all__ = ["SENSORS", "Sensor"]

"""Whole scenes: rasters of several sensors in, an embedding or a map out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anysat_jax.scenes.outputs import read_encoded
    from anysat_jax.scenes.run import Options, Result, embed, predict
    from anysat_jax.scenes.sources import open_stack

_MODULES = dict.fromkeys(("Options", "Result", "embed", "predict"), "run")
_MODULES |= {"open_stack": "sources", "read_encoded": "outputs"}
__all__ = ["Options", "Result", "embed", "open_stack", "predict", "read_encoded"]


def __getattr__(name: str) -> Any:
    """Imports a public function on first access."""
    import importlib

    # rasterio and JAX take seconds to import.
    if name in _MODULES:
        return getattr(importlib.import_module(f"anysat_jax.scenes.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

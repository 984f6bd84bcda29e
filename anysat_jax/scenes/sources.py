"""What a user names as the source of a sensor's rasters, opened as a stack of acquisitions."""

import os
import pathlib
from typing import Any

from anysat_jax.scenes.reading import Stack


def open_stack(sensor: str, source: str | os.PathLike[str] | Any) -> Stack:
    """Opens a sensor's rasters.

    Args:
      sensor: its name.
      source: a GeoTIFF, a folder of GeoTIFFs or of .SAFE products, a .SAFE product, a zarr store, a STAC item
        collection (.json, .geojson), or a Dataset of xarray.

    Raises:
      FileNotFoundError, ValueError: there is nothing, or it is not the sensor's; the message names file and remedy.
    """
    from anysat_jax.scenes import catalogues

    if not isinstance(source, str | os.PathLike):
        return catalogues.open_dataset(sensor, source)
    path = pathlib.Path(source)
    if path.suffix.lower() in (".json", ".geojson"):
        return catalogues.open_items(sensor, path)
    if path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs")):
        return catalogues.open_zarr(sensor, path)
    if path.suffix.upper() == ".SAFE" or (path.is_dir() and any(path.glob("*.SAFE"))):
        return catalogues.open_safe(sensor, path)
    raise NotImplementedError

"""Zarr stores of results: format 3 with shards, as xarray reads them by the names and attributes of CF."""

import dataclasses
import json
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from jaxtyping import Num
from rasterio.transform import Affine
from rasterio.windows import Window

from anysat_jax.scenes.grid import Box

if TYPE_CHECKING:
    from anysat_jax.scenes.outputs import RasterSpec

CHUNK_BYTES = 2**20  # of all bands
CHUNK_SIDES = 16, 512  # pixels
SHARD_CHUNKS = 8  # along a side: a shard, which is written at once, has at most 64 MB
ARRAYS = ("features", "classes", "values")  # names of the data; the other arrays are their coordinates


def write_zarr(mosaic: pathlib.Path, spec: "RasterSpec", path: pathlib.Path) -> None:
    """Writes a raster as a store, shard by shard; coordinates are those of the pixels' centres.

    Raises:
      OSError: the store cannot be written.
    """
    import zarr

    rows, columns = spec.shape
    root = zarr.create_group(path, zarr_format=3, attributes={"Conventions": "CF-1.11", **spec.all_tags()})
    for name, (values, attributes) in _coordinates(spec).items():
        dimensions = [name] if values.ndim else []
        array = root.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=values.shape,
            dimension_names=dimensions,
            attributes=attributes,
        )
        array[...] = values
    chunk, shard = _sides(spec)
    data = root.create_array(
        ARRAYS[0] if spec.encoding else ARRAYS[1] if spec.classes else ARRAYS[2],
        shape=(len(spec.bands), rows, columns),
        dtype=spec.dtype,
        chunks=(len(spec.bands), chunk, chunk),
        shards=(len(spec.bands), shard, shard),
        compressors=zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        fill_value=spec.nodata,
        dimension_names=["band", "y", "x"],
        attributes=_attributes(spec),
    )
    with rasterio.open(mosaic) as file:
        for row in range(0, rows, shard):
            for column in range(0, columns, shard):
                window = Window(column, row, min(shard, columns - column), min(shard, rows - row))
                data[:, row : row + window.height, column : column + window.width] = file.read(window=window)
    with warnings.catch_warnings(action="ignore"):  # not in the specification yet; xarray warns where it is missing
        zarr.consolidate_metadata(root.store)
    metadata = path / "zarr.json"  # in which arrays stand as the file system lists them
    metadata.write_text(json.dumps(json.loads(metadata.read_bytes()), indent=2, sort_keys=True), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Store:
    """A store that is read, with the names of rasterio's datasets."""

    array: Any  # zarr's, (K, H, W)
    attributes: Mapping[str, Any]  # of the store
    crs: rasterio.crs.CRS
    transform: Affine

    @property
    def count(self) -> int:
        return self.array.shape[0]

    @property
    def height(self) -> int:
        return self.array.shape[1]

    @property
    def width(self) -> int:
        return self.array.shape[2]

    @property
    def dtypes(self) -> tuple[str, ...]:
        return (str(self.array.dtype),) * self.count

    @property
    def units(self) -> tuple[str, ...]:
        return (self.array.attrs.get("units", ""),) * self.count

    @property
    def descriptions(self) -> tuple[str, ...]:
        return tuple(self.array.attrs["long_name"])

    def tags(self) -> dict[str, str]:
        return dict(self.attributes)

    def colormap(self, band: int) -> dict[int, tuple[int, int, int, int]]:
        colours = self.array.attrs.get("flag_colors", "").split()
        return {value: (*bytes.fromhex(colour[1:]), 255) for value, colour in enumerate(colours)}

    def nearest(self, transform: Affine, rows: range, columns: int) -> np.ma.MaskedArray:
        """Reads rows of a raster on the same map, (K, rows, columns) as stored, masked where there is no data."""
        # Pixels in which those of the raster have their centres.
        x = (transform.c + (np.arange(columns) + 0.5) * transform.a - self.transform.c) / self.transform.a
        y = (transform.f + (np.asarray(rows) + 0.5) * transform.e - self.transform.f) / self.transform.e
        x, y = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        inside = ((y >= 0) & (y < self.height))[:, None] & ((x >= 0) & (x < self.width))
        values = self.array.oindex[:, np.clip(y, 0, self.height - 1), np.clip(x, 0, self.width - 1)]
        nodata = self.array.fill_value
        missing = np.isnan(values) if np.isnan(nodata) else values == nodata
        return np.ma.MaskedArray(values, missing | ~inside)


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store.

    Raises:
      ValueError: it was not written by `write_zarr`.
      OSError: there is none.
    """
    import zarr

    root = zarr.open_group(path, mode="r")
    name = next((name for name in ARRAYS if name in root), None)
    if name is None or "spatial_ref" not in root:
        raise ValueError(
            f"{path} has none of the arrays {', '.join(ARRAYS)} with a spatial_ref; give an output of anysat"
        )
    geo = root["spatial_ref"].attrs
    transform = Affine.from_gdal(*map(float, geo["GeoTransform"].split()))
    return Store(root[name], dict(root.attrs), rasterio.CRS.from_wkt(geo["crs_wkt"]), transform)


def read_zarr(path: str | os.PathLike[str], box: Box | None) -> tuple[Num[np.ndarray, "K h w"], Affine, rasterio.CRS]:
    """Returns the stored numbers of a store in a box, their affine transform and the coordinate system.

    Raises:
      ValueError: the store was not written by `write_zarr`, or nothing of the box lies in it.
    """
    store = open_store(path)
    window = whole_window(path, (store.height, store.width), store.transform, box)
    rows, columns = window.toslices()
    return store.array[:, rows, columns], rasterio.windows.transform(window, store.transform), store.crs


def zarr_attributes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the attributes of a store.

    Raises:
      OSError: there is no store.
    """
    import zarr

    return dict(zarr.open_group(path, mode="r").attrs)


def whole_window(path: str | os.PathLike[str], shape: tuple[int, int], transform: Affine, box: Box | None) -> Window:
    """Returns the pixels of a raster, of `shape` rows and columns, in a box.

    Raises:
      ValueError: there are none.
    """
    window = Window(0, 0, shape[1], shape[0])
    if box is None:
        return window
    part = rasterio.windows.from_bounds(box.left, box.bottom, box.right, box.top, transform).round()
    if not rasterio.windows.intersect(part, window):
        raise ValueError(f"{path}: nothing of it lies in {box}; give metres of its own coordinate system")
    return part.intersection(window)


def _sides(spec: "RasterSpec") -> tuple[int, int]:
    """Returns the sides of a chunk and of a shard in pixels."""
    pixels = CHUNK_BYTES / len(spec.bands) / np.dtype(spec.dtype).itemsize
    chunk = min(max(2 ** int(math.log2(pixels) / 2), CHUNK_SIDES[0]), CHUNK_SIDES[1])
    return chunk, min(chunk * SHARD_CHUNKS, math.ceil(max(spec.shape) / chunk) * chunk)


def _coordinates(spec: "RasterSpec") -> Mapping[str, tuple[np.ndarray, dict[str, Any]]]:
    (rows, columns), box = spec.shape, spec.grid.bounds
    wkt = rasterio.CRS.from_user_input(spec.grid.crs).to_wkt()
    numbers = " ".join(map(repr, box.transform(spec.metres).to_gdal()))
    names = {axis: {"standard_name": f"projection_{axis}_coordinate", "units": "m"} for axis in "xy"}
    return {
        "x": (box.left + (np.arange(columns) + 0.5) * spec.metres, names["x"]),
        "y": (box.top - (np.arange(rows) + 0.5) * spec.metres, names["y"]),
        "band": (np.arange(1, len(spec.bands) + 1), {}),
        "spatial_ref": (np.array(0), {"crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": numbers}),
    }


def _attributes(spec: "RasterSpec") -> dict[str, Any]:
    attributes: dict[str, Any] = {"grid_mapping": "spatial_ref", "long_name": list(spec.bands)}
    if spec.unit:
        attributes["units"] = spec.unit
    if not math.isnan(spec.nodata):
        attributes["_FillValue"] = int(spec.nodata)
    if spec.classes:
        attributes["flag_values"] = list(range(len(spec.classes)))
        attributes["flag_meanings"] = " ".join(name.replace(" ", "_") for name in spec.classes)
    if spec.colours:
        attributes["flag_colors"] = " ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in spec.colours)
    return attributes

"""Rasters of results: a GeoTIFF for each window while a run goes on, then one cloud-optimised GeoTIFF or Zarr store."""

import contextlib
import dataclasses
import errno
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
import rasterio.shutil
from jaxtyping import Float32, Num
from rasterio._err import CPLE_BaseError  # what rasterio.shutil.copy raises; it is not an OSError
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from anysat_jax.errors import reason
from anysat_jax.scenes.encoding import Encoding
from anysat_jax.scenes.grid import SAME_METRES, Box, Grid
from anysat_jax.scenes.item import ItemFacts, write_item
from anysat_jax.scenes.zarr_output import read_zarr, whole_window, write_zarr, zarr_attributes
from data_pipelines.prepare.storage import move_whole, write_whole

ENCODING_TAG = "ANYSAT_ENCODING"
TIFF_SUFFIXES, ZARR_SUFFIX = (".tif", ".tiff"), ".zarr"
BLOCK = 512  # pixels along a side, of the finished raster
PART_BLOCK = 256  # of a window's raster
# What GDAL keeps in memory; by default a share of the machine's, and a hundred opened windows with all their bands.
GDAL_OPTIONS = {"GDAL_CACHEMAX": 128 * 2**20, "GDAL_MAX_DATASET_POOL_SIZE": 16}  # bytes, as rasterio has it; files
# float16 is float32 of 16 bits to GDAL: its own type is new in 3.11, and has neither predictor nor overviews in 3.12.
GDAL_TYPES = {"float32": "Float32", "float16": "Float32", "int8": "Int8", "uint8": "Byte", "uint16": "UInt16"}


@dataclasses.dataclass(frozen=True)
class RasterSpec:
    """Facts of an output raster, before its first pixel is written."""

    grid: Grid
    metres: float  # side of a pixel
    bands: tuple[str, ...]  # descriptions
    dtype: str  # of numpy
    nodata: float  # of every band; NaN for floats
    encoding: Encoding | None = None  # of features
    classes: tuple[str, ...] = ()  # names of classes 0, 1, ...
    colours: tuple[tuple[int, int, int], ...] = ()  # of the classes, red, green, blue in 0..255
    unit: str = ""  # of a regression
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: ItemFacts | None = None  # of the STAC item beside the raster; None: there is none

    def __post_init__(self) -> None:
        if self.dtype not in GDAL_TYPES:
            raise ValueError(f"rasters are written as {', '.join(GDAL_TYPES)}, not as {self.dtype}")
        if math.isnan(self.nodata) != (np.dtype(self.dtype).kind == "f"):
            raise ValueError(f"nodata of a raster of {self.dtype} is {self.nodata}; it is NaN for floats alone")
        if self.classes and self.nodata < len(self.classes):
            raise ValueError(f"nodata {self.nodata} of a map is one of its {len(self.classes)} classes")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.grid.bounds.shape(self.metres)

    def all_tags(self) -> dict[str, str]:
        """Returns the tags of the raster: those given, the encoding and the classes."""
        tags = dict(self.tags)
        if self.encoding:
            tags[ENCODING_TAG] = self.encoding.to_json()
        return tags | {f"CLASS_{number}": name for number, name in enumerate(self.classes)}


def write_part(
    folder: str | os.PathLike[str], name: str, spec: RasterSpec, box: Box, values: Num[np.ndarray, "K h w"]
) -> pathlib.Path:
    """Writes the pixels of a window as `<folder>/<name>.tif`, whole or not at all; equal pixels give equal bytes.

    Raises:
      ValueError: the values have another type, number of bands or size than the raster in this box.
      OSError: the file cannot be written.
    """
    expected = (len(spec.bands), *box.shape(spec.metres))
    if values.shape != expected or values.dtype != spec.dtype:
        raise ValueError(f"window {name} has {values.dtype} {values.shape}, the raster {spec.dtype} {expected}")
    path = pathlib.Path(folder) / f"{name}.tif"
    count, height, width = expected
    profile = dict(
        dtype="float32" if spec.dtype == "float16" else spec.dtype,
        count=count,
        height=height,
        width=width,
        crs=spec.grid.crs,
        transform=box.transform(spec.metres),
        nodata=spec.nodata,
        tiled=True,
        blockxsize=PART_BLOCK,
        blockysize=PART_BLOCK,
        interleave="band",  # the finished raster is written band by band, block by block
        predictor=3 if np.dtype(spec.dtype).kind == "f" else 2,  # of the bytes of floats, or of integers
        zstd_level=1,  # it is read once
        **_creation_options(spec.dtype),
    )
    # GDAL itself ignores a disk that is full when the last bytes are written.
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", **profile) as file:
            file.write(values)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, memory.getbuffer())
    return path


def finish(folder: str | os.PathLike[str], spec: RasterSpec, output: str | os.PathLike[str]) -> None:
    """Joins the windows of `write_part` into `output`, whole or not at all; nodata where there is no window.

    The STAC item of a raster with facts is written beside it, `<name>.stac.json`.

    Args:
      output: a GeoTIFF (.tif), which is replaced, or a Zarr store (.zarr), which must not exist.

    Raises:
      ValueError: the output's name ends in another way.
      OSError: the output cannot be written.
    """
    folder, output = pathlib.Path(folder), pathlib.Path(output)
    check_name(output)
    if output.is_dir():
        raise FileExistsError(errno.EEXIST, f"{output} exists; delete it, or choose another output")
    working = output.with_name(f".{output.name}.incomplete")
    parts = sorted(folder.glob("*.tif"))
    try:
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()
        mosaic, whole = working / "mosaic.vrt", working / output.name
        with mosaic.open("w", encoding="utf-8") as file:
            file.writelines(_mosaic(spec, parts))
        with rasterio.Env(**GDAL_OPTIONS):
            (write_zarr if output.suffix == ZARR_SUFFIX else _write_cog)(mosaic, spec, whole)
        if spec.facts:  # first: where the output is, everything is
            write_item(output, spec, spec.facts)
        move_whole(whole, output)
    except (OSError, CPLE_BaseError) as error:
        raise _not_written(output, error, sum(part.stat().st_size for part in parts)) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def check_name(output: pathlib.Path) -> None:
    """Checks that a name ends as one of a raster that can be written.

    Raises:
      ValueError: it does not.
    """
    if output.suffix not in (*TIFF_SUFFIXES, ZARR_SUFFIX):
        raise ValueError(
            f"{output}: rasters are written as .tif, a cloud-optimised GeoTIFF, or .zarr; choose such a name"
        )


def _not_written(output: pathlib.Path, error: Exception, size: int) -> OSError:
    number, free = getattr(error, "errno", None) or errno.EIO, ""
    with contextlib.suppress(OSError):
        # Beside the raster GDAL keeps its overviews until it is written: a third of it, twice.
        free = (
            f"; it needs up to {size * 5 / 3 / 1e9:.3g} GB beside its {size / 1e9:.3g} GB of windows, and "
            f"{shutil.disk_usage(output.parent).free / 1e9:.3g} GB are free"
        )
    return OSError(number, f"{output} cannot be written ({reason(error)}){free}")


def _creation_options(dtype: str) -> dict[str, str | int]:
    options = dict(compress="zstd", bigtiff="if_safer")
    return options | dict(nbits=16) if dtype == "float16" else options


def _write_cog(mosaic: pathlib.Path, spec: RasterSpec, path: pathlib.Path) -> None:
    options = dict(
        predictor="yes",
        num_threads="all_cpus",
        overview_resampling="nearest" if spec.classes else "average",
        **_creation_options(spec.dtype),
    )
    # Earlier ones store by pixel alone: all bands of a block are read for one of them.
    new = tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) >= (3, 11)
    options |= dict(interleave="tile", blocksize=BLOCK) if new else dict(blocksize=BLOCK // 4)
    rasterio.shutil.copy(mosaic, path, driver="COG", **options)
    with rasterio.open(path) as file:  # the last block of the file: GDAL ignores a disk that is full then
        (_, window), *_ = reversed(list(file.block_windows(file.count)))
        file.read(file.count, window=window)


def _mosaic(spec: RasterSpec, parts: Iterable[pathlib.Path]) -> Iterator[str]:
    """Yields the lines of a VRT of the whole raster, whose bands read from the parts."""
    rows, columns = spec.shape
    places = [_place(spec, path) for path in parts]
    wkt = rasterio.CRS.from_user_input(spec.grid.crs).to_wkt()
    yield f'<VRTDataset rasterXSize="{columns}" rasterYSize="{rows}">\n<SRS>{escape(wkt)}</SRS>\n'
    numbers = spec.grid.bounds.transform(spec.metres).to_gdal()
    yield f"<GeoTransform>{', '.join(map(repr, numbers))}</GeoTransform>\n<Metadata>\n"
    for key, value in spec.all_tags().items():
        yield f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>\n"
    yield "</Metadata>\n"
    for number, description in enumerate(spec.bands, start=1):
        yield f'<VRTRasterBand dataType="{GDAL_TYPES[spec.dtype]}" band="{number}">\n'
        yield f"<Description>{escape(description)}</Description>\n<UnitType>{escape(spec.unit)}</UnitType>\n"
        yield f"<NoDataValue>{'nan' if math.isnan(spec.nodata) else int(spec.nodata)}</NoDataValue>\n"
        if spec.classes:
            yield from _class_lines(spec)
        elif spec.dtype == "uint8" and len(spec.bands) == 3:
            yield f"<ColorInterp>{('Red', 'Green', 'Blue')[number - 1]}</ColorInterp>\n"
        for place in places:
            yield f"<SimpleSource>{place[0]}<SourceBand>{number}</SourceBand>{place[1]}</SimpleSource>\n"
        yield "</VRTRasterBand>\n"
    yield "</VRTDataset>\n"


def _class_lines(spec: RasterSpec) -> Iterator[str]:
    """Yields the colours of classes, and their names as the table that QGIS reads."""
    if spec.colours:
        yield "<ColorInterp>Palette</ColorInterp>\n<ColorTable>\n"
        for red, green, blue in spec.colours:
            yield f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="255"/>\n'
        yield "</ColorTable>\n"
    yield '<GDALRasterAttributeTable tableType="thematic">\n'
    # Numbers are GDAL's: type 0 integer, 2 text; usage 5 value, 2 name, 6 to 8 colours.
    fields = [("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8)]
    for index, (name, kind, usage) in enumerate(fields[: 5 if spec.colours else 2]):
        yield f'<FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>\n'
    for index, name in enumerate(spec.classes):
        values = (index, escape(name), *(spec.colours[index] if spec.colours else ()))
        yield f'<Row index="{index}">' + "".join(f"<F>{value}</F>" for value in values) + "</Row>\n"
    yield "</GDALRasterAttributeTable>\n"


def _place(spec: RasterSpec, path: pathlib.Path) -> tuple[str, str]:
    """Returns what stands before and after the number of the band in a source of a VRT: where a part lies."""
    with rasterio.open(path) as part:
        width, height, transform = part.width, part.height, part.transform
    column = (transform.c - spec.grid.bounds.left) / spec.metres
    row = (spec.grid.bounds.top - transform.f) / spec.metres
    if max(abs(column - round(column)), abs(row - round(row))) * spec.metres > SAME_METRES:
        raise ValueError(f"{path} does not lie on the pixels of the raster; delete it, it is of another request")
    size = f'xSize="{width}" ySize="{height}"'
    return (
        f'<SourceFilename relativeToVRT="0">{escape(str(path.absolute()))}</SourceFilename>',
        # With its properties a part is not opened before it is read.
        f'<SourceProperties RasterXSize="{width}" RasterYSize="{height}" DataType="{GDAL_TYPES[spec.dtype]}" '
        f'BlockXSize="{PART_BLOCK}" BlockYSize="{PART_BLOCK}"/>'
        f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{round(column)}" yOff="{round(row)}" {size}/>',
    )


def read_tags(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the tags of a GeoTIFF, or the attributes of a Zarr store.

    Raises:
      OSError: the file cannot be read.
    """
    if pathlib.Path(path).suffix == ZARR_SUFFIX:
        return zarr_attributes(path)
    with rasterio.open(path) as file:
        return file.tags()


def read_encoded(
    path: str | os.PathLike[str], box: Box | None = None
) -> tuple[Float32[np.ndarray, "K h w"], Affine, rasterio.CRS]:
    """Reads features of a raster as they were before they were stored; NaN where there are none.

    Args:
      path: what `finish` wrote, or another raster of floats.
      box: what is read, in metres of the raster; None: all.

    Returns:
      The features, the affine transform of what was read, and the coordinate system.

    Raises:
      ValueError: numbers of int8 without their scale, other integers, or nothing of the box lies in the raster.
      OSError: the file cannot be read.
    """
    tag = read_tags(path).get(ENCODING_TAG)
    if pathlib.Path(path).suffix == ZARR_SUFFIX:
        stored, transform, crs = read_zarr(path, box)
    else:
        with rasterio.open(path) as file:
            window = whole_window(path, file.shape, file.transform, box)
            stored, transform, crs = file.read(window=window), file.window_transform(window), file.crs
    if tag is None and stored.dtype.kind != "f":
        # Its numbers would look plausible.
        raise ValueError(
            f"{path} holds {stored.dtype} without the tag {ENCODING_TAG}, which has their scale: embed again"
        )
    encoding = Encoding.from_json(tag) if tag else Encoding(str(stored.dtype))
    return encoding.decode(stored), transform, crs

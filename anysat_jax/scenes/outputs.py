"""Rasters of results: a GeoTIFF for each window while a run goes on, then one cloud-optimised GeoTIFF or Zarr store."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
import rasterio.shutil
from jaxtyping import Float32, Num
from rasterio.transform import Affine
from rasterio.windows import Window, from_bounds

from anysat_jax.scenes.encoding import Encoding
from anysat_jax.scenes.grid import SAME_METRES, Box, Grid
from data_pipelines.prepare.storage import move_whole, temporary_name

ENCODING_TAG = "ANYSAT_ENCODING"
BLOCK = 512  # pixels, of the finished raster
PART_BLOCK = 256  # of a window's raster
CACHE_MEGABYTES = 256  # of GDAL's blocks; its default is a share of the machine's memory


@dataclasses.dataclass(frozen=True)
class RasterSpec:
    """What is known of an output raster before its first pixel is written."""

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

    def __post_init__(self) -> None:
        if self.classes and not len(self.classes) <= self.nodata <= np.iinfo(self.dtype).max:
            raise ValueError(
                f"nodata {self.nodata} of a map of {len(self.classes)} classes is a class, or not a {self.dtype}"
            )

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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    count, height, width = expected
    profile = dict(
        driver="GTiff",
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
        interleave="band",
        predictor=3 if np.dtype(spec.dtype).kind == "f" else 2,  # of the bytes of floats, or of integers
        **_creation_options(spec.dtype),
    )
    try:
        with rasterio.open(temporary, "w", **profile) as file:
            file.write(values)
        move_whole(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def finish(folder: str | os.PathLike[str], spec: RasterSpec, output: str | os.PathLike[str]) -> None:
    """Joins the windows of `write_part` into `output`, whole or not at all; nodata where there is no window.

    Raises:
      OSError: the file cannot be written.
    """
    folder, output = pathlib.Path(folder), pathlib.Path(output)
    mosaic = folder / "mosaic.vrt"
    with mosaic.open("w", encoding="utf-8") as file:
        file.writelines(_mosaic(spec, sorted(folder.glob("*.tif"))))
    temporary = output.with_name(temporary_name(output.name))
    options = dict(
        blocksize=BLOCK,
        interleave="tile",
        num_threads="all_cpus",
        predictor="yes",
        overview_resampling="nearest" if spec.classes else "average",
        **_creation_options(spec.dtype),
    )
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES):
            rasterio.shutil.copy(mosaic, temporary, driver="COG", **options)
        move_whole(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def read_encoded(
    path: str | os.PathLike[str], box: Box | None = None
) -> tuple[Float32[np.ndarray, "K h w"], Affine, rasterio.CRS]:
    """Reads features of a raster as they were before they were stored; NaN where there are none.

    Args:
      box: what is read, in metres of the raster; None: all.

    Returns:
      The features, the affine transform of what was read, and the coordinate system.

    Raises:
      ValueError: numbers of int8 without their scale.
      OSError: the file cannot be read.
    """
    with rasterio.open(path) as file:
        tag = file.tags().get(ENCODING_TAG)
        if tag is None and file.dtypes[0] == "int8":
            raise ValueError(f"{path} holds int8 without the tag {ENCODING_TAG}: its scale is unknown; write it again")
        window = Window(0, 0, file.width, file.height)
        if box is not None:
            window = from_bounds(box.left, box.bottom, box.right, box.top, file.transform).round()
        encoding = Encoding.from_json(tag) if tag else Encoding(file.dtypes[0])
        return encoding.decode(file.read(window=window)), file.window_transform(window), file.crs


# float16 is float32 of 16 bits to GDAL: its own type is new in 3.11, and has neither predictor nor overviews in 3.12.
GDAL_TYPES = {"float32": "Float32", "float16": "Float32", "int8": "Int8", "uint8": "Byte", "uint16": "UInt16"}


def _creation_options(dtype: str) -> dict[str, str | int]:
    options = dict(compress="zstd", bigtiff="if_safer")
    return options | dict(nbits=16) if dtype == "float16" else options


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
        if spec.colours:
            yield "<ColorInterp>Palette</ColorInterp>\n<ColorTable>\n"
            for red, green, blue in spec.colours:
                yield f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="255"/>\n'
            yield "</ColorTable>\n"
        for place in places:
            yield place.format(number)
        yield "</VRTRasterBand>\n"
    yield "</VRTDataset>\n"


def _place(spec: RasterSpec, path: pathlib.Path) -> str:
    with rasterio.open(path) as part:
        width, height, transform = part.width, part.height, part.transform
    column = (transform.c - spec.grid.bounds.left) / spec.metres
    row = (spec.grid.bounds.top - transform.f) / spec.metres
    if max(abs(column - round(column)), abs(row - round(row))) * spec.metres > SAME_METRES:
        raise ValueError(f"{path} does not lie on the pixels of the raster; delete it, it is of another request")
    size = f'xSize="{width}" ySize="{height}"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(path.name)}</SourceFilename>'
        f'<SourceBand>{{}}</SourceBand><SourceProperties RasterXSize="{width}" RasterYSize="{height}" '
        f'DataType="{GDAL_TYPES[spec.dtype]}" BlockXSize="{PART_BLOCK}" BlockYSize="{PART_BLOCK}"/>'
        f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{round(column)}" yOff="{round(row)}" {size}/>'
        "</SimpleSource>\n"
    )

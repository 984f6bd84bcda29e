"""Rasters of results: windows become one cloud-optimised GeoTIFF or Zarr store, in place, whole or not at all."""

import filecmp
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import rasterio.warp
import xarray
import zarr
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rio_cogeo.cogeo import cog_validate

from anysat_jax.scenes.encoding import fit_encoding
from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.outputs import RasterSpec, finish, read_encoded, read_tags, write_part

ROOT = pathlib.Path(__file__).resolve().parents[2]
GDAL = tuple(map(int, rasterio.__gdal_version__.split(".")[:2]))
BY_TILE = GDAL >= (3, 11)
ROWS, COLUMNS = 700, 900
LEFT, TOP, METRES = 500_010.0, 4_999_990.0, 10
GRID = Grid("EPSG:32632", Box(LEFT, TOP - ROWS * METRES, LEFT + COLUMNS * METRES, TOP))
# Windows of different sizes; the last corner has none.
WINDOWS = [(0, 0, 300, 420), (0, 420, 300, 480), (300, 0, 400, 420)]
MISSING = (slice(300, None), slice(420, None))


def features(bands=5, seed=0):
    values = np.random.default_rng(seed).normal(size=(ROWS, COLUMNS, bands)).astype(np.float32)
    values[10:30, 50:70] = np.nan
    return values


def feature_spec(encoding, values, **facts):
    names = tuple(f"feature {number}" for number in range(encoding.encode(values[:1, :1]).shape[-1]))
    return RasterSpec(GRID, METRES, names, encoding.dtype, encoding.nodata, encoding, **facts)


def class_spec(**facts):
    colours = ((0, 0, 255), (0, 128, 0), (200, 200, 200))
    return RasterSpec(
        GRID, METRES, ("class",), "uint8", 255, classes=("open water", "land", "a & b"), colours=colours, **facts
    )


def box_of(row, column, rows, columns):
    left, top = LEFT + column * METRES, TOP - row * METRES
    return Box(left, top - rows * METRES, left + columns * METRES, top)


def write_windows(folder, spec, stored, windows=WINDOWS):
    """Writes the windows of `stored`, (K, ROWS, COLUMNS)."""
    for row, column, rows, columns in windows:
        part = stored[:, row : row + rows, column : column + columns]
        write_part(folder, f"{row}_{column}", spec, box_of(row, column, rows, columns), np.ascontiguousarray(part))


def finished(folder, spec, stored, name="out.tif"):
    write_windows(folder / "parts", spec, stored)
    finish(folder / "parts", spec, folder / name)
    return folder / name


def classes():
    values = np.random.default_rng(1).integers(0, 3, (1, ROWS, COLUMNS)).astype(np.uint8)
    values[:, :40, :40] = 255
    return values


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_features_are_read_as_they_were_and_a_missing_window_is_nodata(tmp_path, dtype, suffix):
    values = features()
    encoding = fit_encoding(values.reshape(-1, 5), dtype)
    stored = np.moveaxis(encoding.encode(values), -1, 0)
    path = finished(tmp_path, feature_spec(encoding, values, tags={"REQUEST": "<1>"}), stored, f"out{suffix}")
    read, transform, crs = read_encoded(path)
    expected = encoding.decode(stored)
    expected[:, *MISSING] = np.nan
    np.testing.assert_array_equal(read, expected)
    assert transform == Affine(METRES, 0, LEFT, 0, -METRES, TOP) and crs == rasterio.CRS.from_epsg(32632)
    assert read_tags(path)["REQUEST"] == "<1>"
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(["parts", path.name])
    part, transform, _ = read_encoded(path, box_of(5, 40, 30, 60))
    np.testing.assert_array_equal(part, expected[:, 5:35, 40:100])
    assert transform == Affine(METRES, 0, LEFT + 40 * METRES, 0, -METRES, TOP - 5 * METRES)
    outside = read_encoded(path, box_of(-10, -10, 20, 20))[0]
    np.testing.assert_array_equal(outside, expected[:, :10, :10])
    with pytest.raises(ValueError, match="nothing of it lies in"):
        read_encoded(path, box_of(2000, 0, 10, 10))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_geotiff_is_cloud_optimised_by_tile_and_described(tmp_path, dtype):
    values = features()
    encoding = fit_encoding(values.reshape(-1, 5), dtype)
    path = finished(tmp_path, feature_spec(encoding, values), np.moveaxis(encoding.encode(values), -1, 0))
    assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as file:
        assert file.dtypes == ("float32" if dtype == "float16" and not BY_TILE else dtype,) * 5
        assert file.block_shapes == [(512, 512) if BY_TILE else (128, 128)] * 5 and file.overviews(1)[0] == 2
        assert file.descriptions == tuple(f"feature {number}" for number in range(5))
        assert np.array_equal(file.nodata, encoding.nodata, equal_nan=True)
        structure = file.tags(ns="IMAGE_STRUCTURE")
        assert structure["COMPRESSION"] == "ZSTD" and structure["PREDICTOR"] == ("2" if dtype == "int8" else "3")
        # Of pitfall 14: by pixel or by band, files of hundreds of bands are unusably slow.
        assert structure["INTERLEAVE"] == ("TILE" if BY_TILE else "PIXEL")
    with rasterio.open(path, overview_level=0) as file:  # the mean of the stored numbers
        stored = encoding.encode(values)[:2, :2].astype(np.float64).mean((0, 1))
        np.testing.assert_allclose(file.read()[:, 0, 0], stored, rtol=2e-3, atol=0.51 if dtype == "int8" else 1e-3)


@pytest.mark.skipif(not BY_TILE, reason="GDAL before 3.11 stores by pixel")
def test_hundreds_of_bands_are_written_and_read_by_block(tmp_path):
    """Pitfall 14: one band of a block is read without the others."""
    bands, side = 200, 300
    grid = Grid("EPSG:32632", box_of(0, 0, side, side))
    spec = RasterSpec(grid, METRES, tuple(map(str, range(bands))), "int8", -128)
    stored = np.random.default_rng(0).integers(-127, 128, (bands, side, side)).astype(np.int8)
    write_windows(tmp_path / "parts", spec, stored, [(0, 0, side, side)])
    finish(tmp_path / "parts", spec, tmp_path / "out.tif")
    assert cog_validate(tmp_path / "out.tif", strict=True)[0]
    with rasterio.open(tmp_path / "out.tif") as file:
        # Each block of each band has a place of its own, those of one block lie beside one another.
        places = [int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=band)) for band in (1, 2, 3)]
        size = int(file.get_tag_item("BLOCK_SIZE_0_0", "TIFF", bidx=1))
        assert size <= places[1] - places[0] <= size + 16 and size < 2 * side**2
        np.testing.assert_array_equal(file.read(bands), stored[-1])


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_a_marked_pixel_lies_at_the_same_metres_in_rasterio_gdal_and_xarray(tmp_path, suffix):
    stored = np.full((1, ROWS, COLUMNS), 1, np.uint8)
    stored[0, 122:125, 44:47] = 2  # three pixels wide: one may fall between those of a grid of degrees
    x, y = LEFT + 45.5 * METRES, TOP - 123.5 * METRES
    path = finished(tmp_path, class_spec(), stored, f"out{suffix}")
    if suffix == ".tif":
        with rasterio.open(path) as file:
            assert file.index(x, y) == (123, 45)
            assert file.transform.e < 0  # upright
            # GDAL's own transformation, as a viewer in degrees does it.
            with WarpedVRT(file, crs="EPSG:4326") as warped:
                (longitude,), (latitude,) = rasterio.warp.transform("EPSG:32632", "EPSG:4326", [x], [y])
                assert next(iter(warped.sample([(longitude, latitude)])))[0] == 2
        opened = pytest.importorskip("rioxarray").open_rasterio(path, masked=True)
    else:
        opened = xarray.open_zarr(path, decode_coords="all").classes
    with opened:
        assert opened.spatial_ref.attrs["crs_wkt"].startswith('PROJCS["WGS 84 / UTM zone 32N"')
        one = opened[0].sel(x=x, y=y)  # coordinates are those of centres
        assert float(one) == 2
        np.testing.assert_array_equal(np.argwhere(opened[0].values == 2), np.argwhere(stored[0] == 2))
        assert opened.x[0] == LEFT + METRES / 2 and opened.y[0] == TOP - METRES / 2
        assert np.isnan(opened[0].values[MISSING]).all()


def test_class_0_is_not_nodata_and_classes_have_names_and_colours(tmp_path):
    """Pitfall 13: class 0 written as nodata."""
    stored = classes()
    path = finished(tmp_path, class_spec(), stored)
    assert cog_validate(path, strict=True) == (True, [], [])
    stored[:, *MISSING] = 255
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(masked=True).mask, stored == 255)
        np.testing.assert_array_equal(file.read(), stored)
        assert file.nodata == 255 and file.colorinterp == (rasterio.enums.ColorInterp.palette,)
        assert [file.colormap(1)[value] for value in range(3)] == [(*one, 255) for one in class_spec().colours]
        assert [file.tags()[f"CLASS_{value}"] for value in range(3)] == ["open water", "land", "a & b"]
    with rasterio.open(path, overview_level=0) as file:
        assert set(np.unique(file.read())) == {0, 1, 2, 255}  # classes have no mean
    assert (
        GDAL < (3, 12) or b"<F>open water</F>" in path.read_bytes()
    )  # of the table that QGIS reads; rasterio does not


def test_classes_of_a_store_have_names(tmp_path):
    path = finished(tmp_path, class_spec(), classes(), "out.zarr")
    with xarray.open_zarr(path, mask_and_scale=False) as opened:
        assert opened.classes.attrs["flag_values"] == [0, 1, 2] and opened.classes.attrs["_FillValue"] == 255
        assert opened.classes.attrs["flag_meanings"] == "open_water land a_&_b"
    array = zarr.open_group(path)["classes"]
    assert array.metadata.zarr_format == 3 and array.shards == (1, 1024, 1024) and array.chunks == (1, 512, 512)


def test_a_regression_has_its_unit(tmp_path):
    values = features(1)[..., 0][None]
    spec = RasterSpec(GRID, METRES, ("biomass",), "float32", np.nan, unit="t/ha")
    with rasterio.open(finished(tmp_path, spec, values)) as file:
        assert file.units == ("t/ha",) and file.descriptions == ("biomass",)
    with xarray.open_zarr(finished(tmp_path, spec, values, "out.zarr")) as opened:
        assert opened["values"].attrs["units"] == "t/ha"


def test_an_image_is_red_green_and_blue(tmp_path):
    spec = RasterSpec(GRID, METRES, ("red", "green", "blue"), "uint8", 0)
    stored = np.random.default_rng(0).integers(1, 256, (3, ROWS, COLUMNS)).astype(np.uint8)
    with rasterio.open(finished(tmp_path, spec, stored)) as file:
        assert [one.name for one in file.colorinterp] == ["red", "green", "blue"] and file.nodata == 0
        assert file.read(1)[MISSING].max() == 0 and not file.dataset_mask()[MISSING].any()
        assert file.dataset_mask()[:300].all()


def test_int8_without_its_scale_is_refused(tmp_path):
    """Pitfall 13: int8 read without undoing its scale looks plausible."""
    stored = np.random.default_rng(0).integers(-127, 128, (2, ROWS, COLUMNS)).astype(np.int8)
    spec = RasterSpec(GRID, METRES, ("a", "b"), "int8", -128)
    for name in ("out.tif", "out.zarr"):
        with pytest.raises(ValueError, match=r"holds int8 without the tag ANYSAT_ENCODING"):
            read_encoded(finished(tmp_path, spec, stored, name))
    with rasterio.open(
        tmp_path / "plain.tif", "w", "GTiff", 4, 3, 2, GRID.crs, Affine(1, 0, 5, 0, -1, 5), "float32"
    ) as file:
        file.write(np.ones((2, 3, 4), np.float32))
    np.testing.assert_array_equal(read_encoded(tmp_path / "plain.tif")[0], np.ones((2, 3, 4)))  # floats have no scale


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_equal_windows_give_equal_bytes_in_whatever_order_and_how_often_they_were_written(tmp_path, suffix):
    values = features()
    encoding = fit_encoding(values.reshape(-1, 5), "int8", 3, pca=True)
    spec, stored = feature_spec(encoding, values), np.moveaxis(encoding.encode(values), -1, 0)
    first = finished(tmp_path, spec, stored, f"first{suffix}")
    write_windows(tmp_path / "other", spec, stored, [*WINDOWS[::-1], WINDOWS[0]])
    finish(tmp_path / "other", spec, tmp_path / f"second{suffix}")
    for row, column, *_ in WINDOWS:
        assert filecmp.cmp(*(tmp_path / one / f"{row}_{column}.tif" for one in ("parts", "other")), shallow=False)
    files = [one.relative_to(first) for one in first.rglob("*") if one.is_file()] if suffix == ".zarr" else [""]
    assert files
    for one in files:
        assert (first / one).read_bytes() == (tmp_path / f"second{suffix}" / one).read_bytes()


def test_windows_that_do_not_fit_are_refused(tmp_path):
    spec, box = class_spec(), box_of(0, 0, 20, 30)
    for values in (np.zeros((1, 20, 31), np.uint8), np.zeros((2, 20, 30), np.uint8), np.zeros((1, 20, 30), np.int16)):
        with pytest.raises(ValueError, match=r"window a has .* the raster uint8 \(1, 20, 30\)"):
            write_part(tmp_path, "a", spec, box, values)
    shifted = Box(box.left + 4, box.bottom, box.right + 4, box.top)
    write_part(tmp_path / "parts", "a", spec, shifted, np.zeros((1, 20, 30), np.uint8))
    with pytest.raises(ValueError, match="does not lie on the pixels of the raster"):
        finish(tmp_path / "parts", spec, tmp_path / "out.tif")
    assert [one.name for one in tmp_path.iterdir()] == ["parts"]


def test_rasters_that_cannot_be_told_from_nodata_are_refused():
    with pytest.raises(ValueError, match="nodata 2 of a map is one of its 3 classes"):
        RasterSpec(GRID, METRES, ("class",), "uint8", 2, classes=("a", "b", "c"))
    for dtype, nodata in (("float32", 0), ("int8", np.nan)):
        with pytest.raises(ValueError, match="it is NaN for floats alone"):
            RasterSpec(GRID, METRES, ("a",), dtype, nodata)
    with pytest.raises(ValueError, match="not as float64"):
        RasterSpec(GRID, METRES, ("a",), "float64", np.nan)


def test_outputs_that_cannot_be_made_are_refused_in_a_sentence(tmp_path):
    write_windows(tmp_path / "parts", class_spec(), classes())
    with pytest.raises(ValueError, match=r"out\.png: rasters are written as \.tif"):
        finish(tmp_path / "parts", class_spec(), tmp_path / "out.png")
    (tmp_path / "out.zarr").mkdir()
    with pytest.raises(FileExistsError, match=r"out\.zarr exists; delete it"):
        finish(tmp_path / "parts", class_spec(), tmp_path / "out.zarr")
    with pytest.raises(OSError, match=r"no/out\.tif cannot be written \(No such file or directory"):
        finish(tmp_path / "parts", class_spec(), tmp_path / "no" / "out.tif")


FULL = """
import pathlib, resource, signal, sys
import numpy as np
from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.outputs import RasterSpec, finish, write_part
folder, limit, step = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
box = Box(0, 0, 3000, 3000)
spec = RasterSpec(Grid("EPSG:32632", box), 10, ("a", "b"), "int8", -128)
values = np.random.default_rng(0).integers(-127, 128, (2, 300, 300)).astype(np.int8)
try:
    if step == "part":
        write_part(folder / "parts", "a", spec, box, values)
    else:
        finish(folder / "parts", spec, folder / step)
except OSError as error:
    sys.exit(str(error))
"""


def full(folder, limit, step):
    """Runs a step where no file may have more than `limit` bytes, as on a disk that is full."""
    command = [sys.executable, "-c", FULL, str(folder), str(limit), step]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""


def test_a_full_disk_ends_in_a_sentence_and_nothing_under_the_final_name(tmp_path):
    assert full(tmp_path, 2**30, "part") == (0, "")
    size = (tmp_path / "parts" / "a.tif").stat().st_size
    (tmp_path / "parts" / "a.tif").rename(tmp_path / "a.tif")
    code, message = full(tmp_path, size - 1, "part")  # GDAL itself ignores that the last byte is missing
    assert code == 1 and "File too large" in message and not list((tmp_path / "parts").iterdir())
    (tmp_path / "a.tif").rename(tmp_path / "parts" / "a.tif")
    assert full(tmp_path, 2**30, "out.tif")[0] == 0
    whole = (tmp_path / "out.tif").stat().st_size
    (tmp_path / "out.tif").unlink()
    for name, limit in (("out.tif", 50_000), ("out.tif", whole - 20), ("out.zarr", 50_000)):
        code, message = full(tmp_path, limit, name)
        assert code == 1 and f"{tmp_path / name} cannot be written" in message and "GB are free" in message
        assert [one.name for one in tmp_path.iterdir()] == ["parts"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_raster(tmp_path):
    """Peak of a process that joins 4 windows, and of one that joins 64 of the same size."""
    peaks = []
    for side in (2, 8):
        grid = Grid("EPSG:32632", Box(0, 0, side * 1280, side * 1280))
        spec = RasterSpec(grid, METRES, tuple(map(str, range(64))), "int8", -128)
        values = np.random.default_rng(0).integers(-9, 9, (64, 128, 128)).astype(np.int8)
        for place in range(side**2):
            x, y = place % side * 1280, place // side * 1280
            write_part(tmp_path / str(side), str(place), spec, Box(x, y, x + 1280, y + 1280), values)
        code = (
            "import resource, sys; from anysat_jax.scenes.outputs import *; from anysat_jax.scenes.grid import *\n"
            "GDAL_OPTIONS['GDAL_CACHEMAX'] = 2**24\n"  # less than the larger raster
            f"box = Box(0, 0, {side * 1280}, {side * 1280})\n"
            "spec = RasterSpec(Grid('EPSG:32632', box), 10, tuple(map(str, range(64))), 'int8', -128)\n"
            f"finish({str(tmp_path / str(side))!r}, spec, {str(tmp_path / f'{side}.tif')!r})\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 60, peaks  # 7 MB; without GDAL_OPTIONS it is 136 MB

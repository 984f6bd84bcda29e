"""Folders of rasters of all kinds: each is read right, or refused by an error that names a file or a sensor."""

import datetime
import math
import pathlib
import tempfile

import numpy as np
import rasterio.warp
from hypothesis import event, given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from anysat_jax.scenes.files import needed_bands
from anysat_jax.scenes.projections import pixel_size
from anysat_jax.scenes.reading import choose_grid, read_box
from anysat_jax.scenes.sources import open_stack
from anysat_jax.sensors import get_sensor
from tests.scenes.rasters import write

CENTRE = 500_500.0, 5_000_000.0  # in zone 32
SYSTEMS = {"EPSG:32632": 1.0, "EPSG:32631": 1.0, "EPSG:3857": 1.41, "EPSG:4326": 1 / 95_000, "EPSG:2154": 1.0}
DTYPES = {"s2": ("uint16", "int16", "float32"), "spot": ("uint8", "uint16"), "s1-asc": ("float32",), "l7": ("uint16",)}
NAMES = ("x_{day:%Y%m%d}", "{day:%Y-%m-%d}", "{day:%Y%m%d}/x", "x_{number}", "a_{day:%Y%m%d}_20200101")

files = st.fixed_dictionaries(
    dict(
        crs=st.sampled_from(list(SYSTEMS)),
        size=st.sampled_from((0.6, 1.0, 2.0, 3.7)),  # of a pixel against the sensor's
        shape=st.tuples(st.integers(2, 30), st.integers(2, 30)),
        shift=st.tuples(st.floats(-200, 200), st.floats(-200, 200)),  # metres
        turn=st.sampled_from((0, 0, 0, 30, 180)),
        flip=st.booleans(),
        day=st.integers(0, 3),
        hidden=st.sampled_from(("nothing", "nodata", "zeros", "nan", "mask")),
    )
)
folders = st.fixed_dictionaries(
    dict(
        sensor=st.sampled_from(list(DTYPES)),
        dtype=st.integers(0, 2),
        name=st.sampled_from(NAMES[:3] * 4 + NAMES),
        named=st.booleans(),  # whether bands have names
        split=st.booleans(),  # whether each band has a file
        alike=st.booleans(),  # whether all files have the grid of the first one
        fault=st.sampled_from((None,) * 4 + ("band", "bytes")),  # what the last file lacks
        files=st.lists(files, min_size=1, max_size=3),
    )
)


def ramp(sensor, number, x, y):
    """Returns the value of a band at a place of zone 32: a plane, within the units of the sensor."""
    plane = (x - CENTRE[0]) / 1000 + (y - CENTRE[1]) / 700
    if sensor == "s1-asc":
        return -15 + plane + number
    return 120 + 10 * plane + number if sensor == "spot" else 9000 + 800 * plane + 100 * number


def slope(sensor):
    """Returns how much the plane changes in a metre, at most."""
    return {"s1-asc": 1, "spot": 10}.get(sensor, 800) * math.hypot(1 / 1000, 1 / 700)


def transform_of(one, metres):
    """Returns the transform of a file."""
    (x,), (y,) = rasterio.warp.transform("EPSG:32632", one["crs"], [CENTRE[0]], [CENTRE[1]])
    unit = SYSTEMS[one["crs"]]
    side = unit * metres * one["size"]
    cosine, sine = side * math.cos(math.radians(one["turn"])), side * math.sin(math.radians(one["turn"]))
    down = -1 if not one["flip"] else 1
    return Affine(cosine, -down * sine, x + unit * one["shift"][0], sine, down * cosine, y + unit * one["shift"][1])


def write_folder(root, folder):
    """Writes the files of a folder."""
    sensor = folder["sensor"]
    record, dtypes = get_sensor(sensor), DTYPES[sensor]
    dtype, first = dtypes[folder["dtype"] % len(dtypes)], folder["files"][0]
    for number, one in enumerate(folder["files"]):
        place = first if folder["alike"] else one
        fault, faulty = folder["fault"], number == len(folder["files"]) - 1
        transform, (height, width) = transform_of(place, record.metres_per_pixel), place["shape"]
        rows, columns = np.mgrid[:height, :width] + 0.5
        x = transform.a * columns + transform.b * rows + transform.c
        y = transform.d * columns + transform.e * rows + transform.f
        x, y = rasterio.warp.transform(place["crs"], "EPSG:32632", x.ravel(), y.ravel())
        x, y = (np.reshape(axis, (height, width)) for axis in (x, y))
        bands = [band for at, band in enumerate(needed_bands(record)) if at != 1 or not faulty or fault != "band"]
        values = np.stack([ramp(sensor, needed_bands(record).index(band), x, y) for band in bands])
        values = (values if dtype == "float32" else values.round()).astype(dtype)
        hide, facts = np.s_[:, : height // 2], {}
        if one["hidden"] == "nodata":
            values[hide] = facts["nodata"] = -9999 if dtype in ("float32", "int16") else 255
        elif one["hidden"] == "zeros" and record.has_dates:
            values[hide] = 0
        elif one["hidden"] == "nan" and dtype == "float32":
            values[hide] = np.nan
        day = datetime.date(2019, 5, 3) + datetime.timedelta(5 * one["day"])
        path = root / f"{folder['name'].format(day=day, number=number)}_{number}.tif"
        names = tuple(bands) if folder["named"] else ()
        if folder["split"]:
            paths = [
                write(path.with_stem(f"{path.stem}_{band}"), band_values, transform, place["crs"], **facts)
                for band, band_values in zip(bands, values)
            ]
        else:
            paths = [write(path, values, transform, place["crs"], names=names, **facts)]
        if one["hidden"] == "mask":
            mask = np.zeros((height, width), np.uint8)
            mask[: height // 2] = 1
            write(path.with_stem(f"{path.stem}_cloudmask"), mask, transform, place["crs"])
        if faulty and fault == "bytes":
            paths[0].write_bytes(paths[0].read_bytes()[: number * 300 + 5])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(folders)
def test_each_folder_is_read_right_or_refused(folder):
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        write_folder(root, folder)
        sensor = folder["sensor"]
        record = get_sensor(sensor)
        try:
            stack = open_stack(sensor, root)
            grid, _ = choose_grid({sensor: stack}, record.metres_per_pixel)
            fields = read_box(stack, grid.crs, grid.bounds)
        except (ValueError, FileNotFoundError) as error:
            event(f"refused: {str(error).replace(name, '')[:25]}")
            message = str(error)
            assert "\n" not in message and len(message) < 600 and (name in message or sensor in message), message
            return
        event("read")
        check(folder, stack, grid, fields)


def check(folder, stack, grid, fields):
    """Checks that values are those of the plane, at the place where they are, and that what is hidden is invalid."""
    sensor = folder["sensor"]
    record = get_sensor(sensor)
    height, width = grid.bounds.shape(record.metres_per_pixel)
    dates = (len(fields.days),) if record.has_dates else ()
    assert fields.values.shape == (*dates, len(stack.acquisitions[0].bands), height, width)
    assert fields.values.dtype == np.float32 and np.isfinite(fields.values).all()
    assert fields.valid.dtype == bool and fields.valid.shape == (*dates, 1, height, width)
    assert fields.days == sorted(set(fields.days))
    transform = grid.bounds.transform(record.metres_per_pixel)
    rows, columns = np.mgrid[:height, :width] + 0.5
    x, y = transform.a * columns + transform.c, transform.e * rows + transform.f
    x, y = rasterio.warp.transform(grid.crs, "EPSG:32632", x.ravel(), y.ravel())
    for number in range(fields.values.shape[-3]):
        expected = ramp(sensor, number, np.asarray(x), np.asarray(y)).reshape(height, width)
        found = fields.values[..., number, :, :]
        off = np.where(fields.valid[..., 0, :, :], found - expected, 0)
        # Up to a pixel at the edges of rasters, and rounding.
        largest = max(one["size"] for one in folder["files"]) * record.metres_per_pixel
        assert abs(off).max(initial=0) <= 1.5 * largest * slope(sensor) + 0.6, (number, abs(off).max())
    if len(folder["files"]) == 1:
        # As much is valid as is visible, but for pixels at edges.
        ((one,), band) = folder["files"], stack.acquisitions[0].bands[0]
        side = pixel_size(band.crs, band.transform, band.shape, grid.crs)
        rows, columns = one["shape"]
        floats = DTYPES[sensor][folder["dtype"] % len(DTYPES[sensor])] == "float32"
        hides = {"nothing": False, "nan": floats, "zeros": record.has_dates}.get(one["hidden"], True)
        seen = rows - rows // 2 * hides
        edges = 2 * (seen + columns) * side * (side + record.metres_per_pixel)
        assert abs(fields.valid.sum() * record.metres_per_pixel**2 - seen * columns * side**2) <= edges
    assert not fields.values[~np.broadcast_to(fields.valid, fields.values.shape)].any()

"""Arrays of xarray and zarr stores give what the same values as GeoTIFFs give, at the same place."""

import datetime
import functools
import json
import pathlib
import pickle

import numpy as np
import pytest
import rasterio
import rasterio.crs
import rasterio.warp
import xarray
from rasterio.transform import Affine

from anysat_jax.scenes.arrays import open_dataset, open_zarr
from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import Acquisition, RasterBand, Stack, read_box
from anysat_jax.scenes.run import embed
from anysat_jax.scenes.sources import open_stack
from anysat_jax.scenes.warping import KEPT
from anysat_jax.sensors import get_sensor
from tests.scenes.fake_scenes import CRS, LEFT, TOP, model, write_stack

BANDS = get_sensor("s2").bands
DAYS = [datetime.date(2020, 5, 3), datetime.date(2020, 12, 31)]
HEIGHT, WIDTH = 6, 8
PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_060)
BOX = Box(500_000, 5_400_000, 500_080, 5_400_060)
UTM = "EPSG:32632"


def numbers():
    """Values in which each pixel of each band and date is another one."""
    count = len(DAYS) * len(BANDS) * HEIGHT * WIDTH
    return (np.arange(count).reshape(len(DAYS), len(BANDS), HEIGHT, WIDTH) + 1).astype("int16")


def dataset(values, **attrs):
    """A Dataset with a variable for each band, as rioxarray would write it."""
    rows, columns = np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5
    coords = {
        "time": np.array(DAYS, "datetime64[ns]"),
        "y": PLACE.f + PLACE.e * rows,
        "x": PLACE.c + PLACE.a * columns,
        "spatial_ref": xarray.Variable((), 0, {"crs_wkt": rasterio.crs.CRS.from_epsg(32632).to_wkt()}),
    }
    bands = {
        band: (("time", "y", "x"), values[:, n], attrs | {"grid_mapping": "spatial_ref"})
        for n, band in enumerate(BANDS)
    }
    return xarray.Dataset(bands, coords)


def as_geotiffs(folder, values, nodata=None, scale=1.0, offset=0.0):
    """The same values through rasterio."""
    acquisitions = []
    for day, image in zip(DAYS, values):
        path = folder / f"{day}.tif"
        profile = dict(driver="GTiff", height=HEIGHT, width=WIDTH, count=len(BANDS), dtype=image.dtype, nodata=nodata)
        with rasterio.open(path, "w", crs=UTM, transform=PLACE, **profile) as file:
            file.write(image)
        facts = dict(crs=UTM, transform=PLACE, shape=(HEIGHT, WIDTH), scale=scale, offset=offset)
        bands = tuple(RasterBand(path, number, **facts) for number in range(1, len(BANDS) + 1))
        acquisitions.append(Acquisition(path.name, day, bands))
    return Stack("s2", tuple(acquisitions))


def same(stack, other, box=BOX, crs=UTM):
    one, two = read_box(stack, crs, box), read_box(other, crs, box)
    assert one.days == two.days
    assert np.array_equal(one.valid, two.valid)
    np.testing.assert_allclose(one.values, two.values, rtol=1e-6)
    return one


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_gives_what_geotiffs_give(tmp_path, zarr_format):
    values = numbers()
    values[0, 3, 2, 5] = -9999
    given = dataset(values, _FillValue=np.int16(-9999), scale_factor=0.5, add_offset=-3.0)
    given.to_zarr(tmp_path / "s2.zarr", zarr_format=zarr_format)
    stack = open_zarr("s2", tmp_path / "s2.zarr")
    tiffs = as_geotiffs(tmp_path, values, nodata=-9999, scale=0.5, offset=-3.0)
    fields = same(stack, tiffs)
    assert fields.valid.sum() == fields.valid.size - 1 and not fields.valid[0, 0, 2, 5]
    # Warped, too: into another zone, where half a pixel of shift would be seen.
    same(stack, tiffs, Box(59_000, 5_413_000, 59_100, 5_413_100), "EPSG:32633")
    assert stack.acquisitions[0].bands[0].crs == UTM
    assert str(tmp_path / "s2.zarr") in stack.acquisitions[0].bands[0].name


def test_values_of_a_store_are_read_by_windows_also_in_another_process(tmp_path):
    dataset(numbers()).to_zarr(tmp_path / "s2.zarr")
    stack = open_zarr("s2", tmp_path / "s2.zarr")
    text = pickle.dumps(stack)
    assert len(text) < 60_000  # no values
    part = Box(500_020, 5_400_010, 500_040, 5_400_040)
    fields = read_box(pickle.loads(text), UTM, part)
    assert np.array_equal(fields.values, numbers()[..., 2:5, 2:4])
    assert not vars(KEPT)  # nothing stays in memory


def test_reflectance_with_scale_and_offset_gives_what_files_give(tmp_path):
    """Both as reflectance x 10000, and missing where all bands are 0 before they are scaled."""
    values = numbers()
    values[1, :, 0, 4], values[1, :5, 3, 3] = 0, 0
    dataset(values, scale_factor=1e-4, add_offset=-0.1).to_zarr(tmp_path / "s2.zarr")
    for day, image in zip(DAYS, values):
        profile = dict(driver="GTiff", height=HEIGHT, width=WIDTH, count=len(BANDS), dtype="int16")
        with rasterio.open(tmp_path / f"{day}.tif", "w", crs=UTM, transform=PLACE, **profile) as file:
            file.write(image)
            file.descriptions, file.scales, file.offsets = BANDS, [1e-4] * len(BANDS), [-0.1] * len(BANDS)
    fields = same(open_stack("s2", tmp_path / "s2.zarr"), open_stack("s2", tmp_path))
    expected = np.where((values == 0).all(axis=1, keepdims=True), 0, values - 1000.0)
    np.testing.assert_allclose(fields.values, expected, atol=1e-3)


def turned(given):
    return given.isel(y=slice(None, None, -1))


def stacked(given):
    array = given.to_dataarray("band").assign_coords(given.coords)
    return array.transpose("y", "band", "x", "time")


def renamed(given):
    return given.rename(x="easting", y="northing").drop_vars("spatial_ref").assign_attrs({"proj:code": UTM})


def with_common_names(given):
    names = {"B2": "blue", "B3": "green", "B4": "B04", "B8": "nir", "B8A": "nir08", "B11": "swir16"}
    return given.rename(names)[["swir16", *[names.get(b, b) for b in reversed(BANDS) if b != "B11"]]]


def with_a_transform_alone(given):
    given.spatial_ref.attrs["GeoTransform"] = " ".join(map(str, PLACE.to_gdal()))
    return given.drop_vars(["x", "y"])


def of_corners(given):
    """As stackstac gives it: coordinates of upper left corners, and the transform."""
    given = given.assign_coords(x=given.x - 5, y=given.y + 5).drop_vars("spatial_ref")
    return given.assign_attrs(crs=UTM, transform=PLACE)


def of_corners_and_turned(given):
    return turned(of_corners(given))


def in_single_precision(given):
    """Northings have steps of half a metre in float32; the transform is exact."""
    given.spatial_ref.attrs["GeoTransform"] = " ".join(map(str, PLACE.to_gdal()))
    return given.assign_coords(x=given.x.astype("f4"), y=(given.y + 0.2).astype("f4"))


def of_a_cut(given):
    """The transform is still that of the raster from which the array was cut."""
    whole = PLACE * Affine.translation(-100, -50)
    given.spatial_ref.attrs["GeoTransform"] = " ".join(map(str, whole.to_gdal()))
    return given


ways = [turned, stacked, renamed, with_common_names, with_a_transform_alone, of_corners, of_corners_and_turned]


@pytest.mark.parametrize("way", [*ways, in_single_precision, of_a_cut])
def test_arrays_come_in_any_layout(tmp_path, way):
    stack = open_dataset("s2", way(dataset(numbers())))
    fields = same(stack, as_geotiffs(tmp_path, numbers()))
    assert np.array_equal(fields.values, numbers()) and fields.days == DAYS
    assert any("corners" in note for note in stack.notes) == ("corners" in way.__name__)


@pytest.mark.parametrize("attribute", ["nodata", "_FillValue", "missing_value"])
def test_fill_values_in_attributes_are_invalid(attribute):
    fields = read_box(open_dataset("s2", dataset(numbers(), **{attribute: np.int16(7)})), UTM, BOX)
    assert np.array_equal(fields.valid[0, 0], numbers()[0, 0] != 7)
    assert fields.valid[1].all()


def test_values_that_seem_to_hold_the_offset_are_doubted_in_a_note():
    """Pitfall 1: an array does not declare it."""
    given = dataset(numbers())
    later = given.assign_coords(time=np.array(["2020-05-03", "2022-05-03"], "datetime64[ns]"))
    offset = xarray.where(later.time == later.time[1], 1000, 0).astype("int16")
    held = later.map(lambda band: band + offset if band.ndim else band).assign_attrs(crs=UTM)
    doubts = {name: open_dataset("s2", one).notes for name, one in {"held": held, "not": later, "old": given}.items()}
    assert any("1 dates since 2022-01-25, such as 2022-05-03, have no values" in note for note in doubts.pop("held"))
    assert not any("have no values" in note for notes in doubts.values() for note in notes)


def test_dates_are_put_in_order():
    fields = read_box(open_dataset("s2", dataset(numbers()).isel(time=[1, 0])), UTM, BOX)
    assert fields.days == DAYS and np.array_equal(fields.values, numbers())


def test_one_date_may_be_a_coordinate_alone():
    fields = read_box(open_dataset("s2", dataset(numbers()).isel(time=1)), UTM, BOX)
    assert fields.days == DAYS[1:] and np.array_equal(fields.values[0], numbers()[1])


@pytest.mark.parametrize("units", ["dB", "linear power"])
def test_radar_has_its_units_and_its_ratio(units):
    decibels = np.random.default_rng(0).uniform(-25, -5, (2, 2, HEIGHT, WIDTH)).astype("float32")
    values = decibels if units == "dB" else 10 ** (decibels / 10)
    coords = dataset(numbers()).coords
    given = xarray.Dataset({"vh": (("time", "y", "x"), values[:, 1]), "vv": (("time", "y", "x"), values[:, 0])}, coords)
    stack = open_dataset("s1", given)
    assert stack.units == units
    expected = np.concatenate([decibels, decibels[:, :1] - decibels[:, 1:]], axis=1)
    np.testing.assert_allclose(read_box(stack, UTM, BOX, "dB").values, expected, atol=1e-4)


def test_classes_and_masks_exclude_pixels():
    classes = np.full((2, HEIGHT, WIDTH), 4, "uint8")
    classes[0, 1, 1], classes[1, 2, 2] = 9, 0
    given = dataset(numbers())
    with_classes = given.assign(SCL=(("time", "y", "x"), classes))
    fields = read_box(open_dataset("s2", with_classes), UTM, BOX)
    expected = classes[:, None] == 4
    assert np.array_equal(fields.valid, expected)
    with_mask = given.assign(s2_mask=(("time", "y", "x"), classes == 4))
    assert np.array_equal(read_box(open_dataset("s2", with_mask), UTM, BOX).valid, expected)
    of_all_dates = given.assign(s2_mask=(("y", "x"), classes[0] == 4))
    assert np.array_equal(read_box(open_dataset("s2", of_all_dates), UTM, BOX).valid[1], expected[0])


def test_an_image_has_no_date():
    given = dataset(numbers())[["B4", "B3", "B2"]].rename(B4="red", B3="green", B2="blue").isel(time=[1])
    stack = open_dataset("spot", given)
    fields = read_box(stack, UTM, Box(500_000, 5_400_000, 500_080, 5_400_060))
    assert stack.acquisitions[0].day is None and fields.days == []
    assert fields.values.shape == (3, 60, 80)


def test_degrees_are_read_at_their_place():
    """Coordinates in degrees are centres, too."""
    given = dataset(numbers()).drop_vars("spatial_ref")
    given = given.assign_coords(x=9 + 1e-4 * np.arange(WIDTH), y=48.75 - 1e-4 * np.arange(HEIGHT))
    (band, *_) = open_dataset("s2", given.assign_attrs(crs="EPSG:4326")).acquisitions[0].bands
    assert (band.transform * (0.5, 0.5)) == pytest.approx((9, 48.75), abs=1e-9)


def uneven(given):
    return given.assign_coords(x=given.x + np.repeat([0, 5], [3, 5]))


def in_calendar_of_360_days(given):
    return given.assign_coords(time=["2020-05-03", "2020-12-31"])


def of_objects(given):
    return given.assign(B4=given.B4.astype(object))


def with_scales(given):
    return given.assign(B4=given.B4.assign_attrs(scales=(1, 2)))


def twice(given):
    return xarray.Dataset({"one": stacked(given), "two": stacked(given)})


WRONG = {
    "steps of 10 to 15": uneven,
    "has no coordinates 'x'": lambda given: given.drop_vars("x"),
    "no coordinate system": lambda given: given.drop_vars("spatial_ref"),
    "'EPSG:1'": lambda given: given.drop_vars("spatial_ref").assign_attrs(crs="EPSG:1"),
    "no dates of datetime64": in_calendar_of_360_days,
    "needs a coordinate 'time'": lambda given: given.isel(time=0, drop=True),
    "or an empty one": lambda given: given.assign_coords(time=np.array(["2020-05-03", "NaT"], "M8[ns]")),
    "lacks 's2''s bands B11": lambda given: given.drop_vars("B11"),
    "holds object": of_objects,
    "scale or offset for each band": with_scales,
    "holds nothing": lambda given: given.isel(time=[]),
    "attributes that xarray cannot decode": lambda given: given.assign(B4=given.B4.assign_attrs(grid_mapping=3)),
    "several variables of bands, one, two": twice,
    "of one pixel": lambda given: given.isel(x=[0]),
    "has 2 along 'tile'": lambda given: given.expand_dims(tile=2),
    "which is not one of six": lambda given: given.assign_attrs(transform=[1, 2]),
    "of which 'level' is unknown": lambda given: given.expand_dims(level=2),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_is_refused_in_a_sentence(message):
    with pytest.raises(ValueError, match=message):
        open_dataset("s2", WRONG[message](dataset(numbers())))


def test_an_image_of_several_dates_is_refused():
    with pytest.raises(ValueError, match="has 2 along 'time'; expected one"):
        open_dataset("spot", dataset(numbers())[["B4", "B3", "B2"]].rename(B4="red", B3="green", B2="blue"))


class Writes:
    """When it is unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.write_text, (self.path, "code has run")


@pytest.mark.parametrize("change", [{"dtype": "|O", "filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle"}}])
def test_pickled_objects_in_a_store_are_refused(tmp_path, change):
    dataset(numbers()).to_zarr(tmp_path / "s2.zarr", zarr_format=2, consolidated=False)
    meta = tmp_path / "s2.zarr" / "time" / ".zarray"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"compressor": None} | change))
    (meta.parent / "0").write_bytes(pickle.dumps(Writes(tmp_path / "ran")))
    with pytest.raises(ValueError, match="s2.zarr cannot be read .*pickle"):
        open_zarr("s2", tmp_path / "s2.zarr")
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_no_store_and_a_damaged_chunk_are_named(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nothing.zarr"):
        open_zarr("s2", tmp_path / "nothing.zarr")
    dataset(numbers()).to_zarr(tmp_path / "s2.zarr", zarr_format=2)
    stack = open_zarr("s2", tmp_path / "s2.zarr")
    for chunk in (tmp_path / "s2.zarr" / "B4").glob("0*"):
        chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(ValueError, match="s2.zarr, B4 of 2020-05-03 cannot be read"):
        read_box(stack, UTM, BOX)


def test_an_embedding_of_a_store_is_that_of_its_files(tmp_path):
    """With threads that read, and both ways in which chunks may lie across dates and bands."""
    stack, weights = write_stack(tmp_path, "s2", 40, 50), model("s2", "spot")
    images = [rasterio.open(one.bands[0].path).read() for one in stack.acquisitions]
    times = np.array([one.day for one in stack.acquisitions], "datetime64[ns]")
    x, y = LEFT + 10 * np.arange(50) + 5.0, TOP - 10 * np.arange(40) - 5.0
    array = xarray.DataArray(
        np.stack(images),
        {"time": times, "band": list(BANDS), "y": y, "x": x},
        ("time", "band", "y", "x"),
        attrs={"crs": CRS},
    )
    array.to_dataset(name="s2").chunk(band=3, y=16).to_zarr(tmp_path / "s2.zarr")
    run = functools.partial(embed, weights=weights, patch_size=20, resolution=20, tile=160, say=lambda line: None)
    made = {"files": stack, "array": array, "store": tmp_path / "s2.zarr"}
    features = {}
    for name, source in made.items():
        run({"s2": source}, output=tmp_path / f"{name}.tif")
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            features[name] = file.read(), file.transform, file.crs
    for name in ("array", "store"):
        assert features[name][1:] == features["files"][1:]
        np.testing.assert_allclose(features[name][0], features["files"][0], atol=1e-5)
    assert np.isfinite(features["files"][0]).any()


def test_what_is_no_array_is_refused():
    with pytest.raises(ValueError, match="'s2' is a dict; expected a path, or a Dataset"):
        open_dataset("s2", {"B4": 1})


def test_a_real_chip_in_degrees_is_the_same_as_array_and_as_item_of_a_catalogue(tmp_path, real_data):
    """The flood chip of Sen1Floods11, on a grid in degrees, is warped to metres in the same way."""
    path = real_data / "sen1floods11/sample/S2/Spain_7370579_S2Hand.tif"
    with rasterio.open(path) as file:
        values, place, bounds, names = file.read(), file.transform, file.bounds, file.descriptions
    day = datetime.date(2018, 9, 17)
    bands = tuple(
        RasterBand(path, names.index(band) + 1, "EPSG:4326", place, values.shape[1:], zero=0.0) for band in BANDS
    )
    x, y = (np.arange(side) + 0.5 for side in values.shape[:0:-1])
    array = xarray.DataArray(
        values,
        {"band": list(names), "y": place.f + place.e * y, "x": place.c + place.a * x, "time": np.datetime64(day, "ns")},
        ("band", "y", "x"),
        attrs={"crs": "EPSG:4326", "_FillValue": 0},
    )
    asset = {"href": str(path), "bands": [{"name": name} for name in names]}
    item = {"type": "Feature", "id": "spain", "assets": {"data": asset}}
    item["properties"] = {"datetime": "2018-09-17T10:50:00Z", "s2:processing_baseline": "02.06"}
    (tmp_path / "item.json").write_text(json.dumps(item))
    west, south, east, north = rasterio.warp.transform_bounds("EPSG:4326", "EPSG:32630", *bounds)
    x, y = 10 * round((west + east) / 20), 10 * round((south + north) / 20)
    box = Box(x - 2000, y - 1000, x + 2000, y + 3500)  # beyond the northern edge
    expected = Stack("s2", (Acquisition("chip", day, bands),))
    fields = same(open_dataset("s2", array), expected, box, "EPSG:32630")
    same(open_stack("s2", tmp_path / "item.json"), expected, box, "EPSG:32630")
    assert 0.3 < fields.valid.mean() < 0.95

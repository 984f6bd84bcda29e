"""What a GeoTIFF declares of its values and its place is used, or compared with the description."""

import numpy as np
import pytest
import rasterio
import rasterio.warp

from anysat_jax.sensors import SENSORS
from tests.data_pipelines.own_tiles.folders import (
    DAYS,
    DESCRIPTION,
    describe,
    example_of,
    s2_values,
    write_everything,
    write_folder,
    write_raster,
)

FIRST = f"s2/a_{DAYS[1]}.tif"  # in time order
SECOND = f"s2/a_{DAYS[0]}.tif"


@pytest.fixture(autouse=True)
def _own_sensors_go(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))


VALID = np.arange(16).reshape(4, 4) % 3 > 0


@pytest.mark.parametrize("inside", [True, False])
def test_masks_in_the_file_and_beside_it_count(tmp_path, inside):
    path = write_folder(tmp_path)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(tmp_path / FIRST, "r+") as file:
        file.write_mask(VALID)
    assert (tmp_path / f"{FIRST}.msk").is_file() != inside
    example = example_of(path)
    np.testing.assert_array_equal(example["s2_mask"][0, 0], VALID)
    assert example["s2_mask"][1].all() and (example["s2"][0][:, ~VALID] == 0).all()


def test_a_mask_of_labels_counts(tmp_path):
    path = write_everything(tmp_path)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "mask" / "a.tif", "r+") as file:
        file.write_mask(VALID)
    dense = example_of(path)["dense"]
    assert (dense[~VALID] == -1).all() and (dense[1:][VALID[1:]] == 1).all()


DRONE = """
[sensors.fixture_drone]
files = "drone/{tile}.tif"
bands = ["R", "G", "B", "NIR"]
kind = "image"
metres_per_pixel = 10
subpatch_pixels = 1
dtype = "uint8"
"""


def write_drone(root, text, values, **profile):
    path = write_folder(root, DESCRIPTION + text)
    for tile in "abc":
        write_raster(root / "drone" / f"{tile}.tif", values, **profile)
    return path


def test_an_alpha_band_is_a_mask(tmp_path):
    values = np.full((4, 4, 4), 90, np.uint8)
    values[3] = np.where(VALID, 255, 0)
    path = write_drone(tmp_path, DRONE.replace(', "NIR"', ""), values, photometric="RGB", alpha="YES")
    example = example_of(path)
    assert example["fixture_drone"].shape == (3, 4, 4)
    np.testing.assert_array_equal(example["fixture_drone_mask"][0], VALID)
    describe(tmp_path, DESCRIPTION + DRONE.replace("fixture_drone", "fixture_four_bands"))
    with pytest.raises(ValueError, match=r"drone/a\.tif: band 4 is alpha in the file, .* and 'NIR' in the description"):
        example_of(path)


def test_a_fourth_colour_that_gdal_takes_for_alpha_is_data(tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    path = write_drone(tmp_path, DRONE, values)
    example = example_of(path)
    np.testing.assert_array_equal(example["fixture_drone"], values)
    assert example["fixture_drone_mask"].all()


def declare(path, scale, offset, shift=0):
    with rasterio.open(path, "r+") as file:
        file.write(file.read() + np.uint16(shift))
        file.scales, file.offsets = [scale] * file.count, [offset] * file.count


def test_an_offset_is_taken_from_numbers(tmp_path):
    """The same ground before and after the products' numbers became larger by 1000."""
    path = write_folder(tmp_path)
    for tile in "abc":
        declare(tmp_path / "s2" / f"{tile}_{DAYS[1]}.tif", 1e-4, 0)
        declare(tmp_path / "s2" / f"{tile}_{DAYS[0]}.tif", 1e-4, -0.1, shift=1000)
    values = example_of(path)["s2"]
    assert values.dtype == np.uint16 and values[:, 0, 0, 0].tolist() == [201, 200]
    describe(tmp_path, DESCRIPTION.replace('"uint16"', '"float32"'))
    np.testing.assert_allclose(example_of(path)["s2"][:, 0, 0, 0], [0.0201, 0.02], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_fill_of_zeros_does_not_become_a_value_by_an_offset(tmp_path, dtype):
    path = write_folder(tmp_path, DESCRIPTION.replace("uint16", dtype))
    values = np.where(VALID, s2_values("a", DAYS[1]) + np.uint16(1000), 0).astype(np.uint16)
    write_raster(tmp_path / FIRST, values)
    for name in (FIRST, SECOND):
        declare(tmp_path / name, 1e-4, -0.1, shift=0 if name == FIRST else 1000)
    example = example_of(path)
    np.testing.assert_array_equal(example["s2_mask"][:, 0], [VALID, np.ones((4, 4), bool)])
    assert (example["s2"] >= 0).all()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_files_of_different_units_are_refused(tmp_path, dtype):
    path = write_folder(tmp_path, DESCRIPTION.replace("uint16", dtype))
    declare(tmp_path / "s2" / f"b_{DAYS[0]}.tif", 1e-4, 0)
    assert len(example_of(path)["s2"]) == 2
    with pytest.raises(ValueError, match=r"b_20200301\.tif declares scales of \(0\.0001, .*a_20191231\.tif of 1; exp"):
        example_of(path, "b")


def test_scales_that_are_no_numbers(tmp_path):
    path = write_folder(tmp_path)
    declare(tmp_path / FIRST, 0, 5)
    with pytest.raises(ValueError, match=r"declares the scales \(0\.0, .* expected numbers, not 0"):
        example_of(path)


def name_bands(path, names):
    with rasterio.open(path, "r+") as file:
        file.descriptions = names


@pytest.mark.parametrize("names", [["B01", "b2", "B3 (green)", "B4", "B5", "", "edge", "B8", "B8A", "B11", "B12"]])
def test_names_of_bands_in_the_file_may_be_spelt_otherwise(tmp_path, names):
    path = write_folder(tmp_path)
    name_bands(tmp_path / FIRST, names)
    assert len(example_of(path)["s2"]) == 2


def test_names_of_bands_in_the_file_contradict_the_description(tmp_path):
    path = write_folder(tmp_path)
    name_bands(tmp_path / FIRST, ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B11", "B12", "B8A"])
    with pytest.raises(ValueError, match=r"a_20191231\.tif: band 9 is 'B11' in the file, 'B8A' in the description"):
        example_of(path)


@pytest.mark.parametrize("names", [("Blue", "green", "RED"), ("", "", "")])
def test_colours_in_the_file_contradict_the_description(tmp_path, names):
    values = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    path = write_drone(tmp_path, DRONE.replace(', "NIR"', "").replace("drone]", "colours]"), values)
    with rasterio.open(tmp_path / "drone" / "a.tif", "r+") as file:
        file.descriptions = names
        if not names[0]:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    with pytest.raises(ValueError, match=r"drone/a\.tif: band 1 is '[Bb]lue' in the file, 'R' in the description"):
        example_of(path)
    assert example_of(path, "b")["fixture_colours"].shape == (3, 4, 4)


def test_red_of_sentinel_2_is_its_fourth_band(tmp_path):
    path = write_folder(tmp_path)
    name_bands(tmp_path / FIRST, ["", "Blue", "Green", "Red", *[""] * 7])
    assert len(example_of(path)["s2"]) == 2
    name_bands(tmp_path / FIRST, ["", "Red", "Green", "Blue", *[""] * 7])
    with pytest.raises(ValueError, match="band 2 is 'Red' in the file, 'B2' in the description"):
        example_of(path)


def test_each_band_may_have_a_nodata_value_of_its_own(tmp_path):
    path = write_folder(tmp_path)
    values = np.full((11, 4, 4), 300, np.uint16)
    values[0, 0, 0], values[1, 1, 1], values[1, 2, 2] = 600, 700, 600
    write_raster(tmp_path / FIRST, values)
    bands = "".join(
        f'<PAMRasterBand band="{number}"><NoDataValue>{value}</NoDataValue></PAMRasterBand>'
        for number, value in enumerate((600, 700, *range(801, 810)), start=1)
    )
    (tmp_path / f"{FIRST}.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    wrong = ~example_of(path)["s2_mask"][0, 0]
    assert np.argwhere(wrong).tolist() == [[1, 1]]  # B1 is not among the sensor's bands


Affine = rasterio.Affine
PLACES = {
    "pixels of 20 m": (dict(transform=Affine(20, 0, 5e5, 0, -20, 6e6)), r"of 20 x 20 m .*, the description of 10 m"),
    "oblong pixels": (dict(transform=Affine(10, 0, 5e5, 0, -12, 6e6)), "of 10 x 12 m"),
    "feet": (dict(crs="EPSG:2264", transform=Affine(10, 0, 5e5, 0, -10, 6e5)), r"of 3\.048 x 3\.048 m \(EPSG:2264\)"),
    "degrees": (dict(crs="EPSG:4326", transform=Affine(10, 0, 9, 0, -10, 50)), "of 1.113e.06 x 1.113e.06 m"),
    "twenty metres in degrees": (
        dict(crs="EPSG:4326", transform=Affine(1.797e-4, 0, 9, 0, -1.797e-4, 50)),
        "of 20 x 20 m",
    ),
    "web mercator": (
        dict(crs="EPSG:3857", transform=Affine(10, 0, 1001875, 0, -10, 7_200_000)),
        r"of 5\.8\d* x 5\.8\d* m \(EPSG:3857\)",
    ),
    "control points": (
        dict(crs="EPSG:32632", transform=None, gcps=[rasterio.control.GroundControlPoint(0, 0, 5e5, 6e6)] * 3),
        "is placed by control points",
    ),
    "upside down without a system": (
        dict(crs=None, transform=Affine(10, 0, 5e5, 0, 10, 6e6)),
        "turned or upside down, without a coordinate system; expected a grid",
    ),
    "turned": (dict(transform=Affine(9, 4, 5e5, 4, -9, 6e6)), "is turned or sheared .* gdalwarp writes it so"),
    "sheared": (dict(transform=Affine(10, 1, 5e5, 0, -10, 6e6)), "is turned or sheared"),
    "another zone": (dict(crs="EPSG:32633"), r"is centred .* pixels away from .* \(EPSG:32633 and EPSG:32632\)"),
    "another continent": (
        dict(crs="EPSG:4326", transform=Affine(8.983e-5, 0, -70, 0, -8.983e-5, -20)),
        r"is centred .* \(EPSG:4326 and EPSG:32632\)|cannot be read",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_that_contradict_the_description(tmp_path, case):
    place, message = PLACES[case]
    path = write_folder(tmp_path)
    write_raster(tmp_path / SECOND, s2_values("a", DAYS[0]), **place)
    with pytest.raises(ValueError, match=f"a_20200301.tif.*({message})"):
        example_of(path)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633", "EPSG:3035", "EPSG:3857"])
def test_the_same_ground_in_another_coordinate_system(tmp_path, crs):
    path = write_folder(tmp_path)
    (x,), (y,) = rasterio.warp.transform("EPSG:32632", crs, [5e5 + 20], [6e6 - 20])
    side = {"EPSG:4326": 10 / 111_320, "EPSG:3857": 10 / np.cos(np.radians(54.15))}.get(crs, 10)
    place = dict(crs=crs, transform=Affine(side, 0, x - 2 * side, 0, -side, y + 2 * side))
    write_raster(tmp_path / SECOND, s2_values("a", DAYS[0]), **place)
    assert len(example_of(path)["s2"]) == 2


def test_feet_that_are_as_many_metres(tmp_path):
    path = write_folder(tmp_path)
    for tile in "abc":
        for day in DAYS:
            feet = 10 / (1200 / 3937)
            place = dict(crs="EPSG:2264", transform=Affine(feet, 0, 5e5, 0, -feet, 6e5))
            write_raster(tmp_path / "s2" / f"{tile}_{day}.tif", s2_values(tile, day), **place)
    assert example_of(path)["crs"] == "EPSG:2264"

"""Folders as people have them: a file for each band, suffixes in capitals, classifications beside images."""

import numpy as np
import pytest
import rasterio

from anysat_jax.sensors import SENSORS
from tests.data_pipelines.own_tiles.folders import (
    DAYS,
    DESCRIPTION,
    describe,
    example_of,
    reader_of,
    s2_values,
    write_folder,
    write_raster,
)


@pytest.fixture(autouse=True)
def _own_sensors_go(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))


BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
SAFE = DESCRIPTION.replace('"s2/{tile}_{date}.tif"', '"s2/{tile}_{date}T*_{band}_10m.TIF"')


def write_bands(root, description=SAFE, **profile):
    """As the products come: a file for each band, B02 for B2, and others that are not described."""
    path = write_folder(root, description)
    for tile in "abc":
        for day in DAYS:
            (root / "s2" / f"{tile}_{day}.tif").unlink()
            for band, values in zip(BANDS, s2_values(tile, day), strict=True):
                name = f"B0{band[1:]}" if len(band) == 2 else band
                write_raster(root / "s2" / f"{tile}_{day}T105441_{name}_10m.TIF", values[None], **profile)
            write_raster(root / "s2" / f"{tile}_{day}T105441_TCI_10m.TIF", np.zeros((3, 4, 4), np.uint8))
    return path


def test_a_file_for_each_band(tmp_path):
    example = example_of(write_bands(tmp_path), "b")
    np.testing.assert_array_equal(example["s2"], np.stack([s2_values("b", day)[1:] for day in reversed(DAYS)]))
    assert example["s2"].dtype == np.uint16 and example["s2_mask"].all()


def test_bands_are_found_by_their_names_in_any_order(tmp_path):
    path = write_bands(tmp_path)
    describe(tmp_path, SAFE.replace('"B8", "B8A"', '"B8A", "B8"'))
    np.testing.assert_array_equal(example_of(path)["s2"][1], s2_values("a", DAYS[0])[1:])


def test_what_a_file_of_one_band_declares_counts(tmp_path):
    path = write_bands(tmp_path)
    name = tmp_path / "s2" / f"a_{DAYS[0]}T105441_B04_10m.TIF"
    values = np.where(np.eye(4), 0, 400).astype(np.uint16)[None]
    write_raster(name, values, nodata=0)
    np.testing.assert_array_equal(example_of(path)["s2_mask"][1, 0], ~np.eye(4, dtype=bool))
    write_raster(name, np.ones((1, 2, 2), np.uint16))
    with pytest.raises(
        ValueError, match=r"a_20200301T105441_B04_10m\.TIF has the shape \(1, 2, 2\) .* one band, on the"
    ):
        example_of(path)


def test_a_band_without_a_file(tmp_path):
    path = write_bands(tmp_path)
    (tmp_path / "s2" / f"b_{DAYS[0]}T105441_B11_10m.TIF").unlink()
    with pytest.raises(FileNotFoundError, match=r"tile 'b' has no file .* of B11 on 2020-03-01; .* one of each band"):
        reader_of(path)


def test_suffixes_in_capitals(tmp_path):
    path = write_folder(tmp_path)
    for file in list((tmp_path / "s2").iterdir()):
        file.rename(file.with_suffix(".TIF"))
    for pattern in ("s2/{tile}_{date}.tif", "s2/{tile}_{date}.TIF"):
        describe(tmp_path, DESCRIPTION.replace("s2/{tile}_{date}.tif", pattern))
        assert len(example_of(path)["s2"]) == 2
    (tmp_path / "s2" / f"a_{DAYS[0]}.tif").touch()
    with pytest.raises(ValueError, match=r"a_20200301\.TIF and .*a_20200301\.tif fit .* for one tile"):
        example_of(path)


CLASSES = np.array([[4, 4, 9, 0], [4, 8, 5, 4], [6, 3, 4, 4], [11, 4, 4, 5]], np.uint8)
CLEAR = np.isin(CLASSES, (4, 5, 6))
CLEAR_FILES = '[sensors.s2.clear]\nfiles = "scl/{tile}_{date}.tif"\nvalues = [4, 5, 6]\n\n[labels]'


def write_classes(root, classes, **profile):
    for tile in "abc":
        for day in DAYS:
            write_raster(root / "scl" / f"{tile}_{day}.tif", classes[None], **profile)


def test_a_classification_beside_the_images(tmp_path):
    path = write_folder(tmp_path, DESCRIPTION.replace("[labels]", CLEAR_FILES))
    write_classes(tmp_path, CLASSES)
    write_raster(tmp_path / "scl" / f"a_{DAYS[0]}.tif", np.full((1, 4, 4), 4, np.uint8))
    example = example_of(path)
    np.testing.assert_array_equal(example["s2_mask"][:, 0], [CLEAR, np.ones((4, 4), bool)])
    assert (example["s2"][0][:, ~CLEAR] == 0).all() and example["s2"][0, 0, 0, 0] == s2_values("a", DAYS[1])[1, 0, 0]
    before = reader_of(path).fingerprint
    write_raster(tmp_path / "scl" / "d_20200101.tif", CLASSES[None])
    assert reader_of(path).fingerprint != before
    (tmp_path / "scl" / f"a_{DAYS[1]}.tif").unlink()
    with pytest.raises(ValueError, match=r"tile 'a' has no file 'scl/\{tile\}_\{date\}\.tif' on 2019-12-31; add it"):
        example_of(path)


def test_a_classification_of_larger_pixels(tmp_path):
    path = write_folder(tmp_path, DESCRIPTION.replace("[labels]", CLEAR_FILES))
    coarse = dict(transform=rasterio.Affine(20, 0, 5e5, 0, -20, 6e6))
    write_classes(tmp_path, np.array([[4, 9], [9, 5]], np.uint8), **coarse)
    assert (
        example_of(path)["s2_mask"][0, 0].tolist()
        == [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
    )
    write_classes(tmp_path, np.full((3, 3), 4, np.uint8))
    with pytest.raises(ValueError, match=r"scl/a_2.*\.tif (is centred|has the shape \(1, 3, 3\); expected a class)"):
        example_of(path)


def test_a_classification_among_the_bands(tmp_path):
    text = DESCRIPTION.replace('"B12"]', '"B12", "SCL"]')
    path = write_folder(
        tmp_path, text.replace("[labels]", '[sensors.s2.clear]\nband = "SCL"\nvalues = [4, 5, 6]\n\n[labels]')
    )
    for tile in "abc":
        for day in DAYS:
            values = np.concatenate([s2_values(tile, day), CLASSES[None].astype(np.uint16)])
            write_raster(tmp_path / "s2" / f"{tile}_{day}.tif", values)
    example = example_of(path)
    assert example["s2"].shape == (2, 10, 4, 4)
    np.testing.assert_array_equal(example["s2_mask"][:, 0], [CLEAR, CLEAR])


def test_a_cloud_mask_of_stacked_dates(tmp_path):
    text = DESCRIPTION.replace("_{date}", "").replace("dtype", 'dates = "s2.csv"\ndtype')
    clear = '[sensors.s2.clear]\nfiles = "cloud/{tile}.npy"\nvalues = [0]\n\n[labels]'
    path = write_folder(tmp_path, text.replace("[labels]", clear))
    (tmp_path / "cloud").mkdir()
    clouds = np.stack([np.eye(4), np.zeros((4, 4))]).astype(np.uint8)
    for tile in "abc":
        write_raster(tmp_path / "s2" / f"{tile}.tif", np.concatenate([s2_values(tile, day) for day in DAYS]))
        np.save(tmp_path / "cloud" / f"{tile}.npy", clouds)
        for day in DAYS:
            (tmp_path / "s2" / f"{tile}_{day}.tif").unlink()
    (tmp_path / "s2.csv").write_text("tile,date\n" + "".join(f"{t},{day}\n" for t in "abc" for day in DAYS))
    np.testing.assert_array_equal(example_of(path)["s2_mask"][:, 0], clouds[::-1] == 0)


CANNOT_BE = {
    "neither": ("values = [4]", r"clear\.band is ''; expected a band of the images, or files"),
    "both": ('files = "scl/{tile}_{date}.tif"\nband = "B1"\nvalues = [4]', r"clear\.band is 'B1'; expected a band"),
    "no values": ('band = "B1"', "clear has no values"),
    "unknown band": ('band = "SCL"\nvalues = [4]', r"clear\.band is 'SCL'; expected one of bands: B1"),
    "no date": ('files = "scl/{tile}.tif"\nvalues = [4]', r"clear\.files is 'scl/.*; expected \{date\} in both"),
    "field": ('bands = "SCL"\nvalues = [4]', "clear has bands, which is not known; known are band, files, values"),
}


@pytest.mark.parametrize("case", CANNOT_BE)
def test_clear_pixels_that_cannot_be(tmp_path, case):
    fields, message = CANNOT_BE[case]
    path = write_folder(tmp_path, DESCRIPTION.replace("[labels]", f"[sensors.s2.clear]\n{fields}\n\n[labels]"))
    with pytest.raises(ValueError, match=f"(?s)sensors\\.s2.*{message}"):
        reader_of(path)


MODIS = """
name = "modis_alone"
extent = 1000
patch_sizes = [250, 500]

[sensors.modis]
files = "modis/{tile}.npy"
bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7"]
dates = "modis.csv"
"""


def test_modis_alone_is_an_ordinary_series(tmp_path):
    (tmp_path / "modis").mkdir()
    values = np.arange(2 * 7 * 16, dtype=np.float32).reshape(2, 7, 4, 4) / 1000
    for tile in "abc":
        np.save(tmp_path / "modis" / f"{tile}.npy", values)
    (tmp_path / "modis.csv").write_text("tile,date\n" + "".join(f"{t},2020-01-0{d}\n" for t in "abc" for d in (1, 2)))
    path = describe(tmp_path, MODIS)
    np.testing.assert_array_equal(example_of(path)["modis-series"], values)
    record = reader_of(path).card.own_sensors[0]
    assert (record.kind, record.metres_per_pixel, record.bands) == ("series", 250, SENSORS["modis"].bands)
    np.save(tmp_path / "modis" / "a.npy", np.where(values > 0.2, np.float32(-2.8672), values))  # a fill x 0.0001
    with pytest.raises(ValueError, match=r"'modis-series' runs from -2\.8672 .*; expected reflectance, -0\.5 to 10"):
        example_of(path)


def test_jpeg_2000(tmp_path):
    path = write_folder(tmp_path, DESCRIPTION.replace("{date}.tif", "{date}.jp2"))
    for file in list((tmp_path / "s2").iterdir()):
        with rasterio.open(file) as tif:
            values, place = tif.read(), dict(crs=tif.crs, transform=tif.transform)
        shape = dict(count=11, height=4, width=4, dtype="uint16", QUALITY="100", REVERSIBLE="YES")
        with rasterio.open(file.with_suffix(".jp2"), "w", driver="JP2OpenJPEG", **shape, **place) as jp2:
            jp2.write(values)
        file.unlink()
    example = example_of(path)
    np.testing.assert_array_equal(example["s2"][1], s2_values("a", DAYS[0])[1:])
    assert example["crs"] == "EPSG:32632"


def test_two_products_of_a_day_are_joined(tmp_path):
    text = DESCRIPTION.replace("_{date}.tif", "_{date}*.tif").replace("uint16", 'uint16"\nsame_day = "join')
    path = write_folder(tmp_path, text)
    first, second = s2_values("a", DAYS[0]), s2_values("a", DAYS[0]) + np.uint16(5000)
    first[:, 0], second[:, 3] = 0, 0
    second[:, 2, :2] = 0
    write_raster(tmp_path / "s2" / f"a_{DAYS[0]}.tif", second, nodata=0)
    write_raster(tmp_path / "s2" / f"a_{DAYS[0]}_N0500.tif", first, nodata=0)
    example = example_of(path)
    assert example["s2_dates"].tolist() == [364, 60] and example["s2_mask"].all()
    np.testing.assert_array_equal(example["s2"][1], np.where(first > 0, first, second)[1:])
    describe(tmp_path, text.replace("join", "better"))
    with pytest.raises(ValueError, match=r"same_day is 'better'; expected .join., or leave"):
        reader_of(path)
    describe(tmp_path, text.replace('same_day = "join"', ""))
    with pytest.raises(
        ValueError, match=r'for one tile on 2020-03-01; expected one, \{band\} in .*, or same_day = "join"'
    ):
        reader_of(path)


def write_products(root, clear, images="s2/*/{tile}_{date}.tif"):
    """Two products of tile a's first day, in folders A and B, each with a classification of its own."""
    text = DESCRIPTION.replace("s2/{tile}_{date}.tif", images).replace("uint16", 'uint16"\nsame_day = "join')
    path = write_folder(root, text.replace("[labels]", CLEAR_FILES.replace("scl/{tile}_{date}.tif", clear)))
    for file in list((root / "s2").iterdir()):
        (root / "s2" / "A").mkdir(exist_ok=True)
        write_raster(root / "scl" / "A" / file.name, CLASSES[None])
        file.rename(root / "s2" / "A" / file.name)
    (root / "s2" / "B").mkdir()
    write_raster(root / "s2" / "B" / f"a_{DAYS[0]}.tif", s2_values("a", DAYS[0]) + np.uint16(5000))
    write_raster(root / "scl" / "B" / f"a_{DAYS[0]}.tif", np.where(CLEAR, 8, 4).astype(np.uint8)[None])
    return path


def test_two_products_of_a_day_have_their_own_classifications(tmp_path):
    path = write_products(tmp_path, "scl/*/{tile}_{date}.tif")
    example, first = example_of(path), s2_values("a", DAYS[0])[1:]
    assert example["s2_dates"].tolist() == [364, 60]
    assert example["s2_mask"][1].all() and example["s2_mask"][0, 0].tolist() == CLEAR.tolist()
    np.testing.assert_array_equal(example["s2"][1], np.where(CLEAR, first, first + 5000))
    other = tmp_path / "scl" / "B" / f"a_{DAYS[0]}.tif"
    other.rename(tmp_path / "scl" / "b.tif")
    with pytest.raises(
        ValueError, match=r"tile 'a' has no file .* on 2020-03-01 .* \('B',\) at \*, .*s2/B/a_.*; add it"
    ):
        example_of(path)
    (tmp_path / "scl" / "C").mkdir()
    (tmp_path / "scl" / "b.tif").rename(tmp_path / "scl" / "C" / other.name)  # two, but one of another product
    with pytest.raises(ValueError, match=r"tile 'a' has no file .* \('B',\) at \*"):
        example_of(path)


def test_two_products_of_a_day_may_have_one_classification(tmp_path):
    path = write_products(tmp_path, "scl/A/{tile}_{date}.tif")
    np.testing.assert_array_equal(example_of(path)["s2_mask"][:, 0], [CLEAR, CLEAR])


def test_two_products_of_a_day_in_files_of_bands(tmp_path):
    text = SAFE.replace("uint16", 'uint16"\nsame_day = "join')
    path = write_bands(tmp_path, text)
    for file in list((tmp_path / "s2").glob(f"a_{DAYS[0]}T105441_B*")):
        with rasterio.open(file) as tif:
            values = tif.read()
        seen, first = np.arange(16).reshape(4, 4) % 3 > 0, np.arange(16).reshape(4, 4) % 2 > 0
        second = tmp_path / "s2" / file.name.replace("T105441", "T105512")
        write_raster(file, np.where(first & ~seen, values, 0).astype(np.uint16), nodata=0)
        write_raster(second, np.where(seen, values + np.uint16(5000), 0).astype(np.uint16), nodata=0)
    example = example_of(path)
    assert example["s2_dates"].tolist() == [364, 60]
    np.testing.assert_array_equal(example["s2_mask"][1, 0], seen | first)
    joined = s2_values("a", DAYS[0])[1:] + np.where(seen, 5000, 0)
    np.testing.assert_array_equal(example["s2"][1], np.where(seen | first, joined, 0))
    describe(tmp_path, SAFE)
    with pytest.raises(ValueError, match=r'fit .* for one tile on 2020-03-01; expected one, or same_day = "join" for'):
        reader_of(path)
    describe(tmp_path, text)
    (tmp_path / "s2" / f"a_{DAYS[0]}T105512_B02_10m.TIF").unlink()
    with pytest.raises(FileNotFoundError, match=r"tile 'a' has no file .* of B2 on 2020-03-01; .* one of each band"):
        reader_of(path)
    (tmp_path / "s2" / f"a_{DAYS[0]}T105441_B2_10m.TIF").touch()
    with pytest.raises(ValueError, match=r"T105441_B02_10m\.TIF and .*T105441_B2_10m\.TIF fit .* for one tile on"):
        reader_of(path)

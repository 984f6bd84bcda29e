"""Folders of GeoTIFFs as users have them: layouts, bands by name, dates and tables, stray and damaged files."""

import datetime
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from anysat_jax.scenes import warping
from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import choose_grid, read_box
from anysat_jax.scenes.sources import open_stack
from data_pipelines.rasters import open_raster
from data_pipelines.units import DIGITAL
from tests.scenes.rasters import BOX, DAY, S2_BANDS, read, scene, write

# ---------------------------------------------------------------- layouts


def test_a_file_for_each_date(tmp_path):
    for name, seed in (("s2_20200613.tif", 1), ("s2_2020-05-03.TIF", 0)):
        write(tmp_path / name, scene(seed=seed), names=S2_BANDS, nodata=0)
    fields, stack = read("s2", tmp_path)
    assert fields.days == [DAY, datetime.date(2020, 6, 13)] and not stack.notes
    np.testing.assert_array_equal(fields.values, [scene(seed=0), scene(seed=1)])


def test_a_file_for_each_band(tmp_path):
    """Names of bands in capitals or not, with and without zeros, of two resolutions, and what else products have."""
    values = scene()
    for number, band in enumerate(S2_BANDS):
        name = f"T32TMR_20200503T103031_{band.replace('B', 'b0') if number < 7 else band}_10m.tif"
        write(tmp_path / name, values[number], nodata=0)
    write(
        tmp_path / "T32TMR_20200503T103031_B02_20m.tif", values[0, ::2, ::2], Affine(20, 0, 500_000, 0, -20, 5_000_000)
    )
    write(tmp_path / "T32TMR_20200503T103031_TCI_10m.tif", values[:3].astype(np.uint8))
    write(tmp_path / "T32TMR_20200503T103031_B09_60m.tif", values[0])
    fields, stack = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.values, values[None])
    assert fields.days == [DAY] and len(stack.acquisitions) == 1


def test_a_folder_for_each_date_or_band(tmp_path):
    values = scene()
    for number, band in enumerate(S2_BANDS):
        write(tmp_path / "a" / "20200503" / f"{band}.tif", values[number], nodata=0)
        write(tmp_path / "b" / band / "20200503.tif", values[number], nodata=0)
    for layout in "ab":
        fields, stack = read("s2", tmp_path / layout)
        np.testing.assert_array_equal(fields.values, values[None])
        assert fields.days == [DAY]
    assert not stack.notes


@pytest.mark.parametrize("named", ["by bands", "with days", "not"])
def test_dates_stacked_in_one_file(tmp_path, named):
    values = np.concatenate([scene(seed=0), scene(seed=1)])
    names = {"by bands": S2_BANDS * 2, "not": ()}.get(
        named, tuple(f"{day}T103031_{band}" for day in ("20200613", "20200503") for band in S2_BANDS)
    )
    write(tmp_path / "stack.tif", values, names=names, nodata=0)
    if named != "with days":
        (tmp_path / "dates.csv").write_text("file,date\nstack.tif,20200613\nstack.tif,20200503\n")
    fields, stack = read("s2", tmp_path / "stack.tif")
    assert fields.days == [DAY, datetime.date(2020, 6, 13)]
    np.testing.assert_array_equal(fields.values, [scene(seed=1), scene(seed=0)])
    assert any("in this order" in note for note in stack.notes) == (named == "not")


def test_a_stack_with_another_number_of_dates_is_refused(tmp_path):
    write(tmp_path / "stack.tif", np.concatenate([scene()] * 2), names=S2_BANDS * 2)
    (tmp_path / "dates.csv").write_text("file,date\n" + "stack.tif,20200613\n" * 3)
    with pytest.raises(
        ValueError, match=r"stack\.tif has the bands 2 of B2, .*; expected 3 of each, as it has 3 dates"
    ):
        open_stack("s2", tmp_path)
    (tmp_path / "dates.csv").unlink()
    write(tmp_path / "stack_20200503.tif", np.concatenate([scene()] * 2), names=S2_BANDS * 2)
    (tmp_path / "stack.tif").unlink()
    with pytest.raises(ValueError, match=r"stack_20200503\.tif has the bands 2 of B2, .*; expected 1 of each"):
        open_stack("s2", tmp_path)


def test_pitfall_14_a_stack_by_pixel_is_decoded_once(tmp_path, monkeypatch):
    """Of a file whose pixels have all dates beside each other, as Earth Engine writes them."""
    values = np.concatenate([scene(seed=0), scene(seed=1), np.full((1, 6, 6), 4, np.uint16)])
    names = (*(f"{day}_{band}" for day in ("20200503", "20200613") for band in S2_BANDS), "20200503_SCL")
    path = write(tmp_path / "stack.tif", values, names=names, nodata=0, interleave="pixel")
    stack, opened = open_stack("s2", path), []
    monkeypatch.setattr(
        warping, "open_raster", lambda *args, **kwargs: opened.append(1) or open_raster(*args, **kwargs)
    )
    fields = read_box(stack, "EPSG:32632", BOX)
    np.testing.assert_array_equal(fields.values, values[:20].reshape(2, 10, 6, 6))
    assert len(opened) == 1 and not vars(warping.KEPT)
    write(path, values + 1, names=names, nodata=0, interleave="pixel")
    fields = read_box(stack, "EPSG:32632", BOX)
    np.testing.assert_array_equal(fields.values, values[:20].reshape(2, 10, 6, 6) + 1)


def test_images_are_a_mosaic_without_dates(tmp_path):
    values = np.random.default_rng(0).integers(1, 255, (4, 50, 50)).astype(np.uint8)
    for number in range(2):
        place = Affine(0.2, 0, 500_000 + 10 * number, 0, -0.2, 5_000_000)
        write(tmp_path / f"tile_{number}.tif", values, place, names=("R", "G", "B", "NIR"))
    stack = open_stack("aerial", tmp_path)
    fields = read_box(stack, "EPSG:32632", Box(500_000, 4_999_990, 500_020, 5_000_000))
    np.testing.assert_array_equal(fields.values, np.concatenate([values, values], axis=2))
    assert fields.valid.shape == (1, 50, 100) and fields.valid.all() and fields.days == []


# ---------------------------------------------------------------- pitfall 5: bands


def test_pitfall_5_bands_are_found_by_name(tmp_path):
    """In another order, B8A last as in EuroSAT, with bands that the sensor does not have."""
    names = ("B1", *S2_BANDS[:7], "B9", "B10", "B11", "B12", "B8A")
    values = scene(13)
    write(tmp_path / "s2_20200503.tif", values, names=names)
    fields, _ = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.values[0], values[[names.index(band) for band in S2_BANDS]])


@pytest.mark.parametrize(
    ("sensor", "names"),
    [
        ("s2", ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")),
        ("s2", tuple(f"{band} ({number} nm)" for number, band in enumerate(S2_BANDS))),
        ("s2", tuple(f"Sentinel-2 {band.lower()}" for band in S2_BANDS)),
        ("l7", ("blue", "green", "red", "nir08", "swir16", "swir22")),
    ],
)
def test_bands_are_known_by_other_names(tmp_path, sensor, names):
    order = np.random.default_rng(0).permutation(len(names))
    values = scene(len(names), side=2)
    metres = 10 if sensor == "s2" else 30
    place = Affine(metres, 0, 500_000, 0, -metres, 5_000_000)
    write(tmp_path / "20200503.tif", values[order], place, names=tuple(names[number] for number in order))
    box = Box(500_000, 5_000_000 - 2 * metres, 500_000 + 2 * metres, 5_000_000)
    np.testing.assert_array_equal(read(sensor, tmp_path, box)[0].values[0], values)


def test_pitfall_5_the_order_is_assumed_only_of_as_many_bands_and_noted(tmp_path):
    write(tmp_path / "a" / "20200503.tif", scene())
    fields, stack = read("s2", tmp_path / "a")
    np.testing.assert_array_equal(fields.values[0], scene())
    order = "B2, B3, B4, B5, B6, B7, B8, B8A, B11, B12"
    assert stack.notes[0] == f"s2: the files do not name their bands, which are taken as {order}, in this order"
    write(tmp_path / "b" / "20200503.tif", scene(13))
    with pytest.raises(ValueError, match=r"20200503\.tif has 13 bands without names, of which none .* 's2': B2, B3"):
        open_stack("s2", tmp_path / "b")


def test_pitfall_5_a_band_that_is_missing_on_one_date_is_named(tmp_path):
    write(tmp_path / "s2_20200503.tif", scene(), names=S2_BANDS)
    write(tmp_path / "s2_20200513.tif", scene(9), names=tuple(band for band in S2_BANDS if band != "B8A"))
    with pytest.raises(ValueError, match=r"s2_20200513\.tif, of 2020-05-13, lacks 's2'\'s bands B8A; there are B2, B3"):
        open_stack("s2", tmp_path)


def test_two_files_of_one_band_are_refused(tmp_path):
    for number, band in enumerate(S2_BANDS):
        write(tmp_path / f"20200503_{band}.tif", scene()[number])
    write(tmp_path / "20200503_B02.tif", scene()[0])
    with pytest.raises(ValueError, match=r"B02\.tif, band 1, and .*B2\.tif, band 1 are both 'B2' of 2020-05-03"):
        open_stack("s2", tmp_path)


def test_colours_of_images(tmp_path):
    """Of the file where it has them, infrared for the band that is left; transparency is not a band."""
    values = np.random.default_rng(0).integers(1, 255, (4, 300, 300)).astype(np.uint8)
    box, place = Box(500_000, 4_999_940, 500_060, 5_000_000), Affine(0.2, 0, 500_000, 0, -0.2, 5_000_000)
    write(tmp_path / "a" / "x.tif", values[[2, 1, 0, 3]], place, photometric="rgb", alpha="unspecified")
    with rasterio.open(tmp_path / "a" / "x.tif", "r+") as file:
        file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    fields, stack = read("aerial", tmp_path / "a", box)
    np.testing.assert_array_equal(fields.values, values)
    assert stack.notes == ("aerial: by the files' colours R is band 3, G is band 2, B is band 1, NIR is band 4",)
    # GDAL calls the fourth of four such bands transparency.
    values[3, :10, :10] = 0
    path = write(tmp_path / "b" / "x.tif", values, place)
    with rasterio.open(path) as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    fields, _ = read("aerial", tmp_path / "b", box)
    np.testing.assert_array_equal(fields.values, values)
    assert fields.valid.all()
    values[3] = 255
    values[3, :10, :10] = 0
    write(tmp_path / "c" / "x.tif", values, place)
    with pytest.raises(ValueError, match=r"x\.tif has 3 bands without names, .* 'aerial': R, G, B, NIR"):
        open_stack("aerial", tmp_path / "c")
    write(tmp_path / "d" / "x.tif", values, Affine(1, 0, 500_000, 0, -1, 5_000_000))
    fields, _ = read("spot", tmp_path / "d", Box(500_000, 4_999_700, 500_300, 5_000_000))
    np.testing.assert_array_equal(fields.valid[0], values[3] != 0)


# ---------------------------------------------------------------- pitfall 6 and 16: dates, tables, stray files


def test_pitfall_6_dates_are_days_of_the_calendar(tmp_path):
    names = {
        "HLS.S30.T32TMR.2020124T103031.v2.0": datetime.date(2020, 5, 3),
        "MOD09A1.A2020121.h18v04.061": datetime.date(2020, 4, 30),
        "MOD09A1.061_doy2020129_aid0001": datetime.date(2020, 5, 8),
        "LC81950252013188LGN01": datetime.date(2013, 7, 7),
        "S2A_MSIL2A_20190101T103031_N0214_R108_T32TMR_20200503T130000": datetime.date(2019, 1, 1),
        "x_2020-12-31_12345678": datetime.date(2020, 12, 31),
        "x20200229": datetime.date(2020, 2, 29),
        "2021_03_04": datetime.date(2021, 3, 4),
    }
    for name in names:
        write(tmp_path / f"{name}.tif", scene(), names=S2_BANDS)
    assert [one.day for one in open_stack("s2", tmp_path).acquisitions] == sorted(names.values())


def test_days_of_tags(tmp_path):
    write(tmp_path / "a" / "x.tif", scene(), names=S2_BANDS, tags={"ACQUISITION_DATE": "2020-05-03T10:30:31Z"})
    assert open_stack("s2", tmp_path / "a").acquisitions[0].day == DAY
    write(tmp_path / "b" / "x.tif", scene(), names=S2_BANDS, tags={"TIFFTAG_DATETIME": "2020:05:03 10:30:31"})
    stack = open_stack("s2", tmp_path / "b")
    assert stack.acquisitions[0].day == DAY
    assert "s2: days are those of the tag TIFFTAG_DATETIME, of writing perhaps" in stack.notes


def test_days_that_are_not_known_are_refused(tmp_path):
    write(tmp_path / "a" / "x.tif", scene(), names=S2_BANDS)
    with pytest.raises(ValueError, match=r"x\.tif has no date, in its name, its tags or a table; .*dates\.csv"):
        open_stack("s2", tmp_path / "a")
    write(tmp_path / "b" / "20200501_20200531.tif", scene(), names=S2_BANDS)
    with pytest.raises(ValueError, match=r"names the days 2020-05-01 and 2020-05-31; list in dates.csv the one that"):
        open_stack("s2", tmp_path / "b")


@pytest.mark.parametrize(
    "table",
    [
        b"file,date\nx.tif,2020-05-03\n007.tif,2020-06-02\n",
        b"\xef\xbb\xbffile;date\r\nX.TIF;20200503\r\n007;20200602\r\n",
        "file\tdate\r\nx.tif\t2020-05-03\r\n./007.tif\t2020/6/2\r\n".encode("utf-16"),
    ],
)
def test_pitfall_16_tables_of_spreadsheets(tmp_path, table):
    for name in ("x", "007"):
        write(tmp_path / f"{name}.tif", scene(), names=S2_BANDS)
    (tmp_path / "dates.csv").write_bytes(table)
    assert [one.day for one in open_stack("s2", tmp_path).acquisitions] == [DAY, datetime.date(2020, 6, 2)]


def test_pitfall_16_a_table_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "x.tif", scene(), names=S2_BANDS)
    (tmp_path / "dates.csv").write_text("file,date\nx.tif,spring\n")
    with pytest.raises(ValueError, match=r"dates\.csv, line 2: 'spring' is not a day"):
        open_stack("s2", tmp_path)
    (tmp_path / "dates.csv").write_text("name,day\nx.tif,20200503\n")
    with pytest.raises(ValueError, match=r"dates\.csv has columns \['name', 'day'\] and lacks"):
        open_stack("s2", tmp_path)


def test_pitfall_16_stray_files_are_ignored(tmp_path):
    write(tmp_path / "s2_20200503.tif", scene(), names=S2_BANDS)
    for name in ("._s2_20200503.tif", ".DS_Store", "Thumbs.db", "s2_20200503.tif.aux.xml", "notes.txt", ".cache/a.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"<PAMDataset/>")
    write(tmp_path / "T32TMR_20200503_TCI.tif", scene(3).astype(np.uint8))
    assert len(open_stack("s2", tmp_path).acquisitions) == 1
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"has no \.tif, \.tiff, \.jp2 file; there is notes\.txt"):
        open_stack("s2", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no .*nowhere, the source of 's2'"):
        open_stack("s2", tmp_path / "nowhere")


# ---------------------------------------------------------------- files that cannot be


def test_rasters_without_a_place_are_refused(tmp_path):
    write(tmp_path / "a" / "20200503.tif", scene(), crs=None, names=S2_BANDS)
    with pytest.raises(
        ValueError, match=r"^[^(]*20200503\.tif has no coordinate system; expected .*gdal_edit\.py -a_srs"
    ):
        open_stack("s2", tmp_path / "a")
    write(tmp_path / "b" / "20200503.tif", scene(), Affine.identity(), names=S2_BANDS)
    with pytest.raises(ValueError, match=r"20200503\.tif has a coordinate system and no position"):
        open_stack("s2", tmp_path / "b")
    write(tmp_path / "c" / "20200503.tif", scene().astype(np.complex64), names=S2_BANDS)
    with pytest.raises(ValueError, match=r"20200503\.tif has values of complex64"):
        open_stack("s2", tmp_path / "c")


def test_files_that_are_not_rasters_are_named_and_not_executed(tmp_path):
    (tmp_path / "s2_20200503.tif").write_bytes(b"<VRTDataset/>" * 10)
    with pytest.raises(ValueError, match=r"s2_20200503\.tif cannot be read \(s2_20200503\.tif begins with"):
        open_stack("s2", tmp_path)
    whole = write(tmp_path / "s2_20200503.tif", scene(), names=S2_BANDS).read_bytes()
    (tmp_path / "s2_20200503.tif").write_bytes(whole[:6])
    with pytest.raises(ValueError, match=r"s2_20200503\.tif cannot be read"):
        open_stack("s2", tmp_path)


# ---------------------------------------------------------------- real files


def test_a_real_chip_of_sentinels_in_degrees(real_data, tmp_path):
    stacks = {}
    for sensor, day in (("S2", "20190918"), ("S1", "20190917")):
        path = tmp_path / sensor / f"Spain_{day}.tif"
        path.parent.mkdir()
        shutil.copy(real_data / "sen1floods11" / "sample" / sensor / f"Spain_7370579_{sensor}Hand.tif", path)
        stacks[sensor.lower()] = open_stack(sensor.lower(), path.parent)
    grid, notes = choose_grid(stacks, 10)
    assert grid.crs == "EPSG:32630" and len(notes) == 1 and stacks["s1"].units == "dB"
    fields = read_box(stacks["s2"], grid.crs, grid.bounds)
    with rasterio.open(path.parents[1] / "S2" / "Spain_20190918.tif") as file:
        means = file.read([file.descriptions.index(band) + 1 for band in S2_BANDS], masked=True).mean(axis=(1, 2))
    valid = fields.valid[0, 0]
    np.testing.assert_allclose(fields.values[0][:, valid].mean(axis=1), means, rtol=2e-3)
    radar = read_box(stacks["s1"], grid.crs, grid.bounds)
    np.testing.assert_allclose(radar.values[0, 2], radar.values[0, 0] - radar.values[0, 1], atol=1e-4)


def test_real_landsat_scenes(real_data):
    folder = real_data / "r_satellite" / "inst" / "extdata"
    stacks = {sensor: open_stack(sensor, folder, DIGITAL.name) for sensor in ("l7", "l8")}
    assert [stack.acquisitions[0].day.isoformat() for stack in stacks.values()] == ["2001-07-30", "2013-07-07"]
    grid, notes = choose_grid(stacks, 30)
    assert grid.bounds == Box(483_285, 5_627_295, 484_515, 5_628_525) and not notes
    fields = read_box(stacks["l7"], grid.crs, grid.bounds)
    for number, band in enumerate(("B1", "B2", "B3", "B4", "B5", "B7")):
        with rasterio.open(folder / f"LE07_L1TP_195025_20010730_20170204_01_T1_{band}.TIF") as file:
            np.testing.assert_array_equal(fields.values[0, number], file.read(1))
    fields = read_box(stacks["l8"], grid.crs, grid.bounds)
    assert fields.values.shape == (1, 11, 123, 123) and 0.9 < fields.valid.mean() < 1


def test_a_real_aerial_image(real_data):
    folder = real_data / "treesatai_ts" / "aerial"
    stack = open_stack("aerial", folder)
    grid, _ = choose_grid({"aerial": stack}, 0.2)
    fields = read_box(stack, grid.crs, grid.bounds)
    with rasterio.open(folder / "Abies_alba_1_1005_WEFL_NLF.tif") as file:
        np.testing.assert_array_equal(fields.values, file.read())
    assert fields.valid.all() and "R is band 1" in stack.notes[0]

"""Folders of GeoTIFFs as users have them: bands by name, dates, declared values, masks, and what cannot be known."""

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
from tests.scenes.rasters import S2_BANDS, UTM32, write

BOX = Box(500_000, 4_999_940, 500_060, 5_000_000)
DAY = datetime.date(2020, 5, 3)
OLD = "S2A_MSIL2A_20200503T103031_N0214_R108_T32TMR_20200503T130000"
NEW = "S2B_MSIL2A_20220503T103031_N0400_R108_T32TMR_20220503T130000"


def scene(bands=10, level=2000, seed=0, side=6):
    """Returns whole numbers (bands, side, side) around a level, another one in each band."""
    rng = np.random.default_rng(seed)
    return (level + 100 * np.arange(bands)[:, None, None] + rng.integers(0, 50, (bands, side, side))).astype(np.uint16)


def read(sensor, source, box=BOX):
    """Returns the fields of a source in the box, and its stack."""
    stack = open_stack(sensor, source)
    return read_box(stack, "EPSG:32632", box), stack


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


# ---------------------------------------------------------------- pitfall 1 and 2: the offset of baseline 04.00


def test_pitfall_1_baselines_in_one_series_are_brought_together(tmp_path):
    ground = scene()
    write(tmp_path / f"{OLD}.tif", ground, names=S2_BANDS, nodata=0)
    shifted = ground + 1000
    shifted[:, 0, 0] = 0
    write(tmp_path / f"{NEW}.tif", shifted, names=S2_BANDS)
    fields, stack = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.values[0], ground)
    assert not fields.valid[1, 0, 0, 0] and fields.valid[1].sum() == 35
    np.testing.assert_array_equal(fields.values[1][:, 1:], ground[:, 1:])
    assert "s2: 1 products of baseline 04.00 or later: 1000 is subtracted from their values" in stack.notes


def test_pitfall_2_an_offset_that_was_undone_is_not_undone_again(tmp_path):
    """By values below it in any band, or by the file's own offset; old scenes of collection 1 have it."""
    ground = scene(level=300)
    write(tmp_path / "a" / f"{NEW}.tif", ground, names=S2_BANDS, nodata=0)
    fields, stack = read("s2", tmp_path / "a")
    np.testing.assert_array_equal(fields.values[0], ground)
    assert any("values below 1000: nothing is subtracted" in note for note in stack.notes)
    write(
        tmp_path / "b" / f"{NEW}.tif",
        ground + 1000,
        names=S2_BANDS,
        nodata=0,
        scales=(1e-4,) * 10,
        offsets=(-0.1,) * 10,
    )
    np.testing.assert_array_equal(read("s2", tmp_path / "b")[0].values[0], ground)
    reprocessed = OLD.replace("N0214", "N0500")
    write(tmp_path / "c" / f"{reprocessed}.tif", ground + 1000, names=S2_BANDS, nodata=0)
    np.testing.assert_array_equal(read("s2", tmp_path / "c")[0].values[0], ground)


def test_dates_without_a_baseline_are_noted(tmp_path):
    write(tmp_path / "s2_20230503.tif", scene(), names=S2_BANDS, nodata=0)
    assert open_stack("s2", tmp_path).notes == (
        "s2: 1 dates since 2022-01-25 without a product's name: no offset of 1000 is subtracted",
    )


# ---------------------------------------------------------------- pitfall 3: levels and units


def test_pitfall_3_levels_are_not_mixed(tmp_path):
    write(tmp_path / f"{OLD}.tif", scene(), names=S2_BANDS)
    write(tmp_path / f"{OLD.replace('L2A', 'L1C').replace('20200503T1', '20200513T1')}.tif", scene(), names=S2_BANDS)
    with pytest.raises(ValueError, match=r"'s2' has products of level L2A \(S2A_MSIL2A.*\) and of L1C \(S2A_MSIL1C"):
        open_stack("s2", tmp_path)


def test_pitfall_3_radar_is_in_decibels_or_linear(tmp_path):
    decibels = np.random.default_rng(0).uniform(-25, -5, (2, 6, 6)).astype(np.float32)
    write(tmp_path / "a" / "s1_20200503.tif", decibels, names=("VV", "VH"))
    write(tmp_path / "b" / "s1_20200503.tif", 10 ** (decibels / 10), names=("VV", "VH"))
    write(tmp_path / "c" / "s1_20200503.tif", (100 * 10 ** (decibels / 10)).astype(np.uint16) + 50, names=("VV", "VH"))
    assert [open_stack("s1", tmp_path / name).units for name in "ab"] == ["dB", "linear power"]
    for name in "ab":
        fields = read_box(open_stack("s1", tmp_path / name), "EPSG:32632", BOX, units="dB")
        np.testing.assert_allclose(fields.values[0], [*decibels, decibels[0] - decibels[1]], rtol=1e-4, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"s1_20200503\.tif, band 1: backscatter runs from .* expected dB or linear power"
    ):
        open_stack("s1", tmp_path / "c")
    shutil.copy(tmp_path / "b" / "s1_20200503.tif", tmp_path / "a" / "s1_20200603.tif")
    with pytest.raises(ValueError, match=r"20200503\.tif, band 1 is in dB, .*20200603\.tif, band 1 in linear power"):
        open_stack("s1", tmp_path / "a")


def test_products_of_other_sensors_are_left_out(tmp_path):
    write(tmp_path / f"{OLD}.tif", scene(), names=S2_BANDS)
    write(tmp_path / "LC08_L2SP_195025_20200507_20200820_02_T1.tif", scene(), names=S2_BANDS)
    stack = open_stack("s2", tmp_path)
    assert len(stack.acquisitions) == 1 and "s2: 1 files of products of other sensors are left out" in stack.notes
    with pytest.raises(FileNotFoundError, match=r"no file has bands of 'l7': B1, B2"):
        open_stack("l7", tmp_path)


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


# ---------------------------------------------------------------- pitfall 7: missing values, scales


def test_pitfall_7_zeros_without_a_declaration_are_missing(tmp_path):
    values = scene()
    values[:, 0, :], values[3, 2, 2] = 0, 0
    write(tmp_path / "s2_20200503.tif", values, names=S2_BANDS)
    fields, stack = read("s2", tmp_path)
    expected = np.ones((6, 6), bool)
    expected[0] = False
    np.testing.assert_array_equal(fields.valid[0, 0], expected)
    assert stack.notes == ("s2: pixels that are 0 in all bands count as missing, as files declare no nodata",)


def test_pitfall_7_jpeg_2000_cannot_declare_nodata(tmp_path):
    values = np.full((10, 64, 64), 3000, np.uint16)
    values[:, :, 40:] = 0
    facts = dict(driver="JP2OpenJPEG", count=1, height=64, width=64, dtype="uint16", QUALITY=100, REVERSIBLE="YES")
    for band, one in zip(S2_BANDS, values):
        path = tmp_path / f"T32TMR_20200503T103031_{band}_10m.jp2"
        with rasterio.open(path, "w", crs="EPSG:32632", transform=UTM32, **facts) as file:
            file.write(one, 1)
    fields, stack = read("s2", tmp_path, Box(500_000, 4_999_360, 500_640, 5_000_000))
    np.testing.assert_array_equal(fields.values[0], values)
    np.testing.assert_array_equal(fields.valid[0, 0], values[0] > 0)
    assert stack.notes == ("s2: pixels that are 0 in all bands count as missing, as files declare no nodata",)


def test_pitfall_7_borders_of_radar_are_missing(tmp_path):
    values = np.random.default_rng(0).uniform(0.01, 0.2, (2, 6, 6)).astype(np.float32)
    values[:, :, 4:], values[1, 0, 0] = 0, 0
    write(tmp_path / "s1_20200503.tif", values, names=("VV", "VH"))
    fields = read_box(open_stack("s1", tmp_path), "EPSG:32632", BOX, units="dB")
    assert fields.valid[0, 0, :, :4].all() and not fields.valid[0, 0, :, 4:].any()
    assert np.isfinite(fields.values).all()


@pytest.mark.parametrize("way", ["nodata", "nan", "mask", "beside", "alpha"])
def test_pitfall_7_missing_pixels_in_all_ways(tmp_path, way):
    values = scene().astype(np.float32)
    hidden = np.zeros((6, 6), bool)
    hidden[2:4, 1:5] = True
    path, facts = tmp_path / "s2_20200503.tif", {"names": S2_BANDS}
    if way == "nan":
        values[4, hidden] = np.nan
        write(path, values, **facts)
    elif way == "nodata":
        values[:, hidden] = -9999
        write(path, values, **facts, nodata=-9999)
    elif way == "alpha":
        alpha = np.where(hidden, 0, 255)[None].astype(np.float32)
        write(path, np.concatenate([values, alpha]), names=(*S2_BANDS, "x"))
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [*file.colorinterp[:10], ColorInterp.alpha]
    else:
        write(path, values, **facts)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=way == "mask"), rasterio.open(path, "r+") as file:
            file.write_mask(~hidden)
    fields, stack = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.valid[0, 0], ~hidden)
    np.testing.assert_array_equal(fields.values[0][:, ~hidden], scene()[:, ~hidden])
    assert bool(stack.notes) == (way == "nan")


def test_pitfall_7_scales_and_offsets_are_applied(tmp_path):
    """Reflectance becomes reflectance x 10000, whatever its steps, as of Landsat's collection 2."""
    write(tmp_path / "s2" / "20200503.tif", scene(), names=S2_BANDS, nodata=0, scales=(1e-4,) * 10)
    np.testing.assert_array_equal(read("s2", tmp_path / "s2")[0].values[0], scene())
    names, side = ("B1", "B2", "B3", "B4", "B5", "B7"), 2
    values = scene(6, level=9000, side=side)
    place = Affine(30, 0, 500_000, 0, -30, 5_000_000)
    write(tmp_path / "l7" / "20200503.tif", values, place, names=names, scales=(2.75e-5,) * 6, offsets=(-0.2,) * 6)
    fields, _ = read("l7", tmp_path / "l7")
    np.testing.assert_allclose(fields.values[0], (values * 2.75e-5 - 0.2) * 10_000, rtol=1e-5)
    write(tmp_path / "s2" / "20200603.tif", scene(), names=S2_BANDS, nodata=0)
    with pytest.raises(ValueError, match=r"20200503\.tif declares a scale of its values, .*20200603\.tif does not"):
        open_stack("s2", tmp_path / "s2")


# ---------------------------------------------------------------- pitfall 8: several products of a day


def test_pitfall_8_reprocessed_twins_are_left_out(tmp_path):
    later = OLD.replace("N0214", "N0500").replace("T130000", "T990000")
    write(tmp_path / f"{OLD}.tif", scene(seed=1), names=S2_BANDS, nodata=0)
    write(tmp_path / f"{later}.tif", scene(seed=2) + 1000, names=S2_BANDS, nodata=0)
    fields, stack = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.values, scene(seed=2)[None])
    assert f"s2: {OLD} is left out, as a later processing is there" in stack.notes


def test_pitfall_8_tiles_of_one_day_become_one_date(tmp_path):
    for tile, column in (("T32TMR", 0), ("T32TNR", 4)):
        values = scene(seed=column)
        write(
            tmp_path / f"{OLD.replace('T32TMR', tile)}.tif",
            values,
            UTM32 @ Affine.translation(column, 0),
            names=S2_BANDS,
        )
    fields, stack = read("s2", tmp_path, Box(500_000, 4_999_940, 500_100, 5_000_000))
    assert fields.days == [DAY] and fields.valid.all()
    np.testing.assert_array_equal(fields.values[0, :, :, :6], scene(seed=0))
    np.testing.assert_array_equal(fields.values[0, :, :, 6:], scene(seed=4)[:, :, 2:])
    assert "s2: acquisitions of one day become one date: 2 of 2020-05-03" in stack.notes


# ---------------------------------------------------------------- masks


def test_a_scene_classification_beside_the_bands(tmp_path):
    classes = np.arange(12, dtype=np.uint8).reshape(3, 4).repeat(2, 0)[:, :3].repeat(2, 1)
    classes[:, 4:] = 8
    write(tmp_path / "s2_20200503.tif", scene(), names=S2_BANDS, nodata=0)
    # Sen2Cor's nodata is 0; a tag of it hides no class.
    write(tmp_path / "s2_20200503_SCL.tif", classes, nodata=0)
    fields, stack = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.valid[0, 0], np.isin(classes, (2, 4, 5, 6, 7, 11)))
    assert stack.notes == ("s2: SCL: clouds, cirrus, cloud shadows, saturated and missing pixels are left out",)


def test_a_classification_as_a_band_of_the_file(tmp_path):
    classes = np.full((1, 6, 6), 4, np.uint16)
    classes[0, :2] = 9
    write(tmp_path / "s2_20200503.tif", np.concatenate([scene(), classes]), names=(*S2_BANDS, "SCL"), nodata=0)
    fields, _ = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.valid[0, 0], classes[0] == 4)


@pytest.mark.parametrize("name", ["s2_20200503_cloudmask", "clouds/s2_20200503", "QA60_20200503"])
def test_any_mask_is_0_where_clear_and_noted(tmp_path, name):
    mask = np.zeros((6, 6), np.uint16)
    mask[4], mask[5] = 1, 1024
    write(tmp_path / "s2_20200503.tif", scene(), names=S2_BANDS, nodata=0)
    write(tmp_path / f"{name}.tif", mask)
    fields, stack = read("s2", tmp_path)
    np.testing.assert_array_equal(fields.valid[0, 0], mask == 0)
    write(tmp_path / "s2_20200613.tif", scene(), names=S2_BANDS, nodata=0)
    bare = "s2: 1 acquisitions have no mask, such as s2_20200613: all their pixels count"
    assert bare in open_stack("s2", tmp_path).notes and bare not in stack.notes
    assert any("0 is taken as clear, all other values as hidden" in note for note in stack.notes)


def test_each_of_two_tiles_has_its_own_mask(tmp_path):
    for tile, column in (("A", 0), ("B", 6)):
        place = UTM32 @ Affine.translation(column, 0)
        write(tmp_path / f"{tile}_20200503.tif", scene(), place, names=S2_BANDS, nodata=0)
        classes = np.full((6, 6), 4, np.uint8)
        classes[column // 6] = 9
        write(tmp_path / f"SCL_{tile}{tile}_20200503.tif", classes, place)
    fields, _ = read("s2", tmp_path, Box(500_000, 4_999_940, 500_120, 5_000_000))
    assert not fields.valid[0, 0, 0, :6].any() and not fields.valid[0, 0, 1, 6:].any() and fields.valid.sum() == 60


def test_quality_bits_of_landsat(tmp_path):
    names, product = ("B1", "B2", "B3", "B4", "B5", "B7"), "LE07_L2SP_195025_20200503_20200820_02_T1"
    values, place = scene(6, level=9000, side=3), Affine(30, 0, 500_000, 0, -30, 5_000_000)
    for band, one in zip(names, values):
        write(tmp_path / f"{product}_SR_{band}.TIF", one, place, nodata=0)
    write(tmp_path / f"{product}_ST_B6.TIF", values[0], place)
    write(tmp_path / f"{product}_QA_RADSAT.TIF", values[0], place)
    # As USGS gives them: clear, water, fill, dilated cloud, cirrus, cloud, cloud shadow, snow, clear.
    bits = np.asarray([21824, 21952, 1, 21826, 54532, 22280, 23888, 30048, 21824], np.uint16).reshape(3, 3)
    write(tmp_path / f"{product}_QA_PIXEL.TIF", bits, place)
    fields, stack = read("l7", tmp_path, Box(500_000, 4_999_910, 500_090, 5_000_000))
    np.testing.assert_array_equal(fields.valid[0, 0].ravel(), [1, 1, 0, 0, 0, 0, 0, 1, 1])
    assert [one.name for one in stack.acquisitions] == [product]
    # Pitfall 7: the scale that USGS publishes and the files do not declare.
    expected = np.where(fields.valid[0], (values * 2.75e-5 - 0.2) * 10_000, 0)
    np.testing.assert_allclose(fields.values[0], expected, rtol=1e-4, atol=0.01)
    assert "l7: 1 products of level 2 become reflectance x 10000" in stack.notes


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

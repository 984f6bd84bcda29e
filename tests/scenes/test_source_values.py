"""Folders of GeoTIFFs as users have them: offsets, levels, units, missing values, scales, twins and masks."""

import shutil

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import read_box
from anysat_jax.scenes.sources import open_stack
from tests.scenes.rasters import BOX, DAY, NEW, OLD, S2_BANDS, UTM32, read, scene, write

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

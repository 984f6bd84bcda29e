"""Landsat's digital numbers of level 1: reflectance and kelvins by the metadata beside them."""

import numpy as np
import pytest
from rasterio.transform import Affine

from anysat_jax.normalise import choose_statistics
from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import read_box
from anysat_jax.scenes.run import _units
from anysat_jax.scenes.sources import open_stack
from data_pipelines.units import DIGITAL
from tests.scenes.rasters import write

PRODUCT = "LE07_L1TP_195025_20010730_20170204_01_T1"
BANDS = ("B1", "B2", "B3", "B4", "B5", "B7")
PLACE, BOX = Affine(30, 0, 500_000, 0, -30, 5_000_000), Box(500_000, 4_999_910, 500_090, 5_000_000)
FACTS = {"SUN_ELEVATION": 30} | {
    f"REFLECTANCE_{key}_BAND_{band[1:]}": value for band in BANDS for key, value in (("MULT", 2e-3), ("ADD", -0.02))
}


def write_product(folder, facts):
    """Writes digital numbers 20 to 28 in all bands, but for a gap in B4; and metadata, unless None."""
    values = np.arange(20, 29, dtype=np.uint8).reshape(3, 3)
    for band in BANDS:
        write(folder / f"{PRODUCT}_{band}.TIF", np.where((values == 22) & (band == "B4"), 0, values), PLACE)
    if facts is not None:
        lines = [f"    {key} = {value}" for key, value in facts.items()]
        (folder / f"{PRODUCT}_MTL.txt").write_text("\n".join(["GROUP = L1_METADATA_FILE", *lines, "END", ""]))
    return values


def test_real_numbers_are_those_of_the_handbook(real_data):
    """Computed by hand for the pixel in row 20 and column 20, of the numbers in the files of metadata."""
    folder = real_data / "r_satellite" / "inst" / "extdata"
    box = Box(483_285, 5_627_295, 484_515, 5_628_525)
    stack = open_stack("l7", folder)
    here = slice(60, 63), slice(60, 63)  # pixels of 10 m in one of 30 m
    found = read_box(stack, "EPSG:32632", box)
    # DN 69: (2.9302e-3 x 69 - 0.018348) / sin 53.87765310 degrees
    assert found.values.shape[-1] == 41 and found.values[0, 3, 20, 20] == pytest.approx(2275.9, abs=0.1)
    assert "l7: 1 products of level 1 become top-of-atmosphere reflectance x 10000, by _MTL.txt" in stack.notes
    stack = open_stack("l8", folder)
    values = read_box(stack, "EPSG:32632", box).values[0][:, *here][:, 1, 1]
    # DN 18686: (2e-5 x 18686 - 0.1) / sin 58.9967518 degrees; 1321.0789 / ln(774.8853 / (3.342e-4 x 28581 + 0.1) + 1)
    assert values[5] == pytest.approx(3193.4, abs=0.1) and values[9] == pytest.approx(300.38, abs=0.05)
    assert any("thermal bands kelvins" in note for note in stack.notes)


def test_a_gap_in_a_band_is_invalid(tmp_path):
    values = write_product(tmp_path, FACTS)
    fields = read_box(open_stack("l7", tmp_path), "EPSG:32632", BOX)
    np.testing.assert_array_equal(fields.valid[0, 0], values != 22)
    expected = np.where(values == 22, 0, (values * 2e-3 - 0.02) / 0.5 * 10_000)
    np.testing.assert_allclose(fields.values[0], np.broadcast_to(expected, (6, 3, 3)), rtol=1e-5)


def test_without_metadata_numbers_stay(tmp_path):
    values = write_product(tmp_path, None)
    stack = open_stack("l7", tmp_path)
    fields = read_box(stack, "EPSG:32632", BOX)
    np.testing.assert_array_equal(fields.values[0, 0], values)
    assert any("of level 1 without _MTL.txt stay digital numbers" in note for note in stack.notes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("REFLECTANCE_ADD_BAND_4", None, "REFLECTANCE_ADD_BAND_4 is missing"),
        ("REFLECTANCE_MULT_BAND_7", "nan", "REFLECTANCE_MULT_BAND_7 is nan"),
        ("SUN_ELEVATION", -3.5, r"SUN_ELEVATION is -3\.5; expected a number above 0, at most 90"),
        ("SUN_ELEVATION", "high", "SUN_ELEVATION is high"),
    ],
)
def test_damaged_metadata_are_named(tmp_path, key, value, message):
    facts = {one: number for one, number in (FACTS | {key: value}).items() if number is not None}
    write_product(tmp_path, facts)
    with pytest.raises(ValueError, match=rf"{PRODUCT}_MTL\.txt: {message}.*USGS"):
        open_stack("l7", tmp_path)


def test_statistics_of_digital_numbers_leave_these(real_data):
    """Those of S2NAIP, whose images of Landsat 8 are of level 1 as USGS ships them."""
    reflective, cirrus, thermal = [13_000.0] * 8, 5_050.0, [28_000.0] * 2
    own = {"l8": {"mean": [*reflective, cirrus, *thermal], "std": [1000.0] * 11}}
    units = _units({"l8": choose_statistics("auto", own, "l8")})
    assert units == {"l8": DIGITAL.name}
    stack = open_stack("l8", real_data / "r_satellite" / "inst" / "extdata", units["l8"])
    assert all(band.scale == 1 for band in stack.acquisitions[0].bands)
    assert any("stay digital numbers, as the statistics are of these" in note for note in stack.notes)

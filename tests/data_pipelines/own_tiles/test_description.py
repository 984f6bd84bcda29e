"""Descriptions: cards made of them, and the messages for those that are refused."""

import numpy as np
import pytest

from anysat_jax.sensors import SENSORS, Sensor
from data_pipelines.own_tiles.description import read_description
from data_pipelines.own_tiles.reader import class_dtype, folder_card, palette
from tests.data_pipelines.own_tiles.folders import DESCRIPTION, describe

SCANNER = """
[sensors.own_scanner]
files = "scanner/{tile}.npy"
bands = ["R", "G", "B", "red edge"]
kind = "image"
metres_per_pixel = 0.5
subpatch_pixels = 20
"""
MASK = """
[mask]
files = "mask/{tile}.tif"
classes = ["water", "land"]
"""


@pytest.fixture(autouse=True)
def _own_sensors_go(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))


def card_of(tmp_path, text):
    return folder_card(read_description(describe(tmp_path, text)))


def test_the_card(tmp_path):
    card = card_of(tmp_path, DESCRIPTION)
    assert (card.name, card.sensors, card.extent, card.patch_sizes) == ("own_tiles", ("s2",), 40.0, (10, 20))
    assert card.dtype("s2") == np.uint16 and card.masks == {"s2": "pixel"} and card.natural_colour == {"s2": (2, 1, 0)}
    assert card.tile_label == "class" and card.tile_classes == ("forest", "field") and card.dense_label == "none"
    assert card.georeferenced == "s2" and card.file_bands["s2"][0] == "B1"


def test_a_sensor_of_ones_own(tmp_path):
    card = card_of(tmp_path, DESCRIPTION + SCANNER)
    assert card.natural_colour["own_scanner"] == (0, 1, 2) and card.side("own_scanner") == 80
    import anysat_jax.sensors as sensors

    bands = ("R", "G", "B", "red edge")
    assert sensors.SENSORS["own_scanner"] == Sensor("own_scanner", "image", bands, 0.5, subpatch_pixels=20)


def test_a_mask_gets_colours_and_the_smallest_dtype(tmp_path):
    card = card_of(tmp_path, DESCRIPTION + MASK)
    assert card.dense_label == "segmentation" and len(set(card.dense_colours)) == 2
    assert card.dtype("dense") == np.int8 and card.ignore_label == -1
    other = card_of(tmp_path, DESCRIPTION + MASK + "values = [1, 2]\nignore = 0\n")
    assert other.dtype("dense") == np.int8 and other.ignore_label == -1  # 0 is the first class once they are counted


def test_numbers_to_predict(tmp_path):
    card = card_of(tmp_path, DESCRIPTION + '[mask]\nfiles = "mask/{tile}.tif"\nunit = "t/ha"\n')
    assert (card.dense_label, card.label_unit, card.dtype("dense")) == ("regression", "t/ha", np.float32)


@pytest.mark.parametrize(("classes", "dtype"), [(2, "int8"), (128, "int8"), (129, "int16"), (40_000, "int32")])
def test_dtypes_of_class_maps(classes, dtype):
    assert class_dtype(classes) == dtype


def test_the_palette_tells_classes_apart():
    assert len(set(palette(20))) == 20 and all(len(colour) == 7 for colour in palette(20))


CANNOT_BE = {
    "no toml": ("name = ", "", "is not a TOML file"),
    "field": ('name = "own_tiles"', "", "has no name"),
    "unknown": ("extent = 40", "extend = 40\nextent = 40", "has extend, which is not known; known are .*extent.*mask"),
    "name": ('"own_tiles"', '"Own tiles"', "name is 'Own tiles'; expected small letters"),
    "kind": ("extent = 40", 'extent = "40 m"', "extent is '40 m'; expected `float`, got `str`"),
    "metres": ("[10, 20]", "[10.5]", r"patch_sizes\[0\] is 10\.5; expected `int`, got `float`"),
    "endless": ("extent = 40", "extent = inf", "extent is inf; expected `float` < 1"),
    "huge": ("extent = 40", f"extent = 1{'0' * 400}", "extent is 1000.*; number out of range"),
    "huge patch": ("[10, 20]", f"[1{'0' * 400}]", r"patch_sizes\[0\] is 1000.*; expected `int` <= 2147483648"),
    "nothing": ("dtype", f"nodata = 1{'0' * 400}\ndtype", "nodata is 1000.*; number out of range"),
    "half a pixel": ("dtype", "pixels = 4.5\ndtype", r"s2\.pixels is 4\.5; expected `int`, got `float`"),
    "seed": ('column = "split"', "seed = nan", r"splits\.seed is nan; expected `int`, got `float`"),
    "share": ('column = "split"', "val = -0.1", r"splits\.val is -0\.1; expected `float` >= 0"),
    "same class": ('"forest", "field"', '"forest", "forest"', "labels.classes names a class twice: forest, forest"),
    "semicolon": (
        'classes = ["forest", "field"]',
        'kind = "multi_label"\nclasses = ["forest;field"]',
        "labels.classes has 'forest;field'; ';' separates the classes of a cell",
    ),
    "other pixels": ("dtype", "metres_per_pixel = 20\ndtype", "'s2' is a known sensor of 10 m per pixel; leave out"),
    "brace": ("_{date}", "_{date", "where a brace is not closed"),
    "cut": ("[10, 20]", "[30]", "a tile of 40 m is not a whole number of patches of 30 m"),
    "subpatch": ("[10, 20]", "[5]", "a patch of 5 m is not a whole number of 's2' sub-patches of 10 m"),
    "version": ("extent = 40", 'extent = 40\nversion = "2"', "version is '2'; expected three numbers like 1.0.0"),
    "no sensor": ("[sensors.s2]", "[sensors.lidar_x]", "'lidar_x' is none of the known sensors .*subpatch_pixels"),
    "bands": ('"B11", ', "", r"sensors\.s2\.bands is .* and lacks B11; sensor 's2' has the bands B2, B3"),
    "twice": ('"B1", ', '"B2", ', r"sensors\.s2\.bands names a band twice"),
    "dtype": ('"uint16"', '"float16"', "dtype is 'float16'; expected one of uint8, int8"),
    "no dates": (
        "_{date}",
        "",
        "'s2' is a series with no dates; expected one of: .date. in the file names, or",
    ),
    "two dates": ("dtype", 'dates = "d.csv"\ndtype', "dates is 'd.csv': 's2' is a series with two sources of dates"),
    "array": ("dtype", 'array = "x"\ndtype', r"sensors\.s2\.array is 'x', which only npz files have"),
    "shown": ("dtype", 'natural_colour = ["B4", "B3", "B99"]\ndtype', r"natural_colour has B99"),
    "no table": (
        'table = "tiles.csv"',
        "",
        'table is missing, but labels or splits name a column of it: table = "tiles.csv"',
    ),
    "label kind": (
        "[splits]",
        'kind = "ordinal"\n[splits]',
        "kind is 'ordinal' with 2 classes; expected class or",
    ),
    "label unit": ("[splits]", 'unit = "t"\n[splits]', "unit is 't'; numbers have one .* classes have none"),
    "shares": (
        'column = "split"',
        "val = 0.7\ntest = 0.3",
        "val is 0.7 and test 0.3; expected fractions that sum to less than 1",
    ),
    "table": (
        '[splits]\ncolumn = "split"',
        "splits = 3",
        "labels has splits, which is not known; known are",
    ),
}


@pytest.mark.parametrize("case", CANNOT_BE)
def test_descriptions_that_cannot_be(tmp_path, case):
    old, new, message = CANNOT_BE[case]
    text = DESCRIPTION.replace(old, new, 1) if case != "no toml" else old
    assert text != DESCRIPTION
    with pytest.raises(ValueError, match=f"(?s)own\\.toml.*{message}"):
        card_of(tmp_path, text)


WRONG_MASKS = {
    "date": ('"mask/{tile}.tif"', '"mask/{tile}_{date}.tif"', r"a mask has no \{date\}"),
    "values": ("classes", "values = [1]\nclasses", r"mask\.values has \(1,\) for 2 classes"),
    "ignore": ("classes", "ignore = 1\nclasses", r"mask\.ignore is 1, the number of a class"),
    "colours": ("classes", 'colours = ["#000000"]\nclasses', "1 colours for 2 classes"),
    "colour": ("classes", 'colours = ["#000000", "blue"]\nclasses', r"mask\.colours has 'blue'; expected colours like"),
    "unit": ("classes", 'unit = "t"\nclasses', "numbers have one"),
    "class": ('"land"', '"water"', r"mask\.classes names a class twice: water, water"),
    "half": ("classes", "values = [0, 1.5]\nclasses", r"values\[1\] is 1\.5; expected `int`, got `float`"),
    "huge": ("classes", "ignore = 1e30\nclasses", r"ignore is 1e\+30; expected a whole number"),
    "pixels": ("classes", "metres_per_pixel = 3\nclasses", "extent of 40 m is not a whole number of such pixels"),
    "blank": ('"water"', '" "', r"classes\[0\] is ' '; expected `str`, not blank and without control characters$"),
    "files": ('"mask/{tile}.tif"', "3", r"mask\.files is 3; expected a text"),
    "field": ("classes", "clases = 3\nclasses", r"mask has clases, which is not known; known are .*classes"),
    "no pixels": ("classes", "metres_per_pixel = 0\nclasses", "metres_per_pixel is 0; expected `float` > 0"),
}


@pytest.mark.parametrize("case", WRONG_MASKS)
def test_masks_that_cannot_be(tmp_path, case):
    old, new, message = WRONG_MASKS[case]
    with pytest.raises(ValueError, match=f"own\\.toml.*{message}"):
        card_of(tmp_path, DESCRIPTION + MASK.replace(old, new, 1))


def test_a_ratio_needs_to_know_what_it_is_of(tmp_path):
    radar = '[sensors.s1]\nfiles = "s1/{tile}_{date}.tif"\nbands = ["VV", "VH"]\n'
    with pytest.raises(
        ValueError, match='units is .*band VV/VH is computed from the others, so expected their units: units = "dB"'
    ):
        card_of(tmp_path, DESCRIPTION + radar)
    assert card_of(tmp_path, DESCRIPTION + radar + 'units = "dB"\n').units == {"s1": "dB"}


def test_another_sensor_of_a_known_name(tmp_path):
    with pytest.raises(ValueError, match=r"own\.toml: sensor 'spot' is already registered as"):
        card_of(tmp_path, DESCRIPTION + SCANNER.replace("own_scanner", "spot"))


@pytest.mark.parametrize("name", ["tile", "dense", "crs", "s2_years", "own_cloud", "s2_dates", '"a/b"', '"2x"'])
def test_names_that_a_sensor_cannot_have(tmp_path, name):
    with pytest.raises(ValueError, match=r"own\.toml: sensors\..*: a sensor cannot be called"):
        card_of(tmp_path, DESCRIPTION + SCANNER.replace("own_scanner", name))


def test_a_sensor_that_cannot_be_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"own\.toml: sensors\.own_scanner: .*kind is 'picture'; it must be 'image'"):
        card_of(tmp_path, DESCRIPTION + SCANNER.replace('"image"', '"picture"'))


WRONG_TYPES = {
    "bands": (
        '"R"',
        "3",
        "1.5",
        "true",
        "[]",
        "[3]",
        "[1.5]",
        "[true]",
        '[["R"]]',
        '[""]',
        r'["R\u001b[31m"]',
        "{ R = 1 }",
    ),
    "subpatch_pixels": ('"10"', "0", "-2", "1.5", "nan", "true", "[10]", "1e300", "9999999999"),
    "metres_per_pixel": ('"1"', "0", "-1.0", "inf", "nan", "false", "[1.0]", "1e300"),
    "kind": ("3", "1.0", "true", '["image"]', '""', r'"image\u009b31m"'),
    "nodata": ('"0"', "true", "[0]", '""'),
    "optional": ('"true"', "1", "[]"),
    "pixels": ('"4"', "4.5", "0", "true"),
}


@pytest.mark.parametrize("field", WRONG_TYPES)
def test_values_of_a_wrong_type_are_refused_in_one_line(tmp_path, field):
    lines = [line for line in SCANNER.splitlines() if not line.startswith(f"{field} ")]
    for value in WRONG_TYPES[field]:
        with pytest.raises(ValueError, match=rf"own\.toml: sensors\.own_scanner\.{field}(\[0\])? is .*; ") as caught:
            card_of(tmp_path, "\n".join([DESCRIPTION, *lines, f"{field} = {value}", ""]))
        assert str(caught.value).isprintable()


def test_a_description_may_begin_with_a_byte_order_mark(tmp_path):
    describe(tmp_path, DESCRIPTION).write_bytes(b"\xef\xbb\xbf" + DESCRIPTION.replace("\n", "\r\n").encode())
    assert read_description(tmp_path / "own.toml").name == "own_tiles"


def test_an_image_has_no_dates(tmp_path):
    with pytest.raises(ValueError, match="'own_scanner' is an image, which has no dates"):
        card_of(tmp_path, DESCRIPTION + SCANNER.replace("{tile}.npy", "{tile}_{date}.npy"))


def test_dates_from_an_array_need_npz(tmp_path):
    text = DESCRIPTION.replace("_{date}", "").replace("dtype", 'dates = "days"\ndtype')
    with pytest.raises(ValueError, match=r"dates is 'days'; expected a CSV file \(or, for npz files, an array's"):
        card_of(tmp_path, text)


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, f"x{'.x' * 3000} = 1", f"extent = {'9' * 5000}", "#" * 2**21])
def test_descriptions_that_are_too_deep_or_too_large_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="own.toml is not a TOML file .*; docs/DATA.md shows how to write one"):
        card_of(tmp_path, text)


def test_whole_floats_are_whole_numbers(tmp_path):
    text = DESCRIPTION.replace("[10, 20]", "[10.0, 20.0]") + MASK + "ignore = 7.0\n"
    assert card_of(tmp_path, text).patch_sizes == (10, 20)


def test_no_description(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no description .*none\.toml; docs/DATA\.md shows how to write one"):
        read_description(tmp_path / "none.toml")

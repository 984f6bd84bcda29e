"""SpaceNet 7: an archive made up in the published layout, with known values put into single files."""

import json
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import load
from data_pipelines.datasets.spacenet7 import CARD, SIDE, TEST, VAL, SpaceNet7Reader, holds_raw
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.spacenet7 import METRES, TRAIN, write_archive
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from tests.data_pipelines.fake_reader import examples_of

AREA = TRAIN[0]
NAME = f"global_monthly_2018_01_mosaic_{AREA}"
KEY = f"{AREA}_2018_01"
PLACE = dict(crs="EPSG:3857", transform=(METRES, 0.0, 1e6, 0.0, -METRES, 4e6))


@pytest.fixture
def archive(tmp_path):
    write_archive(tmp_path, {"train": 1})
    return tmp_path


def mosaic(root, array):
    write_raster(root / "train" / AREA / "images_masked" / f"{NAME}.tif", array, **PLACE)


def blank(side=SIDE):
    return np.full((4, side, SIDE), 255, np.uint8)


def label_path(root, kind, suffix=".geojson"):
    path = root / "train" / AREA / kind / f"{NAME}_Buildings{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def only(root, kind, suffix=".geojson"):
    """The path of the label, once there are no labels."""
    for other in ("labels_match", "labels_match_pix"):
        shutil.rmtree(root / "train" / AREA / other)
    return label_path(root, kind, suffix)


def footprint(*corners, crs=None):
    geometry = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    features = {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": geometry}]}
    return json.dumps(features | ({"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}))


def example_of(root):
    example = SpaceNet7Reader(root).example("train", KEY)
    check_example(CARD, KEY, example)
    return example


def buildings(root):
    """Rows and columns with buildings."""
    rows, columns = np.nonzero(example_of(root)["dense"] == 1)
    return [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]


def test_the_card():
    check_card(CARD)
    assert len(VAL) == 15 and len(TEST) == 14 and not set(VAL) & set(TEST)


def test_all_made_up_tiles_keep_the_cards_promise(tmp_path):
    write_archive(tmp_path, {"train": 3, "val": 2, "test": 1})
    reader = SpaceNet7Reader(tmp_path)
    for split in CARD.splits:
        for example in examples_of(reader, split):
            check_example(CARD, example["id"], example)
            assert (example["dense"] == 1).any()
    assert [len(reader.keys(split)) for split in CARD.splits] == [3, 2, 1] and holds_raw(tmp_path)


def test_written_values_come_back(archive):
    image = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE), dtype=np.uint8)
    mosaic(archive, image)
    example = example_of(archive)
    np.testing.assert_array_equal(example["planet"], image[:3])
    np.testing.assert_array_equal(example["planet_mask"][0], image[3] > 0)
    assert (example["id"], example["crs"]) == (KEY, "EPSG:3857")
    np.testing.assert_allclose(example["transform"], PLACE["transform"])


def test_clouds_are_masked_and_have_no_label(archive):
    image = blank()
    image[3, :10] = 0
    mosaic(archive, image)
    clouds = np.zeros((1, SIDE, SIDE), np.uint8)
    clouds[0, :, :20] = 255
    write_raster(archive / "train" / AREA / "UDM_masks" / f"{NAME}_UDM.tif", clouds, **PLACE)
    example = example_of(archive)
    expected = np.ones((SIDE, SIDE), np.bool_)
    expected[:10], expected[:, :20] = False, False
    np.testing.assert_array_equal(example["planet_mask"][0], expected)
    np.testing.assert_array_equal(example["dense"] == -1, ~expected)


@pytest.mark.parametrize("building", [1, 255])
def test_rasters_are_taken_first_and_count_above_zero(archive, building):
    raster = np.zeros((1, SIDE, SIDE), np.uint8)
    raster[0, 5:8, 2:4] = raster[0, 9, 9] = building
    write_raster(label_path(archive, "labels_raster", ".tif"), raster)
    np.testing.assert_array_equal(example_of(archive)["dense"], raster[0] > 0)


@pytest.mark.parametrize("values", [(1, 2), (1,), (0, 1, 2), (0, 1, 255), (-1, 0, 1)])
def test_rasters_of_other_classes_are_refused(archive, values):
    raster = np.resize(np.asarray(values, np.int16), (1, SIDE, SIDE))
    write_raster(label_path(archive, "labels_raster", ".tif"), raster)
    with pytest.raises(ValueError, match=rf"_Buildings\.tif holds {re.escape(str(list(values)))}; expected .* recode"):
        example_of(archive)


def test_footprints_in_pixels(archive):
    only(archive, "labels_match_pix").write_text(footprint([10, 20, 0], [14, 20, 0], [14, 26, 0], [10, 26, 0]))
    assert buildings(archive) == [20, 26, 10, 14]


def test_footprints_in_the_maps_coordinates(archive):
    left, top = 1e6 + 10 * METRES, 4e6 - 20 * METRES
    corners = [left, top], [left + 4 * METRES, top], [left + 4 * METRES, top - 6 * METRES], [left, top - 6 * METRES]
    only(archive, "labels_match").write_text(footprint(*corners, crs="urn:ogc:def:crs:EPSG::3857"))
    mosaic(archive, blank())
    assert buildings(archive) == [20, 26, 10, 14]


def test_footprints_in_degrees(archive):
    """GeoJSON's own coordinates, where the file names none."""
    from rasterio.warp import transform

    x = [1e6 + METRES * column for column in (10, 14, 14, 10)]
    y = [4e6 - METRES * row for row in (20, 20, 26, 26)]
    only(archive, "labels_match").write_text(footprint(*zip(*transform("EPSG:3857", "EPSG:4326", x, y), strict=True)))
    mosaic(archive, blank())
    assert buildings(archive) == [20, 26, 10, 14]


def test_footprints_with_holes_and_a_month_without_buildings(archive):
    ring, hole = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]], [[3, 3], [6, 3], [6, 6], [3, 6], [3, 3]]
    parts = {"type": "MultiPolygon", "coordinates": [[ring, hole]]}
    path = only(archive, "labels_match_pix")
    path.write_text(json.dumps({"features": [{"geometry": parts}, {"geometry": None}]}))
    assert (example_of(archive)["dense"] == 1).sum() == 81 - 9
    path.write_text(json.dumps({"features": []}))
    assert not example_of(archive)["dense"].any()


def test_mosaics_of_1023_rows_are_stretched_with_their_label(archive):
    image = blank(1023)
    image[0, -1] = 7
    mosaic(archive, image)
    only(archive, "labels_match_pix").write_text(footprint([0, 1022], [5, 1022], [5, 1023], [0, 1023]))
    example = example_of(archive)
    assert example["planet"].shape == (3, SIDE, SIDE) and (example["planet"][0, -1] == 7).all()
    assert (example["dense"][-1, :6]).tolist() == [1, 1, 1, 1, 1, 0]
    bottom = example["transform"][5] + SIDE * example["transform"][4]
    np.testing.assert_allclose(bottom, 4e6 - 1023 * METRES)


def test_splits_are_by_area(tmp_path):
    write_archive(tmp_path, {"train": 2, "val": 3, "test": 3})
    reader = SpaceNet7Reader(tmp_path)
    areas = {split: {key[:28] for key in reader.keys(split)} for split in reader.splits()}
    assert areas == {"train": {AREA}, "val": set(VAL[:2]), "test": set(TEST[:2])}


def test_frames_without_a_label_are_left_out(archive):
    shutil.copy(
        archive / "train" / AREA / "images_masked" / f"{NAME}.tif",
        archive / "train" / AREA / "images_masked" / f"global_monthly_2019_01_mosaic_{AREA}.tif",
    )
    reader = SpaceNet7Reader(archive)
    assert reader.keys("train") == (KEY,) and reader.summary.endswith("of 1 areas; 1 mosaics without a label left out")


def test_the_metadata_choose_frames_as_the_published_reader_does(tmp_path):
    write_archive(tmp_path, {"train": 4})
    frames = [dict(aoi_id=AREA, year=2018, month=m, mask=m == 2, label=True) for m in (1, 2)]
    frames += [dict(aoi_id=TRAIN[1], year=2018, month=m, mask=False, label=m == 2) for m in (1, 2)]
    (tmp_path / "metadata_train.json").write_text(json.dumps({AREA: frames[:2], TRAIN[1]: frames[2:]}))
    assert SpaceNet7Reader(tmp_path).keys("train") == (KEY, f"{TRAIN[1]}_2018_02")
    (tmp_path / "metadata_train.json").write_text(json.dumps({AREA: [{"aoi_id": AREA}]}))
    with pytest.raises(ValueError, match=r"metadata_train\.json has an entry without '\w+'; expected for each area"):
        SpaceNet7Reader(tmp_path)


def test_prepared_and_batched(archive, tmp_path):
    prepare_dataset(SpaceNet7Reader(archive), tmp_path / "out", "1.0.0")
    section = dict(batch_size=1, weight=1.0, patch_sizes=(48,), max_dates=None)
    data = ConfigDict(dict(root=str(tmp_path / "out"), datasets={"spacenet7": section}))
    batch = next(load.train_iterator(load.open_datasets(data), seed=0))
    assert batch.observations["planet"].values.shape == (1, 3, SIDE, SIDE) and batch.grid == (64, 64)


def test_nothing_there(tmp_path):
    assert not holds_raw(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no tile of 'spacenet7'; see https://spacenet"):
        SpaceNet7Reader(tmp_path)


def test_the_areas_may_lie_on_another_disk(archive, tmp_path_factory):
    there = tmp_path_factory.mktemp("disk") / "train"
    before = SpaceNet7Reader(archive).tiles
    (archive / "train").rename(there)
    (archive / "train").symlink_to(there)
    reader = SpaceNet7Reader(archive)
    assert reader.tiles == before and reader.example("train", reader.keys("train")[0])["planet"].any()


def test_areas_that_lead_out_are_refused(archive, tmp_path_factory):
    (archive / "train" / "elsewhere").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ValueError, match="'elsewhere' leads out of .*train"):
        SpaceNet7Reader(archive)


@pytest.mark.parametrize("name", ["global_monthly_2018_13_mosaic_{}", "global_monthly_2018_01_mosaic_L15", "mosaic_{}"])
def test_mosaics_of_no_month(archive, name):
    path = archive / "train" / AREA / "images_masked" / f"{name.format(AREA)}.tif"
    path.touch()
    with pytest.raises(ValueError, match=f"{path.stem}.tif does not name a month of {AREA}; expected a name like"):
        SpaceNet7Reader(archive)


def bad_label(text):
    return lambda root: only(root, "labels_match_pix").write_text(text)


DAMAGE = {
    "cut": (lambda r: (r / "train" / AREA / "images_masked" / f"{NAME}.tif").write_bytes(b"II*"), "cannot be read"),
    "bands": (lambda r: mosaic(r, blank()[:3]), r"uint8 \(3, 1024, 1024\); expected a GeoTIFF of red, green, blue"),
    "dtype": (lambda r: mosaic(r, blank().astype(np.uint16)), r"is uint16 \(4, 1024, 1024\)"),
    "size": (lambda r: mosaic(r, blank(512)), "is 1024 x 512 pixels; expected"),
    "clouds": (lambda r: mosaic(r, 0 * blank()), "every pixel is masked"),
    "no json": (bad_label("{"), r"_Buildings\.geojson cannot be read"),
    "no features": (bad_label("[]"), r"_Buildings\.geojson has no list 'features'; expected a GeoJSON"),
    "no geometry": (bad_label('{"features": [{}]}'), r"_Buildings\.geojson cannot be read \('geometry'\)"),
    "no polygon": (
        bad_label('{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[1]]]}}]}'),
        r"_Buildings\.geojson cannot be read",
    ),
    "no label": (lambda r: only(r, "labels"), "no buildings of .*; expected one of labels_raster, labels_match_pix"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_name_themselves(archive, case):
    spoil, message = DAMAGE[case]
    reader = SpaceNet7Reader(archive)
    spoil(archive)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{NAME}.*{message}|{message}"):
        reader.example("train", KEY)

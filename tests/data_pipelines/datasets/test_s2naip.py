"""S2NAIP: a tile of known values in the published layout, written here, and the made-up archive."""

import json
import pickle
import shutil

import numpy as np
import pytest

from data_pipelines import load
from data_pipelines.datasets.s2naip import CARD, S2NaipReader, holds_raw
from data_pipelines.datasets.s2naip_metadata import CLASSES
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.s2naip import write_archive
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from tests.data_pipelines.datasets.s2naip_tile import SCENES, TILE, naip_image, read_tile, stack, write_map, write_tile
from tests.data_pipelines.fake_reader import data_config


@pytest.fixture
def archive(tmp_path):
    return write_tile(tmp_path / "raw")


def test_the_card():
    check_card(CARD)


def test_written_values_come_back(archive):
    example = read_tile(archive)
    assert example["id"] == TILE
    np.testing.assert_array_equal(example["naip"], naip_image())
    fine, coarse = [1, 11, 21, 31], [501, 511, 521, 531, 541, 551]  # B2 B3 B4 B8; B5 B6 B7 B8A B11 B12
    bands = [*fine[:3], *coarse[:3], fine[3], *coarse[3:]]
    assert example["s2"][0, :, 5, 5].tolist() == bands
    assert example["s2"][1, :, 63, 0].tolist() == [1000 + band for band in bands]
    assert example["s2_dates"].tolist() == [153, 158] and example["s2_years"].tolist() == [2020, 2020]
    assert example["s1"][:, :, 0, 0].tolist() == [[-8, -15, 7], [-9, -17, 8]]
    assert example["s1_dates"].tolist() == [363, 4] and example["s1_years"].tolist() == [2019, 2020]


def test_landsat_is_in_time_order_with_the_panchromatic_band_first(archive):
    example = read_tile(archive)
    assert example["l8"][0, :, 9, 9].tolist() == [1, *range(501, 600, 10)]
    assert example["l8"][:, 0, 0, 0].tolist() == [1, 2001, 1001]  # the file's dates: 1 January, 31 December, 3 March
    assert example["l8_dates"].tolist() == [0, 62, 365]


def test_the_place_is_in_the_name(archive):
    example = read_tile(archive)
    assert example["crs"] == "EPSG:32612"
    assert example["transform"].tolist() == [1.25, 0, 614400, 0, -1.25, 3871360]


def test_the_fourth_band_is_infrared_and_zeros_were_not_seen(archive):
    mask = read_tile(archive)["naip_mask"]
    assert mask[0, :500].all() and not mask[0, 500:].any()


def test_large_numbers_stay_positive(archive):
    """The published reader's int16 turns them negative."""
    for folder, bands in (("sentinel2", (4, 6)), ("landsat", (1, 10))):
        dates = len(SCENES[folder])
        write_raster(archive / folder / f"{TILE}_8.tif", np.full((dates * bands[0], 64, 64), 40000, np.uint16))
        write_raster(archive / folder / f"{TILE}_16.tif", np.full((dates * bands[1], 32, 32), 65535, np.uint16))
    example = read_tile(archive)
    assert np.unique(example["s2"]).tolist() == np.unique(example["l8"]).tolist() == [40000, 65535]


def test_coarse_bands_are_interpolated(archive):
    coarse = stack(2, 6, 32)
    coarse[0] = 100 * np.arange(1, 33)[None, :]
    write_raster(archive / "sentinel2" / f"{TILE}_16.tif", coarse)
    example = read_tile(archive)
    assert example["s2"][0, 3, 7, :6].tolist() == [100, 125, 175, 225, 275, 325]


def test_unobserved_pixels_are_masked_and_empty_dates_left_out(archive):
    fine, coarse = stack(2, 4, 64), stack(2, 6, 32)
    fine[0, 3, 4] = 0  # one dark band is an observation
    fine[:4, 10, 20] = 0
    coarse[:6, 20, 30] = 0  # also reaches the pixels around it
    fine[4:] = 0
    write_raster(archive / "sentinel2" / f"{TILE}_8.tif", fine)
    write_raster(archive / "sentinel2" / f"{TILE}_16.tif", coarse)
    example = read_tile(archive)
    assert example["s2_dates"].tolist() == [153]
    rows, columns = np.nonzero(~example["s2_mask"][0, 0])
    assert len(rows) == 1 + 16 and (rows[0], columns[0]) == (10, 20)
    assert (rows[1:].min(), rows[1:].max(), columns[1:].min(), columns[1:].max()) == (39, 42, 59, 62)


def test_radar_without_an_echo_is_masked(archive):
    radar = np.full((4, 64, 64), -12, np.float32)
    radar[0, 0, 0], radar[3, 1, 1], radar[0, 2, 2], radar[1, 3, 3] = np.nan, -np.inf, 0, -9999
    write_raster(archive / "sentinel1" / f"{TILE}.tif", radar, nodata=-9999)
    example = read_tile(archive)
    assert np.argwhere(~example["s1_mask"][:, 0]).tolist() == [[0, 0, 0], [0, 2, 2], [0, 3, 3], [1, 1, 1]]
    assert example["s1"][0, :, 0, 0].tolist() == [0, 0, 0]


def test_linear_power_becomes_decibels(archive):
    radar = np.stack([np.full((64, 64), value, np.float32) for value in (0.1, 0.01, 0.1, 0.01)])
    write_raster(archive / "sentinel1" / f"{TILE}.tif", radar)
    np.testing.assert_allclose(read_tile(archive)["s1"][0, :, 0, 0], [-10, -20, 10], rtol=1e-5)


def test_sensors_may_be_missing(archive):
    (archive / "sentinel1" / f"{TILE}.tif").unlink()
    shutil.rmtree(archive / "landsat")
    (archive / "landsat.csv").unlink()
    example = read_tile(archive)
    assert [sensor for sensor in CARD.sensors if sensor in example] == ["naip", "s2"]


# The map


def test_objects_are_drawn(archive):
    write_map(
        archive,
        ("building", "Polygon", [[[10, 20], [30, 20], [30, 60], [10, 60], [10, 20]]]),
        (
            "leisure",
            "Polygon",
            [[[100, 100], [200, 100], [200, 200], [100, 200], [100, 100]], [[120, 120], [180, 120], [180, 180]]],
        ),
        ("highway", "LineString", [[0, 300], [512, 300], [512, 512]]),
        ("river", "MultiLineString", [[[300, 0], [300, 512]]]),
        ("power_tower", "Point", [400, 450]),
        ("something new", "MultiPolygon", [[[[500, 0], [512, 0], [512, 5], [500, 5], [500, 0]]]]),
        ("building", "Polygon", [[[1, 1], [2, 2], [1, 1]]]),
        ("building", "MultiPolygon", [[]]),
        ("works", "GeometryCollection", None),
    )
    path = archive / "openstreetmap" / f"{TILE}.geojson"
    objects = json.loads(path.read_text())
    objects["features"][-1]["geometry"] = {
        "type": "GeometryCollection",
        "geometries": [{"type": "Point", "coordinates": [5, 5]}],
    }
    objects["features"].append({"type": "Feature", "properties": {"category": "river"}, "geometry": None})
    path.write_text(json.dumps(objects))
    drawn = read_tile(archive)["dense"]
    assert drawn.dtype == np.int8 and [CLASSES[n] for n in np.unique(drawn)] == list(CLASSES)
    rows, columns = np.nonzero(drawn == CLASSES.index("building"))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 59, 10, 29) and len(rows) == 40 * 20
    assert drawn[150, 110] == CLASSES.index("other") and drawn[130, 170] == 0  # the hole
    assert np.flatnonzero(drawn[:, 50] == CLASSES.index("transport")).tolist() == [299, 300]  # two pixels wide
    assert drawn[300, 300] == CLASSES.index("transport") and drawn[310, 300] == CLASSES.index("water")
    assert drawn[449:451, 399:401].tolist() == [[3, 3], [3, 3]] and drawn[2, 505] == CLASSES.index("other")
    assert drawn[4, 4] == 3


def test_tiles_without_a_map_have_no_label_and_empty_maps_nothing_mapped(archive):
    assert (read_tile(archive)["dense"] == CARD.ignore_label).all()
    write_map(archive)
    assert not read_tile(archive)["dense"].any()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"features": [{"properties": {}}]}',
        '{"features": [{"properties": {"category": "river"}, "geometry": {"type": "Arc", "coordinates": []}}]}',
        '{"features": [{"properties": {"category": "x"}, "geometry": {"type": "Point", "coordinates": [NaN, 1]}}]}',
        '{"features": [{"properties": {"category": 1}, "geometry": {"type": "Polygon", "coordinates": [[1,2,3,4]]}}]}',
    ],
)
def test_spoiled_maps(archive, text):
    write_map(archive)
    path = archive / "openstreetmap" / f"{TILE}.geojson"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path} (is not as expected|cannot be read) \(.*; expected"):
        read_tile(archive)


# The made-up archive


@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_the_made_up_archive(tmp_path, layout):
    sizes = {"train": 5, "val": 2}
    write_archive(tmp_path, sizes, seed=3, layout=layout)
    assert holds_raw(tmp_path)
    reader = pickle.loads(pickle.dumps(S2NaipReader(tmp_path)))
    assert {split: len(reader.keys(split)) for split in reader.splits()} == sizes
    examples = [(key, reader.example(split, key)) for split in reader.splits() for key in reader.keys(split)]
    for key, example in examples:
        check_example(CARD, key, example)
    assert [sum(sensor in example for _, example in examples) for sensor in CARD.sensors] == [7, 7, 6, 7]
    assert sum((example["dense"] == CARD.ignore_label).all() for _, example in examples) == 1
    assert all(not example["s2_mask"].all() for _, example in examples)


def test_prepared_and_batched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_archive(tmp_path / "raw", {"train": 2, "val": 1})
    assert prepare_dataset(S2NaipReader(tmp_path / "raw"), tmp_path / "out", "1.0.0").is_dir()
    config = data_config(tmp_path / "raw")
    config.datasets = {"s2naip": dict(batch_size=1, weight=1.0, patch_sizes=(80,), max_dates=4)}
    batch = next(load.open_datasets(config)["s2naip"].evaluation_batches("train", patch_size=80, batch_size=1))
    assert batch.grid == (8, 8) and batch.observations["l8"].values.shape == (1, 4, 11, 64, 64)

"""S2NAIP: a tile of known values in the published layout, written here, and the made-up archive."""

import json
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from data_pipelines import load
from data_pipelines.datasets.s2naip import CARD, holds_raw, open_reader
from data_pipelines.datasets.s2naip_index import read_date_table, split_of
from data_pipelines.datasets.s2naip_map import CLASSES
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.s2naip import write_archive
from data_pipelines.features import check_card, check_example
from data_pipelines.prepare import prepare_dataset
from tests.data_pipelines.fake_reader import data_config, examples_of

TILE = "32612_960_-6049"  # the example of the dataset's own description
S2_DAYS, S1_DAYS, L8_DAYS = ("20200602", "20200607"), ("20191230", "20200105"), ("20200101", "20201231", "20200303")
SCENES = {
    "sentinel2": [f"S2B_MSIL1C_{day}T174909_N0209_R141_T12SVD_{day}T212626" for day in S2_DAYS],
    "sentinel1": [f"S1A_IW_GRDH_1SDV_{day}T011526_{day}T011551_033152_03D73E_1B2C" for day in S1_DAYS],
    "landsat": [f"LC08_L1TP_038036_{day}_20210101_02_T1" for day in L8_DAYS],
}


def stack(dates, bands, side, dtype="uint16"):
    """Values that tell date and band: 1000 * date + 10 * band + 1."""
    date, band = np.mgrid[0:dates, 0:bands]
    plane = (1000 * date + 10 * band + 1).reshape(-1, 1, 1)
    return np.broadcast_to(plane, (dates * bands, side, side)).astype(dtype)


def naip_image():
    image = np.random.default_rng(0).integers(1, 256, (4, 512, 512), dtype=np.uint8)
    image[3, :10] = 0  # no infrared: were it transparency, the colours would go
    image[:, 500:] = 0
    return image


def write_naip(root, image, tile=TILE):
    write_raster(root / "naip" / f"{tile}.png", image, driver="PNG")


def write_map(root, *features, tile=TILE):
    (root / "openstreetmap").mkdir(exist_ok=True)
    objects = [
        {"type": "Feature", "properties": {"category": name}, "geometry": {"type": kind, "coordinates": coordinates}}
        for name, kind, coordinates in features
    ]
    text = json.dumps({"type": "FeatureCollection", "features": objects})
    (root / "openstreetmap" / f"{tile}.geojson").write_text(text)


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "raw"
    write_naip(root, naip_image())
    for folder, bands in (("sentinel2", (4, 6)), ("landsat", (1, 10))):
        dates = len(SCENES[folder])
        write_raster(root / folder / f"{TILE}_8.tif", stack(dates, bands[0], 64))
        write_raster(root / folder / f"{TILE}_16.tif", stack(dates, bands[1], 32) + np.uint16(500))
    radar = np.stack([np.full((64, 64), value, np.float32) for value in (-8, -15, -9, -17)])
    write_raster(root / "sentinel1" / f"{TILE}.tif", radar)
    for folder, scenes in SCENES.items():
        (root / f"{folder}.csv").write_text("tile,scene\n" + "".join(f"{TILE},{scene}\n" for scene in scenes))
    return root


def read_tile(root):
    reader = open_reader(root)
    (split,) = reader.splits()
    (example,) = examples_of(reader, split)
    check_example(CARD, example["id"], example)
    return example


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


# Dates


@pytest.mark.parametrize(
    "rows",
    [
        [f"{TILE},{scene}" for scene in SCENES["sentinel2"]],
        [f'EPSG:32612,960,-6049,"{scene}",2020-08-01' for scene in SCENES["sentinel2"]],
        [f'{TILE},"{SCENES["sentinel2"]}"'],
        [f"{number},{TILE},{day[:4]}-{day[4:6]}-{day[6:]}T17:49:09Z" for number, day in enumerate(S2_DAYS)],
        [f'"{TILE}",{day}' for day in S2_DAYS],
    ],
)
def test_tables_of_dates_in_several_forms(archive, rows):
    """By product names or dates, one image a row or all of a tile; other tiles do not matter."""
    others = ["32612_960_-60490,S2A_MSIL1C_20190101T1", "32612_961_-6049,20190101"]
    (archive / "sentinel2.csv").write_text("\n".join(["a header", others[0], *rows, others[1]]))
    assert read_tile(archive)["s2_dates"].tolist() == [153, 158]


def test_a_table_in_memory_is_small_and_gives_no_days_for_other_tiles(archive):
    tiles = {TILE, "32612_1_-1"}
    with (archive / "sentinel1.csv").open("a") as file:
        file.write("32612_1_-1,S1A_IW_GRDH_1SDV_20200105T01_x\n")
    table = read_date_table(archive / "sentinel1.csv", "s1", tiles)
    assert [str(day) for day in table.days(TILE)] == ["2019-12-30", "2020-01-05"]
    assert len(table.days("32612_1_-1")) == 1 and table.days("32612_2_-1") == table.days("99999_1_1") == []


def test_as_many_dates_as_images(archive):
    with (archive / "sentinel2.csv").open("a") as file:
        file.write(f"{TILE},{SCENES['sentinel2'][0]}\n")
    with pytest.raises(ValueError, match=rf"sentinel2\.csv tells 3 dates of tile {TILE}; expected 2, as in .*_8\.tif"):
        read_tile(archive)


def test_tables_that_are_missing_or_of_other_tiles(archive):
    (archive / "landsat.csv").write_text("tile,scene\n32612_961_-6049,20190101\n")
    with pytest.raises(ValueError, match=rf"landsat\.csv names none of the 1 tiles, e\.g\. {TILE}; expected"):
        open_reader(archive)
    (archive / "landsat.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*landsat\.csv; expected the published table of the scenes"):
        open_reader(archive)


def test_impossible_dates(archive):
    (archive / "sentinel2.csv").write_text(f"tile,scene\n{TILE},S2A_MSIL1C_20201345T1\n")
    with pytest.raises(ValueError, match=r"sentinel2\.csv, line 2: '20201345' tells no day"):
        open_reader(archive)


# Splits


def copies(archive, names):
    for name in names:
        write_naip(archive, naip_image(), name)


def test_without_lists_a_block_of_tiles_is_in_one_split(archive):
    names = [f"32612_{column}_-6049" for column in range(400)]
    splits = {name: split_of(name) for name in names}
    share = sum(split == "val" for split in splits.values()) / len(names)
    assert 0 < share < 0.3 and all(len({splits[n] for n in names[i : i + 16]}) == 1 for i in range(0, 400, 16))
    assert splits["32612_0_-6049"] == split_of("32612_0_-6049")


def test_published_lists(archive):
    other = "32612_961_-6049"
    copies(archive, [other, "32612_962_-6049"])
    (archive / "train.csv").write_text(f"name,more\n{other},1\n32612_5_-6049,1\n")
    (archive / "val.csv").write_text(f"name\n{TILE}\n")
    reader = open_reader(archive)
    assert (reader.keys("train"), reader.keys("val")) == ((other,), (TILE,))
    assert "2 tiles" in reader.summary and "of 3 listed; 3 have an image" in reader.summary


def split_dict(**changes):
    days = {"s2_dates": [list(S2_DAYS)], "s1_dates": [list(S1_DAYS)], "l8_dates": [[int(day) for day in L8_DAYS]]}
    return {"name": [TILE], **days} | changes


def test_lists_with_dates_as_the_published_reader_has_them(archive):
    for table in archive.glob("*.csv"):
        table.unlink()
    (archive / "val_dict.json").write_text(json.dumps(split_dict()))
    assert open_reader(archive).splits() == ("val",)
    example = read_tile(archive)
    assert example["l8_dates"].tolist() == [0, 62, 365] and example["s1_dates"].tolist() == [363, 4]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "is not as expected; expected a dictionary of lists"),
        ({"name": [TILE]}, "is not as expected"),
        (split_dict(s2_dates=[]), r"has \[1, 0, 1, 1\] entries"),
        (split_dict(name=["../../etc/passwd"]), r"'\.\./\.\./etc/passwd' is no tile"),
        (split_dict(s1_dates=[["yesterday"]]), f"tile {TILE}: 'yesterday' tells no day"),
        (split_dict(s1_dates=[20200101]), "is not as expected"),
        (split_dict(s1_dates=20200101), "is not as expected"),
    ],
)
def test_spoiled_lists(archive, table, message):
    (archive / "train_dict.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=rf"train_dict\.json.*({message})"):
        open_reader(archive)


def test_lists_that_lead_out(archive):
    (archive / "train.csv").write_text("name\n../../etc/passwd\n")
    with pytest.raises(ValueError, match=r"train\.csv: '\.\./\.\./etc/passwd' is no tile; expected a name like"):
        open_reader(archive)


# Files


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("name", ["naip/T.png", "sentinel2/T_8.tif", "landsat/T_16.tif", "sentinel1/T.tif"])
def test_unreadable_files(archive, name, how):
    path = archive / name.replace("T", TILE)
    cut(path) if how == "cut" else path.write_bytes({"empty": b"", "text": b"<html>not found</html>"}[how])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .* expected .*; download"):
        read_tile(archive)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("sentinel2/T_8.tif", np.zeros((7, 64, 64), np.uint16), "has 7 bands, not a multiple of 4"),
        ("sentinel2/T_8.tif", np.zeros((8, 32, 64), np.uint16), r"is uint16 \(8, 32, 64\); expected a GeoTIFF"),
        ("sentinel2/T_8.tif", np.zeros((8, 64, 64), np.float32), r"is float32 \(8, 64, 64\); expected a GeoTIFF"),
        ("sentinel2/T_8.tif", np.full((8, 64, 64), -3, np.int16), "runs from -3 to -3; expected"),
        ("sentinel2/T_16.tif", np.ones((18, 32, 32), np.uint16), r"has 3 dates, .*_8\.tif 2; download both again"),
        ("landsat/T_16.tif", np.zeros((11, 32, 32), np.uint16), "has 11 bands, not a multiple of 10"),
        ("sentinel1/T.tif", np.zeros((3, 64, 64), np.float32), "has 3 bands, not a multiple of 2"),
        ("sentinel1/T.tif", np.ones((6, 64, 64), np.float32), r"sentinel1\.csv tells 2 dates .* expected 3"),
    ],
)
def test_misshapen_files(archive, name, array, message):
    write_raster(archive / name.replace("T", TILE), array)
    with pytest.raises(ValueError, match=message):
        read_tile(archive)


@pytest.mark.parametrize("shape", [(3, 512, 512), (4, 256, 512)])
def test_misshapen_images(archive, shape):
    write_naip(archive, np.ones(shape, np.uint8))
    with pytest.raises(ValueError, match=r"\.png is uint8 .*; expected a PNG of 4 bands R, G, B, NIR, 512 x 512"):
        read_tile(archive)


def test_an_image_that_went_away(archive):
    reader = open_reader(archive)
    (archive / "naip" / f"{TILE}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{TILE}\.png; expected a PNG of 4 bands"):
        examples_of(reader, reader.splits()[0])


def test_half_of_a_series(archive):
    (archive / "sentinel2" / f"{TILE}_16.tif").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{TILE}_16\.tif; expected a GeoTIFF of the bands B5, B6"):
        read_tile(archive)


def pack(root):
    """As downloaded: tar archives for each kind of data and UTM zone."""
    for kind in ("naip", "sentinel2", "sentinel1", "landsat"):
        (root / f"{kind}_32612").mkdir()
        with tarfile.open(root / f"{kind}_32612" / "32612_30_-190.tar", "w") as packed:
            packed.add(root / kind, kind)
        shutil.rmtree(root / kind)


def test_archives_are_read_without_unpacking(archive):
    expected = read_tile(archive)
    pack(archive)
    assert holds_raw(archive)
    example = read_tile(archive)
    assert set(example) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(example[key], value)


def test_damaged_and_missing_archives(archive):
    pack(archive)
    (archive / "sentinel1_32612" / "32612_30_-190.tar").unlink()
    assert "s1" not in read_tile(archive)
    cut(archive / "sentinel2_32612" / "32612_30_-190.tar")
    with pytest.raises(ValueError, match=r"sentinel2_32612/32612_30_-190\.tar (is cut off|cannot be read)"):
        read_tile(archive)


def test_nothing_there(tmp_path):
    assert not holds_raw(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no tile of 's2naip'; see https"):
        open_reader(tmp_path)


@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_the_made_up_archive(tmp_path, layout):
    sizes = {"train": 5, "val": 2}
    write_archive(tmp_path, sizes, seed=3, layout=layout)
    assert holds_raw(tmp_path)
    reader = pickle.loads(pickle.dumps(open_reader(tmp_path)))
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
    assert prepare_dataset(open_reader(tmp_path / "raw"), tmp_path / "out", "1.0.0").is_dir()
    config = data_config(tmp_path / "raw")
    config.datasets = {"s2naip": dict(batch_size=1, weight=1.0, patch_sizes=(80,), max_dates=4)}
    load.prepare(config)
    batch = next(load.evaluation_batches(config, "s2naip", "train", patch_size=80, batch_size=1))
    assert batch.grid == (8, 8) and batch.observations["l8"].values.shape == (1, 4, 11, 64, 64)

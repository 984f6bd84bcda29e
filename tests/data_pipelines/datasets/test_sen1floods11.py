"""Sen1Floods11: an archive written here in the published layout, and the real chip."""

import json
import pickle
import shutil

import numpy as np
import pytest
import rasterio

from data_pipelines import load
from data_pipelines.datasets.sen1floods11 import CARD, DATA, LISTS, METADATA, S2_BANDS, Sen1FloodsReader, holds_raw
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.sen1floods11 import write_archive
from data_pipelines.prepare.plan import plan_facts
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepare.shards import read_tile
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import data_config, examples_of

CHIP = "Ghana_0"
PLACE = dict(crs="EPSG:4326", transform=(9e-5, 0.0, -1.0, 0.0, -9e-5, 8.0))
FLOODS = {"Ghana": ("2018/09/18", "2018/09/19"), "Cambodia": ("2018/08/05", "2018/08/04")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sen1floods11")
    write_archive(root, {"train": 2, "test": 1})
    return root


@pytest.fixture
def archive(written, tmp_path):
    """Chips Ghana_0 and Mekong_1 in train, Ghana_200000 in test."""
    return shutil.copytree(written, tmp_path / "raw")


def layer(archive, name, chip=CHIP):
    return archive / "v1.1" / DATA / name / f"{chip}_{name}.tif"


def write_metadata(archive, floods=FLOODS):
    features = [{"properties": {"location": k, "s1_date": s1, "s2_date": s2}} for k, (s1, s2) in floods.items()]
    (archive / "v1.1" / METADATA).write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def example_of(archive, split="train", number=0):
    return examples_of(Sen1FloodsReader(archive), split)[number]


def optical(value=1000):
    """Each band holds 10 for each of its number, so that B8A and B11 tell themselves apart."""
    return np.full((13, 512, 512), value, np.int16) + 10 * np.arange(13, dtype=np.int16)[:, None, None]


def radar(vv=-10.0, vh=-17.5):
    return np.stack([np.full((512, 512), value, np.float32) for value in (vv, vh)])


def test_written_values_come_back(archive):
    rng = np.random.default_rng(0)
    s2 = rng.integers(1, 12000, (13, 512, 512)).astype(np.int16)
    s1 = rng.uniform(-40, 5, (2, 512, 512)).astype(np.float32)
    label = rng.integers(-1, 2, (1, 512, 512)).astype(np.int16)
    write_raster(layer(archive, "S2Hand"), s2, nodata=0, **PLACE)
    write_raster(layer(archive, "S1Hand"), s1, nodata=np.nan, **PLACE)
    write_raster(layer(archive, "LabelHand"), label, **PLACE)
    example = example_of(archive)
    assert example["id"] == CHIP and example["crs"] == "EPSG:4326"
    assert example["transform"].tolist() == list(PLACE["transform"])
    np.testing.assert_array_equal(example["s2"][0], s2[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12]])
    np.testing.assert_array_equal(example["s1"][0, :2], s1)
    np.testing.assert_array_equal(example["dense"], label[0])
    assert example["s2_mask"].all() and example["s1_mask"].all()


def test_ten_of_thirteen_bands_in_our_order(archive):
    write_raster(layer(archive, "S2Hand"), optical())
    wanted = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
    assert example_of(archive)["s2"][0, :, 0, 0].tolist() == [1000 + 10 * S2_BANDS.index(band) for band in wanted]


def test_the_ratio_of_decibels_is_their_difference(archive):
    write_raster(layer(archive, "S1Hand"), radar(-10.0, -17.5))
    assert example_of(archive)["s1"][0, :, 0, 0].tolist() == [-10.0, -17.5, 7.5]


def test_pixels_without_radar_are_masked_not_zero(archive):
    values = radar()
    values[1, 3, 4] = np.nan  # one polarisation is enough
    write_raster(layer(archive, "S1Hand"), values, nodata=np.nan)
    example = example_of(archive)
    assert np.argwhere(~example["s1_mask"]).tolist() == [[0, 0, 3, 4]]
    assert np.isnan(example["s1"][0, 1, 3, 4]) and example["s1_mask"].shape == (1, 1, 512, 512)


@pytest.mark.parametrize("lowest", [0, -5])
def test_pixels_where_a_band_saw_nothing_are_masked(archive, lowest):
    values = optical()
    values[12, 3, 4] = lowest
    values[10, 5, 6] = 0  # B10 is none of ours
    write_raster(layer(archive, "S2Hand"), values, nodata=0)
    example = example_of(archive)
    assert np.argwhere(~example["s2_mask"]).tolist() == [[0, 0, 3, 4]] and example["s2"][0, 9, 3, 4] == 0


def test_a_sensor_that_saw_nothing_is_lacking(archive):
    write_raster(layer(archive, "S1Hand"), np.full_like(radar(), np.nan))
    example = example_of(archive)
    check_example(CARD, CHIP, example)
    assert not [key for key in example if key.startswith("s1")] and "s2" in example
    write_raster(layer(archive, "S2Hand"), np.zeros_like(optical()))
    with pytest.raises(ValueError, match=r"Ghana_0_S2Hand\.tif and Ghana_0_S1Hand\.tif hold no data at all"):
        example_of(archive)


def test_each_sensor_has_its_own_day_counted_from_zero(archive):
    write_metadata(archive)
    example = example_of(archive)
    assert (example["s1_dates"].tolist(), example["s2_dates"].tolist()) == ([260], [261])  # 18 and 19 September
    assert example["s1_years"].tolist() == [2018] and example["s2_years"].tolist() == [2018]


def test_the_mekong_chips_belong_to_the_flood_called_cambodia(archive):
    write_metadata(archive)
    example = example_of(archive, number=1)
    assert example["id"] == "Mekong_1"
    assert (example["s1_dates"].tolist(), example["s2_dates"].tolist()) == ([216], [215])  # 5 and 4 August


def test_an_unknown_flood_has_no_made_up_date(archive):
    write_metadata(archive, {"Spain": ("2019/09/17", "2019/09/18")})
    with pytest.raises(ValueError, match=rf"{METADATA} has no flood 'Ghana', .* it has Spain\. Take the metadata"):
        Sen1FloodsReader(archive)


@pytest.mark.parametrize("date", ["2018/13/18", "soon", "None"])
def test_a_bad_date_names_file_and_flood(archive, date):
    write_metadata(archive, FLOODS | {"Ghana": ("2018/09/18", date)})
    with pytest.raises(ValueError, match=rf"{METADATA}: s2_date of Ghana: '{date}' is not a day"):
        Sen1FloodsReader(archive)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "lacks .* expected the floods' metadata"),
        ('{"type": "FeatureCollection"}', "lacks 'features'"),
        ('{"features": [{"properties": {}}]}', "lacks 'location'"),
    ],
)
def test_spoiled_metadata(archive, text, message):
    (archive / "v1.1" / METADATA).write_text(text)
    with pytest.raises(ValueError, match=rf"{METADATA} {message}"):
        Sen1FloodsReader(archive)


def test_splits_are_the_published_lists(written):
    reader = Sen1FloodsReader(written)
    assert {split: reader.keys(split) for split in CARD.splits} == {
        "train": ("Ghana_0", "Mekong_1"),
        "val": (),
        "test": ("Ghana_200000",),
        "bolivia": (),
    }
    assert "3 of 3 listed chips" in reader.summary
    assert Sen1FloodsReader(written / "v1.1").keys("test") == ("Ghana_200000",)


def test_chips_that_are_not_on_disk_are_left_out_and_counted(archive):
    before = Sen1FloodsReader(archive).fingerprint
    layer(archive, "LabelHand", "Mekong_1").unlink()
    reader = Sen1FloodsReader(archive)
    assert reader.keys("train") == (CHIP,) and "2 of 3 listed chips" in reader.summary
    assert reader.fingerprint != before


def test_the_fingerprint_follows_the_dates(archive):
    write_metadata(archive)
    before = Sen1FloodsReader(archive).fingerprint
    assert before == Sen1FloodsReader(archive).fingerprint
    write_metadata(archive, FLOODS | {"Ghana": ("2018/09/18", "2018/09/20")})
    assert Sen1FloodsReader(archive).fingerprint != before


def test_lists_may_lack_bolivia_only(archive):
    (archive / "v1.1" / LISTS / "flood_bolivia_data.csv").unlink()
    assert Sen1FloodsReader(archive).splits() == ("train", "test")
    (archive / "v1.1" / LISTS / "flood_valid_data.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"flood_valid_data\.csv; expected Sen1Floods11 as published"):
        Sen1FloodsReader(archive)


@pytest.mark.parametrize(
    "line",
    [
        "Ghana_0_S1Hand.tif",
        "Ghana_0_S1Hand.tif,Mekong_1_LabelHand.tif",
        "Ghana_0_S2Hand.tif,Ghana_0_LabelHand.tif",
        "Ghana_S1Hand.tif,Mekong_LabelHand.tif",
    ],
)
def test_lines_that_are_no_chip(archive, line):
    (archive / "v1.1" / LISTS / "flood_train_data.csv").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"flood_train_data\.csv: 'Ghana_.* expected a line like Ghana_103272_S1Hand"):
        Sen1FloodsReader(archive)


@pytest.mark.parametrize("chip", ["../../../../../secret_1", "/etc/secret_1"])
def test_no_path_leads_out_of_the_archive(archive, chip):
    (archive / "v1.1" / LISTS / "flood_train_data.csv").write_text(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n")
    with pytest.raises(ValueError, match="leads out of .*S1Hand"):
        Sen1FloodsReader(archive)


def test_a_chip_of_two_splits_is_refused(archive):
    shutil.copy(archive / "v1.1" / LISTS / "flood_train_data.csv", archive / "v1.1" / LISTS / "flood_valid_data.csv")
    with pytest.raises(ValueError, match="'Ghana_0' comes in 'train' and 'val'"):
        plan_facts(Sen1FloodsReader(archive), "1.0.0", None, None)


def test_nothing_on_disk(archive):
    shutil.rmtree(archive / "v1.1" / DATA)
    with pytest.raises(FileNotFoundError, match="holds no tile of 'sen1floods11'; see https"):
        Sen1FloodsReader(archive)


SPOILED = {
    "bands": ("S2Hand", optical()[:12], r"S2Hand\.tif is int16 \(12, 512, 512\); expected .* 13 bands"),
    "pixels": ("S2Hand", optical()[:, :500], r"S2Hand\.tif is int16 \(13, 500, 512\)"),
    "reflectance": ("S2Hand", (optical() / 1e4).astype(np.float32), r"S2Hand\.tif is float32 .* int16 or uint16"),
    "polarisations": ("S1Hand", radar()[:1], r"S1Hand\.tif is float32 \(1, 512, 512\); expected .* VV and VH in dB"),
    "label size": ("LabelHand", np.zeros((1, 256, 512), np.int16), r"LabelHand\.tif is int16 \(1, 256, 512\)"),
    "label type": ("LabelHand", np.zeros((1, 512, 512), np.float32), r"LabelHand\.tif is float32 .* whole numbers -1"),
    "classes": ("LabelHand", np.full((1, 512, 512), 2, np.int16), r"LabelHand\.tif holds \[2\]; expected"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_files(archive, case):
    name, array, message = SPOILED[case]
    write_raster(layer(archive, name), array)
    with pytest.raises(ValueError, match=message):
        example_of(archive)


def test_linear_power_is_refused(archive):
    write_raster(layer(archive, "S1Hand"), 10 ** (radar() / 10))
    with pytest.raises(ValueError, match=f"tile '{CHIP}': 's1' runs from .*, like linear power; expected dB"):
        read_tile(Sen1FloodsReader(archive), "train", CHIP)


@pytest.mark.parametrize("name", ["S1Hand", "S2Hand", "LabelHand"])
def test_truncated_and_missing_files(archive, name):
    reader, path = Sen1FloodsReader(archive), layer(archive, name)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .* expected a GeoTIFF"):
        reader.example("train", CHIP)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {path}; expected a GeoTIFF"):
        reader.example("train", CHIP)


def test_the_made_up_archive_keeps_the_card(tmp_path):
    write_archive(tmp_path, {"train": 7, "val": 1, "test": 1, "bolivia": 1}, seed=3)
    reader = pickle.loads(pickle.dumps(Sen1FloodsReader(tmp_path)))
    check_card(CARD)
    assert holds_raw(tmp_path) and reader.splits() == CARD.splits
    examples = {key: reader.example(split, key) for split in CARD.splits for key in reader.keys(split)}
    for key, example in examples.items():
        check_example(CARD, key, example)
    assert len(examples) == 10 and [key for key, e in examples.items() if "s1" not in e] == ["Sri-Lanka_6"]
    assert not examples["Ghana_0"]["s1_mask"].all() and not examples["Mekong_1"]["s2_mask"].all()


def test_prepared_and_batched(written, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = prepare_dataset(Sen1FloodsReader(written), tmp_path / "out", "1.0.0")
    assert len(PreparedDataset.open(CARD, folder).records("train")) == 2
    config = data_config(written)
    config.datasets = {CARD.name: dict(batch_size=1, weight=1.0, patch_sizes=(80,))}
    batch = next(load.train_iterator(load.open_datasets(config), seed=0))
    assert batch.observations["s2"].values.shape == (1, 1, 10, 512, 512) and batch.grid == (64, 64)
    assert set(np.unique(batch.labels["dense"])) <= {-1, 0, 1}


def test_the_real_chip(real_data):
    root = real_data / "sen1floods11"
    reader = Sen1FloodsReader(root)
    assert holds_raw(root) and reader.splits() == ("train",) and reader.keys("train") == ("Spain_7370579",)
    example = reader.example("train", "Spain_7370579")
    check_example(CARD, "Spain_7370579", example)
    assert (example["s1_dates"].tolist(), example["s2_dates"].tolist()) == ([259], [260])  # 17 and 18 September
    assert example["s2_years"].tolist() == [2019]
    with rasterio.open(root / "sample" / "S2" / "Spain_7370579_S2Hand.tif") as file:
        assert file.descriptions == S2_BANDS
        np.testing.assert_array_equal(example["s2"][0], file.read([2, 3, 4, 5, 6, 7, 8, 9, 12, 13]))
        np.testing.assert_array_equal(example["transform"], tuple(file.transform)[:6])
    counts = {value: int((example["dense"] == value).sum()) for value in (-1, 0, 1)}
    assert counts == {-1: 99, 0: 192010, 1: 70035}


def test_in_the_real_chip_water_is_dark_to_radar_and_infrared(real_data):
    example = examples_of(Sen1FloodsReader(real_data / "sen1floods11"), "train")[0]
    water, land = example["dense"] == 1, example["dense"] == 0
    infrared, radar_vv, ratio = example["s2"][0, 6], example["s1"][0, 0], example["s1"][0, 2]
    assert infrared[water].mean() < infrared[land].mean() - 500
    assert radar_vv[water].mean() < radar_vv[land].mean() - 3
    assert 3 < ratio.mean() < 12  # VV - VH in dB over land and water; a quotient would be near 0.6

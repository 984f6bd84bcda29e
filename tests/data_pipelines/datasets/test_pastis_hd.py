"""PASTIS-HD: an archive in the published layout with known values, and the real metadata."""

import datetime
import json
import pickle
import shutil

import numpy as np
import pytest

from data_pipelines import load
from data_pipelines.datasets.pastis_hd import (
    CARD,
    CROPS,
    METADATA,
    SPOT,
    PastisReader,
    holds_raw,
    read_patches,
)
from data_pipelines.dates import day_fields, days_since
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.pastis_hd import write_archive
from data_pipelines.prepare.records import check_card, check_example
from tests.data_pipelines.fake_reader import data_config, examples_of

KEY = "10000"
S2, S1, TARGET = f"DATA_S2/S2_{KEY}.npy", f"DATA_S1A/S1A_{KEY}.npy", f"ANNOTATIONS/TARGET_{KEY}.npy"
IMAGE = f"{SPOT}/SPOT6_RVB_1M00_2019_{KEY}.tif"
S2_DAYS = (20180924, 20181231, 20190101, 20191019)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pastis")
    write_archive(folder, {"train": 3, "val": 1, "test": 1})
    return folder


def replace(path, array):
    path.unlink()
    np.save(path, array)


def edit(root, change, number=0):
    """Changes one feature of the metadata."""
    path = root / METADATA
    table = json.loads(path.read_text())
    change(table["features"][number])
    path.unlink()
    path.write_text(json.dumps(table))


def set_days(root, **fields):
    edit(root, lambda f: f["properties"].update({k.replace("_", "-"): v for k, v in fields.items()}))


def numbered(days):
    return {str(i): day for i, day in enumerate(days)}


def example_of(root, key=KEY):
    reader = PastisReader(root)
    (split,) = [s for s in reader.splits() if key in reader.keys(s)]
    return reader.example(split, key)


def series(count, bands, dtype):
    """Every value tells its date and band."""
    values = np.arange(count)[:, None] * 100 + np.arange(bands)[None] + 1
    return np.broadcast_to(values[:, :, None, None], (count, bands, 128, 128)).astype(dtype)


def test_the_fake_archive_keeps_the_card_s_promise(written):
    check_card(CARD)
    reader = PastisReader(written)
    assert holds_raw(written) and not holds_raw(written / SPOT)
    assert {s: len(reader.keys(s)) for s in reader.splits()} == {"train": 3, "val": 1, "test": 1}
    for split in reader.splits():
        for key, example in zip(reader.keys(split), examples_of(reader, split), strict=True):
            check_example(CARD, key, example)
            assert {"spot", "s2", "s1"} <= set(example) and not example["s2_mask"].all()


def test_the_same_seed_writes_the_same_archive(written, tmp_path):
    write_archive(tmp_path, {"train": 1})
    for name in (S2, S1, TARGET, IMAGE):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_written_values_come_back(archive):
    set_days(archive, dates_S2=numbered(S2_DAYS), dates_S1A=numbered((20180901, 20190901)))
    replace(archive / S2, series(4, 10, np.int16))
    replace(archive / S1, series(2, 3, np.float16) / 16 - 20)
    image = np.stack([np.full((1280, 1280), v, np.uint8) for v in (70, 80, 90)])
    image[:, 0, 5] = (1, 2, 3)
    (archive / IMAGE).unlink()
    write_raster(archive / IMAGE, image)
    example = example_of(archive)
    assert example["id"] == KEY
    np.testing.assert_array_equal(example["s2"], series(4, 10, np.int16))
    np.testing.assert_array_equal(example["s1"], series(2, 3, np.float16) / 16 - 20)
    np.testing.assert_array_equal(example["spot"], image)
    assert [example[s].dtype for s in CARD.sensors] == [np.uint8, np.int16, np.float16]
    assert example["s2_mask"].all() and example["s1_mask"].all()


def test_days_of_the_year_and_days_since_the_origin(archive):
    set_days(archive, dates_S2=numbered(S2_DAYS))
    replace(archive / S2, series(4, 10, np.int16))
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [266, 364, 0, 291]
    assert example["s2_years"].tolist() == [2018, 2018, 2019, 2019]
    assert days_since(CARD.date_origin, example["s2_dates"], example["s2_years"]).tolist() == [23, 121, 122, 413]


def test_dates_belong_to_the_array_by_their_number_not_by_their_text(archive):
    days = [int(f"{datetime.date(2019, 1, 1) + datetime.timedelta(3 * i):%Y%m%d}") for i in range(11)]
    by_text = {key: days[int(key)] for key in sorted(map(str, range(11)))}
    assert list(by_text)[:3] == ["0", "1", "10"]
    set_days(archive, dates_S2=by_text)
    replace(archive / S2, series(11, 10, np.int16))
    example = example_of(archive)
    assert example["s2_dates"].tolist() == list(range(0, 33, 3))
    np.testing.assert_array_equal(example["s2"], series(11, 10, np.int16))


def test_series_are_put_in_time_order(archive):
    set_days(archive, dates_S2=numbered(S2_DAYS[::-1]))
    replace(archive / S2, series(4, 10, np.int16))
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [266, 364, 0, 291]
    np.testing.assert_array_equal(example["s2"], series(4, 10, np.int16)[::-1])


def test_what_was_not_observed_is_masked_and_empty_dates_are_left_out(archive):
    optical, radar = series(4, 10, np.int16), series(2, 3, np.float16)
    optical[1] = -10000
    optical[2, 3, 4, 5] = -10000
    optical[3, :, 0, 0] = -50  # dark water, after the correction of the atmosphere
    radar -= 102  # decibels
    radar[0, 1, 6, 7] = np.nan
    set_days(archive, dates_S2=numbered(S2_DAYS), dates_S1A=numbered((20180901, 20190901)))
    replace(archive / S2, optical)
    replace(archive / S1, radar)
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [266, 0, 291] and example["s2_years"].tolist() == [2018, 2019, 2019]
    assert np.argwhere(~example["s2_mask"]).tolist() == [[1, 0, 4, 5]]
    assert np.argwhere(~example["s1_mask"]).tolist() == [[0, 0, 6, 7]]
    check_example(CARD, KEY, example)


def test_void_is_ignored_and_no_crop(archive):
    target = np.zeros((3, 128, 128), np.uint8)
    target[0, :2, 0] = 19
    target[0, 0, 1:4] = (1, 18, 7)
    target[1:] = 5  # instances; not the classes
    replace(archive / TARGET, target)
    example = example_of(archive)
    np.testing.assert_array_equal(example["dense"], target[0])
    assert example["dense"].dtype == np.int8 and CARD.ignore_label == 19 and len(CARD.dense_classes) == 19
    assert [CROPS[i] for i in np.flatnonzero(example["tile"])] == ["Meadow", "Sunflower", "Sorghum"]
    assert [CARD.dense_classes[i] for i in (0, 1, 18)] == ["Background", "Meadow", "Sorghum"]


def test_folds_are_splits(archive):
    for number, fold in enumerate((2, 5, 4, 3, 1)):
        edit(archive, lambda f, fold=fold: f["properties"].update(Fold=fold), number)
    reader = PastisReader(archive)
    assert reader.tiles == {"train": ("10000", "10003", "10004"), "val": ("10002",), "test": ("10001",)}


def test_the_outline_places_the_pixels(archive):
    ring = [[1000.0, 5000.0], [2280.0, 4872.0], [2152.0, 3592.0], [872.0, 3720.0], [1000.0, 5000.0]]
    for turned in (ring, [*ring[2:4], *ring[:3]]):  # wherever the ring starts
        geometry = {"type": "Polygon", "coordinates": [turned]}
        edit(archive, lambda f, geometry=geometry: f.update(geometry=geometry))
        example = example_of(archive)
        assert example["crs"] == "EPSG:2154"
        np.testing.assert_allclose(example["transform"], [10, -1, 1000, -1, -10, 5000])


@pytest.mark.parametrize("geometry", [None, {"type": "Point", "coordinates": [1.0, 2.0]}, {"type": "Polygon"}])
def test_a_patch_without_an_outline_has_no_place(archive, geometry):
    edit(archive, lambda f: f.update(geometry=geometry))
    example = example_of(archive)
    assert example["crs"] == "" and np.isnan(example["transform"]).all()


def test_the_release_without_radar_and_spot_reads(archive):
    shutil.rmtree(archive / "DATA_S1A")
    shutil.rmtree(archive / "DATA_SPOT")
    for number in range(5):
        edit(archive, lambda f: f["properties"].pop("dates-S1A"), number)
    reader = PastisReader(archive)
    assert "5 of 5 listed patches, 5 without s1, 5 without spot" in reader.summary
    example = reader.example("train", KEY)
    assert not {"s1", "s1_dates", "spot"} & set(example)
    check_example(CARD, KEY, example)


def test_sensors_of_a_partial_download(archive):
    (archive / S1).unlink()
    (archive / IMAGE).unlink()
    edit(archive, lambda f: f["properties"].pop("dates-S1A"), 1)
    reader = PastisReader(archive)
    assert "5 of 5 listed patches, 2 without s1, 1 without spot" in reader.summary
    assert [("s1" in e, "spot" in e) for e in examples_of(reader, "train")] == [
        (False, False),
        (False, True),
        (True, True),
    ]


def test_patches_of_a_partial_download(archive):
    before = PastisReader(archive)
    (archive / S2).unlink()
    (archive / "ANNOTATIONS/TARGET_10001.npy").unlink()
    reader = PastisReader(archive)
    assert reader.keys("train") == ("10002",) and "3 of 5 listed patches" in reader.summary
    assert reader.fingerprint != before.fingerprint


def test_the_fingerprint_follows_sensors_and_dates(archive):
    prints = [PastisReader(archive).fingerprint, PastisReader(archive).fingerprint]
    (archive / IMAGE).unlink()
    prints.append(PastisReader(archive).fingerprint)
    set_days(archive, dates_S2=numbered(S2_DAYS))
    prints.append(PastisReader(archive).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_a_reader_goes_to_worker_processes(written):
    reader = pickle.loads(pickle.dumps(PastisReader(written)))
    check_example(CARD, KEY, reader.example("train", KEY))


def test_prepared_and_batched(written, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = data_config(written)
    config.datasets = {CARD.name: dict(batch_size=1, weight=1.0, patch_sizes=(160,), max_dates=3)}
    batch = next(load.open_datasets(config)[CARD.name].evaluation_batches("train", patch_size=160, batch_size=1))
    assert batch.observations["s1"].values.shape[1:3] == (3, 3) and batch.observations["spot"].values.shape[1] == 3
    assert batch.labels["tile"].shape == (1, 18)


def test_nothing_on_disk(archive):
    shutil.rmtree(archive / "DATA_S2")
    with pytest.raises(
        FileNotFoundError, match=r"none of the 5 patches of .*metadata\.geojson is there; expected DATA"
    ):
        PastisReader(archive)


def test_no_metadata(archive):
    (archive / METADATA).unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*metadata\.geojson; expected the metadata of PASTIS"):
        PastisReader(archive)


@pytest.mark.parametrize("text", ["[]", "{}", '{"features": []}', '{"features": 3}'])
def test_metadata_without_patches(archive, text):
    (archive / METADATA).unlink()
    (archive / METADATA).write_text(text)
    with pytest.raises(ValueError, match=r"metadata\.geojson is not a GeoJSON file with patches"):
        PastisReader(archive)


SPOILED_FIELDS = {
    "no number": (dict(ID_PATCH=None), "feature 0: 'ID_PATCH' is None; expected a whole number"),
    "a path": (dict(ID_PATCH="../../etc/passwd"), "'ID_PATCH' is '../../etc/passwd'; expected a whole number"),
    "twice": (dict(ID_PATCH=10001), "lists patch 10001 twice"),
    "no fold": (dict(Fold="a"), "'Fold' is 'a'; expected a whole number"),
    "fold": (dict(Fold=6), "patch 10000: 'Fold' is 6; expected 1 to 5"),
    "no days": ({"dates-S2": {}}, "patch 10000: no 'dates-S2'"),
    "list": ({"dates-S2": [20180924]}, r"'dates-S2' is \[20180924\]; expected days numbered from 0"),
    "text": ({"dates-S1A": {"0": "monday"}}, "'dates-S1A' is .*monday"),
    "gap": ({"dates-S2": {"0": 20180924, "2": 20180925}}, "'dates-S2' numbers its days"),
}


@pytest.mark.parametrize("case", SPOILED_FIELDS)
def test_spoiled_metadata(archive, case):
    fields, message = SPOILED_FIELDS[case]
    edit(archive, lambda f: f["properties"].update(fields))
    with pytest.raises(ValueError, match=rf"metadata\.geojson.*{message}"):
        PastisReader(archive)


def test_a_feature_without_properties(archive):
    edit(archive, lambda f: f.pop("properties"))
    with pytest.raises(ValueError, match=r"metadata\.geojson, feature 0: no properties"):
        PastisReader(archive)


def test_a_day_that_is_none(archive):
    set_days(archive, dates_S2=numbered([20181301, *S2_DAYS[1:]]))
    with pytest.raises(ValueError, match=r"metadata\.geojson, patch 10000, 'dates-S2': '20181301' is not a day"):
        example_of(archive)


SPOILED_ARRAYS = {
    "dates": (S2, np.zeros((3, 10, 128, 128), np.int16), r"whole numbers of shape \(4, 10, 128, 128\), a date for"),
    "bands": (S2, np.zeros((4, 12, 128, 128), np.int16), r"is int16 \(4, 12, 128, 128\)"),
    "dtype": (S2, np.zeros((4, 10, 128, 128), np.float32), "is float32"),
    "too large": (S2, np.full((4, 10, 128, 128), 40000, np.uint16), "runs from 40000 to 40000; expected reflectances"),
    "nothing": (S2, np.full((4, 10, 128, 128), -10000, np.int16), "holds no data on any date"),
    "radar": (S1, np.zeros((2, 2, 128, 128), np.float16), r"expected floats of shape \(2, 3, 128, 128\)"),
    "class": (TARGET, np.full((3, 128, 128), 20, np.uint8), "holds classes 20 to 20; expected .* classes 0 to 19"),
    "no class": (TARGET, np.zeros((0, 128, 128), np.uint8), "holds no channel"),
    "size": (TARGET, np.zeros((3, 64, 64), np.uint8), r"is uint8 \(3, 64, 64\)"),
}


@pytest.mark.parametrize("case", SPOILED_ARRAYS)
def test_spoiled_arrays(archive, case):
    name, array, message = SPOILED_ARRAYS[case]
    set_days(archive, dates_S2=numbered(S2_DAYS), dates_S1A=numbered((20180901, 20190901)))
    replace(archive / S2, series(4, 10, np.int16))
    replace(archive / S1, series(2, 3, np.float16))
    replace(archive / name, array)
    with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
        example_of(archive)


@pytest.mark.parametrize("name", [S2, S1, TARGET, IMAGE])
def test_truncated_files(archive, name):
    content = (archive / name).read_bytes()
    (archive / name).unlink()
    (archive / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{name} cannot be read .*download or copy it again"):
        example_of(archive)


def test_a_misshapen_image(archive):
    (archive / IMAGE).unlink()
    write_raster(archive / IMAGE, np.zeros((4, 1280, 1280), np.uint8))
    with pytest.raises(ValueError, match=rf"{IMAGE} is uint8 \(4, 1280, 1280\); expected a GeoTIFF of 3 bands"):
        example_of(archive)


def test_a_file_that_vanishes(archive):
    reader = PastisReader(archive)
    (archive / S2).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{S2}; expected whole numbers"):
        reader.example("train", KEY)


def test_the_real_metadata(real_data):
    patches = read_patches(real_data / "pastis" / "PASTIS" / METADATA)
    assert [*patches] == [*map(str, [*range(10000, 10008), 10009])]
    assert [patch.fold for patch in patches.values()] == [1, 2, 4, 5, 4, 3, 3, 1, 3]
    patch = patches["10000"]
    days = [datetime.datetime.strptime(str(day), "%Y%m%d").date() for day in patch.days["s2"]]
    fields = day_fields("s2", days)
    since = days_since(CARD.date_origin, fields["s2_dates"], fields["s2_years"])
    assert len(since) == 43 and (since[0], since[-1]) == (23, 413) and (np.diff(since) > 0).all()
    assert patch.crs == "EPSG:2154" and "s1" not in patch.days
    a, b, c, d, e, f = patch.transform
    assert np.hypot(a, d) == pytest.approx(10, rel=2e-3) and np.hypot(b, e) == pytest.approx(10, rel=2e-3)
    assert (c, f) == pytest.approx((391504.74, 6956805.92), abs=0.01) and a > 9 and e < -9


def test_a_patch_with_the_real_metadata(real_data, tmp_path):
    shutil.copy(real_data / "pastis" / "PASTIS" / METADATA, tmp_path)
    for name, array in ((S2, np.ones((43, 10, 128, 128), np.int16)), (TARGET, np.zeros((3, 128, 128), np.uint8))):
        (tmp_path / name).parent.mkdir()
        np.save(tmp_path / name, array)
    reader = PastisReader(tmp_path)
    example = reader.example("train", KEY)
    check_example(CARD, KEY, example)
    assert "1 of 9 listed patches, 1 without s1" in reader.summary and example["s2_years"][[0, -1]].tolist() == [
        2018,
        2019,
    ]

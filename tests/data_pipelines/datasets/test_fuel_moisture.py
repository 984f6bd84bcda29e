"""Fuel moisture and its land cover: an archive written here in the published layout, and the real one."""

import datetime
import json
import pickle

import numpy as np
import pytest

from anysat_jax.sensors import get_sensor
from data_pipelines import load
from data_pipelines.datasets.fuel_moisture import LAND_COVER, MISSING, SERIES, SITES, VAL_SHARE, middles_of_months
from data_pipelines.fakes.fuel_moisture import write_archive
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepared import PreparedDataset
from data_pipelines.reader import hashed_split
from data_pipelines.registry import get_entry
from tests.data_pipelines.fake_reader import data_config, examples_of

BOTH = MOISTURE, COVER = get_entry("fuel_moisture"), get_entry("fuel_moisture_land_cover")
TILES = {"train": 5, "val": 2, "test": 3}
COLUMNS = ("VV", "VH", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuel_moisture")
    write_archive(root, TILES)
    return root


def change(archive, name, edit):
    """Writes an array anew; `edit` gives another one or changes it."""
    path = archive / "npy" / f"{name}.npy"
    array = np.load(path)
    edited = edit(array)
    path.unlink()
    np.save(path, array if edited is None else edited)


@pytest.mark.parametrize("entry", BOTH)
def test_every_pixel_is_as_the_card_says(written, entry):
    check_card(entry.card)
    reader = pickle.loads(pickle.dumps(entry.open_reader(written)))
    assert {split: len(reader.keys(split)) for split in reader.splits()} == TILES
    for split in reader.splits():
        for key, example in zip(reader.keys(split), examples_of(reader, split), strict=True):
            check_example(entry.card, key, example)


def test_written_values_come_back(archive):
    series = np.arange(13 * 3).reshape(3, 13) + 0.5
    series[:, :2] -= 30  # decibels
    change(archive, SERIES, lambda array: array[2, :, :13].__setitem__(slice(None), series))
    change(archive, "target", lambda array: array.__setitem__(2, 87.25))
    change(archive, "dynamic_world", lambda array: array.__setitem__(2, (1, 2, 6)))
    examples = [entry.open_reader(archive).example("train", "00002") for entry in BOTH]
    for example in examples:
        for number, band in enumerate(get_sensor("s2").bands):
            np.testing.assert_array_equal(example["s2"][:, number, 0, 0], series[:, COLUMNS.index(band)])
        np.testing.assert_array_equal(example["s1"][:, :2, 0, 0], series[:, :2])
        np.testing.assert_array_equal(example["s1"][:, 2, 0, 0], series[:, 0] - series[:, 1])
        assert "crs" not in example and "transform" not in example
    assert [example["tile"] for example in examples] == [np.float32(87.25), 6]


def test_a_series_over_new_year_is_in_time_order():
    days = ("2017-11-15", "2017-12-15", "2018-01-15")
    assert middles_of_months([10, 11, 0]) == [datetime.date.fromisoformat(day) for day in days]
    assert middles_of_months([3, 4, 4]) == [datetime.date(2017, month, 15) for month in (4, 5, 5)]


def test_dates_are_days_of_the_year(archive):
    change(archive, "month", lambda array: array.__setitem__(0, (10, 11, 0)))
    example = MOISTURE.open_reader(archive).example("train", "00000")
    for sensor in ("s2", "s1"):
        assert example[f"{sensor}_dates"].tolist() == [318, 348, 14]
        assert example[f"{sensor}_years"].tolist() == [2017, 2017, 2018]


def test_pixels_without_a_label_are_left_out_and_counted(written):
    for entry in BOTH:
        assert entry.open_reader(written).summary.endswith("(train 5, val 2, test 3); 3 pixels have no label")


def test_the_two_labels_are_missing_on_their_own(archive):
    change(archive, "dynamic_world", lambda array: array.__setitem__((0, -1), MISSING))
    change(archive, "dynamic_world", lambda array: array.__setitem__((1, 0), MISSING))  # not the last month
    assert [len(entry.open_reader(archive).keys("train")) for entry in BOTH] == [5, 4]


def test_validation_is_drawn_by_site_from_training(archive):
    sites = [f"site {number // 2}" for number in range(13)]
    change(archive, "site", lambda array: np.asarray(sites))
    (archive / SITES).unlink()  # a link
    (archive / SITES).write_text(json.dumps(dict.fromkeys(sites, "train") | {"site 1": "test"}))
    reader = MOISTURE.open_reader(archive)
    assert {sites[int(key)] for key in reader.keys("test")} == {"site 1"}
    for split in ("train", "val"):
        assert all(hashed_split(sites[int(key)], VAL_SHARE) == split for key in reader.keys(split))


def test_the_fingerprint_follows_the_values(archive):
    before = MOISTURE.open_reader(archive).fingerprint
    assert MOISTURE.open_reader(archive).fingerprint == before
    change(archive, SERIES, lambda array: array.__setitem__((0, 0, 4), 1234))
    assert MOISTURE.open_reader(archive).fingerprint != before


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("month", lambda array: array + 1, r"month.npy holds 12; expected whole numbers from 0 to 11"),
        ("dynamic_world", lambda array: array + 3, r"dynamic_world.npy holds 1\d; expected whole numbers from 0 to 9"),
        ("target", lambda array: array[:-1], r"target.npy is float64 \(12,\); expected a row for each pixel, \(13,\)"),
        (SERIES, lambda array: array[..., :17], r"is float64 \(13, 3, 17\); expected .* \('\?', '\?', 18\)"),
        (SERIES, lambda array: array.__setitem__((3, 1, 5), np.nan), "holds NaN or infinite values; expected none"),
        ("site", lambda array: array.__setitem__(0, "Nowhere"), "the site 'Nowhere' has the split None; expected"),
        ("site", lambda array: array.astype(object), "site.npy cannot be read"),
    ],
)
def test_what_is_not_as_published_is_refused(archive, name, edit, message):
    change(archive, name, edit)
    with pytest.raises(ValueError, match=message):
        MOISTURE.open_reader(archive)


def test_a_missing_file_is_named(archive):
    (archive / "npy" / "target.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"target.npy; expected a row for each pixel"):
        MOISTURE.open_reader(archive)


@pytest.mark.parametrize("entry", BOTH)
def test_it_is_found_in_the_folder_above(archive, tmp_path, entry):
    archive.rename(tmp_path / "fuel_moisture")
    assert entry.holds_raw(tmp_path) and entry.holds_raw(tmp_path / "fuel_moisture")
    assert not entry.holds_raw(tmp_path / "fuel_moisture" / "npy")
    assert entry.open_reader(tmp_path).tiles == entry.open_reader(tmp_path / "fuel_moisture").tiles


def test_real_pixels(real_data, tmp_path):
    root = real_data / "presto_eval"
    moisture, cover = (entry.open_reader(root) for entry in BOTH)
    for reader in (moisture, cover):
        assert {split: len(reader.keys(split)) for split in reader.splits()} == {"train": 1211, "val": 367, "test": 735}
        for split in reader.splits():
            for key in reader.keys(split)[::50]:
                check_example(reader.card, key, reader.example(split, key))
    counts = {s: np.bincount([e["tile"] for e in examples_of(cover, s)], minlength=9) for s in cover.splits()}
    assert counts["test"].tolist() == [61, 228, 45, 0, 64, 297, 8, 31, 1]
    held_out = (counts["val"] + counts["test"]) > 0
    assert (counts["train"] > 0)[held_out].all() and counts["train"].argmax() == LAND_COVER.index("shrub and scrub")
    labels = np.asarray([e["tile"] for split in moisture.splits() for e in examples_of(moisture, split)])
    assert 31 < labels.min() < 32 and 319 < labels.max() < 320


def test_no_site_of_the_real_data_is_in_two_splits(real_data):
    reader = MOISTURE.open_reader(real_data / "presto_eval" / "fuel_moisture")
    names = np.load(real_data / "presto_eval" / "fuel_moisture" / "npy" / "site.npy")
    sites = {split: set(names[[int(key) for key in reader.keys(split)]].tolist()) for split in reader.splits()}
    assert {split: len(those) for split, those in sites.items()} == {"train": 78, "val": 22, "test": 50}
    assert not (sites["train"] & sites["val"] or sites["train"] & sites["test"] or sites["val"] & sites["test"])


def test_months_of_the_real_data_count_from_january(real_data):
    """The archive's temperatures, which are not read otherwise, are lowest in January and highest in July."""
    folder = real_data / "presto_eval" / "fuel_moisture" / "npy"
    month, kelvin = np.load(folder / "month.npy"), np.load(folder / f"{SERIES}.npy")[..., 13]
    means = {number: kelvin[month == number].mean() for number in np.unique(month).tolist()}
    assert max(means, key=means.__getitem__) == 6 and min(means, key=means.__getitem__) in (0, 2)


@pytest.mark.parametrize("entry", BOTH)
def test_the_real_data_make_batches(real_data, tmp_path, entry):
    name = entry.card.name
    folder = prepare_dataset(entry.open_reader(real_data / "presto_eval"), tmp_path, "1.0.0")
    prepared = PreparedDataset.open(entry.card, folder)
    assert prepared.statistics["s2"].longest_series == 3
    data = data_config(tmp_path)
    data.datasets = {name: dict(batch_size=64)}
    batch = next(load.open_datasets(data)[name].evaluation_batches("val", patch_size=10, batch_size=367))
    assert batch.observations["s2"].values.shape == (367, 3, 10, 1, 1) and batch.labels["valid"].all()
    assert abs(batch.observations["s2"].values).max() < 20 and np.isfinite(batch.observations["s1"].values).all()
    dtype = np.float32 if entry is MOISTURE else np.int32
    assert batch.labels["tile"].dtype == dtype and batch.labels["tile"].shape == (367,)

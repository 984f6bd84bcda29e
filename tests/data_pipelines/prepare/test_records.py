"""Schema and checks of examples and cards; records decoded directly and by TFDS."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.card import example_spec
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import (
    RecordParser,
    Serialiser,
    check_card,
    check_example,
    complete_example,
)
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines import coordinate_tiles
from tests.data_pipelines.coordinate_tiles import make_tile
from tests.data_pipelines.fake_reader import CARD, FakeReader, make_example

FULL = dataclasses.replace(CARD, clouds=("s2",), optional=("spot", "s2"), georeferenced="spot")


def full_example():
    example = make_example("train", 0)
    cloud = np.zeros(example["s2_mask"].shape, np.uint8)
    return example | {"s2_cloud": cloud, "crs": "EPSG:25832", "transform": np.arange(6.0)}


def test_the_spec_follows_the_card():
    spec = example_spec(FULL)
    assert spec["spot"] == ((3, 44, 44), np.uint8) and spec["s2"] == ((None, 10, 4, 4), np.uint16)
    assert spec["s2_mask"][0] == (None, 1, 4, 4) and spec["s1-asc_mask"][0] == (None, 2, 4, 4)
    assert spec["s2_cloud"] == ((None, 1, 4, 4), np.uint8) and spec["s2_present"] == ((), np.bool_)
    assert spec["dense"] == ((4, 4), np.int8) and spec["transform"] == ((6,), np.float64)
    assert spec["modis"][0] == (None, 7, 1, 1) and "spot_dates" not in spec


def test_a_whole_example_passes():
    check_example(FULL, "a", full_example())
    check_example(CARD, "a", make_example("val", 2))


def test_a_sensor_that_is_lacking_is_filled_in():
    example = {key: value for key, value in full_example().items() if not key.startswith(("spot", "s2"))}
    check_example(FULL, "a", example)
    complete = complete_example(FULL, example)
    assert not complete["spot_present"] and not complete["s2_present"]
    assert complete["spot"].shape == (3, 44, 44) and not complete["spot"].any()
    assert complete["s2"].shape == (0, 10, 4, 4) and complete["s2_years"].shape == (0,)
    check_example(FULL, "a", complete)


def change(key, value):
    return lambda example: example | {key: value}


def put(key, index, value):
    def edit(example):
        array = np.array(example[key])
        array[index] = value
        return example | {key: array}

    return edit


def drop(key):
    return lambda example: {k: v for k, v in example.items() if k != key}


WRONG = {
    "missing": (drop("s1-asc_years"), r"lacks \['s1-asc_years'\]"),
    "half a sensor": (drop("s2_mask"), r"lacks \['s2_mask'\]"),
    "besides": (change("surprise", 1), r"has \['surprise'\] besides"),
    "bands": (change("spot", np.zeros((4, 44, 44), np.uint8)), r"'spot' is uint8 \(4, 44, 44\), expected uint8 \(3"),
    "dtype": (change("spot", np.zeros((3, 44, 44), np.uint16)), "'spot' is uint16"),
    "clouds": (put("s2_cloud", 0, 101), "'s2_cloud' holds 101, expected percent"),
    "NaN": (put("s1-asc", (1, 0, 0, 0), np.nan), "1 valid values of 's1-asc' are NaN"),
    "early": (put("modis_dates", 0, -1), "'modis_dates' holds -1; days count from 0"),
    "late": (put("modis_dates", 4, 366), "'modis_dates' holds 366"),
    "order": (put("modis_years", 0, 2021), "the dates of 'modis' are not in time order"),
    "lengths": (change("modis_years", np.zeros(4, np.int16)), "'modis' has 5 dates and .*'modis_years': 4"),
    "class": (change("tile", np.int32(3)), "'tile' is 3, expected a class below 3"),
    "dense": (put("dense", (0, 0), 8), r"'dense' holds \[8\], expected classes below 8 or -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_broken_promises_are_refused_by_name(case):
    edit, message = WRONG[case]
    with pytest.raises(ValueError, match=rf"dataset 'fake_tiles', tile 'x': .*{message}"):
        check_example(FULL, "x", edit(full_example()))


def test_a_tile_without_any_sensor_is_refused():
    card = dataclasses.replace(CARD, sensors=("spot",), arrays={"spot": "uint8"}, masks={}, optional=("spot",))
    example = {key: value for key, value in make_example("train", 0).items() if key in ("id", "tile", "dense")}
    with pytest.raises(ValueError, match=r"has none of its sensors \('spot',\)"):
        check_example(card, "x", example)


def test_regressions_are_numbers():
    card = dataclasses.replace(CARD, tile_label="regression", tile_classes=(), label_unit="t/ha")
    check_example(card, "x", make_example("train", 0) | {"tile": np.float32(1.5)})
    with pytest.raises(ValueError, match="'tile' is nan, expected a finite number"):
        check_example(card, "x", make_example("train", 0) | {"tile": np.float32(np.nan)})
    card = dataclasses.replace(CARD, dense_label="regression", dense_classes=(), dense_colours=(), label_unit="t/ha")
    dense = np.full((4, 4), np.nan, np.float32)
    check_example(card, "x", make_example("train", 0) | {"dense": dense})
    for wrong in (np.inf, 1e20):
        with pytest.raises(ValueError, match=r"'dense' holds values beyond 1e\+19"):
            check_example(card, "x", make_example("train", 0) | {"dense": np.full((4, 4), wrong, np.float32)})


CARDS = {
    "margin": (dict(sides={"spot": 60}), "'spot' is stored with a margin of 20 m; it must stay below a cell"),
    "smaller": (dict(sides={"spot": 30}), "margin of -10 m"),
    "patches": (dict(patch_sizes=(30,)), "tile of 40 m is not a whole number of patches of 30 m"),
    "sub-patches": (dict(patch_sizes=(5,)), "not a whole number of 'spot' sub-patches"),
    "strangers": (dict(clouds=("s3",)), r"clouds names \['s3'\], which are not among its sensors"),
    "colours": (dict(dense_colours=("#000000",)), "1 colours for 8 dense classes"),
    "no colours": (dict(dense_colours=()), "class maps need them"),
    "unit": (dict(label_unit="t/ha"), "label_unit is 't/ha'; regressions have one"),
}


@pytest.mark.parametrize("case", CARDS)
def test_cards_that_contradict_themselves_are_refused(case):
    fields, message = CARDS[case]
    check_card(FULL)
    with pytest.raises(ValueError, match=f"card of dataset 'fake_tiles': .*{message}|{message}"):
        check_card(dataclasses.replace(FULL, **fields))


@pytest.mark.parametrize(
    ("card", "example"),
    [
        (CARD, make_example("train", 1)),
        (coordinate_tiles.CARD, make_tile()),
        (coordinate_tiles.CARD, make_tile(alos_dates=0)),
    ],
)
def test_what_was_written_comes_back(card, example):
    complete = complete_example(card, example) | {
        key: value for key, value in example.items() if key.endswith("_present")
    }
    parsed = RecordParser(card)(Serialiser(card)(complete))
    assert set(parsed) == set(complete) and parsed["id"] == complete["id"].encode()
    for key in set(complete) - {"id"}:
        assert parsed[key].dtype == np.asarray(complete[key]).dtype
        np.testing.assert_array_equal(parsed[key], complete[key])


def test_tfds_reads_the_same(tmp_path):
    folder = prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    source = tfds.builder_from_directory(folder).as_data_source(split="train")
    records = PreparedDataset.open(CARD, folder).records("train")
    assert len(source) == len(records) == 7
    for index in range(7):
        for key, value in source[index].items():
            np.testing.assert_array_equal(records[index][key], value)


@pytest.mark.parametrize("spoil", [lambda r: r[:-7], lambda r: b"nothing of the kind", lambda r: b""])
def test_another_record_is_refused(spoil):
    record = Serialiser(CARD)(make_example("train", 1))
    with pytest.raises(ValueError, match="not an example of the dataset"):
        RecordParser(CARD)(spoil(record))


def test_a_record_of_another_card_is_refused():
    record = Serialiser(CARD)(make_example("train", 1))
    with pytest.raises(ValueError, match="not an example of the dataset"):
        RecordParser(coordinate_tiles.CARD)(record)

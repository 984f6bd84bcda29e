"""The sample of Sen1Floods11 in windows: an archive written here in its layout, and the real chip."""

import collections
import pickle

import numpy as np
import pytest

from data_pipelines import load
from data_pipelines.datasets import sen1floods11
from data_pipelines.datasets.sen1floods11 import CHIP_CARD, WINDOW, ChipReader, cut_window, holds_sample, split_of
from data_pipelines.fakes.common import write_raster
from data_pipelines.fakes.sen1floods11 import write_sample
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from tests.data_pipelines.fake_reader import data_config, examples_of

COUNTS = {"train": 24, "val": 8, "test": 32}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sen1floods11_chip")
    write_sample(root, {"train": 3, "val": 1, "test": 1})
    return root


def chip_of(root):
    """The whole chip, put together again from its windows: each array's, and how often each pixel was in one."""
    reader = ChipReader(root)
    whole, seen = collections.defaultdict(lambda: np.zeros((512, 512))), np.zeros((512, 512), int)
    for split in reader.splits():
        for key, example in zip(reader.keys(split), examples_of(reader, split), strict=True):
            rows, columns = (slice(int(n) * WINDOW, (int(n) + 1) * WINDOW) for n in key.split("/")[1:])
            seen[rows, columns] += 1
            whole["dense"][rows, columns] = example["dense"]
            whole["split"][rows, columns] = CHIP_CARD.splits.index(split)
            for sensor in CHIP_CARD.sensors:
                if sensor in example:
                    whole[sensor][rows, columns] = np.nan_to_num(example[sensor][0, 0])
    return whole, seen


def coordinates(transform, column, row):
    a, b, c, d, e, f = transform
    return a * column + b * row + c, d * column + e * row + f


def test_every_window_is_as_the_card_says(written):
    check_card(CHIP_CARD)
    reader = pickle.loads(pickle.dumps(ChipReader(written)))
    assert {split: len(reader.keys(split)) for split in reader.splits()} == COUNTS
    for split in reader.splits():
        for key, example in zip(reader.keys(split), examples_of(reader, split), strict=True):
            assert example["id"] == key
            check_example(CHIP_CARD, key, example)


def test_a_window_that_a_sensor_has_not_seen_lacks_it(written):
    """The first made-up chip has no radar in its left quarter: two columns of windows."""
    reader = ChipReader(written)
    lacking = [key for key in reader.keys("train") if "s1" not in reader.example("train", key)]
    assert lacking == [key for key in reader.keys("train") if int(key[-1]) < 2]
    assert not {key for key in reader.example("train", lacking[0]) if key.startswith("s1")}


def test_the_windows_make_up_the_chip(written):
    whole, seen = chip_of(written)
    chip = sen1floods11.Sen1FloodsReader(written).example("train", "Ghana_0")
    assert (seen == 1).all()
    np.testing.assert_array_equal(whole["dense"], chip["dense"])
    np.testing.assert_array_equal(whole["s2"], chip["s2"][0, 0])
    np.testing.assert_array_equal(whole["s1"], np.nan_to_num(chip["s1"][0, 0]))


def test_splits_are_columns_of_the_chip(written):
    split = chip_of(written)[0]["split"]
    assert (split == split[:1]).all()
    names = np.asarray(CHIP_CARD.splits)[split[0].astype(int)]
    assert [np.flatnonzero(names == name)[[0, -1]].tolist() for name in CHIP_CARD.splits] == [
        [0, 191],
        [192, 255],
        [256, 511],
    ]
    assert [split_of(column) for column in range(8)] == ["train"] * 3 + ["val"] + ["test"] * 4


def test_a_window_knows_its_place(written):
    chip = sen1floods11.Sen1FloodsReader(written).example("train", "Ghana_0")
    window = cut_window(chip, 128, 320)
    for column, row in ((0, 0), (64, 0), (10.5, 3.5)):
        there = coordinates(chip["transform"], 320 + column, 128 + row)
        assert coordinates(window["transform"], column, row) == pytest.approx(there, abs=1e-12)


def test_a_window_that_nothing_has_seen_is_named(archive):
    path = archive / "sample" / "S2" / "Ghana_0_S2Hand.tif"
    path.unlink()
    optical = np.full((13, 512, 512), 1000, np.int16)
    optical[:, :WINDOW, :WINDOW] = 0
    write_raster(path, optical, nodata=0)
    with pytest.raises(ValueError, match="no sensor has seen the window Ghana_0/0/0 of the sample; leave it out"):
        ChipReader(archive).example("train", "Ghana_0/0/0")


def test_it_is_found_in_the_folder_above(archive, tmp_path):
    archive.rename(tmp_path / "sen1floods11")
    assert (
        holds_sample(tmp_path) and holds_sample(tmp_path / "sen1floods11") and not holds_sample(tmp_path / "elsewhere")
    )
    assert ChipReader(tmp_path).tiles == ChipReader(tmp_path / "sen1floods11").tiles


def test_the_real_chip(real_data):
    reader, chip = ChipReader(real_data), sen1floods11.Sen1FloodsReader(real_data / "sen1floods11")
    assert {split: len(reader.keys(split)) for split in reader.splits()} == COUNTS
    whole, seen = chip_of(real_data)
    example = chip.example("train", "Spain_7370579")
    assert (seen == 1).all()
    np.testing.assert_array_equal(whole["dense"], example["dense"])
    np.testing.assert_array_equal(whole["s1"], example["s1"][0, 0])
    test = whole["dense"][:, 256:]
    assert np.isin(test[test >= 0], (0, 1)).all()
    assert round((test[test >= 0] == 0).mean(), 3) == 0.637  # what always answering "not water" gets right


def test_the_real_chip_makes_batches(real_data, tmp_path):
    prepare_dataset(ChipReader(real_data), tmp_path, "1.0.0")
    data = data_config(tmp_path)
    data.datasets = {CHIP_CARD.name: dict(batch_size=8)}
    batches = list(load.open_datasets(data)[CHIP_CARD.name].evaluation_batches("test", patch_size=80, batch_size=16))
    assert len(batches) == 2 and batches[0].grid == (8, 8) and batches[0].labels["dense"].shape == (16, 64, 64)
    assert next(load.train_iterator(load.open_datasets(data), seed=0)).patch_size in CHIP_CARD.patch_sizes

"""The made-up TreeSatAI-TS archive."""

import numpy as np
import pytest

from data_pipelines.datasets.treesatai_ts import CARD, LABELS, TreeSatReader, holds_raw
from data_pipelines.fakes.treesatai_ts import write_archive
from data_pipelines.prepare.records import check_card, check_example
from tests.data_pipelines.fake_reader import examples_of

TILES = {"train": 4, "val": 2, "test": 1}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("treesat")
    write_archive(folder, TILES)
    return folder


def test_it_keeps_the_card_s_promise(archive):
    check_card(CARD)
    reader = TreeSatReader(archive)
    assert holds_raw(archive) and "7 of 7 listed tiles" in reader.summary
    assert {split: len(reader.keys(split)) for split in reader.splits()} == TILES
    for split in reader.splits():
        for key, example in zip(reader.keys(split), examples_of(reader, split), strict=True):
            check_example(CARD, key, example)
            assert example["crs"] == "EPSG:32632" and example["s2_cloud"].any() and example["tile"].any()


def test_tiles_differ(archive):
    first, second = examples_of(TreeSatReader(archive), "train")[:2]
    assert not np.array_equal(first["aerial"], second["aerial"])


def test_the_same_seed_writes_the_same_archive(archive, tmp_path):
    write_archive(tmp_path / "same", TILES)
    write_archive(tmp_path / "other", TILES, seed=1)
    text, same, other = ((folder / LABELS).read_text() for folder in (archive, tmp_path / "same", tmp_path / "other"))
    assert text == same != other
    for old, new in zip(
        examples_of(TreeSatReader(archive), "val"), examples_of(TreeSatReader(tmp_path / "same"), "val")
    ):
        np.testing.assert_array_equal(old["s2"], new["s2"])

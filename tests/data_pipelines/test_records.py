"""Records decoded directly and by TFDS."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import RecordError, RecordParser, complete_example
from data_pipelines.prepare.shards import Serialiser
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines import coordinate_tiles, fake_reader
from tests.data_pipelines.coordinate_tiles import make_tile
from tests.data_pipelines.fake_reader import FakeReader, make_example


@pytest.mark.parametrize(
    ("card", "example"),
    [
        (fake_reader.CARD, make_example("train", 1)),
        (coordinate_tiles.CARD, make_tile()),
        (coordinate_tiles.CARD, make_tile(alos_dates=0)),
    ],
)
def test_what_was_written_comes_back(card, example):
    complete = complete_example(card, example) | {
        key: value for key, value in example.items() if key.endswith("_present")
    }
    parsed = RecordParser.of(card)(Serialiser(card)(complete))
    assert set(parsed) == set(complete) and parsed["id"] == complete["id"].encode()
    for key in set(complete) - {"id"}:
        assert parsed[key].dtype == np.asarray(complete[key]).dtype
        np.testing.assert_array_equal(parsed[key], complete[key])


def test_tfds_reads_the_same(tmp_path):
    folder = prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    source = tfds.builder_from_directory(folder).as_data_source(split="train")
    records = PreparedDataset.open(fake_reader.CARD, folder).records("train")
    assert len(source) == len(records) == 7
    for index in range(7):
        for key, value in source[index].items():
            np.testing.assert_array_equal(records[index][key], value)


@pytest.mark.parametrize("spoil", [lambda r: r[:-7], lambda r: b"nothing of the kind", lambda r: b""])
def test_another_record_is_refused(spoil):
    record = Serialiser(fake_reader.CARD)(make_example("train", 1))
    with pytest.raises(RecordError, match="no example of the dataset"):
        RecordParser.of(fake_reader.CARD)(spoil(record))


def test_a_record_of_another_card_is_refused():
    record = Serialiser(fake_reader.CARD)(make_example("train", 1))
    with pytest.raises(RecordError, match="no example of the dataset"):
        RecordParser.of(coordinate_tiles.CARD)(record)

"""The benchmark of input: its archives pass the checks that readers have, with noise on them."""

import numpy as np
import pytest

from benchmarks import data
from data_pipelines.prepare.shards import read_tile
from data_pipelines.registry import get_entry


@pytest.mark.parametrize("name", data.CASES)
def test_tiles_of_an_archive_are_read(name, tmp_path):
    case = data.CASES[name]
    data.make_archive(tmp_path, case, 1, "deflate")
    reader = get_entry(case.dataset).open_reader(tmp_path)
    (key,) = reader.keys("train")
    tile = read_tile(reader, "train", key)
    for sensor, dates in case.dates.items():
        assert len(tile[sensor]) == dates
    assert any(np.unique(value).size > 100 for value in tile.values() if isinstance(value, np.ndarray))

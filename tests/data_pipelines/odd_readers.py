"""Fake readers that fail, die or lack sensors; in a file of their own, for worker processes to import."""

import dataclasses
import multiprocessing
import os
import pathlib
import signal
import time

import numpy as np

from tests.data_pipelines.fake_reader import CARD, FakeReader, make_example

RICH_CARD = dataclasses.replace(
    CARD,
    name="rich_tiles",
    clouds=("s2",),
    optional=("s1-asc", "spot"),
    tile_label="multi_label",
    dense_label="regression",
    dense_classes=(),
    dense_colours=(),
    label_unit="t/ha",
)


class RichReader(FakeReader):
    """Clouds, sensors that are missing now and then, a multi-label and a map of numbers with gaps."""

    card = RICH_CARD

    def example(self, split, key):
        index = int(key.removeprefix(split))
        example = super().example(split, key)
        example["s2_cloud"] = np.full((len(example["s2"]), 1, *example["s2"].shape[2:]), 80, np.uint8)
        example["s2_cloud"][..., 0] = 10
        example["tile"] = np.array([1, index % 2, 0], np.uint8)
        dense = np.arange(16, dtype=np.float32).reshape(4, 4) + index
        dense[0, 0] = np.nan
        example["dense"] = dense
        missing = {0: "s1-asc", 1: "spot"}.get(index % 3)
        return {key: value for key, value in example.items() if missing is None or not key.startswith(missing)}


class DiesOnce(FakeReader):
    """Kills its process at one tile, the first time."""

    def __init__(self, marker, **options):
        super().__init__(**options)
        self.marker = pathlib.Path(marker)

    def example(self, split, key):
        if key == "train5" and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().example(split, key)


class NeverEnds(FakeReader):
    """Writes the process number into a folder and waits, in worker processes."""

    def __init__(self, folder):
        super().__init__()
        self.folder = pathlib.Path(folder)

    def example(self, split, key):
        if multiprocessing.parent_process():
            (self.folder / str(os.getpid())).touch()
            time.sleep(600)
        return super().example(split, key)


class StrangeError(Exception):
    """Cannot be unpickled, as its constructor takes other arguments than it keeps."""

    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")


class Fails(FakeReader):
    """Raises an error, given by its type and arguments, at one tile."""

    def __init__(self, kind, *arguments, at=("train2",), **options):
        super().__init__(**options)
        self.error, self.at = (kind, arguments), at

    def example(self, split, key):
        if key in self.at:
            raise self.error[0](*self.error[1])
        return super().example(split, key)


def contents(folder):
    """Returns the bytes of each file of a folder."""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def assert_holds(records, split, indices):
    """Checks that records are these tiles of the FakeReader, in this order."""
    assert len(records) == len(indices)
    for position, index in enumerate(indices):
        stored, expected = records[position], make_example(split, index)
        assert stored.pop("id").decode() == expected.pop("id")
        assert set(stored) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(stored[key], value)
            assert np.asarray(value).ndim == 0 or stored[key].dtype == value.dtype

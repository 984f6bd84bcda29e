"""A dataset made by code, with every kind of array that an example may have, and small enough for quick tests."""

import pathlib
import time

import numpy as np
from ml_collections import ConfigDict

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.reader import DatasetEntry

CELLS = 4
MARGIN = 2  # pixels of the image beyond the tile, on each side

CARD = DatasetCard(
    name="fake_tiles",
    title="Fake tiles",
    sensors=("spot", "s2", "s1-asc", "modis"),
    extent=10.0 * CELLS,
    patch_sizes=(10, 20),
    splits=("train", "val"),
    tile_label="class",
    tile_classes=("a", "b", "c"),
    dense_label="segmentation",
    dense_classes=tuple("abcdefgh"),
    dense_colours=("#000000",) * 8,
    arrays={"spot": "uint8", "s2": "uint16", "s1-asc": "float32", "modis": "int16"},
    sides={"spot": 10 * CELLS + 2 * MARGIN},
    masks={"s2": "pixel", "s1-asc": "band"},
)


def make_series(sensor: str, rng: np.random.Generator, num_dates: int) -> dict:
    side, bands = get_sensor(sensor).pixels(CARD.extent), get_sensor(sensor).num_bands
    values = rng.normal(1000.0, 200.0, (num_dates, bands, side, side)).clip(0).astype(CARD.dtype(sensor))
    dates = np.sort(rng.integers(0, 365, num_dates)).astype(np.int32)
    return {sensor: values, f"{sensor}_dates": dates, f"{sensor}_years": np.full(num_dates, 2020, np.int16)}


def make_example(split: str, index: int) -> dict:
    rng = np.random.default_rng((len(split), index))
    side = get_sensor("spot").pixels(CARD.extent) + 2 * MARGIN
    example = {"id": f"{split}{index}", "spot": rng.integers(0, 256, (3, side, side), dtype=np.uint8)}
    example |= make_series("s2", rng, 3 + index % 4)
    example |= make_series("s1-asc", rng, 2 + index % 3)
    example |= make_series("modis", rng, 5)
    example["s2_mask"] = rng.random((3 + index % 4, 1, CELLS, CELLS)) < 0.8
    example["s1-asc_mask"] = np.ones(example["s1-asc"].shape, np.bool_)
    example["s1-asc"][0, 1, 0, 0] = np.nan
    example["s1-asc_mask"][0, 1, 0, 0] = False
    example["tile"] = np.int32(index % 3)
    example["dense"] = rng.integers(-1, 8, (CELLS, CELLS)).astype(np.int8)
    return example


class FakeReader:
    """`sizes` tiles in each split; `edit(split, index, example)` may spoil them, `pause` seconds make it slow."""

    card = CARD

    def __init__(self, sizes=None, edit=None, pause=0.0):
        self.sizes = sizes or {"train": 7, "val": 3}
        self.edit = edit
        self.pause = pause
        self.opened = 0

    def splits(self):
        return tuple(split for split in self.card.splits if self.sizes.get(split))

    def keys(self, split):
        return [f"{split}{index}" for index in range(self.sizes[split])]

    def example(self, split, key):
        self.opened += 1
        index = int(key.removeprefix(split))
        time.sleep(self.pause)
        example = make_example(split, index)
        if self.edit:
            self.edit(split, index, example)
        return example


def examples_of(reader, split):
    """All examples of a split."""
    return [reader.example(split, key) for key in reader.keys(split)]


def fake_entry(**reader) -> DatasetEntry:
    return DatasetEntry(CARD, generate=lambda: FakeReader(**reader))


def data_config(root: pathlib.Path | None, **dataset) -> ConfigDict:
    """A section `data` with the fake dataset alone."""
    section = dict(batch_size=2, weight=1.0, patch_sizes=(10, 20), max_dates=4) | dataset
    return ConfigDict(dict(root=None if root is None else str(root), num_workers=0, datasets={CARD.name: section}))

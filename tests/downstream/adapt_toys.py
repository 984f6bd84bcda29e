"""A small dataset whose labels can be learnt, and configs that adapt the smallest model to it."""

import dataclasses
import pathlib
import struct

import numpy as np
from ml_collections import ConfigDict

from anysat_jax.configs import adaptation, common
from anysat_jax.sensors import get_sensor
from data_pipelines import registry
from data_pipelines.card import DatasetCard
from data_pipelines.reader import DatasetEntry

SIDE = 4  # pixels of 10 m
CARD = DatasetCard(
    name="toy_fields",
    title="Toy fields",
    sensors=("s2",),  # one: programs with two take longer to compile
    extent=10.0 * SIDE,
    patch_sizes=(10, 20),
    splits=("train", "val", "test"),
    tile_label="class",
    tile_classes=("low", "middle", "high"),
    dense_label="segmentation",
    dense_classes=("dark", "bright"),
    dense_colours=("#000000", "#ffffff"),
    arrays={"s2": "uint16"},
    natural_colour={"s2": (2, 1, 0)},
)
WITH_SPOT = dict(  # changes of the card
    sensors=("spot", "s2"),
    arrays={"spot": "uint8", "s2": "uint16"},
    natural_colour={"spot": (0, 1, 2), "s2": (2, 1, 0)},
)
SIZES = {"train": 10, "val": 6, "test": 7}  # no multiples of the batch size


class ToyReader:
    """Tiles whose brightness is their class, and whose bright pixels are of the second dense class."""

    card = CARD

    def __init__(self, sizes=None, card=CARD):
        self.sizes, self.card = sizes or SIZES, card

    def splits(self):
        return tuple(self.sizes)

    def keys(self, split):
        return [f"{split}{index}" for index in range(self.sizes[split])]

    def example(self, split, key):
        index = int(key.removeprefix(split))
        rng = np.random.default_rng((len(split), index))
        dense = rng.integers(0, 2, (SIDE, SIDE))
        level = 600 * (index % 3) + 150 * dense
        dates = np.sort(rng.choice(365, 3 + index % 2, replace=False)).astype(np.int32)
        shape = (len(dates), get_sensor("s2").num_bands, SIDE, SIDE)
        side = get_sensor("spot").pixels(CARD.extent)
        example = {
            "id": key,
            "spot": rng.integers(0, 256, (3, side, side), dtype=np.uint8),
            "s2": (1000 + level + rng.normal(0, 30, shape)).astype(np.uint16),
            "s2_dates": dates,
            "s2_years": np.full(len(dates), 2020, np.int16),
            "dense": np.where(rng.random((SIDE, SIDE)) < 0.1, -1, dense).astype(np.int8),
        }
        if "spot" not in self.card.sensors:
            del example["spot"]
        return example if self.card.tile_label == "none" else example | {"tile": np.int32(index % 3)}


def register_toy(name="toy_fields", **changes) -> None:
    """Makes the dataset known to configs; again, if it is known."""
    card = dataclasses.replace(CARD, name=name, **changes)
    registry._ENTRIES[name] = lambda: DatasetEntry(card, generate=lambda: ToyReader(card=card))


def flip_bit_of_tile(root, split, position, name="toy_fields") -> None:
    """Flips a bit in the record of a prepared tile; a second time, it is whole again."""
    (path,) = root.glob(f"{name}-*/{name}/*/*-{split}.*")
    content = bytearray(path.read_bytes())
    content[content.index(f"{split}{position}".encode()) + 100] ^= 1
    path.write_bytes(content)


def skipping(data, skip=True):
    """The same data, of which tiles that cannot be read are left out, or are not."""
    return dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, skip_corrupt=skip))


def toy_config(root, *, job="finetune", level="tile", name="toy_fields", **changes) -> ConfigDict:
    """The smallest model on one device, two epochs.

    Args:
      root: where the tiles are made, and features are kept.
      **changes: fields of the config's top level.
    """
    config = adaptation.common(job, f"toy_{job}")
    (adaptation.classification if level == "tile" else adaptation.segmentation)(config, "")
    config.optimizer.update(dict(warmup_epochs=0, learning_rate=1e-3))
    config.model.update(dict(preset="tiny", dim=32, depth=1, num_heads=2))
    config.data.root = str(root)
    config.data.datasets[name] = common.dataset(4, (10,), 4)
    config.cache.folder = str(root / "cache")
    config.evaluate.update(dict(batch_size=4, panels=3))
    config.mesh.data = 1
    config.early_stopping = None
    config.update(dict(init="none", epochs=2) | changes)
    return config


def evaluated_at(data, sizes=(10.0,), batch_size=4, mesh=None):
    """Returns opened data with other options of evaluations."""
    options = dataclasses.replace(data.config.evaluate, patch_sizes=sizes, batch_size=batch_size)
    config = dataclasses.replace(data.config, evaluate=options)
    return dataclasses.replace(data, config=config, mesh=mesh or data.mesh)


def save_unpainted(figure, path: pathlib.Path, **options) -> None:
    """Stands for `Figure.savefig`: the first bytes of a PNG, of one pixel."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1, 1))

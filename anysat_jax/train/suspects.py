"""Which samples of a batch may be to blame for values that are not finite."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from anysat_jax.batch import Batch
from anysat_jax.train.feed import Fed
from data_pipelines import load

MOST = 10  # names in a message


def make_blame(config: ConfigDict) -> Callable[[Fed], str]:
    """What is said of the samples of a step: those with such values in what they show, else all of the batch.

    With several processes each one tells of its own part of the batch.
    """

    def blame(fed: Fed) -> str:
        if fed.tiles is None:
            return "the batch does not say which samples it holds"
        bad = bad_rows(fed.batch)
        chosen, what = (fed.tiles[bad], "samples with such values in them") if bad.any() else (fed.tiles, "its samples")
        return f"{what}: {names_of(config, fed.batch.dataset, chosen.tolist())}"

    return blame


def bad_rows(batch: Batch) -> Bool[np.ndarray, "b"]:
    """Rows of this process' part of a batch, on the devices, in which a sensor has a value that is not finite."""
    found: dict[int, bool] = {}
    for observation in batch.observations.values():
        for shard in observation.values.addressable_shards:
            values = np.asarray(shard.data)
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            first = shard.index[0].start or 0
            for row, is_bad in enumerate(bad.tolist(), first):
                found[row] = found.get(row, False) or is_bad
    return np.array([found[row] for row in sorted(found)])


def names_of(config: ConfigDict, dataset: str, tiles: Sequence[int]) -> str:
    """The first few tiles by name, where they can be read, else by their position in the training split."""
    shown = tiles[:MOST]
    try:
        names = load.tile_ids(config.data, dataset, shown)
    except (ValueError, OSError):
        names = [f"tile {tile}" for tile in shown]
    return ", ".join(names) + (f" and {len(tiles) - MOST} more" if len(tiles) > MOST else "")

"""Golden cases as batches of ours, and the published orders of tokens."""

import json
import pathlib

import numpy as np

from anysat_jax.batch import Batch, Observation
from anysat_jax.sensors import CELL_METRES, get_sensor
from anysat_jax.weights.published import PublishedWeights, load_published

PROJECTED_TOLERANCE = 2e-4  # of projector tokens and dense features, relative to the largest value
TOLERANCE = 2e-5  # of everything else
NUM_RELEASE, NUM_PRETRAIN = 14, 6  # cases; the index is checked against them
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiles in half the time


def read_index(folder: pathlib.Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def predictor_heads(index: dict) -> int:
    """Returns the predictor's heads, which no tensor's shape gives: the encoder's unless the index names them."""
    return index.get("predictor_heads", index["heads"])


def read_pretrain_weights(folder: pathlib.Path) -> PublishedWeights:
    """Returns the golden pretraining weights, with as many heads in the predictor as the folder's index says."""
    return load_published(folder / "pretrain.pth", predictor_heads=predictor_heads(read_index(folder)))


def read_case(golden, case: int) -> dict[str, np.ndarray]:
    """The arrays of one case by name, without its number."""
    prefix = f"{case}/"
    return {name.removeprefix(prefix): golden[name] for name in golden.files if name.startswith(prefix)}


def make_batch(case: dict, arrays: dict[str, np.ndarray]) -> Batch:
    """A case's inputs; nothing is masked."""
    observations = {}
    for name in case["sensors"]:
        dates = arrays.get(f"in/{name}_dates")
        observations[name] = Observation(
            arrays[f"in/{name}"].astype(np.float32), dates=None if dates is None else dates.astype(np.int32)
        )
    return Batch(observations, dataset=case.get("dataset", "golden"), patch_size=float(case["patch_size_m"]))


def published_order(sensor: str, patch_size: float) -> np.ndarray:
    """Raster index of each published sub-patch token: theirs run cell by cell (10 m), row by row inside a cell.

    `ours[order]` is in the published order.
    """
    per_side = get_sensor(sensor).subpatches_per_side(patch_size)
    per_cell = max(1, round(CELL_METRES / get_sensor(sensor).subpatch_metres))
    cells = per_side // per_cell
    raster = np.arange(per_side**2).reshape(cells, per_cell, cells, per_cell)
    return raster.swapaxes(1, 2).reshape(-1)


def to_published_map(dense: np.ndarray, sensor: str, patch_size: float) -> np.ndarray:
    """Our dense map (B, h, w, F) scrambled inside each patch as the published one: its tokens laid out as if raster."""
    batch, height, width, features = dense.shape
    side = get_sensor(sensor).subpatches_per_side(patch_size)
    split = dense.reshape(batch, height // side, side, width // side, side, features).swapaxes(2, 3)
    tokens = split.reshape(batch, height // side, width // side, side**2, features)
    tokens = tokens[:, :, :, published_order(sensor, patch_size)]
    return tokens.reshape(split.shape).swapaxes(2, 3).reshape(dense.shape)


def assert_close(ours, golden: np.ndarray, tolerance: float, what: str) -> None:
    """The largest difference, relative to the largest golden value, is within `tolerance`."""
    ours = np.asarray(ours)
    assert ours.shape == golden.shape, f"{what}: shape {ours.shape}, golden {golden.shape}"
    error = np.abs(ours - golden).max() / np.abs(golden).max()
    assert error <= tolerance, f"{what}: relative error {error:.2e} above {tolerance:.0e}"

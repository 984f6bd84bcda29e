"""A small labelled world without a model: features are what the test says they are."""

import numpy as np

from anysat_jax.batch import Batch, fake_batch
from anysat_jax.downstream.features import FrozenFeatures
from data_pipelines.card import DatasetCard

CARD = DatasetCard(
    name="toy",
    title="Toy",
    sensors=("aerial", "s2"),
    extent=40.0,
    patch_sizes=(10, 20),
    splits=("train", "val"),
    tile_label="multi_label",
    tile_classes=("wood", "water", "never"),
    dense_label="segmentation",
    dense_classes=("wood", "water", "town"),
    dense_colours=("#0b3d2e", "#2274a5", "#d7263d"),
    natural_colour={"aerial": (0, 1, 2), "s2": (2, 1, 0)},
)


def toy_batch(batch_size: int = 4, seed: int = 0, valid: int | None = None) -> Batch:
    """Tiles of 4 x 4 pixels of 10 m in two classes, an upper and a lower part, the first pixel unknown."""
    rng = np.random.default_rng(seed)
    batch = fake_batch(CARD.sensors, batch_size=batch_size, extent=CARD.extent, num_dates=3, dataset="toy", seed=seed)
    borders = rng.integers(1, 4, batch_size)
    dense = (np.arange(4)[None, :, None] >= borders[:, None, None]).astype(np.int32) * np.ones((1, 1, 4), np.int32)
    dense[:, 0, 0] = -1
    tile = np.stack([borders > 1, borders < 3, np.zeros(batch_size, bool)], axis=1).astype(np.float32)
    valid = np.arange(batch_size) < (batch_size if valid is None else valid)
    return batch.replace(labels={"tile": tile, "dense": dense, "valid": valid})


def toy_features(params: float, batch: Batch) -> FrozenFeatures:
    """Features that tell the labels where `params` is 1, and nothing where it is 0."""
    rng = np.random.default_rng(int(1000 * abs(batch.observations["s2"].values).sum()))
    tile = params * batch.labels["tile"] @ rng_matrix(3, 8) + 0.1 * rng.standard_normal((batch.batch_size, 8))
    one_hot = batch.labels["dense"][..., None] == np.arange(3)[None, None, None]
    dense = params * one_hot @ rng_matrix(3, 8) + 0.1 * rng.standard_normal((*one_hot.shape[:3], 8))
    fine = np.repeat(np.repeat(dense, 5, axis=1), 5, axis=2)
    return FrozenFeatures(tile.astype(np.float32), {"s2": dense.astype(np.float32), "aerial": fine.astype(np.float32)})


def rng_matrix(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((rows, columns))

"""Whether a batch is what its dataset's card promises."""

import numpy as np

from anysat_jax.batch import Batch, Observation
from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard
from data_pipelines.windows import IGNORE


def check_batch(card: DatasetCard, batch: Batch, extent: float | None = None) -> None:
    """Asserts shapes, dtypes, masks and labels of a batch of samples of `extent` metres (None: whole tiles)."""
    extent = extent or card.extent
    assert batch.dataset == card.name and batch.patch_size in card.patch_sizes
    assert set(batch.observations) == set(card.sensors)
    for name, observation in batch.observations.items():
        _check_observation(card, name, observation, batch.batch_size, extent)
        assert (observation.present is not None) == (name in card.optional or name in card.masks)
    _check_labels(card, batch, extent)


def _check_observation(card: DatasetCard, name: str, observation: Observation, size: int, extent: float) -> None:
    sensor, values = get_sensor(name), observation.values
    axes = (size, observation.dates.shape[1]) if sensor.has_dates else (size,)
    assert values.shape == (*axes, sensor.num_bands, *(sensor.pixels(extent),) * 2) and values.dtype == np.float32
    assert np.isfinite(values).all()
    if sensor.has_dates:
        assert observation.dates.shape == observation.date_mask.shape == axes
        assert observation.dates.dtype == np.int32 and observation.date_mask.dtype == np.bool_
        real = observation.date_mask
        assert (np.diff(real.astype(int), axis=1) <= 0).all(), "padding stands at the end"
        assert not values[~real].any() and not observation.dates[~real].any()
        present = np.ones(size, bool) if observation.present is None else observation.present
        assert (real.any(axis=1) == present).all()
    if name in card.masks:
        channels = sensor.num_bands if card.masks[name] == "band" else 1
        assert observation.pixel_mask.shape == (*axes, channels, *values.shape[-2:])
        assert observation.pixel_mask.dtype == np.bool_
        observed = observation.pixel_mask.any(axis=(-3, -2, -1))
        np.testing.assert_array_equal(observed, observation.date_mask if sensor.has_dates else observation.present)
        assert not values[~np.broadcast_to(observation.pixel_mask, values.shape)].any()
    else:
        assert observation.pixel_mask is None


def _check_labels(card: DatasetCard, batch: Batch, extent: float) -> None:
    labels, size = batch.labels, batch.batch_size
    assert labels["index"].shape == (size,) and labels["index"].dtype == np.int32
    assert ("tile" in labels) == (card.tile_label != "none") and ("dense" in labels) == (card.dense_label != "none")
    assert ("window" in labels) == (extent < card.extent)
    if card.tile_label == "class":
        assert labels["tile"].dtype == np.int32 and set(labels["tile"]) <= set(range(len(card.tile_classes)))
    if card.tile_label == "multi_label":
        assert labels["tile"].shape == (size, len(card.tile_classes)) and labels["tile"].dtype == np.float32
        assert np.isin(labels["tile"], (0, 1)).all()
    if card.dense_label != "none":
        assert labels["dense"].shape == (size, *(round(extent / card.dense_metres),) * 2)
        assert labels["dense"].dtype == (np.float32 if card.dense_label == "regression" else np.int32)
    if card.dense_label in ("segmentation", "change"):
        assert set(np.unique(labels["dense"])) <= {IGNORE, *range(len(card.dense_classes))}

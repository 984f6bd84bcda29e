"""What a prepared example looks like on disk, and the checks that every example passes before it is written."""

from typing import Any

import numpy as np

from anysat_jax.sensors import CELL_METRES, get_sensor
from data_pipelines.card import DatasetCard, Example

Spec = dict[str, tuple[tuple[int | None, ...], np.dtype]]
"""Shape and dtype of each array of an example; None stands for the number of dates."""


def example_spec(card: DatasetCard, example: Example) -> Spec:
    """Shapes and dtypes that all examples of a dataset share, taken from one of them; "id" is not among them."""
    series = {name for name in card.sensors if get_sensor(name).has_dates}
    ragged = series | {f"{name}_dates" for name in series} | {f"{name}_mask" for name in series}
    spec: Spec = {}
    for key, value in example.items():
        if key != "id":
            array = np.asarray(value)
            spec[key] = ((None, *array.shape[1:]) if key in ragged else array.shape, array.dtype)
    return spec


def tfds_features(spec: Spec) -> dict[str, Any]:
    """The same as TFDS features. Arrays are stored as bytes: exact, and ten times faster to write than lists."""
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {"id": tfds.features.Text()}
    for key, (shape, dtype) in spec.items():
        encoding = "bytes" if shape else "none"
        features[key] = tfds.features.Tensor(shape=shape, dtype=dtype.type, encoding=encoding)
    return features


def check_example(card: DatasetCard, spec: Spec, key: str, example: Example) -> None:
    """Refuses an example that breaks the promise of `card.Example`.

    Raises:
      ValueError: an array is missing, of another shape or dtype, not finite where valid, or a label is no class; the
        message names dataset, tile and array.
    """
    where = f"dataset {card.name!r}, tile {key!r}"
    if set(example) != set(spec) | {"id"}:
        raise ValueError(f"{where}: has {sorted(example)}, expected {sorted(set(spec) | {'id'})} as in the first tile")
    for name, (shape, dtype) in spec.items():
        array = np.asarray(example[name])
        fits = array.ndim == len(shape) and all(want in (None, got) for got, want in zip(array.shape, shape))
        if not fits or array.dtype != dtype:
            raise ValueError(f"{where}: {name!r} is {array.dtype} {array.shape}, expected {dtype} {shape}")
    for sensor in card.sensors:
        _check_sensor(card, sensor, where, example)
    _check_labels(card, where, example)


def _check_sensor(card: DatasetCard, name: str, where: str, example: Example) -> None:
    sensor = get_sensor(name)
    if name not in example:
        raise ValueError(f"{where}: no array for sensor {name!r}")
    values, mask = example[name], example.get(f"{name}_mask")
    rank = 4 if sensor.has_dates else 3
    if values.ndim != rank or values.shape[-3] != sensor.num_bands or values.dtype != card.dtype(name):
        raise ValueError(
            f"{where}: {name!r} is {values.dtype} {values.shape}, expected {card.dtype(name)} of rank {rank} with the "
            f"{sensor.num_bands} bands {sensor.bands}"
        )
    _check_extent(card, name, where, values.shape)
    if mask is not None and (mask.dtype != np.bool_ or not _is_mask_of(mask.shape, values.shape)):
        raise ValueError(f"{where}: '{name}_mask' is {mask.dtype} {mask.shape}, which is no mask of {values.shape}")
    valid = True if mask is None else mask
    wrong = 0 if values.dtype.kind in "iub" else int((~np.isfinite(values) & valid).sum())
    if wrong:
        raise ValueError(f"{where}: {wrong} valid values of {name!r} are NaN or infinite; mark them in '{name}_mask'")
    if sensor.has_dates:
        _check_dates(name, where, example)


def _is_mask_of(mask: tuple[int, ...], values: tuple[int, ...]) -> bool:
    return len(mask) == len(values) and mask in (values, (*values[:-3], 1, *values[-2:]))


def _check_extent(card: DatasetCard, name: str, where: str, shape: tuple[int, ...]) -> None:
    """A margin of less than a cell is cropped at reading; more would set the sensors apart."""
    sensor = get_sensor(name)
    pixels = sensor.pixels(card.extent)
    margins = [side - pixels for side in shape[-2:]]
    if any(m < 0 or m * sensor.metres_per_pixel >= CELL_METRES for m in margins):
        raise ValueError(
            f"{where}: {name!r} has {shape[-2]} x {shape[-1]} pixels; a tile of {card.extent:g} m at "
            f"{sensor.metres_per_pixel:g} m has {pixels} x {pixels}, and a margin must stay below {CELL_METRES:g} m"
        )


def _check_dates(name: str, where: str, example: Example) -> None:
    values, dates = example[name], example.get(f"{name}_dates")
    if dates is None or dates.dtype != np.int32 or dates.shape != values.shape[:1] or not len(dates):
        found = None if dates is None else f"{dates.dtype} {dates.shape}"
        raise ValueError(f"{where}: '{name}_dates' is {found}, expected int32, one for each of {len(values)} > 0 dates")
    if dates.min() < 0:
        raise ValueError(f"{where}: '{name}_dates' holds {dates.min()}; days count from 0, the 1 January")


def _check_labels(card: DatasetCard, where: str, example: Example) -> None:
    promised = {"tile": card.tile_label != "none", "dense": bool(card.dense_classes)}
    for key, expected in promised.items():
        if expected != (key in example):
            raise ValueError(f"{where}: {'no' if expected else 'unexpected'} label {key!r}, against the dataset's card")
    if card.tile_label == "class" and not 0 <= int(example["tile"]) < len(card.tile_classes):
        raise ValueError(f"{where}: 'tile' is {example['tile']}, expected a class below {len(card.tile_classes)}")
    if card.tile_label == "multi_label":
        label = np.asarray(example["tile"])
        if label.shape != (len(card.tile_classes),) or not np.isin(label, (0, 1)).all():
            raise ValueError(f"{where}: 'tile' is {label}, expected {len(card.tile_classes)} zeros and ones")
    if card.dense_classes:
        _check_dense(card, where, example["dense"])


def _check_dense(card: DatasetCard, where: str, dense: np.ndarray) -> None:
    side = round(card.extent / card.dense_metres)
    if dense.shape != (side, side):
        raise ValueError(f"{where}: 'dense' is {dense.shape}, expected ({side}, {side}) at {card.dense_metres:g} m")
    found = np.unique(dense)
    wrong = found[(found != card.ignore_label) & ((found < 0) | (found >= len(card.dense_classes)))]
    if wrong.size:
        raise ValueError(f"{where}: 'dense' holds {wrong.tolist()}, expected classes below {len(card.dense_classes)}")

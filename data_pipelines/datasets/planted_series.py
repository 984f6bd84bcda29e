"""PLANTED: the card, and a sensor's series from the arrays that both of its layouts hold."""

import datetime

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import in_decibels, with_ratio, with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import from_epoch_milliseconds, observed_series

NUM_CLASSES = 40
RADAR = ("s1", "alos")  # a third channel of the archive, most likely the angle of incidence, gives way to a ratio
FIRST_YEAR, LAST_YEAR = 1999, 2100  # from the launch of Landsat 7 and Terra on

CARD = DatasetCard(
    name="planted",
    title="PLANTED",
    sensors=("s2", "s1", "l7", "alos", "modis"),
    extent=120.0,
    patch_sizes=(30, 60),
    splits=("train", "val", "test"),
    masks=dict.fromkeys(("s2", "s1", "l7", "alos", "modis"), "band"),
    optional=("s2", "s1", "l7", "alos", "modis"),
    file_bands={"s1": ("VV", "VH", "angle"), "alos": ("HH", "HV", "angle")},
    units={
        "s2": "reflectance, as the archive scales it",
        "s1": "backscatter in dB",
        "l7": "reflectance, as the archive scales it",
        "alos": "digital numbers of amplitude (gamma0 in dB = 20 log10 DN - 83)",
        "modis": "reflectance, as the archive scales it",
    },
    dates={"s2": "8 seasons", "s1": "8 seasons", "l7": "20 seasons", "alos": "4 years", "modis": "60 months"},
    tile_label="class",
    tile_classes=tuple(f"species {number}" for number in range(NUM_CLASSES)),
    split_rule="published",
    natural_colour={"s2": (2, 1, 0), "l7": (2, 1, 0), "modis": (0, 3, 2)},
    size="1,348,219 tiles with a species (version 1.2.0; 155 GB), 1,075,701 of them for training (version 1.0.1)",
    notes=(
        "Take the subset 'species' of the archive; the others hold tiles without a species.",
        "The names of the 40 species are not in this card: their official order could not be confirmed. Where the "
        "records name the species, species.txt in the archive's folder gives the order, one name a line; `python -m "
        "data_pipelines.datasets.planted DIR` writes it from all records, sorted. Class numbers are taken as they are.",
        "The archive's masks are 1 where a pixel is valid, for each band; dates without a valid value are left out, "
        "and a sensor without dates is missing.",
        "Dates are milliseconds since 1970 in UTC; the published reader takes the day in the machine's time zone.",
        "The third channel of both radars is replaced. Sentinel-1's is VV - VH in dB, where the published reader "
        "divides the decibels; linear power, should the files hold it, is converted. ALOS's is HH / HV of "
        "amplitudes, or HH - HV should the files hold dB.",
        "The names of the features, the shapes and the masks' meaning are those of a public reader of the archive.",
        "A MODIS pixel (250 m) is larger than the tile.",
    ),
    licence="CC-BY-4.0",
    citation="Pazos-Outón et al., Planted: a dataset for planted forest identification from multi-satellite time "
    "series, IGARSS 2024",
    url="https://github.com/google-deepmind/forest_typology/tree/main/planted",
)


def class_number(where: str, number: int) -> np.int32:
    """Checks and returns the class number of a tile.

    Raises:
      ValueError: it is none of the 40 classes.
    """
    if not 0 <= number < NUM_CLASSES:
        raise ValueError(f"{where}: the species is {number}; expected a class from 0 to {NUM_CLASSES - 1}")
    return np.int32(number)


def read_series(where: str, sensor: str, values: np.ndarray, mask: np.ndarray, stamps: np.ndarray) -> Example:
    """Returns a sensor's fields of an example; {} if no date has a valid value.

    Args:
      where: file or record, for errors.
      sensor: e.g. "s2".
      values: (T, H, W, C) numbers in the archive's bands.
      mask: as `values`, not 0 where valid.
      stamps: (T,) milliseconds since 1970.

    Raises:
      ValueError: an array is of another shape, or a date cannot be.
    """
    side, bands = CARD.side(sensor), (2, 3) if sensor in RADAR else (get_sensor(sensor).num_bands,)
    expected = f"({len(stamps)}, {side}, {side}, {' or '.join(map(str, bands))})"
    fits = values.ndim == 4 and values.shape[:3] == (len(stamps), side, side) and values.shape[3] in bands
    if not fits or values.dtype.kind not in "fiu" or stamps.ndim != 1:
        what = f"{sensor!r} is {values.dtype} {values.shape} with {stamps.shape} dates"
        raise ValueError(f"{where}: {what}; expected numbers of shape {expected}, dates first and bands last")
    if mask.shape != values.shape or mask.dtype.kind not in "biuf":
        raise ValueError(f"{where}: the mask of {sensor!r} is {mask.dtype} {mask.shape}; expected 0 or 1, {expected}")
    valid = np.moveaxis(np.isfinite(values) & (mask != 0), -1, 1)
    clean = np.where(valid, np.moveaxis(values, -1, 1), 0).astype(np.float32)
    if sensor in RADAR:
        clean, valid = clean[:, :2], valid[:, :2]
        if sensor == "s1":
            clean = with_ratio_of_decibels(in_decibels(f"{where}, {sensor!r}", clean, valid))
        else:
            # ALOS's digital number 0 means no data. Amplitudes are positive; a negative value can only be in dB.
            valid = valid & (clean != 0)
            clean = with_ratio_of_decibels(clean) if (clean < 0).any() else with_ratio(clean)
        valid = np.concatenate([valid, valid.all(axis=1, keepdims=True)], axis=1)
        clean = np.where(valid, clean, np.float32(0))
    # Dates without a valid value may have no time either: they go before their stamps are read.
    seen = np.flatnonzero(valid.any(axis=(1, 2, 3)))
    days = [_day(where, sensor, stamp) for stamp in stamps[seen]]
    clean, valid = np.ascontiguousarray(clean[seen]), np.ascontiguousarray(valid[seen])
    return observed_series(sensor, clean, valid, days)


def _day(where: str, sensor: str, stamp: float) -> datetime.date:
    try:
        day = from_epoch_milliseconds(stamp)
    except (ValueError, OverflowError):
        day = datetime.date.min
    # Seconds in place of milliseconds would give January 1970.
    if not FIRST_YEAR <= day.year < LAST_YEAR:
        what = f"{where}: {sensor!r} has the date {stamp}"
        raise ValueError(f"{what}; expected milliseconds since 1970, of a year from {FIRST_YEAR} on")
    return day

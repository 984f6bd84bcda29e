"""PASTIS-HD: 1280 m patches of French farmland; SPOT image, Sentinel-1 and -2 series, a map of 18 crops.

Read from published files: the metadata of nine patches. Arrays and SPOT images were read from made-up archives only.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import observed_series, parse_day
from data_pipelines.files import parse_json, read_json, read_npy, stems
from data_pipelines.rasters import read_raster
from data_pipelines.reader import ArchiveReader, digest, layout_check

DATE_FIELDS = {"s2": "dates-S2", "s1": "dates-S1A"}
SIDE = 128  # pixels of 10 m along a patch


@dataclasses.dataclass(frozen=True)
class Patch:
    """The metadata of a patch."""

    fold: int  # 1 to 5
    # By sensor, the days of its series as the numbers yyyymmdd, in the order of the array.
    days: Mapping[str, tuple[int, ...]]
    crs: str  # coordinate system of `transform`; "" if the metadata have none, with a transform of NaN
    transform: tuple[float, ...]  # affine map from (column, row) of the 128 x 128 pixels to coordinates


def read_patches(path: pathlib.Path) -> dict[str, Patch]:
    """Reads the patches of a `metadata.geojson` by their number, in its order.

    Raises:
      FileNotFoundError, ValueError: it is missing, or not as published; the message names the patch and the field.
    """
    expected = "the metadata of PASTIS, PASTIS-R or PASTIS-HD as published"
    table = read_json(path, expected)
    features = table.get("features") if isinstance(table, dict) else None
    if not isinstance(features, list) or not features:
        raise ValueError(f"{path} is not a GeoJSON file with patches as 'features'; expected {expected}")
    # GeoJSON since RFC 7946 knows longitude and latitude only; the archive names its system as older files do, in a
    # member "crs" like urn:ogc:def:crs:EPSG::2154.
    code = re.search(r"EPSG:+(\d+)", json.dumps(table.get("crs", "")))
    crs, patches = f"EPSG:{code[1]}" if code else "", {}
    for number, feature in enumerate(features):
        key, patch = _read_feature(f"{path}, feature {number}", feature, crs)
        if key in patches:
            raise ValueError(f"{path} lists patch {key} twice; expected every ID_PATCH once")
        patches[key] = patch
    return patches


def _read_feature(where: str, feature: Any, crs: str) -> tuple[str, Patch]:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    if not isinstance(properties, dict):
        raise ValueError(f"{where}: no properties; expected ID_PATCH, Fold and dates-S2")
    number, fold = _whole(where, properties, "ID_PATCH"), _whole(where, properties, "Fold")
    where = f"{where}, patch {number}"
    if fold not in (1, 2, 3, 4, 5):
        raise ValueError(f"{where}: 'Fold' is {fold}; expected 1 to 5")
    days = {s: _days(where, field, properties.get(field)) for s, field in DATE_FIELDS.items() if properties.get(field)}
    if "s2" not in days:
        raise ValueError(f"{where}: no 'dates-S2'; expected the days of its series, like {{'0': 20180924, ...}}")
    # Without a coordinate system, a transform means nothing.
    transform = _transform(feature.get("geometry")) if crs else np.full(6, np.nan)
    return str(number), Patch(fold, days, crs if np.isfinite(transform).all() else "", tuple(transform.tolist()))


def _whole(where: str, properties: dict[str, Any], field: str) -> int:
    try:
        return int(properties[field])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where}: {field!r} is {properties.get(field)!r}; expected a whole number") from None


def _days(where: str, field: str, table: Any) -> tuple[int, ...]:
    """Returns days in the order of the array."""
    expected = "expected days numbered from 0, like {'0': 20180924, '1': 20180929}"
    try:
        # Tools that copy the metadata write the table as a text.
        numbered = parse_json(pathlib.Path(where), table, expected) if isinstance(table, str) else table
        days = {int(position): int(day) for position, day in numbered.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{where}: {field!r} is {str(table)[:60]}; {expected}") from None
    if sorted(days) != list(range(len(days))):
        raise ValueError(f"{where}: {field!r} numbers its days {list(days)[:5]}...; {expected}")
    # By number: as texts, "10" would come before "2".
    return tuple(days[i] for i in range(len(days)))


def _transform(geometry: Any) -> Float64[np.ndarray, "6"]:
    """Returns the affine map of a patch, a square rotated by less than 45 degrees; NaN for any other outline."""
    try:
        rings = geometry["coordinates"][0][0] if geometry["type"] == "MultiPolygon" else geometry["coordinates"][0]
        corners = np.asarray(rings, np.float64)[:-1, :2]  # a ring ends where it began
    except (TypeError, KeyError, IndexError, ValueError):
        return np.full(6, np.nan)
    if corners.shape != (4, 2):
        return np.full(6, np.nan)
    # Patches were cut in UTM and are given in Lambert 93, in which they are turned by some degrees. The upper left
    # corner is the farthest along (-1, 1), whatever corner the ring begins with.
    upper_left = corners[np.argmin(corners @ [1, -1])]
    across = (corners[np.argmax(corners @ [1, 1])] - upper_left) / SIDE
    down = (corners[np.argmin(corners @ [1, 1])] - upper_left) / SIDE
    return np.array([across[0], down[0], upper_left[0], across[1], down[1], upper_left[1]])


CROPS = (
    "Meadow",
    "Soft winter wheat",
    "Corn",
    "Winter barley",
    "Winter rapeseed",
    "Spring barley",
    "Sunflower",
    "Grapevine",
    "Beet",
    "Winter triticale",
    "Winter durum wheat",
    "Fruits, vegetables, flowers",
    "Potatoes",
    "Leguminous fodder",
    "Soybeans",
    "Orchard",
    "Mixed cereal",
    "Sorghum",
)
VOID = 19
NOTHING = -10000  # in every Sentinel-2 product of THEIA, where nothing was observed

CARD = DatasetCard(
    name="pastis_hd",
    title="PASTIS-HD",
    sensors=("spot", "s2", "s1"),
    extent=1280.0,
    patch_sizes=(40, 80, 160),
    splits=("train", "val", "test"),
    arrays={"spot": "uint8", "s2": "int16", "s1": "float16"},
    blocks=4,
    masks={"s2": "pixel", "s1": "pixel"},
    optional=("spot", "s1"),
    georeferenced="s2",
    units={"spot": "grey values", "s2": "L2A reflectance x 10000 (THEIA)", "s1": "dB; third band VV - VH in dB"},
    statistics={
        "s2": {
            "mean": (1186.8, 1395.0, 1446.4, 1782.5, 2741.7, 3085.5, 3229.0, 3343.1, 2426.0, 1639.5),
            "std": (1978.5, 1918.4, 1997.8, 1904.6, 1785.9, 1796.9, 1811.6, 1793.3, 1473.4, 1310.1),
        }
    },
    statistics_source="NORM_S2_patch.json of the archive, averaged over its folds 1 to 3, as its readers do",
    dates={"s2": "September 2018 to November 2019, 38 to 61", "s1": "the same months, about 70, ascending orbit"},
    date_origin="2018-09-01",
    tile_label="multi_label",
    tile_classes=CROPS,
    dense_label="segmentation",
    dense_classes=("Background", *CROPS),
    dense_colours=(
        *("#000000", "#aec7e8", "#ff7f0e", "#ffbb78", "#2ca02c", "#98df8a", "#d62728", "#ff9896", "#9467bd", "#c5b0d5"),
        *("#8c564b", "#c49c94", "#e377c2", "#f7b6d2", "#7f7f7f", "#c7c7c7", "#bcbd22", "#dbdb8d", "#17becf"),
    ),
    dense_metres=10.0,
    ignore_label=VOID,
    folds={"train": (1, 2, 3), "val": (4,), "test": (5,)},
    split_rule="the five official folds, as GeoPlex uses them: 1 to 3 train, 4 val, 5 test",
    natural_colour={"spot": (0, 1, 2), "s2": (2, 1, 0)},
    size="2,433 patches, 4,000 km2, about 80 GB",
    notes=(
        "The series cross the new year; the published readers count days from 1 September 2018 (23 to 413 for patch "
        "10000), the examples keep days of the year and years.",
        "Class 19, void: parcels mostly outside their patch. It is no class here, but the label to ignore.",
        "The multi-label names the crops that a patch shows, without background and void.",
        "s1 is the ascending orbit (S1A); the descending one (S1D) is in the archive, and not read.",
        "The third radar band is stored as the difference of the decibels, and stays so.",
        "The series of Sentinel-1 are stored with 16 bits, as published.",
        "The S2-only release (PASTIS) and PASTIS-R read as well, without the sensors they lack.",
        "Pixels of s2 at -10000, and of s1 that are not finite, are masked; dates without any other are left out, "
        "and a patch without any date of s1 lacks it.",
    ),
    licence="Etalab Open Licence 2.0",
    citation="Sainte Fare Garnot and Landrieu, Panoptic Segmentation of Satellite Image Time Series, ICCV 2021; radar: "
    "Sainte Fare Garnot et al., ISPRS 2022; SPOT: Astruc et al., OmniSat, ECCV 2024",
    url="https://huggingface.co/datasets/IGNF/PASTIS-HD",
)

METADATA = "metadata.geojson"
SPOT = "DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019"
LAYOUT = (
    f"{METADATA}, DATA_S2/S2_ID.npy, DATA_S1A/S1A_ID.npy, {SPOT}/SPOT6_RVB_1M00_2019_ID.tif, ANNOTATIONS/TARGET_ID.npy"
)
holds_raw = layout_check(METADATA, "DATA_S2/")


class PastisReader(ArchiveReader):
    """Reads PASTIS-HD in its published layout. Patches without Sentinel-2 series or annotation are left out."""

    def __init__(self, root: pathlib.Path) -> None:
        listed = read_patches(root / METADATA)
        whole = stems(root / "DATA_S2", ".npy", "S2_") & stems(root / "ANNOTATIONS", ".npy", "TARGET_")
        self.patches = {key: patch for key, patch in listed.items() if key in whole}
        if not self.patches:
            raise FileNotFoundError(
                f"none of the {len(listed)} patches of {root / METADATA} is there; expected DATA_S2/S2_ID.npy and "
                "ANNOTATIONS/TARGET_ID.npy"
            )
        radar = {key for key, patch in self.patches.items() if "s1" in patch.days}
        spot = stems(root / SPOT, ".tif", "SPOT6_RVB_1M00_2019_")
        self._having = {"s1": radar & stems(root / "DATA_S1A", ".npy", "S1A_"), "spot": spot & set(self.patches)}
        fold = {key: patch.fold for key, patch in self.patches.items()}
        super().__init__(
            CARD, root, {s: [key for key in fold if fold[key] in folds] for s, folds in CARD.folds.items()}
        )
        lacking = [f"{len(self.patches) - len(keys)} without {s}" for s, keys in self._having.items()]
        self.summary += f"; {len(self.patches)} of {len(listed)} listed patches, {', '.join(lacking)}"
        patches = {key: dataclasses.astuple(patch) for key, patch in self.patches.items()}
        having = {sensor: sorted(keys) for sensor, keys in self._having.items()}
        self.fingerprint = digest([self.fingerprint, patches, having])

    def example(self, split: str, key: str) -> Example:
        patch = self.patches[key]
        example: Example = {"id": key, "crs": patch.crs, "transform": np.asarray(patch.transform, np.float64)}
        example |= self._series("s2", key, self.root / "DATA_S2" / f"S2_{key}.npy")
        if key in self._having["s1"]:
            example |= self._series("s1", key, self.root / "DATA_S1A" / f"S1A_{key}.npy")
        if key in self._having["spot"]:
            path = self.root / SPOT / f"SPOT6_RVB_1M00_2019_{key}.tif"
            expected = "a GeoTIFF of 3 bands R, G, B, 1280 x 1280 pixels, uint8"
            example["spot"], _ = read_raster(path, (3, 1280, 1280), "uint8", expected)
        path = self.root / "ANNOTATIONS" / f"TARGET_{key}.npy"
        expected = f"whole numbers of shape (3, {SIDE}, {SIDE}), first the classes 0 to {VOID}"
        channels = read_npy(path, (None, SIDE, SIDE), "iu", expected)
        if not len(channels) or channels[0].min() < 0 or channels[0].max() > VOID:
            found = f"classes {channels[0].min()} to {channels[0].max()}" if len(channels) else "no channel"
            raise ValueError(f"{path} holds {found}; expected {expected}")
        crops = np.isin(np.arange(1, VOID), channels[0]).astype(np.uint8)  # multi-hot
        return {**example, "dense": channels[0].astype(np.int8), "tile": crops}

    def _series(self, sensor: str, key: str, path: pathlib.Path) -> Example:
        """Reads a series with its mask, in time order, without dates on which nothing was observed.

        Returns {} if no date is left and the sensor is optional.
        """
        numbers = self.patches[key].days[sensor]
        where = f"{self.root / METADATA}, patch {key}, {DATE_FIELDS[sensor]!r}"
        days = [parse_day(str(number), where) for number in numbers]
        bands, dtype, kind = {"s2": (10, "iu", "whole numbers"), "s1": (3, "f", "floats")}[sensor]
        expected = f"{kind} of shape ({len(days)}, {bands}, {SIDE}, {SIDE}), a date for each of {DATE_FIELDS[sensor]!r}"
        values = read_npy(path, (len(days), bands, SIDE, SIDE), dtype, expected)
        # s2 is published as int16; copies that were saved anew may have wider numbers, and int16 would wrap them.
        limits = np.iinfo(np.int16)
        if sensor == "s2" and values.size and (values.min() < limits.min or values.max() > limits.max):
            found = f"{path} runs from {values.min()} to {values.max()}"
            raise ValueError(f"{found}; expected reflectances x 10000 in 16 bits")
        # s1 is published as float16: what 16 bits cannot hold becomes infinite, and is masked.
        with np.errstate(over="ignore"):
            values = values.astype(CARD.dtype(sensor), copy=False)
        mask = (values > NOTHING if sensor == "s2" else np.isfinite(values)).all(axis=1, keepdims=True)
        if not mask.any() and sensor not in CARD.optional:
            raise ValueError(f"{path} holds no data on any date; expected at least one with an observation")
        return observed_series(sensor, values, mask, days)

"""The metadata of PASTIS: folds, days and outlines of its patches."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from data_pipelines.files import read_json

DATE_FIELDS = {"s2": "dates-S2", "s1": "dates-S1A"}
SIDE = 128  # pixels of 10 m along a patch


@dataclasses.dataclass(frozen=True)
class Patch:
    """What the metadata say of a patch.

    Attributes:
      fold: 1 to 5.
      days: by sensor, the days of its series as the numbers yyyymmdd, in the order of the array.
      crs: coordinate system of `transform`; "" where the metadata tell none, and NaN for the map.
      transform: affine map from (column, row) of the 128 x 128 pixels to coordinates.
    """

    fold: int
    days: Mapping[str, tuple[int, ...]]
    crs: str
    transform: tuple[float, ...]


def read_patches(path: pathlib.Path) -> dict[str, Patch]:
    """The patches of a `metadata.geojson` by their number, in its order.

    Raises:
      FileNotFoundError, ValueError: it is missing, or not as published; the message names the patch and the field.
    """
    expected = "the metadata of PASTIS, PASTIS-R or PASTIS-HD as published"
    table = read_json(path, expected)
    features = table.get("features") if isinstance(table, dict) else None
    if not isinstance(features, list) or not features:
        raise ValueError(f"{path} is no GeoJSON with patches as 'features'; expected {expected}")
    crs, patches = _crs_of(table), {}
    for number, feature in enumerate(features):
        key, patch = _read_feature(f"{path}, feature {number}", feature, crs)
        if key in patches:
            raise ValueError(f"{path} lists patch {key} twice; expected every ID_PATCH once")
        patches[key] = patch
    return patches


def _crs_of(table: dict[str, Any]) -> str:
    """The coordinate system that a GeoJSON file names, like urn:ogc:def:crs:EPSG::2154; "" for none."""
    found = re.search(r"EPSG:+(\d+)", json.dumps(table.get("crs", "")))
    return f"EPSG:{found[1]}" if found else ""


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
    transform = _transform(feature.get("geometry")) if crs else np.full(6, np.nan)
    known = bool(np.isfinite(transform).all())
    return str(number), Patch(fold, days, crs if known else "", tuple(transform.tolist()))


def _whole(where: str, properties: dict[str, Any], field: str) -> int:
    try:
        return int(properties[field])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where}: {field!r} is {properties.get(field)!r}; expected a whole number") from None


def _days(where: str, field: str, table: Any) -> tuple[int, ...]:
    """Days in the order of the array, which is that of the numbers "0", "1", ..., "10", not of the text.

    Tools that copy the metadata write the table as a text.
    """
    expected = "expected days numbered from 0, like {'0': 20180924, '1': 20180929}"
    try:
        numbered = json.loads(table) if isinstance(table, str) else table
        days = {int(position): int(day) for position, day in numbered.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{where}: {field!r} is {str(table)[:60]}; {expected}") from None
    if sorted(days) != list(range(len(days))):
        raise ValueError(f"{where}: {field!r} numbers its days {list(days)[:5]}...; {expected}")
    return tuple(days[i] for i in range(len(days)))


def _transform(geometry: Any) -> Float64[np.ndarray, "6"]:
    """The affine map of a patch, a square that is turned by less than 45 degrees; NaN without such an outline."""
    try:
        rings = geometry["coordinates"][0][0] if geometry["type"] == "MultiPolygon" else geometry["coordinates"][0]
        corners = np.asarray(rings, np.float64)[:-1, :2]
    except (TypeError, KeyError, IndexError, ValueError):
        return np.full(6, np.nan)
    if corners.shape != (4, 2):
        return np.full(6, np.nan)
    upper_left = corners[np.argmin(corners @ [1, -1])]
    across = (corners[np.argmax(corners @ [1, 1])] - upper_left) / SIDE
    down = (corners[np.argmin(corners @ [1, 1])] - upper_left) / SIDE
    return np.array([across[0], down[0], upper_left[0], across[1], down[1], upper_left[1]])

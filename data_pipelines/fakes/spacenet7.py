"""A made-up SpaceNet 7: roofs as bright rectangles, and their footprints as GeoJSON."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.datasets.spacenet7 import IMAGES, SIDE, TEST, VAL
from data_pipelines.fakes.common import smooth, write_raster

TRAIN = ("L15-0331E-1257N_1327_3160_13", "L15-0358E-1220N_1433_3310_13", "L15-0457E-1135N_1831_3648_13")
METRES = 4.777314267823516  # a pixel, in the map's units
BUILDINGS = 60


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes areas in the published layout, two months each.

    Every third mosaic has clouds: alpha 0 and a mask of unusable data.
    """
    rng = np.random.default_rng(seed)
    for split, areas in {"train": TRAIN, "val": VAL, "test": TEST}.items():
        for number in range(tiles.get(split, 0)):
            area, month = areas[number // 2 % len(areas)], 1 + number % 2 + 2 * (number // 2 // len(areas))
            name = f"global_monthly_{2018 + (month - 1) // 12}_{1 + (month - 1) % 12:02d}_mosaic_{area}"
            _write_mosaic(folder / "train" / area, name, number, rng)


def _write_mosaic(folder: pathlib.Path, name: str, number: int, rng: np.random.Generator) -> None:
    corner = (1_000_000.0 + METRES * SIDE * number, 4_000_000.0)
    place = dict(crs="EPSG:3857", transform=(METRES, 0.0, corner[0], 0.0, -METRES, corner[1]))
    boxes = np.concatenate([rng.integers(0, SIDE - 16, (BUILDINGS, 2)), rng.integers(3, 15, (BUILDINGS, 2))], axis=1)
    ground = smooth(rng, (1, SIDE, SIDE), 40, 130) * np.asarray([1.0, 0.95, 0.8], np.float32)[:, None, None]
    for column, row, width, height in boxes:
        ground[:, row : row + height, column : column + width] += 90
    image = np.concatenate([ground, np.full((1, SIDE, SIDE), 255)]).astype(np.uint8)
    if number % 3 == 2:
        image[:, : SIDE // 4] = 0
        clouds = np.where(np.arange(SIDE)[None, :, None] < SIDE // 4, 255, 0).astype(np.uint8).repeat(SIDE, axis=2)
        write_raster(folder / "UDM_masks" / f"{name}_UDM.tif", clouds, **place)
    write_raster(folder / IMAGES / f"{name}.tif", image, **place)
    for kind, to_map in (("labels_match_pix", None), ("labels_match", corner)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{name}_Buildings.geojson").write_text(json.dumps(_footprints(boxes, to_map)))


def _footprints(boxes: Int[np.ndarray, "N 4"], corner: tuple[float, float] | None) -> dict[str, Any]:
    """Returns the buildings as GeoJSON, in pixels or, with a corner, in the map's coordinates."""
    features = []
    for number, (column, row, width, height) in enumerate(boxes.tolist()):
        right, bottom = column + width, row + height
        # GeoJSON closes a ring with its first corner.
        ring = np.asarray([(column, row), (right, row), (right, bottom), (column, bottom), (column, row)], np.float64)
        if corner is not None:
            ring = np.asarray(corner) + ring * (METRES, -METRES)
        geometry = {"type": "Polygon", "coordinates": [ring.tolist()]}
        features.append({"type": "Feature", "properties": {"Id": number}, "geometry": geometry})
    crs = {} if corner is None else {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}}
    return {"type": "FeatureCollection", **crs, "features": features}

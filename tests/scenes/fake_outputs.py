"""Outputs of a small scene, as a run writes them: an embedding, maps and the picture of the input."""

import math

import numpy as np

from anysat_jax.scenes.encoding import fit_encoding
from anysat_jax.scenes.grid import Box, Grid
from anysat_jax.scenes.outputs import RasterSpec, finish, write_part

CRS, METRES = "EPSG:32632", 10.0
CLASSES, COLOURS = ("forest", "field <b>", "water"), ((20, 90, 40), (220, 200, 60), (60, 120, 200))
NEVER = "never there"  # a class that is not on the map


def write(path, values, left=500_000.0, top=5_100_000.0, nodata=math.nan, **facts):
    """Writes values (K, H, W) with their upper left corner at (left, top)."""
    _, rows, columns = values.shape
    box = Box(left, top - METRES * rows, left + METRES * columns, top)
    facts = {"bands": tuple(f"band_{number}" for number in range(len(values)))} | facts
    spec = RasterSpec(Grid(CRS, box), METRES, dtype=str(values.dtype), nodata=nodata, **facts)
    folder = path.with_name(f"{path.name}.parts")
    write_part(folder, "all", spec, box, values)
    finish(folder, spec, path)
    return path


def features(rows=40, columns=60, count=24):
    """Features (H, W, D) of smooth ground, far from 0, NaN in the upper left corner."""
    rng, (y, x) = np.random.default_rng(0), np.indices((rows, columns)) / 9
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x), np.cos(y)], -1)
    values = 3 + waves @ rng.normal(size=(4, count)) + 0.05 * rng.normal(size=(rows, columns, count))
    values[hole(rows, columns)] = np.nan
    return values.astype(np.float32)


def hole(rows, columns):
    """Where the scene has no data."""
    return np.indices((rows, columns)).sum(axis=0) < rows // 3


def write_embedding(path, values, dtype="float32", **options):
    """Writes features (H, W, D) in an encoding."""
    encoding = fit_encoding(values.reshape(-1, values.shape[-1]), dtype, **options)
    stored = np.moveaxis(encoding.encode(values), -1, 0)
    return write(path, stored, nodata=encoding.nodata, encoding=encoding)


def class_map(rows=40, columns=60):
    """A map (H, W) of stripes, 255 where there is no data."""
    return np.where(hole(rows, columns), 255, np.indices((rows, columns))[1] // 5 % 3).astype(np.uint8)


def write_classes(path, values=None, **place):
    facts = dict(bands=("class",), classes=(*CLASSES, NEVER), colours=(*COLOURS, (255, 0, 255)))
    return write(path, (class_map() if values is None else values)[None], nodata=255, **facts, **place)


def numbers(rows=40, columns=60):
    """A map (H, W) of numbers, NaN where there is no data."""
    return np.where(hole(rows, columns), np.nan, np.hypot(*np.indices((rows, columns)))).astype(np.float32)


def write_numbers(path, **place):
    return write(path, numbers()[None], bands=("biomass",), unit="Mg/ha", **place)


def write_probabilities(path):
    share = numbers() / 100
    return write(path, np.stack([share, 1 - share]), bands=("forest", "field <b>"), unit="probability")


def picture(rows=40, columns=60):
    """A picture (3, H, W), 0 where there is no data."""
    y, x = np.indices((rows, columns))
    return np.where(hole(rows, columns), 0, np.stack([x, y, x + y]) + 50).astype(np.uint8)


def write_picture(path):
    return write(path, picture(), nodata=0, tags={"COMPOSITE": "s2 B4, B3, B2"})


def write_scene(folder, suffix=".tif"):
    """Writes all of them; returns their paths by kind."""
    write_picture(folder / "emb_input.tif")
    return {
        "embedding": write_embedding(folder / f"emb{suffix}", features(), "int8"),
        "classes": write_classes(folder / f"cover{suffix}"),
        "numbers": write_numbers(folder / f"mass{suffix}"),
        "probabilities": write_probabilities(folder / f"odds{suffix}"),
    }

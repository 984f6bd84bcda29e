"""Fake scenes: GeoTIFFs of smooth noise, opened as stacks, and statistics that fit them."""

import dataclasses
import datetime

import jax
import numpy as np
import rasterio
from rasterio.transform import from_origin

from anysat_jax import AnySat
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, init_head
from anysat_jax.downstream.task import Task
from anysat_jax.scenes.reading import Acquisition, RasterBand, Stack
from anysat_jax.sensors import get_sensor
from anysat_jax.weights.exported import Exported, ExportedHead, save_exported

CRS, LEFT, TOP = "EPSG:32632", 500_000, 5_400_000
SMALL = dict(dim=32, depth=1, num_heads=2, predictor_heads=2, predictor_depth=1)
TASK = Task("crops", "Crops", "dense", "class", ("wheat", "maize", "oats"), ("#102030", "#ff0000", "#00ff7f"),
            metres=10.0, sensor="s2")  # fmt: skip
STATISTICS = {"mean": 1500.0, "std": 400.0}


def model(*sensors, seed=0):
    """A tiny model with statistics of `fake_values`."""
    made = AnySat.from_config("tiny", seed=seed, sensors=sensors, **SMALL)
    made.statistics = {
        name: {key: [value] * get_sensor(name).num_bands for key, value in STATISTICS.items()} for name in sensors
    }
    return made


def with_head(*sensors, **changes):
    """Weights with a head that has not been trained, for a task, of Sentinel-2 unless sensors are given."""
    made, task = model(*(sensors or ("s2",))), dataclasses.replace(TASK, **changes)
    config = HeadConfig(input="dense" if task.level == "dense" else "mean")
    head = init_head(NetworkConfig(made.config, config, task), 0)
    head["out"]["kernel"] = 20 * head["out"]["kernel"]
    exported = ExportedHead(dataclasses.asdict(config), dataclasses.asdict(task), head)
    return Exported(made.config, jax.device_get(made.params), exported, made.statistics, {})


def fake_values(bands, height, width, seed=0):
    """Reflectances x 10000, one gradient in x and y for each band, with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    slopes = rng.uniform(-1, 1, (bands, 2, 1, 1))
    waves = np.sin(slopes[:, 0] * rows / 5) + np.cos(slopes[:, 1] * columns / 7)
    return np.clip(1500 + 300 * waves + 50 * rng.standard_normal((bands, height, width)), 1, 9000).round()


def write_stack(folder, sensor, height, width, *, dates=2, left=LEFT, top=TOP, seed=0, values=None, crs=CRS, **profile):
    """Writes a file for each date of a sensor, 0 for nodata, and returns them as a stack."""
    known = get_sensor(sensor)
    metres = profile.pop("metres", known.metres_per_pixel)
    acquisitions = []
    for date in range(dates if known.has_dates else 1):
        data = fake_values(known.num_bands, height, width, 10 * seed + date) if values is None else values[date]
        path = folder / f"{sensor}_{seed}_2021{3 * date + 1:02d}10.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        place = from_origin(left, top, metres, metres)
        with rasterio.open(
            path, "w", driver="GTiff", dtype="uint16", count=len(data), height=height, width=width, crs=crs,
            transform=place, nodata=0, tiled=True, blockxsize=64, blockysize=64, **profile,
        ) as file:  # fmt: skip
            file.write(data.astype(np.uint16))
        bands = tuple(RasterBand(path, number, crs, place, (height, width)) for number in range(1, len(data) + 1))
        day = datetime.date(2021, 3 * date + 1, 10) if known.has_dates else None
        acquisitions.append(Acquisition(path.name, day, bands))
    return Stack(sensor, tuple(acquisitions))


def save_model(path, made):
    """Writes a model with its statistics as a file of weights."""
    save_exported(path, made.config, jax.device_get(made.params), statistics=made.statistics, source={"name": "fake"})
    return path

"""A made-up So2Sat LCZ42: patches whose brightness in both sensors depends on their zone."""

import pathlib
from collections.abc import Mapping

import numpy as np

from data_pipelines.datasets.so2sat import FILES, SHAPES, SIDE, ZONES
from data_pipelines.fakes.common import smooth


def write_archive(folder: pathlib.Path, tiles: Mapping[str, int], seed: int = 0) -> None:
    """Writes the files in the published layout; a split without patches has no file."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, name in FILES.items():
        if not (count := tiles.get(split, 0)):
            continue
        zones = rng.permutation(np.arange(count) % len(ZONES))
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for key, shape in SHAPES.items():
                file.create_dataset(key, (count, *shape), "float64")
            for row, zone in enumerate(zones):
                # Complex amplitudes of VH and VV, their filtered intensities, and the filtered product of the two.
                level = np.asarray([0.04, 0.25])[:, None, None] * (1.5 - zone / len(ZONES))
                amplitude = rng.standard_normal((2, 2, SIDE, SIDE)) * np.sqrt(level / 2)[:, None]
                intensity = level * smooth(rng, (2, SIDE, SIDE), 0.5, 1.5)
                covariance = 0.1 * np.sqrt(level.prod()) * smooth(rng, (2, SIDE, SIDE), -1.0, 1.0)
                radar = np.concatenate([amplitude.reshape(4, SIDE, SIDE), intensity, covariance])
                file["sen1"][row] = np.moveaxis(radar, 0, -1)
                # Reflectance; the infrared rises from built to planted zones.
                level = 0.12 + 0.02 * (zone % 5) + (np.arange(10)[:, None, None] >= 3) * 0.015 * zone
                file["sen2"][row] = np.moveaxis(level * smooth(rng, (10, SIDE, SIDE), 0.8, 1.2, "float64"), 0, -1)
                file["label"][row] = np.arange(len(ZONES)) == zone

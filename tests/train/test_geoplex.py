"""GeoPlex from archives in their published layouts to training steps: five datasets at once, every patch size."""

import contextlib
import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest

from anysat_jax.configs import pretrain
from data_pipelines import load
from data_pipelines.fakes import write_fake
from data_pipelines.registry import GEOPLEX_NAMES, get_entry

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXTENTS = {"pastis_hd": 320.0, "s2naip": 320.0}  # a corner of the large tiles: two patches of 160 m a side
MODEL = dict(preset="tiny", dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, remat="none")
MOST_STEPS = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The five archives as published, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("geoplex")
    for name in GEOPLEX_NAMES:
        write_fake(name, folder / name, tiles=1)
    return folder


def flags(root):
    """The config of the paper's run, made small: one tile a batch, three dates, a tiny model."""
    values = {f"model.{name}": value for name, value in MODEL.items()} | {"data.root": str(root), "dtype": "float32"}
    for name in GEOPLEX_NAMES:
        small = dict(batch_size=1, max_dates=3, weight=1.0) | ({"extent": EXTENTS[name]} if name in EXTENTS else {})
        values |= {f"data.datasets.{name}.{field}": value for field, value in small.items()}
    values |= {"pretrain.mask_buckets": (1, 1), "data.num_workers": 0, "log_every": 1, "evaluate.probe": False}
    return values


def all_batches():
    """Every (dataset, patch size) that the config of the paper's run names."""
    datasets = pretrain.get_config("geoplex").data.datasets
    assert {name: tuple(datasets[name].patch_sizes) for name in datasets} == {
        name: get_entry(name).card.patch_sizes for name in GEOPLEX_NAMES
    }
    return {(name, float(size)) for name in datasets for size in datasets[name].patch_sizes}


def steps_until_all(values):
    """Steps after which every (dataset, patch size) had its turn, as the data's iterator gives them."""
    config = pretrain.get_config("geoplex")
    config.update_from_flattened_dict(values)
    missing = all_batches()
    with contextlib.closing(load.train_iterator(load.open_datasets(config.data), seed=config.seed)) as batches:
        for step in range(1, MOST_STEPS):
            batch = next(batches)
            missing.discard((batch.dataset, batch.patch_size))
            if not missing:
                return step
    raise AssertionError(f"{missing} did not come within {MOST_STEPS} steps")


def test_five_datasets_train_at_every_patch_size_from_published_layouts(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    values = flags(root)
    steps = steps_until_all(values)
    command = [sys.executable, "-m", "anysat_jax.main", "--config=configs/pretrain.py:geoplex"]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.total_steps={steps}"]
    command += [f"--config.{name}={value}" for name, value in values.items()]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    result = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]

    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["dataset"], float(row["patch_size"])) for row in rows} == all_batches()
    assert all(0 < float(row["loss"]) < 100 for row in rows)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == steps == sum(summary["batches"].values())
    assert set(summary["batches"]) == {f"{name} {size:g} m" for name, size in all_batches()}

"""GeoPlex from archives in their published layouts to training steps: five datasets at once, every patch size."""

import contextlib
import csv
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.configs import pretrain
from anysat_jax.model.encoder import encode
from anysat_jax.model.init import student_shapes
from anysat_jax.pretrain import train
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.pretrain.masking import sample_patch_masks
from anysat_jax.pretrain.objective import jepa_loss
from anysat_jax.pretrain.step import make_train_step
from anysat_jax.train.optimizer import TrainStep
from data_pipelines import load
from data_pipelines.fakes import write_fake
from data_pipelines.registry import GEOPLEX_NAMES, get_entry
from tests.conftest import ONE_DEVICE

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXTENTS = {"pastis_hd": 320.0, "s2naip": 320.0}  # a corner of the large tiles: two patches of 160 m a side
MODEL = dict(
    preset="tiny", dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, remat="none", dropout=False
)
MOST_STEPS = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The five archives as published, each in a folder of its name; what is prepared lies in a cache of this file."""
    folder = tmp_path_factory.mktemp("geoplex")
    for name in GEOPLEX_NAMES:
        write_fake(name, folder / name, tiles=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def flags(root, names=GEOPLEX_NAMES):
    """What makes a config small: one tile a batch, three dates, a tiny model."""
    values = {f"model.{name}": value for name, value in MODEL.items()} | {"data.root": str(root), "dtype": "float32"}
    for name in names:
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


def make_config(values, name="geoplex"):
    config = pretrain.get_config(name)
    config.update_from_flattened_dict(values)
    return config


def first_batches(config, wanted):
    """A batch of each (dataset, patch size), as the data's iterator gives them, and the steps until all were there."""
    found = {}
    with contextlib.closing(load.train_iterator(load.open_datasets(config.data), seed=config.seed)) as batches:
        for step in range(1, MOST_STEPS):
            batch = next(batches)
            found.setdefault((batch.dataset, batch.patch_size), batch)
            if set(found) == wanted:
                return found, step
    raise AssertionError(f"{wanted - set(found)} did not come within {MOST_STEPS} steps")


def assert_trained(workdir, wanted, steps):
    """Whether each (dataset, patch size) had its turn."""
    with (workdir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["dataset"], float(row["patch_size"])) for row in rows} == wanted
    assert all(0 < float(row["loss"]) < 100 for row in rows)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == steps == sum(summary["batches"].values())
    assert set(summary["batches"]) == {f"{name} {size:g} m" for name, size in wanted}


def trained_batches():
    """The largest patch size, so the fewest patches, of the datasets with the fewest sensors."""
    largest = dict(sorted(all_batches()))
    return {(name, largest[name]) for name in ("flair", "treesatai_ts")}


def traced_step(config, optimizer, mesh):
    """Stands for the step, which is traced and not compiled: in tests/test_docs.py both datasets train in earnest."""
    step = make_train_step(config, optimizer, mesh)

    def gradients(state, batch, masks):
        shapes, grads = jax.eval_shape(step.gradients, state, batch, masks)
        after, _ = jax.eval_shape(step.update, state, {name: shapes[name] for name in step.losses}, grads)
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
        return {name: jnp.ones(one.shape, one.dtype) for name, one in shapes.items()}, state.params

    def update(state, losses, grads):
        shapes = jax.eval_shape(step.update, state, losses, grads)[1]
        metrics = {name: jnp.full(one.shape, name != "nonfinite_leaves", one.dtype) for name, one in shapes.items()}
        return state.replace(step=state.step + 1), metrics

    return TrainStep(gradients, update, step.losses)


def test_datasets_train_from_published_layouts(root, tmp_path, monkeypatch):
    """Two of the five in one run, at one patch size each."""
    wanted = dict(sorted(trained_batches()))
    values = flags(root, wanted) | {f"data.datasets.{name}.patch_sizes": (size,) for name, size in wanted.items()}
    config = make_config(values, f"prepared,{','.join(wanted)}")
    _, config.total_steps = first_batches(config, trained_batches())
    config.mesh.data = 1
    monkeypatch.setattr(train, "make_train_step", traced_step)
    train.pretrain(config, tmp_path)
    assert_trained(tmp_path, trained_batches(), config.total_steps)


def test_batches_of_every_patch_size_fit_the_model(root):
    """From published layouts to the features, and for the largest patch size of each dataset, so the fewest patches, to
    the loss; traced and not compiled, and those trained above are left out."""
    given = make_config(flags(root))
    datasets = load.open_datasets(given.data)
    config = PretrainConfig.read(given).with_sensors(given.model.sensors, [one.card for one in datasets.values()])
    params = student_shapes(config.model)
    loss = functools.partial(jepa_loss, model=config.model, config=config.pretrain)
    batches, _ = first_batches(given, all_batches())
    largest = dict(sorted(all_batches()))
    for name, size in all_batches() - trained_batches():
        batch = batches[name, size]
        side = round(datasets[name].options.extent / size)
        assert batch.grid == (side, side)
        masks = sample_patch_masks(np.random.default_rng(0), batch.grid, batch.batch_size, config.pretrain)
        batch = batch.replace(labels={})
        if size == largest[name]:
            total, _ = jax.eval_shape(loss, params, params["encoder"], batch, masks, jax.random.key(0))
            assert total.shape == () and total.dtype == np.float32
        else:
            features = jax.eval_shape(functools.partial(encode, config.model, output="all"), params["encoder"], batch)
            assert features.shape == (batch.batch_size, 1 + side**2, MODEL["dim"])
            assert all(one.min() >= 0 and one.max() < side**2 for one in (masks.context_index, masks.target_index))


@pytest.mark.slow
def test_five_datasets_train_at_every_patch_size(root, tmp_path):
    """By the command."""
    values = flags(root)
    _, steps = first_batches(make_config(values), all_batches())
    command = [sys.executable, "-m", "anysat_jax.main", "--config=configs/pretrain.py:geoplex"]
    command += [f"--workdir={tmp_path}", f"--config.total_steps={steps}"]
    command += [f"--config.{name}={value}" for name, value in values.items()]
    environment = {**os.environ, "XLA_FLAGS": ONE_DEVICE}
    result = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]
    assert_trained(tmp_path, all_batches(), steps)

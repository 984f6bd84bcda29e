"""Fine-tuning and probing by two real processes, which learn what one learns."""

import csv
import json

import numpy as np
import pytest

from anysat_jax.configs import finetune, probe
from data_pipelines import load
from tests.train.clusters import run
from tests.train.damage import flip_bit


def table(path, columns):
    with path.open(newline="") as file:
        return [[float(row[name]) for name in columns] for row in csv.DictReader(file)]


def damage(root, job):
    """Prepares the tiles, and flips a bit of one of those that an evaluation reads."""
    config = {"finetune": finetune, "probe": probe}[job].get_config("mini_flair,smoke")
    config.data.root = str(root)
    load.open_datasets(config.data)
    (path,) = root.glob("mini_flair*/mini_flair/*/*-val.*")
    flip_bit(path)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["finetune", "probe"])
def test_two_processes_fit_as_one(tmp_path, job):
    damage(tmp_path, job)
    for processes, devices, fsdp in ((1, 1, 1), (2, 2, 2)):
        own = [f"--config=configs/{job}.py:mini_flair,smoke", f"--config.data.root={tmp_path}"]
        own += [f"--workdir={tmp_path / str(processes)}", f"--config.mesh.data={processes}"]
        own += [f"--config.mesh.fsdp={fsdp}", "--config.data.datasets.mini_flair.batch_size=4"]
        own += ["--config.data.skip_corrupt"]
        own += [f"--config.cache.folder={tmp_path / f'features-{processes}'}"]
        run(processes, devices, own, XDG_CACHE_HOME=str(tmp_path))
    for name, columns in (("metrics.csv", ("step", "loss")), ("evaluation.csv", ("step", "loss", "accuracy"))):
        one, two = (table(tmp_path / folder / name, columns) for folder in "12")
        assert len(one) > 0
        np.testing.assert_allclose(two, one, rtol=1e-3, err_msg=name)
    one, two = (json.loads((tmp_path / folder / "summary.json").read_text()) for folder in "12")
    assert one.keys() == two.keys()
    assert one["samples"] == two["samples"] and one["left_out"] == two["left_out"] and len(one["left_out"]["val"]) == 1

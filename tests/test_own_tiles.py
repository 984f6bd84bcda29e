"""From a folder of one's own tiles to a trained model, by the commands of docs/DATA.md."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ONE_DEVICE
from tests.data_pipelines.own_tiles.real_tiles import cut_tiles
from tests.data_pipelines.own_tiles.test_tutorial import blocks, commands

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SHORT = [
    "total_steps=2",
    "model.dim=32",
    "model.depth=1",
    "model.predictor_depth=1",
    "evaluate.probe=False",
    "data.datasets.floods.patch_sizes=(80,)",
]


def run(words, folder):
    """A command of the page in a process of its own, in the working folder; the configs are the project's."""
    words = [sys.executable, *(word.replace("configs/", f"{REPOSITORY}/configs/") for word in words[1:])]
    environment = os.environ | {"XLA_FLAGS": ONE_DEVICE, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def folder(tmp_path, real_data):
    cut_tiles(real_data / "sen1floods11", tmp_path / "floods")
    (tmp_path / "floods" / "floods.toml").write_text(blocks("toml")[0])
    return tmp_path


def test_a_folder_is_prepared_and_trained_on(folder):
    by_name = {words[3] if words[2] == "data_pipelines" else "train": words for words in commands()}
    prepared = run(by_name["prepare"], folder)
    assert prepared.returncode == 0, prepared.stderr
    (folder / "floods").rename(folder / "away")  # the prepared folder stands for itself
    short = [f"--config.{override}" for override in SHORT] + ["--workdir=run"]
    trained = run([*by_name["train"], *short], folder)
    assert trained.returncode == 0, trained.stderr
    assert "floods" in (folder / "run" / "report" / "README.md").read_text()

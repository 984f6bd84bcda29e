"""What docs/DATA.md says of one's own tiles, done with tiles cut from a real chip."""

import pathlib
import re
import shlex

import numpy as np
import pytest
import rasterio
from ml_collections import ConfigDict

from anysat_jax.sensors import SENSORS
from data_pipelines import load, registry
from data_pipelines.cli import main
from data_pipelines.own_tiles.description import (
    ClearPixels,
    DescriptionTable,
    MaskFiles,
    SensorTable,
    SplitRule,
    TileLabels,
    read_description,
)
from data_pipelines.own_tiles.reader import folder_card
from tests.data_pipelines.own_tiles.folders import DESCRIPTION, describe
from tests.data_pipelines.own_tiles.real_tiles import cut_tiles

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "DATA.md"


def tutorial():
    return PAGE.read_text(encoding="utf-8").split("\n## Your own tiles\n")[1].split("\n## ")[0]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", tutorial(), re.MULTILINE | re.DOTALL)


def commands():
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch, real_data):
    """`floods`, as the page describes it, in the working folder."""
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(registry, "_DESCRIBED", set())
    monkeypatch.chdir(tmp_path)
    cut_tiles(real_data / "sen1floods11", tmp_path / "floods")
    (tmp_path / "floods" / "floods.toml").write_text(blocks("toml")[0])
    return tmp_path / "floods"


def test_the_description_has_about_twenty_lines():
    assert sum(bool(line.strip()) for line in blocks("toml")[0].splitlines()) <= 24


def test_the_commands_do_what_the_page_says(folder, capsys):
    for words in commands():
        if words[2] == "data_pipelines":
            assert main(words[3:]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "16 tiles in" in shown and f"your own folder, {folder}" in " ".join(shown.split())
    assert len(list(pathlib.Path("pictures").glob("*.png"))) == 8
    assert pathlib.Path("prepared/floods/1.0.0").is_dir() and pathlib.Path("pictures_of_val").is_dir()


def test_what_is_prepared_is_what_the_chip_holds(folder, real_data):
    assert main(["prepare", "floods/floods.toml", "--out", "prepared"]) == 0
    section = dict(batch_size=4, weight=1.0, patch_sizes=(40, 80), max_dates=None)
    data = ConfigDict(dict(root="prepared", num_workers=0, datasets={"floods": section}))
    batch = next(load.open_datasets(data)["floods"].evaluation_batches("val", patch_size=80, batch_size=1))
    with rasterio.open(real_data / "sen1floods11/sample/Labels/Spain_7370579_LabelHand.tif") as file:
        np.testing.assert_array_equal(batch.labels["dense"][0], file.read(1)[:64, 256:320])
    assert batch.observations["s2"].dates.tolist() == [[260]] and batch.observations["s1"].dates.tolist() == [[259]]
    trained = next(load.train_iterator(load.open_datasets(data), seed=0))
    assert trained.observations["s2"].values.shape == (4, 1, 10, 64, 64)
    assert set(trained.labels) >= {"tile", "dense"}


def test_the_sensor_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))
    text = DESCRIPTION.replace("patch_sizes = [10, 20]", "patch_sizes = [40]") + blocks("toml")[1]
    assert folder_card(read_description(describe(tmp_path, text))).own_sensors[0].subpatch_metres == 8


def test_every_field_is_explained():
    """Every field of the description's tables is in the page's table."""
    tables = (DescriptionTable, SensorTable, ClearPixels, TileLabels, MaskFiles, SplitRule)
    fields = {field for table in tables for field in table.__struct_fields__} - {
        "sensors",
        "clear",
        "labels",
        "mask",
        "splits",
    }
    shown = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| [^|]* \|", tutorial(), re.MULTILINE))))
    assert fields <= shown

"""The commands `anysat embed`, `predict` and `view`: options, messages, files."""

import dataclasses
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import rasterio

import anysat_jax.__main__
from anysat_jax import SENSORS
from anysat_jax.__main__ import COMMANDS
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, init_head
from anysat_jax.downstream.task import Task
from anysat_jax.scenes import cli
from anysat_jax.sensors import Sensor, register
from anysat_jax.weights.exported import FILE_NAME, ExportedHead, save_exported
from tests.conftest import REPOSITORY
from tests.scenes.fake_scenes import LEFT, TOP, model, save_model, write_stack
from tests.scenes.rasters import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with rasters, weights, and weights with a head."""
    folder = tmp_path_factory.mktemp("scene")
    write_stack(folder / "s2", "s2", 40, 30)
    radar = np.random.default_rng(0).normal(-12, 2, (2, 40, 30)).astype(np.float32)
    place = rasterio.Affine(10, 0, LEFT, 0, -10, TOP)
    write(folder / "s1" / "s1_20210110.tif", radar, place, names=("VV", "VH"))
    made = model("s2", "s1")
    made.statistics["s1"] = {"mean": [-12.0, -12.0, 0.0], "std": [2.0, 2.0, 3.0]}
    save_model(folder / "tiny.safetensors", made)
    task, config = (
        Task("fields", "Fields", "dense", "class", ("a", "b"), metres=10.0, sensor="s2"),
        HeadConfig(input="dense"),
    )
    head = init_head(NetworkConfig(made.config, config, task), 0)
    head = ExportedHead(dataclasses.asdict(config), dataclasses.asdict(task), head)
    params = jax.device_get(made.params)
    source, file = {"name": "fake"}, folder / "fields.safetensors"
    (folder / "crops").mkdir()
    save_exported(file, made.config, params, head=head, statistics=made.statistics, source=source)
    shutil.copy(file, folder / "crops" / FILE_NAME)  # a finished run
    return folder


def command(folder, name, words):
    weights = "fields" if name == "predict" else "tiny"
    given = f"--s2 {folder / 's2'} --weights {folder / weights}.safetensors --patch-size 20 --tile 160 {words}"
    return cli.main(name, given.split())


def test_the_commands_of_the_page(folder, tmp_path, monkeypatch, capsys):
    """In order, on a small scene."""
    page = (REPOSITORY / "docs" / "SCENES.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in page.splitlines() if line.startswith("anysat ")]
    assert [line.split()[1] for line in lines[:3]] == ["embed", "predict", "view"]
    for line in lines[:3]:
        for sensor in ("s2", "s1"):
            line = line.replace(f"--{sensor} FOLDER", f"--{sensor} {folder / sensor}")
        line = line.replace("WEIGHTS", str(folder / "tiny.safetensors")).replace("RUN", str(folder / "crops"))
        assert cli.main(line.split()[1], line.split()[2:]) == 0, capsys.readouterr().err
    summary, area, view = capsys.readouterr().out.strip().splitlines()
    assert summary.startswith("emb.tif: 30 x 40 pixels of 10 m, 64 bands of float32, ") and view == "emb.html"
    assert area.startswith("map.tif: 30 x 40 pixels of 10 m, 1 bands of uint8, ")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("emb.tif", "emb_input.tif", "emb.png", "emb.html", "emb.stac.json"),
        *("map.tif", "map_input.tif", "map.stac.json"),
    }


def test_zarr(folder, tmp_path, capsys):
    assert command(folder, "embed", f"--resolution 20 --output {tmp_path / 'emb.zarr'}") == 0
    assert command(folder, "embed", f"--resolution 20 --output {tmp_path / 'emb.zarr'}") == 0
    assert "is finished already" in capsys.readouterr().out
    assert command(folder, "embed", f"--resolution 10 --output {tmp_path / 'emb.zarr'}") == 1
    assert "emb.zarr exists and is not the result of this request" in capsys.readouterr().err


def test_bounds_and_coordinate_system(folder, tmp_path):
    words = f"--resolution 10 --output {tmp_path / 'e.tif'} --bounds 500100,5399700,500200,5399900 --crs EPSG:32632"
    assert command(folder, "embed", words) == 0
    with rasterio.open(tmp_path / "e.tif") as file:
        assert tuple(file.bounds) == (500100, 5399700, 500200, 5399900) and file.crs.to_epsg() == 32632


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bounds 1,2,3", "--bounds 1,2,3: expected left,bottom,right,top, four numbers of metres"),
        ("--bounds 5,2,3,4", "--bounds 5,2,3,4: expected left < right and bottom < top, as left,bottom,right,top"),
        ("--ressolution 10", "--ressolution: neither an option nor a sensor of the weights, which have s2, s1"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, words, message, capsys):
    code = command(folder, "embed", f"--resolution 10 --output {tmp_path / 'emb.tif'} {words}")
    assert code == 1 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"anysat embed: {message}"


def test_values_that_are_standardised_already(folder, tmp_path, capsys):
    assert command(folder, "embed", f"--resolution 20 --normalise none --output {tmp_path / 'emb.tif'}") == 0
    assert "'s2' looks unnormalised" in capsys.readouterr().err  # these are not


def test_words_that_are_no_options_are_refused(folder, capsys):
    with pytest.raises(SystemExit):
        command(folder, "embed", "--resolution 10 --output x.tif more")
    assert "unknown argument 'more'" in capsys.readouterr().err


def test_a_sensor_of_the_users_own_has_an_option(tmp_path, monkeypatch, capsys):
    """It comes with the weights, in which it is described."""
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", SENSORS)
    register(Sensor("drone", "image", ("R", "G", "B"), 5.0))
    write_stack(tmp_path / "drone", "drone", 64, 64)
    save_model(tmp_path / "drone.safetensors", model("drone"))
    words = f"--weights {tmp_path / 'drone.safetensors'} --drone {tmp_path / 'drone'} --patch-size 10 --resolution 5"
    del SENSORS["drone"]
    assert cli.main("embed", [*words.split(), "--output", str(tmp_path / "emb.tif")]) == 0, capsys.readouterr().err
    with rasterio.open(tmp_path / "emb.tif") as file:
        assert file.shape == (64, 64)
    del SENSORS["drone"]


@pytest.mark.parametrize("name", ["embed", "predict", "view"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(name, ["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: anysat {name}" in shown and (name == "view" or "--s1-asc" in shown)


def test_the_commands_are_those_of_anysat(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "anysat_jax", "view", "x.tif"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ran.returncode == 1 and ran.stderr.startswith("anysat view: no x.tif; expected a GeoTIFF or Zarr")
    assert {COMMANDS[name].words for name in ("embed", "predict", "view")} == {("embed",), ("predict",), ("view",)}


def test_the_package_is_light():
    check = (
        "import sys, anysat_jax.scenes; print([n for n in ('rasterio', 'jax', 'xarray', 'zarr') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(anysat_jax.__main__, "find_spec", lambda name: None if name == "zarr" else name)
    monkeypatch.setattr("sys.argv", ["anysat", "embed", "--help"])
    with pytest.raises(SystemExit, match=r"^anysat embed needs zarr: pip install 'anysat-jax\[scenes\]'$"):
        anysat_jax.__main__.main()

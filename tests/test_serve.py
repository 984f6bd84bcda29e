"""Programs with the weights inside: equal to the model, in processes without it."""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from anysat_jax import AnySat, export
from anysat_jax.batch import fake_batch
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, apply_network, init_head
from anysat_jax.downstream.task import Task
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder
from anysat_jax.serve import Program, deepness_metadata, make_function
from anysat_jax.weights.exported import Exported, ExportedHead, load_exported, save_exported
from tests.validate.fakes import as_data

MODEL = ModelConfig(dim=32, depth=1, num_heads=2, sensors=("modis", "s2", "spot"))
TASK = Task("fields", "Fields", "dense", "class", ("wheat", "maize", "oats"), metres=5.0, sensor="spot")
STATISTICS = {"spot": {"mean": [51.0, 102.0, 153.0], "std": [25.5, 51.0, 102.0]}}

# Runs a file of each form on arrays, and keeps what is imported away from it.
RUN_JAX = """
import sys
sys.modules["anysat_jax"] = sys.modules["flax"] = None
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
for path in sys.argv[2:]:
    np.save(path + ".out", program.call(dict(np.load(path))))
"""
RUN_ONNX = """
import sys
sys.modules["anysat_jax"] = sys.modules["jax"] = None
import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
np.save(sys.argv[2] + ".out", session.run(None, dict(np.load(sys.argv[2])))[0])
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The exported file of a finished fine-tuning."""
    head = init_head(NetworkConfig(MODEL, HeadConfig(input="dense"), TASK), 0)
    head = ExportedHead(dataclasses.asdict(HeadConfig(input="dense")), dataclasses.asdict(TASK), head)
    path = tmp_path_factory.mktemp("weights") / "fields.safetensors"
    save_exported(path, MODEL, init_encoder(MODEL, 7), head=head, statistics=STATISTICS, source={"row": "A"})
    return path


def masked_data(batch_size: int, dates: int, *sensors: str) -> dict[str, np.ndarray]:
    """Tiles of 20 x 30 m with clouds (NaN), padded dates, and, of several tiles, one without an image."""
    data = as_data(fake_batch(sensors, batch_size=batch_size, extent=(20.0, 30.0), num_dates=dates))
    rng = np.random.default_rng(0)
    for name in sensors:
        values = data[name]
        mask = rng.random((*values.shape[:-3], 1, *values.shape[-2:])) > (0 if name == "modis" else 0.3)
        if name == "spot":
            mask[1:] = False
        else:
            data[f"{name}_date_mask"] = np.arange(dates)[None] < dates - np.arange(batch_size)[:, None]
        data[name], data[f"{name}_mask"] = np.where(mask, values, np.nan).astype(np.float32), mask
    return data


def run_apart(script: str, program: pathlib.Path, *inputs: dict[str, np.ndarray]) -> tuple[list[np.ndarray], str]:
    """Outputs of a program in a process of its own, and what it prints."""
    files = [program.with_name(f"inputs{number}.npz") for number in range(len(inputs))]
    for file, arrays in zip(files, inputs, strict=True):
        np.savez(file, **arrays)
    command = [sys.executable, "-c", script, str(program), *map(str, files)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [np.load(f"{file}.out.npy") for file in files], printed


def model_of(path: pathlib.Path) -> tuple[AnySat, Exported]:
    whole = load_exported(path)
    return AnySat(whole.model, whole.encoder_params), whole


def test_jax_without_this_package(weights, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    path, sensors = tmp_path / "fields.jax", ("modis", "s2", "spot")
    options = ["--for=jax", "--sensors=s2,spot,modis", "--extent=20x30", "--output=patch", "--masks"]
    assert export.main([str(weights), str(path), *options]) == 0
    said = (
        f"{path}: patch features of modis, s2, spot, tiles of 20 x 30 m, patches of 10 m, for cpu, cuda, tpu; read by"
    )
    assert capsys.readouterr().out.startswith(said)
    inputs = [masked_data(batch_size, dates, *sensors) for batch_size, dates in ((1, 1), (2, 3))]
    outputs, _ = run_apart(RUN_JAX, path, *inputs)
    for given, found in zip(inputs, outputs, strict=True):
        np.testing.assert_allclose(found, model_of(weights)[0](given, output="patch"), atol=2e-5)

    facts = json.loads(path.with_name("fields.jax.json").read_text())
    assert facts["inputs"]["s2"] == ["float32", "batch", "dates_s2", "10", "2", "3"]
    assert facts["output"] == ["float32", "batch", "2", "3", "32"] and facts["bands"]["spot"] == ["R", "G", "B"]
    assert facts["read_by"].endswith(f"six months after that of jax {jax.__version__}")
    # The command makes the same file again, from which nobody learns where it was made.
    assert str(pathlib.Path(export.__file__).parent).encode() not in path.read_bytes()
    assert export.main(shlex.split(facts["command"])[2:]) == 0
    assert json.loads(path.with_name("fields.jax.json").read_text())["sha256"] == facts["sha256"]


@pytest.fixture(scope="module")
def raster():
    """Predictions of the task, for QGIS."""
    return Program(("spot",), (20.0, 20.0), output="task", raster=True)


@pytest.fixture(scope="module")
def predicted(weights):
    """Raw values of a raster, and the model's probabilities as a raster."""
    values = fake_batch(("spot",), batch_size=1, extent=20.0)
    model, whole = model_of(weights)
    network = NetworkConfig(MODEL, HeadConfig(input="dense"), TASK)
    logits = jax.jit(apply_network, static_argnums=0)(
        network, {"encoder": model.params, "head": whole.head.params}, values
    )
    chances = np.asarray(jax.nn.softmax(logits, axis=-1)).transpose(0, 3, 1, 2)
    mean, std = (np.float32(STATISTICS["spot"][key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    raw = values.observations["spot"].values * std + mean
    return raw, chances.repeat(5, axis=2).repeat(5, axis=3)  # labels of 5 m, 1 m pixels


def test_raw_values_of_a_raster(weights, raster, predicted):
    program = make_function(load_exported(weights), dataclasses.replace(raster, normalise="auto"))
    np.testing.assert_allclose(jax.jit(program)({"spot": predicted[0]}), predicted[1], atol=1e-5)


def test_the_metadata_of_deepness(weights, raster):
    keys = deepness_metadata(load_exported(weights), raster)
    assert keys["model_type"] == "Segmentor" and keys["class_names"] == {0: "wheat", 1: "maize", 2: "oats"}
    assert (keys["resolution"], keys["tile_size"], keys["tiles_overlap"]) == (100.0, 20, 0)
    # The plugin's division by 255 is undone.
    assert keys["standardization_mean"] == [0.0] * 3 and keys["standardization_std"] == [1 / 255] * 3
    larger = dataclasses.replace(raster, extent=(40.0, 40.0), output="dense")
    keys = deepness_metadata(load_exported(weights), larger)
    assert (keys["model_type"], keys["tiles_overlap"]) == ("Regressor", 50)


def test_onnx_without_jax(weights, tmp_path, predicted, capsys):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    path = tmp_path / "series.onnx"
    options = ["--for=onnx", "--sensors=s2,spot", "--extent=20x30", "--masks", "--batch=2", "--dates=3"]
    assert export.main([str(weights), str(path), *options]) == 0, capsys.readouterr().err
    assert path.stat().st_size < 2.5 * weights.stat().st_size  # no constants in the shapes of activations
    data = masked_data(2, 3, "s2", "spot")
    (found,), printed = run_apart(RUN_ONNX, path, data)
    np.testing.assert_allclose(found, model_of(weights)[0](data), atol=1e-4)
    assert json.loads(json.loads(printed)["anysat"])["inputs"]["s2_dates"] == ["int32", "2", "3"]

    path = tmp_path / "qgis.onnx"
    assert export.main([str(weights), str(path), "--for=qgis", "--sensors=spot", "--extent=20", "--output=task"]) == 0
    (found,), printed = run_apart(RUN_ONNX, path, {"spot": predicted[0]})
    np.testing.assert_allclose(found, predicted[1], atol=1e-4)
    assert json.loads(json.loads(printed)["model_type"]) == "Segmentor"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--for=jax", "--sensors=s2"], "--for=jax needs --sensors and --extent"),
        (["--for=jax", "--sensors=s2", "--extent=25"], "an extent of 25 m is not a whole number of 's2' pixels"),
        (["--for=jax", "--sensors=naip", "--extent=20"], "the model has no sensor 'naip'; it has modis, s2, spot"),
        (["--for=jax", "--sensors=s2", "--extent=20", "--normalise=auto"], "'auto' has no statistics of 's2'"),
        (["--for=onnx", "--sensors=s2", "--extent=20"], "a file as ONNX by its name; choose one that ends .onnx"),
        (["--for=qgis", "--sensors=s2", "--extent=20", "--output=dense"], "give one sensor, the day of a series"),
        (["--for=qgis", "--sensors=spot", "--extent=20"], "got spot, day None, output 'tile', masks False"),
        (["--for=qgis", "--sensors=spot", "--extent=20x30", "--output=dense"], "the extent is 20 x 30 m"),
    ],
)
def test_what_no_program_can_be_made_of(weights, tmp_path, capsys, options, message):
    path = tmp_path / ("fields.onnx" if options[0] == "--for=qgis" else "fields.jax")
    assert export.main([str(weights), str(path), *options]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_predictions_need_a_head(tmp_path, capsys):
    path = tmp_path / "encoder.safetensors"
    save_exported(path, MODEL, init_encoder(MODEL, 7), source={})
    options = ["--for=jax", "--sensors=spot", "--extent=20", "--output=task"]
    assert export.main([str(path), str(tmp_path / "fields.jax"), *options]) == 1
    assert "output 'task' needs a head" in capsys.readouterr().err

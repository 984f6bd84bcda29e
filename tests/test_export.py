"""The command that writes weights into one file, and what reads such a file."""

import dataclasses
import pathlib
import signal
import subprocess
import sys

import numpy as np
import optax
import pytest

from anysat_jax import AnySat, export
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, init_head
from anysat_jax.downstream.task import Task
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import count_parameters, init_encoder, init_student
from anysat_jax.pretrain.step import state_from_params
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh
from anysat_jax.train.workdir import INTERRUPTED
from anysat_jax.weights import exported
from anysat_jax.weights.exported import ExportedHead, load_exported, save_exported
from anysat_jax.weights.published import load_published
from tests.train.toys import assert_same
from tests.validate.fakes import make_data

SMALL = dict(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2)
MODEL = ModelConfig(**SMALL, sensors=("s2",))
TASK = Task("fields", "Fields", "tile", "class", ("wheat", "maize"))


@pytest.fixture(scope="module")
def params():
    return init_encoder(MODEL, 7)


@pytest.fixture
def finished(tmp_path, params):
    """The workdir of a fine-tuning that has ended."""
    head = init_head(NetworkConfig(MODEL, HeadConfig(), TASK), 0)
    head = ExportedHead(dataclasses.asdict(HeadConfig()), dataclasses.asdict(TASK), head)
    statistics = {"s2": {"mean": [0.0] * 10, "std": [2.0] * 10}}
    (tmp_path / "run").mkdir()
    save_exported(
        tmp_path / "run/model.safetensors", MODEL, params, head=head, statistics=statistics, source={"row": "A"}
    )
    return tmp_path / "run"


def test_the_teacher_of_a_pretraining(tmp_path, params, capsys):
    state = state_from_params(init_student(MODEL, 0), params, optax.sgd(0.1), make_mesh(MeshConfig(data=1, fsdp=1)))
    run = {"dtype": "float32", "model": {**SMALL, "preset": "tiny", "sensors": ["s2"], "norm_groups": "width"}}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, {}, {"step": 3, "config": run, "record": {}})
    assert export.main([str(tmp_path), str(tmp_path / "mini.safetensors")]) == 0
    said = f"{tmp_path}/mini.safetensors: an encoder of {count_parameters(params):,} parameters for s2\n"
    assert capsys.readouterr().out == said
    found = load_exported(tmp_path / "mini.safetensors")
    assert_same(found.encoder_params, params)
    assert found.model == MODEL and found.head is None
    assert found.source == {"source": str(tmp_path), "kind": "run"}


def test_encoder_and_head_of_a_finished_run(finished, tmp_path, capsys):
    assert export.main([str(finished), str(tmp_path / "fields.safetensors")]) == 0
    assert capsys.readouterr().out.endswith(" parameters for s2; a head for Fields\n")
    here, there = load_exported(tmp_path / "fields.safetensors"), load_exported(finished / "model.safetensors")
    assert_same((here.encoder_params, here.head.params), (there.encoder_params, there.head.params))
    assert here.head[:2] == there.head[:2]
    assert (here.model, here.statistics, here.source) == (there.model, there.statistics, there.source)


def test_a_published_checkpoint(golden_folder, tmp_path):
    pytest.importorskip("torch")
    export.export(golden_folder / "weights.pth", tmp_path / "published.safetensors")
    published = load_published(golden_folder / "weights.pth")
    found = load_exported(tmp_path / "published.safetensors")
    assert_same(found.encoder_params, published.encoder_params)
    assert found.model == published.config and found.source["kind"] == "published"


def test_features_of_an_exported_file_and_of_a_finished_run(finished, params):
    data = make_data("s2", extent=20.0)
    expected = np.asarray(AnySat(MODEL, params)(data))
    for path in (finished, finished / "model.safetensors"):
        model = AnySat.from_pretrained(str(path))
        assert model.config == MODEL
        np.testing.assert_array_equal(model(data), expected)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("no", "a.safetensors", "no no; expected a published .pth file, or the workdir of a run, or an exported"),
        (".", "a.safetensors", ". is not the workdir of a run: it has no folder checkpoints"),
        ("run", "a.pth", "a.pth: weights are written in the format of safetensors; choose a name that ends"),
        ("run", "no/a.safetensors", "no/a.safetensors cannot be written: "),
        (
            "run",
            "cut.safetensors/a.safetensors",
            "cut.safetensors/a.safetensors cannot be written: cut.safetensors is a",
        ),
        ("cut.safetensors", "a.safetensors", "cut.safetensors is not a safetensors file, or is cut off or damaged"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_sentence(finished, capsys, monkeypatch, source, target, message):
    monkeypatch.chdir(finished.parent)
    pathlib.Path("cut.safetensors").write_bytes((finished / "model.safetensors").read_bytes()[:-1])
    assert export.main([source, target]) == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"anysat_jax.export: {message}") and output.err.count("\n") == 1
    assert not output.out and not list(finished.parent.glob("a.*"))


def test_the_command_line_explains_itself():
    command = [sys.executable, "-m", "anysat_jax.export", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "SOURCE" in output and "FILE.safetensors" in output and "a published .pth file" in output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_interrupt_while_the_file_is_written_leaves_the_earlier_one(
    finished, tmp_path, monkeypatch, capsys, number, code
):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt(number)

    target = tmp_path / "out" / "weights.safetensors"
    target.parent.mkdir()
    assert export.main([str(finished), str(target)]) == 0
    before = target.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(exported, "save_file", interrupted)
        assert export.main([str(finished), str(target)]) == code
    assert capsys.readouterr().err == f"anysat_jax: {INTERRUPTED}\n"
    assert target.read_bytes() == before and list(target.parent.iterdir()) == [target]
    assert export.main([str(finished), str(target)]) == 0

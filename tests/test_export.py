"""The command that writes weights into one file, and what reads such a file."""

import dataclasses
import pathlib
import signal
import subprocess
import sys

import numpy as np
import optax
import pytest
import safetensors

from anysat_jax import SENSORS, AnySat, export
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, init_head
from anysat_jax.downstream.task import Task
from anysat_jax.errors import ConfigError
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import count_parameters, init_encoder, init_student
from anysat_jax.pretrain.step import state_from_params
from anysat_jax.sensors import Sensor, register
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh
from anysat_jax.train.workdir import INTERRUPTED
from anysat_jax.weights import exported
from anysat_jax.weights.convert import bare_entries, pretraining_entries, published_shapes
from anysat_jax.weights.exported import ExportedHead, load_exported, save_exported
from anysat_jax.weights.load import initial_student, load_encoder
from anysat_jax.weights.published import load_published
from tests import forked
from tests.parity.cases import predictor_heads, read_index
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
    assert found.source == {"source": str(tmp_path), "kind": "run"} and found.student is None
    export.export(tmp_path, tmp_path / "whole", whole=True)
    assert_same(load_exported(tmp_path / "whole/model.safetensors").student, init_student(MODEL, 0))


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


def assert_same_file(*paths):
    """Asserts that exported files have the same checksum, which covers the tensors and the description."""
    sums = set()
    for path in paths:
        with safetensors.safe_open(path, "numpy") as file:
            sums.add(file.metadata()["sha256"])
        assert load_exported(path)
    assert len(sums) == 1


@pytest.mark.parametrize(("name", "layout"), [("weights.pth", bare_entries), ("pretrain.pth", pretraining_entries)])
def test_golden_weights_come_back_from_every_form_byte_for_byte(golden_folder, tmp_path, name, layout):
    torch = pytest.importorskip("torch")
    path = golden_folder / name
    heads = predictor_heads(read_index(golden_folder))
    for number, target in enumerate(["a.safetensors", "ours", "b.pth", "c.safetensors", "d.pth"]):
        export.export(path, tmp_path / target, whole=True, predictor_heads=None if number else heads)
        path = tmp_path / target
    golden, back = (torch.load(one, weights_only=True)["state_dict"] for one in (golden_folder / name, path))
    assert back.keys() == golden.keys() == {entry.published for entry in layout(load_encoder(path).model)}
    for key, tensor in golden.items():
        assert back[key].dtype == tensor.dtype and back[key].shape == tensor.shape, key
        assert back[key].numpy().tobytes() == tensor.numpy().tobytes(), key
    assert_same_file(tmp_path / "a.safetensors", tmp_path / "ours/model.safetensors", tmp_path / "c.safetensors")


def test_a_pretraining_goes_to_pytorch_and_back_with_all_that_no_shape_reveals(tmp_path, monkeypatch, params, caplog):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", SENSORS.copy())
    monkeypatch.setattr(exported, "SENSORS", register.__globals__["SENSORS"])
    register(Sensor("drone", "image", ("R", "G", "B"), 0.1, subpatch_pixels=10))
    model = dataclasses.replace(
        MODEL, sensors=("s2", "drone"), predictor_heads=4, norm_groups="width", dtype="bfloat16"
    )
    student, statistics = init_student(model, 1), {"s2": {"mean": [1.0] * 10, "std": [2.0] * 10}}
    first, path = tmp_path / "a.safetensors", tmp_path / "a.pth"
    parts = dict(student=student, statistics=statistics, source={"name": "mini"})
    save_exported(first, model, init_encoder(model, 2), **parts)
    export.export(first, path, whole=True)
    assert "trained with positions = 'paper'; the published code computes with 'released'" in caplog.text
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state.keys() == {entry.published for entry in pretraining_entries(model)}
    assert {name: tuple(one.shape) for name, one in state.items()} == published_shapes(
        pretraining_entries(model), student | {"teacher": student["encoder"]}
    )
    del exported.SENSORS["drone"]
    export.export(path, tmp_path / "b.safetensors", whole=True)
    assert_same_file(first, tmp_path / "b.safetensors")
    found = initial_student(str(first), dataclasses.replace(model, sensors=("s2",)), 0, {}, {})
    assert_same(found[0]["predictor"], student["predictor"])
    assert_same(found[0]["encoder"]["spatial"], student["encoder"]["spatial"])
    with pytest.raises(ConfigError, match=r"model\.predictor_depth is 1 there and 2 in the config"):
        initial_student(str(first), dataclasses.replace(model, predictor_depth=2), 0, {}, {})


def test_the_encoder_alone(finished, tmp_path, params):
    torch = pytest.importorskip("torch")
    export.export(finished, tmp_path / "a.pth", encoder=True)
    state = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    assert state.keys() == {entry.published for entry in bare_entries(MODEL)}
    assert_same(load_encoder(tmp_path / "a.pth").params, params)


def test_features_of_an_exported_file_and_of_a_finished_run(finished, params):
    data = make_data("s2", extent=20.0)
    expected = np.asarray(AnySat(MODEL, params)(data))
    for path in (finished, finished / "model.safetensors"):
        model = AnySat.from_pretrained(str(path))
        assert model.config == MODEL
        np.testing.assert_array_equal(model(data), expected)


def features_of_the_bare_installation(path, out):
    """Writes features in a process in which no package of an extra can be imported."""
    sys.modules |= dict.fromkeys(("torch", "huggingface_hub", "rasterio", "h5py", "distributed"))
    np.save(out, AnySat.from_pretrained(path)(make_data("s2", extent=20.0)))


def test_an_exported_file_gives_features_without_any_extra(finished, params, tmp_path):
    out = tmp_path / "features.npy"
    assert forked.call(features_of_the_bare_installation, finished / "model.safetensors", out) == 0
    np.testing.assert_array_equal(np.load(out), AnySat(MODEL, params)(make_data("s2", extent=20.0)))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("no", "a.safetensors", "no no; expected a published .pth file, or the workdir of a run, or an exported"),
        (".", "a.safetensors", ". is not the workdir of a run: it has no folder checkpoints"),
        ("run", "a.pth", "a.pth: the published layouts have no names for a head, as that for Fields; choose a name"),
        ("run", "a.bin", "a.bin: weights are written as .safetensors or .pth, or into a folder; choose such a name"),
        ("run", "begun", "begun is the workdir of a run; give another folder, or a file that ends .safetensors"),
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
    pathlib.Path("begun/checkpoints").mkdir(parents=True)
    pathlib.Path("cut.safetensors").write_bytes((finished / "model.safetensors").read_bytes()[:-1])
    assert export.main([source, target]) == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"anysat_jax.export: {message}") and output.err.count("\n") == 1
    assert not output.out and not list(finished.parent.glob("a.*"))


def test_the_command_line_explains_itself():
    command = [sys.executable, "-m", "anysat_jax.export", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (
        "SOURCE" in output
        and "FILE.safetensors" in output
        and "--whole" in output
        and "a published .pth file" in output
    )


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
    assert target.read_bytes() == before
    assert {path.name for path in target.parent.iterdir()} == {target.name, "README.md"}
    assert export.main([str(finished), str(target)]) == 0

"""Loading published checkpoints: both layouts, what the shapes tell, and every way in which a file can be wrong."""

import dataclasses
import os
import pathlib
import pickle
import sys

import jax
import numpy as np
import pytest

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_student
from anysat_jax.weights.convert import bare_entries, pretraining_entries, to_published
from anysat_jax.weights.published import load_published
from data_pipelines.torch_files import read_arrays

torch = pytest.importorskip("torch")

CONFIG = ModelConfig(
    dim=32,
    depth=2,
    num_heads=2,
    predictor_depth=1,
    predictor_heads=2,
    positions="released",
    norm_groups="published",
    sensors=("aerial", "s2", "modis"),
)
WEIGHT = "blocks.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def params():
    student, teacher = init_student(CONFIG, 0), init_student(CONFIG, 1)
    return student | {"teacher": teacher["encoder"]}


@pytest.fixture
def bare(params):
    return tensors(to_published(bare_entries(CONFIG), params))


@pytest.fixture
def pretraining(params):
    return tensors(to_published(pretraining_entries(CONFIG), params))


def tensors(arrays):
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def save(folder: pathlib.Path, content, **options) -> pathlib.Path:
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("zipped", [True, False])
def test_loads_the_feature_extractor(tmp_path, bare, params, wrap, zipped):
    weights = load_published(save(tmp_path, wrap(bare), _use_new_zipfile_serialization=zipped))
    assert_equal(weights.encoder_params, params["encoder"])
    assert weights.predictor_params is weights.mask_token is weights.teacher_params is None
    assert weights.report.complete
    assert weights.config == dataclasses.replace(CONFIG, predictor_depth=4)


def test_loads_a_pretraining_run(tmp_path, pretraining, params):
    weights = load_published(save(tmp_path, {"state_dict": pretraining}), predictor_heads=2)
    assert_equal(weights.encoder_params, params["encoder"])
    assert_equal(weights.predictor_params, params["predictor"])
    assert_equal(weights.teacher_params, params["teacher"])
    np.testing.assert_array_equal(weights.mask_token, params["mask_token"])
    assert weights.config == CONFIG


def test_a_pretraining_run_may_lack_its_teacher(tmp_path, pretraining):
    student = {name: tensor for name, tensor in pretraining.items() if not name.startswith("target_encoder.")}
    weights = load_published(save(tmp_path, student), CONFIG)
    assert weights.teacher_params is None
    assert weights.predictor_params is not None


def test_positions_and_norms_are_those_of_the_training_whatever_the_config_says(tmp_path, bare):
    config = dataclasses.replace(CONFIG, positions="paper", norm_groups="width")
    assert load_published(save(tmp_path, bare), config).config == CONFIG


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_other_precisions_become_float32(tmp_path, bare, params, dtype):
    weights = load_published(save(tmp_path, {name: tensor.to(dtype) for name, tensor in bare.items()}))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(weights.encoder_params))
    token = torch.from_numpy(params["encoder"]["combiner"]["class_token"]).to(dtype).to(torch.float32).numpy()
    np.testing.assert_array_equal(weights.encoder_params["combiner"]["class_token"], token)


def test_parameters_that_want_gradients_load_too(tmp_path, bare):
    bare[WEIGHT] = torch.nn.Parameter(bare[WEIGHT])
    assert load_published(save(tmp_path, bare)).report.complete


def test_each_misfit_is_listed_by_its_published_name(tmp_path, bare):
    del bare["projector_s2.patch_embed.in_norm.bias"]
    bare["head.weight"] = torch.zeros(3)
    bare[WEIGHT] = bare[WEIGHT][:, :-1]
    path = save(tmp_path, bare)
    with pytest.raises(ValueError, match="does not fit a model of width 32, depth 2, 2 heads") as error:
        load_published(path)
    message = str(error.value)
    assert "missing: projector_s2.patch_embed.in_norm.bias" in message
    assert "unexpected: head.weight" in message
    assert f"mis-shaped: {WEIGHT}, expected (96, 32), found (96, 31)" in message
    assert str(path) in message


def test_misfits_are_filled_with_initial_values_when_not_strict(tmp_path, bare, params):
    del bare["projector_s2.patch_embed.in_norm.bias"]
    bare["head.weight"] = torch.zeros(3)
    bare[WEIGHT] = bare[WEIGHT][:, :-1]
    weights = load_published(save(tmp_path, bare), CONFIG, strict=False)
    assert_equal(weights.encoder_params, params["encoder"])  # the file was made from the same initial values
    assert weights.report.missing == ("projector_s2.patch_embed.in_norm.bias",)
    assert weights.report.unexpected == ("head.weight",)
    assert weights.report.misshaped == {WEIGHT: ((96, 32), (96, 31))}


def test_a_config_that_is_not_the_files(tmp_path, bare):
    with pytest.raises(ValueError, match=r"unexpected: projector_modis\.pad_parameter"):
        load_published(save(tmp_path, bare), dataclasses.replace(CONFIG, sensors=("aerial", "s2")))


def test_values_that_are_not_finite_are_refused(tmp_path, bare):
    bare[WEIGHT][3, 4] = float("nan")
    bare["cls_token"][0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=rf"NaN or infinite values in cls_token, {WEIGHT}"):
        load_published(save(tmp_path, bare))


def test_a_sensor_that_is_not_registered(tmp_path, bare):
    bare["projector_sentinel-9.pad_parameter"] = torch.zeros(())
    with pytest.raises(ValueError, match=r"unknown sensors sentinel-9.*register"):
        load_published(save(tmp_path, bare))


def test_no_shape_tells_the_predictors_heads(tmp_path, pretraining):
    with pytest.raises(ValueError, match="predictor of width 32: give predictor_heads"):
        load_published(save(tmp_path, pretraining))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"conv1.weight": torch.zeros(3)}, "not a checkpoint of the published AnySat: no cls_token"),
        (lambda state: {**state, "cls_token": torch.zeros(32)}, r"mis-shaped: cls_token, expected 3 dimensions"),
        (lambda state: {**state, "cls_token": torch.zeros(1, 1, 40)}, "a width of 40 does not go with"),
        (lambda state: {k: v for k, v in state.items() if "projector_" not in k}, "no projector in it"),
        (lambda state: [torch.zeros(3)], "the content is of type list; expected a PyTorch checkpoint"),
        (lambda state: {}, "the content is an empty dictionary"),
        (lambda state: {"epoch": 3}, "entry 'epoch' is of type int; expected a dense tensor"),
        (lambda state: {**state, "cls_token": state["cls_token"].to_sparse()}, "expected a dense tensor"),
        (lambda state: {**state, WEIGHT: state[WEIGHT].to(torch.int64)}, rf"{WEIGHT}' is .* torch\.int64; expected fl"),
        (lambda state: {**state, WEIGHT: state[WEIGHT] > 0}, r"torch\.bool; expected floating-point values"),
        (lambda state: {**state, WEIGHT: state[WEIGHT] + 1j}, r"torch\.complex64; expected floating-point values"),
        (lambda state: {**state, WEIGHT: state[WEIGHT].to("meta")}, r"without values \(device meta\); expected fl"),
        (
            lambda state: {**state, WEIGHT: torch.quantize_per_tensor(state[WEIGHT], 0.1, 0, torch.qint8)},
            r"torch\.qint8; expected floating-point values",
        ),
    ],
)
def test_contents_that_are_no_model(tmp_path, bare, change, message):
    path = save(tmp_path, change(bare))
    with pytest.raises(ValueError, match=message) as error:
        load_published(path)
    assert str(path) in str(error.value)


class RunsWhenLoaded:
    """Its pickle makes a folder wherever it is loaded without care."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zipped", "legacy", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, bare, kind):
    target, path = tmp_path / "it ran", tmp_path / "weights.pth"
    content = {"state_dict": bare, "extra": RunsWhenLoaded(target)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zipped")
    with pytest.raises(ValueError, match=r"(holds a pickled|of a kind) .*could run code.*state_dict"):
        load_published(path)
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_truncated_file(tmp_path, bare, zipped, kept):
    path = save(tmp_path, bare, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"cannot be read .*expected a PyTorch checkpoint: .* again"):
        load_published(path)


def test_a_flipped_bit_of_a_tensor_is_found(tmp_path, bare):
    path = save(tmp_path, bare)
    content = bytearray(path.read_bytes())
    content[content.index(bare[WEIGHT].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read \(.* in it does not match its checksum\)"):
        load_published(path)


@pytest.mark.parametrize("content", [b"", b"hello, I am text\n" * 10, b"PK", bytes(1000)])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read .*download or copy it again"):
        load_published(path)


def test_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing\.pth"):
        load_published(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_published(tmp_path)


def test_without_torch_the_message_says_what_to_install(tmp_path, bare, monkeypatch):
    path = save(tmp_path, bare)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[torch\]'"):
        read_arrays(path)


def test_both_golden_files_load(golden_folder):
    bare = load_published(golden_folder / "weights.pth")
    run = load_published(golden_folder / "pretrain.pth", predictor_heads=4)
    assert len(bare.config.sensors) == 11
    assert bare.config == run.config
    assert bare.report.complete
    assert run.report.complete

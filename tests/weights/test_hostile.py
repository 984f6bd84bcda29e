"""Files of weights that are made to do harm: each is refused in one sentence, nothing runs, and nothing is written."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from anysat_jax import SENSORS, export
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import flat_names, init_encoder
from anysat_jax.weights.convert import bare_entries, to_published
from anysat_jax.weights.exported import FORMAT, Exported, checksum
from anysat_jax.weights.published import DESCRIPTION

MODEL = ModelConfig(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("spot", "s2"))


class RunsWhenLoaded:
    """Makes a folder of this name where its pickle is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("it ran",)


@pytest.fixture(scope="module")
def params():
    return init_encoder(MODEL, 0)


def header(text, data=bytes(8)):
    """The bytes of a .safetensors file with this header."""
    return lambda path, params: path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


def tensor(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def described(change, **more):
    """A whole file, with its checksum, whose description and tensors are changed."""

    def write(path, params):
        description = json.loads(Exported(MODEL, params, None, {}, {}).description())
        change(description)
        text = json.dumps(description)
        tensors = {f"encoder/{name}": np.array(leaf) for name, leaf in flat_names(params).items()} | more
        metadata = {"format": FORMAT, "version": "1", "description": text, "sha256": checksum(tensors, text)}
        save_file(tensors, path, metadata)

    return write


def same(description):
    pass


SAFETENSORS = {
    "a header longer than the file": lambda path, params: path.write_bytes(struct.pack("<Q", 2**40) + b"{}"),
    "a header as long as a number can say": lambda path, params: path.write_bytes(b"\xff" * 8 + b"{}"),
    "a header that is not text": lambda path, params: path.write_bytes(struct.pack("<Q", 4) + b"\xff\xfe{}"),
    "overlapping tensors": header(json.dumps({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)})),
    "a name twice": header(f'{{"a": {json.dumps(tensor([1], 0, 4))}, "a": {json.dumps(tensor([1], 4, 8))}}}'),
    "a hole": header(json.dumps({"a": tensor([1], 4, 8)})),
    "a tensor behind the end": header(json.dumps({"a": tensor([2**20], 0, 2**22)})),
    "a shape that overflows": header(json.dumps({"a": tensor([2**62, 4], 0, 0)})),
    "a shape that is not its bytes": header(json.dumps({"a": tensor([2**40, 2**20], 0, 8)})),
    "a pickle": lambda path, params: path.write_bytes(pickle.dumps(RunsWhenLoaded())),
    "names that lead elsewhere": described(same, **{"encoder/../../../evil": np.zeros(3, np.float32)}),
    "absolute names": described(same, **{"/etc/evil": np.zeros(3, np.float32)}),
    "values that are not numbers": described(same, **{"encoder/spatial/class_token": np.full(32, np.nan, np.float32)}),
    "a name that is a tensor and a folder": described(same, **{"encoder/spatial": np.zeros(3, np.float32)}),
    "a wide model": described(lambda content: content["model"].update(dim=16384)),
    "a deep model": described(lambda content: content["model"].update(depth=10**12)),
    "a large MLP": described(lambda content: content["model"].update(mlp_ratio=10**18)),
    "a predictor without end": described(
        lambda content: content.update(student=["predictor"], model=content["model"] | {"predictor_depth": 10**30})
    ),
    "a sensor of huge patches": described(
        lambda content: (
            content["model"].update(sensors=["evil"]),
            content["sensors"].append(
                content["sensors"][0] | {"name": "evil", "subpatch_pixels": 10**6, "metres_per_pixel": 1e-5}
            ),
        )
    ),
    "a sensor whose name is a path": described(
        lambda content: (content["model"].update(sensors=["../x"]), content["sensors"][0].update(name="../x"))
    ),
    "a student of other parts": described(lambda content: content.update(student=["evil"])),
    "statistics that are a text": described(lambda content: content.update(statistics="evil")),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys, params):
    """Writes a file, and exports and converts it; nothing may come of it."""
    monkeypatch.chdir(tmp_path)

    def check(path, write):
        write(path, params)
        known = dict(SENSORS)
        for words in ([], ["--whole"]):
            assert export.main([str(path), "out/model.safetensors", *words]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"anysat_jax.export: {path}"), said
            assert len(said.splitlines()) == 1 and len(said) < 1000
        assert [one.name for one in tmp_path.iterdir()] == [path.name] and known == SENSORS

    return check


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors(tmp_path, refused, name):
    refused(tmp_path / "a.safetensors", SAFETENSORS[name])


def state(change, text=None):
    """A .pth file of changed tensors, with a description where one is given."""

    def write(path, params):
        torch = pytest.importorskip("torch")
        arrays = to_published(bare_entries(MODEL), {"encoder": params})
        tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
        change(torch, tensors)
        torch.save({"state_dict": tensors} | ({} if text is None else {DESCRIPTION: text}), path)

    return write


def deflated(path, params):
    """The archive, compressed: of zeros it could be a thousand times as large in memory."""
    state(lambda torch, tensors: [one.zero_() for one in tensors.values()])(path, params)
    with zipfile.ZipFile(path) as file:
        parts = {one.filename: file.read(one) for one in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)


def expanded(torch, tensors):
    tensors.update({name: torch.zeros(()).expand(one.shape) for name, one in tensors.items()})


PTH = {
    "code": lambda path, params: state(lambda torch, tensors: tensors.update(evil=RunsWhenLoaded()))(path, params),
    "a pickle": lambda path, params: path.write_bytes(pickle.dumps(RunsWhenLoaded())),
    "a compressed archive": deflated,
    "one number in the shape of many": state(expanded),
    "a description that is cut off": state(lambda torch, tensors: None, '{"model":'),
    "a description that is nested": state(lambda torch, tensors: None, "[" * 100_000),
    "a description of a deep model": state(
        lambda torch, tensors: None,
        json.dumps({"sensors": [], "model": dict(vars(MODEL), depth=10**12, sensors=["s2"])}),
    ),
}


@pytest.mark.parametrize("name", PTH)
def test_published(tmp_path, refused, name):
    pytest.importorskip("torch")
    refused(tmp_path / "a.pth", PTH[name])

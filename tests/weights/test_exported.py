"""Exported weights: every bit comes back, and no file that is not whole is taken for one."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from anysat_jax.downstream.network import HeadConfig, NetworkConfig, init_head
from anysat_jax.downstream.task import Task
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import flat_names, init_encoder
from anysat_jax.sensors import SENSORS, Sensor, register
from anysat_jax.weights import exported
from anysat_jax.weights.exported import FORMAT, ExportedHead, checksum, load_exported, save_exported
from tests.train.toys import assert_same

MODEL = ModelConfig(
    dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2", "modis"), dtype="bfloat16"
)
TASK = Task("fields", "Fields", "tile", "class", ("wheat", "Straße, asphalt"), metric="macro_f1")
STATISTICS = {"s2": {"mean": [0.1 + band for band in range(10)], "std": [1 / 3] * 10}}
SOURCE = {"source": "runs/mini", "kind": "run", "digest": None}


@pytest.fixture(scope="module")
def encoder():
    return init_encoder(MODEL, 3)


@pytest.fixture(scope="module")
def head():
    config = HeadConfig(kind="mlp", hidden=8)
    return ExportedHead(
        dataclasses.asdict(config), dataclasses.asdict(TASK), init_head(NetworkConfig(MODEL, config, TASK), 4)
    )


@pytest.fixture(scope="module")
def small():
    """Parameters whose file is short enough to be damaged everywhere; no check depends on their number."""
    return {"spatial": {"norm": {"scale": np.arange(3, dtype=np.float32)}}, "projector_s2": {"bias": np.ones((2, 1))}}


@pytest.fixture(scope="module")
def small_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "model.safetensors"
    save_exported(path, MODEL, small, statistics=STATISTICS, source=SOURCE)
    return path


def test_an_encoder_comes_back_bit_for_bit(tmp_path, encoder):
    encoder["spatial"]["class_token"][..., :3] = [-0.0, 1e-45, 3e38]  # what arithmetic would lose
    save_exported(tmp_path / "a.safetensors", MODEL, encoder, source=SOURCE)
    found = load_exported(str(tmp_path / "a.safetensors"))
    assert found.model == MODEL and found.head is None and found.statistics == {} and found.source == SOURCE
    assert checksum(found.encoder_params) == checksum(encoder)
    assert_same(found.encoder_params, encoder)


def test_a_file_from_before_norm_groups_has_the_published_numbers(tmp_path, encoder, monkeypatch):
    asdict = dataclasses.asdict

    def without_groups(one):
        return {name: value for name, value in asdict(one).items() if name != "norm_groups"}

    monkeypatch.setattr("anysat_jax.weights.exported.dataclasses.asdict", without_groups)
    save_exported(tmp_path / "a.safetensors", MODEL, encoder, source=SOURCE)
    assert load_exported(tmp_path / "a.safetensors").model == dataclasses.replace(MODEL, norm_groups="published")


def test_a_head_comes_back_with_its_task(tmp_path, encoder, head):
    save_exported(tmp_path / "a.safetensors", MODEL, encoder, head=head, statistics=STATISTICS, source=SOURCE)
    found = load_exported(tmp_path / "a.safetensors")
    assert (HeadConfig(**found.head.config), Task.from_json(found.head.task)) == (
        HeadConfig("mlp", hidden=8),
        TASK,
    )
    assert_same(found.head.params, head.params)
    assert_same(found.encoder_params, encoder)
    assert found.statistics == STATISTICS


def test_the_checksum_tells_names_shapes_and_values_apart():
    trees = [
        {"a": np.zeros(4, np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(2, np.float64)},
        {"a": -np.zeros(4, np.float32)},
    ]
    assert len({checksum(tree) for tree in trees} | {checksum(trees[0], "text")}) == 6


def assert_refused(path):
    with pytest.raises(ValueError, match=r"model\.safetensors (is|was) ") as error:
        load_exported(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def saved(small_file, tmp_path):
    return pathlib.Path(shutil.copy(small_file, tmp_path))


def test_a_file_cut_off_at_any_byte_is_refused(saved):
    for kept in reversed(range(saved.stat().st_size)):
        os.truncate(saved, kept)
        assert_refused(saved)


def test_a_file_with_something_behind_it_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert_refused(saved)


@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused(small_file, tmp_path_factory, data):
    content = bytearray(small_file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flipped") / "model.safetensors"
    path.write_bytes(content)
    assert_refused(path)


def test_every_byte_of_the_numbers_counts(saved):
    content = saved.read_bytes()
    for place in range(8 + struct.unpack("<Q", content[:8])[0], len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        saved.write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged: it does not match its checksum; get the file again"):
            load_exported(saved)


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am text\n" * 10, bytes(1000), b"PK\3\4" + bytes(50), struct.pack("<Q", 2) + b"{}"]
)
def test_a_file_that_is_something_else(saved, content):
    saved.write_bytes(content)
    assert_refused(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": FORMAT}])
def test_a_file_of_another_program(saved, metadata):
    save_file({"weight": np.zeros(3, np.float32)}, saved, metadata)
    assert_refused(saved)
    with pytest.raises(ValueError, match=r"was not written by this project.*python -m anysat_jax\.export"):
        load_exported(saved)


def test_a_file_of_a_later_version(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(exported, "VERSION", 2)
    save_exported(tmp_path / "a.safetensors", MODEL, encoder, source=SOURCE)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"a\.safetensors is of version '2' of the format, this is for 1; update"):
        load_exported(tmp_path / "a.safetensors")


@pytest.mark.parametrize("description", ["{}", "[]", '{"sensors": [], "head": null, "model": {"size": 3}}'])
def test_a_whole_file_that_says_something_else(saved, description):
    tensors = {"encoder/bias": np.zeros(3, np.float32)}
    metadata = {"format": FORMAT, "version": "1", "description": description, "sha256": checksum(tensors, description)}
    save_file(tensors, saved, metadata)
    with pytest.raises(ValueError, match=r"safetensors does not have the content of a file of version 1 \(.*'\)\);"):
        load_exported(saved)


def test_others_may_read_it(small_file):
    assert small_file.stat().st_mode & 0o777 == 0o644


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no exported file .*no\.safetensors"):
        load_exported(tmp_path / "no.safetensors")


def test_a_name_that_says_another_format(tmp_path, encoder):
    with pytest.raises(ValueError, match=r"model\.pth: .*choose a name that ends \.safetensors"):
        save_exported(tmp_path / "model.pth", MODEL, encoder, source=SOURCE)
    assert not list(tmp_path.iterdir())


def write_whole(path, tensors, model=MODEL, description=None):
    """Writes a file with its checksum, as another program could; `description` replaces the one of the model."""
    records = [dataclasses.asdict(SENSORS[name]) for name in SENSORS]
    content = dict(model=dataclasses.asdict(model), sensors=records, head=None, statistics={}, source=SOURCE)
    description = description or json.dumps(content)
    metadata = {"format": FORMAT, "version": "1", "description": description, "sha256": checksum(tensors, description)}
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: np.full_like(one, np.nan), "encoder/spatial/class_token holds NaN or infinite values"),
        (lambda one: one.astype(np.int32), "encoder/spatial/class_token has dtype int32, expected float32"),
        (lambda one: one.astype(np.float16), "encoder/spatial/class_token has dtype float16, expected float32"),
        (lambda one: one[:-1], r"encoder/spatial/class_token \(31,\), expected \(32,\)"),
        (None, r"encoder/spatial/class_token absent, expected \(32,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, encoder, change, message):
    tensors = {f"encoder/{name}": np.array(leaf, order="C") for name, leaf in flat_names(encoder).items()}
    token = tensors.pop("encoder/spatial/class_token")
    tensors |= {} if change is None else {"encoder/spatial/class_token": np.array(change(token), order="C")}
    with pytest.raises(ValueError, match=rf"a\.safetensors.*{message}.*; get the file again"):
        load_exported(write_whole(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize("description", ["{", "[" * 100_000, '"text"'])
def test_a_description_that_is_damaged_names_its_file(tmp_path, encoder, description):
    tensors = {"encoder/bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"a\.safetensors.* get the file again"):
        load_exported(write_whole(tmp_path / "a.safetensors", tensors, description=description))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_dtypes_that_numpy_lacks_name_the_file(tmp_path, dtype):
    import jax.numpy as jnp
    from safetensors.flax import save_file as save

    metadata = {"format": FORMAT, "version": "1", "description": "{}", "sha256": ""}
    save({"encoder/bias": jnp.zeros(3, dtype)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors "):
        load_exported(tmp_path / "a.safetensors")


def test_sensors_are_registered_only_of_a_file_that_is_whole_and_by_its_model(tmp_path, monkeypatch, encoder):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", SENSORS.copy())
    monkeypatch.setattr(exported, "SENSORS", register.__globals__["SENSORS"])
    drone = register(Sensor("drone", "image", ("R", "G", "B"), 0.1, subpatch_pixels=10))
    monkeypatch.setitem(SENSORS, "drone", drone)  # among the records that `write_whole` describes
    del exported.SENSORS["drone"]
    tensors = {f"encoder/{name}": np.array(leaf, order="C") for name, leaf in flat_names(encoder).items()}
    assert load_exported(write_whole(tmp_path / "a.safetensors", tensors)).model == MODEL
    assert "drone" not in exported.SENSORS
    exported.SENSORS["drone"] = drone
    model = dataclasses.replace(MODEL, sensors=("s2", "modis", "drone"))
    del exported.SENSORS["drone"]
    with pytest.raises(ValueError, match=r"projector_drone/embed/kernel absent, expected"):
        load_exported(write_whole(tmp_path / "a.safetensors", tensors, model))
    assert "drone" not in exported.SENSORS


def test_a_sensor_of_the_users_own_is_registered_and_not_confused(tmp_path, monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", SENSORS.copy())
    monkeypatch.setattr(exported, "SENSORS", register.__globals__["SENSORS"])
    drone = register(Sensor("drone", "image", ("R", "G", "B"), 0.1, subpatch_pixels=10))
    model = ModelConfig(dim=32, num_heads=2, predictor_heads=2, sensors=("drone",))
    save_exported(tmp_path / "a.safetensors", model, init_encoder(model, 0), source=SOURCE)
    del exported.SENSORS["drone"]
    assert load_exported(tmp_path / "a.safetensors").model == model
    assert exported.SENSORS["drone"] == drone
    exported.SENSORS["drone"] = Sensor("drone", "image", ("R", "G", "B", "NIR"), 0.1, subpatch_pixels=10)
    with pytest.raises(ValueError, match=r"a\.safetensors: it was made with .*'B'\).*, and here that name is .*'NIR'"):
        load_exported(tmp_path / "a.safetensors")


def overwrite_and_die(path, small):
    def die(*arguments):
        save_file(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    exported.save_file = die
    save_exported(path, MODEL, small, source={})


def test_a_killed_write_leaves_the_file_before_it(saved, small, encoder):
    before = saved.read_bytes()
    process = multiprocessing.get_context("spawn").Process(target=overwrite_and_die, args=(saved, small))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert saved.read_bytes() == before
    save_exported(saved, MODEL, encoder, source={})
    assert load_exported(saved).source == {}


@pytest.fixture
def full_disk():
    """No file can grow beyond 64 KiB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_file_before_it_and_nothing_else(saved, full_disk):
    before = saved.read_bytes()
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written: .*File too large"):
        save_exported(saved, MODEL, {"spatial": {"table": np.zeros(2**16, np.float32)}}, source={})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_description_can_be_read_by_other_programs(small_file):
    """The header is plain JSON, as the format has it: what a person sees who opens the file without this library."""
    content = small_file.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    description = json.loads(header["__metadata__"]["description"])
    assert description["model"]["dim"] == 32 and description["source"] == SOURCE
    assert [one["name"] for one in description["sensors"]] == ["s2", "modis"]
    assert header["encoder/spatial/norm/scale"]["dtype"] == "F32"

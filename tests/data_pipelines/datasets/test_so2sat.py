"""So2Sat LCZ42: files written here in the published layout, and a file of others' with that layout."""

import pickle
import shutil

import h5py
import numpy as np
import pytest

from anysat_jax.sensors import get_sensor
from data_pipelines import load
from data_pipelines.datasets.so2sat import CARD, ZONES, So2SatReader, holds_raw
from data_pipelines.fakes.so2sat import write_archive
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepared import PreparedDataset
from data_pipelines.registry import get_entry
from tests.data_pipelines.fake_reader import data_config, examples_of

COUNTS = {"training": 3, "validation": 1, "testing": 2}


def arrays_of(seed, count):
    """Radar whose channels tell themselves apart: channel c holds c and a random fraction, the amplitudes negated."""
    rng = np.random.default_rng(seed)
    sign = np.where(np.arange(8) < 4, -1, 1)
    return {
        "sen1": sign * (np.arange(8) + rng.random((count, 32, 32, 8))),
        "sen2": rng.uniform(0.01, 2.8, (count, 32, 32, 10)),
        "label": np.eye(17)[(np.arange(count) + 5) % 17],
    }


def write_file(root, name, arrays):
    """Replaces the file, which a reader may hold open."""
    with h5py.File(root / "new.h5", "w") as file:
        for key, array in arrays.items():
            file[key] = array
    (root / "new.h5").replace(root / f"{name}.h5")


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    for seed, (name, count) in enumerate(COUNTS.items()):
        write_file(root, name, arrays_of(seed, count))
    return root


def example_of(archive, split="train", number=1):
    return examples_of(So2SatReader(archive), split)[number]


def test_written_values_come_back(archive):
    for seed, (split, (name, count)) in enumerate(zip(CARD.splits, COUNTS.items())):
        arrays, reader = arrays_of(seed, count), So2SatReader(archive)
        assert reader.keys(split) == tuple(f"{name}_{row:06d}" for row in range(count))
        for row, key in enumerate(reader.keys(split)):
            example = reader.example(split, key)
            check_example(CARD, key, example)
            np.testing.assert_array_equal(example["s2"][0], np.float32(arrays["sen2"][row]).transpose(2, 0, 1))
            assert example["id"] == key and example["tile"] == (row + 5) % 17
            assert example["s2_mask"].all() and example["s1_mask"].all()


def test_rows_and_columns_are_not_swapped(archive):
    arrays = arrays_of(0, 3)
    arrays["sen2"][1, 3, 20] = np.arange(10) * 0.1 + 1
    arrays["sen1"][1, 3, 20] = 50
    write_file(archive, "training", arrays)
    example = example_of(archive)
    np.testing.assert_allclose(example["s2"][0, :, 3, 20], np.arange(10) * 0.1 + 1, rtol=1e-6)
    assert example["s1"][0, 0, 3, 20] == 50


def test_radar_is_the_filtered_intensity_of_vv_and_vh(archive):
    """The sixth and the fifth channel; neither the signed amplitudes before them nor the covariance after them."""
    values, example = arrays_of(0, 3)["sen1"][1], example_of(archive)
    assert get_sensor("s1").bands == ("VV", "VH", "VV/VH")
    np.testing.assert_array_equal(example["s1"][0, 0], np.float32(values[..., 5]))
    np.testing.assert_array_equal(example["s1"][0, 1], np.float32(values[..., 4]))
    np.testing.assert_allclose(example["s1"][0, 2], values[..., 5] / values[..., 4], rtol=1e-5)


def test_there_is_one_documented_day(archive):
    example = example_of(archive)
    for sensor in CARD.sensors:
        assert (example[f"{sensor}_dates"].tolist(), example[f"{sensor}_years"].tolist()) == ([0], [2017])
        assert example[sensor].shape[0] == 1 and "1 January 2017" in CARD.dates[sensor]


def test_classes_have_the_official_names():
    assert len(ZONES) == 17 == len(set(ZONES))
    assert (ZONES[0], ZONES[9], ZONES[10], ZONES[16]) == ("Compact high-rise", "Heavy industry", "Dense trees", "Water")


def test_pixels_without_data_are_masked(archive):
    arrays = arrays_of(0, 3)
    arrays["sen2"][1, 0, 1] = 0
    arrays["sen2"][1, 2, 3, 4] = np.nan
    arrays["sen2"][1, 4, 5, 0] = 0  # one dark band is an observation
    arrays["sen1"][1, 6, 7, 4], arrays["sen1"][1, 8, 9, 5] = 0, np.nan
    arrays["sen1"][1, 10, 11, 0] = np.nan  # none of our channels
    write_file(archive, "training", arrays)
    example = example_of(archive)
    check_example(CARD, "training_000001", example)
    assert np.argwhere(~example["s2_mask"][0, 0]).tolist() == [[0, 1], [2, 3]]
    assert np.argwhere(~example["s1_mask"][0, 0]).tolist() == [[6, 7], [8, 9]]


def test_a_reader_goes_to_another_process_without_its_files(archive):
    reader = So2SatReader(archive)
    first = reader.example("train", "training_000000")
    again = pickle.loads(pickle.dumps(reader)).example("train", "training_000000")
    np.testing.assert_array_equal(first["s2"], again["s2"])


def test_a_file_may_be_missing(archive):
    before = So2SatReader(archive).fingerprint
    (archive / "training.h5").unlink()
    reader = So2SatReader(archive)
    assert holds_raw(archive) and reader.splits() == ("val", "test") and reader.fingerprint != before
    for name in ("validation", "testing"):
        (archive / f"{name}.h5").unlink()
    assert not holds_raw(archive)
    with pytest.raises(FileNotFoundError, match="holds no tile of 'so2sat'; see https"):
        So2SatReader(archive)


def test_a_partition_of_the_third_version_is_read_and_named(archive, tmp_path):
    """Version 3 has three partitions, each with training and testing only; which one is for its user to choose."""
    top = tmp_path / "version3"
    for name in ("random", "block", "culture_10"):
        shutil.copytree(archive, top / name)
        (top / name / "validation.h5").unlink()
    entry = get_entry("so2sat")
    assert entry.reader(top / "block").splits() == ("train", "test")
    with pytest.raises(FileNotFoundError, match=r"block or \S+culture_10 or \S+random does: name that folder"):
        entry.reader(top)


def test_a_file_that_went_away_is_named(archive):
    reader = So2SatReader(archive)
    (archive / "validation.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*validation\.h5; expected an HDF5 file with 'sen1'"):
        reader.example("val", "validation_000000")


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_unreadable_files(archive, how):
    path = archive / "testing.h5"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>not found</html>"}[how])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .* expected an HDF5 file with 'sen1'"):
        So2SatReader(archive)


LAYOUTS = {
    "no label": (lambda a: a.pop("label"), r"testing\.h5 has no \['label'\]; expected an HDF5 file"),
    "channels": (lambda a: a.update(sen1=a["sen1"][..., :2]), r"testing\.h5 has arrays .*; expected .* \(N, 32, 32, 8"),
    "bands first": (lambda a: a.update(sen2=np.moveaxis(a["sen2"], -1, 1)), r"testing\.h5 has arrays"),
    "counts": (lambda a: a.update(label=a["label"][:1]), r"testing\.h5 has arrays .*'label': \(1, 17\)"),
    "scalar": (lambda a: a.update(label=np.float64(3)), r"testing\.h5 has arrays"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_files_of_another_layout(archive, case):
    change, message = LAYOUTS[case]
    arrays = arrays_of(2, 2)
    change(arrays)
    write_file(archive, "testing", arrays)
    with pytest.raises(ValueError, match=message):
        So2SatReader(archive)


def put(key, index, value):
    return lambda arrays: arrays[key].__setitem__(index, value)


SPOILED = {
    "two classes": (put("label", (1, 0), 1), r"'label' is \[1\.0, .*; expected a single 1 among 16 zeros"),
    "no class": (put("label", 1, 0), r"'label' is \[0\.0, "),
    "a share": (put("label", (1, slice(2)), 0.5), r"'label' is \[0\.5, 0\.5"),
    "digital numbers": (put("sen2", 1, 2800.0), r"'sen2' goes up to 2800; expected reflectance from 0 to about 3"),
    "nothing": (put("sen2", 1, 0.0), r"'sen2' holds no value but zeros"),
    "decibels": (put("sen1", (1, ..., slice(4, 6)), -12.0), r"'sen1' is not above 0 .* not decibels"),
    "text": (lambda a: a.update(sen2=np.full((3, 32, 32, 10), b"x")), r"expected numbers of shape \(32, 32, 10\)"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_patches(archive, case):
    change, message = SPOILED[case]
    arrays = arrays_of(0, 3)
    change(arrays)
    write_file(archive, "training", arrays)
    with pytest.raises(ValueError, match=rf"(?s)training\.h5.*{message}"):
        example_of(archive)
    with pytest.raises(ValueError, match="patch 1"):
        So2SatReader(archive).example("train", "training_000001")


def test_one_patch_is_read_at_a_time(archive, monkeypatch):
    """The published file of 352,366 patches is larger than memory."""
    asked = []
    real = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, args, **k: (asked.append(args), real(self, args, **k))[1]
    )
    So2SatReader(archive).example("train", "training_000002")
    assert asked == [2, 2, 2]


def test_the_made_up_archive_keeps_the_card(tmp_path):
    write_archive(tmp_path, {"train": 18, "val": 2, "test": 1}, seed=3)
    reader = So2SatReader(tmp_path)
    check_card(CARD)
    assert holds_raw(tmp_path) and [len(reader.keys(split)) for split in CARD.splits] == [18, 2, 1]
    for split in CARD.splits:
        for example in examples_of(reader, split):
            check_example(CARD, example["id"], example)
    assert {int(example["tile"]) for example in examples_of(reader, "train")} == set(range(17))


def test_prepared_and_batched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "raw"
    write_archive(root, {"train": 4})
    folder = prepare_dataset(So2SatReader(root), tmp_path / "out", "1.0.0")
    assert len(PreparedDataset.open(CARD, folder).records("train")) == 4
    config = data_config(root)
    config.datasets = {CARD.name: dict(batch_size=2, weight=1.0, patch_sizes=(10, 80))}
    batch = next(load.train_iterator(load.open_datasets(config), seed=0))
    assert batch.observations["s1"].values.shape == (2, 1, 3, 32, 32) and batch.labels["tile"].shape == (2,)


def test_a_file_that_others_wrote_in_this_layout(real_data, tmp_path):
    """Random bytes, so that only layout and labels can be compared."""
    root = real_data / "FAKE_torchgeo" / "tests" / "data" / "so2sat"
    reader = So2SatReader(root)
    assert {split: len(reader.keys(split)) for split in CARD.splits} == {"train": 2, "val": 2, "test": 2}
    with pytest.raises(ValueError, match=r"training\.h5, patch 1: 'sen1' is not above 0"):
        reader.example("train", "training_000001")  # whole numbers 0 and 1
    with h5py.File(root / "training.h5") as file:
        content = {key: file[key][()] for key in ("sen1", "sen2", "label")}
    content["sen1"] = content["sen1"] + 0.5
    write_file(tmp_path, "training", content)
    example = So2SatReader(tmp_path).example("train", "training_000001")
    assert example["tile"] == content["label"][1].argmax()
    np.testing.assert_array_equal(example["s1"][0, :2], content["sen1"][1, ..., [5, 4]])

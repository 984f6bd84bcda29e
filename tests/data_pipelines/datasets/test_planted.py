"""PLANTED: records and `.npz` files of known values, written here, and the made-up archive."""

import datetime
import json
import pickle
import runpy
import sys
import time

import numpy as np
import pytest

from data_pipelines import load
from data_pipelines.archives import encode_example, write_records
from data_pipelines.datasets.planted import CARD, LAYOUT, RecordKeys, holds_raw, open_reader, write_species
from data_pipelines.fakes.planted import NAMES, write_archive
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from tests.data_pipelines.fake_reader import data_config, examples_of

SHAPES = {
    "s2": (8, 12, 12, 10),
    "s1": (8, 12, 12, 3),
    "l7": (20, 4, 4, 6),
    "alos": (4, 4, 4, 3),
    "modis": (60, 1, 1, 7),
}
FILE = "planted-train.tfrecord-00000-of-00001"


def milliseconds(text):
    return int(datetime.datetime.fromisoformat(text + "+00:00").timestamp() * 1000)


def tile_arrays():
    """Values that tell date, row, column and band; month by month from 2013 on."""
    arrays = {}
    for sensor, shape in SHAPES.items():
        date, row, column, band = np.indices(shape)
        arrays[sensor] = (1000.0 * (band + 1) + 100 * date + 12 * row + column).astype(np.float32)
        arrays[f"{sensor}_mask"] = np.ones(shape, np.uint8)
        months = [milliseconds(f"{2013 + i // 12}-{i % 12 + 1:02}-01T23:59:59") for i in range(shape[0])]
        arrays[f"{sensor}_timestamps"] = np.array(months)
    arrays["s1"][:] = -arrays["s1"] / 1000
    return arrays


def write_tile(folder, arrays, species=b"Arbor ficta 07"):
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / FILE, [encode_example({**arrays, "species": species})])
    (folder / "species.txt").write_text("\n".join(NAMES))
    return folder


def read_tile(folder):
    reader = open_reader(folder)
    (example,) = examples_of(reader, "train")
    check_example(CARD, example["id"], example)
    return example


def write_npz(folder, arrays, label=7):
    (folder / "train" / "a1").mkdir(parents=True)
    (folder / "train" / "labels2.json").write_text(json.dumps({"a1": label, "elsewhere": 3}))
    for name, array in arrays.items():
        np.savez(folder / "train" / "a1" / f"a1_{name.replace('timestamps', 'timestamp')}.npz", array)
    return folder


@pytest.fixture(params=["records", "npz"])
def write(request, tmp_path):
    """Writes one tile in either layout."""
    both = {"records": write_tile, "npz": write_npz}
    return lambda arrays: both[request.param](tmp_path / "raw", arrays)


def test_the_card():
    check_card(CARD)
    assert len(CARD.tile_classes) == 40 and "tfrecord" in LAYOUT


def test_written_values_come_back(write):
    arrays = tile_arrays()
    example = read_tile(write(arrays))
    for sensor in ("s2", "l7", "modis"):
        np.testing.assert_array_equal(example[sensor], np.moveaxis(arrays[sensor], -1, 1))
    for sensor in ("s1", "alos"):
        np.testing.assert_array_equal(example[sensor][:, :2], np.moveaxis(arrays[sensor], -1, 1)[:, :2])
    assert example["s2"][3, 1, 5, 2] == 2000 + 300 + 12 * 5 + 2  # date 3, band B3, row 5, column 2
    assert example["modis_dates"][:3].tolist() == [0, 31, 59]
    assert example["modis_years"][[0, 11, 12]].tolist() == [2013, 2013, 2014]
    assert all(example[f"{sensor}_mask"].all() for sensor in SHAPES)
    assert example["tile"] == 7


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_days_are_those_of_utc_in_every_time_zone(write, monkeypatch, zone):
    """The last second of a day and the first of the next are different days, wherever the machine stands."""
    arrays = tile_arrays()
    arrays["alos_timestamps"][:2] = [milliseconds("2015-12-31T23:59:59"), milliseconds("2016-01-01T00:00:00")]
    arrays["alos_timestamps"][2:] = [milliseconds("2016-12-31T12:00:00"), milliseconds("2017-01-01T00:00:01")]
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        example = read_tile(write(arrays))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert example["alos_dates"].tolist() == [364, 0, 365, 0]
    assert example["alos_years"].tolist() == [2015, 2016, 2016, 2017]


def test_masks_are_one_where_valid(write):
    arrays = tile_arrays()
    arrays["s2_mask"][2, 3, 4, 5] = 0
    arrays["s2_mask"][6] = 0  # a date without anything
    arrays["l7_mask"][:] = 0  # a sensor without anything
    arrays["modis"][1, 0, 0, 2] = np.nan
    example = read_tile(write(arrays))
    assert len(example["s2"]) == 7 and np.argwhere(~example["s2_mask"]).tolist() == [[2, 5, 3, 4]]
    assert example["s2"][2, 5, 3, 4] == 0 and example["s2_dates"][-2:].tolist() == [151, 212]
    assert not [name for name in example if name.startswith("l7")]
    assert np.argwhere(~example["modis_mask"]).tolist() == [[1, 2, 0, 0]]


def test_the_date_of_a_missing_acquisition_does_not_matter(write):
    arrays = tile_arrays()
    arrays["s2_mask"][6], arrays["s2_timestamps"][6] = 0, 0
    assert len(read_tile(write(arrays))["s2"]) == 7


def test_dates_are_put_in_order(write):
    arrays = tile_arrays()
    straight = np.moveaxis(arrays["s2"], -1, 1)
    for suffix in ("", "_mask", "_timestamps"):
        arrays[f"s2{suffix}"] = arrays[f"s2{suffix}"][::-1]
    np.testing.assert_array_equal(read_tile(write(arrays))["s2"], straight)


def test_the_radars_third_channel_is_a_ratio_instead_of_the_angle(write):
    arrays = tile_arrays()
    arrays["s1"][..., 0], arrays["s1"][..., 1], arrays["s1"][..., 2] = -8.0, -15.0, 38.0
    arrays["alos"][..., 0], arrays["alos"][..., 1] = 6000, 3000
    arrays["s1_mask"][1, 2, 3, 1] = 0
    arrays["s1_mask"][..., 2] = 0  # the angle's own mask
    arrays["alos"][0, 0, 0, 1] = 0  # no data
    example = read_tile(write(arrays))
    assert example["s1"][0, :, 0, 0].tolist() == [-8.0, -15.0, 7.0]  # dB: a difference
    assert example["alos"][1, :, 0, 0].tolist() == [6000.0, 3000.0, 2.0]  # amplitude: a quotient
    assert np.argwhere(~example["s1_mask"]).tolist() == [[1, 1, 2, 3], [1, 2, 2, 3]]
    assert np.argwhere(~example["alos_mask"]).tolist() == [[0, 1, 0, 0], [0, 2, 0, 0]]
    assert example["alos"][0, 2, 0, 0] == 0


def test_linear_power_becomes_decibels_and_alos_decibels_are_subtracted(write):
    arrays = tile_arrays()
    arrays["s1"][..., 0], arrays["s1"][..., 1] = 0.1, 0.01
    arrays["alos"][..., 0], arrays["alos"][..., 1] = -7.0, -12.0
    example = read_tile(write(arrays))
    np.testing.assert_allclose(example["s1"][0, :, 0, 0], [-10.0, -20.0, 10.0], rtol=1e-5)
    assert example["alos"][0, :, 0, 0].tolist() == [-7.0, -12.0, 5.0]


def test_radars_without_the_angle(write):
    arrays = tile_arrays()
    for name in ("s1", "s1_mask"):
        arrays[name] = arrays[name][..., :2]
    assert read_tile(write(arrays))["s1"].shape == (8, 3, 12, 12)


SPOILED = {
    "bands": ("s2", lambda a: a[..., :9], r"'s2' is .*expected numbers of shape \(8, 12, 12, 10\)"),
    "pixels": ("l7", lambda a: a[:, :3], r"'l7'.*expected numbers"),
    "dates": ("modis", lambda a: a[:59], r"'modis'.*expected numbers"),
    "mask": ("s2_mask", lambda a: a[:4], r"mask.*expected"),
    "seconds": ("alos_timestamps", lambda a: a // 1000, r"'alos' has the date \d+; expected milliseconds since 1970"),
    "far": ("alos_timestamps", lambda a: a * 10**6, r"'alos' has the date \d+; expected milliseconds since 1970"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_arrays(tmp_path, case):
    name, change, message = SPOILED[case]
    arrays = tile_arrays()
    arrays[name] = change(arrays[name])
    with pytest.raises(ValueError, match=rf"a1_\w+\.npz.*{message}"):
        examples_of(open_reader(write_npz(tmp_path / "npz", arrays)), "train")
    with pytest.raises(ValueError, match=rf"{FILE}, record 0: .*(expected numbers|{message})"):
        examples_of(open_reader(write_tile(tmp_path / "records", arrays)), "train")


# Records


def test_labels_may_be_numbers(tmp_path):
    for species in (np.array([12]), b"12"):
        assert read_tile(write_tile(tmp_path, tile_arrays(), species))["tile"] == 12


@pytest.mark.parametrize(
    ("species", "message"),
    [
        (b"", "record 0 has no species; expected the subset 'species'"),
        (b"Pinus mystica", r"the species 'Pinus mystica' has no class number, as .*species\.txt does not list it"),
        (np.array([40]), "the species is 40; expected a class from 0 to 39"),
        (b"-1", "the species '-1' has no class number"),
    ],
)
def test_labels_that_are_no_class(tmp_path, species, message):
    with pytest.raises(ValueError, match=rf"{FILE}, record 0.*{message}|{FILE}, {message}"):
        read_tile(write_tile(tmp_path, tile_arrays(), species))


def test_names_need_the_list_of_species(tmp_path):
    write_tile(tmp_path, tile_arrays())
    (tmp_path / "species.txt").unlink()
    message = (
        r"'Arbor ficta 07' has no class number, as .*species\.txt is missing; write one name a line .* run: python -m "
    )
    with pytest.raises(ValueError, match=message):
        read_tile(tmp_path)


def test_the_list_of_species_is_collected_from_the_records(tmp_path, monkeypatch, capsys):
    records = [encode_example({"species": name.encode()}) for name in reversed(NAMES)]
    write_records(tmp_path / FILE, records)
    monkeypatch.setattr("sys.argv", ["planted", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "data_pipelines.datasets.planted")
    runpy.run_module("data_pipelines.datasets.planted", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(tmp_path / "species.txt")
    assert open_reader(tmp_path).species == NAMES
    with pytest.raises(FileExistsError, match=r"species\.txt"):
        write_species(tmp_path)
    write_records(tmp_path / FILE, records[1:])
    with pytest.raises(ValueError, match=r"hold 39 species, \['Arbor ficta 00', .*; expected 40 names"):
        write_species(tmp_path)


@pytest.mark.parametrize("names", [NAMES[:39], (*NAMES[:39], NAMES[0])])
def test_a_wrong_list_of_species(tmp_path, names):
    write_tile(tmp_path, tile_arrays())
    (tmp_path / "species.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match=r"species\.txt has \d+ lines with 39 different names; expected 40"):
        open_reader(tmp_path)


def test_an_unknown_schema_lists_what_there_is(tmp_path):
    arrays = tile_arrays()
    arrays["s2_time"] = arrays.pop("s2_timestamps")
    with pytest.raises(
        ValueError, match=r"record 0 has no feature 's2_timestamps' but \['alos', .*'s2_time'.*expected"
    ):
        read_tile(write_tile(tmp_path, arrays))
    write_records(tmp_path / FILE, [encode_example({"image": np.zeros(3)})])
    with pytest.raises(ValueError, match=r"no feature 'species' but \['image'\]"):
        read_tile(tmp_path)


def test_files_tell_the_split_and_records_are_read_in_any_order(tmp_path):
    """Also files in a folder of their own for each version or subset."""
    names = ["1.2.0/planted-train.tfrecord-00000-of-00003", "1.2.0/planted-train.tfrecord-00002-of-00003"]
    names += ["1.2.0/planted-validation.tfrecord-00000-of-00001", "1.2.0/planted-test.tfrecord-00000-of-00001"]
    (tmp_path / "1.2.0").mkdir()
    arrays = tile_arrays()
    for number, name in enumerate(names):
        records = [encode_example({**arrays, "species": np.array([10 * number + i])}) for i in range(3)]
        write_records(tmp_path / name, records)
    reader = open_reader(tmp_path)
    assert [(split, len(reader.keys(split))) for split in reader.splits()] == [("train", 6), ("val", 3), ("test", 3)]
    assert "12 records" in reader.summary and "1 of 5 files are not there" in reader.summary
    keys = reader.keys("train")
    assert [int(reader.example("train", key)["tile"]) for key in reversed(keys)] == [12, 11, 10, 2, 1, 0]
    assert len(set(keys)) == 6 and keys[-1] == keys[5] and keys[1:3] == (keys[1], keys[2])
    assert pickle.loads(pickle.dumps(reader)).example("test", reader.keys("test")[0])["tile"] == 30
    with pytest.raises(KeyError):
        reader.example("train", names[0] + ":3")


def test_the_fingerprint_follows_the_records(tmp_path):
    write_tile(tmp_path, tile_arrays())
    before = open_reader(tmp_path).fingerprint
    assert open_reader(tmp_path).fingerprint == before
    write_tile(tmp_path, tile_arrays(), b"Arbor ficta 1")
    assert open_reader(tmp_path).fingerprint != before


def test_a_million_keys_take_no_memory():
    keys = RecordKeys(["a", "b"], [10**6, 5])
    assert len(keys) == 10**6 + 5 and keys[-1] == "b:4" and keys[10**6] == "b:0" and keys[999_999] == "a:999999"
    assert len(pickle.dumps(keys)) < 200
    with pytest.raises(IndexError):
        keys[10**6 + 5]


def test_a_truncated_file(tmp_path):
    path = write_tile(tmp_path, tile_arrays()) / FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{FILE}: record 0 ends at byte \d+, the file at \d+; download it again"):
        open_reader(tmp_path)


# Files


def test_labelled_tiles_on_disk_are_read(tmp_path):
    reader = open_reader(write_npz(tmp_path, tile_arrays()))
    assert reader.keys("train") == ("a1",) and "1 tiles in" in reader.summary and "of 2 labelled" in reader.summary
    before = reader.fingerprint
    (tmp_path / "train" / "labels2.json").write_text('{"a1": 8}')
    assert open_reader(tmp_path).fingerprint != before


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[1]", r"labels2\.json is not of the form \{ID: class number\}"),
        ('{"a1": "7"}', r"labels2\.json is not of the form"),
        ('{"a1": 40}', r"labels2\.json, tile 'a1': the species is 40; expected a class from 0 to 39"),
        ('{"../../etc": 1}', r"'\.\./\.\./etc' leads out of"),
        ("{", r"labels2\.json cannot be read"),
    ],
)
def test_wrong_labels(tmp_path, labels, message):
    write_npz(tmp_path, tile_arrays())
    (tmp_path / "train" / "labels2.json").write_text(labels)
    with pytest.raises(ValueError, match=message):
        open_reader(tmp_path)


@pytest.mark.parametrize("suffix", ["", "_mask", "_timestamp"])
def test_damaged_and_missing_files(tmp_path, suffix):
    path = write_npz(tmp_path, tile_arrays()) / "train" / "a1" / f"a1_s2{suffix}.npz"
    reader = open_reader(tmp_path)
    np.savez(path, data=np.zeros(3))
    with pytest.raises(ValueError, match=rf"{path} holds \['data'\]; expected the array 'arr_0'"):
        examples_of(reader, "train")
    np.savez(path, np.array([object()]))
    with pytest.raises(ValueError, match=rf"{path} cannot be read"):
        examples_of(reader, "train")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"{path} cannot be read"):
        examples_of(reader, "train")
    path.unlink()
    if suffix:
        with pytest.raises(FileNotFoundError, match=rf"no {path}; expected"):
            examples_of(reader, "train")
    else:
        assert "s2" not in examples_of(reader, "train")[0]


# Both


def test_nothing_there(tmp_path):
    assert not holds_raw(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no file like planted-train\.tfrecord-00000-of-01024; see http"):
        open_reader(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "labels2.json").write_text('{"a1": 8}')
    with pytest.raises(FileNotFoundError, match="holds no tile of 'planted'"):
        open_reader(tmp_path)


@pytest.mark.parametrize("layout", ["records", "npz"])
def test_the_made_up_archive(tmp_path, layout):
    sizes = {"train": 5, "val": 2, "test": 2}
    write_archive(tmp_path, sizes, seed=3, layout=layout)
    assert holds_raw(tmp_path)
    reader = open_reader(tmp_path)
    assert {split: len(reader.keys(split)) for split in reader.splits()} == sizes
    examples = [(key, reader.example(split, key)) for split in reader.splits() for key in reader.keys(split)]
    for key, example in examples:
        check_example(CARD, key, example)
    assert any(sensor not in example for sensor in CARD.sensors for _, example in examples)
    assert any(not example["s2_mask"].all() for _, example in examples if "s2" in example)


def test_prepared_and_batched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_archive(tmp_path / "raw", {"train": 4, "val": 1, "test": 1})
    folder = prepare_dataset(open_reader(tmp_path / "raw"), tmp_path / "out", "1.0.0")
    assert folder.is_dir()
    config = data_config(tmp_path / "raw")
    config.datasets = {"planted": dict(batch_size=2, weight=1.0, patch_sizes=(30, 60), max_dates=6)}
    batch = next(load.open_datasets(config)["planted"].evaluation_batches("train", patch_size=60, batch_size=2))
    assert batch.grid == (2, 2) and batch.observations["modis"].values.shape[2:] == (7, 1, 1)

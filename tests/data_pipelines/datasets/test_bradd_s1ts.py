"""BraDD-S1TS: an archive written here in the published layout."""

import csv
import datetime
import os
import pickle
import shutil

import numpy as np
import pytest

from data_pipelines import load
from data_pipelines.datasets.bradd_s1ts import CARD, LAYOUT, BraddReader, holds_raw
from data_pipelines.fakes.bradd_s1ts import COLUMNS, write_archive
from data_pipelines.prepare.plan import plan_facts
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepare.shards import read_tile
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import data_config

torch = pytest.importorskip("torch")

DAYS = [datetime.date(2021, 1, 6), datetime.date(2020, 12, 31), datetime.date(2021, 1, 1)]
NAME = "0000001_2021-01-06"


def known_tile():
    """Three dates out of order, each with its own decibels."""
    image = np.zeros((3, 2, 48, 48), np.float32)
    image[:, 0] = np.asarray([-8.0, -7.0, -6.0])[:, None, None]
    image[:, 1] = np.asarray([-15.0, -13.0, -14.0])[:, None, None]
    image[0, :, 2, 3] = (-20.0, -26.0)
    label = np.zeros((2, 48, 48), np.uint8)
    label[0, 0, 0] = label[1, 0, 0] = label[1, 40, 7] = 1
    return {"image": image, "image_dates": list(DAYS), "label": label, "label_dates": DAYS[:2]}


def write_tile(root, content, name=NAME):
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in content.items()}
    (root / "Samples").mkdir(parents=True, exist_ok=True)
    torch.save(tensors, root / "Samples" / f"{name}.pt")


def write_meta(root, rows):
    with (root / "meta.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, (name, split) in enumerate(rows):
            table.writerow([number, number, number, "2021-01-06", "positive", "PA", name, split])


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "raw"
    write_tile(root, known_tile())
    write_meta(root, [(f"{NAME}.pt", "train")])
    return root


def example_of(archive):
    return BraddReader(archive).example("train", NAME)


def test_written_values_come_back_in_time_order(archive):
    example = example_of(archive)
    assert example["id"] == NAME and example["s1"].shape == (3, 3, 48, 48)
    assert example["s1"][:, 0, 0, 0].tolist() == [-7.0, -6.0, -8.0]
    assert example["s1"][:, 1, 0, 0].tolist() == [-13.0, -14.0, -15.0]
    assert example["s1"][2, :2, 2, 3].tolist() == [-20.0, -26.0]
    check_example(CARD, NAME, example)


def test_days_of_the_year_start_at_zero_and_keep_their_year(archive):
    example = example_of(archive)
    assert example["s1_dates"].tolist() == [365, 0, 5] and example["s1_years"].tolist() == [2020, 2021, 2021]


def test_the_ratio_of_decibels_is_their_difference(archive):
    example = example_of(archive)
    assert example["s1"][:, 2, 0, 0].tolist() == [6.0, 8.0, 7.0]
    assert example["s1"][2, 2, 2, 3] == 6.0


def test_the_label_is_the_second_mask(archive):
    dense = example_of(archive)["dense"]
    assert dense.dtype == np.int8 and np.argwhere(dense).tolist() == [[0, 0], [40, 7]]


def test_the_masks_may_be_a_list(archive):
    content = known_tile()
    write_tile(archive, content | {"label": [torch.from_numpy(mask) for mask in content["label"]]})
    assert np.argwhere(example_of(archive)["dense"] == 1).tolist() == [[0, 0], [40, 7]]


def test_times_of_day_are_dropped(archive):
    content = known_tile()
    content["image_dates"] = [datetime.datetime(d.year, d.month, d.day, 23, 59) for d in DAYS]
    write_tile(archive, content)
    assert example_of(archive)["s1_dates"].tolist() == [365, 0, 5]


def test_unobserved_pixels_are_masked_and_empty_dates_left_out(archive):
    content = known_tile()
    content["image"][1] = 0
    content["image"][2, 0, 5, 6] = np.nan
    content["image"][2, :, 8, 9] = 0
    content["image"][0, 0, 1, 1] = 0  # 0 dB in one polarisation is a value
    write_tile(archive, content)
    example = example_of(archive)
    assert example["s1_dates"].tolist() == [0, 5]
    assert np.argwhere(~example["s1_mask"]).tolist() == [[0, 0, 5, 6], [0, 0, 8, 9]]
    assert not example["s1"][0, :, 5, 6].any()
    check_example(CARD, NAME, example)


def test_splits_come_from_close_set(tmp_path):
    write_archive(tmp_path, {"train": 2, "val": 1, "test": 3})
    reader = BraddReader(tmp_path)
    assert [len(reader.keys(split)) for split in CARD.splits] == [2, 1, 3]
    assert "validation" in (tmp_path / "meta.csv").read_text()


def test_what_is_listed_but_not_there_is_left_out_and_counted(archive):
    write_meta(archive, [(f"{NAME}.pt", "train"), ("0000002_2021-01-06.pt", "test"), ("0000003_2021-01-06.pt", "")])
    reader = BraddReader(archive)
    assert reader.splits() == ("train",) and "meta.csv lists 2 with a split" in reader.summary


def test_the_fake_archive_keeps_the_promise_of_the_card(tmp_path):
    check_card(CARD)
    write_archive(tmp_path, {"train": 2, "val": 1, "test": 1})
    reader = BraddReader(tmp_path)
    for split in reader.splits():
        for key in reader.keys(split):
            example = reader.example(split, key)
            check_example(CARD, key, example)
            assert 20 <= len(example["s1"]) <= 66 and len(np.unique(example["dense"])) == 2


def test_the_fake_archive_follows_its_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_archive(tmp_path / name, {"train": 1}, seed)
    a, b, c = (BraddReader(tmp_path / name) for name in "abc")
    first = a.example("train", a.keys("train")[0])["s1"]
    np.testing.assert_array_equal(first, b.example("train", b.keys("train")[0])["s1"])
    assert first.mean() != c.example("train", c.keys("train")[0])["s1"].mean()


def test_prepared_and_batched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_archive(tmp_path / "raw", {"train": 3, "val": 1})
    folder = prepare_dataset(BraddReader(tmp_path / "raw"), tmp_path / "out", "1.0.0")
    record = PreparedDataset.open(CARD, folder).records("train")[0]
    reader = BraddReader(tmp_path / "raw")
    np.testing.assert_array_equal(record["s1"], reader.example("train", reader.keys("train")[0])["s1"])
    config = data_config(tmp_path / "raw")
    config.datasets = {CARD.name: dict(batch_size=2, weight=1.0, patch_sizes=(40,), max_dates=16)}
    batch = next(load.open_datasets(config)[CARD.name].evaluation_batches("train", patch_size=40, batch_size=2))
    assert batch.grid == (12, 12) and batch.observations["s1"].values.shape[2:] == (3, 48, 48)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_file_that_would_run_code_is_refused_and_not_run(archive, tmp_path):
    trap = tmp_path / "trap"
    write_tile(archive, known_tile() | {"image_dates": Touch(str(trap))})
    with pytest.raises(ValueError, match=rf"{NAME}\.pt holds a pickled \S*system, which is refused"):
        example_of(archive)
    assert not trap.exists()


def put(key, index, value):
    def change(content):
        content[key][index] = value

    return change


def replace(key, function):
    def change(content):
        content[key] = function(content[key])

    return change


SPOILED = {
    "no key": (lambda c: c.pop("label"), r"lacks \['label'\]; expected a dict of torch\.save"),
    "bands": (replace("image", lambda a: a[:, :1].copy()), r"is float32 \(3, 1, 48, 48\); expected"),
    "side": (replace("image", lambda a: a[..., :47].copy()), r"is float32 \(3, 2, 48, 47\); expected"),
    "dtype": (replace("image", lambda a: a.astype(np.int16)), r"is int16 \(3, 2, 48, 48\); expected"),
    "no array": (replace("image", lambda a: a.tolist()), "is list; expected"),
    "nothing": (put("image", slice(None), np.nan), "'image' is zero or NaN everywhere"),
    "dates": (replace("image_dates", lambda d: d[:2]), "2 'image_dates' for 3 images; expected one each"),
    "texts": (put("image_dates", 0, "2021-01-06"), r"'image_dates' is \['2021-01-06'.*expected a list of datetime"),
    "no dates": (lambda c: c.update(image=c["image"][:0], image_dates=[]), "0 'image_dates' for 0 images"),
    "one mask": (replace("label", lambda a: a[:1].copy()), "'label' has 1 masks; expected"),
    "label side": (replace("label", lambda a: a[:, :, :40].copy()), r"is uint8 \(2, 48, 40\); expected"),
    "class": (put("label", (1, 3, 3), 2), r"'label' holds \[0, 1, 2\]; expected 0 \(no loss\)"),
    "NaN label": (lambda c: c.update(label=np.full((2, 48, 48), np.nan)), r"'label' holds \[nan"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_files(archive, case):
    change, message = SPOILED[case]
    content = known_tile()
    change(content)
    write_tile(archive, content)
    with pytest.raises(ValueError, match=rf"(?s){NAME}\.pt.*{message}"):
        example_of(archive)


def test_linear_power_is_refused(archive):
    content = known_tile()
    write_tile(archive, content | {"image": 10 ** (content["image"] / 10)})
    reader = BraddReader(archive)
    with pytest.raises(ValueError, match="tile .*'s1' runs from .*, like linear power; expected dB"):
        read_tile(reader, "train", reader.keys("train")[0])


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_unreadable_files(archive, how):
    path = archive / "Samples" / f"{NAME}.pt"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"<html>no</html>"}[how])
    with pytest.raises(ValueError, match=rf"{NAME}\.pt cannot be read .* expected .*; download"):
        example_of(archive)


def test_a_file_gone_since_the_listing(archive):
    reader = BraddReader(archive)
    (archive / "Samples" / f"{NAME}.pt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{NAME}\.pt; expected a dict"):
        reader.example("train", NAME)


def test_names_that_lead_out_are_refused(archive, tmp_path):
    write_meta(archive, [("../secret.pt", "train")])
    with pytest.raises(ValueError, match=r"meta\.csv: '\.\./secret\.pt' is not a tile; expected a name like"):
        BraddReader(archive)
    write_meta(archive, [("link.pt", "train")])
    shutil.copy(archive / "Samples" / f"{NAME}.pt", tmp_path / "secret.pt")
    (archive / "Samples" / "link.pt").symlink_to(tmp_path / "secret.pt")
    with pytest.raises(ValueError, match="leads out of"):
        BraddReader(archive).example("train", "link")


def test_spoiled_tables(archive):
    write_meta(archive, [(f"{NAME}.pt", "holdout")])
    with pytest.raises(ValueError, match=r"meta\.csv: close_set of .* is 'holdout', expected one of train, validation"):
        BraddReader(archive)
    write_meta(archive, [(f"{NAME}.pt", "train"), (f"{NAME}.pt", "test")])
    with pytest.raises(ValueError, match="comes in 'train' and 'test'"):
        plan_facts(BraddReader(archive), "1.0.0", None, None)
    (archive / "meta.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"meta\.csv has columns .* lacks \['file', 'close_set'\]; expected BraDD"):
        BraddReader(archive)


def test_nothing_on_disk(archive, tmp_path):
    assert holds_raw(archive) and not holds_raw(tmp_path) and "Samples" in LAYOUT
    shutil.rmtree(archive / "Samples")
    with pytest.raises(FileNotFoundError, match=r"holds no tile of 'bradd_s1ts'; see https://zenodo\.org"):
        BraddReader(archive)
    (archive / "meta.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*meta\.csv; expected BraDD-S1TS as published"):
        BraddReader(archive)


def test_readers_go_to_worker_processes(archive):
    reader = pickle.loads(pickle.dumps(BraddReader(archive)))
    assert reader.example("train", NAME)["id"] == NAME

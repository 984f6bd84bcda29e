"""Labels are checked before the first step, with both sides named; fake archives are whole and written once."""

import json
import multiprocessing

import numpy as np
import pytest

from anysat_jax.configs import adaptation, common
from anysat_jax.downstream import data as data_module
from anysat_jax.downstream.data import check_labels, open_data
from anysat_jax.downstream.task import Task, make_task
from anysat_jax.errors import ConfigError
from data_pipelines import registry
from data_pipelines.prepare import statistics
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.report import read_report
from data_pipelines.registry import get_entry
from tests.data_pipelines.fake_reader import CARD, FakeReader, fake_entry

CLASSES = ("wheat", "maize", "beet")
FIELDS = Task("fields", "Fields", "tile", "class", CLASSES)
MOISTURE = Task("fields", "Fields", "dense", "regression", unit="percent", metric="rmse", metres=10.0, sensor="s2")


def report_of(level="tile", /, **splits):
    """A report of these labels: counts of the classes and of tiles without one, or what is known of the numbers."""
    counted = {}
    for split, labels in splits.items():
        if isinstance(labels, tuple):
            labels = dict(zip((*CLASSES, "(no label)"), labels, strict=True))
        counted[split] = {"examples": 10, "skipped": 0, "labels": {level: labels}}
    return {"splits": counted}


def test_labels_are_counted_in_the_order_of_the_classes():
    report = report_of(train=(4, 0, 2, 9), val=(1, 0, 1, 0), test=(5, 0, 0, 0))
    task, found = check_labels(FIELDS, report, ("train", "val"))
    assert task == FIELDS
    assert {split: counts.tolist() for split, counts in found.items()} == {"train": [4, 0, 2], "val": [1, 0, 1]}


def numbers(**values):
    return {"count": 20, "unit": "percent", "mean": 112.5, "std": 30.0, "min": 1.0, "max": 300.0} | values


def test_a_regression_is_scaled_by_its_training_labels():
    report = report_of("dense", train=numbers(), test=numbers(count=3, mean=7.0, std=1.0))
    task, counts = check_labels(MOISTURE, report, ("train", "test"))
    assert (task.offset, task.scale) == (112.5, 30.0)
    assert counts["test"].tolist() == [3]


def test_labels_that_are_all_the_same_are_not_divided_by_zero():
    task, _ = check_labels(MOISTURE, report_of("dense", train=numbers(std=0.0)), ("train",))
    assert task.scale == 1.0


def test_an_evaluation_alone_needs_no_training_labels():
    assert check_labels(FIELDS, report_of(train=(0, 0, 0, 9), test=(0, 3, 0, 0)), ("test",))[1].keys() == {"test"}
    assert check_labels(MOISTURE, report_of("dense", test=numbers()), ("test",))[0] == MOISTURE


@pytest.mark.parametrize("kind", ["class", "multi_label"])
def test_a_class_absent_from_training(kind):
    task = Task("fields", "Fields", "tile", kind, CLASSES, metric="macro_f1")
    report = report_of(train=(4, 0, 0, 0), val=(1, 0, 0, 0), test=(1, 2, 1, 0))
    message = "split 'test' of dataset 'fields' has labels of 'maize', 'beet', and 'train' has none, so that no model"
    with pytest.raises(ConfigError, match=message):
        check_labels(task, report, ("train", "val", "test"))
    assert check_labels(task, report, ("train", "val"))[1]["val"].tolist() == [1, 0, 0]
    _, counts = check_labels(task, report, ("train", "test"), allow_absent_classes=True)
    assert counts["test"].tolist() == [1, 2, 1]


def test_many_absent_classes_make_a_short_message():
    classes = tuple(f"class {number}" for number in range(30))
    task = Task("fields", "Fields", "tile", "class", classes)
    train, test = dict.fromkeys(classes, 0) | {"class 0": 1}, dict.fromkeys(classes, 1)
    with pytest.raises(ConfigError, match="labels of 'class 1', .*'class 5' and 24 more, and 'train' has none"):
        check_labels(task, report_of(train=train, test=test), ("train", "test"))


def test_an_empty_split():
    report = report_of(train=(4, 0, 0, 0), val=(0, 0, 0, 0))
    report["splits"]["val"] |= {"examples": 0, "skipped": 3}
    message = r"split 'val' of dataset 'fields' is empty \(3 tiles were skipped when it was prepared\); prepare it from"
    with pytest.raises(ConfigError, match=message):
        check_labels(FIELDS, report, ("train", "val"))


def test_a_split_that_is_not_there():
    with pytest.raises(ConfigError, match="dataset 'fields' has no split 'test'; as prepared it has train, val"):
        check_labels(FIELDS, report_of(train=(4, 0, 0, 0), val=(1, 0, 0, 0)), ("train", "test"))


@pytest.mark.parametrize(
    ("task", "report"),
    [
        (FIELDS, report_of(train=(4, 0, 0, 0), test=(0, 0, 0, 10))),
        (MOISTURE, report_of("dense", train=numbers(), test={"count": 0, "unit": "percent"})),
    ],
)
def test_a_split_without_any_label(task, report):
    message = f"split 'test' of dataset 'fields' has no {task.level} label in any of its 10 tiles; leave it out"
    with pytest.raises(ConfigError, match=message):
        check_labels(task, report, ("train", "test"))


def test_labels_of_other_classes():
    message = "prepared with labels of 'barley', 'maize', and the task has 'wheat', 'maize', 'beet'; prepare"
    with pytest.raises(ConfigError, match=message):
        check_labels(FIELDS, report_of(train={"barley": 1, "maize": 2, "(no label)": 0}), ("train",))


@pytest.fixture
def fake_data(tmp_path, monkeypatch):
    """Prepares the fake tiles, and gives a config that adapts to them."""
    monkeypatch.setitem(registry._ENTRIES, CARD.name, fake_entry)
    config = adaptation.common("finetune", "fake")
    config.init = "none"
    config.data.root = str(tmp_path)
    config.data.datasets[CARD.name] = common.dataset(8)
    config.evaluate.splits = ("val",)

    def prepare(**reader):
        return config, prepare_dataset(FakeReader(**reader), tmp_path, "1.0.0", say=lambda line: None)

    return prepare


@pytest.mark.parametrize("level", ["tile", "dense"])
def test_the_report_of_a_preparation_is_understood(fake_data, level):
    _, folder = fake_data()
    task, counts = check_labels(make_task(CARD, level), read_report(folder), ("train", "val"))
    labels = [FakeReader().example("train", f"train{index}")[level] for index in range(7)]
    seen = np.concatenate([np.ravel(label) for label in labels])
    assert counts["train"].tolist() == [(seen == number).sum() for number in range(len(task.classes))]


def test_labels_outside_the_classes_do_not_get_past_the_preparation(fake_data):
    def spoil(split, index, example):
        if (split, index) == ("train", 2):
            example["tile"] = np.int32(3)

    with pytest.raises(ValueError, match=r"train2.*'tile' is 3, expected a class below 3"):
        fake_data(edit=spoil)


def test_data_prepared_with_other_bands_are_refused_before_a_run(fake_data):
    config, folder = fake_data()
    path = folder / statistics.STATISTICS_FILE
    content = json.loads(path.read_text())
    content["sensors"]["spot"]["bands"] = ["B", "G", "R"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"sensor 'spot' has bands \('B', 'G', 'R'\), expected \('R', 'G', 'B'\)"):
        open_data(config, ("train", "val"))


def test_a_run_hears_of_a_class_absent_from_training(fake_data):
    def spoil(split, index, example):
        example["tile"] = np.int32(1 if split == "train" else 2)

    config, _ = fake_data(edit=spoil)
    with pytest.raises(
        ConfigError, match="split 'val' of dataset 'fake_tiles' has labels of 'c', and 'train' has none"
    ):
        open_data(config, ("train", "val"))


def test_the_labels_of_the_share_that_trains_count(fake_data):
    config, _ = fake_data()
    whole = open_data(config, ("train", "val")).counts["train"]
    section = config.data.datasets[CARD.name]
    section.update(dict(fraction=0.5, fraction_seed=3))
    config.task.allow_absent_classes = True
    data = open_data(config, ("train", "val"))
    tiles = data.dataset.training_tiles
    labels = [FakeReader().example("train", f"train{tile}")["tile"] for tile in tiles]
    assert data.counts["train"].tolist() == [labels.count(number) for number in range(3)] != whole.tolist()
    section.fraction = 0.01
    config.task.allow_absent_classes = False
    with pytest.raises(ConfigError, match="split 'val' of dataset 'fake_tiles' has labels of .*, and 'train' has none"):
        open_data(config, ("train", "val"))


# ---------------------------------------------------------------- fake archives


ARCHIVE = "timesen2crop"  # text files: quick to write


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "anysat_jax" / "smoke"


def test_the_archive_is_as_published(cache):
    folder = data_module.make_fake_archive(ARCHIVE, 2)
    entry = get_entry(ARCHIVE)
    assert entry.find_raw(folder) == folder
    reader = entry.reader(folder)
    assert {split: len(reader.keys(split)) for split in reader.splits()} == {"train": 2, "val": 2, "test": 2}


def test_it_is_made_once(cache, monkeypatch):
    folder = data_module.make_fake_archive(ARCHIVE, 2)
    monkeypatch.setattr(data_module, "write_fake", pytest.fail)
    assert data_module.make_fake_archive(ARCHIVE, 2) == folder


def test_other_tiles_and_other_code_are_other_archives(cache, monkeypatch):
    folders = [data_module.make_fake_archive(ARCHIVE, 1), data_module.make_fake_archive(ARCHIVE, 2)]
    monkeypatch.setattr(data_module, "CODE", data_module.CODE[:1])
    folders.append(data_module.make_fake_archive(ARCHIVE, 2))
    assert len(set(folders)) == 3


def test_what_was_left_half_written_is_not_taken(monkeypatch, cache):
    def fail(name, folder, tiles):
        folder.mkdir()
        (folder / "half").touch()
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(data_module, "write_fake", fail)
        with pytest.raises(OSError, match="disk is full"):
            data_module.make_fake_archive(ARCHIVE, 1)
    assert [path.name for path in cache.iterdir()] == [f"{ARCHIVE}.lock"]
    assert not (data_module.make_fake_archive(ARCHIVE, 1) / "half").exists()


def test_two_processes_may_ask_at_once(cache):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.starmap(data_module.make_fake_archive, [(ARCHIVE, 1), (ARCHIVE, 1)])
    assert first == second
    assert get_entry(ARCHIVE).find_raw(first) == first


def test_data_that_are_no_archive_are_refused(cache):
    with pytest.raises(ConfigError, match=r"there is no fake archive of 'mini_flair', only of .*pastis_hd"):
        data_module.make_fake_archive("mini_flair", 2)

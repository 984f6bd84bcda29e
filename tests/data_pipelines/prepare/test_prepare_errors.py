"""Bad tiles, faults of readers, and disks that are full or cannot be written."""

import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest

from data_pipelines.prepare import plan as plan_module
from data_pipelines.prepare import prepare as prepare_module
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import CARD, FakeReader
from tests.data_pipelines.odd_readers import Fails, assert_holds


def prepare(reader, base, **options):
    said = []
    return prepare_dataset(reader, base, "1.0.0", say=said.append, **options), said


def assert_nothing_whole(base):
    assert not (base / "fake_tiles" / "1.0.0").exists()
    assert not list(base.rglob("*.tmp"))


def spoiler(**changes):
    """Changes arrays of the third training tile."""

    def edit(split, index, example):
        if (split, index) == ("train", 2):
            for key, change in changes.items():
                key = key.replace("s1_asc", "s1-asc")
                example[key] = change(example[key]) if key in example else change(None)

    return edit


BAD = {
    "shape": (dict(spot=lambda a: a[:, :-1]), r"'train2': 'spot' is uint8 \(3, 43, 44\), expected uint8 \(3, 44, 44\)"),
    "dtype": (dict(s2=lambda a: a.astype(np.int32)), r"'s2' is int32 .* expected uint16"),
    "no date": (
        dict(modis=lambda a: a[:0], modis_dates=lambda d: d[:0], modis_years=lambda y: y[:0]),
        r"'modis' has 0 dates .* at least one",
    ),
    "count of dates": (dict(s2_dates=lambda d: d[:-1]), r"'s2' has 5 dates and .*'s2_dates': 4"),
    "negative date": (dict(s2_dates=lambda d: d - 400), r"'s2_dates' holds -\d+; days count from 0"),
    "mask": (dict(s2_mask=lambda m: m[:-1]), r"'s2' has 5 dates and .*'s2_mask': 4"),
    "NaN": (dict(s1_asc_mask=np.ones_like), r"'train2': 1 valid values of 's1-asc' are NaN or infinite; mark them in"),
    "class": (dict(tile=lambda _: np.int32(3)), r"'tile' is 3, expected a class below 3"),
    "dense": (dict(dense=lambda d: np.full_like(d, 8)), r"'dense' holds \[8\]"),
    "extent of labels": (dict(dense=lambda d: d[:2, :2]), r"'dense' is int8 \(2, 2\), expected int8 \(4, 4\)"),
    "more": (dict(surprise=lambda _: np.zeros(2)), r"lacks \[\] and has \['surprise'\] besides"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tiles_are_refused_by_name_with_a_way_on(tmp_path, case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=f"{message}.* 0 finished shards are kept; mend .*--skip-bad"):
        prepare(FakeReader(edit=spoiler(**changes)), tmp_path)
    assert_nothing_whole(tmp_path)


def test_a_lacking_label_is_named(tmp_path):
    def without(split, index, example):
        del example["dense"]

    with pytest.raises(ValueError, match=r"tile 'train0': lacks \['dense'\]"):
        prepare(FakeReader(edit=without), tmp_path)


@pytest.mark.parametrize(
    "error", [ValueError("a.tif is cut"), FileNotFoundError("no a.tif"), OSError(errno.EIO, "a.tif")]
)
def test_what_a_reader_says_of_a_file_is_passed_on(tmp_path, error):
    with pytest.raises(ValueError, match=r"'fake_tiles': tile 'train2' of split 'train': .*a\.tif.*finished shards"):
        prepare(Fails(type(error), *error.args), tmp_path)


def test_shards_before_a_bad_tile_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)
    reader = Fails(ValueError, "b.tif is cut", at=("train5",))
    with pytest.raises(ValueError, match=r"b\.tif is cut\. 2 finished shards are kept"):
        prepare(reader, tmp_path)
    mended = Fails(ValueError, "", at=())
    folder, said = prepare(mended, tmp_path)
    assert mended.opened == 6 and any("2 of 4 shards" in line for line in said)
    assert_holds(PreparedDataset.open(CARD, folder).records("train"), "train", range(7))


def test_bad_tiles_are_left_out_and_recorded(tmp_path):
    reader = Fails(ValueError, "c.tif is cut", at=("train0", "train3", "val1"))
    folder, said = prepare(reader, tmp_path, skip_bad=True)
    prepared = PreparedDataset.open(CARD, folder)
    assert_holds(prepared.records("train"), "train", (1, 2, 4, 5, 6))
    assert_holds(prepared.records("val"), "val", (0, 2))
    assert len(prepared.series_lengths("train")["s2"]) == 5
    skipped = json.loads((folder / "report.json").read_text())["skipped"]
    assert [(one["split"], one["tile"], one["reason"]) for one in skipped] == [
        ("train", "train0", "c.tif is cut"),
        ("train", "train3", "c.tif is cut"),
        ("val", "val1", "c.tif is cut"),
    ]
    assert "Skipped tiles (3):\n- train train0: c.tif is cut" in said[-1]


def test_a_shard_of_bad_tiles_only(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)
    reader = Fails(ValueError, "cut", at=("train0", "train1", "train3"))
    folder, _ = prepare(reader, tmp_path, skip_bad=True)
    assert_holds(PreparedDataset.open(CARD, folder).records("train"), "train", (2, 4, 5, 6))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_bad_tiles_only_is_refused(tmp_path, split):
    bad = Fails(ValueError, "cut", at=tuple(FakeReader().keys(split)))
    with pytest.raises(ValueError, match=f"not one tile of split '{split}' could be read .cut.;"):
        prepare(bad, tmp_path, skip_bad=True)
    assert_nothing_whole(tmp_path)
    folder, _ = prepare(Fails(ValueError, "", at=()), tmp_path, skip_bad=True)
    assert_holds(PreparedDataset.open(CARD, folder).records("train"), "train", range(7))


@pytest.mark.parametrize("kind", [TypeError, KeyError, AttributeError, ZeroDivisionError, ImportError])
def test_faults_of_a_reader_are_not_taken_for_bad_tiles(tmp_path, kind):
    with pytest.raises(kind, match="a fault") as caught:
        prepare(Fails(kind, "a fault"), tmp_path, skip_bad=True)
    assert "while reading tile 'train2'" in caught.value.__notes__[0]
    assert_nothing_whole(tmp_path)


def test_too_many_open_files_are_no_fault_of_a_tile(tmp_path):
    with pytest.raises(OSError, match="too many") as caught:
        prepare(Fails(OSError, errno.EMFILE, "too many open files"), tmp_path, skip_bad=True)
    assert caught.value.errno == errno.EMFILE


def test_too_little_space_is_said_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"'fake_tiles' cannot be written to .* are free.*XDG_CACHE_HOME") as caught:
        prepare(FakeReader(), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert_nothing_whole(tmp_path)


def test_a_disk_that_runs_full_loses_no_finished_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)

    def grow(split, index, example):
        if (split, index) == ("train", 6):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            OSError, match=r"'fake_tiles' cannot be written to .*finished shards stay: free some.*XDG_CACHE"
        ):
            prepare(FakeReader(edit=grow, sizes={"train": 9, "val": 2}), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_nothing_whole(tmp_path)
    reader = FakeReader(sizes={"train": 9, "val": 2})
    folder, said = prepare(reader, tmp_path)
    assert reader.opened < 11 and any("of 4 shards are there" in line for line in said)
    assert_holds(PreparedDataset.open(CARD, folder).records("train"), "train", range(9))


def test_a_record_that_cannot_be_read_back_is_not_whole(tmp_path, monkeypatch):
    from array_record.python import array_record_module

    class Forgetful(array_record_module.ArrayRecordWriter):
        written = 0

        def write(self, record):
            self.written += 1
            if self.written > 1:
                super().write(record)

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", Forgetful)
    with pytest.raises(OSError, match=r"wrote 7 tiles to fake_tiles-train.* but only 6 can be read back"):
        prepare(FakeReader(), tmp_path)
    assert_nothing_whole(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"'fake_tiles' cannot be written to .*file"):
        prepare(FakeReader(), tmp_path / "file" / "below")


def test_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(prepare_module.pathlib.Path, "mkdir", refuse)
    with pytest.raises(
        OSError, match=r"'fake_tiles' cannot be written to .*Read-only.*; choose a folder that can be written"
    ):
        prepare(FakeReader(), tmp_path)

"""Writing a dataset: what comes back, what is refused, and what a crash, a full disk or a second process leave."""

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import prepare as prepare_module
from data_pipelines.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.conftest import REPOSITORY
from tests.data_pipelines.fake_reader import CARD, FakeReader, make_example

CHILD = """
import pathlib, sys
from data_pipelines.prepare import prepare_dataset
from tests.data_pipelines.fake_reader import FakeReader
reader = FakeReader({{"train": 12, "val": 2}}, pause={pause})
print("made" if prepare_dataset(reader, pathlib.Path(sys.argv[1]), "1.0.0") and reader.opened else "found", flush=True)
"""


def assert_holds(folder, split, count):
    records = PreparedDataset.open(CARD, folder).records(split)
    assert len(records) == count
    for index in range(count):
        stored, expected = records[index], make_example(split, index)
        assert stored.pop("id").decode() == expected.pop("id")
        assert set(stored) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(stored[key], value)
            assert np.asarray(value).ndim == 0 or stored[key].dtype == value.dtype


def start_child(base, pause=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(pause=pause), str(base)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_everything_comes_back_exactly_and_in_order(tmp_path):
    folder = prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    assert folder == tmp_path / "fake_tiles" / "1.0.0"
    assert_holds(folder, "train", 7)
    assert_holds(folder, "val", 3)
    assert "tensorflow" not in sys.modules


def test_several_shards_and_groups_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(prepare_module, "GROUP_BYTES", 20_000)
    folder = prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    assert len(list(folder.glob("*train*"))) > 1
    assert_holds(folder, "train", 7)


def test_statistics_lie_beside_and_are_of_the_training_split(tmp_path):
    statistics = PreparedDataset.open(CARD, prepare_dataset(FakeReader(), tmp_path, "1.0.0")).statistics
    pixels = np.concatenate([make_example("train", i)["spot"].reshape(3, -1) for i in range(7)], axis=1)
    np.testing.assert_allclose(statistics["spot"].mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(statistics["spot"].std, pixels.std(axis=1), rtol=1e-12)


def test_the_second_time_nothing_is_read(tmp_path):
    prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    reader = FakeReader()
    prepare_dataset(reader, tmp_path, "1.0.0")
    assert reader.opened == 0


def test_progress_says_tiles_and_speed(tmp_path, capsys):
    prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    assert "10/10" in (shown := capsys.readouterr().err) and "tile" in shown and "/s" in shown


def test_killed_half_way_leaves_nothing_whole_and_the_next_start_works(tmp_path):
    child = start_child(tmp_path, pause=0.2)
    wait_until(lambda: list(tmp_path.glob("fake_tiles/.1.0.0.incomplete-*")))
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert list(tmp_path.glob("fake_tiles/.1.0.0.incomplete-*")) and not (tmp_path / "fake_tiles" / "1.0.0").exists()
    folder = prepare_dataset(FakeReader({"train": 12, "val": 2}), tmp_path, "1.0.0")
    assert_holds(folder, "train", 12)
    assert not list(tmp_path.glob("fake_tiles/.1.0.0.incomplete-*"))


def test_two_processes_at_once_make_it_once(tmp_path):
    children = [start_child(tmp_path, pause=0.05) for _ in range(2)]
    said = sorted(child.communicate(timeout=120)[0].strip() for child in children)
    assert said == ["found", "made"]
    assert_holds(tmp_path / "fake_tiles" / "1.0.0", "train", 12)


def test_without_locks_the_first_to_finish_wins(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(prepare_module.fcntl, "flock", no_locks)
    meanwhile = FakeReader()

    def overtake(split, index, _):
        if (split, index) == ("val", 2) and meanwhile.opened == 0:
            prepare_dataset(meanwhile, tmp_path, "1.0.0")

    folder = prepare_dataset(FakeReader(edit=overtake), tmp_path, "1.0.0")
    assert meanwhile.opened > 0
    assert_holds(folder, "train", 7)
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == ["1.0.0"]


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def assert_nothing_left(base):
    assert not [p for p in pathlib.Path(base).glob("fake_tiles/*") if p.is_dir()]


def test_too_little_space_is_said_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"'fake_tiles' cannot be written to .* are free.*XDG_CACHE_HOME") as caught:
        prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    assert caught.value.errno == errno.ENOSPC
    assert_nothing_left(tmp_path)


def test_a_disk_that_runs_full_while_writing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"'fake_tiles' cannot be written to .*XDG_CACHE_HOME"):
            prepare_dataset(FakeReader(), tmp_path, "1.0.0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_nothing_left(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"'fake_tiles' cannot be written to .*file"):
        prepare_dataset(FakeReader(), tmp_path / "file" / "below", "1.0.0")


def test_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(prepare_module.tempfile, "mkdtemp", refuse)
    with pytest.raises(OSError, match=r"'fake_tiles' cannot be written to .*Read-only"):
        prepare_dataset(FakeReader(), tmp_path, "1.0.0")


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
        dict(modis=lambda a: a[:0], modis_dates=lambda d: d[:0]),
        r"'modis_dates' .* expected int32, one for each",
    ),
    "count of dates": (dict(s2_dates=lambda d: d[:-1]), r"'s2_dates' is int32 \(4,\)"),
    "negative date": (dict(s2_dates=lambda d: d - 400), r"'s2_dates' holds -\d+; days count from 0"),
    "mask": (dict(s2_mask=lambda m: m[:-1]), r"'s2_mask' .* is no mask of"),
    "NaN": (dict(s1_asc_mask=np.ones_like), r"'train2': 1 valid values of 's1-asc' are NaN or infinite; mark them in"),
    "class": (dict(tile=lambda _: np.int32(3)), r"'tile' is 3, expected a class below 3"),
    "dense": (dict(dense=lambda d: np.full_like(d, 8)), r"'dense' holds \[8\]"),
    "more": (dict(surprise=lambda _: np.zeros(2)), r"surprise.*as in the first tile"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_examples_are_refused_by_name_and_leave_nothing(tmp_path, case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        prepare_dataset(FakeReader(edit=spoiler(**changes)), tmp_path, "1.0.0")
    assert_nothing_left(tmp_path)


def test_a_wrong_extent_is_refused_in_metres(tmp_path):
    def grow(split, index, example):
        example["spot"] = np.zeros((3, 60, 60), np.uint8)

    with pytest.raises(ValueError, match=r"'spot' has 60 x 60 pixels; a tile of 40 m at 1 m has 40 x 40"):
        prepare_dataset(FakeReader(edit=grow), tmp_path, "1.0.0")


def test_labels_are_those_of_the_card(tmp_path):
    def without(split, index, example):
        del example["dense"]

    def coarse(split, index, example):
        example["dense"] = np.zeros((2, 2), np.int8)

    for edit, message in ((without, "no label 'dense'"), (coarse, r"'dense' is \(2, 2\), expected \(4, 4\) at 10 m")):
        with pytest.raises(ValueError, match=message):
            prepare_dataset(FakeReader(edit=edit), tmp_path, "1.0.0")


def test_a_key_that_comes_twice_is_refused(tmp_path):
    class Twice(FakeReader):
        def examples(self, split):
            for _, example in super().examples(split):
                yield "same", example

    with pytest.raises(ValueError, match="tile 'same' comes twice in split 'train'"):
        prepare_dataset(Twice(), tmp_path, "1.0.0")


def test_no_training_tile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no tile of split 'train'"):
        prepare_dataset(FakeReader({"val": 2}), tmp_path, "1.0.0")

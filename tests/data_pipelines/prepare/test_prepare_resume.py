"""Crashes, kills, second processes and leftovers of other runs: finished shards are kept, others are not mixed in."""

import errno
import signal
import subprocess
import sys
import time

import pytest

from data_pipelines.prepare import plan as plan_module
from data_pipelines.prepare import shards, storage
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.conftest import REPOSITORY
from tests.data_pipelines.fake_reader import CARD, FakeReader
from tests.data_pipelines.odd_readers import Fails, assert_holds, contents

SIZES = {"train": 12, "val": 2}
CHILD = """
import pathlib, sys
from data_pipelines.prepare import plan
from data_pipelines.prepare.prepare import prepare_dataset
from tests.data_pipelines.fake_reader import FakeReader
plan.SHARD_BYTES = 30_000
reader = FakeReader({sizes}, pause={pause})
print("made" if prepare_dataset(reader, pathlib.Path(sys.argv[1]), "1.0.0") and reader.opened else "found", flush=True)
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of three tiles."""
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 30_000)


def start_child(base, pause=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(sizes=SIZES, pause=pause), str(base)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def prepare(reader, base, **options):
    said = []
    return prepare_dataset(reader, base, "1.0.0", say=said.append, **options), said


def undisturbed(tmp_path, **options):
    return contents(prepare(FakeReader(SIZES), tmp_path / "undisturbed", **options)[0])


def finished_shards(base):
    return sorted(base.glob("fake_tiles/.1.0.0.incomplete/data/*"))


def stop_at(monkeypatch, number):
    """Interrupts a run when it renames its shard of a number, from 0."""
    renamed = iter(range(100))
    original = shards.move_whole

    def move_whole(temporary, path):
        if next(renamed) == number:
            raise KeyboardInterrupt
        original(temporary, path)

    monkeypatch.setattr(shards, "move_whole", move_whole)
    return lambda: monkeypatch.setattr(shards, "move_whole", original)


def test_killed_half_way_loses_no_finished_shard(tmp_path):
    child = start_child(tmp_path, pause=0.1)
    wait_until(lambda: len(finished_shards(tmp_path)) >= 2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    finished = {path.name: path.stat().st_mtime_ns for path in finished_shards(tmp_path)}
    assert len(finished) >= 2 and not (tmp_path / "fake_tiles" / "1.0.0").exists()
    reader = FakeReader(SIZES)
    folder, said = prepare(reader, tmp_path)
    assert reader.opened <= 14 - 3 * len(finished)
    assert any(f"{len(finished)} of 5 shards are there already" in line for line in said)
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished
    assert contents(folder) == undisturbed(tmp_path)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["1.0.0"]


def test_interrupted_anywhere_the_result_is_the_same(tmp_path, monkeypatch):
    for number in range(5):
        again = stop_at(monkeypatch, number)
        with pytest.raises(KeyboardInterrupt):
            prepare(FakeReader(SIZES), tmp_path / str(number))
        again()
        assert len(finished_shards(tmp_path / str(number))) == number
        folder, _ = prepare(FakeReader(SIZES), tmp_path / str(number))
        assert contents(folder) == undisturbed(tmp_path)


def test_a_crash_before_the_last_step_reads_nothing_again(tmp_path, monkeypatch):
    original = storage.Output.publish

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.Output, "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        prepare(FakeReader(SIZES), tmp_path)
    monkeypatch.setattr(storage.Output, "publish", original)
    reader = FakeReader(SIZES)
    folder, _ = prepare(reader, tmp_path)
    assert reader.opened == 0 and contents(folder) == undisturbed(tmp_path)


def test_a_shard_that_is_not_as_it_was_left_is_written_again(tmp_path, monkeypatch):
    again = stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        prepare(FakeReader(SIZES), tmp_path)
    again()
    first, second, third, _ = finished_shards(tmp_path)
    first.write_bytes(first.read_bytes()[:1000])
    parts = first.parents[1] / "parts"
    (parts / f"{second.name}.json").unlink()
    (parts / f"{third.name}.json").write_bytes(b"nonsense")
    reader = FakeReader(SIZES)
    folder, said = prepare(reader, tmp_path)
    assert reader.opened == 11 and any("1 of 5 shards" in line for line in said)
    assert contents(folder) == undisturbed(tmp_path)


@pytest.mark.parametrize("other", ["limit", "tiles", "source", "plan"])
def test_leftovers_of_another_plan_are_not_mixed_in(tmp_path, monkeypatch, other):
    again = stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        prepare(FakeReader(SIZES), tmp_path)
    again()
    sizes = {"train": 12, "val": 4} if other == "tiles" else SIZES
    if other == "plan":
        (tmp_path / "fake_tiles/.1.0.0.incomplete/parts/plan.json").write_text("{")
    reader, options = FakeReader(sizes), {"limit": {"limit": 5}, "source": {"source": "elsewhere"}}.get(other, {})
    folder, said = prepare(reader, tmp_path, **options)
    assert other == "plan" or any("an unfinished run differs in" in line and other in line for line in said)
    train, val = (min(n, options.get("limit", 100)) for n in sizes.values())
    assert reader.opened == train + val + 3  # three more tell how large tiles are
    assert_holds(PreparedDataset.open(CARD, folder).records("val"), "val", range(val))


def test_two_processes_at_once_make_it_once(tmp_path):
    children = [start_child(tmp_path, pause=0.05) for _ in range(2)]
    said = sorted(child.communicate(timeout=120)[0].strip() for child in children)
    assert said == ["found", "made"]
    assert_holds(PreparedDataset.open(CARD, tmp_path / "fake_tiles" / "1.0.0").records("train"), "train", range(12))


def test_without_locks_the_first_to_finish_wins(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    meanwhile = FakeReader(SIZES)

    def overtake(split, index, _):
        if (split, index) == ("val", 1) and meanwhile.opened == 0:
            prepare(meanwhile, tmp_path)

    folder, _ = prepare(FakeReader(SIZES, edit=overtake), tmp_path)
    assert meanwhile.opened > 0
    assert contents(folder) == undisturbed(tmp_path)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["1.0.0"]


def test_a_crash_while_a_sample_is_replaced(tmp_path, monkeypatch):
    folder, _ = prepare(FakeReader(SIZES), tmp_path, limit=2)
    original = storage.Output.publish

    def half(self):
        self.target.rename(self.working / "replaced")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.Output, "publish", half)
    with pytest.raises(KeyboardInterrupt):
        prepare(FakeReader(SIZES), tmp_path)
    monkeypatch.setattr(storage.Output, "publish", original)
    reader = FakeReader(SIZES)
    assert prepare(reader, tmp_path)[0] == folder and reader.opened == 0
    assert contents(folder) == undisturbed(tmp_path)


def test_gaps_of_an_earlier_run_are_filled(tmp_path, monkeypatch):
    again = stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        prepare(Fails(ValueError, "broken", at=("train4",), sizes=SIZES), tmp_path, skip_bad=True)
    again()
    mended = Fails(ValueError, "broken", at=(), sizes=SIZES)
    folder, said = prepare(mended, tmp_path)
    assert any("2 of 5 shards" in line for line in said)
    assert_holds(PreparedDataset.open(CARD, folder).records("train"), "train", range(12))

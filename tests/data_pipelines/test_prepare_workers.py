"""Several processes: the same bytes, and one that dies or fails is named."""

import pytest

from data_pipelines.prepare import plan as plan_module
from data_pipelines.prepare.prepare import WorkerDiedError, prepare_dataset
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import CARD, FakeReader
from tests.data_pipelines.odd_readers import DiesOnce, Fails, assert_holds, contents


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Three tiles in each."""
    monkeypatch.setattr(plan_module, "SHARD_BYTES", 25_000)


def prepare(reader, base, workers):
    return prepare_dataset(reader, base, "1.0.0", workers=workers, say=lambda _: None)


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, capsys):
    alone = prepare(FakeReader(), tmp_path / "alone", 0)
    shown = capsys.readouterr().err
    together = prepare(FakeReader(), tmp_path / "together", 2)
    assert contents(together) == contents(alone)
    assert "10/10" in shown and "10/10" in capsys.readouterr().err


def test_a_killed_worker_is_named_and_the_next_start_goes_on(tmp_path):
    reader = DiesOnce(tmp_path / "marker")
    message = r"'fake_tiles': worker process \d+ was killed by SIGKILL; perhaps .* memory while it wrote "
    with pytest.raises(WorkerDiedError, match=f"{message}fake_tiles-train.*, at tile 'train5'.*kept; start again"):
        prepare(reader, tmp_path, 1)
    folder = prepare(reader, tmp_path, 1)
    assert_holds(PreparedDataset.open(CARD, folder).records("train"), "train", range(7))


@pytest.mark.parametrize(
    ("reader", "kind", "message"),
    [
        (Fails(FileNotFoundError, "no a.tif"), ValueError, r"tile 'train2' of split 'train': no a\.tif.*--skip-bad"),
        (Fails(TypeError, "a fault"), TypeError, "a fault"),
    ],
)
def test_errors_of_workers_keep_type_and_message(tmp_path, reader, kind, message):
    with pytest.raises(kind, match=message):
        prepare(reader, tmp_path, 1)
    assert not (tmp_path / "fake_tiles" / "1.0.0").exists()

"""A network on a whole split."""

import functools
import threading

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from anysat_jax.downstream import evaluate as module
from anysat_jax.downstream.data import open_data, start_network
from anysat_jax.downstream.evaluate import evaluate_split, summary_line
from anysat_jax.downstream.split_pass import split_batches
from anysat_jax.downstream.task import LossConfig
from anysat_jax.errors import DataError
from anysat_jax.train import status as status_module
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh
from anysat_jax.train.status import JobStatus, Watchdog
from data_pipelines.batches import HostShard
from tests.downstream import adapt_toys


class Seen:
    """Keeps batches and logits of an evaluation."""

    def __init__(self):
        self.batches, self.logits = [], []

    def __call__(self, batch, logits):
        valid = np.asarray(batch.labels["valid"])
        self.batches.append({name: np.asarray(array)[valid] for name, array in batch.labels.items()})
        self.logits.append(logits[valid])

    def __getitem__(self, name):
        return np.concatenate([batch[name] for batch in self.batches])

    @property
    def answers(self):
        return np.concatenate(self.logits)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    adapt_toys.register_toy()
    data = open_data(adapt_toys.toy_config(tmp_path_factory.mktemp("toy"), level="dense"), ("train", "val", "test"))
    return data, start_network(data)


def evaluate(toy, sizes=(10.0,), batch_size=4, mesh=None, **more):
    data, start = toy
    seen = Seen()
    data = adapt_toys.evaluated_at(data, sizes, batch_size, mesh)
    found = evaluate_split(data, start.network, start.params, "test", watch=seen, **more)
    return found, seen


def test_every_sample_is_seen_once_though_the_last_batch_is_ragged(toy):
    found, seen = evaluate(toy)
    assert found.samples == 7 and seen["index"].tolist() == list(range(7))
    truth, predicted = seen["dense"], seen.answers.argmax(axis=-1)
    known = truth >= 0
    assert 0 < known.sum() < known.size and found.scores["count"] == known.sum()
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth[known], predicted[known], labels=[0, 1]))
    assert found.scores["accuracy"] == pytest.approx(accuracy_score(truth[known], predicted[known]))
    expected = f1_score(truth[known], predicted[known], average="macro", zero_division=np.nan)
    assert found.scores["macro_f1"] == pytest.approx(expected)


def test_several_patch_sizes_answer_with_the_mean_of_their_logits(toy):
    _, small = evaluate(toy, (10.0,))
    _, large = evaluate(toy, (20.0,))
    _, both = evaluate(toy, (10.0, 20.0))
    assert not np.allclose(small.answers, large.answers, atol=1e-4)
    np.testing.assert_allclose(both.answers, (small.answers + large.answers) / 2, atol=1e-5)


def test_neither_devices_nor_batches_change_the_scores(toy):
    one, _ = evaluate(toy)
    two, seen = evaluate(toy, batch_size=5, mesh=make_mesh(MeshConfig(data=2, fsdp=1)))  # rounded up to 6
    assert seen["index"].tolist() == list(range(7))
    np.testing.assert_array_equal(one.confusion, two.confusion)
    assert one.scores == two.scores and two.loss == pytest.approx(one.loss, rel=1e-5)


def test_the_loss_is_the_mean_over_samples(toy):
    found, seen = evaluate(toy)
    truth = seen["dense"]
    chosen = np.take_along_axis(jax.nn.log_softmax(seen.answers), np.maximum(truth, 0)[..., None], axis=-1)[..., 0]
    losses = [-chosen[i][truth[i] >= 0].mean() for i in range(len(truth))]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    weighted, _ = evaluate(toy, loss=LossConfig(class_weights=(0.0, 2.0)))
    assert weighted.loss != pytest.approx(found.loss, rel=1e-3) and weighted.scores == found.scores


@pytest.fixture
def damaged(tmp_path):
    """The same tiles, four of which were changed on disk: the whole of one batch of four, and one of another."""
    data = open_data(adapt_toys.toy_config(tmp_path, level="dense"), ("train", "val", "test"))
    for tile in (1, 4, 5, 6):
        adapt_toys.flip_bit_of_tile(tmp_path, "test", tile)
    return data


def test_a_tile_that_cannot_be_read_ends_it_in_one_sentence(toy, damaged):
    with pytest.raises(DataError, match=r"tile [1456] of split 'test' cannot be read .*data.skip_corrupt = True would"):
        evaluate((damaged, toy[1]))


def test_a_tile_that_cannot_be_read_is_left_out_if_asked_and_every_other_counts_once(toy, damaged, caplog):
    damaged = adapt_toys.skipping(damaged)
    status = JobStatus()
    found, seen = evaluate((damaged, toy[1]), status=status)
    _, whole = evaluate(toy)
    kept = [0, 2, 3]
    assert found.samples == 3 and seen["index"].tolist() == kept
    np.testing.assert_allclose(seen.answers, whole.answers[kept], atol=1e-6)
    truth = whole["dense"][kept]
    predicted, known = whole.answers[kept].argmax(axis=-1), truth >= 0
    np.testing.assert_array_equal(found.confusion, confusion_matrix(truth[known], predicted[known], labels=[0, 1]))
    assert np.isfinite(found.loss) and found.left_out == {1, 4, 5, 6} and status.left_out == {"test": [1, 4, 5, 6]}
    assert "toy_fields: tile 4 cannot be read and is left out" in caplog.text
    assert summary_line(found, "accuracy").endswith("; 3 tiles; tiles that cannot be read: 1, 4, 5, 6")


def test_an_evaluation_that_hangs_is_ended(toy, tmp_path, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(status_module, "Watchdog", functools.partial(Watchdog, end=lambda code: ended.set()))
    data, start = toy
    watch, status = lambda batch, logits: ended.wait(60), JobStatus(tmp_path, watchdog_seconds=0.5)
    data = adapt_toys.evaluated_at(data)
    evaluate_split(data, start.network, start.params, "test", watch=watch, status=status)
    assert ended.is_set() and "no batch of test finished for 0.5 s" in (tmp_path / "stacks-0.txt").read_text()


def test_one_program_serves_all_evaluations(toy):
    data, start = toy
    program = module._program(start.network, (10.0,), LossConfig(), data.mesh)
    evaluate(toy)
    before = len(program)
    evaluate(toy)
    assert len(program) == before > 0
    evaluate(toy, batch_size=3)
    assert len(program) == before + 1


@pytest.mark.parametrize("sizes", [(10.0, 15.0), (7.0,)])
def test_a_patch_size_that_does_not_fit_is_refused(toy, sizes):
    with pytest.raises(ValueError, match="patches of .* m do not fit"):
        evaluate(toy, sizes)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_processes_shares_make_up_the_split(toy, monkeypatch, count):
    data, _ = toy
    shares = []
    for process in range(count):
        monkeypatch.setattr(
            "anysat_jax.downstream.split_pass.host_shard", lambda _, process=process: HostShard((process,), count)
        )
        batches = split_batches(adapt_toys.evaluated_at(data, batch_size=6), "test", (10.0,))
        labels = [batch.labels for batch in batches]
        shares.append(np.concatenate([one["index"][one["valid"]] for one in labels]))
    assert sorted(np.concatenate(shares).tolist()) == list(range(7))
    assert data.dataset.num_samples("test") == 7

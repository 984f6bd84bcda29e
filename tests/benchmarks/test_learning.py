"""The benchmark of pretraining objectives: its configs, controls, table and curves, without a pretraining."""

import functools

import jax
import numpy as np
import pytest

from anysat_jax.downstream.task import make_task
from anysat_jax.errors import ConfigError, StorageError
from anysat_jax.train.workdir import lock_workdir
from benchmarks import learning
from data_pipelines.registry import get_entry


@pytest.fixture(scope="module", autouse=True)
def one_dataset():
    """Each has programs of its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learning, "DATASETS", {"mini_pastis_hd": learning.DATASETS["mini_pastis_hd"]})
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = learning.Bench(tmp_path_factory.mktemp("learning"), tiles=24, labels=[4, 12], held_out=8, draws=2)
    extractor = lambda sensors: jax.jit(functools.partial(learning.raw_summaries, sensors=sensors))  # noqa: E731
    bench.add("raw values", 0, 0, extractor)
    bench.scores += [one._replace(seed=1) for one in bench.scores]
    return bench


def test_raw_values_are_scored_on_both_levels(bench):
    assert len(bench.scores) == 2 * 2 * 2 * 4  # seeds, numbers of labels, draws, levels and probes
    assert all(0 <= one.score <= 1 for one in bench.scores)
    many = np.mean([one.score for one in bench.scores if one.labels == 12])
    assert many > np.mean([one.score for one in bench.scores if one.labels == 4])


def test_draws_are_of_other_tiles_and_their_mean_counts(bench):
    draws = [
        {one[3:4] + one[6:8]: one.score for one in bench.scores if (one.seed, one.draw) == (0, draw)}
        for draw in range(2)
    ]
    assert draws[0].keys() == draws[1].keys() and draws[0] != draws[1]
    means = bench.means()["raw values", 12, 0]["dense", "linear"]
    assert means == [pytest.approx(50 * sum(draw[12, "dense", "linear"] for draw in draws))] * 2


def test_finished_scores_are_found_again(bench):
    again = learning.Bench(bench.out, tiles=24, labels=[4, 12], held_out=8, draws=2)
    assert again.scores == [one for one in bench.scores if one.seed == 0]
    again.add("raw values", 0, 0, None)  # would fail if it computed anything
    assert "| raw values | 12               | 0       | 2       |" in bench.table()


def test_scores_of_other_labels_replace_the_earlier_ones(bench, monkeypatch):
    rows = [(labels, 0, level, kind, 0.5) for labels in (6, 20) for level, kind in learning.KINDS]
    monkeypatch.setattr(learning, "score_features", lambda *_: rows)
    again = learning.Bench(bench.out, tiles=24, labels=[6, 20], held_out=8)
    again.file = bench.out / "others.csv"
    again.add("raw values", 0, 0, lambda sensors: None)
    assert [one.labels for one in again.scores] == [6] * 4 + [20] * 4 and again.file.exists()


def test_what_cannot_be_scored_is_refused(bench, tmp_path):
    with pytest.raises(ConfigError, match="3 draws of 12 labelled tiles need 36 tiles, but there are 24"):
        learning.Bench(tmp_path, tiles=24, labels=[12, 4], held_out=8, draws=3)
    assert not list(tmp_path.iterdir())
    (tmp_path / "tiles-24-8").symlink_to(bench.root)
    (tmp_path / "scores.csv").write_text("name,steps\nours,300\n")
    with pytest.raises(ConfigError, match=r"scores\.csv has the columns \['name', 'steps'\], expected .* delete it"):
        learning.Bench(tmp_path, tiles=24, labels=[12], held_out=8)


def test_the_curves_are_drawn(bench):
    bench.scores += [one._replace(name="learnt", steps=steps) for one in bench.scores for steps in (10, 100)]
    assert bench.draw().stat().st_size > 10_000


def test_a_try_changes_keys_of_the_config(bench):
    config = bench.config("PAPER,model.dropout=True,model.dim=64", 30, 2)
    assert (config.pretrain.objective, config.pretrain.contrastive_weight) == ("paper", 1.0)
    assert (config.model.dropout, config.model.dim, config.total_steps, config.seed) == (True, 64, 30, 2)
    with pytest.raises(KeyError, match="objectve"):
        bench.config("pretrain.objectve=paper", 30, 2)


def test_a_run_of_another_process_is_left_alone(bench):
    folder = bench.out / "runs" / "learnt-5-0"
    with lock_workdir(folder), pytest.raises(StorageError, match="learnt-5-0 is in use by another run"):
        bench.pretrained("learnt", 5, 0)
    assert not folder.exists()


def test_labels_of_a_tile_are_scored_by_their_order():
    labels, logits = np.array([[1, 0, 0], [0, 1, 0]]), np.array([[-2, -5, -np.inf], [-6, -3, -np.inf]])
    assert learning.precision([(labels[:1], logits[:1]), (labels[1:], logits[1:])]) == 1
    assert learning.precision([(labels, -np.maximum(logits, -9))]) == pytest.approx((1 / 5 + 2 / 6) / 2)


def test_neighbours_vote_for_classes_and_labels():
    features = np.repeat(np.eye(3, 8, dtype=np.float32), 5, axis=0) + np.linspace(0, 0.01, 8, dtype=np.float32)
    classes = make_task(get_entry("mini_flair").card, "tile")
    logits = learning.neighbours(classes, features, np.repeat([2, 0, 1], 5))(features[::5])
    assert logits.argmax(axis=-1).tolist() == [2, 0, 1]
    labels = make_task(get_entry("mini_pastis_hd").card, "tile")
    wanted = np.arange(labels.num_outputs)[None] % 3 == np.repeat([0, 1, 2], 5)[:, None]
    np.testing.assert_array_equal(learning.neighbours(labels, features, wanted)(features[::5]) > 0, wanted[::5])

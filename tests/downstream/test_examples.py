"""Samples of an evaluation to look at."""

import numpy as np
import pytest

from anysat_jax.batch import Batch
from anysat_jax.downstream.examples import ExampleChoice, class_entropy, label_text
from anysat_jax.downstream.task import Task, make_task, prediction
from data_pipelines import load
from tests.downstream import adapt_toys

DENSE = make_task(adapt_toys.CARD, "dense")
TILE = make_task(adapt_toys.CARD, "tile")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    adapt_toys.register_toy(**adapt_toys.WITH_SPOT)
    root = tmp_path_factory.mktemp("toy")
    (dataset,) = load.open_datasets(adapt_toys.toy_config(root).data).values()
    return dataset


def show(book, dataset):
    """Shows the test split to a book; the network's answer is the truth."""
    for batch in dataset.evaluation_batches("test", patch_size=10, batch_size=4):
        truth = batch.labels[book._task.level]
        book(batch, np.eye(book._task.num_outputs, dtype=np.float32)[np.maximum(truth, 0)])
    return book


def test_what_is_kept_of_a_dense_task(toy, tmp_path):
    book = show(ExampleChoice(DENSE, 3), toy)
    np.savez_compressed(tmp_path / "panels.npz", **book.arrays(toy.card, toy.records("test"), 40.0))
    with np.load(tmp_path / "panels.npz", allow_pickle=False) as panels:
        assert panels["sensors"].tolist() == ["spot", "s2"] and panels["extent"] == 40
        assert panels["input_0"].shape == (3, 40, 40, 3) and panels["input_1"].shape == (3, 4, 4, 3)
        assert panels["input_0"].dtype == np.uint8 and panels["input_0"].std() > 10
        assert panels["truth"].shape == (3, 4, 4) and panels["truth"].dtype == np.int32
        known = panels["truth"] >= 0
        assert 0 < known.sum() < known.size
        np.testing.assert_array_equal(panels["prediction"][known], panels["truth"][known])
        records = toy.records("test")
        ids = [records[index]["id"].decode() for index in range(7)]
        for name, truth in zip(panels["ids"], panels["truth"], strict=True):
            np.testing.assert_array_equal(truth, records[ids.index(name)]["dense"])


def test_the_most_varied_maps_are_kept_and_padding_is_not(toy):
    arrays = show(ExampleChoice(DENSE, 3), toy).arrays(toy.card, toy.records("test"), 40.0)
    entropies = [class_entropy(toy.records("test")[index]["dense"]) for index in range(7)]
    kept = [class_entropy(truth) for truth in arrays["truth"]]
    assert class_entropy(np.array([[1, 1], [-1, -1]])) == class_entropy(np.full(3, -1)) == 0.0
    assert class_entropy(np.array([0, 1, -1])) == pytest.approx(np.log(2))
    assert kept == pytest.approx(sorted(entropies, reverse=True)[:3])
    everything = show(ExampleChoice(DENSE, 20), toy).arrays(toy.card, toy.records("test"), 40.0)
    assert sorted(everything["ids"].tolist()) == [f"test{index}" for index in range(7)]


def test_windows_show_their_part_of_the_tile(toy, tmp_path):
    whole = show(ExampleChoice(DENSE, 7), toy).arrays(toy.card, toy.records("test"), 40.0)
    # Without classes of tiles, which are not those of parts.
    adapt_toys.register_toy("toy_maps", tile_label="none", tile_classes=(), **adapt_toys.WITH_SPOT)
    cut = adapt_toys.toy_config(tmp_path, level="dense", name="toy_maps").data
    cut.datasets.toy_maps.extent = 20.0
    maps = load.open_datasets(cut)["toy_maps"]
    parts = show(ExampleChoice(DENSE, 28), maps).arrays(maps.card, maps.records("test"), 20.0)
    assert parts["truth"].shape == (28, 2, 2) and parts["input_0"].shape == (28, 20, 20, 3)
    place = whole["ids"].tolist().index("test0")
    quarters = [whole["input_0"][place][top : top + 20, left : left + 20] for top in (0, 20) for left in (0, 20)]
    shown = parts["input_0"][parts["ids"] == "test0"]
    for part in shown:
        assert sum(np.array_equal(part, quarter) for quarter in quarters) == 1


def test_what_is_kept_of_a_tile_task(toy):
    arrays = show(ExampleChoice(TILE, 4), toy).arrays(toy.card, toy.records("test"), 40.0)
    assert len(arrays["ids"]) == 4 and "truth" not in arrays
    wanted = [adapt_toys.CARD.tile_classes[int(name.removeprefix("test")) % 3] for name in arrays["ids"]]
    assert arrays["truth_text"].tolist() == arrays["prediction_text"].tolist() == wanted


def test_nothing_is_kept_where_nothing_is_wanted(toy):
    arrays = show(ExampleChoice(TILE, 0), toy).arrays(toy.card, toy.records("test"), 40.0)
    assert len(arrays["ids"]) == 0 and arrays["input_0"].shape == (0, 40, 40, 3)


def test_the_choice_does_not_depend_on_the_batches():
    chosen = []
    for size in (1, 4):
        book = ExampleChoice(TILE, 2)
        for first in range(0, 8, size):
            rows = np.arange(first, first + size)
            labels = {"tile": rows % 3, "index": rows, "valid": np.ones(size, bool)}
            book(Batch({}, labels), np.zeros((size, 3), np.float32))
        chosen.append([sample["index"] for sample in book._kept.items])
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("kind", "logits", "answer", "text"),
    [
        ("class", [0.1, 0.9, 0.2], 1, "b"),
        ("multi_label", [0.5, -0.1, 0.2], [True, False, True], "a, c"),
        ("multi_label", [-1.0, -1.0, -1.0], [False] * 3, "none"),
        ("regression", [0.5], 12.0, "12 %"),
    ],
)
def test_answers_label_text(kind, logits, answer, text):
    classes = () if kind == "regression" else ("a", "b", "c")
    task = Task("toy", "Toy", "tile", kind, classes, unit="%" if kind == "regression" else "", offset=10.0, scale=4.0)
    found = prediction(task, np.float32(logits))
    np.testing.assert_allclose(found, answer)
    assert label_text(task, found) == text


def test_what_is_unknown_is_called_so():
    assert label_text(TILE, np.int32(-1)) == "unknown"
    assert label_text(Task("toy", "Toy", "tile", "regression", unit="t"), np.float32(np.nan)) == "unknown"

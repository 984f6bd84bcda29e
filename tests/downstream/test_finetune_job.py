"""Fine-tuning, probing and evaluation from a config to a report, on a toy dataset."""

import csv
import functools
import json

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from anysat_jax.downstream.data import open_data, start_network
from anysat_jax.downstream.evaluate import evaluate
from anysat_jax.downstream.finetune import finetune, network_problem
from anysat_jax.downstream.task import LossConfig
from anysat_jax.errors import ConfigError, DataError
from anysat_jax.flops import finetune_flops
from anysat_jax.model.init import flat_names
from anysat_jax.status import read_status
from anysat_jax.train.input import StepInput
from anysat_jax.train.status import JobStatus
from anysat_jax.weights.exported import load_exported, save_exported
from tests.downstream import adapt_toys

pytestmark = pytest.mark.usefixtures("unpainted_figures")  # but for the run that all others begin with
FILES = ("summary.json", "metrics.csv", "evaluation.csv", "panels.npz", "model.safetensors", "report/results.html")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    adapt_toys.register_toy()
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def tuned(root):
    """A finished fine-tuning on tiles: its config and its workdir."""
    config = adapt_toys.toy_config(root)
    finetune(config, root / "tuned")
    return config, root / "tuned"


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(workdir):
    found = load_exported(workdir / "model.safetensors")
    return flat_names({"encoder": found.encoder_params, "head": found.head.params})


def starting_weights(config):
    start = start_network(open_data(config, ("train", "val", "test")))
    return flat_names(start.params)


def changed_names(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_a_run_leaves_its_results(tuned):
    _, workdir = tuned
    assert [name for name in FILES if not (workdir / name).is_file()] == []
    found = summary(workdir)
    assert found["job"] == "finetune" and found["mode"] == "finetune" and found["init"]["kind"] == "none"
    assert found["samples"] == {"train": 10, "val": 6, "test": 7} and found["steps"] == 6 and found["epochs"] == 2
    assert found["parameters"]["head"] == 2 * 32 + 33 * 3
    assert found["parameters"]["trainable"] == found["parameters"]["total"] > 10_000
    assert set(found["scores"]) == {"val", "test"} and found["scores"]["test"]["count"] == 7
    assert np.sum(found["confusion"]["test"]) == 7 and set(found["per_class"]["test"]["iou"]) == {
        "low",
        "middle",
        "high",
    }
    assert found["best"]["metric"] == "accuracy" and found["best"]["value"] == found["scores"]["val"]["accuracy"]
    assert found["provenance"]["versions"]["jax"] == jax.__version__ and found["provenance"]["seconds"] > 0
    assert found["config"]["data"]["datasets"]["toy_fields"]["batch_size"] == 4
    assert [row["step"] for row in rows(workdir / "metrics.csv")] == [str(step) for step in range(1, 7)]
    assert [row["epoch"] for row in rows(workdir / "evaluation.csv")] == ["1", "2"]


def test_its_status_tells_the_end(tuned):
    found = read_status(tuned[1])
    assert (found["state"], found["step"], found["total_steps"]) == ("done", 6, 6) and found["name"] == "toy_finetune"
    assert found["best"]["value"] == summary(tuned[1])["best"]["value"] and found["losses"]["loss"] > 0
    assert found["last_checkpoint"] == 6 and found["left_out_tiles"] == found["nonfinite_steps"] == 0


def test_the_flops_of_a_step_are_known_where_the_whole_network_trains(root):
    counts, rates = {}, {}
    for mode in ("scratch", "last_block"):
        config = adapt_toys.toy_config(root, mode=mode)
        config.model.drop_path = 0.1
        data = open_data(config, ("train", "val"))
        problem = network_problem(data, start_network(data), LossConfig(), JobStatus())
        counts[mode], rates[mode] = problem.count_flops, problem.forward.keywords["drop_path"]
    assert rates == {"scratch": 0.1, "last_block": 0.0}  # blocks are left out where all train
    batch = next(problem.batches())
    inputs = StepInput((batch,), {})
    assert counts["scratch"](inputs) == finetune_flops(start_network(data).network, batch) > 1e6
    assert counts["last_block"] is None


def test_last_block_trains_the_last_block_and_the_head_and_tiles_that_cannot_be_read_are_left_out_if_asked(
    tuned, tmp_path
):
    config = adapt_toys.toy_config(tmp_path, mode="last_block", init=str(tuned[1]))
    config.knn.neighbours = 3
    open_data(config, ("train",))
    for split, tile in (("train", 7), ("val", 1), ("test", 0), ("test", 6)):
        adapt_toys.flip_bit_of_tile(tmp_path, split, tile)
    with pytest.raises(DataError, match=r"tile . of split '.*' cannot be read .*; data.skip_corrupt = True would"):
        finetune(config, tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "failed"
    config.data.skip_corrupt = True
    before = starting_weights(config)
    found = finetune(config, tmp_path / "run")
    changed = changed_names(before, weights(tmp_path / "run"))
    assert changed and all(name.startswith(("encoder/combiner/cross/", "head/")) for name in changed)
    assert any(name.startswith("encoder/") for name in changed)
    assert found["parameters"]["trainable"] < found["parameters"]["total"]
    assert found["left_out"] == {"train": [7], "val": [1], "test": [0, 6]}
    assert found["samples"]["val"] == 5 and found["scores"]["test"]["count"] == found["knn"]["test"]["count"] == 5
    assert found["training"]["skipped_records"]["toy_fields"] in (1, 2)  # in six batches of four of ten tiles
    status = read_status(tmp_path / "run")
    assert status["state"] == "done" and status["left_out_tiles"] == 4
    assert status["skipped_records"] == found["training"]["skipped_records"]["toy_fields"]
    again = adapt_toys.toy_config(tmp_path, job="evaluate", init=str(tmp_path / "run"))
    again.data.skip_corrupt = True
    measured = evaluate(again, tmp_path / "again")
    assert measured["left_out"] == {"val": [1], "test": [0, 6]} and measured["scores"] == found["scores"]


def test_started_again_it_only_measures_again(tuned):
    config, workdir = tuned
    before, tensors = summary(workdir), weights(workdir)
    tables = [(workdir / name).read_bytes() for name in ("metrics.csv", "evaluation.csv")]
    found = finetune(config, workdir)
    assert found["scores"] == before["scores"] and found["training"]["seconds"] == before["training"]["seconds"]
    assert [(workdir / name).read_bytes() for name in ("metrics.csv", "evaluation.csv")] == tables
    assert not changed_names(tensors, weights(workdir))


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_an_evaluation_of_the_run_finds_the_same_scores(root, tuned, tmp_path, file):
    _, workdir = tuned
    config = adapt_toys.toy_config(root, job="evaluate", init=str(workdir / file))
    found, run = evaluate(config, tmp_path), summary(workdir)
    assert found["scores"] == run["scores"] and found["confusion"] == run["confusion"]
    assert found["job"] == "evaluate" and found["init"]["kind"] == ("export" if file else "run")
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["total_steps"]) == ("done", 4, 4)  # batches of six and seven tiles
    assert status["tiles_per_second"] > 0 and 0 <= status["input_wait_share"] <= 1 and status["mfu"] is None
    with np.load(workdir / "panels.npz") as one, np.load(tmp_path / "panels.npz") as other:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.usefixtures("traced_encoder")
def test_an_evaluation_takes_other_splits_and_several_patch_sizes(root, tuned, tmp_path):
    """What it answers: test_evaluate.py."""
    config = adapt_toys.toy_config(root, job="evaluate", init=str(tuned[1]))
    config.evaluate.update(dict(splits=("val",), patch_sizes=(10, 20)))
    found = evaluate(config, tmp_path)
    assert set(found["scores"]) == {"val"} and found["patch_sizes"] == [10.0, 20.0] and found["samples"] == {"val": 6}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(level="dense"), "its level is 'tile' .*, and that of 'toy_fields' is 'dense'"),
        (dict(init="nowhere"), "init = 'nowhere' must be the workdir of a finished fine-tuning or probing"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(root, tuned, tmp_path, changes, message):
    config = adapt_toys.toy_config(root, job="evaluate", **{"init": str(tuned[1]), **changes})
    with pytest.raises(ConfigError, match=message):
        evaluate(config, tmp_path)


def test_an_encoder_alone_cannot_be_evaluated(root, tuned, tmp_path):
    found = load_exported(tuned[1] / "model.safetensors")
    save_exported(tmp_path / "encoder.safetensors", found.model, found.encoder_params, source={})
    config = adapt_toys.toy_config(root, job="evaluate", init=str(tmp_path / "encoder.safetensors"))
    with pytest.raises(ConfigError, match=r"encoder.safetensors holds an encoder alone"):
        evaluate(config, tmp_path)


def test_a_head_that_is_not_that_of_its_description_cannot_be_evaluated(root, tuned, tmp_path):
    found = load_exported(tuned[1] / "model.safetensors")
    params = jax.tree.map(lambda leaf: leaf[..., :-1], found.head.params)
    options = dict(head=found.head._replace(params=params), source={})
    save_exported(tmp_path / "head.safetensors", found.model, found.encoder_params, **options)
    config = adapt_toys.toy_config(root, job="evaluate", init=str(tmp_path / "head.safetensors"))
    with pytest.raises(ConfigError, match=r"head.safetensors has a head whose tensors are not those of its desc"):
        evaluate(config, tmp_path)


def test_a_dense_task_whose_fine_tuning_begins_where_a_probe_ends(root, tmp_path):
    config = adapt_toys.toy_config(root, level="dense", mode="scratch", head_init="probe")
    config.task.class_weights = "balanced"
    found = finetune(config, tmp_path)
    table = rows(tmp_path / "evaluation.csv")
    assert [row["epoch"] for row in table] == ["0", "1", "2"]
    assert found["best"]["value"] == max(float(row["mean_iou"]) for row in table)
    with np.load(tmp_path / "panels.npz") as panels:
        assert panels["prediction"].shape == panels["truth"].shape == (3, 4, 4)
        known = panels["truth"] >= 0
        assert 0 <= accuracy_score(panels["truth"][known], panels["prediction"][known]) <= 1
        assert set(np.unique(panels["prediction"])) <= {0, 1}
    labels = open_data(config, ("test",)).counts["test"]
    assert np.sum(found["confusion"]["test"], axis=1).tolist() == labels.tolist()
    assert found["best"]["metric"] == "mean_iou" and found["head"]["input"] == "dense"


def test_projector_trains_the_new_sensors_projector_and_the_head(root, tuned, tmp_path):
    adapt_toys.register_toy("toy_spot", **adapt_toys.WITH_SPOT)
    toy = functools.partial(adapt_toys.toy_config, root, name="toy_spot", init=str(tuned[1]))
    with pytest.raises(ConfigError, match="none for spot of the data"):
        finetune(toy(), tmp_path / "run")
    config = toy(mode="projector", new_sensors=("spot",), epochs=1)
    before = starting_weights(config)
    finetune(config, tmp_path / "run")
    changed = changed_names(before, weights(tmp_path / "run"))
    assert any("projector_spot" in name for name in changed)
    assert all(name.startswith(("encoder/projector_spot/", "head/")) for name in changed)


def test_a_probe_trains_the_head_alone_and_reads_the_cache_the_second_time(root, tuned, tmp_path):
    config = adapt_toys.toy_config(root, job="probe", mode="probe", init=str(tuned[1]), epochs=3)
    config.cache.folder, config.knn.neighbours = str(tmp_path / "cache"), 3
    before = starting_weights(config)
    found = finetune(config, tmp_path / "first")
    changed = changed_names(before, weights(tmp_path / "first"))
    assert changed and all(name.startswith("head/") for name in changed)
    assert found["parameters"]["trainable"] == found["parameters"]["head"] == 2 * 32 + 33 * 3
    assert found["best"]["value"] == found["scores"]["val"]["accuracy"]  # kept features and the network agree
    assert set(found["knn"]) == {"neighbours", "test"} and 0 <= found["knn"]["test"]["accuracy"] <= 1
    entries = sorted((tmp_path / "cache" / "features").glob("[0-9a-f]*"))
    times = [entry.stat().st_mtime_ns for entry in entries]
    assert len(entries) == 3  # train, val, and test for the neighbours
    measured = evaluate(adapt_toys.toy_config(root, job="evaluate", init=str(tmp_path / "first")), tmp_path / "again")
    assert measured["mode"] == "probe" and measured["scores"] == found["scores"]
    again = finetune(config, tmp_path / "second")
    assert again["scores"] == found["scores"] and again["knn"] == found["knn"]
    assert [entry.stat().st_mtime_ns for entry in entries] == times


def test_a_random_network_can_be_measured(root, tmp_path):
    config = adapt_toys.toy_config(root, job="evaluate", init="none")
    found = evaluate(config, tmp_path)
    assert found["scores"]["test"]["count"] == 7 and found["best"] is None and found["init"]["kind"] == "none"


def test_a_solved_head_is_the_whole_probe(root, tuned, tmp_path):
    config = adapt_toys.toy_config(root, job="probe", mode="probe", init=str(tuned[1]), head_init="probe", epochs=0)
    config.cache.folder = str(tmp_path / "cache")
    before = starting_weights(config)
    found = finetune(config, tmp_path / "run")
    assert [row["epoch"] for row in rows(tmp_path / "run" / "evaluation.csv")] == ["0"]
    assert found["best"]["epoch"] == 0 and found["best"]["value"] == found["scores"]["val"]["accuracy"]
    changed = changed_names(before, weights(tmp_path / "run"))
    assert changed == {name for name in before if name.startswith("head/")}
    again = finetune(config, tmp_path / "run")
    assert again["scores"] == found["scores"]


def test_a_head_that_is_not_linear_cannot_be_solved(root, tmp_path):
    config = adapt_toys.toy_config(root, mode="scratch", head_init="probe")
    config.head.kind = "mlp"
    with pytest.raises(ConfigError, match=r"head_init = 'probe' needs a linear head .*; head.kind is 'mlp'"):
        finetune(config, tmp_path / "run")

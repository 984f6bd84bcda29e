"""Whole fits of a toy: what is found, what stops them, what they refuse."""

import csv
import functools
import json
import shutil
import threading
import types

import jax
import numpy as np
import pytest

from anysat_jax.downstream.task import Task
from anysat_jax.errors import CheckpointError, ConfigError, NonFiniteError
from anysat_jax.status import FILE_NAME, describe, read_status
from anysat_jax.train import loop as loop_module
from anysat_jax.train import status as status_module
from anysat_jax.train.checkpoints import Checkpoints
from anysat_jax.train.compile import Compiled, StepPrograms
from anysat_jax.train.config import MeshConfig
from anysat_jax.train.sharding import make_mesh
from anysat_jax.train.status import JobStatus, Watchdog
from tests.downstream.fit_toys import (
    CLASSES,
    ToyBatches,
    fit,
    one_device,
    toy_config,
    toy_params,
    toy_problem,
    validate,
)
from tests.train.toys import assert_same


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and result of a fit of one epoch, and its batches."""
    folder, batches = tmp_path_factory.mktemp("finished"), ToyBatches()
    found = fit(toy_problem(batches=lambda: batches), toy_config(epochs=1), one_device(), folder)
    return types.SimpleNamespace(folder=folder, found=found, batches=batches)


class Scripted:
    """Validation whose metric follows a script; remembers the parameters that it was given."""

    def __init__(self, *values, metric="accuracy"):
        self.values, self.metric, self.seen = list(values), metric, []

    def __call__(self, params):
        self.seen.append(jax.device_get(params))
        names = ("loss", "accuracy", "macro_f1", "weighted_f1", "micro_f1", "mean_iou", "rmse", "r2", "mae")
        return dict.fromkeys(names, 0.0) | {self.metric: self.values[len(self.seen) - 1]}


def test_it_learns_and_returns_the_whole_best_parameters(tmp_path):
    found = fit(toy_problem(), toy_config(), one_device(), tmp_path)
    rows = table(tmp_path / "evaluation.csv")
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies[-1] > 0.85 > accuracies[0]
    best = found.record["best"]
    assert (best["epoch"], best["value"]) == (accuracies.index(max(accuracies)) + 1, max(accuracies))
    scores = validate(found.params)
    assert scores["accuracy"] == best["value"]
    assert_same(found.params["encoder"]["mix"], toy_params()["encoder"]["mix"])  # frozen
    assert jax.tree.structure(found.params) == jax.tree.structure(toy_params())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.params))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps[-1] == 20


def test_tables_have_their_columns(tmp_path):
    fit(toy_problem(), toy_config(epochs=3, evaluate__every=2), one_device(), tmp_path)
    metrics, evaluations = table(tmp_path / "metrics.csv"), table(tmp_path / "evaluation.csv")
    assert ",".join(metrics[0]) == "step,epoch,dataset,patch_size,loss,learning_rate,grad_norm,tiles_per_second"
    assert [int(row["step"]) for row in metrics] == list(range(1, 13))
    assert [int(row["epoch"]) for row in metrics] == [1] * 4 + [2] * 4 + [3] * 4
    assert metrics[0]["dataset"] == "toy" and metrics[0]["patch_size"] == "10"
    assert ",".join(evaluations[0]) == "epoch,step,loss,accuracy,macro_f1,weighted_f1,micro_f1,mean_iou"
    # Every second epoch, and after the last.
    assert [(row["epoch"], row["step"]) for row in evaluations] == [("2", "8"), ("3", "12")]


@pytest.mark.parametrize(
    ("kind", "values"), [("class", (0.1, 0.7, 0.6, 0.7, 0.9)), ("regression", (3.0, 1.0, 2.0, 1.5, 0.5))]
)
def test_it_stops_early_and_takes_the_best(tmp_path, kind, values):
    classes = ("a", "b", "c") if kind == "class" else ()
    metric = "accuracy" if kind == "class" else "rmse"
    judge = Scripted(*values, metric=metric)
    changes = {} if kind == "class" else dict(forward=lambda params, *rest: toy_problem().forward(params, *rest)[:, :1])
    problem = toy_problem(task=Task("toy", "Toy", "tile", kind, classes, metric=metric), validate=judge, **changes)
    if kind == "regression":
        problem = toy_problem(**{**vars(problem), "batches": _Regression})
    found = fit(problem, toy_config(early_stopping=2), one_device(), tmp_path)
    best = found.record["best"]
    assert (best["epoch"], best["value"]) == (2, values[1]) and len(judge.seen) == 4
    assert found.record["stopped_early"] and found.record["steps"] == 16
    assert_same(found.params, judge.seen[1])
    assert not np.array_equal(judge.seen[2]["head"]["out"]["kernel"], judge.seen[1]["head"]["out"]["kernel"])
    again = fit(problem, toy_config(early_stopping=2), one_device(), tmp_path)
    assert again.record["best"] == best and len(judge.seen) == 4


class _Regression(ToyBatches):
    def __next__(self):
        batch = super().__next__()
        return batch.replace(labels={**batch.labels, "tile": batch.labels["tile"].astype(np.float64)})


def test_the_rate_falls_where_evaluations_stand_still(tmp_path):
    judge = Scripted(0.5, 0.4, 0.4, 0.6, 0.1)
    config = toy_config(optimizer__schedule="plateau", optimizer__warmup_epochs=0)
    fit(toy_problem(validate=judge), config, one_device(), tmp_path)
    rates = [float(row["learning_rate"]) for row in table(tmp_path / "metrics.csv")]
    np.testing.assert_allclose(rates, 3e-2 * np.repeat([1, 1, 0.5, 0.25, 0.25], 4), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "named"),
    [((3, 11), r"samples whose loss is not finite: sample-83, sample-91$"), ((), None)],
    ids=["samples", "gradient"],
)
def test_what_is_not_finite_stops_the_run_by_name(tmp_path, rows, named):
    problem = toy_problem(batches=lambda: ToyBatches(bad_at=6, bad_rows=rows))
    if not rows:  # a loss that is finite, with a gradient that is not
        before = problem.forward
        problem = toy_problem(forward=lambda params, batch, rng: before(params, batch, rng) + _steep(params))
        named = r"in: gradient of head/out/bias\..*samples of the batch: sample-0, .*, sample-9 and 6 more$"
    with pytest.raises(NonFiniteError, match=named) as caught:
        fit(problem, toy_config(checkpoint_every=1), one_device(), tmp_path)
    step = 6 if rows else 1
    for part in (
        f"step {step} on dataset 'toy' with patches of 10 m",
        "Its update was not applied",
        "gradient of head/",
    ):
        assert part in str(caught.value)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps[-1:] == ([5] if rows else [])
    assert len(table(tmp_path / "metrics.csv")) == step - 1


class Spoilt(ToyBatches):
    """Batches of which some have values that are not finite."""

    def __init__(self, *bad):
        super().__init__()
        self.bad = bad

    def __next__(self):
        batch = super().__next__()
        return batch.replace(values=np.full_like(batch.values, np.nan)) if self.step in self.bad else batch


def test_so_many_steps_that_are_not_finite_are_passed_over(tmp_path, caplog):
    config = toy_config(epochs=3, max_nonfinite_steps=3, average_decay=0.5)
    found = fit(toy_problem(batches=lambda: Spoilt(5, 6, 9)), config, one_device(), tmp_path)
    losses = [row["loss"] for row in table(tmp_path / "metrics.csv")]
    assert [step for step, loss in enumerate(losses, 1) if loss == "nan"] == [5, 6, 9]
    assert found.record["nonfinite_steps"] == 3 and found.record["steps"] == 12
    assert "The run continues, until there are 3 in a row (max_nonfinite_steps)" in caplog.text
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
    with pytest.raises(NonFiniteError, match=r"step 6 on dataset 'toy' .*samples whose loss is not finite: sample-80"):
        fit(toy_problem(batches=lambda: Spoilt(5, 6)), toy_config(max_nonfinite_steps=2), one_device(), tmp_path / "b")


class Damaged(ToyBatches):
    """Batches in which a sample stands for one that cannot be read."""

    def __next__(self):
        batch = super().__next__()
        return batch.replace(labels={**batch.labels, "skipped": np.where(batch.labels["index"] == 17, 99, -1)})


def test_its_status_tells_how_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop_module, "peak_flops", lambda kind: 1e9)
    seen = []

    def judge(params):
        with status.during("evaluating"):
            seen.append(json.loads((tmp_path / FILE_NAME).read_text()))
        return Scripted(0.5, 0.7, 0.6)(params) | {"accuracy": (0.5, 0.7, 0.6)[len(seen) - 1]}

    with JobStatus(tmp_path, "toy", watchdog_seconds=1800.0) as status:
        problem = toy_problem(validate=judge, batches=Damaged, count_flops=lambda inputs: 1e3 * inputs.batch.batch_size)
        found = fit(problem, toy_config(epochs=3), one_device(), tmp_path, status)
    assert [(one["state"], one["step"], one["total_steps"]) for one in seen] == [
        ("evaluating", 4 * epoch, 12) for epoch in (1, 2, 3)
    ]
    bests = [one["best"] for one in seen]
    assert bests == [None, *({"metric": "accuracy", "value": value, "epoch": n} for n, value in ((1, 0.5), (2, 0.7)))]
    end = read_status(tmp_path)
    assert (end["state"], end["step"], end["last_checkpoint"]) == ("done", 12, 12)
    assert end["losses"]["loss"] == found.record["loss"]["last"] and end["best"]["value"] == 0.7
    assert end["tiles_per_second"] > 0 and 0 <= end["input_wait_share"] <= 1
    assert end["mfu"] == pytest.approx(end["tiles_per_second"] * 1e3 / 1e9)
    assert end["skipped_records"] == 2 and found.record["skipped_records"] == {"toy": 2}  # of batches 2 and 10
    assert "best            accuracy 0.7000 at epoch 2" in describe("run", end)


def test_a_long_evaluation_is_no_step_that_hangs(tmp_path, monkeypatch):
    now, ended = [0.0], threading.Event()  # a clock that stands still but for the evaluation
    monkeypatch.setattr(status_module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(status_module, "Watchdog", functools.partial(Watchdog, end=lambda code: ended.set()))
    status = JobStatus(tmp_path, watchdog_seconds=0.4)

    def judge(params):
        with status.over_split("evaluating", "val", 4, Compiled(jax.jit(validate))) as passing:
            for _ in range(4):
                now[0] += 0.3
                assert not ended.wait(0.15)  # watchdogs look every 0.1 s
                passing.done(1)
        return validate(params)

    fit(toy_problem(validate=judge), toy_config(epochs=1), one_device(), tmp_path, status)
    assert now[0] > 1.0 and not ended.is_set()


def test_the_batches_are_closed_at_the_end(finished):
    assert finished.batches.closed


def test_a_range_of_steps_is_profiled_without_the_evaluation_behind_it(tmp_path):
    page = tmp_path / "profile" / "summary.txt"

    def judge(params):
        assert page.read_text().startswith("2 steps on 1 devices")
        return validate(params)

    fit(toy_problem(validate=judge), toy_config(epochs=1, profile__steps=(3, 4)), one_device(), tmp_path)
    assert page.is_file()


def _steep(params):
    """Zero, with an infinite slope."""
    return jax.numpy.sqrt(params["head"]["out"]["bias"]).reshape(1, CLASSES)


def test_eight_devices_find_what_one_finds(finished, tmp_path):
    found = fit(toy_problem(), toy_config(epochs=1), make_mesh(MeshConfig(data=2, fsdp=4)), tmp_path)
    one, eight = (
        [float(row["loss"]) for row in table(folder / "metrics.csv")] for folder in (finished.folder, tmp_path)
    )
    assert len(eight) == 4
    np.testing.assert_allclose(eight, one, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found.params, finished.found.params)
    # A run goes on on another mesh.
    more = fit(toy_problem(), toy_config(epochs=3), one_device(), tmp_path)
    assert more.record["steps"] == 12 and more.record["resumed_from"] == 4


def test_another_seed_is_another_run_of_the_same_program(tmp_path, monkeypatch):
    texts, compile_program = [], StepPrograms._compile

    def noting(self, state, *others):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), others)
        texts.append(self._function.lower(state, *shapes).as_text())
        return compile_program(self, state, *others)

    monkeypatch.setattr(StepPrograms, "_compile", noting)
    losses = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        fit(toy_problem(), toy_config(seed=seed, epochs=1), one_device(), folder)
        losses.append(table(folder / "metrics.csv")[0]["loss"])
    assert len(texts) == 2 and texts[0] == texts[1] and losses[0] != losses[1]


def test_the_update_is_a_program_of_its_own_compiled_ahead_and_once(tmp_path, monkeypatch):
    kinds, compile_program = [], Compiled._compile

    def noting(self, *arguments):
        kinds.append((type(self), {type(leaf) for leaf in jax.tree.leaves(arguments)}))
        return compile_program(self, *arguments)

    monkeypatch.setattr(Compiled, "_compile", noting)
    fit(toy_problem(), toy_config(epochs=1), make_mesh(MeshConfig(data=2, fsdp=4)), tmp_path)
    shapes = {jax.ShapeDtypeStruct}
    assert sorted(kinds, key=str) == [(Compiled, shapes), (StepPrograms, shapes)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(fingerprint={"dataset": "other", "init": "abc"}), r"\(dataset: 'toy' there, 'other' now\)"),
        (dict(steps_per_epoch=5), r"\(steps_per_epoch: 4 there, 5 now\)"),
    ],
)
def test_a_workdir_of_another_problem_is_refused(finished, changes, message):
    with pytest.raises(ConfigError, match=rf"is of another problem {message}; give the same config or another"):
        fit(toy_problem(**changes), toy_config(epochs=1), one_device(), finished.folder)


def test_other_settings_are_told_and_best_parameters_that_are_lost_are_missed(finished, tmp_path, caplog):
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    free = dict(log_every=7, max_nonfinite_steps=5, profile__steps=(1, 2))
    found = fit(toy_problem(), toy_config(epochs=1, optimizer__clip_norm=2.0, **free), one_device(), tmp_path)
    assert found.record["steps"] == 4
    assert "settings.optimizer.clip_norm was 1.0 in the checkpoint and is 2.0 now" in caplog.text
    assert not any(name in caplog.text for name in ("log_every", "max_nonfinite", "profile"))
    for file in (tmp_path / "best" / "4" / "state").rglob("d/*"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .*best could be read"):
        fit(toy_problem(), toy_config(epochs=1), one_device(), tmp_path)
    with pytest.raises(CheckpointError, match="the best parameters, those of step 4, are not in .*best"):
        fit(toy_problem(), toy_config(epochs=1), one_device(), tmp_path)

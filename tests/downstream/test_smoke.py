"""Smoke runs, as the command makes them: every row of the paper's tables, on archives that are made on the spot.

Modes, restarts and bad weights are in test_finetune_job.py, on a toy.
"""

import math

import pytest

from anysat_jax.configs import evaluate, finetune, probe, tasks
from anysat_jax.downstream import evaluate as evaluation
from anysat_jax.downstream import finetune as fine_tuning
from anysat_jax.downstream.task import METRICS

ARCHIVES = [name for name in tasks.TASKS if name not in tasks.LITTLE]
PROBED = [*(name for name in probe.NAMES if name in ARCHIVES), "fuel_moisture", "mini_flair"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Archives and prepared data are made once for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def check_summary(summary, config, workdir):
    kind = summary["task"]["kind"]
    assert set(summary["scores"]) == set(config.evaluate.splits)
    for split, scores in summary["scores"].items():
        assert set(scores) == {*METRICS[kind], "count", "loss"}
        assert math.isfinite(scores["loss"]) and scores["count"] > 0
        assert summary["samples"][split] >= config.data.fake_tiles
    for name in ("summary.json", "panels.npz", "report/results.html"):
        assert (workdir / name).is_file()


@pytest.mark.parametrize("name", [*ARCHIVES, *(name for name in PROBED if name not in ARCHIVES)])
def test_row(name, tmp_path):
    """Fine-tuning, evaluation of its weights and probing, in one test: they share compiled programs."""
    if name == "bradd_s1ts":
        pytest.importorskip("torch", reason="its archive is a file of PyTorch")
    if name in ARCHIVES:
        fine_tune_and_evaluate(name, tmp_path)
    if name in PROBED:
        config = probe.get_config(f"{name},smoke")
        summary = fine_tuning.finetune(config, tmp_path / "probe")
        check_summary(summary, config, tmp_path / "probe")
        trained, head = summary["parameters"]["trainable"], summary["parameters"]["head"]
        assert trained == head if config.mode == "probe" else head < trained < summary["parameters"]["total"]


def fine_tune_and_evaluate(name, folder):
    config = finetune.get_config(f"{name},smoke")
    summary = fine_tuning.finetune(config, folder / "run")
    check_summary(summary, config, folder / "run")
    assert summary["steps"] > 0
    assert summary["parameters"]["trainable"] == summary["parameters"]["total"]
    again = evaluate.get_config(f"{name},smoke")
    again.init = str(folder / "run")
    again.evaluate.splits = config.evaluate.splits[-1:]
    measured = evaluation.evaluate(again, folder / "again")
    check_summary(measured, again, folder / "again")
    for split, scores in measured["scores"].items():
        assert scores == pytest.approx(summary["scores"][split], rel=1e-5, nan_ok=True)


def test_evaluating_a_random_network(tmp_path):
    """What a score is above."""
    config = evaluate.get_config("timesen2crop,smoke")
    summary = evaluation.evaluate(config, tmp_path / "run")
    check_summary(summary, config, tmp_path / "run")
    assert summary["init"]["kind"] == "none"

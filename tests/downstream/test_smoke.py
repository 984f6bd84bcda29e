"""Smoke runs, as the command makes them: every row of the paper's tables, on archives that are made on the spot.

Modes, restarts and bad weights are in test_finetune_job.py, on a toy.
"""

import math

import pytest

from anysat_jax.configs import evaluate, finetune, probe, tasks
from anysat_jax.downstream import evaluate as evaluation
from anysat_jax.downstream import finetune as fine_tuning
from anysat_jax.downstream.data import open_data, start_network
from anysat_jax.downstream.features import check_size
from anysat_jax.downstream.task import METRICS

ARCHIVES = [name for name in tasks.TASKS if name not in tasks.LITTLE]
# The encoder is traced, in a fraction of the time: what differs between the rows are the shapes, and all around the
# encoder. test_finetune_job.py and the README's commands train whole networks, and solve probes of them.
WHOLE = ("timesen2crop",)  # all weights train, and the probe's encoder is compiled; elsewhere head and last block train
# One of each kind of task, whose weights are evaluated again.
AGAIN = ("timesen2crop", "treesatai_ts", "hls_burn_scars", "biomassters")
# Classes of tiles, of pixels that are sampled, and of a sensor whose projector trains; two probes that are solved. The
# features of the other rows are made by the same programs.
PROBED = ("timesen2crop", "sickle", "hls_burn_scars", "fuel_moisture", "mini_flair")
# Whose figures are painted: answers for tiles, and for pixels.
PAINTED = ("timesen2crop", "hls_burn_scars")


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


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.usefixtures("traced_encoder")
def test_row(name, tmp_path, request):
    """Fine-tuning from an archive to scores; then its data are there for a probe."""
    if name not in PAINTED:
        request.getfixturevalue("unpainted_figures")
    if name == "bradd_s1ts":
        pytest.importorskip("torch", reason="its archive is a file of PyTorch")
    config = finetune.get_config(f"{name},smoke")
    if name not in WHOLE:
        config.mode = "last_block"
    summary = fine_tuning.finetune(config, tmp_path / "run")
    check_summary(summary, config, tmp_path / "run")
    assert summary["steps"] > 0
    parameters = summary["parameters"]
    assert (parameters["trainable"] == parameters["total"]) == (name in WHOLE)
    if name in AGAIN:
        evaluate_again(name, summary, tmp_path)
    if name in probe.NAMES and name not in PROBED:
        config = probe.get_config(f"{name},smoke")
        data = open_data(config, ("train", "val", *config.evaluate.splits))
        start = start_network(data)
        check_size(data, start.network, "train", data.dataset.num_samples("train"))


def evaluate_again(name, summary, folder):
    config = evaluate.get_config(f"{name},smoke")
    config.init = str(folder / "run")
    measured = evaluation.evaluate(config, folder / "again")
    check_summary(measured, config, folder / "again")
    for split, scores in measured["scores"].items():
        assert scores == pytest.approx(summary["scores"][split], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", PROBED)
@pytest.mark.usefixtures("unpainted_figures")
def test_probe(name, tmp_path, request):
    if name not in WHOLE:
        request.getfixturevalue("traced_encoder")
    config = probe.get_config(f"{name},smoke")
    summary = fine_tuning.finetune(config, tmp_path / "probe")
    check_summary(summary, config, tmp_path / "probe")
    trained, head = summary["parameters"]["trainable"], summary["parameters"]["head"]
    assert trained == head if config.mode == "probe" else head < trained < summary["parameters"]["total"]


@pytest.mark.usefixtures("unpainted_figures")
def test_evaluating_a_random_network(tmp_path):
    """What a score is above."""
    config = evaluate.get_config("timesen2crop,smoke")
    summary = evaluation.evaluate(config, tmp_path / "run")
    check_summary(summary, config, tmp_path / "run")
    assert summary["init"]["kind"] == "none"

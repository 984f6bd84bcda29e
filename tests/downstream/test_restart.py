"""Whole jobs of the command line in processes of their own: killed half-way, they end in the same numbers."""

import csv
import json
import os
import pathlib
import signal

import pytest

from anysat_jax.weights.exported import checksum, load_exported
from tests import forked
from tests.conftest import ONE_DEVICE

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tests" / "downstream" / "adapt_run.py"
RESULTS = ("scores", "per_class", "confusion", "best", "steps", "epochs", "parameters", "knn")


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs the command line; all runs share data and compiled programs."""
    shared = tmp_path_factory.mktemp("shared")

    def launch(name, workdir, *flags, **accident):
        environment = {
            **os.environ,
            "XLA_FLAGS": ONE_DEVICE,
            "XDG_CACHE_HOME": str(shared / "cache"),
            "TOY_ROOT": str(shared),
            **{f"TOY_{key.upper()}": str(value) for key, value in accident.items()},
        }
        return forked.run(SCRIPT, [f"--config={SCRIPT}:{name}", f"--workdir={workdir}", *flags], environment, shared)

    return launch


def results(workdir):
    found = json.loads((workdir / "summary.json").read_text())
    return {name: found[name] for name in RESULTS} | {"loss": found["training"]["loss"]}


def weights(workdir):
    """A digest of the exported weights."""
    found = load_exported(workdir / "model.safetensors")
    return checksum({"encoder": found.encoder_params, "head": found.head.params})


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in row if name != "tiles_per_second"} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "probe"])
def test_killed_half_way_it_resumes_exactly(launch, tmp_path, name):
    """The loop is the same for both; test_fit_restart.py kills it at every moment."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = launch(name, straight)
    assert done.returncode == 0, done.stderr
    assert launch(name, killed, kill=5).returncode == -signal.SIGKILL
    assert (killed / "metrics.csv").is_file() and not (killed / "summary.json").exists()
    again = launch(name, killed)
    assert again.returncode == 0 and "resuming from step" in again.stderr, again.stderr
    assert rows(killed) == rows(straight) and len(rows(straight)) == 9
    assert {row["patch_size"] for row in rows(straight)} == ({"10", "20"} if name == "probe" else {"10"})
    assert (killed / "evaluation.csv").read_bytes() == (straight / "evaluation.csv").read_bytes()
    assert weights(killed) == weights(straight)
    assert results(killed) == results(straight)


def test_what_cannot_be_is_refused_in_one_sentence(launch, tmp_path):
    refused = launch("finetune", tmp_path, "--config.init=nowhere")
    assert refused.returncode == 1 and "no nowhere; expected" in refused.stderr
    assert "Traceback" not in refused.stderr and "compiling" not in refused.stderr

"""The batch script of SLURM, between stand-ins for srun, squeue and scontrol."""

import re

import pytest

from tests.launch.tools import REPOSITORY, bash

SCRIPT = REPOSITORY / "launch" / "slurm.sh"
FLAGS = ("--config=configs/pretrain.py:geoplex", "--workdir=/shared/a run")


@pytest.fixture
def job(stand_ins, tmp_path):
    """Runs the script as a job of two nodes whose steps end with the exit codes."""
    stand_ins.add("scontrol")
    stand_ins.add("python")

    def run(*codes: int, state: str = "RUNNING", **environment: str):
        stand_ins.exit_codes("srun", *codes)
        stand_ins.answers("squeue", state)
        variables = dict(SLURM_JOB_ID="41", SLURM_CPUS_ON_NODE="96", ANYSAT_PYTHON="python", PATH=stand_ins.path)
        return bash(str(SCRIPT), *FLAGS, cwd=tmp_path, **variables | environment)

    return run


def called(stand_ins, program: str) -> list[list[str]]:
    return [words for name, *words in stand_ins.calls if name == program]


def test_a_step_is_one_process_a_node_that_finds_the_others(job, stand_ins):
    assert job(0).returncode == 0
    [step] = called(stand_ins, "srun")
    assert step[-6:] == ["python", "-m", "anysat_jax.main", "--processes=auto", *FLAGS]
    assert "--cpus-per-task=96" in step and not called(stand_ins, "scontrol")


@pytest.mark.parametrize("codes", [(75,), (134, 1, 75)])
def test_asked_to_stop_it_queues_again(job, stand_ins, codes):
    assert job(*codes).returncode == 75
    assert called(stand_ins, "scontrol") == [["requeue", "41"]]
    assert called(stand_ins, "squeue") == [["--noheader", "--jobs=41", "--format=%T"]]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_cancelled_job_does_not_come_back(job, stand_ins, state):
    assert job(75, state=state).returncode == 75
    assert not called(stand_ins, "scontrol")


def test_failures_are_tried_again_a_few_times(job, stand_ins):
    assert job(134, 1, 137, 0).returncode == 0
    stopped = job(1, 137, 1, 134)
    assert stopped.returncode == 134 and "exit code 134 at start 3 of 3" in stopped.stderr
    assert len(called(stand_ins, "srun")) == 8 and not called(stand_ins, "scontrol")


def test_a_process_takes_all_gpus_of_its_node(job, stand_ins, tmp_path):
    stand_ins.add("srun", f"echo ids=$JAX_LOCAL_DEVICE_IDS > {tmp_path / 'ids'}")
    seen = []
    for environment in ({"SLURM_GPUS_ON_NODE": "8"}, {"SLURM_GPUS_ON_NODE": "1"}, {}):
        bash(
            str(SCRIPT), SLURM_JOB_ID="41", SLURM_CPUS_ON_NODE="4", ANYSAT_PYTHON="python", PATH=stand_ins.path,
            **environment,
        )  # fmt: skip
        seen.append((tmp_path / "ids").read_text().strip())
    assert seen == ["ids=0,1,2,3,4,5,6,7", "ids=0", "ids="]


def test_a_missing_python_is_said_at_once(job, stand_ins):
    ended = job(0, ANYSAT_PYTHON="/nowhere/python")
    assert ended.returncode == 2 and "no Python at /nowhere/python: set ANYSAT_PYTHON" in ended.stderr
    assert not stand_ins.calls


def test_sbatch_reads_its_options_before_the_first_command():
    lines = SCRIPT.read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert options and max(options) < first
    given = {match[1]: match[2] for line in lines if (match := re.match(r"#SBATCH --([\w-]+)=?(.*)", line))}
    assert given["signal"].startswith("TERM@") and given["ntasks-per-node"] == "1" and "requeue" in given


def test_its_help_teaches_and_outside_a_job_it_says_so():
    helped = bash(str(SCRIPT), "--help")
    assert helped.returncode == 0 and "usage: sbatch --nodes=4" in helped.stdout and "#SBATCH" not in helped.stdout
    alone = bash(str(SCRIPT), *FLAGS, SLURM_JOB_ID="")
    assert alone.returncode != 0 and "not a SLURM job: give this file to sbatch, see --help" in alone.stderr

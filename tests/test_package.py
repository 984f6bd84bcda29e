"""The wheel and the source archive: what is in them, and that the wheel works from any folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"


def python(*words, folder, path):
    """Runs Python in a folder, with `path` before the site-packages."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source archive, unpacked."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns(".git", "build", "dist", "runs", ".venv", "*.egg-info", "__pycache__", ".*_cache")
    checkout = shutil.copytree(REPOSITORY, folder / "checkout", ignore=left_out)
    built = python("-c", BUILD.format("sdist", str(folder)), folder=checkout, path=[])
    assert built.returncode == 0, built.stderr
    with tarfile.open(next(folder.glob("*.tar.gz"))) as file:
        file.extractall(folder, filter="data")
    return next(path for path in folder.glob("anysat*") if path.is_dir())


@pytest.fixture(scope="module")
def site(archive, tmp_path_factory):
    """A folder like site-packages with the wheel that the source archive makes."""
    folder = tmp_path_factory.mktemp("wheel")
    built = python("-c", BUILD.format("wheel", str(folder)), folder=archive, path=[])
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as file:
        file.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A user's folder, whose own packages `configs`, `launch` and `tests` end whoever imports them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("configs", "launch", "tests"):
        for module in ("__init__", "tasks", "adaptation", "chips"):
            path = folder / name / f"{module}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"raise SystemExit('imported the package {name} of somebody else')\n")
    return folder


def test_the_source_archive_runs_its_tests(archive):
    for name in ("tests/conftest.py", "configs/pretrain.py", "launch/slurm.sh", "docs/DATA.md", ".ci/run", "README.md"):
        assert (archive / name).is_file(), name
    words = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/test_sensors.py", "tests/configs")
    words += ("-k", "not every_option")  # hundreds of tests of one function
    ran = python(*words, folder=archive, path=[archive])
    assert ran.returncode == 0, ran.stdout[-2000:]


def test_the_wheel_takes_no_general_name(site):
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"anysat_jax", "data_pipelines"}
    for file in ("launch/keep_going.sh", "scenes/view.html"):
        assert (site / "anysat_jax" / file).is_file(), file
    assert "anysat = anysat_jax.__main__:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()


COMMANDS = {
    ("--help",): "finetune  fine-tunes",
    ("describe", "--config=geoplex"): "125.91 M",
    ("describe", "--config", "pretrain.py:geoplex"): "125.91 M",
    ("data", "list"): "mini_flair",
    ("aot", "--config=geoplex", "--topology=h100:8", "--only=flair"): "h100:8",
    ("local", "--processes=1", "--", "--config=mini", "--config.job=describe"): "[0] dim 128",
    ("tpu", "create", "NAME", "--zone=ZONE", "--topology=v5e:4x4", "--dry_run"): "v5litepod-16",
    ("jobset", "--help"): "JobSet",
}


HELP = ("train", "--help")
MISTAKES = {
    ("dance",): "anysat: unknown command 'dance'; commands: train, finetune",
    ("describe", "mini"): "no mini; expected a published .pth file, or the workdir of a run",
    ("train", "mini"): "unexpected positional argument 'mini'",
    ("finetune", "--config=huge"): "configs/finetune.py has no 'huge'",
    ("aot", "--config=mini", "--topology=v5e:3x5"): "v5e has no slice '3x5'",
    ("describe", "--config=finetune.py:mini_flair,smoke"): "describe takes a config of configs/pretrain.py",
}
# As `python -m anysat_jax WORDS`, each in a process of its own: what all of them import is imported once.
SERVER = """
import json, os, runpy, sys
import anysat_jax.model.init, anysat_jax.pretrain.config, anysat_jax.train.distributed, anysat_jax.train.workdir
from absl import app, flags, logging
from ml_collections import config_flags
codes = []
for number, words in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["anysat_jax", *words]
        runpy.run_module("anysat_jax", run_name="__main__", alter_sys=True)
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def answers(site, elsewhere, tmp_path_factory):
    """What the commands of the wheel answer in the user's folder, by their words."""
    out, lines = tmp_path_factory.mktemp("answers"), [*COMMANDS, HELP, *MISTAKES]
    ran = python("-c", SERVER, json.dumps(lines), str(out), folder=elsewhere, path=[site])
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {
        words: subprocess.CompletedProcess(
            words, code, *((out / f"{number}.{name}").read_text() for name in ("stdout", "stderr"))
        )
        for number, (words, code) in enumerate(zip(lines, json.loads(ran.stdout), strict=True))
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_work_from_another_folder(words, answers):
    ran = answers[words]
    assert ran.returncode == 0 and COMMANDS[words] in ran.stdout, ran.stderr[-2000:]


def test_help_of_a_command_is_that_of_its_module(answers):
    assert "Pretrain a tiny model" in answers[HELP].stdout


def test_the_wheel_is_a_program(site, elsewhere):
    ran = python("-m", "anysat_jax", "--version", folder=elsewhere, path=[site])
    assert ran.returncode == 0 and ran.stdout.startswith("anysat-jax 0."), ran.stderr


def test_a_foreign_package_configs_is_left_alone(elsewhere):
    specs = [f"{REPOSITORY}/configs/{job}.py:mini_flair" for job in ("finetune", "probe", "evaluate")]
    code = f"from anysat_jax import main\nfor spec in {specs}:\n  print(main.load_config(spec).job)"
    ran = python("-c", code, folder=elsewhere, path=[elsewhere, REPOSITORY])
    assert ran.stdout.split() == ["finetune", "probe", "evaluate"], ran.stderr


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_answered_in_one_sentence(words, answers):
    ran = answers[words]
    assert ran.returncode == 1 and MISTAKES[words] in ran.stderr and len(ran.stderr.splitlines()) == 1, ran.stderr

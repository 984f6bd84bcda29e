"""Shell scripts and the Dockerfile: what linters say of them, and that what they name is there."""

import re
import subprocess

import pytest

from tests.launch.tools import REPOSITORY, bash, installed

SCRIPTS = sorted([*(REPOSITORY / "launch").glob("*.sh"), REPOSITORY / ".ci" / "run"])
NAMES = [str(path.relative_to(REPOSITORY)) for path in SCRIPTS]


def test_all_scripts_are_here():
    assert {"launch/keep_going.sh", "launch/slurm.sh", "launch/tpu_host.sh", ".ci/run"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shellcheck(name):
    checked = subprocess.run(
        [installed("shellcheck"), name], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", NAMES)
def test_bash_can_read_it(name):
    assert bash("-n", name).returncode == 0
    assert (REPOSITORY / name).read_text().startswith("#!/usr/bin/env bash\n")


def test_hadolint():
    checked = subprocess.run(
        [installed("hadolint"), "--no-color", "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def kept_in_images() -> list[str]:
    """What .dockerignore leaves."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def test_the_image_has_what_installing_and_running_reads():
    kept = kept_in_images()
    assert all((REPOSITORY / path).exists() for path in kept)
    read = set(re.findall(r'HERE / "(\w[\w.]*)"', (REPOSITORY / "setup.py").read_text()))
    assert read and {"setup.py", "pyproject.toml", "anysat_jax", "data_pipelines", "configs", *read} <= set(kept)


def test_the_image_runs_the_command_line():
    text = (REPOSITORY / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "-m", "anysat_jax.main"]' in text
    extras = re.findall(r"EXTRAS=([\w,]+)", text)
    known = re.findall(r'^    "(\w+)":', (REPOSITORY / "setup.py").read_text(), re.MULTILINE)
    assert extras and {one for some in extras for one in some.split(",")} <= set(known)
    assert re.search(r"FROM python:3\.1[12]-slim", text)


def test_a_host_is_prepared_and_can_be_again(stand_ins, tmp_path):
    """With stand-ins for everything that would change the machine."""
    checkout, mounted = tmp_path / "anysat-jax", tmp_path / "mounted"
    (checkout / "launch").mkdir(parents=True)
    script = checkout / "launch" / "tpu_host.sh"
    script.write_text((REPOSITORY / "launch" / "tpu_host.sh").read_text())
    (checkout / ".venv" / "bin").mkdir(parents=True)
    stand_ins.add("python", "echo 3.12")
    (stand_ins.folder / "python").rename(checkout / ".venv" / "bin" / "python")
    for name in ("python3", "sudo", "curl", "gcsfuse"):
        stand_ins.add(name)
    stand_ins.add("mountpoint", f"[ -e {mounted} ]")
    environment = dict(PATH=stand_ins.path, ANYSAT_MOUNT=str(tmp_path / "mount"))
    first = bash(str(script), "tiles", **environment)
    assert first.returncode == 0 and "ready: 3.12" in first.stdout, first.stderr
    names = [call[0] for call in stand_ins.calls]
    [mount] = [call for call in stand_ins.calls if call[0] == "gcsfuse"]
    assert mount[-2:] == ["tiles", str(tmp_path / "mount")] and any("rename-dir-limit" in word for word in mount)
    assert ["python3", "-m", "uv", "pip", "install", "--quiet", "--python", ".venv", "-e", ".[tpu]", "gcsfs"] in (
        stand_ins.calls
    )
    assert "curl" not in names  # gcsfuse was there
    mounted.touch()
    assert bash(str(script), "tiles", **environment).returncode == 0
    assert [call[0] for call in stand_ins.calls].count("gcsfuse") == 1


def test_gcsfuse_is_installed_where_it_is_missing(stand_ins, tmp_path):
    checkout = tmp_path / "anysat-jax"
    (checkout / "launch").mkdir(parents=True)
    text = (REPOSITORY / "launch" / "tpu_host.sh").read_text()
    functions = text[: text.index("\ninstall_package\n")]
    script = checkout / "launch" / "tpu_host.sh"
    script.write_text(f"{functions}\ninstall_gcsfuse\n")
    for name in ("sudo", "curl"):
        stand_ins.add(name, "cat > /dev/null" if name == "sudo" else "")
    stand_ins.add("lsb_release", "echo jammy")
    ended = bash(str(script), "tiles", PATH=stand_ins.path)
    assert ended.returncode == 0, ended.stderr
    lines = [" ".join(call) for call in stand_ins.calls]
    assert any("apt-get -qq install -y gcsfuse" in line for line in lines)
    assert any(line.startswith("curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg") for line in lines)

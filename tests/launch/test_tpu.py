"""The commands for Cloud TPU slices: as shown by a dry run, and as run. test_gcloud.py asks gcloud itself."""

import re
import shlex
import subprocess

import pytest

from launch import tpu
from launch.tpu import split
from tests.launch.tools import REPOSITORY, bash, installed

FLAGS = ["--config=configs/pretrain.py:geoplex", "--workdir=/mnt/anysat/it's a run", "--config.mesh.fsdp=4"]
ACTIONS = {
    "create": [
        "create",
        "geo",
        "--zone=us-west4-a",
        "--topology=v5e:16x16",
        "--spot",
        "--",
        "--internal-ips",
        "--labels=team=eo",
    ],
    "wait": ["wait", "geo", "--zone=us-west4-a", "--project=earth"],
    "setup": ["setup", "geo", "--zone=us-west4-a", "--bucket=tiles"],
    "run": ["run", "geo", "--zone=us-west4-a", "--", *FLAGS],
    "exec": ["exec", "geo", "--zone=us-west4-a", "--worker=1", "--", "df", "-h", "/mnt/my disk"],
    "logs": ["logs", "geo", "--zone=us-west4-a", "--worker=3"],
    "stop": ["stop", "geo", "--zone=us-west4-a"],
    "delete": ["delete", "geo", "--zone=us-west4-a", "--project=earth"],
}


def dry_run(capsys, words: list[str]) -> list[list[str]]:
    """The commands that an action shows, as words."""
    own, rest = split(words)
    assert tpu.main([*own, "--dry_run", *(["--", *rest] if rest else [])]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def on_host(command: list[str]) -> str:
    """The line of an ssh command that a host's shell gets."""
    return next(word.removeprefix("--command=") for word in command if word.startswith("--command="))


def test_every_action_is_tried_here():
    assert set(ACTIONS) == set(tpu.ACTIONS)


def test_create_orders_the_slice_of_the_topology(capsys):
    [command] = dry_run(capsys, ACTIONS["create"])
    assert command[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "geo"]
    assert {"--node-id=geo", "--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite"} < set(command)
    assert {"--zone=us-west4-a", "--spot", "--internal-ips", "--labels=team=eo"} < set(command)


def test_setup_copies_the_last_commit_and_installs_it(capsys):
    archive, copy, install = dry_run(capsys, ACTIONS["setup"])
    assert archive[0] == "git" and archive[-1] == "HEAD"
    assert copy[4] == "scp" and copy[5].endswith(".tar.gz") and "--worker=all" in copy and "--worker=all" in install
    assert on_host(install) == "tar -xzf anysat-jax.tar.gz && bash anysat-jax/launch/tpu_host.sh tiles"


def test_flags_reach_the_hosts_as_they_were(capsys):
    [command] = dry_run(capsys, ACTIONS["run"])
    words = shlex.split(on_host(command))
    main = [".venv/bin/python", "-m", "anysat_jax.main", "--processes=auto"]
    assert words[-len(FLAGS) - 6 :] == ["bash", "launch/keep_going.sh", *main, *FLAGS] and "--worker=all" in command
    assert (REPOSITORY / "launch/keep_going.sh").is_file()
    [command] = dry_run(capsys, ACTIONS["exec"])
    assert shlex.split(on_host(command)) == ["cd", "anysat-jax", "&&", "df", "-h", "/mnt/my disk"]
    assert "--worker=1" in command


def test_stopping_gives_time_to_save(capsys):
    unit = on_host(dry_run(capsys, ACTIONS["run"])[0])
    assert "--property=KillMode=mixed" in unit and "--unit=anysat" in unit
    assert on_host(dry_run(capsys, ACTIONS["stop"])[0]) == "sudo systemctl stop anysat"


@pytest.mark.parametrize("action", ["setup", "run", "exec", "logs", "stop"])
def test_what_hosts_are_told_is_good_shell(capsys, tmp_path, action):
    script = tmp_path / "line.sh"
    script.write_text("#!/bin/bash\n" + on_host(dry_run(capsys, ACTIONS[action])[-1]) + "\n")
    checked = subprocess.run([installed("shellcheck"), str(script)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def gcloud(stand_ins, monkeypatch):
    """A stand-in for gcloud, with no time between two looks."""
    monkeypatch.setenv("PATH", stand_ins.path)
    monkeypatch.setattr(tpu, "POLL_SECONDS", 0.0)
    stand_ins.add("gcloud")
    return stand_ins


def test_wait_returns_when_the_slice_is_there(gcloud, capsys):
    states = ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    gcloud.answers("gcloud", *states)
    assert tpu.main(ACTIONS["wait"]) == 0
    assert capsys.readouterr().out.splitlines() == ["geo: WAITING_FOR_RESOURCES", "geo: PROVISIONING"]
    assert len(gcloud.calls) == len(states) and "--project=earth" in gcloud.calls[0]


@pytest.mark.parametrize("state", tpu.GONE)
def test_wait_ends_when_it_will_not_come(gcloud, capsys, state):
    gcloud.answers("gcloud", "PROVISIONING", state)
    assert tpu.main(ACTIONS["wait"]) == 1
    assert f"launch.tpu: geo is {state}: delete it, and create it again" in capsys.readouterr().err


def test_a_failing_command_is_named(gcloud, capsys):
    gcloud.exit_codes("gcloud", 7)
    assert tpu.main(ACTIONS["stop"]) == 1
    assert re.search("launch.tpu: gcloud ended with exit code 7: gcloud compute tpus", capsys.readouterr().err)


def test_a_missing_program_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tpu.main(ACTIONS["delete"]) == 1
    assert "launch.tpu: gcloud is not installed, or not on the PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("create geo --zone=z --topology=v5e:5x5", "v5e has no slice '5x5'"),
        ("run geo --zone=z", "run needs words after --, for instance -- --config="),
        ("stop geo --zone=z -- now", "stop takes nothing after --, and got now"),
    ],
)
def test_mistakes_are_said_before_anything_is_run(gcloud, capsys, words, says):
    assert tpu.main(words.split()) == 1
    assert says in capsys.readouterr().err and not gcloud.calls


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("create geo --topology=v5e:4x4", "required: --zone"),
        ("setup geo --zone=z --bucket=gs://tiles", "'gs://tiles' cannot name a bucket; give the name alone"),
        ("setup geo --zone=z --bucket=", "'' cannot name a bucket"),
        ("logs geo --zone=z --worker=first", "'first' is neither the number of a host nor all"),
        ("rent geo --zone=z", "invalid choice: 'rent'"),
    ],
)
def test_words_that_cannot_be_are_refused(gcloud, capsys, words, says):
    with pytest.raises(SystemExit) as ended:
        tpu.main(words.split())
    assert ended.value.code == 2 and says in capsys.readouterr().err and not gcloud.calls


def test_setup_really_packs_the_commit(gcloud, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tpu, "ARCHIVE", tmp_path / "build" / "anysat-jax.tar.gz")
    monkeypatch.setattr(tpu, "REPOSITORY", tmp_path)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "tpu_host.sh").write_text("echo here\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "launch"], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "later").write_text("not committed")
    assert tpu.main(ACTIONS["setup"]) == 0
    assert "uncommitted changes are not copied to the hosts" in capfd.readouterr().err
    unpacked = bash("-c", f"cd {tmp_path} && tar -xzf build/anysat-jax.tar.gz && bash anysat-jax/launch/tpu_host.sh")
    assert unpacked.stdout == "here\n" and not (tmp_path / "anysat-jax" / "later").exists()
    assert [call[4] for call in gcloud.calls] == ["scp", "ssh"]


def test_a_dry_run_runs_nothing(gcloud, capsys):
    for words in ACTIONS.values():
        assert dry_run(capsys, words)
    assert not gcloud.calls

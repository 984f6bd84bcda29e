"""Where a result comes from."""

import datetime
import json
import subprocess

import pytest

from anysat_jax.train.record import checkout_state, provenance


def git(folder, *command):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", "-C", folder, *identity, *command], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_a_clean_checkout_has_a_commit(checkout):
    commit, dirty = checkout_state(checkout)
    assert len(commit) == 40 and dirty is False


def test_a_changed_file_makes_it_dirty_and_an_untracked_one_does_not(checkout):
    (checkout / "notes.txt").write_text("x")
    assert checkout_state(checkout)[1] is False
    (checkout / "code.py").write_text("2\n")
    assert checkout_state(checkout)[1] is True


def test_code_inside_another_repository_has_no_commit(checkout):
    (checkout / "site-packages").mkdir()
    assert checkout_state(checkout / "site-packages") == (None, None)


def test_a_folder_outside_any_repository_has_no_commit(tmp_path):
    assert checkout_state(tmp_path / "absent") == (None, None)


def test_what_is_told_is_json():
    told = json.loads(json.dumps(provenance(12.34)))
    assert set(told) == {"commit", "dirty", "date", "seconds", "device", "versions"}
    assert told["seconds"] == 12.3 and datetime.datetime.fromisoformat(told["date"]).tzinfo is not None
    assert told["device"].startswith("8 x ") and {"jax", "anysat-jax", "python"} <= set(told["versions"])

"""Record of a run, summary.json, and the origin of results."""

import datetime
import json
import subprocess

import pytest

from anysat_jax.train.record import EDGE, RunRecord, checkout_state, provenance, write_json


def record_of(steps):
    record = RunRecord()
    for step in range(steps):
        record.add_step({"predictive": float(step), "contrastive": 100.0 - step}, f"flair {10 + 10 * (step % 2)} m")
    return record


def test_first_and_last_are_means_over_a_few_steps():
    record, middle = record_of(50), (EDGE - 1) / 2
    assert record.steps == 50 and record.batches == {"flair 10 m": 25, "flair 20 m": 25}
    assert record.losses["predictive"].means() == {"first": middle, "last": 49 - middle}
    assert record.losses["contrastive"].means() == {"first": 100 - middle, "last": 51 + middle}
    assert record.tiles_per_second is None


def test_a_run_of_no_steps_knows_the_names_of_its_losses():
    assert RunRecord.of(["loss"]).losses["loss"].means() == {"first": None, "last": None}


def test_the_record_survives_a_checkpoint():
    record = record_of(13)
    record.tiles, record.seconds, record.programs = 30, 1.5, 2
    again = RunRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert again == record and again.tiles_per_second == pytest.approx(20.0)


def test_the_file_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"steps": 1})
    with pytest.raises(TypeError):
        write_json(path, {"steps": object()})
    assert json.loads(path.read_text()) == {"steps": 1}
    write_json(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 2}


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


def test_provenance_is_json():
    found = json.loads(json.dumps(provenance(12.34)))
    assert set(found) == {"commit", "dirty", "date", "seconds", "device", "versions"}
    assert found["seconds"] == 12.3 and datetime.datetime.fromisoformat(found["date"]).tzinfo is not None
    assert found["device"].startswith("8 x ") and {"jax", "anysat-jax", "python"} <= set(found["versions"])

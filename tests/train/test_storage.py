"""What a disk refuses is said in one sentence, and the checkpoints before it stay."""

import errno
import logging as python_logging
import os
import pathlib
import sys

import pytest

from anysat_jax import main
from anysat_jax.errors import Preempted, StorageError
from anysat_jax.train import checkpoints as checkpoints_module
from anysat_jax.train.checkpoints import Checkpoints, explained, refusal
from anysat_jax.train.record import write_json
from tests.train.test_checkpoints import CONFIG, at_step, mesh_of, restore, save_steps
from tests.train.toys import assert_same, toy_state

# Orbax leaves a coroutine behind where it could not write.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def no_space(path: pathlib.Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_full_disk_is_told_with_the_file(tmp_path):
    message = r"metrics.csv cannot be written \(No space left on device\); make room, or"
    with pytest.raises(StorageError, match=message), explained(tmp_path):
        raise no_space(tmp_path / "metrics.csv")
    message = rf"{tmp_path} cannot be written \(Read-only file system\)"
    with pytest.raises(StorageError, match=message), explained(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    "error",
    [no_space(pathlib.Path("/elsewhere/data")), FileNotFoundError(errno.ENOENT, "No such file"), ValueError("x")],
)
def test_other_errors_are_left_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, explained(tmp_path):
        raise error
    assert raised.value is error


def test_the_refusal_is_found_behind_what_a_library_made_of_it():
    library = ValueError("RESOURCE_EXHAUSTED: Failed to write 17 bytes: No space left on device [os_error_code='28']")
    assert refusal(library) == "No space left on device"
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = no_space(pathlib.Path("x"))
    assert refusal(wrapped) == "No space left on device"
    assert refusal(RuntimeError("out of memory")) is None


def test_a_checkpoint_that_does_not_fit_is_told_and_the_one_before_it_stays(tmp_path, request):
    state = save_steps(tmp_path, 1)
    request.getfixturevalue("small_files")
    with pytest.raises(
        StorageError,
        match=rf"the checkpoint of step 2 could not be written to {tmp_path} \(File too large\); the last whole one is "
        r"of step 1; make room for 3 checkpoints of up to \d MB, and start again",
    ):
        save_steps(tmp_path, 2)
    found = restore(tmp_path)
    assert_same(found.state, at_step(state, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]  # what was begun is gone


def test_what_orbax_logs_of_an_error_that_it_raises_is_not_shown(capsys):
    handler = python_logging.StreamHandler(sys.stdout)
    handler.addFilter(main._is_own_or_warning)
    for place, error in (
        ("/x/orbax/y.py", no_space(pathlib.Path("a"))),
        ("/x/orbax/y.py", None),
        ("/x/z.py", ValueError("b")),
    ):
        traceback = error and (type(error), error, None)
        handler.handle(
            python_logging.LogRecord("absl", python_logging.ERROR, place, 1, f"{place} {error}", (), traceback)
        )
    shown = capsys.readouterr().out
    assert "No space" not in shown and "orbax/y.py None" in shown and "ValueError: b" in shown


def stop_after_saving(folder, state):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(at_step(state, 2), {}, {"step": 2, "config": CONFIG, "record": {}})
        raise Preempted("saved step 2")


def test_a_run_that_was_asked_to_stop_does_not_claim_to_be_saved(tmp_path, monkeypatch):
    state = save_steps(tmp_path, 1)

    def full(folder):
        raise no_space(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "write_checksums", full)  # in the background, when all else is written
        with pytest.raises(StorageError, match="the checkpoint of step 2 could not be .* whole one is of step 1"):
            stop_after_saving(tmp_path, state)
    assert restore(tmp_path).meta["step"] == 1
    with pytest.raises(Preempted):
        stop_after_saving(tmp_path, state)
    assert restore(tmp_path).meta["step"] == 2


def test_the_first_checkpoint_of_all_may_not_fit(tmp_path, small_files):
    with pytest.raises(StorageError, match="there is no whole one yet"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(toy_state(mesh_of()), {}, {"step": 5, "config": CONFIG, "record": {}})


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path, small_files):
    write_json(tmp_path / "status.json", {"step": 1})
    with pytest.raises(OSError, match="File too large"):
        write_json(tmp_path / "status.json", ["x" * 600_000])
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert (tmp_path / "status.json").read_text() == '{\n  "step": 1\n}\n'

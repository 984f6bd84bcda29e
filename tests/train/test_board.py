"""TensorBoard's log: what was written can be read, and a full disk is told to the caller."""

import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from anysat_jax.train import metrics_log as board_module
from anysat_jax.train.metrics_log import Board


def events(file) -> list[Event]:
    content, place, found = file.read_bytes(), 0, []
    while place < len(content):
        (length,) = struct.unpack_from("Q", content, place)
        found.append(Event.FromString(content[place + 12 : place + 12 + length]))
        place += length + 16  # its length and two checksums stand around an event
    return found


def test_numbers_are_written_with_name_and_step(tmp_path):
    board = Board(tmp_path / "board", 5)
    board.add_scalar("loss", 0.5, 5)
    board.add_scalar("loss/fields", 0.25, 6)
    board.close()
    (file,) = (tmp_path / "board").iterdir()
    version, start, *numbers = events(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    found = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in numbers]
    assert found == [(5, "loss", 0.5), (6, "loss/fields", 0.25)]


def test_files_are_in_the_order_of_their_steps_whatever_the_clock_says(tmp_path, monkeypatch):
    for step, moment in [(1, 2e9), (50, 1e9), (1000, 1.5e9)]:
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        Board(tmp_path, step).close()
    starts = [events(file)[1].step for file in sorted(tmp_path.iterdir())]
    assert starts == [1, 50, 1000]


def test_a_disk_that_takes_no_more_is_told_to_the_caller(tmp_path, monkeypatch, small_files):
    board = Board(tmp_path, 1)
    monkeypatch.setattr(board_module, "FLUSH_SECONDS", -1.0)

    def write():
        for step in range(20_000):
            board.add_scalar("a rather long name of a number" * 10, 1.0, step)

    with pytest.raises(OSError, match="File too large"):
        write()

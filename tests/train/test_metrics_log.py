"""The logs of a run, across restarts."""

import csv
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from anysat_jax.pretrain.step import COLUMNS
from anysat_jax.train import metrics_log as log_module
from anysat_jax.train.metrics_log import MetricsLog

METRICS, NAMES = COLUMNS.metrics, COLUMNS.names


def write_steps(workdir, first, last, log_every=1, total=10):
    with MetricsLog(workdir, COLUMNS, step=first - 1, total_steps=total, log_every=log_every) as log:
        for step in range(first, last + 1):
            log.write(step, f"data{step % 2}", 10.0, dict.fromkeys(METRICS, float(step)))


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(workdir):
    return [int(row["step"]) for row in rows(workdir)]


def test_every_step_has_a_row(tmp_path):
    write_steps(tmp_path, 1, 3)
    assert tuple(rows(tmp_path)[0]) == NAMES and steps(tmp_path) == [1, 2, 3]
    assert rows(tmp_path)[1]["dataset"] == "data0" and float(rows(tmp_path)[1]["loss_predictive"]) == 2.0
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_has_each_step_once(tmp_path):
    write_steps(tmp_path, 1, 7)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("8,data0,10,0.1")  # a line that a kill cut short
    write_steps(tmp_path, 6, 10)
    assert steps(tmp_path) == list(range(1, 11))


def test_rows_of_a_run_that_measured_less_are_kept(tmp_path):
    old = NAMES[: NAMES.index("feature_rank")]
    line = ",".join(["1", "data1", "10", *["0.5"] * (len(old) - 3)])
    (tmp_path / "metrics.csv").write_text(",".join(old) + f"\n{line}\n")
    write_steps(tmp_path, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]
    assert [row["feature_rank"] for row in rows(tmp_path)] == ["", "2.0", "3.0"]
    assert rows(tmp_path)[0]["tiles_per_second"] == "0.5"


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "step,dataset\n"])
def test_a_table_without_rows_is_begun_anew(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    write_steps(tmp_path, 1, 2)
    assert tuple(rows(tmp_path)[0]) == NAMES and steps(tmp_path) == [1, 2]


def test_what_is_not_finite_is_in_the_table_only(tmp_path, caplog):
    with MetricsLog(tmp_path, COLUMNS, step=0, total_steps=1, log_every=1) as log:
        log.write(1, "data", 10.0, dict.fromkeys(METRICS, float("nan")))
    assert rows(tmp_path)[0]["loss"] == "nan" and not caplog.records


def test_log_every_and_the_last_step(tmp_path):
    write_steps(tmp_path, 1, 10, log_every=4)
    assert steps(tmp_path) == [4, 8, 10]


def test_the_bar_says_what_is_going_on(tmp_path, capsys):
    write_steps(tmp_path, 1, 10)
    last = capsys.readouterr().err
    for part in ("data0 10 m", "10/10", "predictive 10.0000", "contrastive 10.000", "lr 1.0e+01", "EMA", "tiles/s"):
        assert part in last


def test_the_bar_shows_what_the_run_waits_for_from_the_first_second(tmp_path, capsys):
    with MetricsLog(tmp_path, COLUMNS, step=0, total_steps=10, log_every=1) as log:
        log.show_waiting("compiling 2 of 5 programs, 0 s")
        log.show_waiting("compiling 2 of 5 programs, 1 s")  # too soon for another line of a file
        found = capsys.readouterr().err
        assert "compiling 2 of 5 programs, 0 s" in found and "1 s" not in found
        log._shown -= log_module.QUIET_SECONDS
        log.show_waiting("compiling 3 of 5 programs, 16 s")
        assert "compiling 3 of 5 programs, 16 s" in capsys.readouterr().err


def test_other_processes_write_nothing(tmp_path):
    with MetricsLog(tmp_path, COLUMNS, step=0, total_steps=1, log_every=1, enabled=False) as log:
        log.write(1, "data", 10.0, {})
        log.show_waiting("compiling")
    assert not list(tmp_path.iterdir())


def test_a_missing_metric_is_an_error(tmp_path):
    with MetricsLog(tmp_path, COLUMNS, step=0, total_steps=1, log_every=1) as log, pytest.raises(KeyError):
        log.write(1, "data", 10.0, {"loss": 1.0})


def events(file) -> list[Event]:
    content, place, found = file.read_bytes(), 0, []
    while place < len(content):
        (length,) = struct.unpack_from("Q", content, place)
        found.append(Event.FromString(content[place + 12 : place + 12 + length]))
        place += length + 16  # its length and two checksums stand around an event
    return found


def board_of(workdir, step):
    return MetricsLog(workdir, COLUMNS, step=step, total_steps=2000, log_every=1)


def test_numbers_are_written_with_name_and_step(tmp_path):
    with board_of(tmp_path, 4) as log:
        log.write_scalars(5, {"loss": 0.5, "unknown": float("nan")})
        log.write_scalars(6, {"loss/fields": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    version, start, *numbers = events(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    found = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in numbers]
    assert found == [(5, "loss", 0.5), (6, "loss/fields", 0.25)]


def test_files_are_in_the_order_of_their_steps_whatever_the_clock_says(tmp_path, monkeypatch):
    for step, moment in [(1, 2e9), (50, 1e9), (1000, 1.5e9)]:
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        with board_of(tmp_path, step - 1):
            pass
    starts = [events(file)[1].step for file in sorted((tmp_path / "tensorboard").iterdir())]
    assert starts == [1, 50, 1000]


def test_a_disk_that_takes_no_more_is_told_to_the_caller(tmp_path, monkeypatch, small_files):
    monkeypatch.setattr(log_module, "FLUSH_SECONDS", -1.0)
    log = board_of(tmp_path, 0)
    numbers = {f"{number} of many numbers of a rather long name": 1.0 for number in range(20_000)}
    with pytest.raises(OSError, match="File too large"):
        log.write_scalars(1, numbers)

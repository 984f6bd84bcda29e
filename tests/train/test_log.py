"""The logs of a run, across restarts."""

import csv

import pytest

from anysat_jax.train.metrics_log import COLUMNS, METRICS, RunLog


def write_steps(workdir, first, last, log_every=1, total=10):
    with RunLog(workdir, step=first - 1, total_steps=total, log_every=log_every) as log:
        for step in range(first, last + 1):
            log.write(step, f"data{step % 2}", 10.0, dict.fromkeys(METRICS, float(step)))


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(workdir):
    return [int(row["step"]) for row in rows(workdir)]


def test_every_step_has_a_row(tmp_path):
    write_steps(tmp_path, 1, 3)
    assert tuple(rows(tmp_path)[0]) == COLUMNS and steps(tmp_path) == [1, 2, 3]
    assert rows(tmp_path)[1]["dataset"] == "data0" and float(rows(tmp_path)[1]["loss_predictive"]) == 2.0
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_has_each_step_once(tmp_path):
    write_steps(tmp_path, 1, 7)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("8,data0,10,0.1")  # a line that a kill cut short
    write_steps(tmp_path, 6, 10)
    assert steps(tmp_path) == list(range(1, 11))


def test_rows_of_a_run_that_measured_less_are_kept(tmp_path):
    old = COLUMNS[: COLUMNS.index("feature_rank")]
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
    assert tuple(rows(tmp_path)[0]) == COLUMNS and steps(tmp_path) == [1, 2]


def test_what_is_not_finite_is_in_the_table_only(tmp_path, caplog):
    with RunLog(tmp_path, step=0, total_steps=1, log_every=1) as log:
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


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path, step=0, total_steps=1, log_every=1, enabled=False) as log:
        log.write(1, "data", 10.0, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_metric_is_an_error(tmp_path):
    with RunLog(tmp_path, step=0, total_steps=1, log_every=1) as log, pytest.raises(KeyError):
        log.write(1, "data", 10.0, {"loss": 1.0})

"""The benchmark of features and steps: what a measurement consists of."""

import sys

import pytest

from benchmarks import run


def arguments(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    return run.parse_arguments()


def test_a_case_is_measured(monkeypatch):
    monkeypatch.setitem(run.CASES, "C0", run.Case(("s2", "s1"), 20, 10, 2, 1))
    monkeypatch.setitem(run.RATE_SIZE, "cpu", 64)
    found = run.measure("C0", arguments(monkeypatch, "C0", "--preset", "tiny", "--repeat", "2"))
    tokens = 2 * 2 * 4  # tiles, sensors, patches
    assert found["flops"] == 3 * 2 * tokens**2 * 256  # forward, and two products backward, at the preset's width
    assert found["first"] > found["seconds"] > 0 and found["peak"] > 1e6 and found["rate"] > 0


def test_the_cases_are_those_of_features_and_steps_unless_named(monkeypatch):
    assert {name[0] for name in arguments(monkeypatch).cases} == {"F", "P"}
    assert arguments(monkeypatch, "G1", "C2").cases == ["G1", "C2"]
    with pytest.raises(SystemExit):
        arguments(monkeypatch, "F1", "F9")

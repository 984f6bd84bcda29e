"""The benchmark of features and steps: what a measurement consists of."""

import sys

import pytest

from anysat_jax.model.config import PRESETS
from anysat_jax.pretrain import step
from anysat_jax.train.optimizer import TrainStep
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
    assert arguments(monkeypatch, "G1", "C").cases == ["G1", "C1", "C2"]
    with pytest.raises(SystemExit):
        arguments(monkeypatch, "F1", "F9")


def test_larger_batches_are_measured_until_one_does_not_fit(monkeypatch, capsys):
    def measured(name, arguments, tree=None, worker="ours", scale=1):
        row = {"first": 9.0, "seconds": 0.5 * scale, "peak": 1e9 * scale, "rate": 4e9, "flops": 1e9, "sheet": 1e10}
        return row if scale <= {"F4": 4, "G2": 1}[name] else None

    monkeypatch.setattr(run, "in_process", measured)
    given = arguments(monkeypatch, "F4", "G2", "--largest")
    run.print_rows(given, {"this tree": (run.REPOSITORY, "ours")})
    head, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(row["case"], row["tiles"]) for row in found] == [("F4", "1"), ("G2", "1"), ("F4", "2"), ("F4", "4")]
    assert found[0]["km2/s"] == "0.819" and found[0]["of the rate"] == "50%" and found[0]["MFU"] == "20.0%"


def test_losses_and_features_are_measured_in_both_dtypes(monkeypatch, capsys):
    traced = []

    def quick_step(*_):
        """Compiles at once: the real one takes 10 s in each dtype."""

        def gradients(state, batch, masks):
            traced.append(masks.size)
            return {"loss": state.step + 1.0 / (1 + len(traced))}, state.step

        return TrainStep(gradients, lambda state, *_: (state.replace(step=state.step + 1), {}), ("loss",))

    monkeypatch.setattr(step, "make_train_step", quick_step)
    tiny = {"dim": 32, "depth": 1, "num_heads": 2, "predictor_depth": 1, "predictor_heads": 2}
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    monkeypatch.setitem(run.CASES, "D0", run.Case(("s2",), 60, 10, 200, 1))
    found = run.drift("D0", arguments(monkeypatch, "D0", "--steps", "20", "--scale", "0.01"))
    assert traced == traced[:1] * 2  # one size of masks: one program in each dtype
    assert found["steps"] == 20 and 0.99 < found["cosine"] < 1
    assert found["float32"] == pytest.approx(18.5 + 1 / 2) and found["bfloat16"] == pytest.approx(18.5 + 1 / 3)
    run.print_drift("D0", found)
    assert capsys.readouterr().out.startswith(
        "D0, tiny model: loss at the end of 20 steps 19.00000 in float32, 18.83333"
    )


def test_what_has_no_time_left_is_named_with_its_command(monkeypatch, capsys):
    measured = {"F4": {"first": 9.0, "seconds": 0.5, "peak": 1e9, "rate": 4e9, "flops": 1e9}}
    monkeypatch.setattr(run, "in_process", lambda name, *_: measured.get(name))
    given = arguments(monkeypatch, "D1", "F4", "G1", "--minutes", "0", "--dtype", "bfloat16")
    run.print_rows(given, {"this tree": (run.REPOSITORY, "ours"), "HEAD": (run.REPOSITORY, "ours")})
    *_, row, last = capsys.readouterr().out.splitlines()
    assert row.startswith("| F4 | HEAD | 1 |") and last.startswith("not measured, for lack of time: ")
    assert last.endswith("python benchmarks/run.py G1 D1 --minutes 0 --dtype bfloat16")


def test_after_the_time_nothing_is_begun(monkeypatch, capsys):
    given = arguments(monkeypatch, "F4", "--minutes", "0")
    assert run.in_process("F4", given) is None and "more than 0 minutes in all" in capsys.readouterr().err

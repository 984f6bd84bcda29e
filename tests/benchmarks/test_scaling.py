"""The curves of time against dates, patches, sub-patches and tiles."""

import pytest

from benchmarks import scaling


def test_the_exponent_is_that_of_the_last_points():
    assert scaling.exponent({1: 7.0, 4: 2.0, 16: 8.0}) == pytest.approx(1)
    assert scaling.exponent({1: 7.0, 4: 2.0, 8: 8.0}) == pytest.approx(2)


def test_each_curve_changes_one_number():
    for name, cases in scaling.CURVES.items():
        numbers = {name: set() for name in scaling.run.Case._fields}
        for case in cases.values():
            for field, value in case._asdict().items():
                numbers[field].add(value)
        assert sum(len(values) > 1 for values in numbers.values()) == 1, name


def test_curves_are_drawn(tmp_path):
    scaling.draw(
        {"dates": {5: (1.0, 2e9), 10: (2.0, 4e9)}, "tiles": {1: (1.0, 1e9), 2: (4.0, 2e9)}}, tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"

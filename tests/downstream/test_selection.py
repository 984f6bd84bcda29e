"""What evaluations decide, against the plainest way to say it."""

import json
import math

import hypothesis
import hypothesis.strategies as st

from anysat_jax.downstream.selection import Best, Plan, Selection
from anysat_jax.downstream.task import Task
from anysat_jax.train.config import PlateauConfig
from tests.downstream.fit_toys import toy_config

VALUES = st.lists(st.sampled_from([math.nan, *range(6)]).map(float), min_size=1, max_size=20)
PATIENCE = st.one_of(st.none(), st.integers(1, 4))


def plain(values, lower_is_better, patience, plateau_patience):
    """The history read from its beginning at every evaluation: best, rate, and whether to stop."""
    worst = math.inf if lower_is_better else -math.inf
    sign = -1 if lower_is_better else 1
    keys = [sign * (worst if math.isnan(value) else value) for value in values]
    best = keys.index(max(keys))
    rate, bad = 1.0, 0
    for i, key in enumerate(keys):
        bad = 0 if i == 0 or key > max(keys[:i]) else bad + 1
        if plateau_patience is not None and bad == plateau_patience:
            rate, bad = rate / 2, 0
    return best, rate, patience is not None and len(keys) - 1 - best >= patience


@hypothesis.given(values=VALUES, lower=st.booleans(), patience=PATIENCE, plateau=PATIENCE)
@hypothesis.settings(deadline=None)
def test_best_plateau_and_stop_are_those_of_the_whole_history(values, lower, patience, plateau):
    task = Task("toy", "Toy", "tile", "regression", metric="rmse" if lower else "r2")
    schedule = dict(optimizer__schedule="plateau", optimizer__plateau=PlateauConfig(factor=0.5, patience=plateau or 1))
    plan = Plan(toy_config(early_stopping=patience, **schedule if plateau else {}), task, steps_per_epoch=10)
    selection = Selection()
    for i, value in enumerate(values):
        improved = selection.update(plan, step=10 * (i + 1), value=value)
        best, rate, stop = plain(values[: i + 1], lower, patience, plateau)
        assert selection.best.epoch == best + 1 and selection.best.step == 10 * (best + 1)
        assert improved == (best == i) and selection.rate_scale == rate and plan.stops(selection) == stop
        # A restart between any two evaluations changes nothing.
        selection = Selection.from_json(json.loads(json.dumps(selection.to_json(), allow_nan=False)))
        assert selection.evaluations == i + 1 and selection.step == 10 * (i + 1)


def test_the_first_of_equal_ones_is_the_best_and_nan_is_worse_than_anything():
    plan, selection = Plan(toy_config(), Task("toy", "Toy", "tile", "class"), steps_per_epoch=1), Selection()
    assert [selection.update(plan, i, value) for i, value in enumerate([math.nan, 0.0, 0.0, math.nan], 1)] == [
        True,
        True,
        False,
        False,
    ]
    assert selection.best == Best(2, 2, 0.0) and not plan.stops(selection)

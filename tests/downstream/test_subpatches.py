"""Some sub-patches of a tile in place of all."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.downstream.features import draw_subpatches, label_blocks, take_subpatches


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.data())
def test_labelled_ones_come_first_and_none_comes_twice(count, total, tile, data):
    labelled = np.array([data.draw(st.lists(st.booleans(), min_size=total, max_size=total))])
    (chosen,) = draw_subpatches(labelled, np.array([tile]), count)
    assert len(chosen) == min(count, total) == len(set(chosen.tolist())) and set(chosen) <= set(range(total))
    assert labelled[0, chosen].sum() == min(len(chosen), labelled.sum())


def test_the_draw_depends_on_the_tile_alone():
    labelled = np.ones((3, 50), bool)
    several = draw_subpatches(labelled, np.array([7, 8, 7]), 10)
    np.testing.assert_array_equal(several[0], several[2])
    assert (several[0] != several[1]).any()
    np.testing.assert_array_equal(draw_subpatches(labelled[:1], np.array([8]), 10)[0], several[1])


def test_labels_and_features_stay_together():
    rows, columns, side = 3, 4, 2
    numbers = np.arange(rows * columns).reshape(1, rows, columns)
    labels = numbers.repeat(side, axis=1).repeat(side, axis=2)
    blocks = label_blocks(labels, side)
    assert blocks.shape == (1, 12, 2, 2)
    chosen = draw_subpatches(np.ones((1, 12), bool), np.array([0]), 5)
    features = take_subpatches(numbers[..., None].astype(np.float32), chosen)
    assert features.shape == (1, 5, 1, 1)
    np.testing.assert_array_equal(blocks[0, chosen[0]], np.broadcast_to(features[0], (5, 2, 2)))

"""Shares of a batch: runs of its rows."""

import numpy as np
import pytest

from data_pipelines.batches import WHOLE, Share


def test_the_shares_make_up_the_batch_in_its_order():
    assert WHOLE.rows(6).tolist() == list(range(6))
    assert np.concatenate([Share((part,), 3).rows(6) for part in range(3)]).tolist() == list(range(6))
    assert Share((0, 2), 3).rows(6).tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("parts", [(), (2,), (-1, 0)])
def test_a_part_that_is_not_there_is_refused(parts):
    with pytest.raises(ValueError, match="are not among its 2"):
        Share(parts, 2)

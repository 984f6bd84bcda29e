"""Shares of a batch: runs of its rows."""

import numpy as np
import pytest

from data_pipelines.batches import WHOLE, HostShard


def test_the_shares_make_up_the_batch_in_its_order():
    assert WHOLE.rows(6).tolist() == list(range(6))
    assert np.concatenate([HostShard((part,), 3).rows(6) for part in range(3)]).tolist() == list(range(6))
    assert HostShard((0, 2), 3).rows(6).tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("indices", [(), (2,), (-1, 0)])
def test_indices_that_are_not_there_are_refused(indices):
    with pytest.raises(ValueError, match="of a batch"):
        HostShard(indices, 2)

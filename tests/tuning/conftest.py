"""What the tests of training share: datasets that a file registers are forgotten after it."""

import pytest

from data_pipelines import registry


@pytest.fixture(scope="module", autouse=True)
def forget_datasets():
    """Leaves the registry as it was: others list what is in it."""
    known = dict(registry._ENTRIES)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(known)

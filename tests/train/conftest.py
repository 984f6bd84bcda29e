"""What the tests of training share: datasets that a file registers are forgotten after it; a disk that gets full."""

import resource
import signal

import pytest

from data_pipelines import registry


@pytest.fixture(scope="module", autouse=True)
def forget_datasets():
    """Leaves the registry as it was: others list what is in it."""
    known = dict(registry._ENTRIES)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(known)


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB, less than a leaf of a toy state: the kernel refuses it, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)

"""What the tests of training share: a disk that gets full."""

import resource
import signal

import pytest


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB, less than a leaf of a toy state: the kernel refuses it, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)

"""What every test shares: eight fake CPU devices, strict rank promotion, and the folders of optional data."""

import os
import pathlib
from collections.abc import Iterator

# Compiling takes most of the tests' time, and at level 0 half as long.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def optional_folder(variable: str, default: str) -> pathlib.Path:
    """The folder named by an environment variable, or the default beside the project; skips where there is none."""
    folder = pathlib.Path(os.environ.get(variable) or REPOSITORY.parent / default)
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set ${variable} to run this test")
    return folder


@pytest.fixture(scope="session")
def golden_folder() -> pathlib.Path:
    """Numbers of the published model, for parity."""
    return optional_folder("ANYSAT_GOLDEN", "shared/golden")


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """Real samples of Earth-observation archives."""
    return optional_folder("ANYSAT_REAL_DATA", "shared/data")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """Frees a file's compiled programs at its end: hundreds of files' would fill the memory of a worker process."""
    yield
    jax.clear_caches()

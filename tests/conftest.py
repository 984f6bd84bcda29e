"""Eight fake CPU devices, strict rank promotion, one cache of compiled programs, and the folders of optional data."""

import gc
import importlib.metadata
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator

# Compiling takes most of the tests' time, and at level 0 half as long.
DEVICES = "--xla_force_host_platform_device_count=8"
FLAGS = [DEVICES, "--xla_backend_optimization_level=0"]
# Without the fusion emitters it takes a third of that. jaxlib 0.12 has nothing else, and refuses the flag.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# $XLA_FLAGS of processes that have one device, as on a user's machine, and share the cache of programs.
ONE_DEVICE = os.environ["XLA_FLAGS"].replace(DEVICES, "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A program is compiled once for all workers and the processes that tests start; the folder goes with this process.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = tempfile.TemporaryDirectory(prefix="anysat-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

from data_pipelines import registry

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing and compiling make many objects that stay: collections that look through them take 7 % of their time.
gc.freeze()
gc.set_threshold(50_000, 10, 20)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


SHORT = ("data_pipelines", "report", "validate", "launch", "configs")  # folders whose files take seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest file first and short ones last: whoever begins a long one last keeps the others waiting."""
    items.sort(
        key=lambda item: (
            item.path.name != "test_docs.py",
            item.path.relative_to(REPOSITORY / "tests").parts[0] in SHORT,
        )
    )


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


@pytest.fixture(scope="module", autouse=True)
def forget_datasets() -> Iterator[None]:
    """Leaves the registry as it was before a file: others list what is in it."""
    known = dict(registry._ENTRIES)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(known)


@pytest.fixture(autouse=True)
def keep_log_levels() -> Iterator[None]:
    """Leaves levels of logging as they were before a test: commands that it calls set their own."""
    loggers = [logging.getLogger(name) for name in ("absl", "rasterio")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)

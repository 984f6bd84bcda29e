"""Fixtures of the downstream tests: tasks by name, and figures that are not painted."""

import struct
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from anysat_jax.downstream.task import Level, Task, make_task
from data_pipelines.registry import get_entry


@pytest.fixture(scope="session")
def task_of() -> Callable[[str, Level], Task]:
    return lambda name, level: make_task(get_entry(name).card, level)


@pytest.fixture
def unpainted_figures(monkeypatch) -> None:
    """Figures are put together and not painted, which takes longest: tests/report/ paints them all."""
    first_bytes = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1, 1)  # with the width
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: path.write_bytes(first_bytes))

"""Fixtures of the downstream tests: tasks by name."""

from collections.abc import Callable

import pytest

from anysat_jax.downstream.task import Level, Task, make_task
from data_pipelines.registry import get_entry


@pytest.fixture(scope="session")
def task_of() -> Callable[[str, Level], Task]:
    return lambda name, level: make_task(get_entry(name).card, level)

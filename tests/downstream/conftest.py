"""Fixtures of the downstream tests: tasks by name, and a registry that forgets the datasets of a file."""

from collections.abc import Callable, Iterator

import pytest

from anysat_jax.downstream.task import Level, Task, make_task
from data_pipelines import registry
from data_pipelines.registry import get_entry


@pytest.fixture(scope="session")
def task_of() -> Callable[[str, Level], Task]:
    return lambda name, level: make_task(get_entry(name).card, level)


@pytest.fixture(scope="module", autouse=True)
def forget_datasets() -> Iterator[None]:
    """Restores the registry: other tests list what is in it."""
    known = dict(registry._ENTRIES)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(known)

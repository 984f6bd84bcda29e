"""Fixtures of the downstream tests: tasks by name, and what stands for figures and for an encoder."""

import functools
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from anysat_jax.downstream import evaluate, features
from anysat_jax.downstream.network import Network
from anysat_jax.downstream.task import Level, Task, make_task
from data_pipelines.registry import get_entry
from tests.downstream import adapt_toys
from tests.downstream.traced_encoder import trace_encoder


@pytest.fixture(scope="session")
def task_of() -> Callable[[str, Level], Task]:
    return lambda name, level: make_task(get_entry(name).card, level)


@pytest.fixture
def unpainted_figures(monkeypatch) -> None:
    """Figures are put together and not painted, which takes longest: tests/report/ paints them all."""
    monkeypatch.setattr(Figure, "savefig", adapt_toys.save_unpainted)


@pytest.fixture
def traced_encoder(monkeypatch) -> None:
    """The encoder is traced and not compiled; the programs are those of one test."""
    monkeypatch.setattr(Network, "apply", trace_encoder)
    for module in (evaluate, features):
        monkeypatch.setattr(module, "_program", functools.lru_cache(module._program.__wrapped__))

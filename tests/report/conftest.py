"""Shared by the report's tests."""

import pytest

from anysat_jax.pretrain.probe import Plan, make_plan
from tests.report.toy import CARD


@pytest.fixture
def plan() -> Plan:
    return make_plan(CARD)

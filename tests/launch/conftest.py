"""Stand-ins for programs of clusters and clouds."""

import pytest

from tests.launch.tools import StandIns


@pytest.fixture
def stand_ins(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    return StandIns(folder)

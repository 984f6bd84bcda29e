"""Every named config as text, so that a changed default shows up in review.

After a change that is meant: ANYSAT_UPDATE_DUMPS=1 pytest tests/configs
"""

import os
import pathlib

import pytest

from anysat_jax.train import settings
from configs import pretrain

FOLDER = pathlib.Path(__file__).parent


def dump(config) -> str:
    return "".join(f"{name} = {value!r}\n" for name, value in settings.flatten(config).items())


DUMPED = (*pretrain.NAMES, "prepared,fields,forests")


@pytest.mark.parametrize("name", DUMPED)
def test_the_config_is_as_it_was(name):
    path = FOLDER / f"pretrain_{name.replace(',', '_')}.txt"
    text = dump(pretrain.get_config(name))
    if os.environ.get("ANYSAT_UPDATE_DUMPS"):
        path.write_text(text)
    assert path.read_text() == text, "run with ANYSAT_UPDATE_DUMPS=1 if the change is meant"


@pytest.mark.parametrize("name", DUMPED)
def test_the_config_passes_its_own_checks(name):
    settings.check(pretrain.get_config(name))


def test_an_unknown_name_is_refused():
    for name in ("huge", "prepared", "prepared,"):
        with pytest.raises(ValueError, match=rf"has no '{name}'; it has mini \| geoplex .*prepared,NAME"):
            pretrain.get_config(name)


def test_the_default_is_mini():
    assert dump(pretrain.get_config()) == dump(pretrain.get_config("mini"))

import re

import numpy as np
import pytest

from anysat_jax.api import check_output
from anysat_jax.validate import to_batch
from tests.validate.fakes import ALL, make_data


def make_batch(*sensors, **more):
    return to_batch(make_data(*sensors) | more, 10, ALL)


@pytest.mark.parametrize(
    ("sensors", "output", "modality", "message"),
    [
        (("s2",), "tiles", None, "unknown output 'tiles'; there are tile, patch, dense, all"),
        (("s2",), "tile", "s2", "output_modality='s2' goes with output='dense' only, not with 'tile'"),
        (
            ("s2", "s1"),
            "dense",
            None,
            "output='dense' needs output_modality, the sensor whose grid it has: one of s1, s2",
        ),
        (("s2", "s1"), "dense", "", "output='dense' needs output_modality"),
        (("s2", "s1"), "dense", "l8", "output_modality='l8' is not among the data; choose one of s1, s2"),
        (("s2", "modis"), "dense", "modis", "output_modality='modis' is a context sensor"),
    ],
)
def test_what_cannot_be_given_is_refused(sensors, output, modality, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_output(make_batch(*sensors), output, modality)


def test_the_sensor_of_a_dense_map():
    assert check_output(make_batch("s2", "modis"), "dense") == "s2"
    assert check_output(make_batch("s2", "s1"), "dense", "s1") == "s1"
    assert check_output(make_batch("s2", "s1"), "patch") is None


def test_a_tile_without_the_sensor_has_no_dense_map():
    batch = make_batch("s2", "s1", s2_present=np.array([True, False]))
    assert check_output(batch, "dense", "s1") == "s1"
    with pytest.raises(ValueError, match="tile 1 has no 's2'"):
        check_output(batch, "dense", "s2")

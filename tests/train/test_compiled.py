"""A function that is compiled before it is called."""

import jax.numpy as jnp
import numpy as np
import pytest

from anysat_jax.train.compile import Compiled


def test_it_is_compiled_once_for_each_kind_of_arguments():
    traced = []

    def double(tree):
        traced.append(tree["x"].shape)
        return 2 * tree["x"]

    program = Compiled(double)
    for length in (2, 3, 2, 3):
        found = program({"x": np.arange(length, dtype=np.float32)})
        np.testing.assert_array_equal(found, 2 * np.arange(length))
    assert traced == [(2,), (3,)] and len(program) == 2
    program({"x": np.arange(2)})
    program({"x": np.arange(2), "y": np.zeros(1)})
    assert len(program) == 4  # another dtype, another structure


def test_it_tells_that_it_compiles():
    told = []
    program = Compiled(lambda x: told.append(program.compiling) or jnp.sin(x))
    program(np.ones(2))
    program(np.ones(2))
    assert told == [True] and not program.compiling


def test_a_mistake_while_compiling_is_not_taken_for_compiling():
    def broken(x):
        raise ValueError("shapes do not fit")

    program = Compiled(broken)
    with pytest.raises(ValueError, match="shapes do not fit"):
        program(np.ones(2))
    assert not program.compiling and len(program) == 0

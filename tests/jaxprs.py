"""Walking through traced programs, with every version of JAX that setup.py allows."""

from collections.abc import Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the programs in the parameters of an operation: of loops, branches and calls."""
    for one in jax.tree.leaves(equation.params, is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr)):
        if isinstance(one, ClosedJaxpr):
            yield one.jaxpr
        elif isinstance(one, Jaxpr):
            yield one

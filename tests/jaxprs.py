"""Walking through traced programs, with every version of JAX that setup.py allows."""

from collections.abc import Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the programs in the parameters of an operation: of loops, branches and calls.

    Of branches for one platform or another, that of accelerators is taken: on CPUs norms average by products.
    """
    params = dict(equation.params)
    if params.get("branches_platforms"):
        params["branches"] = params["branches"][-1:]
    for one in jax.tree.leaves(params, is_leaf=lambda value: isinstance(value, Jaxpr | ClosedJaxpr)):
        if isinstance(one, ClosedJaxpr):
            yield one.jaxpr
        elif isinstance(one, Jaxpr):
            yield one


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields every operation of a program."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)

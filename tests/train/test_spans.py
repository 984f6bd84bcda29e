"""Stretches of time."""

from hypothesis import given
from hypothesis import strategies as st

from anysat_jax.train.profiling import difference, intersection, length, union

spans = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted), max_size=8)


def seconds_of(found):
    return {second for begin, end in found for second in range(int(begin), int(end))}


@given(spans, spans)
def test_stretches_are_sets_of_moments(first, second):
    a, b = union(map(tuple, first)), union(map(tuple, second))
    one, other = seconds_of(first), seconds_of(second)
    assert seconds_of(a) == one and length(a) == len(one)
    assert seconds_of(intersection(a, b)) == one & other and length(intersection(a, b)) == len(one & other)
    assert seconds_of(difference(a, b)) == one - other and length(difference(a, b)) == len(one - other)

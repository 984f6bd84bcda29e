"""Stretches of time as sets of moments: united, cut with one another, taken from one another."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64

Spans = Float64[np.ndarray, "n 2"]
"""Disjoint stretches, in order: where each begins and ends."""


def union(spans: Iterable[tuple[float, float]]) -> Spans:
    """Stretches that may overlap, as disjoint ones."""
    merged: list[list[float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        elif end > begin:
            merged.append([begin, end])
    return np.array(merged, np.float64).reshape(-1, 2)


def intersection(first: Spans, second: Spans) -> Spans:
    """What is in both."""
    found, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        begin, end = max(first[i, 0], second[j, 0]), min(first[i, 1], second[j, 1])
        if begin < end:
            found.append((begin, end))
        i, j = (i + 1, j) if first[i, 1] < second[j, 1] else (i, j + 1)
    return np.array(found, np.float64).reshape(-1, 2)


def difference(first: Spans, second: Spans) -> Spans:
    """What is in the first and not in the second."""
    edges = np.concatenate([[-np.inf], second.ravel(), [np.inf]]).reshape(-1, 2)
    return intersection(first, edges)


def length(spans: Spans) -> float:
    """How long they are together."""
    return float((spans[:, 1] - spans[:, 0]).sum())

"""Splits by a hash of the name."""

import collections

from data_pipelines.reader import hashed_split


def test_shares():
    counts = collections.Counter(hashed_split(f"tile_{i}", 0.2, 0.1) for i in range(20_000))
    assert abs(counts["val"] - 4000) < 200 and abs(counts["test"] - 2000) < 200


def test_a_name_keeps_its_split():
    """On every machine: these were drawn once."""
    names = [f"tile_{i}" for i in range(8)]
    assert [hashed_split(name, 0.3) for name in names] == [hashed_split(name, 0.3) for name in names]
    assert [hashed_split(name, 0.3)[0] for name in names] == list("tvtttvvt")


def test_a_seed_draws_anew():
    drawn = {seed: [hashed_split(f"tile_{i}", 0.5, seed=seed) for i in range(64)] for seed in (0, 1)}
    assert drawn[0] != drawn[1]


def test_nothing_is_held_out_without_shares():
    assert {hashed_split(f"tile_{i}", 0.0) for i in range(100)} == {"train"}

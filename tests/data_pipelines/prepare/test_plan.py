"""Tiles cut into shards, and the facts of a plan."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.prepare.plan import (
    LARGEST_SHARD,
    SHARD_BYTES,
    Plan,
    make_plan,
    plan_facts,
    probe_positions,
)
from tests.data_pipelines.fake_reader import FakeReader


def plan_of(tiles, tile_bytes):
    reader = FakeReader({"train": 1, "val": 1})
    facts = plan_facts(reader, "1.0.0", None, "here")
    return make_plan(dataclasses.replace(facts, tiles={"train": tiles, "val": 1}), tile_bytes)


@settings(max_examples=100, deadline=None)
@given(tiles=st.integers(1, 10**4), tile_bytes=st.integers(1, 10**9))
def test_shards_hold_every_tile_once_and_are_of_like_size(tiles, tile_bytes):
    plan = plan_of(tiles, tile_bytes)
    shards = [shard for shard in plan.shards() if shard.split == "train"]
    assert shards[0].start == 0 and shards[-1].stop == tiles
    assert all(one.stop == two.start for one, two in itertools.pairwise(shards))
    sizes = [shard.stop - shard.start for shard in shards]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert max(sizes) == 1 or (max(sizes) - 1) * tile_bytes <= LARGEST_SHARD
    assert len({shard.file_name for shard in plan.shards()}) == len(plan.shards())


def test_small_splits_are_one_file_and_large_ones_have_larger_files():
    assert len(plan_of(100, 10_000).starts["train"]) == 2
    assert len(plan_of(1000, SHARD_BYTES // 10).starts["train"]) == 101
    assert len(plan_of(10_000, SHARD_BYTES).starts["train"]) == 1 + 10_000 * SHARD_BYTES // LARGEST_SHARD


def test_a_plan_comes_back():
    plan = plan_of(1000, 10**7)
    assert Plan.from_json(plan.to_json()) == plan and plan.facts.limit is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"facts": {}, "starts": {}, "tile_bytes": 1}', '{"starts": 3}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="not a plan of a preparation"):
        Plan.from_json(text)


def test_the_facts_follow_the_tiles_the_card_and_the_reader():
    def facts(reader, **options):
        options = dict(limit=None, source=None) | options
        return plan_facts(reader, "1.0.0", **options)

    reader, other = FakeReader(), FakeReader()
    assert facts(reader) == facts(other)
    other.fingerprint = "more"
    variants = [facts(other), facts(FakeReader({"train": 1})), facts(reader, limit=2), facts(reader, source="there")]
    assert all(one != facts(reader) for one in variants)


def test_probes_are_spread():
    assert probe_positions(1) == [0] and probe_positions(2) == [0, 1] and probe_positions(11) == [0, 5, 10]

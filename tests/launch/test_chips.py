"""Slices of TPUs: their sizes, and what Google calls them."""

import pytest

from anysat_jax.errors import ConfigError
from launch.chips import CHIPS, CHIPS_PER_HOST, GENERATIONS, parse_topology

# From the tables of cloud.google.com/tpu/docs/v5e, v5p and v6e.
KNOWN = {
    "v5e:1x1": ("v5litepod-1", 1, 1),
    "v5e:2x4": ("v5litepod-8", 8, 1),
    "v5e:4x4": ("v5litepod-16", 16, 4),
    "v5e:16x16": ("v5litepod-256", 256, 64),
    "v5p:2x2x1": ("v5p-8", 4, 1),
    "v5p:2x2x2": ("v5p-16", 8, 2),
    "v5p:8x8x16": ("v5p-2048", 1024, 256),
    "v6e:2x4": ("v6e-8", 8, 1),
    "v6e:16x16": ("v6e-256", 256, 64),
}


@pytest.mark.parametrize("name", KNOWN)
def test_names_and_sizes(name):
    slice_ = parse_topology(name)
    assert (slice_.accelerator_type, slice_.chips, slice_.hosts) == KNOWN[name]


def test_every_shape_divides_into_hosts_and_has_a_type_of_its_own():
    for generation, facts in GENERATIONS.items():
        every = [parse_topology(f"{generation}:{shape}") for shape in facts.shapes]
        assert len({one.accelerator_type for one in every}) == len(every)
        assert [one.chips for one in every] == sorted(one.chips for one in every)
        assert all(one.hosts == 1 or one.hosts * CHIPS_PER_HOST == one.chips for one in every)


def test_every_tpu_has_a_generation():
    assert set(GENERATIONS) == {chip.name for chip in CHIPS.values() if chip.kind == "tpu"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v4:2x2x4", "no TPU 'v4'; write v5e, v5p, v6e, as in v5e:4x4"),
        ("h100:8", "no TPU 'h100'; write v5e"),
        ("v5e:3x5", "v5e has no slice '3x5'; it has 1x1, 2x2"),
        ("v5e", "v5e has no slice ''"),
        ("v5p:4x4", "v5p has no slice '4x4'"),
    ],
)
def test_others_are_refused(name, says):
    with pytest.raises(ConfigError, match=f"--topology={name}: {says}"):
        parse_topology(name, tpu=True)

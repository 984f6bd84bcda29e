"""The landscape: borders at the same metres at every scale, and a year that tells its covers apart."""

import numpy as np
import pytest

from data_pipelines.mini import land_cover as lc
from data_pipelines.mini.landscape import Landscape, Mix, make_landscape, smooth_noise
from tests.data_pipelines.plain_landscape import plain_landscape

MIX = Mix({"field": 0.4, "forest": 0.3, "town": 0.2, "water": 0.1})
COUNT = len(lc.COVERS)


def landscape(seed: int = 0, extent: float = 60.0, metres: float = 0.5, mix: Mix = MIX) -> Landscape:
    return make_landscape(extent, metres, mix, np.random.default_rng(seed))


def test_covers_are_complete() -> None:
    assert lc.GROUND.shape == lc.CANOPY.shape == lc.ACCENT.shape == (COUNT, len(lc.BANDS))
    assert set(lc.KIND.tolist()) == set(range(len(lc.KINDS)))
    assert lc.names_of("water") == ("water",)


def test_same_seed_same_landscape() -> None:
    first, second, other = landscape(3), landscape(3), landscape(4)
    np.testing.assert_array_equal(first.segments, second.segments)
    np.testing.assert_array_equal(first.shift, second.shift)
    assert not np.array_equal(first.segments, other.segments)


def test_every_segment_exists() -> None:
    land = landscape()
    assert land.segments.shape == (120, 120)
    np.testing.assert_array_equal(np.unique(land.segments), np.arange(len(land.cover)))


@pytest.mark.parametrize("metres", [1.0, 10.0, 30.0, 60.0])
def test_shares_are_means_of_the_fine_grid(metres: float) -> None:
    land = landscape()
    factor = round(metres / 0.5)
    fine = np.eye(len(land.cover))[land.segments]
    size = 120 // factor
    expected = fine.reshape(size, factor, size, factor, -1).mean((1, 3))
    np.testing.assert_allclose(land.shares(metres), expected, atol=1e-6)
    np.testing.assert_allclose(land.cover_shares(metres).sum(-1), 1.0, atol=1e-5)


def test_shares_refuse_a_pixel_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"pixel of 0.7 m .* fine pixels of 0.5 m .* extent, 60 m"):
        landscape().shares(0.7)


def test_extent_must_hold_whole_pixels() -> None:
    with pytest.raises(ValueError, match=r"extent of 60 m is not a whole number of fine pixels of 0.7 m"):
        landscape(metres=0.7)


def test_majority() -> None:
    segments = np.zeros((20, 20), np.int32)
    segments[:, 10:] = 1
    segments[:10, 10:14] = 0
    land = plain_landscape(segments, ["wheat", "water"])
    groups = np.full(COUNT, -1)
    groups[lc.COVER_INDEX["wheat"]] = 0
    np.testing.assert_array_equal(land.majority(10.0, groups), [[0, 0], [0, -1]])
    groups[lc.COVER_INDEX["water"]] = 1
    np.testing.assert_array_equal(land.majority(10.0, groups), [[0, 1], [0, 1]])
    np.testing.assert_array_equal(land.majority(10.0, groups, least=0.7), [[0, -1], [0, 1]])
    assert land.majority(10.0, groups).dtype == np.int8


def test_covers_are_told_apart_by_time() -> None:
    names = ["wheat", "maize", "rapeseed", "grassland", "spruce", "beech", "oak", "larch"]
    land = plain_landscape(np.arange(64).reshape(8, 8) % len(names), names)
    green = dict(zip(names, land.green(np.array([30, 125, 165, 220, 300])).T, strict=True))
    assert np.all(green["spruce"] > 0.75)
    assert green["wheat"][1] > 0.7 > 0.3 > green["wheat"][3]
    assert green["maize"][3] > 0.7 > 0.3 > green["maize"][1]
    assert green["beech"][1] > green["oak"][1] + 0.2
    assert green["oak"][4] > green["beech"][4] + 0.2
    rape = land.reflectance(np.array([100, 122]))[:, names.index("rapeseed")]
    assert rape[1, 2] > 2 * rape[0, 2]  # in flower: yellow, so red rises


def test_a_late_segment_is_late() -> None:
    segments = np.zeros((10, 10), np.int32)
    early, late = plain_landscape(segments, ["beech"]), plain_landscape(segments, ["beech"], shift=10.0)
    days = np.arange(100, 140)
    np.testing.assert_allclose(late.green(days + 10), early.green(days), atol=1e-6)


def test_reflectance_is_physical() -> None:
    reflectance = landscape().reflectance(np.arange(0, 365, 15))
    assert reflectance.shape[2] == len(lc.BANDS)
    assert np.isfinite(reflectance).all() and reflectance.min() > 0.0 and reflectance.max() < 1.0


def test_kinds_follow_the_mix() -> None:
    land = landscape(mix=Mix({"water": 1.0}))
    assert [lc.COVERS[c].name for c in land.cover] == ["water"]
    forest = landscape(mix=Mix({"forest": 1.0}, species=(2, 2)))
    assert {lc.COVERS[c].kind for c in forest.cover} == {"forest"} and len(set(forest.cover.tolist())) <= 2


def test_a_town_has_roads_and_houses() -> None:
    town = landscape(mix=Mix({"town": 1.0}), extent=120.0, metres=1.0)
    shares = town.cover_shares(120.0)[0, 0]
    assert all(shares[lc.COVER_INDEX[name]] > 0.02 for name in ("road", "yard"))
    assert shares[lc.COVER_INDEX["tiled roof"]] + shares[lc.COVER_INDEX["flat roof"]] > 0.1


def test_smooth_noise_is_smooth() -> None:
    field = smooth_noise((3,), 100, 5, np.random.default_rng(0))
    assert field.shape == (3, 100, 100)
    assert np.abs(np.diff(field, axis=-1)).max() < 0.35

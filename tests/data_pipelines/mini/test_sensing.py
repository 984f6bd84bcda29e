"""The sensors' views: the same ground for all, under clouds, speckle and another light each time."""

import numpy as np
import pytest

from anysat_jax.sensors import SENSORS
from data_pipelines.mini import sensing as views
from data_pipelines.mini.landscape import Landscape, Mix, make_landscape
from tests.data_pipelines.plain_landscape import plain_landscape

DAYS = np.arange(10, 360, 10).astype(np.int32)
OPTICAL = ("s2", "l7", "l8", "modis")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lake_in_wheat(metres: float, side: int = 120) -> Landscape:
    """The lake fills the columns from 60 m on, and the rows down to 30 m are a lake, too."""
    segments = np.zeros((round(side / metres),) * 2, np.int32)
    segments[:, round(60 / metres) :] = 1
    segments[: round(30 / metres)] = 1
    return plain_landscape(segments, ["wheat", "water"], metres)


def lake_mask(metres: float, side: int = 120) -> np.ndarray:
    centre = (np.arange(round(side / metres)) + 0.5) * metres
    return (centre[None, :] > 60) | (centre[:, None] < 30)


def test_responses_fit_the_registry() -> None:
    assert all(len(views.RESPONSES[name]) == SENSORS[name].num_bands for name in OPTICAL)
    assert all(len(views.RESPONSES[name]) in (3, 4) for name in ("aerial", "aerial-flair", "naip", "spot"))


@pytest.mark.parametrize(("sensor", "band"), [("s2", 6), ("l7", 3), ("l8", 6)])
def test_optical_series_see_the_border_in_place(sensor: str, band: int) -> None:
    series = views.optical_series(lake_in_wheat(1.0), sensor, DAYS, rng())
    values = np.where(series.clear, series.values, np.nan)[:, band]
    near_infrared = np.nanmedian(values, axis=0)
    lake = lake_mask(SENSORS[sensor].metres_per_pixel)
    inner = ~lake if sensor != "l8" else ~(lake | np.roll(lake, -1, 1) | np.roll(lake, 1, 0))
    water = lake if sensor != "l8" else lake & np.roll(lake, 1, 1) & np.roll(lake, -1, 0)
    assert near_infrared[inner].min() > 1.2 * near_infrared[water].max()


@pytest.mark.parametrize(("sensor", "band"), [("s1", 0), ("s1-asc", 1), ("alos", 0)])
def test_radar_sees_the_border_in_place(sensor: str, band: int) -> None:
    values = views.radar_series(lake_in_wheat(1.0), sensor, DAYS, rng()).values.mean(0)[band]
    lake = lake_mask(SENSORS[sensor].metres_per_pixel)
    assert values[~lake].min() > values[lake].max() + 2.0


@pytest.mark.parametrize(
    ("sensor", "fine", "pixel"),
    [("aerial", 0.4, 0.2), ("aerial-flair", 0.2, 0.2), ("spot", 1.0, 1.0), ("naip", 1.25, 1.25)],
)
def test_images_see_the_border_in_place(sensor: str, fine: float, pixel: float) -> None:
    grey, height = views.image(lake_in_wheat(fine), sensor, 150, rng())
    lake = lake_mask(pixel)
    assert grey.shape[1:] == height.shape == lake.shape
    values = grey[3] if len(grey) == 4 else grey[1]  # near infrared, or green
    middle = 0.5 * (np.median(values[lake]) + np.median(values[~lake]))
    assert np.mean((values < middle) == lake) > 0.95
    assert np.all(height[lake] == 0.0) and np.all(height[~lake] > 0.0)


def test_a_mixed_pixel_is_the_mean_of_its_parts() -> None:
    segments = np.zeros((10, 10), np.int32)
    segments[:, 3:] = 1
    mixed = plain_landscape(segments, ["maize", "water"])
    parts = [plain_landscape(np.zeros((10, 10), np.int32), [name]) for name in ("maize", "water")]
    days = np.array([220], np.int32)
    values = [views.optical_series(land, "modis", days, rng(1)).values for land in (mixed, *parts)]
    clear = views.optical_series(mixed, "modis", days, rng(1)).clear
    assert clear.all()
    np.testing.assert_allclose(values[0], 0.3 * values[1] + 0.7 * values[2], rtol=0.02)


def test_clouds_occur_and_are_bright() -> None:
    land = lake_in_wheat(2.5)
    seen = [views.optical_series(land, "s2", DAYS, rng(seed)) for seed in range(4)]
    clear = np.concatenate([series.clear[:, 0] for series in seen])
    values = np.concatenate([series.values for series in seen])
    assert 0.1 < np.mean(~clear) < 0.5
    assert np.any(clear.all((1, 2))) and np.any(~clear.any((1, 2)))
    blue = values[:, 0]
    assert np.median(blue[~clear]) > 2 * np.median(blue[clear])
    assert np.mean(clear.any((1, 2)) & ~clear.all((1, 2))) > 0.05  # broken clouds


def test_landsat7_gaps_are_zero_and_not_clear() -> None:
    series = views.optical_series(lake_in_wheat(2.5), "l7", DAYS, rng())
    gap = (series.values == 0.0).all(1)
    assert gap.any() and not series.clear[:, 0][gap].any()
    assert gap.all(2).any(), "whole rows are missing"


def test_landsat8_thermal_bands_follow_the_season() -> None:
    series = views.optical_series(lake_in_wheat(2.5), "l8", np.array([20, 200], np.int32), rng(5))
    assert series.values.dtype == np.float32 and 0 <= series.values.min() <= series.values.max() <= 65535
    clear = series.clear[:, 0]
    cold, warm = (series.values[t, 9][clear[t]].mean() for t in (0, 1))
    assert warm > cold + 500


def test_speckle_is_multiplicative() -> None:
    land = plain_landscape(np.zeros((96, 96), np.int32), ["beech"], 10.0)
    power = views.radar_series(land, "s1-asc", np.array([200], np.int32), rng(), decibel=False).values
    spread = power.std((2, 3)) / power.mean((2, 3))
    np.testing.assert_allclose(spread, 0.5, atol=0.03)  # 1 / sqrt(looks)


def test_radar_ratio() -> None:
    land = lake_in_wheat(2.5)
    decibel = views.radar_series(land, "s1", DAYS[:3], rng()).values
    linear = views.radar_series(land, "s1", DAYS[:3], rng(), decibel=False).values
    np.testing.assert_allclose(decibel[:, 2], decibel[:, 0] - decibel[:, 1], atol=1e-5)
    np.testing.assert_allclose(linear[:, 2], linear[:, 0] / linear[:, 1], rtol=1e-5)
    np.testing.assert_allclose(10 * np.log10(linear), decibel, atol=1e-4)


def test_nuisance_exceeds_the_difference_between_species() -> None:
    """One pixel on one date says little: another light moves it more than another species would."""
    flat = np.zeros((4, 4), np.int32)
    seen = {
        name: np.array(
            [
                views.optical_series(plain_landscape(flat, [name], 10.0), "s2", np.array([200], np.int32), rng(seed))
                .values[0]
                .mean((1, 2))
                for seed in range(40)
            ]
        )
        for name in ("beech", "oak")
    }
    difference = np.abs(np.median(seen["beech"], 0) - np.median(seen["oak"], 0))
    assert np.all(seen["beech"].std(0) > difference)


def test_trees_stand_out_and_cast_shadows() -> None:
    segments = np.zeros((100, 100), np.int32)
    segments[40:60, 30:50] = 1
    land = plain_landscape(segments, ["grassland", "beech"], 0.4)
    grey, height = views.image(land, "aerial-flair", 180, rng(2))
    assert height[100, 80] > 5.0 and height[:60].max() < 1.0
    shaded, lit = grey[3, 85:115, 106:116].mean(), grey[3, 85:115, 30:50].mean()
    assert shaded < 0.75 * lit  # the shadow falls to the right, up


def test_draw_dates() -> None:
    dates = views.draw_dates((4, 9), rng(), repeat=12)
    assert 4 <= len(dates) <= 9 and dates.dtype == np.int32
    assert np.all(np.diff(dates) > 0) and np.all(np.diff(dates) % 12 == 0) and dates[0] >= 0 and dates[-1] < 365


def test_made_landscapes_give_finite_views() -> None:
    mix = Mix({"field": 0.4, "forest": 0.3, "town": 0.2, "water": 0.1})
    for seed in range(5):
        land = make_landscape(120.0, 2.5, mix, rng(seed))
        for sensor in OPTICAL:
            assert np.isfinite(views.optical_series(land, sensor, DAYS, rng()).values).all()

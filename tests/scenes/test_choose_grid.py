"""The grid of a scene: coordinate system, origin and bounds, from the rasters or the user."""

import datetime

import numpy as np
import pytest
import rasterio.warp
from rasterio.transform import Affine

from anysat_jax.scenes.grid import Box
from anysat_jax.scenes.reading import Acquisition, Stack, choose_grid, read_box
from tests.scenes.rasters import UTM32, bands_of, write

DAY = datetime.date(2020, 5, 3)


@pytest.fixture
def make(tmp_path):
    """Returns a function that makes a stack of rasters at some places, each (rows, columns), transform and system."""

    def make_stack(*places, sensor="s1-asc", day=DAY):
        acquisitions = []
        for number, (shape, transform, crs) in enumerate(places):
            path = write(tmp_path / f"{sensor}{number}.tif", np.ones((2, *shape), np.float32), transform, crs)
            acquisitions.append(Acquisition(path.stem, day, bands_of(path)))
        return Stack(sensor, tuple(acquisitions))

    return make_stack


def test_pitfall_9_degrees_are_not_taken_for_metres(make):
    stack = make(((30, 40), Affine(1e-4, 0, 8.99, 0, -7e-5, 45.16), "EPSG:4326"))
    grid, notes = choose_grid({"s1-asc": stack}, 10)
    assert grid.crs == "EPSG:32632" and notes == [
        "EPSG:4326 is in degrees: all rasters are warped onto EPSG:32632, the UTM zone of their centre"
    ]
    edges = rasterio.warp.transform_bounds("EPSG:4326", "EPSG:32632", 8.99, 45.16 - 30 * 7e-5, 8.994, 45.16)
    for found, edge, outward in zip((grid.bounds.left, grid.bounds.bottom), edges[:2], (1, 1)):
        assert 0 <= outward * (edge - found) < 10 and found % 10 == 0
    with pytest.raises(ValueError, match=r"EPSG:4326 is in degrees; expected one in metres, such as a UTM zone"):
        choose_grid({"s1-asc": stack}, 10, crs="EPSG:4326")
    with pytest.raises(ValueError, match=r"'EPSG:9' is not a coordinate system"):
        choose_grid({"s1-asc": stack}, 10, crs="EPSG:9")


@pytest.mark.parametrize(
    ("latitude", "longitude", "zone"), [(-45, 9, "EPSG:32732"), (10, -179, "EPSG:32601"), (10, 179.9, "EPSG:32660")]
)
def test_the_zone_is_that_of_the_centre(make, latitude, longitude, zone):
    stack = make(((20, 20), Affine(1e-4, 0, longitude, 0, -1e-4, latitude), "EPSG:4326"))
    assert choose_grid({"s1-asc": stack}, 10)[0].crs == zone


@pytest.mark.parametrize(
    ("crs", "why"),
    [
        ("EPSG:3857", r"has metres of 0\.7\d* x 0\.7\d* m on the ground there"),
        ("EPSG:2264", r"is not in metres \(US survey foot\)"),
    ],
)
def test_pitfall_9_metres_that_are_not_those_of_the_ground_are_not_used(make, crs, why):
    """Web Mercator's at 45 degrees, and feet, of North Carolina."""
    place = (9, 45) if crs == "EPSG:3857" else (-79, 35.5)
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", crs, [place[0]], [place[1]])
    grid, (note,) = choose_grid({"s1-asc": make(((20, 20), Affine(10, 0, x, 0, -10, y), crs))}, 5)
    assert note.startswith(crs) and grid.crs in ("EPSG:32632", "EPSG:32617")
    with pytest.raises(ValueError, match=f"{crs} {why}"):
        choose_grid({"s1-asc": make(((20, 20), Affine(10, 0, x, 0, -10, y), crs))}, 5, crs=crs)


def test_pitfall_9_at_a_border_of_zones_the_larger_part_counts(make):
    """One scene in two zones."""
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", "EPSG:32631", [6], [45])
    (east,), (north,) = rasterio.warp.transform("EPSG:4326", "EPSG:32632", [6], [45])
    small = (30, 30), Affine(10, 0, round(x, -1) - 300, 0, -10, round(y, -1)), "EPSG:32631"
    large = (30, 90), Affine(10, 0, round(east, -1), 0, -10, round(north, -1)), "EPSG:32632"
    stack = make(small, large)
    grid, notes = choose_grid({"s1-asc": stack}, 10)
    assert grid.crs == "EPSG:32632"
    assert notes == ["the rasters are in 2 coordinate systems: EPSG:32631 are warped onto EPSG:32632"]
    fields = read_box(stack, grid.crs, grid.bounds)
    # Both parts are there, without a gap where they meet.
    assert fields.valid[0, 0, 15, 2:-1].all() and grid.bounds.width > 1180
    assert choose_grid({"s1-asc": stack}, 10, crs="EPSG:32631")[0].crs == "EPSG:32631"


def test_a_system_in_metres_goes_before_a_larger_raster_in_degrees(make):
    stacks = {
        "s1-asc": make(((300, 300), Affine(1e-4, 0, 8.99, 0, -1e-4, 45.17), "EPSG:4326")),
        "spot": make(((20, 20), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632"), sensor="spot", day=None),
    }
    assert choose_grid(stacks, 10)[0].crs == "EPSG:32632"


def test_the_origin_is_a_corner_of_the_rasters_pixels(make):
    """Landsat's pixels lie 15 m from the multiples of 30: nothing may be interpolated."""
    stack = make(((41, 41), Affine(30, 0, 483_285, 0, -30, 5_628_525), "EPSG:32632"), sensor="l7")
    grid, _ = choose_grid({"l7": stack}, 30)
    assert grid.origin == (15, 15) and grid.bounds == Box(483_285, 5_627_295, 484_515, 5_628_525)
    # The same pixels, whatever part is asked for.
    part, _ = choose_grid({"l7": stack}, 30, bounds=Box(483_400, 5_627_400, 483_500, 5_627_500))
    assert part.bounds == Box(483_375, 5_627_385, 483_525, 5_627_505) and part.origin == grid.origin


def test_the_origin_serves_most_sensors(make):
    fine = ((3000, 3000), Affine(0.2, 0, 500_003.1, 0, -0.2, 5_000_000.1), "EPSG:32632")
    stacks = {
        "aerial": make(fine, sensor="aerial", day=None),
        "s2": make(((60, 60), UTM32, "EPSG:32632"), sensor="s2"),
        "s1-asc": make(((60, 60), UTM32, "EPSG:32632")),
    }
    assert choose_grid(stacks, 10)[0].origin == (0, 0)
    del stacks["s1-asc"], stacks["s2"]
    assert choose_grid(stacks, 10)[0].origin == pytest.approx((0.1, 0.1))


def test_the_bounds_are_what_sensors_have_in_common(make):
    stacks = {
        "s2": make(((60, 60), UTM32, "EPSG:32632"), sensor="s2"),
        "s1-asc": make(((60, 60), UTM32 @ Affine.translation(20, 33.5), "EPSG:32632")),
    }
    assert choose_grid(stacks, 10)[0].bounds == Box(500_200, 4_999_400, 500_600, 4_999_670)
    # A context sensor is not asked: its pixels are larger than scenes.
    stacks["modis"] = make(((2, 2), Affine(250, 0, 100_000, 0, -250, 5_000_000), "EPSG:32632"), sensor="modis")
    assert choose_grid(stacks, 10)[0].bounds == Box(500_200, 4_999_400, 500_600, 4_999_670)
    with pytest.raises(ValueError, match="modis: expected an image or a series"):
        choose_grid({"modis": stacks["modis"]}, 10)


def test_bounds_of_the_user_are_kept(make):
    stacks = {"s2": make(((60, 60), UTM32, "EPSG:32632"), sensor="s2")}
    grid, _ = choose_grid(stacks, 10, bounds=Box(499_000, 4_999_705, 500_011, 5_000_000))
    assert grid.bounds == Box(499_000, 4_999_700, 500_020, 5_000_000)
    with pytest.raises(
        ValueError,
        match=r"no common area: the given bounds covers .* and s2 \(s20\) .* \(left,bottom,right,top in EPSG:32632\)",
    ):
        choose_grid(stacks, 10, bounds=Box(0, 0, 10, 10))


def test_no_common_area_names_both(make):
    stacks = {
        "s2": make(((60, 60), UTM32, "EPSG:32632"), sensor="s2"),
        "s1-asc": make(((60, 60), UTM32 @ Affine.translation(60, 0), "EPSG:32632")),
    }
    with pytest.raises(
        ValueError, match=r"no common area: s2 \(s20\) covers .*500600.* and s1-asc \(s1-asc0\) .*501200"
    ):
        choose_grid(stacks, 10)


def test_less_than_a_pixel_is_refused(make):
    stack = make(((3, 30), UTM32, "EPSG:32632"))
    with pytest.raises(ValueError, match=r"300 x 30 m; expected at least a pixel of 40 m"):
        choose_grid({"s1-asc": stack}, 40)


@pytest.mark.parametrize("turned", [False, True])
def test_pitfall_9_a_raster_upside_down_has_its_place(make, turned):
    """Rows from south to north, and columns from east to west."""
    across, left = (-10, 500_300) if turned else (10, 500_000)
    stack = make(((20, 30), Affine(across, 0, left, 0, 10, 4_999_800), "EPSG:32632"))
    grid, _ = choose_grid({"s1-asc": stack}, 10)
    assert grid.bounds == Box(500_000, 4_999_800, 500_300, 5_000_000)
    assert read_box(stack, grid.crs, grid.bounds).valid.all()
    assert choose_grid({"s1-asc": stack}, 10, crs="EPSG:32631")[0].bounds.width > 300


@pytest.mark.parametrize(
    ("transform", "crs", "problem"),
    [
        (UTM32, "EPSG:4326", r"reaches from 500000 to 500200 degrees, beyond 180"),
        (
            Affine(1e-4, 0, 179.999, 0, -1e-4, 45),
            "EPSG:4326",
            r"reaches from 179\.999 to 180\.001 degrees, .*EPSG:32660",
        ),
        (UTM32, 'LOCAL_CS["site",UNIT["metre",1]]', r"500100, 4\.9999e\+06 in site is not on the Earth"),
    ],
)
def test_pitfall_9_coordinates_that_cannot_be_name_the_file(make, transform, crs, problem):
    """Metres called degrees, the 180th meridian, a plan of a site."""
    with pytest.raises(ValueError, match=rf"s1-asc0\.tif, band 1: .*{problem}"):
        choose_grid({"s1-asc": make(((20, 20), transform, crs))}, 10)


def test_sheared_metres_are_not_used(make):
    """MODIS's sinusoidal grid, far from its meridian."""
    sinusoidal = "+proj=sinu +lon_0=0 +R=6371007.181 +units=m"
    grid, (note,) = choose_grid({"s1-asc": make(((20, 20), UTM32, sinusoidal))}, 10)
    assert grid.crs == "EPSG:32632" and "has axes that are not perpendicular there" in note

"""Embeddings of fake scenes: the same pixels as the model gives, whatever windows, bounds and batches; edges; masks."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.windows import from_bounds

from anysat_jax.scenes import tiles
from anysat_jax.scenes.reading import Stack
from anysat_jax.scenes.run import embed
from tests.scenes.fake_scenes import CRS, LEFT, TOP, fake_values, model, write_stack
from tests.scenes.rasters import write

TOLERANCE = 1e-3  # of the features' standard deviation
quiet = functools.partial(embed, say=lambda line: None, batch=8)  # of one size: programs are compiled once


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of 730 x 910 m in Sentinel-2 and Sentinel-1, of which a corner is missing, and a model."""
    folder = tmp_path_factory.mktemp("scene")
    s2 = write_stack(folder, "s2", 73, 91, dates=2)
    return s2, model("s2")


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.transform, file.bounds


def direct(scene_model, tile, patch_size, output, modality=None):
    """Features of a tile by the model's own call."""
    return np.asarray(scene_model(tile, patch_size, output, modality, normalise="auto"))


def test_a_tile_has_the_features_that_the_model_gives(tmp_path, scene):
    """The tile of the lattice at the origin of the raster, read by rasterio alone."""
    stack, weights = scene
    quiet({"s2": stack}, weights, tmp_path / "d.tif", patch_size=20, resolution=10, tile=160)
    quiet({"s2": stack}, weights, tmp_path / "p.tif", patch_size=20, resolution=20, tile=160)
    # Tiles of 8 patches begin every 6 patches, 120 m, from (0, 0) here: the first 40 m are shared with the one before.
    left, top = 120 * (LEFT // 120) + 360, 120 * (TOP // 120) - 360
    for name, side, output in (("d", 10, "dense"), ("p", 20, "patch")):
        one, other = (tile_features(stack, weights, left + shift, top, output) for shift in (0, 120))
        features, transform, _ = read(tmp_path / f"{name}.tif")
        assert (transform.a, transform.e) == (side, -side)
        column, row = (round(v) for v in ~transform @ (left + 40, top - 40))
        found = np.moveaxis(features[:, row : row + 80 // side, column : column + 120 // side], 0, -1)
        alone, shared, rows = 80 // side, 40 // side, slice(40 // side, 120 // side)
        tolerance = TOLERANCE * one.std()
        np.testing.assert_allclose(found[:, :alone], one[rows, shared : shared + alone], atol=tolerance)
        weight = ((np.arange(shared) + 0.5) / shared)[:, None]  # from this tile to the next one
        blended = (1 - weight) * one[rows, -shared:] + weight * other[rows, :shared]
        np.testing.assert_allclose(found[:, alone:], blended, atol=tolerance)


def tile_features(stack, weights, left, top, output):
    """Features of the tile of 160 m with this corner, read by rasterio alone."""
    values = []
    for one in stack.acquisitions:
        with rasterio.open(one.bands[0].path) as file:
            values.append(file.read(window=from_bounds(left, top - 160, left + 160, top, file.transform)))
    data = {"s2": np.stack(values)[None].astype(np.float32), "s2_dates": np.array([["2021-01-10", "2021-04-10"]])}
    assert data["s2"].shape == (1, 2, 10, 16, 16)
    return direct(weights, data, 20, output)[0]


def assert_same_where_both(one, other, scale):
    """Compares two results on the ground that they share."""
    (a, transform, box), (b, _, second) = read(one), read(other)
    left, bottom = max(box.left, second.left), max(box.bottom, second.bottom)
    right, top = min(box.right, second.right), min(box.top, second.top)
    parts = []
    for values, bounds in ((a, box), (b, second)):
        rows = slice(round((bounds.top - top) / transform.a), round((bounds.top - bottom) / transform.a))
        columns = slice(round((left - bounds.left) / transform.a), round((right - bounds.left) / transform.a))
        parts.append(values[:, rows, columns])
    assert parts[0].shape[1] * parts[0].shape[2] > 500
    np.testing.assert_array_equal(np.isnan(parts[0]), np.isnan(parts[1]))
    np.testing.assert_allclose(parts[0], parts[1], atol=scale * np.nanstd(parts[0]))


def test_the_result_depends_neither_on_windows_nor_on_bounds_nor_on_batches(tmp_path, scene, monkeypatch):
    stack, weights = scene
    make = functools.partial(quiet, {"s2": stack}, weights, patch_size=20, resolution=10, tile=160)
    make(tmp_path / "whole.tif")
    monkeypatch.setattr(tiles, "MOST_CELLS", 2)
    make(tmp_path / "windows.tif", batch=1)
    make(tmp_path / "shifted.tif", bounds=(LEFT + 130, TOP - 680, LEFT + 820, TOP - 210))
    assert_same_where_both(tmp_path / "whole.tif", tmp_path / "windows.tif", TOLERANCE)
    # Context beyond the bounds is what the rasters have: there is no border of bounds.
    assert_same_where_both(tmp_path / "whole.tif", tmp_path / "shifted.tif", TOLERANCE)
    assert read(tmp_path / "shifted.tif")[0].shape == (64, 47, 69)


def test_devices_share_a_batch(tmp_path, scene):
    stack, weights = scene
    assert jax.local_device_count() >= 4
    make = functools.partial(quiet, {"s2": stack}, weights, patch_size=20, resolution=20, tile=160)
    make(tmp_path / "one.tif", batch=4)
    make(tmp_path / "four.tif", batch=3, devices=4)
    assert_same_where_both(tmp_path / "one.tif", tmp_path / "four.tif", TOLERANCE)
    with pytest.raises(ValueError, match=r"--devices 99: this machine has \d+ \(cpu\)"):
        make(tmp_path / "more.tif", devices=99)


def test_edges_are_whole(tmp_path, scene):
    """73 x 91 pixels are no whole number of patches nor of cores."""
    stack, weights = scene
    result = quiet({"s2": stack}, weights, tmp_path / "d.tif", patch_size=20, resolution=10, tile=160)
    features, _, bounds = read(result.output)
    assert features.shape == (64, 73, 91) and np.isfinite(features).all()
    assert (bounds.left, bounds.top) == (LEFT, TOP) and (bounds.right, bounds.bottom) == (LEFT + 910, TOP - 730)
    image, *_ = read(result.input)
    assert image.shape == (3, 73, 91) and image.dtype == np.uint8 and image.min() >= 1


def test_a_marked_pixel_stays_in_its_place(tmp_path):
    values = np.full((1, 10, 64, 64), 1500)
    values[:, :, 29, 41] = 300
    weights = model("s2")
    stack = write_stack(tmp_path, "s2", 64, 64, dates=1, values=values)
    quiet({"s2": stack}, weights, tmp_path / "d.tif", patch_size=20, resolution=10, tile=160)
    flat = write_stack(tmp_path / "flat", "s2", 64, 64, dates=1, values=np.full((1, 10, 64, 64), 1500))
    quiet({"s2": flat}, weights, tmp_path / "f.tif", patch_size=20, resolution=10, tile=160)
    own = slice(32, None)  # the sub-patch's own features, which know their patch alone
    change = np.abs(read(tmp_path / "d.tif")[0][own] - read(tmp_path / "f.tif")[0][own]).max(axis=0)
    assert np.unravel_index(change.argmax(), change.shape) == (29, 41)
    assert {(i // 2, j // 2) for i, j in np.argwhere(change > 1e-3)} == {(14, 20)}
    image, *_ = read(tmp_path / "d_input.tif")
    assert np.unravel_index(image[0].argmin(), image.shape[1:]) == (29, 41)


def test_what_is_invalid_in_is_nodata_out(tmp_path, scene):
    _, weights = scene
    values = np.stack([fake_values(10, 73, 91, date) for date in range(2)])
    values[0, :, :, :50] = 0  # half of the first date
    values[:, :, 20:60, 10:30] = 0  # a hole, of more than a tile's core
    values[:, :, 5, 70] = 0  # a pixel
    stack = write_stack(tmp_path, "s2", 73, 91, values=values)
    quiet({"s2": stack}, weights, tmp_path / "d.tif", patch_size=20, resolution=10, tile=160)
    features, *_ = read(tmp_path / "d.tif")
    missing = np.isnan(features)
    assert (missing == missing[0]).all()
    np.testing.assert_array_equal(missing[0], (values[:, 0] == 0).all(axis=0))
    image, *_ = read(tmp_path / "d_input.tif")
    np.testing.assert_array_equal(image.max(axis=0) == 0, missing[0])
    # What is stored beneath invalid pixels has no part.
    quiet({"s2": stack}, weights, tmp_path / "p.tif", patch_size=20, resolution=20, tile=160)
    patches, *_ = read(tmp_path / "p.tif")
    seen = (values[:, 0] != 0).any(axis=0)
    expected = [[seen[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].any() for j in range(46)] for i in range(37)]
    np.testing.assert_array_equal(~np.isnan(patches[0]), expected)


def test_pitfall_18_nan_in_a_band_hides_its_pixel_and_no_other(tmp_path):
    """As a pixel that is nodata in all bands: the rest of its patch and of its tile does not change."""
    found = []
    for name, hidden, bands in (("nan", np.nan, 3), ("nodata", -9999, slice(None))):
        for date in range(2):
            values = fake_values(10, 40, 40, date).astype(np.float32)
            values[bands, 7:9, 11 : (20, 17)[date]] = hidden
            place = Affine(10, 0, LEFT, 0, -10, TOP)
            write(tmp_path / name / f"2021{date + 1:02}10.tif", values, place, CRS, nodata=-9999)
        made = model("s2")
        quiet({"s2": tmp_path / name}, made, tmp_path / f"{name}.tif", patch_size=20, resolution=10, tile=160)
        found.append(read(tmp_path / f"{name}.tif")[0])
    np.testing.assert_array_equal(*found)
    assert {tuple(place) for place in np.argwhere(np.isnan(found[0][0]))} == {
        (row, column) for row in (7, 8) for column in range(11, 17)
    }


def test_dates_without_a_valid_pixel_cost_nothing_and_change_nothing(tmp_path, scene):
    """Eight dates of which six are clouds, against the two alone."""
    _, weights = scene
    clear = write_stack(tmp_path / "clear", "s2", 40, 40, dates=2, seed=1)
    cloudy = write_stack(tmp_path / "cloudy", "s2", 40, 40, dates=4, seed=2, values=np.zeros((4, 10, 40, 40)))
    both = Stack("s2", tuple(sorted(clear.acquisitions + cloudy.acquisitions[2:], key=lambda one: one.day)))
    for name, stack in (("clear", clear), ("both", both)):
        quiet({"s2": stack}, weights, tmp_path / f"{name}.tif", patch_size=20, resolution=10, tile=160)
    assert_same_where_both(tmp_path / "clear.tif", tmp_path / "both.tif", TOLERANCE)


def test_sensors_of_other_pixels_and_places_join(tmp_path):
    """Sentinel-2 and an image of 1 m that covers the right half, whose pixels do not lie on those of Sentinel-2."""
    weights = model("s2", "spot")
    s2 = write_stack(tmp_path, "s2", 60, 60, dates=1)
    spot = write_stack(tmp_path, "spot", 600, 300, left=LEFT + 300.25, top=TOP + 0.25)
    box = (LEFT + 200, TOP - 600, LEFT + 500, TOP)
    make = functools.partial(quiet, {"s2": s2, "spot": spot}, weights, patch_size=20, resolution=10, tile=160)
    make(tmp_path / "s2.tif", bounds=box)
    make(tmp_path / "spot.tif", bounds=box, output_modality="spot")
    ours, theirs = read(tmp_path / "s2.tif")[0], read(tmp_path / "spot.tif")[0]
    # The grid is that of the finest pixels, so that the last row reaches beyond Sentinel-2.
    assert np.isfinite(ours[:, :-1]).all() and np.isnan(ours[:, -1]).all()
    # Pixels of which the image has nothing have no features of its sub-patches.
    assert np.isnan(theirs[:, :, :10]).all() and np.isfinite(theirs[:, :-1, 11:]).all()
    alone = tmp_path / "alone.tif"
    quiet({"s2": s2}, weights, alone, patch_size=20, resolution=10, tile=160, bounds=box)
    assert np.abs(ours[:, :60, 20:30] - read(alone)[0][:, :60, 20:30]).mean() > 0.01 * np.nanstd(ours)


def test_a_context_sensor_has_one_value_for_each_tile(tmp_path):
    weights = model("s2", "modis")
    s2 = write_stack(tmp_path, "s2", 60, 60, dates=1)
    modis = write_stack(tmp_path, "modis", 8, 8, dates=1, left=LEFT - 500, top=TOP + 500)
    make = functools.partial(quiet, patch_size=20, resolution=20, tile=160)
    make({"s2": s2, "modis": modis}, weights, tmp_path / "both.tif")
    make({"s2": s2}, weights, tmp_path / "s2.tif")
    both, alone = read(tmp_path / "both.tif")[0], read(tmp_path / "s2.tif")[0]
    assert np.isfinite(both).all() and np.abs(both - alone).mean() > 0.01 * alone.std()


@pytest.fixture(scope="module")
def floats(tmp_path_factory, scene):
    """The features of the scene."""
    path = tmp_path_factory.mktemp("floats") / "float.tif"
    return quiet({"s2": scene[0]}, scene[1], path, patch_size=20, resolution=10, tile=160).output


@pytest.mark.parametrize(("dtype", "kind"), [("int8", np.int8), ("float16", np.float16)])
def test_encodings_are_close_to_floats(tmp_path, scene, floats, dtype, kind):
    from anysat_jax.scenes.outputs import read_encoded

    stack, weights = scene
    quiet({"s2": stack}, weights, tmp_path / "small.tif", patch_size=20, resolution=10, tile=160, dtype=dtype)
    expected, *_ = read(floats)
    with rasterio.open(tmp_path / "small.tif") as file:
        assert file.dtypes[0] == dtype and kind(0).dtype == file.read(1).dtype
    decoded, transform, _ = read_encoded(tmp_path / "small.tif")
    assert transform == read(floats)[1]
    error = np.abs(decoded - expected).mean() / expected.std()
    assert error < (0.05 if dtype == "int8" else 1e-3)


def test_components(tmp_path, scene, floats):
    from anysat_jax.scenes.outputs import read_encoded

    stack, weights = scene
    make = functools.partial(quiet, {"s2": stack}, weights, patch_size=20, resolution=10, tile=160)
    make(tmp_path / "pca.tif", components=3, pca=True)
    make(tmp_path / "first.tif", components=3)
    expected = read(floats)[0]
    np.testing.assert_array_equal(read(tmp_path / "first.tif")[0], expected[:3])
    parts, *_ = read_encoded(tmp_path / "pca.tif")
    spread = parts.reshape(3, -1).var(axis=1)
    # Fitted on a sample, so not the largest variance to the last digit.
    best = np.linalg.eigvalsh(np.cov(expected.reshape(64, -1)))[::-1][:3]
    np.testing.assert_allclose(spread, best, rtol=0.2)


def test_the_input_as_an_image_is_in_natural_colour(tmp_path):
    """Fields of red and of blue: B4 and B2 of Sentinel-2."""
    values = np.full((1, 10, 40, 40), 500)
    values[:, 2, :, :20], values[:, 0, :, 20:] = 3000, 3000
    stack = write_stack(tmp_path, "s2", 40, 40, dates=1, values=values)
    quiet({"s2": stack}, model("s2"), tmp_path / "d.tif", patch_size=20, resolution=10, tile=160)
    image = read(tmp_path / "d_input.tif")[0].astype(int)
    left, right = image[:, :, :20].mean(axis=(1, 2)), image[:, :, 20:].mean(axis=(1, 2))
    assert left[0] > left[1] + 100 and right[2] > right[1] + 100


REFUSED = {
    "resolution": (
        dict(resolution=15),
        r"--resolution 15 is no size .* possible are 10 \(sub-patches of s2\) and 20 \(",
    ),
    "modality": (dict(output_modality="s1"), "--output-modality s1: the request has s2; choose one of them"),
    "patch": (dict(patch_size=15, tile=None), "a patch of 15 m is not a whole number of 's2' pixels"),
    "tile": (dict(tile=130), "a patch of 20 m does not divide the tile"),
    "components": (dict(components=65), "--components 65: a pixel has 64 features; give 1 to 64"),
    "bounds": (dict(bounds=(0, 0, 100, 100)), "no common area: the given bounds covers"),
    "normalise": (dict(normalise="pastis"), "normalise='pastis' has no statistics of 's2'"),
    "crs": (dict(crs="EPSG:4326"), "EPSG:4326.*expected one in metres"),
    "no crs": (dict(crs=""), "^'' is not a coordinate system"),
    "bounds in degrees": (dict(bounds=(9, 48, 10, 49)), r"the given bounds covers 9,48,10,49 and s2 .*EPSG:32632\)"),
    "bounds of the world": (dict(bounds=(0, 0, 2e7, 2e7)), "--bounds 0,0,20000000,20000000 are more than 100 times"),
    "no patch": (dict(patch_size=0), "--patch-size 0: expected a number above 0"),
    "no batch": (dict(batch=0), "--batch 0: expected a number above 0"),
    "no device": (dict(devices=0), "--devices 0: expected a number above 0"),
    "not a number": (dict(tile=float("nan")), "--tile nan: expected a number above 0"),
    "output": (dict(output="nowhere/emb.tif"), "there is no folder .*nowhere for emb.tif: make it first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, scene, name):
    stack, weights = scene
    options, message = REFUSED[name]
    options = dict(patch_size=20, resolution=10, tile=160) | options
    with pytest.raises((ValueError, OSError), match=message) as caught:
        quiet({"s2": stack}, weights, tmp_path / options.pop("output", "emb.tif"), **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_sensor_that_the_weights_lack_is_refused(tmp_path, scene):
    with pytest.raises(ValueError, match="--l8: neither an option nor a sensor of the weights, which have s2"):
        quiet({"l8": "x"}, scene[1], tmp_path / "emb.tif", patch_size=20, resolution=10)


def test_values_in_other_units_are_refused(tmp_path):
    stack = write_stack(tmp_path, "s2", 40, 40)
    bands = {name: dataclasses.replace(band, scale=1e-4) for name, band in enumerate(stack.acquisitions[0].bands)}
    scaled = dataclasses.replace(stack.acquisitions[0], bands=tuple(bands.values()))
    with pytest.raises(ValueError, match="'s2' is not in the units of the weights' stat.*reflectance of 0 to 1"):
        quiet({"s2": Stack("s2", (scaled,))}, model("s2"), tmp_path / "emb.tif", patch_size=20, resolution=10, tile=160)
    assert not (tmp_path / "emb.tif").exists()


def test_a_scene_without_a_valid_pixel_is_refused(tmp_path):
    stack = write_stack(tmp_path, "s2", 40, 40, values=np.zeros((2, 10, 40, 40)))
    with pytest.raises(ValueError, match=r"no pixel of s2 is valid within the bounds .* nodata values and masks"):
        quiet({"s2": stack}, model("s2"), tmp_path / "emb.tif", patch_size=20, resolution=10, tile=160)


def test_a_zone_border_inside_the_request(tmp_path):
    """The other zone's part is warped: both parts have features, said in a note."""
    from rasterio.warp import transform as project

    first = write_stack(tmp_path / "32", "s2", 60, 60, dates=1, left=LEFT + 200_000)
    (x,), (y,) = project(CRS, "EPSG:32633", [LEFT + 200_600], [TOP - 300])
    second = write_stack(tmp_path / "33", "s2", 40, 40, dates=1, left=round(x - 50, -1), top=round(y + 200, -1),
                         crs="EPSG:32633")  # fmt: skip
    both, lines = Stack("s2", first.acquisitions + second.acquisitions), []
    result = embed({"s2": both}, model("s2"), tmp_path / "emb.tif", patch_size=20, resolution=10, tile=160, batch=8,
                   say=lines.append)  # fmt: skip
    features, transform, bounds = read(result.output)
    assert any("2 coordinate systems: EPSG:32633 are warped onto EPSG:32632" in line for line in lines)
    assert bounds.right > LEFT + 200_600 + 300
    column, row = (round(v) for v in ~transform @ (LEFT + 200_600, TOP - 300))
    assert np.isfinite(features[:, row - 10 : row + 10, column - 20 : column + 20]).all()

"""The page to look at outputs: what is in it, and what is refused."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.warp import Resampling, reproject

from anysat_jax.scenes import looking, outputs, view
from anysat_jax.scenes.quicklook import write_quicklook
from tests.conftest import REPOSITORY
from tests.scenes import fake_outputs as fakes
from tests.scenes.view_pages import features_of, pixels, scene_of, shown


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return fakes.write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def page(files):
    assert view.main([str(path) for path in files.values()]) == 0
    return files["embedding"].with_suffix(".html")


@pytest.fixture(scope="module")
def scene(page):
    return scene_of(page.read_text())


# ---------------------------------------------------------------- what is in the page


def test_the_page_loads_nothing_and_escapes_names(page, files, tmp_path):
    text = page.read_text()
    assert not re.search(r"https?://|\bsrc=|@import|<link(?! rel=\"icon\" href=\"data:)", text)
    assert "default-src 'none'" in text
    assert "<b>" not in text and "field &lt;b&gt;" in text and "field \\u003cb\\u003e" in text
    assert fakes.NEVER not in text  # a legend has what is on the map
    assert "Shown are" not in text


def test_panels_are_the_input_and_the_outputs_in_order(page, scene):
    titles = re.findall(r"<figcaption><strong>(.*?)</strong>\s*<span class=\"soft\">(.*?)</span>", page.read_text())
    assert titles == [
        ("Input", "s2 B4, B3, B2"), ("emb", "first three principal components of 24"), ("cover", "4 classes"),
        ("mass", "Mg/ha"), ("odds", "probability"),
    ]  # fmt: skip
    assert (scene["rows"], scene["columns"], scene["width"], scene["height"]) == (40, 60, 600, 400)
    assert (scene["crs"], scene["left"], scene["top"]) == ("EPSG:32632", 500_000, 5_100_000)


def test_maps_have_their_numbers_colours_and_nodata(scene):
    panels, hole = scene["panels"], fakes.hole(40, 60)
    classes = fakes.class_map().astype(float)
    classes[hole] = np.nan
    np.testing.assert_array_equal(shown(panels[2], scene), classes)
    assert panels[2]["names"] == dict(zip("012", fakes.CLASSES))
    np.testing.assert_allclose(shown(panels[3], scene), fakes.numbers(), atol=1e-3)
    for band, share in enumerate((fakes.numbers() / 100, 1 - fakes.numbers() / 100)):
        np.testing.assert_allclose(shown(panels[4], scene, band), share, atol=1e-4)
    for panel in panels:
        for layer in panel["layers"]:
            np.testing.assert_array_equal(pixels(layer)[..., 3], np.where(hole, 0, 255))
    np.testing.assert_array_equal(pixels(panels[0]["layers"][0])[..., :3], np.moveaxis(fakes.picture(), 0, -1))
    palette = np.asarray(fakes.COLOURS)[fakes.class_map()[~hole]]
    np.testing.assert_array_equal(pixels(panels[2]["layers"][0])[~hole, :3], palette)


@pytest.mark.parametrize(
    ("dtype", "options"), [("float32", {}), ("float16", {}), ("int8", {}), ("int8", {"components": 6, "pca": True})]
)
def test_cosines_of_the_page_are_those_of_the_file(tmp_path, dtype, options):
    path = fakes.write_embedding(tmp_path / "emb.tif", fakes.features(), dtype, **options)
    scene = scene_of(view.make_page([path]))
    found, valid = features_of(scene["search"], scene)
    stored = np.moveaxis(outputs.read_encoded(path)[0], 0, -1).astype(np.float64)
    np.testing.assert_array_equal(valid, ~fakes.hole(40, 60))
    np.testing.assert_array_equal(valid, np.isfinite(stored).all(-1))
    errors = cosines(found[valid]) - cosines(stored[valid])
    # Of steps of int8.
    assert np.abs(errors).max() < 0.012 and np.square(errors).mean() < 0.003**2


def cosines(features):
    """Of every 7th pixel with every 11th."""
    units = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return units[::7] @ units[::11].T


def test_strips_do_not_change_the_components(tmp_path, monkeypatch):
    path = fakes.write_embedding(tmp_path / "emb.tif", fakes.features())
    with looking.open_output(path) as output:
        whole = looking.read_components(output, output.frame)
        monkeypatch.setattr(looking, "STRIP_BYTES", 4 * 24 * 60 * 7)  # 7 rows
        strips = looking.read_components(output, output.frame)
    np.testing.assert_array_equal(strips.valid, whole.valid)
    np.testing.assert_allclose(strips.values, whole.values, atol=1e-6)


def test_a_large_scene_is_decimated_in_place_as_the_page_states(tmp_path, monkeypatch):
    """A third of the pixels in each direction, of which each is the middle one of nine."""
    values = np.arange(42 * 60, dtype=np.float32).reshape(42, 60)
    path = fakes.write(tmp_path / "mass.tif", values[None])
    monkeypatch.setattr(view, "MOST_PIXELS", 300)
    page = view.make_page([path])
    assert "Shown are 20 x 14 of the scene&#39;s 60 x 42 pixels, one for every 30 m." in page or (
        "Shown are 20 x 14 of the scene's 60 x 42 pixels, one for every 30 m." in page
    )
    scene = scene_of(page)
    assert (scene["rows"], scene["columns"], scene["width"], scene["height"]) == (14, 20, 600, 420)
    np.testing.assert_allclose(shown(scene["panels"][0], scene), values[1::3, 1::3], atol=0.05)


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:32631", "EPSG:4326"])
def test_outputs_of_other_grids_are_warped_onto_the_first(tmp_path, files, crs):
    other, values = tmp_path / "other.tif", np.arange(1, 31 * 47 + 1, dtype=np.float32).reshape(31, 47)
    bounds = rasterio.warp.transform_bounds("EPSG:32632", crs, 500_103, 5_099_650, 500_573, 5_099_970)
    place = rasterio.transform.from_bounds(*bounds, 47, 31)
    with rasterio.open(
        other, "w", driver="GTiff", dtype="float32", count=1, height=31, width=47, crs=crs, transform=place,
        nodata=np.nan,
    ) as file:  # fmt: skip
        file.write(values, 1)
    scene = scene_of(view.make_page([files["numbers"], other]))
    expected = np.full((40, 60), np.nan, np.float32)
    first = rasterio.Affine(10, 0, 500_000, 0, -10, 5_100_000)
    reproject(
        values, expected, src_transform=place, src_crs=crs, dst_transform=first, dst_crs="EPSG:32632",
        src_nodata=np.nan, dst_nodata=np.nan, resampling=Resampling.nearest,
    )  # fmt: skip
    assert 0.3 < np.isfinite(expected).mean() < 0.9
    np.testing.assert_allclose(shown(scene["panels"][1], scene), expected, atol=0.05)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_there_is_no_data_beyond_a_map_without_nodata(dtype, tmp_path, files):
    part = tmp_path / "part.tif"
    place = rasterio.Affine(10, 0, 500_200, 0, -10, 5_100_000)
    with rasterio.open(
        part, "w", driver="GTiff", dtype=dtype, count=1, height=40, width=20, crs=fakes.CRS, transform=place
    ) as file:
        file.write(np.zeros((1, 40, 20), dtype))
    scene = scene_of(view.make_page([files["numbers"], part]))
    expected = np.full((40, 60), np.nan)
    expected[:, 20:40] = 0
    np.testing.assert_array_equal(shown(scene["panels"][1], scene), expected)


def test_an_output_of_finer_pixels_on_the_same_ground_is_read_in_place(tmp_path, files):
    fine = np.kron(fakes.class_map(), np.ones((4, 4), np.uint8))
    place = rasterio.Affine(2.5, 0, 500_000, 0, -2.5, 5_100_000)
    with rasterio.open(
        tmp_path / "fine.tif", "w", driver="GTiff", dtype="uint8", count=1, height=160, width=240, crs=fakes.CRS,
        transform=place, nodata=255,
    ) as file:  # fmt: skip
        file.write(fine, 1)
        file.update_tags(CLASS_0="a", CLASS_1="b", CLASS_2="c")  # without a colour table
    scene = scene_of(view.make_page([files["classes"], tmp_path / "fine.tif"]))
    np.testing.assert_array_equal(*(shown(panel, scene) for panel in scene["panels"]))
    assert len(np.unique(pixels(scene["panels"][1]["layers"][0]).reshape(-1, 4), axis=0)) == 4


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return fakes.write_scene(tmp_path_factory.mktemp("stores"), ".zarr")


@pytest.mark.parametrize("most", [10**6, 300])
def test_zarr_stores_have_the_page_of_rasters(most, files, stores, monkeypatch):
    monkeypatch.setattr(view, "MOST_PIXELS", most)
    assert view.make_page(list(stores.values())) == view.make_page(list(files.values()))


@pytest.mark.parametrize("kind", ["embedding", "classes"])
def test_a_zarr_store_elsewhere_is_read_where_it_lies(kind, tmp_path, files, stores):
    place = dict(left=500_123.0, top=5_099_876.0)
    first = fakes.write(tmp_path / "first.tif", np.ones((1, 50, 40), np.float32), **place)
    scenes = [scene_of(view.make_page([first, made[kind]])) for made in (files, stores)]
    assert scenes[0] == scenes[1]
    alpha = pixels(scenes[0]["panels"][1]["layers"][0])[..., 3]
    assert alpha[0, 0] == 255 and (alpha[-22:] == 0).all() and alpha[-23].any()


def test_a_zarr_store_of_another_coordinate_system_is_refused(tmp_path, files, stores, capsys):
    first = tmp_path / "first.tif"
    left, _, _, top = rasterio.warp.transform_bounds(fakes.CRS, "EPSG:32631", 500_000, 5_099_600, 500_600, 5_100_000)
    raster(first, crs="EPSG:32631", place=(10, 0, left, 0, -10, top))
    assert view.main([str(first), str(stores["numbers"])]) == 1
    said = capsys.readouterr().err
    assert re.search(r"mass\.zarr is in EPSG:32632, and the first output in EPSG:32631: give the Zarr", said), said


@pytest.mark.parametrize(
    "make", [pathlib.Path.touch, pathlib.Path.mkdir, zarr.create_group], ids=lambda one: one.__name__
)
def test_what_is_not_an_output_in_zarr_is_refused(make, tmp_path, capsys):
    make(tmp_path / "bad.zarr")
    assert view.main([str(tmp_path / "bad.zarr")]) == 1
    said = capsys.readouterr().err
    assert (
        "bad.zarr" in said and len(said.splitlines()) == 1 and re.search("expected a GeoTIFF|give an output", said)
    ), said


# ---------------------------------------------------------------- bad input


def raster(path, crs="EPSG:32632", place=(10, 0, 5e5, 0, -10, 5.1e6), dtype="float32", **tags):
    with rasterio.open(
        path, "w", driver="GTiff", dtype=dtype, count=4, height=8, width=8, crs=crs, transform=rasterio.Affine(*place)
    ) as file:
        file.write(np.ones((4, 8, 8), dtype))
        file.update_tags(**tags)


def cut(path):
    raster(path)
    path.write_bytes(path.read_bytes()[:-500])


MISTAKES = {
    "missing": (lambda path: None, "no .*bad.tif; expected a GeoTIFF or Zarr that anysat"),
    "a text": (lambda path: path.write_text("hello"), "bad.tif cannot be read"),
    "cut off": (cut, "bad.tif cannot be read"),
    "no place": (lambda path: raster(path, crs=None), "bad.tif has no coordinate system"),
    "rotated": (lambda path: raster(path, place=(7, 7, 5e5, 7, -7, 5.1e6)), "bad.tif is not north up"),
    "bottom up": (lambda path: raster(path, place=(10, 0, 5e5, 0, 10, 5e6)), "bad.tif is not north up"),
    "no scale": (lambda path: raster(path, dtype="int8"), "int8 without the tag ANYSAT_ENCODING"),
    "other encoding": (lambda path: raster(path, ANYSAT_ENCODING="{'a'}"), "bad.tif.* not an encoding"),
    "elsewhere": (lambda path: raster(path, place=(10, 0, 9e5, 0, -10, 5.1e6)), "bad.tif .* no common area"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_one_sentence(mistake, files, tmp_path, capsys):
    make, message = MISTAKES[mistake]
    bad, page = tmp_path / "bad.tif", tmp_path / "page.html"
    make(bad)
    assert view.main([str(files["numbers"]), str(bad), "--out", str(page)]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and len(said.splitlines()) == 1 and said.startswith("anysat view: "), said
    assert not page.exists()


@pytest.mark.parametrize(("crs", "size"), [("EPSG:4326", 0.1), ("EPSG:2263", 10)], ids=["degrees", "feet"])
def test_the_first_output_must_be_in_metres(crs, size, tmp_path, capsys):
    raster(tmp_path / "bad.tif", crs=crs, place=(size, 0, 8, 0, -size, 46))
    assert view.main([str(tmp_path / "bad.tif")]) == 1
    assert f"bad.tif is in {crs}, whose unit is not the metre: warp it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="whose unit is not the metre"):
        write_quicklook(tmp_path / "a.png", tmp_path / "bad.tif")


def test_only_a_page_is_replaced(files, tmp_path, capsys):
    page = tmp_path / "page.html"
    command = [str(files["classes"]), "--out", str(page)]
    assert view.main(command) == view.main(command) == 0
    kept = files["numbers"].read_bytes()
    assert view.main([str(files["classes"]), "--out", str(files["numbers"])]) == 1
    assert "mass.tif exists and is not a page of anysat view" in capsys.readouterr().err
    assert files["numbers"].read_bytes() == kept
    for out in (tmp_path / "none" / "page.html", tmp_path):
        assert view.main([str(files["classes"]), "--out", str(out)]) == 1
        said = capsys.readouterr().err
        assert f"{out} cannot be written" in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_commands_of_the_page_on_scenes_run(files, monkeypatch):
    monkeypatch.chdir(files["classes"].parent)
    commands = re.findall(r"`anysat view ([^`]+\.tif[^`]*)`", (REPOSITORY / "docs" / "SCENES.md").read_text())
    assert commands
    for command in commands:
        assert view.main(command.split()) == 0


def test_the_command_runs_as_a_module(files, tmp_path):
    words = [sys.executable, "-m", "anysat_jax.scenes.view", str(files["classes"]), "--out", str(tmp_path / "a.html")]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout.strip().endswith("a.html"), ran.stderr

"""The page to look at outputs: what is in it, its script under node, and a browser that clicks."""

import base64
import gzip
import html
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import zarr
from matplotlib import image
from rasterio.warp import Resampling, reproject

from anysat_jax.scenes import looking, outputs, view
from anysat_jax.scenes.quicklook import write_quicklook
from tests.conftest import REPOSITORY
from tests.report.test_page_in_browser import FLAGS, NAMES
from tests.scenes import fake_outputs as fakes


def scene_of(page):
    """The data of the page's script."""
    return json.loads(re.search(r'<script type="application/json" id="scene">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(text, dtype):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype)


def pixels(layer):
    """A picture of the page, (H, W, 4) of uint8."""
    return np.rint(255 * image.imread(io.BytesIO(base64.b64decode(layer["picture"])))).astype(np.uint8)


def shown(panel, scene, band=0):
    """The numbers of a panel, NaN where the page has no data."""
    layer = panel["layers"][band]
    steps = unpacked(layer["values"], "<u2").reshape(scene["rows"], scene["columns"])
    return np.where(steps > 0, layer["low"] + layer["step"] * (steps - 1.0), np.nan)


def features_of(search, scene):
    """Directions of the embedding, as the page has them: (H, W, k + 1), up to a rotation."""
    stored = unpacked(search["values"], np.int8).reshape(scene["rows"], scene["columns"], -1)
    components = stored * np.asarray(search["steps"]) + search["lean"]
    rest = np.sqrt(max(search["base"] - np.square(search["lean"]).sum(), 0))
    return np.concatenate([components, np.full((*stored.shape[:2], 1), rest)], -1), stored[..., 0] != -128


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


# ---------------------------------------------------------------- the script, under node


def run_node(page, program):
    """What a program prints that has the computing part of the page and its `scene`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, which runs the page's script")
    compute = re.search(r'<script id="compute">(.*?)</script>', page, re.DOTALL)[1]
    read = "const scene = JSON.parse(require('fs').readFileSync(0)), search = scene.search;"
    ran = subprocess.run(
        [node, "-e", f"{compute}\n{read}\n{program}"], input=json.dumps(scene_of(page)), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


UNPACK = "search.values = new Int8Array(require('zlib').gunzipSync(Buffer.from(search.values, 'base64')));"


def test_the_script_finds_the_most_similar_places(page):
    text, index = page.read_text(), 20 * 60 + 30
    program = f"""{UNPACK}
    const cosines = similarities(search, lengths(search), {index});
    const places = bestPlaces(cosines, scene.columns, {index}, 10, 3), glow = heat(cosines);
    console.log(JSON.stringify([[...cosines], places, [...glow]]));"""
    found, places, glow = run_node(text, program)
    features, valid = features_of(scene_of(text)["search"], scene_of(text))
    units = features / np.linalg.norm(features, axis=-1, keepdims=True)
    expected = np.where(valid, units @ units[20, 30], -2).reshape(-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[index] == pytest.approx(1)
    # Independent greedy search.
    order, chosen = np.argsort(-expected, kind="stable"), [index]
    for one in order:
        if len(chosen) < 11 and all(np.hypot(*(np.subtract(divmod(one, 60), divmod(c, 60)))) >= 3 for c in chosen):
            chosen.append(int(one))
    np.testing.assert_allclose(expected[places], expected[chosen[1:]], atol=1e-5)
    assert len(places) == 10 and valid.reshape(-1)[places].all()
    glow = np.reshape(glow, (-1, 4))
    assert (glow[~valid.reshape(-1)] == 0).all() and (glow[valid.reshape(-1), 3] > 0).all()
    assert glow[index].tolist() == [255, 230, 60, 230]
    middle = np.median(expected[valid.reshape(-1)])
    assert (glow[expected < middle - 2e-3, 0] == 0).all() and (glow[expected > middle + 3e-3, 0] > 0).all()


def test_a_scene_of_one_valid_pixel_has_no_similar_place(tmp_path):
    values = np.full((5, 5, 4), np.nan, np.float32)
    values[2, 2] = 1, 2, 3, 4
    page = view.make_page([fakes.write_embedding(tmp_path / "emb.tif", values)])
    program = f"""{UNPACK} const cosines = similarities(search, lengths(search), 12);
    console.log(JSON.stringify([bestPlaces(cosines, 5, 12, 10, 2), [...heat(cosines)].slice(48, 52)]));"""
    places, colour = run_node(page, program)
    assert places == [] and colour[3] > 0


def test_a_million_pixels_are_searched_within_a_second(page):
    program = """
    const count = 32, columns = 1000, values = new Int8Array(1e6 * count).map((_, i) => (i * 2654435761) % 251 - 125);
    const steps = Array(count).fill(0.001), lean = Array(count).fill(0.01),
    big = { values, count, steps, lean, base: 0.9 };
    const sizes = lengths(big), began = performance.now(), cosines = similarities(big, sizes, 1234);
    const places = bestPlaces(cosines, columns, 1234, 10, 40); heat(cosines);
    console.log(JSON.stringify([performance.now() - began, places.length]));"""
    milliseconds, count = run_node(page.read_text(), program)
    assert count == 10 and milliseconds < 1000


# ---------------------------------------------------------------- in a browser

# Clicks as a mouse does, waits until the page has answered, and leaves what it sees in the page.
DRIVER = """
<script>
const act = (canvas, type, x, y, pointerId = 1) => {
  const box = canvas.getBoundingClientRect(), at = { clientX: box.left + x, clientY: box.top + y };
  canvas.dispatchEvent(new PointerEvent(type, { ...at, pointerId, bubbles: true, button: type === "pointermove" ? -1 : 0 }));
};
const texts = selector => [...document.querySelectorAll(selector)].map(element => element.textContent);
// Where a pixel of the scene is on a canvas.
const spot = (canvas, column, row) => onCanvas(canvas, { x: (column + 0.5) * pixel.x, y: (row + 0.5) * pixel.y });
const glows = canvas => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].reduce((a, b) => a + b, 0);
const drawn = () => new Promise(done => setTimeout(done, 200));
async function drive() {
  const seen = {}, [first, second] = document.querySelectorAll("canvas");
  const click = (canvas, column, row) => ["pointermove", "pointerdown", "pointerup"].forEach(type => act(canvas, type, ...spot(canvas, column, row)));
  await drawn();
  seen.dark = glows(second);
  act(first, "pointermove", ...spot(first, 30, 20));
  seen.pointer = find("pointer").textContent;
  seen.values = texts("figure .value");
  click(second, 1, 1);
  seen.nodata = find("answer").textContent;
  click(second, 30, 20);
  await drawn();
  seen.said = find("answer").textContent;
  seen.milliseconds = Number(find("answer").dataset.milliseconds);
  seen.places = texts("#places li");
  seen.chosen = [chosen.index, ...chosen.places];
  seen.bright = glows(second);
  const metres = view.metres;
  second.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, clientX: 0, clientY: 0, bubbles: true, cancelable: true }));
  seen.zoomed = view.metres / metres;
  const before = { ...view };
  act(first, "pointerdown", 50, 50); act(first, "pointermove", 80, 60); act(first, "pointermove", 90, 60); act(first, "pointerup", 90, 60);
  seen.moved = [(before.x - view.x) / view.metres, (before.y - view.y) / view.metres];
  const apart = view.metres;
  act(first, "pointerdown", 50, 50, 1); act(first, "pointerdown", 90, 50, 2);
  act(first, "pointermove", 130, 50, 2); act(first, "pointerup", 50, 50, 1); act(first, "pointerup", 130, 50, 2);
  seen.pinched = apart / view.metres;
  seen.still = chosen.index;
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  document.querySelector("#places button").click();
  seen.centred = indexAt(view.x, view.y);
  first.focus();
  first.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  seen.entered = chosen.index;
  document.querySelectorAll("select")[0].value = "1";
  document.querySelectorAll("select")[0].dispatchEvent(new Event("change"));
  seen.band = panels[4].band;
  return seen;
}
const waiting = setInterval(() => {
  if (!document.body.dataset.ready) return;
  clearInterval(waiting);
  const write = seen => { const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen); document.body.append(out); };
  drive().then(write, error => write(String(error.stack)));
}, 20);
</script></body>"""  # noqa: E501

QT = """
import sys
from PySide6.QtCore import QTimer, QUrl
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

application, view = QApplication([]), QWebEngineView()
view.resize(1400, 1000)
view.show()
view.load(QUrl.fromLocalFile(sys.argv[1]))

def look(text):
    if text.count('id="seen"'):
        sys.stdout.buffer.write(text.encode())
        application.quit()
    else:
        QTimer.singleShot(100, lambda: view.page().toHtml(look))

view.loadFinished.connect(lambda _: view.page().runJavaScript("document.documentElement.outerHTML", look))
QTimer.singleShot(60_000, application.quit)
application.exec()
"""


def open_page(path):
    """The page's elements after its script has run, in whichever browser is there."""
    if chromium := next((found for name in NAMES if (found := shutil.which(name))), None):
        flags = [*FLAGS[:-1], "--virtual-time-budget=60000", "--window-size=1400,1000", "--dump-dom"]
        command = [chromium, *flags, f"--user-data-dir={path.parent / 'profile'}", path.as_uri()]
    elif importlib.util.find_spec("PySide6") and importlib.util.find_spec("PySide6.QtWebEngineWidgets"):
        command = [sys.executable, "-c", QT, str(path)]
    else:
        pytest.skip(f"no browser to open the page with: neither {', '.join(NAMES)} nor PySide6 with QtWebEngine")
    settings = {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | settings)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_a_click_shows_the_most_similar_places(page, scene, tmp_path):
    driven = tmp_path / "driven.html"
    driven.write_text(page.read_text().replace("</body>", DRIVER))
    seen = re.search(r'<pre id="seen">(.*?)</pre>', open_page(driven), re.DOTALL)
    assert seen, "the page did not answer"
    seen = json.loads(html.unescape(seen[1]))
    assert isinstance(seen, dict), seen
    # A pointer is at whole pixels of the screen, each of more than a metre.
    assert re.fullmatch(r"x 500,30\d y 5,099,79\d", seen["pointer"])
    mass = f"{fakes.numbers()[20, 30]:.4g}"
    odds = f"{fakes.numbers()[20, 30] / 100:.4g}"
    values = ["red 80, green 70, blue 100", "field <b>" if fakes.class_map()[20, 30] == 1 else "forest"]
    assert [seen["values"][0], seen["values"][2]] == values
    assert seen["values"][3:] == [f"{mass} Mg/ha", f"{odds} probability"]
    assert seen["values"][1].startswith("components ")
    assert "no data" in seen["nodata"]
    index, *places = seen["chosen"]
    assert index == 20 * 60 + 30 and len(places) == 10
    assert "x 500,305 y 5,099,795" in seen["said"] and seen["milliseconds"] < 1000
    features, _ = features_of(scene["search"], scene)
    units = (features / np.linalg.norm(features, axis=-1, keepdims=True)).reshape(-1, features.shape[-1])
    for rank, (place, text) in enumerate(zip(places, seen["places"], strict=True), 1):
        row, column = divmod(place, 60)
        where = f"x {500_000 + 10 * column + 5:,} y {5_100_000 - 10 * row - 5:,}"
        name = fakes.CLASSES[fakes.class_map()[row, column]]
        match = re.fullmatch(rf"{rank}\. (\d\.\d+) · {re.escape(where)} · {re.escape(name)}", text)
        assert match and float(match[1]) == pytest.approx(units[place] @ units[index], abs=2e-3), text
    assert seen["bright"] != seen["dark"]
    assert seen["zoomed"] < 0.9 and seen["moved"] == pytest.approx([40, 10], abs=1) and seen["still"] == index
    assert seen["centred"] == places[0] == seen["entered"]
    assert seen["pinched"] == pytest.approx(2, abs=0.1)  # two fingers, twice as far apart
    assert seen["band"] == 1 and not seen["wide"]


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

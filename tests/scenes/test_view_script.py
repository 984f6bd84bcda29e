"""The script of the page to look at outputs: under node, and in a browser that clicks."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from anysat_jax.scenes import view
from tests.report.test_page_in_browser import FLAGS, NAMES
from tests.scenes import fake_outputs as fakes
from tests.scenes.view_pages import features_of, scene_of


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    files = fakes.write_scene(tmp_path_factory.mktemp("scene"))
    assert view.main([str(path) for path in files.values()]) == 0
    return files["embedding"].with_suffix(".html")


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


def test_a_click_shows_the_most_similar_places(page, tmp_path):
    scene = scene_of(page.read_text())
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

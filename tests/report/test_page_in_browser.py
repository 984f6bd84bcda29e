"""The results page in a real browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import image

from anysat_jax.downstream.task import Task
from anysat_jax.report.page import write_results
from tests.report.fake_runs import BIOMASS, CROPS, TREES, summary, write_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000")
LOOK = """
<script>
window.addEventListener("load", () => {
  const seen = {
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("main *")].filter(element => !element.closest("table") && element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 80)),
    images: [...document.images].map(image => [image.getAttribute("src"), image.naturalWidth]),
  };
  parent.postMessage(seen, "*");
});
</script></body>"""  # noqa: E501

FRAME = """<!doctype html><pre id="seen"></pre><script>
onmessage = message => { document.getElementById("seen").textContent = JSON.stringify(message.data); };
</script><iframe src="look.html" width="WIDTH" height="900" style="border: 0"></iframe>"""
"""A browser's own window may refuse to be as narrow as a telephone's."""


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to open the page with: none of {', '.join(NAMES)} is installed")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with all kinds of figures, long names and a matrix of 40 classes."""
    base = tmp_path_factory.mktemp("page")
    names = tuple(f"A species with a rather long name, number {number}" for number in range(40))
    many = Task("planted", "PLANTED", "tile", "class", names, metric="macro_f1")
    contents = {
        "crops": summary(CROPS, row="A/pastis_hd_semseg/finetune"),
        "trees_with_a_name_that_never_ends_" + "x" * 90: summary(TREES, row="A/treesatai_ts/finetune"),
        "planted": summary(many),
        "biomass": summary(BIOMASS),
    }
    folders = [write_run(base / name, content) for name, content in contents.items()]
    return write_results([*folders, base / "gone"], base / "out")


def open_page(browser, address, *flags):
    """What the browser prints."""
    command = [browser, *FLAGS, f"--user-data-dir={address.parent / 'profile'}", *flags, address.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("width", [1280, 390])
def test_images_load_and_nothing_overflows(browser, page, width):
    page.with_name("look.html").write_text(page.read_text().replace("</body>", LOOK))
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    printed = open_page(browser, frame, "--window-size=1400,1000", "--dump-dom")
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', printed, re.DOTALL)[1]))
    assert seen["width"] == width
    assert seen["page"] <= width and seen["wide"] == []
    assert len(seen["images"]) == 12 and all(size > 0 for _, size in seen["images"]), seen["images"]


def test_a_screenshot_is_of_a_light_page_with_dark_text(browser, page):
    picture = page.with_name("shot.png")
    open_page(browser, page, "--window-size=1280,1200", f"--screenshot={picture}")
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[1] == 1280
    assert np.median(pixels) > 0.95 and pixels.min() < 0.3

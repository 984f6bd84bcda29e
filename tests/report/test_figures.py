"""Figures are drawn from whatever there is, without a display and without touching matplotlib's global state."""

import math

import numpy as np
import pytest
from matplotlib import image

from anysat_jax.report import figures
from anysat_jax.report.maps import Mosaic, Picture, mosaic_columns, paint_mosaic
from anysat_jax.report.page import write_page
from anysat_jax.report.tables import Score
from tests.pretrain.probe_toys import CARD

SCORES = [
    Score("Toy", "tile", "accuracy", 0.2, 0.4, headline=True),
    Score("Toy", "tile", "macro F1", 0.2, 0.4),
    Score("Toy", "dense", "mIoU", math.nan, 0.4, headline=True),
]


@pytest.fixture
def mosaic() -> Mosaic:
    rng = np.random.default_rng(0)

    def picture() -> Picture:
        features = {name: rng.standard_normal((4, 4, 8)).astype(np.float32) for name in ("random", "pretrained")}
        maps = {name: rng.integers(-1, 3, (4, 4)) for name in ("random", "pretrained", "label")}
        return Picture((40.0, 40.0), rng.random((20, 20, 3)), "aerial", features, maps)

    return Mosaic(CARD, "s2", [picture(), picture()])


def test_everything_is_drawn_and_shown_on_the_page(tmp_path, mosaic):
    csv = tmp_path / "metrics.csv"
    rows = [f"{i},{'ab'[i % 2]},10,3,{1 / (i + 1)},2,0.1" for i in range(20)]
    csv.write_text("\n".join(["step,dataset,patch_size,loss,loss_predictive,loss_contrastive,learning_rate", *rows]))
    written = figures.draw_all(tmp_path, "toy run", csv, SCORES, [mosaic])
    assert [file for file, _ in written] == ["curves.png", "probes.png", "features_toy.png"]
    page = write_page(tmp_path, "toy run", SCORES, written).read_text()
    for file, caption in written:
        assert image.imread(tmp_path / file).std() > 0.05  # not a blank page
        assert f"![{caption}]({file})" in page
    assert "| Toy | tile | accuracy | **20.0** | **40.0** | **+20.0** |" in page


def test_without_a_log_or_scores_nothing_is_drawn_and_the_page_says_so(tmp_path):
    written = figures.draw_all(tmp_path, "toy run", tmp_path / "metrics.csv", [], [])
    assert written == []
    assert "Nothing was probed." in write_page(tmp_path, "toy run", [], written).read_text()


def test_columns_of_the_mosaic_say_what_they_are(mosaic):
    columns = mosaic_columns(mosaic)
    assert [title.splitlines()[0] for title, _ in columns] == [
        "Natural colour",
        "Features, random start",
        "Features, pretrained",
        "Land cover, probe of",
        "Land cover, probe of",
        "Land cover,",
    ]
    assert all(len(images) == 2 for _, images in columns)


def test_classes_are_painted_in_the_cards_colours_and_the_unknown_white():
    painted = paint_mosaic(CARD, np.array([[0, 1], [-1, 2]]))
    np.testing.assert_allclose(255 * painted[0, 1], [0x22, 0x74, 0xA5])
    np.testing.assert_allclose(painted[1, 0], 1.0)

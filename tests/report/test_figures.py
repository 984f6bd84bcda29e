"""Figures are drawn from whatever there is, without a display and without touching matplotlib's global state."""

import math

import numpy as np
import pytest
from matplotlib import image

from anysat_jax.report import figures
from anysat_jax.report import maps as mosaic
from anysat_jax.report.maps import Album
from anysat_jax.report.page import write_page
from anysat_jax.report.tables import Score
from tests.report.toy import toy_batch, toy_features

SCORES = [
    Score("Toy", "tile", "accuracy", 0.2, 0.4, headline=True),
    Score("Toy", "tile", "macro F1", 0.2, 0.4),
    Score("Toy", "dense", "mIoU", math.nan, 0.4, headline=True),
]


@pytest.fixture
def pictures(plan):
    album, batch = Album(plan, 2), toy_batch()
    features = {"random": toy_features(0.0, batch), "pretrained": toy_features(1.0, batch)}
    dense = np.maximum(batch.labels["dense"], 0)
    album.add(batch, features, {"random": dense, "pretrained": dense})
    return album.pictures


def test_everything_is_drawn_and_shown_on_the_page(tmp_path, plan, pictures):
    csv = tmp_path / "metrics.csv"
    rows = [f"{i},{'ab'[i % 2]},10,3,{1 / (i + 1)},2,0.1" for i in range(20)]
    csv.write_text("\n".join(["step,dataset,patch_size,loss,loss_predictive,loss_contrastive,learning_rate", *rows]))
    written = figures.draw_all(tmp_path, "toy run", csv, SCORES, [(plan, pictures)])
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


def test_columns_of_the_mosaic_say_what_they_are(plan, pictures):
    columns = mosaic.mosaic_columns(plan, pictures)
    assert [title.splitlines()[0] for title, _ in columns] == [
        "Natural colour",
        "Features, random start",
        "Features, pretrained",
        "Land cover, probe of",
        "Land cover, probe of",
        "Land cover,",
    ]
    assert all(len(images) == 2 for _, images in columns)


def test_classes_are_painted_in_the_cards_colours_and_the_unknown_white(plan):
    painted = mosaic.paint(plan, np.array([[0, 1], [-1, 2]]))
    np.testing.assert_allclose(255 * painted[0, 1], [0x22, 0x74, 0xA5])
    np.testing.assert_allclose(painted[1, 0], 1.0)

"""The picture of an output beside its input."""

import contextlib
import tracemalloc

import numpy as np
import pytest
from matplotlib import image
from matplotlib.text import Text

from anysat_jax.scenes import looking, quicklook
from anysat_jax.scenes.quicklook import write_quicklook
from tests.scenes import fake_outputs as fakes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return fakes.write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def drawn(files, tmp_path, monkeypatch):
    """Draws an output; returns the pixels of the PNG, and the texts and images of its figure."""
    figures, new_figure = [], quicklook.style.new_figure

    @contextlib.contextmanager
    def kept(*args):
        with new_figure(*args) as figure:
            yield figure
            figures.append(figure)

    monkeypatch.setattr(quicklook.style, "new_figure", kept)

    def draw(kind, picture=True):
        path = tmp_path / "look.png"
        write_quicklook(path, files[kind], files["embedding"].with_name("emb_input.tif") if picture else None)
        texts = [text.get_text() for text in figures[-1].findobj(Text)]
        panels = [ax for ax in figures[-1].axes if ax.images]
        return np.rint(255 * image.imread(path)[..., :3]).astype(int), texts, panels

    return draw


def colours(pixels):
    return set(map(tuple, pixels.reshape(-1, 3)))


def test_a_class_map_has_its_palette_names_and_scale_beside_the_input(drawn):
    pixels, texts, (left, right) = drawn("classes")
    assert {*fakes.COLOURS, (0xE9, 0xEC, 0xEF)} <= colours(pixels) and (255, 0, 255) not in colours(pixels)
    assert {*fakes.CLASSES, "Classes", "Input, s2 B4, B3, B2", "100 m", "cover"} <= set(
        texts
    ) and fakes.NEVER not in texts
    natural = np.asarray(left.images[0].get_array())
    np.testing.assert_array_equal(natural[..., :3], np.moveaxis(fakes.picture(), 0, -1))
    classes = np.asarray(right.images[0].get_array())
    np.testing.assert_array_equal(classes[..., 3] > 0, ~fakes.hole(40, 60))
    # Upright: the first row is in the north.
    assert right.images[0].get_extent() == [500_000, 500_600, 5_099_600, 5_100_000]
    assert right.images[0].origin == "upper" and right.get_ylim()[0] < right.get_ylim()[1]


def test_an_embedding_has_its_first_three_components_as_colours(drawn):
    _, texts, (panel,) = drawn("embedding", picture=False)
    assert "Embedding, first three principal components" in texts and not any("Input" in text for text in texts)
    found = np.asarray(panel.images[0].get_array())
    valid = ~fakes.hole(40, 60)
    np.testing.assert_array_equal(found[..., 3], 255 * valid)
    features = fakes.features()[valid].astype(np.float64)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    _, _, axes = np.linalg.svd(units - units.mean(axis=0), full_matrices=False)
    for channel, axis in enumerate(axes[:3]):
        expected = units @ axis
        assert abs(np.corrcoef(found[valid][:, channel], expected)[0, 1]) > 0.99


def test_a_map_of_numbers_has_a_colour_bar_with_its_unit(drawn):
    pixels, texts, (_, panel) = drawn("numbers")
    assert {"Mg/ha", "biomass"} <= set(texts)
    low, high = np.nanpercentile(fakes.numbers(), looking.STRETCH)
    bar = panel.images[0].axes.figure.axes[-1]
    assert bar.get_ylim() == pytest.approx((low, high), rel=1e-6)
    assert {(68, 1, 84), (253, 231, 36)} <= colours(pixels)  # both ends of viridis


def test_probabilities_have_a_panel_for_each_class(drawn):
    _, texts, panels = drawn("probabilities")
    assert len(panels) == 3 and {"forest", "field <b>", "probability"} <= set(texts)


def test_a_scene_without_any_valid_pixel_is_drawn(tmp_path):
    path = fakes.write(tmp_path / "a.tif", np.full((3, 9, 9), np.nan, np.float32))
    write_quicklook(tmp_path / "a.png", path)
    path = fakes.write(tmp_path / "b.tif", np.full((1, 9, 9), np.nan, np.float32))
    write_quicklook(tmp_path / "b.png", path)
    assert (tmp_path / "a.png").stat().st_size > 1000 < (tmp_path / "b.png").stat().st_size


def test_memory_does_not_grow_with_the_raster(tmp_path, monkeypatch):
    monkeypatch.setattr(quicklook, "MOST_PIXELS", 2**12)
    monkeypatch.setattr(looking, "SAMPLE_PIXELS", 2**10)
    rng, peaks = np.random.default_rng(0), []
    for side in (128, 1024):
        values = np.kron(rng.integers(-9, 9, (32, 32, 32)), np.ones((1, side // 32, side // 32))).astype(np.float32)
        path = fakes.write(tmp_path / f"{side}.tif", values)
        write_quicklook(tmp_path / "warm.png", path)
        tracemalloc.start()
        write_quicklook(tmp_path / f"{side}.png", path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert values.nbytes > 2**26 and peaks[1] < peaks[0] + 2**20

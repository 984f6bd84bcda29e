"""Maps of fake scenes by heads of every kind: as the model's own predictions, with names, colours, units and nodata."""

import dataclasses
import functools

import numpy as np
import pytest
import rasterio

from anysat_jax.scenes.run import embed, predict
from anysat_jax.serve import Program, make_function
from tests.scenes.fake_scenes import LEFT, TASK, TOP, fake_values, model, with_head, write_stack

quiet = functools.partial(predict, say=lambda line: None)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A scene with a hole."""
    values = np.stack([fake_values(10, 60, 50, date) for date in range(2)])
    values[:, :, 20:26, 30:35] = 0
    return write_stack(tmp_path_factory.mktemp("scene"), "s2", 60, 50, values=values)


def hole():
    missing = np.zeros((60, 50), bool)
    missing[20:26, 30:35] = True
    return missing


def direct(weights, stack, rows, columns):
    """The predictions of a tile by the exported function, read by rasterio."""
    values = []
    for one in stack.acquisitions:
        with rasterio.open(one.bands[0].path) as file:
            values.append(file.read()[:, rows, columns])
    data = {"s2": np.stack(values)[None].astype(np.float32), "s2_dates": np.array([["2021-01-10", "2021-04-10"]])}
    side = 10.0 * data["s2"].shape[-1]
    program = Program(("s2",), (side, side), 20, "task", normalise="auto")
    return np.asarray(make_function(weights, program)(data))[0]


def first_tile():
    """Row and column of the first tile that begins in the scene; tiles begin at multiples of 120 m, 160 m wide."""
    return (TOP % 120) // 10 or 12, -LEFT % 120 // 10 or 12


def test_a_class_map_is_that_of_the_model(tmp_path, stack):
    weights = with_head()
    result = quiet({"s2": stack}, weights, tmp_path / "map.tif", patch_size=20, tile=160)
    with rasterio.open(result.output) as file:
        classes = file.read(1)
        assert file.count == 1 and file.dtypes == ("uint8",) and file.nodata == 255
        assert [file.tags()[f"CLASS_{number}"] for number in range(3)] == list(TASK.classes)
        assert [file.colormap(1)[number][:3] for number in range(3)] == [(16, 32, 48), (255, 0, 0), (0, 255, 127)]
    np.testing.assert_array_equal(classes == 255, hole())
    assert len(set(np.unique(classes)) & {0, 1, 2}) >= 2  # class 0 is not nodata
    row, column = first_tile()
    expected = direct(weights, stack, slice(row, row + 16), slice(column, column + 16))
    alone = (slice(row + 4, row + 12), slice(column + 4, column + 12))  # neighbours have 40 m in common
    np.testing.assert_array_equal(classes[alone], expected.argmax(-1)[4:12, 4:12])


def test_polygons_of_classes(tmp_path, stack):
    from pyogrio import read_info

    result = quiet(
        {"s2": stack}, with_head(), tmp_path / "map.tif", patch_size=20, tile=160, polygons=tmp_path / "map.gpkg"
    )
    assert read_info(tmp_path / "map.gpkg")["features"] == int(result.summary.split()[-2])
    with pytest.raises(ValueError, match=r"--polygons .*x.shp: a map of classes has polygons, in a file .* ends .gpkg"):
        quiet({"s2": stack}, with_head(), tmp_path / "other.tif", patch_size=20, polygons=tmp_path / "x.shp")


def test_probabilities(tmp_path, stack):
    weights = with_head()
    options = dict(patch_size=20, tile=160)
    quiet({"s2": stack}, weights, tmp_path / "map.tif", **options)
    quiet({"s2": stack}, weights, tmp_path / "p.tif", probabilities=True, **options)
    with rasterio.open(tmp_path / "p.tif") as file, rasterio.open(tmp_path / "map.tif") as classes:
        values = file.read()
        assert file.descriptions == TASK.classes and file.dtypes == ("float32",) * 3
        seen = ~np.isnan(values[0])
        np.testing.assert_array_equal(seen, ~hole())
        np.testing.assert_allclose(values[:, seen].sum(axis=0), 1, rtol=1e-5)
        np.testing.assert_array_equal(values.argmax(axis=0)[seen], classes.read(1)[seen])


def test_pixels_finer_than_sub_patches(tmp_path, stack):
    result = quiet({"s2": stack}, with_head(metres=5.0), tmp_path / "map.tif", patch_size=20, tile=160)
    with rasterio.open(result.output) as file:
        assert file.shape == (120, 100) and file.res == (5, 5)
        np.testing.assert_array_equal(file.read(1) == 255, hole().repeat(2, axis=0).repeat(2, axis=1))


def test_a_regression_has_its_unit(tmp_path, stack):
    weights = with_head(kind="regression", classes=(), colours=(), unit="t/ha", offset=100.0, scale=20.0)
    result = quiet({"s2": stack}, weights, tmp_path / "map.tif", patch_size=20, tile=160)
    with rasterio.open(result.output) as file:
        values = file.read(1)
        assert file.units == ("t/ha",) and file.descriptions == ("Crops",) and np.isnan(file.nodata)
    np.testing.assert_array_equal(np.isnan(values), hole())
    row, column = first_tile()
    expected = direct(weights, stack, slice(row, row + 16), slice(column, column + 16))[4:12, 4:12, 0]
    assert 20 < np.nanmean(values) < 180
    np.testing.assert_allclose(values[row + 4 : row + 12, column + 4 : column + 12], expected, rtol=1e-4)


def test_a_head_for_tiles_gives_one_pixel_for_each(tmp_path, stack):
    weights, lines = with_head(kind="multi_label", level="tile", metres=0.0, sensor="", colours=()), []
    box = (LEFT, TOP - 600, LEFT + 500, TOP)
    options = dict(patch_size=20, tile=100, bounds=box, say=lines.append)
    result = predict({"s2": stack}, weights, tmp_path / "map.tif", **options)
    assert any("a pixel for each, and tiles do not overlap" in line for line in lines)
    with rasterio.open(result.output) as file:
        values = file.read()
        assert file.shape == (6, 5) and file.res == (100, 100) and file.descriptions == TASK.classes
    expected = direct(weights, stack, slice(20, 30), slice(10, 20))
    np.testing.assert_allclose(values[:, 2, 1], expected, rtol=1e-4)
    assert ((values > 0) & (values < 1)).all()


def test_what_cannot_be_is_refused(tmp_path, stack):
    options = dict(patch_size=20, tile=160)
    with pytest.raises(ValueError, match="the weights have no head: give those of a finished fine-tuning"):
        quiet({"s2": stack}, model("s2"), tmp_path / "map.tif", **options)
    regression = with_head(kind="regression", classes=(), colours=())
    with pytest.raises(ValueError, match="--probabilities is of classes, and the weights' task is a regression"):
        quiet({"s2": stack}, regression, tmp_path / "map.tif", probabilities=True, **options)
    many = with_head(classes=tuple(f"class {number}" for number in range(256)), colours=())
    with pytest.raises(ValueError, match="the task has 256 classes, and a map at most 255: give --prob"):
        quiet({"s2": stack}, many, tmp_path / "map.tif", **options)
    spot = write_stack(tmp_path / "in", "spot", 600, 500)
    both = with_head()
    both = dataclasses.replace(both, model=dataclasses.replace(both.model, sensors=("s2", "spot")))
    with pytest.raises(ValueError, match="made of the sub-patches of 's2', and the request has spot; give --s2"):
        quiet({"spot": spot}, both, tmp_path / "map.tif", normalise=None, **options)
    assert not list(tmp_path.glob("map*"))


def test_weights_with_a_head_embed_too(tmp_path, stack):
    options = dict(patch_size=20, resolution=20, tile=160, say=lambda line: None)
    embed({"s2": stack}, with_head(), tmp_path / "emb.tif", **options)
    with rasterio.open(tmp_path / "emb.tif") as file:
        assert file.count == 32

"""Labels of whole tiles and of their parts."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.windows import IGNORE, Dihedral, Window, empty_labels, whole_tile, write_labels
from tests.data_pipelines.coordinate_tiles import CARD, EXTENT, NAMES, make_tile

PLAIN = dict(tile_label="none", tile_classes=(), dense_label="none", dense_classes=(), dense_colours=(), sides={})


WHOLE = Window(EXTENT)


def labels_of(card, example, window=WHOLE):
    labels = empty_labels(card, 2, window.extent)
    write_labels(card, labels, 1, [whole_tile(card, example)], window)
    return {key: value[1] for key, value in labels.items()}


@pytest.mark.parametrize(
    ("kind", "stored", "dtype"),
    [
        ("class", np.int32(2), np.int32),
        ("multi_label", np.asarray([1, 0, 1], np.uint8), np.float32),
        ("regression", np.float32(0.5), np.float32),
    ],
)
def test_labels_of_tiles(kind, stored, dtype):
    card = dataclasses.replace(CARD, **PLAIN | dict(tile_label=kind, tile_classes=("a", "b", "c")))
    labels = labels_of(card, {"tile": stored})
    assert set(labels) == {"tile"} and np.asarray(labels["tile"]).dtype == dtype
    np.testing.assert_array_equal(labels["tile"], stored)


def test_no_labels():
    assert labels_of(dataclasses.replace(CARD, **PLAIN), {}) == {}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("kind", ["segmentation", "change"])
def test_class_maps_are_int32_with_one_value_for_no_label(dtype, kind):
    card = dataclasses.replace(CARD, **PLAIN | dict(dense_label=kind, dense_classes=NAMES, ignore_label=7))
    dense = np.arange(144).reshape(12, 12).astype(dtype) % 8
    labels = labels_of(card, {"dense": dense})
    assert labels["dense"].dtype == np.int32
    np.testing.assert_array_equal(labels["dense"], np.where(dense == 7, IGNORE, dense.astype(np.int32)))
    assert labels_of(dataclasses.replace(card, ignore_label=-1), {"dense": dense})["dense"].max() == 7


def test_maps_of_a_regression_keep_nan_for_no_label():
    card = dataclasses.replace(CARD, **PLAIN | dict(dense_label="regression", label_unit="t"))
    dense = np.full((12, 12), 1.5, np.float32)
    dense[0, 1] = np.nan
    labels = labels_of(card, {"dense": dense}, Window(EXTENT, dihedral=Dihedral(True, 0)))
    assert labels["dense"].dtype == np.float32 and np.argwhere(np.isnan(labels["dense"])).tolist() == [[0, 10]]


def test_the_multi_label_of_a_part_is_what_its_map_shows():
    example = make_tile()
    example["dense"] = np.full((14, 14), 7, np.int8)  # 7: no label
    example["dense"][1:4, 1:4] = 3
    example["dense"][4, 4] = 0  # the one class that the multi-label does not name
    example["dense"][12, 12] = 5
    example["tile"] = np.asarray([0, 0, 1, 0, 1, 0], np.uint8)
    assert labels_of(CARD, example)["tile"].tolist() == [0, 0, 1, 0, 1, 0]
    assert labels_of(CARD, example, Window(60.0))["tile"].tolist() == [0, 0, 1, 0, 0, 0]
    assert labels_of(CARD, example, Window(60.0, (60.0, 60.0)))["tile"].tolist() == [0, 0, 0, 0, 1, 0]
    assert not labels_of(CARD, example, Window(60.0, (0.0, 60.0)))["tile"].any()

"""The five mini datasets: what their cards promise, every tile keeps."""

import numpy as np
import pytest

from anysat_jax.sensors import GEOPLEX_SENSORS, get_sensor
from data_pipelines.card import Example
from data_pipelines.mini import datasets as mini_geoplex
from data_pipelines.mini.datasets import MINI_CARDS, MINI_SIZES, RECIPES, MiniReader
from data_pipelines.reader import num_tiles
from tests.data_pipelines.fake_reader import examples_of

NAMES = tuple(MINI_CARDS)


@pytest.fixture(scope="module", params=NAMES)
def tiles(request) -> tuple[MiniReader, list[Example]]:
    reader = MiniReader(request.param, sizes={"train": 12, "val": 2})
    return reader, examples_of(reader, "train")


def test_the_five_see_all_eleven_sensors() -> None:
    assert {sensor for card in MINI_CARDS.values() for sensor in card.sensors} == set(GEOPLEX_SENSORS)
    assert len(MINI_CARDS) == 5
    assert 300 <= sum(sum(sizes.values()) for sizes in MINI_SIZES.values()) <= 1500


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_consistent(name: str) -> None:
    card = MINI_CARDS[name]
    assert len(card.dense_colours) == len(card.dense_classes)
    for sensor in map(get_sensor, card.sensors):
        sensor.pixels(card.extent)
        for patch_size in card.patch_sizes:
            sensor.subpatches_per_side(patch_size)
            assert card.extent % patch_size == 0 and card.extent >= 2 * patch_size
        assert card.natural_colour.keys() <= set(card.sensors)
    for rgb in card.natural_colour.items():
        assert max(rgb[1]) < get_sensor(rgb[0]).num_bands


def test_arrays_are_as_the_card_says(tiles) -> None:
    reader, examples = tiles
    card = reader.card
    for example in examples:
        for name in card.sensors:
            sensor, values = get_sensor(name), example[name]
            size = sensor.pixels(card.extent)
            assert values.dtype == card.dtype(name)
            assert values.shape[-3:] == (sensor.num_bands, size, size)
            assert np.isfinite(values).all() and values.std() > 0
            if sensor.has_dates:
                assert example[f"{name}_dates"].shape == values.shape[:1]
                least, most = RECIPES[card.name].dates[name]
                assert least <= len(values) <= most
            else:
                assert values.ndim == 3 and f"{name}_dates" not in example


def test_dates_are_ragged_days_of_a_year(tiles) -> None:
    reader, examples = tiles
    for name in reader.card.sensors:
        if get_sensor(name).has_dates:
            dates = [example[f"{name}_dates"] for example in examples]
            assert len({len(d) for d in dates}) > 1
            assert all(d.dtype == np.int32 and np.all(np.diff(d) > 0) and d[0] >= 0 and d[-1] < 366 for d in dates)


def test_masks_cover_every_pixel(tiles) -> None:
    reader, examples = tiles
    masks = {key for example in examples for key in example if key.endswith("_mask")}
    assert masks == {f"{name}_mask" for name in RECIPES[reader.card.name].masks}
    for name in RECIPES[reader.card.name].masks:
        for example in examples:
            mask, values = example[f"{name}_mask"], example[name]
            assert mask.dtype == bool and mask.shape == (len(values), 1, *values.shape[-2:])
        assert any(not example[f"{name}_mask"].all() for example in examples)


def test_labels_are_as_the_card_says(tiles) -> None:
    reader, examples = tiles
    card = reader.card
    size = round(card.extent / card.dense_metres)
    for example in examples:
        assert ("dense" in example) == bool(card.dense_classes) and ("tile" in example) == (card.tile_label != "none")
        if card.dense_classes:
            dense = example["dense"]
            assert dense.dtype == np.int8 and dense.shape == (size, size)
            assert dense.min() >= card.ignore_label and dense.max() < len(card.dense_classes)
        if card.tile_label == "class":
            assert example["tile"].dtype == np.int32 and 0 <= example["tile"] < len(card.tile_classes)
        if card.tile_label == "multi_label":
            assert example["tile"].dtype == np.uint8 and example["tile"].shape == (len(card.tile_classes),)


def test_tile_and_dense_labels_agree() -> None:
    """A species of a quarter of the cells is in the tile's label; one that is not in the label fills no large part."""
    reader = MiniReader("mini_treesatai_ts", sizes={"train": 20})
    names = reader.card.tile_classes
    assert reader.card.dense_classes[: len(names)] == names
    for example in examples_of(reader, "train"):
        share = np.bincount(example["dense"][example["dense"] >= 0], minlength=9)[: len(names)] / example["dense"].size
        assert np.all(example["tile"][share > 0.25] == 1) and np.all(share[example["tile"] == 0] < 0.15)


def test_class_is_the_dominant_group() -> None:
    reader = MiniReader("mini_flair", sizes={"train": 20})
    for example in examples_of(reader, "train"):
        counts = np.bincount(example["dense"][example["dense"] >= 0], minlength=6)
        if counts.max() > 0.7 * counts.sum():
            assert example["tile"] == counts.argmax()


@pytest.mark.parametrize("name", [n for n in NAMES if MINI_CARDS[n].tile_label != "none"])
def test_tile_classes_are_balanced_enough(name: str) -> None:
    reader = MiniReader(name)
    recipe, card = RECIPES[name], reader.card
    labels = []
    for index in range(60):
        ground = np.random.default_rng((0, index))
        land = mini_geoplex.make_landscape(card.extent, 1.0 if card.extent < 100 else 5.0, recipe.mix, ground)
        labels.append(mini_geoplex.tile_label(land, card, recipe))
    values = np.stack(labels)
    if card.tile_label == "class":
        values = np.eye(len(card.tile_classes))[values]
    assert np.all(values.mean(0) > 0.01) and np.all(values.mean(0) < 0.75)


def test_the_same_tile_every_time() -> None:
    first, second = (MiniReader("mini_planted", seed=1).example("val", "val_00005") for _ in range(2))
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def test_seed_split_and_index_give_other_tiles() -> None:
    first = MiniReader("mini_planted").example("train", "train_00000")
    others = [
        MiniReader("mini_planted", seed=1).example("train", "train_00000"),
        MiniReader("mini_planted").example("val", "val_00000"),
        MiniReader("mini_planted").example("train", "train_00001"),
    ]
    for other in others:
        assert not np.array_equal(first["modis"], other["modis"])


def test_all_sensors_see_the_same_ground() -> None:
    """Over the tiles' cells, near infrared from the air and from orbit, and radar's forests, go together."""
    naip, s2 = [], []
    for example in examples_of(MiniReader("mini_s2naip", sizes={"train": 16}), "train"):
        cells = example["naip"][3].astype(float).reshape(8, 8, 8, 8).mean((1, 3))
        summer = np.abs(example["s2_dates"] - 200) < 60
        naip.append((cells - cells.mean()).ravel() / cells.std())
        orbit = np.median(example["s2"][summer, 6].astype(float), 0)
        s2.append((orbit - orbit.mean()).ravel() / orbit.std())
    aligned = np.corrcoef(np.concatenate(naip), np.concatenate(s2))[0, 1]
    turned = np.corrcoef(np.concatenate(naip), np.concatenate([v.reshape(8, 8).T.ravel() for v in s2]))[0, 1]
    assert aligned > 0.35 and aligned > turned + 0.1


def test_keys_and_splits() -> None:
    reader = MiniReader("mini_flair", sizes={"train": 2, "val": 1})
    assert num_tiles(reader) == 3 and reader.splits() == ("train", "val")
    keys = [key for split in reader.splits() for key in reader.keys(split)]
    assert keys == ["train_00000", "train_00001", "val_00000"]
    assert reader.example("val", "val_00000")["id"] == "mini_flair_val_00000"
    assert num_tiles(MiniReader("mini_flair")) == sum(MINI_SIZES["mini_flair"].values())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown mini dataset 'mini_mars'; there are: mini_treesatai_ts"):
        MiniReader("mini_mars")
    with pytest.raises(ValueError, match="mini_flair has no split 'exam'; it has train, val"):
        MiniReader("mini_flair").keys("exam")
    with pytest.raises(ValueError, match="no split 'exam'"):
        MiniReader("mini_flair", sizes={"exam": 1})

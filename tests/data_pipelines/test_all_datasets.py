"""Every archive, made up in its published layout, goes the whole way: read, checked, drawn, prepared, batched."""

import pytest
from ml_collections import ConfigDict

from anysat_jax.sensors import get_sensor
from data_pipelines import load
from data_pipelines.fakes import write_fake
from data_pipelines.plots.gallery import draw_tile, prepared_tiles, raw_tiles
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.registry import ARCHIVE_NAMES, get_entry
from tests.data_pipelines.plots.figures import caught, collisions, texts


@pytest.fixture(scope="module", params=ARCHIVE_NAMES)
def made(request, tmp_path_factory):
    """A made-up archive's entry, reader, and the folder that it is prepared in."""
    if request.param == "bradd_s1ts":
        pytest.importorskip("torch", reason="its archive is a file of PyTorch")
    entry = get_entry(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    write_fake(request.param, folder / "raw", tiles=2)
    reader = entry.reader(folder / "raw")
    prepare_dataset(reader, folder / "prepared", entry.version)
    return entry, reader, folder / "prepared"


def test_the_card_is_possible(made):
    entry, reader, _ = made
    check_card(entry.card)
    assert reader.card == entry.card and entry.layout and entry.card.url and entry.card.licence and entry.card.citation


def test_every_tile_is_as_the_card_says(made):
    _, reader, _ = made
    assert reader.splits() == reader.card.splits
    for split in reader.splits():
        assert len(reader.keys(split)) >= 1
        for key in reader.keys(split):
            check_example(reader.card, key, reader.example(split, key))


def test_a_tile_is_drawn_the_same_raw_and_prepared(made, monkeypatch, tmp_path):
    entry, reader, prepared = made
    drawn = []
    for tiles in (raw_tiles(reader, "train"), prepared_tiles(entry.card.name, str(prepared), "train")):
        example = tiles.read(0)
        with caught(monkeypatch) as figures:
            draw_tile(tmp_path / "tile.png", entry.card, "train", example["id"], example)
        drawn.append((texts(figures[0]), [ax.get_position().bounds for ax in figures[0].axes]))
    assert drawn[0] == drawn[1]
    assert collisions(figures[0]) == ([], [])
    assert all(any(sensor in text for text in drawn[0][0]) for sensor in entry.card.sensors)


def test_batches_at_every_patch_size(made):
    entry, _, prepared = made
    card = entry.card
    for patch_size in card.patch_sizes:
        section = dict(batch_size=1, weight=1.0, patch_sizes=(patch_size,), max_dates=4)
        data = ConfigDict(dict(root=str(prepared), num_workers=0, datasets={card.name: section}))
        batch = next(load.train_iterator(load.open_datasets(data), seed=0))
        assert batch.patch_size == patch_size and set(batch.observations) == set(card.sensors)
        side = round(card.extent / patch_size)
        assert batch.grid == (side, side)
        for name, observation in batch.observations.items():
            pixels = get_sensor(name).pixels(card.extent)
            assert observation.values.shape[-2:] == (pixels, pixels)

"""The mini datasets: five small generated ones in place of GeoPlex's five.

Each has the sensors of its big sister and labels of the same kind, over smaller extents. Every number follows from
(seed, dataset, split, index), so that nothing has to be downloaded or shipped.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example, TileLabel
from data_pipelines.mini import land_cover as lc
from data_pipelines.mini import sensing
from data_pipelines.mini.landscape import Landscape, Mix, make_landscape

TREES = lc.names_of("forest")
CROPS = lc.names_of("field")
RADAR = ("s1", "s1-asc", "alos")
IMAGES = ("aerial", "aerial-flair", "spot", "naip")
_LICENCE = "Apache-2.0 (made by this project's code)"
YEAR = 2021  # of every date
_SPLIT_SEED = {"train": 0, "val": 1}

Groups = Mapping[str, tuple[str, ...]]
"""Names of label classes, and of the covers that each consists of."""

_TOWN, _WATER = {"town": lc.names_of("town")}, {"water": ("water",)}
_SPECIES: Groups = {name: (name,) for name in TREES}
_CROPS: Groups = {name: (name,) for name in CROPS}
_TREE_MAP: Groups = {**_SPECIES, "open land": CROPS, **_TOWN, **_WATER}
_CROP_MAP: Groups = {**_CROPS, "forest": TREES, **_TOWN, **_WATER}
_LAND_MAP: Groups = {
    "cropland": tuple(name for name in CROPS if name != "grassland"),
    "grassland": ("grassland",),
    "coniferous": ("spruce", "pine", "larch"),
    "deciduous": ("beech", "oak", "birch"),
    **_TOWN,
    **_WATER,
}
_COLOURS = {
    "open land": "#f1e5a1",
    "cropland": "#e6c229",
    "forest": "#2d6a4f",
    "coniferous": "#0b3d2e",
    "deciduous": "#7a9e48",
    "town": "#d7263d",
} | {cover.name: cover.colour for cover in lc.COVERS}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Recipe of the tiles of one dataset."""

    mix: Mix  # what the landscapes consist of
    fine_metres: float  # pixel of the landscape's fine grid
    dates: Mapping[str, tuple[int, int]]  # least and largest number of dates of each series
    tile: Groups = dataclasses.field(default_factory=dict)  # groups of covers that make the tile's label
    dense: Groups = dataclasses.field(default_factory=dict)  # groups of covers that make the dense label, if any
    masks: tuple[str, ...] = ()  # series whose clear pixels are given as `<sensor>_mask`
    decibel: bool = True  # whether radar is in dB rather than linear power


RECIPES: dict[str, Recipe] = {
    "mini_treesatai_ts": Recipe(
        Mix({"forest": 0.86, "field": 0.1, "town": 0.02, "water": 0.02}, 22.0, 20.0, 0.8, species=(1, 3)),
        0.4,
        {"s2": (10, 16), "s1-asc": (8, 14)},
        tile=_SPECIES,
        dense=_TREE_MAP,
        decibel=False,
    ),
    "mini_pastis_hd": Recipe(
        Mix({"field": 0.8, "forest": 0.1, "town": 0.06, "water": 0.04}, 40.0, 30.0, 0.75, crops=(2, 4)),
        1.0,
        {"s2": (10, 16), "s1": (8, 14)},
        tile=_CROPS,
        dense=_CROP_MAP,
    ),
    "mini_flair": Recipe(
        Mix({"field": 0.4, "forest": 0.3, "town": 0.2, "water": 0.1}, 20.0, 18.0, 0.65),
        0.4,
        {"s2": (6, 12)},
        tile=_LAND_MAP,
        dense=_LAND_MAP,
    ),
    "mini_planted": Recipe(
        Mix({"forest": 0.9, "field": 0.08, "water": 0.02}, 40.0, 30.0, 0.8, species=(1, 2)),
        2.5,
        {"s2": (8, 12), "s1": (6, 8), "l7": (4, 8), "alos": (2, 4), "modis": (12, 20)},
        tile=_SPECIES,
        masks=("s2", "l7"),
    ),
    "mini_s2naip": Recipe(
        Mix({"town": 0.4, "field": 0.3, "forest": 0.2, "water": 0.1}, 45.0, 34.0, 0.6),
        1.25,
        {"s2": (8, 14), "s1": (4, 8), "l8": (4, 6)},
        dense=_LAND_MAP,
    ),
}

_ARRAYS = dict.fromkeys(IMAGES, "uint8") | dict.fromkeys(RADAR, "float32")
_ARRAYS |= dict.fromkeys(("s2", "l7", "modis"), "int16") | {"l8": "uint16"}
_NATURAL_COLOUR = dict.fromkeys(IMAGES, (0, 1, 2)) | {"s2": (2, 1, 0), "l7": (2, 1, 0), "l8": (4, 3, 2)}
_NATURAL_COLOUR |= {"modis": (0, 3, 2)}


MINI_SIZES: dict[str, dict[str, int]] = {name: {"train": 128, "val": 64} for name in RECIPES}
"""Tiles of each split; PLANTED, the largest of the five, is the largest here, too."""
MINI_SIZES["mini_planted"] = {"train": 256, "val": 128}


def _card(
    name: str,
    title: str,
    sensors: tuple[str, ...],
    extent: float,
    patch_sizes: tuple[int, ...],
    tile_label: TileLabel,
) -> DatasetCard:
    """Returns the card of a mini dataset; its classes are those of its recipe."""
    dense = tuple(RECIPES[name].dense)
    return DatasetCard(
        name=name,
        title=title,
        sensors=sensors,
        extent=extent,
        patch_sizes=patch_sizes,
        splits=tuple(_SPLIT_SEED),
        tile_label=tile_label,
        tile_classes=tuple(RECIPES[name].tile),
        dense_label="segmentation" if dense else "none",
        dense_classes=dense,
        dense_colours=tuple(_COLOURS[c] for c in dense),
        natural_colour={s: _NATURAL_COLOUR[s] for s in sensors if s in _NATURAL_COLOUR},
        arrays={s: _ARRAYS[s] for s in sensors},
        masks=dict.fromkeys(RECIPES[name].masks, "pixel"),
        split_rule="made from different seeds",
        size="{train} tiles for training, {val} held out".format(**MINI_SIZES[name]),
        licence=_LICENCE,
        citation="Synthetic; none needed.",
    )


MINI_CARDS: dict[str, DatasetCard] = {
    card.name: card
    for card in (
        _card("mini_treesatai_ts", "Mini TreeSatAI-TS", ("aerial", "s2", "s1-asc"), 40.0, (10, 20), "multi_label"),
        _card("mini_pastis_hd", "Mini PASTIS-HD", ("spot", "s2", "s1"), 80.0, (20, 40), "multi_label"),
        _card("mini_flair", "Mini FLAIR", ("aerial-flair", "s2"), 40.0, (10, 20), "class"),
        _card("mini_planted", "Mini PLANTED", ("s2", "s1", "l7", "alos", "modis"), 90.0, (30,), "class"),
        _card("mini_s2naip", "Mini S2NAIP", ("naip", "s2", "s1", "l8"), 80.0, (20, 40), "none"),
    )
}

LEAST_SHARE = 0.07
"""Share of the tile from which a cover belongs to a multi-label, as in TreeSatAI."""


class MiniReader:
    """Makes the tiles of one mini dataset (the Reader of `reader.py`).

    `name` is one of MINI_CARDS; another `seed` gives other tiles; `sizes`, the tiles of each split, are
    MINI_SIZES[name] unless given.

    Raises:
      ValueError: there is no mini dataset of that name, or no split of a name in `sizes`.
    """

    def __init__(self, name: str, seed: int = 0, sizes: Mapping[str, int] | None = None) -> None:
        if name not in MINI_CARDS:
            raise ValueError(f"unknown mini dataset {name!r}; there are: {', '.join(MINI_CARDS)}")
        self.card = MINI_CARDS[name]
        self.seed = seed
        self.sizes = dict(MINI_SIZES[name] if sizes is None else sizes)
        for split in self.sizes:
            self._check_split(split)

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in self.card.splits if self.sizes.get(split))

    def keys(self, split: str) -> Sequence[str]:
        """Returns the keys of a split's tiles.

        Raises:
          ValueError: the dataset has no such split.
        """
        self._check_split(split)
        return [f"{split}_{index:05d}" for index in range(self.sizes.get(split, 0))]

    def example(self, split: str, key: str) -> Example:
        """Generates one tile; the same (seed, dataset, split, index) always gives the same."""
        index, recipe = int(key.removeprefix(f"{split}_")), RECIPES[self.card.name]
        # crc32, as Python's own hash of a text differs from process to process.
        seed = (self.seed, zlib.crc32(self.card.name.encode()), _SPLIT_SEED[split], index)
        # A stream for each sensor: one that draws more does not change the others.
        ground, *rngs = np.random.default_rng(seed).spawn(1 + len(self.card.sensors))
        land = make_landscape(self.card.extent, recipe.fine_metres, recipe.mix, ground)
        example: Example = {"id": f"{self.card.name}_{split}_{index:05d}"}
        for sensor, rng in zip(self.card.sensors, rngs, strict=True):
            example |= _observe(land, sensor, self.card.dtype(sensor), recipe, rng)
        if recipe.dense:
            groups = np.full(len(lc.COVERS), -1, np.int64)
            for number, names in enumerate(recipe.dense.values()):
                groups[[lc.COVER_INDEX[name] for name in names]] = number
            example["dense"] = land.majority(self.card.dense_metres, groups)
        if self.card.tile_label != "none":
            example["tile"] = tile_label(land, self.card, recipe)
        return example

    def _check_split(self, split: str) -> None:
        if split not in self.card.splits:
            raise ValueError(f"{self.card.name} has no split {split!r}; it has {', '.join(self.card.splits)}")


def _observe(land: Landscape, sensor: str, dtype: np.dtype, recipe: Recipe, rng: np.random.Generator) -> Example:
    """Returns one sensor's fields of the example."""
    if sensor in IMAGES:
        # Taken from early summer to autumn, as flights are.
        grey, height = sensing.image(land, sensor, int(rng.integers(140, 260)), rng)
        if "elevation" in get_sensor(sensor).bands:
            # In steps of 0.2 m, as in FLAIR; uint8 holds 51 m.
            grey = np.concatenate([grey, np.clip(5.0 * height, 0.0, 255.0)[None]])
        return {sensor: grey.astype(np.uint8)}
    # Sentinel-1 comes back to an orbit after 12 days, optical satellites and their neighbours' orbits after about 3.
    dates = sensing.draw_dates(recipe.dates[sensor], rng, repeat=12 if sensor in RADAR else 3)
    if sensor in RADAR:
        series = sensing.radar_series(land, sensor, dates, rng, recipe.decibel)
    else:
        series = sensing.optical_series(land, sensor, dates, rng)
    values = np.rint(series.values) if dtype.kind in "iu" else series.values
    years = np.full(len(series.dates), YEAR, np.int16)
    example: Example = {sensor: values.astype(dtype), f"{sensor}_dates": series.dates, f"{sensor}_years": years}
    if sensor in recipe.masks:
        example[f"{sensor}_mask"] = series.clear
    return example


def tile_label(land: Landscape, card: DatasetCard, recipe: Recipe) -> np.ndarray:
    """Returns the group that fills most of the tile, int32 (), or all that fill more than LEAST_SHARE, (K,) uint8."""
    shares = land.cover_shares(land.extent)[0, 0]
    # Over covers, as a group may consist of several.
    totals = np.array([sum(shares[lc.COVER_INDEX[name]] for name in names) for names in recipe.tile.values()])
    if card.tile_label == "class":
        return np.asarray(totals.argmax(), np.int32)
    return (totals > LEAST_SHARE).astype(np.uint8)

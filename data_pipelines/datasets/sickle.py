"""SICKLE: rice and other crops of the Cauvery delta; Sentinel-2, Sentinel-1 and Landsat 8 series of 320 m tiles.

No published file was at hand: table, folders, names and bytes are those of the authors' documentation and code, read
from made-up archives only.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import day_in_name, observed_series
from data_pipelines.files import check_array, inside, read_npz, read_table, stems
from data_pipelines.rasters import read_raster
from data_pipelines.reader import ArchiveReader, layout_check

CARD = DatasetCard(
    name="sickle",
    title="SICKLE",
    sensors=("s2", "s1", "l8"),
    extent=320.0,
    patch_sizes=(10,),
    splits=("train", "val"),
    arrays={"s2": "float32", "s1": "float32", "l8": "float32"},
    masks={"s2": "pixel", "s1": "pixel", "l8": "band"},
    optional=("s2", "s1", "l8"),
    file_bands={
        "s2": ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"),
        "s1": ("VV", "VH"),
        "l8": ("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7", "ST_B10"),
    },
    units={
        "s2": "reflectance x 10000, as stored",
        "s1": "decibels; the third band is VV - VH",
        "l8": "Collection 2 Level 2 numbers, as stored: reflectance in B1 to B7, surface temperature in B10",
    },
    dates={
        "s2": "2018 to 2021, 13 to 148 for each tile, clouds not removed",
        "s1": "2018 to 2021",
        "l8": "2018 to 2021, 8 to 34 for each tile, clouds not removed",
    },
    dense_label="segmentation",
    dense_classes=("paddy", "not paddy"),
    dense_colours=("#1a9850", "#fdae61"),
    split_rule="column SPLIT of the table; labels of plots of the other split are left out, also within a tile",
    natural_colour={"s2": (2, 1, 0), "l8": (4, 3, 2)},
    size="2,370 seasons of 388 plots with 209,000 images; the AnySat paper counts 34,848 tiles",
    notes=(
        "There is no test split: its labels are not released, and the paper reports the validation split.",
        "Bands are taken by name. The published AnySat reader puts B8A where B8 belongs and B8 where B8A does.",
        "Landsat's B8, B9 and B11 are not in the archive, B10 not on every date: zeros, and False in the mask.",
        "Arrays of 30 m and 10 m are brought to 32 x 32 pixels of 10 m by the nearest pixel, as the authors do; the "
        "authors also skip dates with more than 25 % zeros, here such pixels are masked.",
        "The ratio band is VV - VH in decibels (values of the authors' notebook: -34 to -2); the published AnySat "
        "reader divides the decibels.",
        "Class 0 is paddy. Pixels without a crop, or of a plot of another split, have no label.",
        "All dates of a tile's folder are kept, not the standard season alone.",
        "Table C of the AnySat paper lists Sentinel-2 and Landsat; its Table B and code have Sentinel-1 as well.",
        "The archive has no official colours; those of the classes are ours.",
    ),
    licence="on request from the authors; terms not stated in their repository",
    citation="Sani et al., SICKLE: A Multi-Sensor Satellite Imagery Dataset Annotated with Multiple Key Cropping "
    "Parameters, WACV 2024",
    url="https://github.com/Depanshu-Sani/SICKLE",
)

TABLE = "sickle_dataset_tabular.csv"
LAYOUT = f"{TABLE}, images/{{S1,S2,L8}}/npy/UNIQUE_ID/*.npz, masks/10m/UNIQUE_ID.tif"
SIDE = 32
MAX_CROP = 99  # the authors name 21 crops
MASK = "a GeoTIFF with the plot's number in the first band and the crop in the second, 0 for none"


@dataclasses.dataclass(frozen=True)
class _Series:
    """A satellite's folder, its bands in the files by ours, those a file may lack, and the day's field in its names."""

    folder: str
    bands: dict[str, str]
    may_lack: tuple[str, ...]
    date_field: int
    example: str


_SERIES = {
    "s2": _Series("S2", {b: b for b in get_sensor("s2").bands}, (), 0, "20190102T051219_20190102T051817_T44PLT.npz"),
    "s1": _Series("S1", {"VV": "VV", "VH": "VH"}, (), 4, "S1A_IW_GRDH_1SDV_20190104T003123_....npz"),
    "l8": _Series(
        "L8",
        {**{f"B{n}": f"SR_B{n}" for n in range(1, 8)}, "B10": "ST_B10"},
        ("ST_B10",),
        2,
        "LC08_142053_20190110.npz",
    ),
}
holds_raw = layout_check(TABLE)


class SickleReader(ArchiveReader):
    """Reads SICKLE as published, also with the satellites' folders or the masks where the authors' code looks.

    A tile that has rows in both splits belongs to the validation split.
    """

    def __init__(self, root: pathlib.Path) -> None:
        listed, self._plots = _read_splits(root / TABLE)
        self._images = root / "images" if (root / "images").is_dir() else root
        masks = root / "masks"
        self._masks = next((f for f in (masks / "10m", masks / "yield_distributed" / "10m") if f.is_dir()), masks)
        imaged = set().union(*(stems(self._images / one.folder / "npy", "") for one in _SERIES.values()))
        present = imaged & stems(self._masks, ".tif")
        super().__init__(CARD, root, {split: [uid for uid in uids if uid in present] for split, uids in listed.items()})
        self.summary += f"; the table lists {sum(map(len, listed.values())):,}"
        plots = {split: sorted(numbers) for split, numbers in self._plots.items()}
        self.fingerprint += f" {plots}"

    def example(self, split: str, key: str) -> Example:
        example: Example = {"id": key}
        for sensor, one in _SERIES.items():
            folder = inside(self._images / one.folder / "npy", key)
            example |= _read_series(folder, sensor, one)
        if len(example) == 1:
            raise FileNotFoundError(f"no .npz file of tile {key} below {self._images}; expected {LAYOUT}")
        path = inside(self._masks, f"{key}.tif")
        layers, _ = read_raster(path, (None, None, None), ("f", "i", "u"), MASK)
        if len(layers) < 2:
            raise ValueError(f"{path} has {len(layers)} bands; expected {MASK}")
        plot, crop = (np.nan_to_num(nearest(layer, SIDE).astype(np.float64), nan=0.0) for layer in layers[:2])
        wrong = crop[(crop > MAX_CROP) | (crop != np.rint(crop))]
        if wrong.size:
            raise ValueError(f"{path}: the second band holds {wrong[0]:g}; expected crop numbers up to {MAX_CROP}")
        # 0 paddy, 1 other crops. A tile shows plots of its neighbours too, some of which belong to another split.
        labelled = (crop >= 1) & np.isin(plot, sorted(self._plots[split]))
        return example | {"dense": np.where(labelled, crop > 1, CARD.ignore_label).astype(np.int8)}


def _read_splits(path: pathlib.Path) -> tuple[dict[str, list[str]], dict[str, frozenset[int]]]:
    """Reads tiles and plots of each split; leaves out rows of a test split, which have no labels."""
    uids: dict[str, dict[str, None]] = {"val": {}, "train": {}}
    plots: dict[str, set[int]] = {"val": set(), "train": set()}
    rows = read_table(path, ("UNIQUE_ID", "PLOT_ID", "SPLIT"), f"SICKLE as published: {LAYOUT}")
    for number, row in enumerate(rows, start=2):
        split = row["SPLIT"].strip()
        if split not in (*uids, "test"):
            raise ValueError(f"{path}, line {number}: SPLIT is {split!r}, expected train, val or test")
        if split != "test":
            uids[split][str(_number(path, number, row, "UNIQUE_ID"))] = None
            plots[split].add(_number(path, number, row, "PLOT_ID"))
    # A plot has a row for each season, whose splits may differ: what is held out once is not trained on.
    lists = {"val": list(uids["val"]), "train": [uid for uid in uids["train"] if uid not in uids["val"]]}
    return lists, {split: frozenset(found) for split, found in plots.items()}


def _number(path: pathlib.Path, line: int, row: dict[str, str], column: str) -> int:
    """Returns a whole number, also of "12.0", as tables with empty cells have it."""
    text = row[column].strip()
    # A spreadsheet or pandas writes whole numbers as "12.0" where a column has empty cells.
    whole = text.removesuffix(".0")
    if not (whole.isascii() and whole.isdigit()):
        raise ValueError(f"{path}, line {line}: {column} is {text!r}, expected a whole number")
    return int(whole)


def _read_series(folder: pathlib.Path, sensor: str, one: _Series) -> Example:
    """Reads a sensor's dates in time order without those on which nothing was observed; {} if none is left."""
    names = sorted(stems(folder, ".npz"))
    if not names:
        return {}
    days = []
    for name in names:
        # Sentinel-2's day is in the second field if the granule comes first.
        field = 1 if one.folder == "S2" and name.startswith("T") else one.date_field
        days.append(day_in_name(name, field, str(folder / f"{name}.npz"), one.example))
    images, masks = zip(*(_read_image(folder / f"{name}.npz", sensor, one) for name in names), strict=True)
    return observed_series(sensor, np.stack(images), np.stack(masks), days)


def _read_image(
    path: pathlib.Path, sensor: str, one: _Series
) -> tuple[Float32[np.ndarray, "C 32 32"], Bool[np.ndarray, "M 32 32"]]:
    """Reads one date in the sensor's bands on 32 x 32 pixels, and where it is valid; it is zero elsewhere."""
    expected = f"two-dimensional arrays {', '.join(one.bands.values())}"
    arrays = read_npz(path, expected)
    missing = [name for name in one.bands.values() if name not in arrays and name not in one.may_lack]
    if missing:
        raise ValueError(f"{path} holds {sorted(arrays)} and lacks {missing}; expected {expected}")
    found: dict[str, np.ndarray] = {}
    for band, name in ((band, name) for band, name in one.bands.items() if name in arrays):
        check_array(path, arrays[name], (None, None), ("f", "i", "u"), f"{name!r}: {expected}")
        if not arrays[name].size:
            raise ValueError(f"{path}: {name!r} is empty, {arrays[name].shape}; expected {expected}")
        found[band] = nearest(arrays[name], SIDE).astype(np.float32)
    bands = ("VV", "VH") if sensor == "s1" else get_sensor(sensor).bands
    values = np.stack([found.get(band, np.zeros((SIDE, SIDE), np.float32)) for band in bands])
    finite = np.isfinite(values)
    # Images are cut with zeros: a pixel that is 0 in all bands lies outside the swath.
    seen = (np.where(finite, values, 0) != 0).any(axis=0, keepdims=True)
    there = np.asarray([band in found for band in bands])[:, None, None]
    mask = finite & there & seen if CARD.masks[sensor] == "band" else finite.all(axis=0, keepdims=True) & seen
    values = np.where(mask, values, np.float32(0))
    return (with_ratio_of_decibels(values) if sensor == "s1" else values), mask


def nearest(values: Shaped[np.ndarray, "h w"], side: int) -> Shaped[np.ndarray, "side side"]:
    """Resamples to a grid over the same ground by the nearest pixel; target pixel i takes floor(i * height / side)."""
    # The nearest pixel, as numbers of plots and crops cannot be averaged.
    rows, columns = (np.arange(side) * count // side for count in values.shape)
    return values[np.ix_(rows, columns)]

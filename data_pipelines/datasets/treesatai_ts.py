"""TreeSatAI Time-Series: 60 m forest tiles of Lower Saxony; aerial image, Sentinel-1 and -2 series, 15 tree genera.

Read from published files: one tile (GeoTIFF and HDF5), all labels, and the lists of train and test. The list of val,
which comes with the series, was read from made-up archives only.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from anysat_jax.sensors import get_sensor
from data_pipelines.bands import pick_bands
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import day_in_name, observed_series
from data_pipelines.files import check_array, read_hdf5, read_json, read_lines, read_raster, stems, to_uint16
from data_pipelines.reader import ArchiveReader, digest, num_tiles

GENERA = (
    "Abies",
    "Acer",
    "Alnus",
    "Betula",
    "Cleared",
    "Fagus",
    "Fraxinus",
    "Larix",
    "Picea",
    "Pinus",
    "Populus",
    "Prunus",
    "Pseudotsuga",
    "Quercus",
    "Tilia",
)
MIN_AREA = 0.07  # a genus counts where it covers strictly more of the tile

CARD = DatasetCard(
    name="treesatai_ts",
    title="TreeSatAI Time-Series",
    sensors=("aerial", "s2", "s1-asc"),
    extent=60.0,
    patch_sizes=(10, 20, 30),
    splits=("train", "val", "test"),
    arrays={"aerial": "uint8", "s2": "uint16", "s1-asc": "float32"},
    sides={"aerial": 304},
    masks={"s2": "pixel", "s1-asc": "pixel"},
    clouds=("s2",),
    georeferenced="aerial",
    file_bands={"aerial": ("NIR", "G", "B", "R")},
    units={"aerial": "grey values", "s2": "L2A reflectance x 10000", "s1-asc": "linear power"},
    dates={"s2": "2020, up to 146, clouds not removed", "s1-asc": "2020, about 60"},
    tile_label="multi_label",
    tile_classes=GENERA,
    split_rule="published lists; val comes with the time series, the original archive has train and test",
    natural_colour={"aerial": (0, 1, 2), "s2": (2, 1, 0)},
    size="50,381 tiles, 180 km2",
    notes=(
        "The file's first aerial band is the infrared (IR, G, B, R), not red.",
        "Labels are genera on more than 7 % of the tile; tiles without any are left out, as in the published reader.",
        "The paper's text says 20 classes; the archive's labels name 15.",
        "The aerial image has 304 pixels a side; the 300 in its centre match six Sentinel pixels.",
    ),
    licence="CC-BY-4.0",
    citation="Ahlswede et al., TreeSatAI Benchmark Archive, ESSD 2023; time series: Astruc et al., OmniSat, ECCV 2024",
    url="https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series",
)

LABELS = "labels/TreeSatBA_v9_60m_multi_labels.json"
LAYOUT = f"train_filenames.lst, test_filenames.lst, aerial/*.tif, sentinel/*.h5, {LABELS}"
_PUBLISHED = f"TreeSatAI-TS as published: {LAYOUT}"
CLOUDS = "sen-2-masks"
VERSION = "1.1.0"  # clouds, years and places since 1.1


def holds_raw(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds the published layout."""
    return (folder / "train_filenames.lst").is_file() and (folder / "aerial").is_dir()


# The beginning of a series' HDF5 keys, the "_" field of its products' names that is the date, and such a name.
_SERIES = {
    "s2": ("sen-2", 2, "S2A_MSIL2A_20200102T102421_..."),
    "s1-asc": ("sen-1-asc", 4, "S1A_IW_GRDH_1SDV_20200103T170841_..."),
}


class TreeSatReader(ArchiveReader):
    """Reads TreeSatAI-TS in its published layout.

    The lists name the tiles of each split; those on disk are read. A tile in two lists belongs to the one held out.
    Tiles without any genus above 7 % of the area are left out, as in the published reader.
    """

    card = CARD

    def __init__(self, root: pathlib.Path) -> None:
        labels = read_json(root / LABELS, _PUBLISHED)
        if not isinstance(labels, dict):
            found = f"{root / LABELS} holds a {type(labels).__name__}"
            raise ValueError(f"{found}, expected tile names with lists of [genus, area]")
        listed = _read_lists(root)
        present = stems(root / "aerial", ".tif") & stems(root / "sentinel", ".h5")
        found = {split: [name for name in names if name in present] for split, names in listed.items()}
        num_listed, num_found = (sum(map(len, lists.values())) for lists in (listed, found))
        if not num_found:
            raise FileNotFoundError(
                f"none of the {num_listed} tiles listed in {root} is there; expected aerial/TILE.tif and "
                "sentinel/TILE.h5"
            )
        self._labels = {name: _label(root, labels, name) for names in found.values() for name in names}
        super().__init__(root, {s: [n for n in names if self._labels[n].any()] for s, names in found.items()})
        dropped = num_found - num_tiles(self)
        without = f"; {dropped} without a genus above {MIN_AREA:.0%} left out" if dropped else ""
        counts = ", ".join(f"{split} {len(self.keys(split))}" for split in self.splits())
        self.summary = f"treesatai_ts: {num_found} of {num_listed} listed tiles are in {root} ({counts}{without})"

    @property
    def fingerprint(self) -> str:
        """Changes with the tiles on disk, their splits and their labels."""
        labels = [self._labels[name].tolist() for split in self.splits() for name in self.keys(split)]
        return digest([super().fingerprint, labels])

    def example(self, split: str, key: str) -> Example:
        expected = "a GeoTIFF of 4 bands IR, G, B, R, 304 x 304 pixels, uint8"
        image, place = read_raster(self.root / "aerial" / f"{key}.tif", (4, 304, 304), "uint8", expected)
        # The archive's first band is the infrared, where the sensor's order is R, G, B, NIR.
        aerial = pick_bands(image, CARD.file_bands["aerial"], get_sensor("aerial").bands)
        path = self.root / "sentinel" / f"{key}.h5"
        keys = [f"{name}-{kind}" for name, *_ in _SERIES.values() for kind in ("data", "products")]
        arrays = read_hdf5(path, [*keys, CLOUDS], f"an HDF5 file with {keys} and {CLOUDS!r}")
        series = _read_series(path, "s2", arrays) | _read_series(path, "s1-asc", arrays)
        return {"id": key, "aerial": aerial, **place, **series, "tile": self._labels[key]}


open_reader = TreeSatReader


def _read_lists(root: pathlib.Path) -> dict[str, list[str]]:
    """Reads tile names by split, each in one split only."""
    taken: set[str] = set()
    lists = {}
    # The parts that are held out come first: a tile that one of them names is not trained on.
    for split in ("test", "val", "train"):
        path = root / f"{split}_filenames.lst"
        if split == "val" and not path.is_file():  # the original archive has none
            continue
        lines = read_lines(path, _PUBLISHED)
        if strange := [line for line in lines if line == ".tif" or "/" in line or "\\" in line]:
            expected = "one name like Abies_alba_1_1005_WEFL_NLF.tif a line"
            raise ValueError(f"{path}: {strange[0]!r} is not a tile; expected {expected}")
        names = dict.fromkeys(line.removesuffix(".tif") for line in lines)
        lists[split] = [name for name in names if name not in taken]
        taken |= set(names)
    return lists


def _label(root: pathlib.Path, labels: dict[str, Any], name: str) -> UInt8[np.ndarray, "15"]:
    """Returns the genera that cover more than 7 % of the tile, multi-hot."""
    path = root / LABELS
    if f"{name}.tif" not in labels:
        raise ValueError(f"{path}: no labels of tile {name}.tif, which a split list names")
    hot = np.zeros(len(GENERA), np.uint8)
    try:
        for genus, area in labels[f"{name}.tif"]:
            # A genus may be listed with several areas, of which one suffices.
            hot[GENERA.index(genus)] |= float(area) > MIN_AREA
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: tile {name}.tif has {labels[f'{name}.tif']!r}, expected pairs [genus, area] with a genus of "
            f"{', '.join(GENERA)}"
        ) from error
    return hot


def _cloud_percent(path: pathlib.Path, layers: Any, num_dates: int) -> UInt8[np.ndarray, "T 1 6 6"]:
    """Returns the larger of the probabilities of snow and cloud."""
    expected = f"percentages of shape ({num_dates}, 2 or more, 6, 6)"
    check_array(path, layers, (num_dates, None, 6, 6), ("f", "i", "u"), f"{CLOUDS!r}: {expected}")
    # Snow is as useless as cloud for a forest's spectrum; the file's other eight layers are empty.
    percent = layers[:, :2].max(axis=1, keepdims=True) if layers.shape[1] >= 2 else layers
    if layers.shape[1] < 2 or not (percent >= 0).all() or not (percent <= 100).all():
        raise ValueError(f"{path}: {CLOUDS!r} is {layers.shape} or has values outside 0 to 100; expected {expected}")
    return np.rint(percent).astype(np.uint8)


def _read_series(path: pathlib.Path, sensor: str, arrays: Mapping[str, Any]) -> Example:
    """Returns a series in time order, without dates on which nothing was observed."""
    name, date_field, example = _SERIES[sensor]
    where, bands, products = f"{path}: '{name}-data'", get_sensor(sensor).num_bands, arrays[f"{name}-products"]
    expected = f"numbers of shape (dates, {bands}, 6, 6)"
    values = check_array(where, arrays[f"{name}-data"], (None, bands, 6, 6), "fiu", expected)
    if np.shape(products) != values.shape[:1] or not len(values):
        found = f"'{name}-products' is {np.shape(products)}"
        raise ValueError(f"{path}: {found}; expected one name for each of {len(values)} > 0 dates")
    clouds = _cloud_percent(path, arrays[CLOUDS], len(values)) if sensor in CARD.clouds else None
    texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in products]
    days = [day_in_name(text, date_field, f"{path}: '{name}-products'", example) for text in texts]
    # Pixels outside a swath are 0 in all bands; one band that is not finite spoils a pixel.
    finite = np.isfinite(values).all(axis=1, keepdims=True)
    mask = finite & (values != 0).any(axis=1, keepdims=True)
    values = np.where(finite, values, 0)
    # Noise that was subtracted may leave a power slightly below 0, decibels of a forest are below -5.
    if sensor == "s1-asc" and values.min() < -1:
        raise ValueError(f"{where} goes down to {values.min():g}; expected linear power, not decibels")
    if not mask.any():
        raise ValueError(f"{where} is zero or NaN everywhere; expected at least one date with an observation")
    values = values.astype(np.float32)
    if sensor == "s2":
        values = to_uint16(where, values, "digital numbers, 0 to 65535")
    return observed_series(sensor, values, mask, days, clouds)

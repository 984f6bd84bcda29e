"""TreeSatAI Time-Series: 60 m forest tiles of Lower Saxony; aerial image, Sentinel-1 and -2 series, 15 tree genera."""

import dataclasses
import datetime
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from data_pipelines.card import DatasetCard, Example

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
    tile_label="multi_label",
    tile_classes=GENERA,
    natural_colour={"aerial": (0, 1, 2), "s2": (2, 1, 0)},
    arrays={"aerial": "uint8", "s2": "uint16", "s1-asc": "float32"},
    licence="CC-BY-4.0",
    citation="Ahlswede et al., TreeSatAI Benchmark Archive, ESSD 2023; time series: Astruc et al., OmniSat, ECCV 2024",
    url="https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series",
)

LABELS = "labels/TreeSatBA_v9_60m_multi_labels.json"
LAYOUT = f"train_filenames.lst, test_filenames.lst, aerial/*.tif, sentinel/*.h5, {LABELS}"
AERIAL_SHAPE = (4, 304, 304)


def holds_raw(folder: pathlib.Path) -> bool:
    """Whether a folder holds the published layout."""
    return (folder / "train_filenames.lst").is_file() and (folder / "aerial").is_dir()


def open_reader(root: pathlib.Path | None) -> "TreeSatReader":
    """The reader of the raw data in `root`."""
    if root is None:
        raise ValueError("TreeSatAI-TS is read from a folder; set --config.data.root")
    return TreeSatReader(root)


@dataclasses.dataclass(frozen=True)
class _Series:
    """Where a sensor's series stands in the HDF5 file, and which "_" field of its product names holds the date."""

    values: str
    products: str
    date_field: int
    example: str


_SERIES = {
    "s2": _Series("sen-2-data", "sen-2-products", 2, "S2A_MSIL2A_20200102T102421_..."),
    "s1-asc": _Series("sen-1-asc-data", "sen-1-asc-products", 4, "S1A_IW_GRDH_1SDV_20200103T170841_..."),
}


class TreeSatReader:
    """Reads TreeSatAI-TS in its published layout.

    The lists name the tiles of each split; those on disk are read. A tile in two lists belongs to the one held out.
    Tiles without any genus above 7 % of the area are left out, as in the published reader.
    """

    card = CARD

    def __init__(self, root: pathlib.Path) -> None:
        """Args:
          root: folder with the split lists.

        Raises:
          FileNotFoundError: a list or the labels are missing, or not one of the listed tiles is on disk.
          ValueError: the labels or a list are not as published.
        """
        self.root = root
        labels = _read_labels(root / LABELS)
        listed = _read_lists(root)
        present = _stems(root / "aerial", ".tif") & _stems(root / "sentinel", ".h5")
        found = {split: [name for name in names if name in present] for split, names in listed.items()}
        self._labels = {name: _label(root, labels, name) for names in found.values() for name in names}
        self._tiles = {split: [n for n in names if self._labels[n].any()] for split, names in found.items()}
        if not any(found.values()):
            total = sum(map(len, listed.values()))
            raise FileNotFoundError(
                f"none of the {total} tiles listed in {root} is there; expected aerial/TILE.tif and sentinel/TILE.h5"
            )
        self.summary = self._summary(listed, found)

    def _summary(self, listed: dict[str, list[str]], found: dict[str, list[str]]) -> str:
        num_listed, num_found = (sum(map(len, lists.values())) for lists in (listed, found))
        splits = ", ".join(f"{split} {len(names)}" for split, names in reversed(self._tiles.items()))
        dropped = num_found - len(self)
        without = f"; {dropped} without a genus above {MIN_AREA:.0%} left out" if dropped else ""
        return f"treesatai_ts: {num_found} of {num_listed} listed tiles are in {self.root} ({splits}{without})"

    @property
    def fingerprint(self) -> str:
        """Changes with the tiles on disk, their splits and their labels."""
        tiles = [(split, [(n, self._labels[n].tolist()) for n in names]) for split, names in self._tiles.items()]
        return hashlib.sha256(json.dumps(tiles).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self._tiles.values()))

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in CARD.splits if self._tiles.get(split))

    def examples(self, split: str) -> Iterator[tuple[str, Example]]:
        """Name and example of each tile, in the list's order.

        Raises:
          ValueError: a file is unreadable or not as published; the message names it and what was expected.
          ImportError: rasterio or h5py is not installed.
        """
        for name in self._tiles[split]:
            example: Example = {"id": name, "aerial": _read_aerial(self.root / "aerial" / f"{name}.tif")}
            example |= _read_sentinel(self.root / "sentinel" / f"{name}.h5")
            yield name, example | {"tile": self._labels[name]}


def _read_lists(root: pathlib.Path) -> dict[str, list[str]]:
    """Tile names by split, each in one split only: what is held out anywhere is not trained on."""
    taken: set[str] = set()
    lists = {}
    for split in ("test", "val", "train"):
        path = root / f"{split}_filenames.lst"
        if split == "val" and not path.is_file():  # the original archive has none
            continue
        names = dict.fromkeys(_tile_name(path, line) for line in _read_text(path).split("\n") if line.strip())
        lists[split] = [name for name in names if name not in taken]
        taken |= set(names)
    return lists


def _tile_name(path: pathlib.Path, line: str) -> str:
    name = line.strip().removesuffix(".tif")
    if not name or "/" in name or "\\" in name:
        raise ValueError(f"{path}: {line!r} is no tile; expected one name like Abies_alba_1_1005_WEFL_NLF.tif a line")
    return name


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; expected TreeSatAI-TS as published: {LAYOUT}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def _read_labels(path: pathlib.Path) -> dict[str, Any]:
    try:
        labels = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); download it again") from error
    if not isinstance(labels, dict):
        raise ValueError(f"{path} holds a {type(labels).__name__}, expected tile names with lists of [genus, area]")
    return labels


def _label(root: pathlib.Path, labels: dict[str, Any], name: str) -> UInt8[np.ndarray, "15"]:
    """Multi-hot genera that cover more than 7 % of the tile."""
    path = root / LABELS
    if f"{name}.tif" not in labels:
        raise ValueError(f"{path}: no labels of tile {name}.tif, which a split list names")
    hot = np.zeros(len(GENERA), np.uint8)
    try:
        for genus, area in labels[f"{name}.tif"]:
            hot[GENERA.index(genus)] |= float(area) > MIN_AREA
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: tile {name}.tif has {labels[f'{name}.tif']!r}, expected pairs [genus, area] with a genus of "
            f"{', '.join(GENERA)}"
        ) from error
    return hot


def _stems(folder: pathlib.Path, suffix: str) -> set[str]:
    """Names of the files with a suffix; one listing instead of a question for each of fifty thousand tiles."""
    return (
        {p.name.removesuffix(suffix) for p in folder.iterdir() if p.name.endswith(suffix)} if folder.is_dir() else set()
    )


def _read_aerial(path: pathlib.Path) -> UInt8[np.ndarray, "4 304 304"]:
    """The aerial image; the file's bands are IR, G, B, R, ours R, G, B, NIR."""
    try:
        import rasterio
    except ImportError as error:
        raise ImportError(f"reading {path} needs rasterio: pip install -e '.[data]'") from error
    expected = "a GeoTIFF of 4 bands IR, G, B, R, 304 x 304 pixels, uint8"
    try:
        with rasterio.open(path) as file:
            image = file.read()
    except (rasterio.errors.RasterioError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected {expected}; download it again") from error
    if image.shape != AERIAL_SHAPE or image.dtype != np.uint8:
        raise ValueError(f"{path} is {image.dtype} {image.shape}; expected {expected}")
    return np.ascontiguousarray(image[[3, 1, 2, 0]])


def _read_sentinel(path: pathlib.Path) -> Example:
    """Both series with their dates and masks of what was observed at all."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"reading {path} needs h5py: pip install -e '.[data]'") from error
    keys = [key for one in _SERIES.values() for key in (one.values, one.products)]
    try:
        with h5py.File(path) as file:
            missing = [key for key in keys if key not in file]
            arrays = {key: file[key][()] for key in keys if key in file}
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected an HDF5 file with {keys}; download it again"
        ) from error
    if missing:
        raise ValueError(f"{path} has no {missing}; expected {keys}")
    example: Example = {}
    for sensor, one in _SERIES.items():
        example |= _read_series(path, sensor, one, arrays[one.values], arrays[one.products])
    example["s2"] = _to_uint16(path, example["s2"])
    return example


def _read_series(path: pathlib.Path, sensor: str, one: _Series, values: Any, products: Any) -> Example:
    """A series in time order. Pixels that are zero in all bands were not observed; dates without any are left out."""
    _check_series(path, sensor, one, values, products)
    days = [_parse_date(path, one, product) for product in products]
    mask = (values != 0).any(axis=1, keepdims=True)
    seen = [i for i in sorted(range(len(days)), key=days.__getitem__) if mask[i].any()]
    if not seen:
        raise ValueError(f"{path}: {one.values!r} is zero everywhere; expected at least one date with an observation")
    dates = np.asarray([days[i].timetuple().tm_yday - 1 for i in seen], np.int32)
    return {sensor: values[seen].astype(np.float32), f"{sensor}_dates": dates, f"{sensor}_mask": mask[seen]}


def _check_series(path: pathlib.Path, sensor: str, one: _Series, values: Any, products: Any) -> None:
    num_bands = {"s2": 10, "s1-asc": 2}[sensor]
    expected = (num_bands, 6, 6)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.shape[1:] != expected:
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{path}: {one.values!r} is {found}; expected numbers of shape (dates, {num_bands}, 6, 6)")
    if np.shape(products) != values.shape[:1] or not len(values):
        raise ValueError(
            f"{path}: {one.products!r} is {np.shape(products)}; expected one name for each of {len(values)} > 0 dates"
        )
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(f"{path}: {wrong} values of {one.values!r} are NaN or infinite; expected finite numbers")
    if sensor == "s1-asc" and values.min() < -1:
        raise ValueError(f"{path}: {one.values!r} goes down to {values.min():g}; expected linear power, not decibels")


def _parse_date(path: pathlib.Path, one: _Series, product: Any) -> datetime.date:
    text = product.decode("utf-8", "replace") if isinstance(product, bytes) else str(product)
    try:
        field = text.split("_")[one.date_field]
        return datetime.datetime.strptime(field[:8], "%Y%m%d").date()
    except (IndexError, ValueError):
        raise ValueError(
            f"{path}: {one.products!r} holds {text!r}, which tells no date; expected a name like {one.example}"
        ) from None


def _to_uint16(path: pathlib.Path, values: Float32[np.ndarray, "T 10 6 6"]) -> UInt16[np.ndarray, "T 10 6 6"]:
    """Digital numbers, stored as floats in the archive."""
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"{path}: 'sen-2-data' runs from {values.min():g} to {values.max():g}; expected digital numbers, 0 to 65535"
        )
    return np.rint(values).astype(np.uint16)

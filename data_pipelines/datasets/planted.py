"""PLANTED: 120 m tiles of planted forest all over the world, five satellites' time series, 40 species.

No published file was at hand: names, shapes and masks are those of the archive's documentation and of a public reader,
read from made-up archives only.
"""

import bisect
import concurrent.futures
import datetime
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from anysat_jax.sensors import get_sensor
from data_pipelines.archives import parse_example, read_record, record_offsets
from data_pipelines.bands import in_decibels, with_ratio, with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import from_epoch_milliseconds, observed_series
from data_pipelines.files import inside, read_json, read_lines, read_npz
from data_pipelines.reader import ArchiveReader, digest, num_tiles

NUM_CLASSES = 40
RADAR = ("s1", "alos")  # a third channel of the archive, most likely the angle of incidence, gives way to a ratio
FIRST_YEAR, LAST_YEAR = 1999, 2100  # from the launch of Landsat 7 and Terra on

CARD = DatasetCard(
    name="planted",
    title="PLANTED",
    sensors=("s2", "s1", "l7", "alos", "modis"),
    extent=120.0,
    patch_sizes=(30, 60),
    splits=("train", "val", "test"),
    masks=dict.fromkeys(("s2", "s1", "l7", "alos", "modis"), "band"),
    optional=("s2", "s1", "l7", "alos", "modis"),
    file_bands={"s1": ("VV", "VH", "angle"), "alos": ("HH", "HV", "angle")},
    units={
        "s2": "reflectance, as the archive scales it",
        "s1": "backscatter in dB",
        "l7": "reflectance, as the archive scales it",
        "alos": "digital numbers of amplitude (gamma0 in dB = 20 log10 DN - 83)",
        "modis": "reflectance, as the archive scales it",
    },
    dates={"s2": "8 seasons", "s1": "8 seasons", "l7": "20 seasons", "alos": "4 years", "modis": "60 months"},
    tile_label="class",
    tile_classes=tuple(f"species {number}" for number in range(NUM_CLASSES)),
    split_rule="published",
    natural_colour={"s2": (2, 1, 0), "l7": (2, 1, 0), "modis": (0, 3, 2)},
    size="1,348,219 tiles with a species (version 1.2.0; 155 GB), 1,075,701 of them for training (version 1.0.1)",
    notes=(
        "Take the subset 'species' of the archive; the others hold tiles without a species.",
        "The names of the 40 species are not in this card: their official order could not be confirmed. Where the "
        "records name the species, species.txt in the archive's folder gives the order, one name a line; `python -m "
        "data_pipelines.datasets.planted DIR` writes it from all records, sorted. Class numbers are taken as they are.",
        "The archive's masks are 1 where a pixel is valid, for each band; dates without a valid value are left out, "
        "and a sensor without dates is missing.",
        "Dates are milliseconds since 1970 in UTC; the published reader takes the day in the machine's time zone.",
        "The third channel of both radars is replaced. Sentinel-1's is VV - VH in dB, where the published reader "
        "divides the decibels; linear power, should the files hold it, is converted. ALOS's is HH / HV of "
        "amplitudes, or HH - HV should the files hold dB.",
        "The names of the features, the shapes and the masks' meaning are those of a public reader of the archive.",
        "A MODIS pixel (250 m) is larger than the tile.",
    ),
    licence="CC-BY-4.0",
    citation="Pazos-Outón et al., Planted: a dataset for planted forest identification from multi-satellite time "
    "series, IGARSS 2024",
    url="https://github.com/google-deepmind/forest_typology/tree/main/planted",
)


def class_number(where: str, number: int) -> np.int32:
    """Checks and returns the class number of a tile.

    Raises:
      ValueError: it is none of the 40 classes.
    """
    if not 0 <= number < NUM_CLASSES:
        raise ValueError(f"{where}: the species is {number}; expected a class from 0 to {NUM_CLASSES - 1}")
    return np.int32(number)


def read_series(where: str, sensor: str, values: np.ndarray, mask: np.ndarray, stamps: np.ndarray) -> Example:
    """Returns a sensor's fields of an example; {} if no date has a valid value.

    `values` are (T, H, W, C) numbers in the archive's bands; `mask` is of that shape, not 0 where valid; `stamps` are
    (T,) milliseconds since 1970; `where` is the file or record, for errors.

    Raises:
      ValueError: an array is of another shape, or a date cannot be.
    """
    side, bands = CARD.side(sensor), (2, 3) if sensor in RADAR else (get_sensor(sensor).num_bands,)
    expected = f"({len(stamps)}, {side}, {side}, {' or '.join(map(str, bands))})"
    fits = values.ndim == 4 and values.shape[:3] == (len(stamps), side, side) and values.shape[3] in bands
    if not fits or values.dtype.kind not in "fiu" or stamps.ndim != 1:
        what = f"{sensor!r} is {values.dtype} {values.shape} with {stamps.shape} dates"
        raise ValueError(f"{where}: {what}; expected numbers of shape {expected}, dates first and bands last")
    if mask.shape != values.shape or mask.dtype.kind not in "biuf":
        raise ValueError(f"{where}: the mask of {sensor!r} is {mask.dtype} {mask.shape}; expected 0 or 1, {expected}")
    valid = np.moveaxis(np.isfinite(values) & (mask != 0), -1, 1)
    clean = np.where(valid, np.moveaxis(values, -1, 1), 0).astype(np.float32)
    if sensor in RADAR:
        clean, valid = clean[:, :2], valid[:, :2]
        if sensor == "s1":
            clean = with_ratio_of_decibels(in_decibels(f"{where}, {sensor!r}", clean, valid))
        else:
            # ALOS's digital number 0 means no data. Amplitudes are positive; a negative value can only be in dB.
            valid = valid & (clean != 0)
            clean = with_ratio_of_decibels(clean) if (clean < 0).any() else with_ratio(clean)
        valid = np.concatenate([valid, valid.all(axis=1, keepdims=True)], axis=1)
        clean = np.where(valid, clean, np.float32(0))
    # Dates without a valid value may have no time either: they go before their stamps are read.
    seen = np.flatnonzero(valid.any(axis=(1, 2, 3)))
    days = [_day(where, sensor, stamp) for stamp in stamps[seen]]
    clean, valid = np.ascontiguousarray(clean[seen]), np.ascontiguousarray(valid[seen])
    return observed_series(sensor, clean, valid, days)


def _day(where: str, sensor: str, stamp: float) -> datetime.date:
    try:
        day = from_epoch_milliseconds(stamp)
    except (ValueError, OverflowError):
        day = datetime.date.min
    # Seconds in place of milliseconds would give January 1970.
    if not FIRST_YEAR <= day.year < LAST_YEAR:
        what = f"{where}: {sensor!r} has the date {stamp}"
        raise ValueError(f"{what}; expected milliseconds since 1970, of a year from {FIRST_YEAR} on")
    return day


LABELS = "labels2.json"
FOLDERS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


def label_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the label file of each split that exists."""
    paths = {split: [root / name / LABELS for name in names] for split, names in FOLDERS.items()}
    return {split: path for split, several in paths.items() for path in several if path.is_file()}


class PlantedFiles(ArchiveReader):
    """Reads PLANTED from one folder of `.npz` files for each tile."""

    def __init__(self, root: pathlib.Path) -> None:
        self._folders: dict[str, pathlib.Path] = {}
        self._labels: dict[str, np.int32] = {}
        tiles, num_listed = {}, 0
        for split, path in label_files(root).items():
            labels = read_json(path, "class numbers of tiles, {ID: 0...39}")
            # type, not isinstance: True is an int.
            if not isinstance(labels, dict) or not all(type(number) is int for number in labels.values()):
                raise ValueError(f"{path} is not of the form {{ID: class number}}; expected whole numbers from 0 to 39")
            for name in labels:
                # `inside` resolves links on the disk, too slow for a million names: only those with a path need it.
                if "/" in name or not name.strip("."):
                    inside(path.parent, name)
            present = set(os.listdir(path.parent))
            num_listed += len(labels)
            self._folders[split] = path.parent
            tiles[split] = [name for name in labels if name in present]
            numbers = {name: class_number(f"{path}, tile {name!r}", number) for name, number in labels.items()}
            self._labels |= {name: numbers[name] for name in tiles[split]}
        super().__init__(CARD, root, tiles)
        self.summary += f", of {num_listed:,} labelled ones"
        labels = [int(self._labels[key]) for split in self.splits() for key in self.keys(split)]
        self.fingerprint = digest([self.fingerprint, labels])

    def example(self, split: str, key: str) -> Example:
        folder = inside(self._folders[split], key)
        present = {path.name for path in folder.iterdir()}
        example: Example = {"id": key, "tile": self._labels[key]}
        for sensor in CARD.sensors:
            if f"{key}_{sensor}.npz" in present:
                paths = [folder / f"{key}_{sensor}{suffix}.npz" for suffix in ("", "_mask", "_timestamp")]
                example |= read_series(str(paths[0]), sensor, *map(_read_array, paths))
        return example


def _read_array(path: pathlib.Path) -> np.ndarray:
    arrays = read_npz(path, "a .npz file with the array 'arr_0'")  # as numpy calls arrays without a name
    if "arr_0" not in arrays:
        raise ValueError(f"{path} holds {sorted(arrays)}; expected the array 'arr_0'")
    return arrays["arr_0"]


SPECIES = "species.txt"
LABEL = "species"  # a name or a class number
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_FILE = re.compile(r"(?:^|[-_./])(train|validation|valid|val|test)[^/]*\.tfrecords?(?:-\d+-of-(\d+))?$")
_WALKERS = 8  # threads that wait for the disk while record headers are read


class RecordKeys(Sequence[str]):
    """Keys "FILE:NUMBER" of all records of some files, made on access: there are more than a million."""

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self._names = tuple(names)
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index]
        # The ends of the files' ranges ascend; a position lies in the first one that ends behind it.
        file = bisect.bisect_right(self._ends, place)
        return f"{self._names[file]}:{place - (self._ends[file - 1] if file else 0)}"


def record_files(root: pathlib.Path) -> dict[str, list[str]]:
    """Lists TFRecord files in a folder and one level below, by split, as paths from `root`, without hidden ones."""
    found: dict[str, list[str]] = {}
    for path in itertools.chain(root.glob("*.tfrecord*"), root.glob("*/*.tfrecord*")):
        name = path.relative_to(root).as_posix()
        if not path.name.startswith(".") and (match := _FILE.search(name)):
            found.setdefault(SPLITS[match[1]], []).append(name)
    return {split: sorted(names) for split, names in found.items()}


class PlantedRecords(ArchiveReader):
    """Reads PLANTED's TFRecords, any record at a time; refuses files of one split in several folders."""

    def __init__(self, root: pathlib.Path) -> None:
        self.card, self.root, self.species, files = CARD, root, (), record_files(root)
        if (path := root / SPECIES).is_file():  # without it, there are no names of the classes in order
            self.species = tuple(read_lines(path, "the names of the 40 species, one a line"))
            if len(set(self.species)) != NUM_CLASSES or len(self.species) != NUM_CLASSES:
                found = f"{path} has {len(self.species)} lines with {len(set(self.species))} different names"
                raise ValueError(f"{found}; expected {NUM_CLASSES}, one species a line, in the order of the classes")
        if not files:
            raise FileNotFoundError(f"{root} holds no file like planted-train.tfrecord-00000-of-01024; see {CARD.url}")
        for split, names in sorted(files.items()):
            folders = sorted({name.rpartition("/")[0] or "." for name in names})
            # Two versions or subsets of the archive hold the same tiles in other splits.
            if len(folders) > 1:
                found = f"{root} holds files of {split!r} in the folders {', '.join(folders)}"
                raise ValueError(f"{found}; expected those of one version and subset: name one of the folders")
        names = [name for several in files.values() for name in several]
        with concurrent.futures.ThreadPoolExecutor(_WALKERS) as threads:
            found = threads.map(lambda name: record_offsets(root / name), names)
            self._offsets = dict(zip(names, found, strict=True))
        # In place of the base's tuples, which would keep a million keys in memory and in each worker.
        counts = {split: [len(self._offsets[name]) - 1 for name in files.get(split, [])] for split in CARD.splits}
        self.tiles = {split: RecordKeys(files.get(split, []), numbers) for split, numbers in counts.items()}
        total, parts = sum(map(len, self.tiles.values())), (f"{s} {len(self.tiles[s]):,}" for s in self.splits())
        self.summary = f"{CARD.name}: {total:,} records in {root} ({', '.join(parts)}){_missing_shards(names)}"
        sizes = {name: [len(offsets), int(offsets[-1])] for name, offsets in sorted(self._offsets.items())}
        self.fingerprint = digest([sizes, self.species])

    def example(self, split: str, key: str) -> Example:
        """Reads one record; raises as the base, and KeyError if there is no such record."""
        where, features = self.features(key)
        label = species_name(where, features)
        if isinstance(label, str) and label not in self.species:
            path, command = self.root / SPECIES, f"python -m data_pipelines.datasets.planted {self.root}"
            found = "does not list it" if self.species else "is missing"
            message = f"{where}: the species {label!r} has no class number, as {path} {found}"
            raise ValueError(f"{message}; write one name a line in the order of the classes, or run: {command}")
        number = self.species.index(label) if isinstance(label, str) else label
        example: Example = {"id": key, "tile": class_number(where, number)}
        for sensor in CARD.sensors:
            if sensor in features:
                example |= read_series(where, sensor, *_arrays(where, sensor, features))
        return example

    def features(self, key: str) -> tuple[str, dict[str, np.ndarray]]:
        """Returns file and record in words, and the record's features by name, each of one dimension."""
        name, _, number = key.rpartition(":")
        offsets, index = self._offsets[name], int(number)
        if not 0 <= index < len(offsets) - 1:
            raise KeyError(key)
        where = f"{self.root / name}, record {number}"
        return where, parse_example(read_record(self.root / name, *map(int, offsets[index : index + 2])), where)


def species_name(where: str, features: dict[str, np.ndarray]) -> str | int:
    """Returns the label of a record, a name or a class number.

    Raises:
      ValueError: it has none.
    """
    label = _feature(where, LABEL, features)
    if label.dtype != object:
        return int(label[0])
    text = label[0].decode("utf-8", "replace").strip()
    if not text:
        raise ValueError(f"{where} has no species; expected the subset 'species' of the archive")
    return int(text) if text.isdecimal() else text


def write_species(root: pathlib.Path) -> pathlib.Path:
    """Writes species.txt with the names in all records, sorted; every file is read from start to end.

    Raises:
      ValueError: the records have class numbers instead of names, or do not name 40 species.
      FileExistsError: there is a species.txt.
    """
    import tqdm

    reader = PlantedRecords(root)
    keys = itertools.chain.from_iterable(reader.tiles.values())
    found = {species_name(*reader.features(k)) for k in tqdm.tqdm(keys, total=num_tiles(reader), unit="record")}
    if any(isinstance(name, int) for name in found) or len(found) != NUM_CLASSES:
        what = f"the records of {root} hold {len(found)} species, {sorted(map(str, found))}"
        raise ValueError(f"{what}; expected 40 names")
    # "x": a list that someone wrote in the official order is not overwritten.
    with (root / SPECIES).open("x", encoding="utf-8") as file:
        file.writelines(f"{name}\n" for name in sorted(map(str, found)))
    return root / SPECIES


def _missing_shards(files: Sequence[str]) -> str:
    """Returns how many shards are missing, from the totals in the names of the others."""
    shards = [name.rpartition("-of-") for name in files if "-of-" in name]
    promised = {first.rpartition("-")[0]: int(count) for first, _, count in shards}
    missing = sum(promised.values()) - len(shards)
    return f"; {missing:,} of {sum(promised.values()):,} files are not there" if missing > 0 else ""


def _arrays(where: str, sensor: str, features: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns values and mask (T, H, W, C) and dates (T,) of a sensor."""
    stamps, pixels = _feature(where, f"{sensor}_timestamps", features), CARD.side(sensor)
    shape = (len(stamps), pixels, pixels, -1)
    arrays = []
    for name in (sensor, f"{sensor}_mask"):
        flat = _feature(where, name, features)
        if flat.dtype == object or flat.size % (len(stamps) * pixels * pixels):
            found = f"feature {name!r} has {flat.size} values of {flat.dtype}"
            raise ValueError(
                f"{where}: {found}; expected numbers for {len(stamps)} dates of {pixels} x {pixels} pixels"
            )
        arrays.append(flat.reshape(shape))
    return arrays[0], arrays[1], stamps


def _feature(where: str, name: str, features: dict[str, np.ndarray]) -> np.ndarray:
    if name not in features:
        raise ValueError(
            f"{where} has no feature {name!r} but {sorted(features)}; expected {LABEL!r} and, for each sensor, "
            f"'s2', 's2_mask', 's2_timestamps' and the like"
        )
    return features[name]


LAYOUT = f"*train*.tfrecord-*-of-*, validation and test likewise, and {SPECIES}; or {{train,val,test}}/{LABELS}"


def holds_raw(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds one of the two layouts."""
    return bool(label_files(folder) or record_files(folder))  # the latter lists the folders below


def open_reader(root: pathlib.Path) -> PlantedRecords | PlantedFiles:
    """Opens the raw data in `root`: TFRecords where there are any, else `.npz` files."""
    return PlantedFiles(root) if label_files(root) and not record_files(root) else PlantedRecords(root)


if __name__ == "__main__":
    print(write_species(pathlib.Path(sys.argv[1])))

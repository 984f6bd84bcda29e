"""S2NAIP-URBAN: 640 m tiles of cities of the United States; NAIP image, Sentinel-1, Sentinel-2 and Landsat series.

No published file was at hand: folders, names, tables and bytes are those of the archive's documentation and of a
public reader, read from made-up archives only.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num

from anysat_jax.sensors import get_sensor
from data_pipelines.archives import read_member, tar_members
from data_pipelines.bands import doubled, in_decibels, pick_bands, to_uint16, with_ratio_of_decibels
from data_pipelines.card import DatasetCard, Example
from data_pipelines.datasets.s2naip_metadata import (
    CLASSES,
    COLOURS,
    FOLDERS,
    SIDE,
    TILE,
    draw_map,
    listed_splits,
    read_date_table,
    read_split_dicts,
    split_of,
)
from data_pipelines.dates import observed_series
from data_pipelines.files import parse_json, read_png, stems
from data_pipelines.rasters import read_raster, read_raster_and_nodata
from data_pipelines.reader import ArchiveReader, digest, layout_check

IMAGES = "naip"


def tar_files(root: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """Returns the archives of a kind of data: `KIND/*.tar`, and `KIND_ZONE/*.tar` for each UTM zone."""
    found = [*root.glob(f"{kind}/*.tar"), *root.glob(f"{kind}_?????/*.tar")]
    return sorted(path for path in found if not path.name.startswith("."))


class TileFiles:
    """Finds and reads the files of tiles in a dataset's folder."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self._archives: dict[str, tuple[str, str]] = {}  # folder's zone ("_32612") and file name, by tile
        for path in tar_files(root, IMAGES):
            place = (path.parent.name.removeprefix(IMAGES), path.name)
            for name in tar_members(path):
                folder, _, file = name.partition("/")
                if folder == IMAGES and file.endswith(".png") and TILE.fullmatch(file.removesuffix(".png")):
                    self._archives[file.removesuffix(".png")] = place
        loose = {name for name in stems(root / IMAGES, ".png") if TILE.fullmatch(name)}
        self.tiles = loose | set(self._archives)  # names of those that have an image of NAIP

    def archive(self, tile: str) -> tuple[str, str]:
        """Returns zone and name of a tile's archive; reading tiles in this order opens each archive once."""
        return self._archives.get(tile, ("", ""))

    def read(self, kind: str, tile: str, suffix: str) -> tuple[pathlib.Path, bytes | None]:
        """Reads a file: its path, for messages, and its content, None if it does not exist.

        Raises:
          ValueError: an archive is damaged.
        """
        path = self.root / kind / f"{tile}{suffix}"
        if path.is_file():
            return path, path.read_bytes()
        # The archives of all kinds of data are cut alike: a tile's have one name, in folders of one zone.
        zone, archive = self.archive(tile)
        holder = self.root / f"{kind}{zone}" / archive
        if not archive or not holder.is_file():
            return path, None
        return holder / kind / path.name, read_member(holder, f"{kind}/{path.name}")


METRES = 1.25
TEN_METRES = {"s2": ("B2", "B3", "B4", "B8"), "l8": ("B8",)}  # of `_8.tif`, 64 x 64 pixels
TWENTY_METRES = {  # of `_16.tif`, 32 x 32 pixels
    "s2": ("B5", "B6", "B7", "B8A", "B11", "B12"),
    "l8": ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11"),
}
GRID = 64
NOTHING = (-9999, -32768)  # in radar, whether or not a file says that it stands for no data

CARD = DatasetCard(
    name="s2naip",
    title="S2NAIP-URBAN",
    sensors=("naip", "s2", "s1", "l8"),
    extent=640.0,
    patch_sizes=(40, 80, 160),
    splits=("train", "val"),
    arrays={"naip": "uint8", "s2": "uint16", "s1": "float32", "l8": "uint16"},
    masks=dict.fromkeys(("naip", "s2", "s1", "l8"), "pixel"),
    optional=("s2", "s1", "l8"),
    georeferenced="naip",
    file_bands={"s2": TEN_METRES["s2"] + TWENTY_METRES["s2"], "s1": ("VV", "VH")},
    units={
        "naip": "grey values",
        "s2": "L1C (top of atmosphere) reflectance x 10000",
        "s1": "backscatter in dB",
        "l8": "digital numbers of Landsat 8 and 9, level 1",
    },
    dates={"s2": "16 to 32 near the date of NAIP", "s1": "2 to 8 near the date of NAIP", "l8": "4 of the same year"},
    dense_label="segmentation",
    dense_classes=CLASSES,
    dense_colours=COLOURS,
    dense_metres=METRES,
    split_rule="train_dict.json and val_dict.json, or train.csv and val.csv with a column 'name', where they are "
    "there; else blocks of 16 x 16 tiles (10 km), of which one in ten is 'val' by a hash of its place",
    natural_colour={"naip": (0, 1, 2), "s2": (2, 1, 0), "l8": (4, 3, 2)},
    size="515,270 tiles, 211,063 km2",
    notes=(
        "A part of AI2-S2-NAIP, which spans the United States: all tiles in the folder are read, or those of the "
        "lists. The list of the urban tiles was not published with it.",
        "The dense label is OpenStreetMap, drawn, to look at: six classes and colours of our own making, no benchmark. "
        "Tiles without a map have the ignored label everywhere.",
        "The fourth band of NAIP's PNG is infrared, not transparency.",
        "Sentinel-2 is L1C, where the other datasets of GeoPlex have L2A.",
        "Bands of 32 x 32 pixels (B5, B6, B7, B8A, B11, B12; Landsat's without B8) are interpolated to 64 x 64.",
        "Values stay unsigned 16 bit; the published reader casts them to int16, where those above 32767 turn negative.",
        "The third channel of Sentinel-1 is VV - VH in dB, where the published reader divides. Files in linear power, "
        "should there be any, are converted: power is never negative, and decibels of a scene always are in part.",
        "Pixels that are 0 in all bands were not observed: they are masked, and dates without any other left out.",
        "The dates come from sentinel2.csv, sentinel1.csv and landsat.csv, whose rows are in the order of the images.",
    ),
    licence="Apache-2.0",
    citation="Wolters, Bastani & Kembhavi, Zooming Out on Zooming In: Advancing Super-Resolution for Remote Sensing, "
    "2023; AI2-S2-NAIP, Allen Institute for AI, 2024",
    url="https://huggingface.co/datasets/allenai/s2-naip",
)

LAYOUT = (
    "naip/*.png, sentinel2/*_8.tif and *_16.tif, sentinel1/*.tif, landsat/*_8.tif and *_16.tif, "
    "openstreetmap/*.geojson (unpacked, or naip_32610/*.tar and the like), sentinel2.csv, sentinel1.csv, landsat.csv"
)
holds_raw = layout_check(f"{IMAGES}/", f"{IMAGES}_?????/*.tar", enough=any)


class S2NaipReader(ArchiveReader):
    """Reads S2NAIP unpacked or out of its tar archives."""

    def __init__(self, root: pathlib.Path) -> None:
        self._files = TileFiles(root)
        listed, self._dates = read_split_dicts(root)
        # The published reader's lists come first: they have the dates as well.
        listed = listed or listed_splits(root)
        present = self._files.tiles
        tiles = {split: [name for name in names if name in present] for split, names in listed.items()}
        if not listed:
            tiles = {split: [name for name in sorted(present) if split_of(name) == split] for split in CARD.splits}
        super().__init__(CARD, root, {split: sorted(names, key=self._files.archive) for split, names in tiles.items()})
        # Of loose files and of archives, from one listing of each folder.
        kinds = (*FOLDERS.values(), "openstreetmap")
        counts = {kind: len(stems(root / kind, "")) + len(tar_files(root, kind)) for kind in kinds}
        chosen = {name for names in self.tiles.values() for name in names}
        for sensor, kind in FOLDERS.items():
            if sensor not in self._dates and counts[kind]:
                self._dates[sensor] = read_date_table(root / f"{kind}.csv", sensor, chosen)
        if listed:
            self.summary += f", of {sum(map(len, listed.values())):,} listed; {len(present):,} have an image"
        dates = {sensor: table.fingerprint for sensor, table in sorted(self._dates.items())}
        self.fingerprint = digest([self.fingerprint, dates, counts])

    def example(self, split: str, key: str) -> Example:
        expected = f"a PNG of 4 bands R, G, B, NIR, {SIDE} x {SIDE} pixels, uint8"
        path, content = self._files.read(IMAGES, key, ".png")
        if content is None:
            raise FileNotFoundError(f"no {path}; expected {expected}")
        image = read_png(path, 4, SIDE, expected, content)
        # A tile's name is its UTM zone and corner, in columns and rows of 640 m; rows count southwards.
        zone, column, row = key.split("_")
        corner = (float(int(column) * CARD.extent), -float(int(row) * CARD.extent))
        example: Example = {
            "id": key,
            "crs": f"EPSG:{zone}",
            "transform": np.asarray((METRES, 0.0, corner[0], 0.0, -METRES, corner[1])),
            "naip": image,
            "naip_mask": (image != 0).any(axis=0, keepdims=True),
            "dense": np.full((SIDE, SIDE), CARD.ignore_label, np.int8),
        }
        path, content = self._files.read("openstreetmap", key, ".geojson")
        if content is not None:
            example["dense"] = draw_map(path, parse_json(path, content, "a GeoJSON file"))
        return example | self._optical("s2", key) | self._optical("l8", key) | self._radar(key)

    def _optical(self, sensor: str, tile: str) -> Example:
        """Reads a series of two files: bands of 10 m, and of 20 m, which are interpolated."""
        suffixes = {"_8.tif": (TEN_METRES[sensor], GRID), "_16.tif": (TWENTY_METRES[sensor], GRID // 2)}
        found = {suffix: self._files.read(FOLDERS[sensor], tile, suffix) for suffix in suffixes}
        if all(content is None for _, content in found.values()):
            return {}
        fine, coarse = (_read_stack(*found[suffix], *suffixes[suffix]) for suffix in suffixes)
        paths = [path for path, _ in found.values()]
        if len(fine) != len(coarse):
            raise ValueError(f"{paths[1]} has {len(coarse)} dates, {paths[0].name} {len(fine)}; download both again")
        values = np.concatenate([fine, np.rint(doubled(coarse)).astype(np.uint16)], axis=1)
        # A pixel next to one without data is interpolated from its zeros: valid are those with four whole neighbours.
        whole = doubled((coarse != 0).any(axis=1, keepdims=True)) == 1
        valid = whole & (fine != 0).any(axis=1, keepdims=True)
        values = pick_bands(values, TEN_METRES[sensor] + TWENTY_METRES[sensor], get_sensor(sensor).bands)
        return self._series(sensor, tile, paths[0], values, valid)

    def _radar(self, tile: str) -> Example:
        path, content = self._files.read(FOLDERS["s1"], tile, ".tif")
        if content is None:
            return {}
        expected = f"a GeoTIFF of 2 bands VV, VH for each date, {GRID} x {GRID} pixels"
        bands, _, nodata = read_raster_and_nodata(path, (None, GRID, GRID), "fiu", expected, content)
        values = _by_date(path, bands, 2, expected)
        nothing = [0, *NOTHING, np.nan if nodata is None else nodata]
        valid = (np.isfinite(values) & ~np.isin(values, nothing)).all(axis=1, keepdims=True)
        # Zeros in place of what is not valid: -32768 would pass for decibels, and NaN would warn.
        decibels = in_decibels(str(path), np.where(valid, values, values.dtype.type(0)), valid)
        return self._series("s1", tile, path, np.where(valid, with_ratio_of_decibels(decibels), np.float32(0)), valid)

    def _series(
        self,
        sensor: str,
        tile: str,
        path: pathlib.Path,
        values: Num[np.ndarray, "T C 64 64"],
        valid: Bool[np.ndarray, "T 1 64 64"],
    ) -> Example:
        """Returns the fields of a series in time order, of the dates with a valid pixel; {} if there are none."""
        table = self._dates[sensor]
        days = table.days(tile)
        if len(days) != len(values):
            found = f"{table.source} has {len(days)} dates of tile {tile}"
            raise ValueError(f"{found}; expected {len(values)}, as in {path}")
        return observed_series(sensor, values, valid, days)


def _read_stack(
    path: pathlib.Path, content: bytes | None, bands: Sequence[str], pixels: int
) -> Num[np.ndarray, "T C H W"]:
    """Reads the images of all dates, stacked band after band in the file, as uint16."""
    expected = f"a GeoTIFF of the bands {', '.join(bands)} for each date, {pixels} x {pixels} pixels, 0 to 65535"
    if content is None:
        raise FileNotFoundError(f"no {path}; expected {expected}")
    stack, _ = read_raster(path, (None, pixels, pixels), "iu", expected, content)
    return _by_date(path, to_uint16(path, stack, expected), len(bands), expected)


def _by_date(path: pathlib.Path, stack: Num[np.ndarray, "TC H W"], bands: int, expected: str) -> np.ndarray:
    if len(stack) % bands or not len(stack):
        raise ValueError(f"{path} has {len(stack)} bands, not a multiple of {bands}; expected {expected}")
    # Images are stacked date after date, each with its bands.
    return stack.reshape(-1, bands, *stack.shape[1:])

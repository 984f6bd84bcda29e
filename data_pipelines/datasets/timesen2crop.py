"""TimeSen2Crop: 1.2 million single pixels of Austrian fields; Sentinel-2 series, 16 crops.

No published file was at hand: folders, columns and numbers are those of the archive's documentation and of a public
reader, read from made-up archives only.
"""

import datetime
import pathlib

import numpy as np
from jaxtyping import Float64

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import observed_series, parse_day
from data_pipelines.files import inside, read_lines, read_table, stems
from data_pipelines.reader import ArchiveReader, layout_check

CROPS = (
    "Legumes",
    "Grassland",
    "Maize",
    "Potato",
    "Sunflower",
    "Soy",
    "Winter barley",
    "Winter caraway",
    "Rye",
    "Rapeseed",
    "Beet",
    "Spring cereals",
    "Winter wheat",
    "Winter triticale",
    "Permanent plantation",
    "Other crops",
)
FILE_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B11", "B12")
TILES = {
    "train": (
        *("32TNT", "32TPT", "32TQT", "33TUM", "33TUN", "33TVM", "33TVN"),
        *("33TWM", "33TXN", "33UUP", "33UWP", "33UWQ", "33UXP"),
    ),
    "val": ("33TWN",),
    "test": ("33UVP",),
}

CARD = DatasetCard(
    name="timesen2crop",
    title="TimeSen2Crop",
    sensors=("s2",),
    extent=10.0,
    patch_sizes=(10,),
    splits=("train", "val", "test"),
    arrays={"s2": "float32"},
    masks={"s2": "band"},
    clouds=("s2",),
    file_bands={"s2": FILE_BANDS},
    units={"s2": "L2A reflectance x 10000"},
    dates={"s2": "September 2017 to August 2018; 29 in the AnySat paper's table, in fact as many as the tile has"},
    tile_label="class",
    tile_classes=CROPS,
    split_rule="by Sentinel-2 tile: validation 33TWN, test 33UVP, training the 13 others",
    natural_colour={"s2": (2, 1, 0)},
    size="1,212,224 pixels in 16 folders, the one of 2019 included; 120 km2",
    notes=(
        "The files have nine bands and a flag: B8 is missing, so it is zero and False in the mask. The published "
        "AnySat reader puts B8A in the place of B8 and the flag in that of B8A, where it masks it.",
        "The files call their bands B1 to B9; by the authors' description they are B2 to B7, B8A, B11 and B12.",
        "The flag says clear (0), cloud (1), shadow (2) or snow (3); anything but clear is 100 percent cloud here.",
        "The folder 2019_33UVP, the test tile a year later, belongs to no split, as in the published reader.",
        "A copy on Hugging Face lacks a class and has series of 365 interpolated days; it was not tried.",
        "The pixels lie in Austria; the AnySat paper says Slovenia.",
        "The series crosses the new year; the year stands beside the day of the year.",
    ),
    licence="CC-BY-4.0",
    citation="Weikmann, Paris and Bruzzone, TimeSen2Crop: A Million Labeled Samples Dataset of Sentinel 2 Image Time "
    "Series for Crop-Type Classification, IEEE JSTARS 2021",
    url="https://zenodo.org/records/4715631",
)

LAYOUT = "TILE/dates.csv with the column acquisition_date, TILE/CLASS/NUMBER.csv; tiles like 33TWN, classes 0 to 15"
FLAG = "Flag"
CLEAR, SNOW = 0, 3
_PUBLISHED_NAMES = tuple(f"B{number}" for number in range(1, 10))
_EXPECTED = f"a table of one row a date with the columns {', '.join(_PUBLISHED_NAMES)}, {FLAG}"
holds_raw = layout_check(*(f"{tile}/dates.csv" for tiles in TILES.values() for tile in tiles), enough=any)


class TimeSen2CropReader(ArchiveReader):
    """Reads TimeSen2Crop in its published layout: those of the 15 Sentinel-2 tiles that are on disk."""

    def __init__(self, root: pathlib.Path) -> None:
        present = {split: [t for t in tiles if (root / t).is_dir()] for split, tiles in TILES.items()}
        self._days: dict[str, list[datetime.date]] = {}
        for tile in (tile for tiles in present.values() for tile in tiles):
            path = root / tile / "dates.csv"
            rows = read_table(path, ("acquisition_date",), f"TimeSen2Crop as published: {LAYOUT}")
            if not rows:
                raise ValueError(f"{path} has no dates; expected one a line, like 20170904, below acquisition_date")
            self._days[tile] = [parse_day(row["acquisition_date"], str(path)) for row in rows]
        super().__init__(
            CARD, root, {s: [key for t in tiles for key in _list_keys(root, t)] for s, tiles in present.items()}
        )
        self.summary += f"; {len(self._days)} of {sum(map(len, TILES.values()))} Sentinel-2 tiles"

    def example(self, split: str, key: str) -> Example:
        """Reads one pixel; its key is "tile/class/number"."""
        tile, crop, number = key.split("/")
        path = inside(self.root / tile / crop, f"{number}.csv")  # where the tiles' folders may be links to another disk
        days = self._days[tile]
        bands, flags = _read_pixel(path, len(days))
        if not np.isin(flags[np.isfinite(flags)], range(CLEAR, SNOW + 1)).all():
            raise ValueError(f"{path}: {FLAG} holds {np.unique(flags).tolist()[:8]}; expected 0 to 3, clear to snow")
        finite = np.isfinite(bands)
        # Zeros in all bands, or no flag, stand for a date on which the satellite saw nothing.
        measured = (np.where(finite, bands, 0) != 0).any(axis=1) & np.isfinite(flags)
        if not measured.any():
            raise ValueError(f"{path}: all bands are zero or empty on every date; expected at least one measurement")
        # The nine bands at their positions among our ten; B8 is zero, and False in the mask.
        ours = get_sensor("s2").bands
        places = [ours.index(band) for band in FILE_BANDS]
        values, mask = (np.zeros((len(days), len(ours), 1, 1), dtype) for dtype in (np.float32, np.bool_))
        values[:, places, 0, 0] = np.where(finite, bands, 0)
        mask[:, places, 0, 0] = finite & measured[:, None]
        # A flag has no probability: what is not clear counts as wholly clouded.
        clouds = np.where(flags == CLEAR, 0, 100).astype(np.uint8)[:, None, None, None]
        return {"id": key, **observed_series("s2", values, mask, days, clouds), "tile": np.int32(crop)}


def _list_keys(root: pathlib.Path, tile: str) -> list[str]:
    """Lists the keys of a tile's pixels, classes and numbers ascending; one listing for each class."""
    keys = []
    for crop in range(len(CROPS)):
        # By length first, as numbers without leading zeros sort.
        names = sorted(stems(root / tile / str(crop), ".csv"), key=lambda name: (len(name), name))
        keys += [f"{tile}/{crop}/{name}" for name in names]
    return keys


def _read_pixel(path: pathlib.Path, num_dates: int) -> tuple[Float64[np.ndarray, "T 9"], Float64[np.ndarray, "T"]]:
    """Reads bands in the order of `FILE_BANDS`, and flags; NaN for empty cells."""
    header, *lines = read_lines(path, _EXPECTED) or [""]
    names = [name.strip().strip('"') for name in header.split(",")]
    # The published files number their bands B1 to B9, copies may call them by Sentinel-2's names.
    named = [bands for bands in (_PUBLISHED_NAMES, FILE_BANDS) if sorted(names) == sorted((*bands, FLAG))]
    if not named:
        raise ValueError(f"{path} has the columns {names}; expected {_EXPECTED}")
    order = [names.index(name) for name in (*named[0], FLAG)]
    if len(lines) != num_dates:
        expected = f"expected {num_dates}, one for each date of the tile's dates.csv"
        raise ValueError(f"{path} has {len(lines)} rows; {expected}")
    table = np.empty((num_dates, len(order)))
    for number, line in enumerate(lines):
        cells = line.split(",")
        try:
            table[number] = [float(cells[column]) if cells[column].strip() else np.nan for column in order]
            fits = len(cells) == len(order)
        except (ValueError, IndexError):
            fits = False
        if not fits:
            found = f"{path}, line {number + 2}: {line!r:.120} is not a row of {len(order)} numbers"
            raise ValueError(f"{found}; expected {_EXPECTED}")
    return table[:, :-1], table[:, -1]

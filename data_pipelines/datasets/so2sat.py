"""So2Sat LCZ42: 320 m patches of 52 cities, Sentinel-1 and -2 of one date each, and the local climate zone.

No published file was at hand: names and shapes are those of the archive's documentation, and of a file that another
project's tests made up in this layout; the values were read from made-up archives only.
"""

import datetime
import pathlib

import numpy as np

from data_pipelines.bands import pick_bands, with_ratio
from data_pipelines.card import DatasetCard, Example
from data_pipelines.dates import observed_series
from data_pipelines.files import check_array, read_hdf5, read_hdf5_row
from data_pipelines.reader import ArchiveReader, layout_check

ZONES = (
    "Compact high-rise",
    "Compact mid-rise",
    "Compact low-rise",
    "Open high-rise",
    "Open mid-rise",
    "Open low-rise",
    "Lightweight low-rise",
    "Large low-rise",
    "Sparsely built",
    "Heavy industry",
    "Dense trees",
    "Scattered trees",
    "Bush, scrub",
    "Low plants",
    "Bare rock or paved",
    "Bare soil or sand",
    "Water",
)
SIDE = 32
RADAR = (
    "real part of VH",
    "imaginary part of VH",
    "real part of VV",
    "imaginary part of VV",
    "VH",
    "VV",
    "real part of VH-VV covariance",
    "imaginary part of VH-VV covariance",
)
DAY = datetime.date(2017, 1, 1)  # the archive has no dates
HIGHEST = 6.5536  # the products are uint16 of reflectance x 10000

CARD = DatasetCard(
    name="so2sat",
    title="So2Sat LCZ42",
    sensors=("s2", "s1"),
    extent=320.0,
    patch_sizes=(10, 80),
    splits=("train", "val", "test"),
    arrays={"s2": "float32", "s1": "float32"},
    masks={"s2": "pixel", "s1": "pixel"},
    file_bands={"s1": RADAR},
    units={"s2": "reflectance, 0 to 2.8", "s1": "linear intensity, speckle filtered (refined Lee)"},
    dates={"s2": "not in the archive: 1 January 2017 for all", "s1": "not in the archive: 1 January 2017 for all"},
    date_precision={"s2": "none", "s1": "none"},
    tile_label="class",
    tile_classes=ZONES,
    split_rule="published files: training has 42 cities, validation and testing the western and eastern halves of ten "
    "others",
    natural_colour={"s2": (2, 1, 0)},
    size="400,673 patches (352,366 training, 24,119 validation, 24,188 testing), 41,029 km2",
    notes=(
        "The file's radar channels are the real and imaginary parts of unfiltered VH and VV, the filtered intensities "
        "of VH and VV, and their covariance. Ours are the two intensities, as VV, VH and VV / VH.",
        "The published reader takes channels 2 and 0, the signed real parts, whose quotient is no ratio of power.",
        "A few intensities are huge (near 10,000, where the mean of VV is 0.3) and widen the standard deviation of s1.",
        "Rows and columns are as in the file; the published reader swaps them.",
        "The images are of 2016 and 2017, by city, as far as known. All get day 0, as in the published reader, and "
        "the year 2017.",
        "Table C takes patches of 10 m, the published configuration 80 m.",
        "The first version's test file has no labels; from the second on all files have.",
    ),
    licence="CC-BY-4.0",
    citation="Zhu et al., So2Sat LCZ42, IEEE Geoscience and Remote Sensing Magazine 8(3), 2020",
    url="https://mediatum.ub.tum.de/1483140",
)

FILES = {"train": "training", "val": "validation", "test": "testing"}
LAYOUT = "training.h5, validation.h5, testing.h5"
SHAPES = {"sen1": (SIDE, SIDE, len(RADAR)), "sen2": (SIDE, SIDE, 10), "label": (len(ZONES),)}
EXPECTED = "an HDF5 file with 'sen1' (N, 32, 32, 8), 'sen2' (N, 32, 32, 10) and 'label' (N, 17)"
holds_raw = layout_check(*(f"{name}.h5" for name in FILES.values()), enough=any)


class So2SatReader(ArchiveReader):
    """Reads So2Sat LCZ42 patch by patch out of its three files of up to 50 GB; a file may be missing."""

    def __init__(self, root: pathlib.Path) -> None:
        counts: dict[str, int] = {}
        for split, name in FILES.items():
            if (path := root / f"{name}.h5").is_file():
                shapes = read_hdf5(path, tuple(SHAPES), EXPECTED, np.shape)
                rows = {shape[0] if shape else 0 for shape in shapes.values()}
                if len(rows) > 1 or any(shapes[key][1:] != shape for key, shape in SHAPES.items()):
                    raise ValueError(f"{path} has arrays {shapes}; expected {EXPECTED}")
                counts[split] = rows.pop()
        super().__init__(CARD, root, {s: [f"{FILES[s]}_{row:06d}" for row in range(n)] for s, n in counts.items()})

    def example(self, split: str, key: str) -> Example:
        name, _, row = key.rpartition("_")
        path = self.root / f"{name}.h5"
        arrays = read_hdf5_row(path, tuple(SHAPES), int(row), EXPECTED)
        for array, shape in SHAPES.items():
            check_array(path, arrays[array], shape, "fiu", f"numbers of shape {shape} in {array!r}, patch {int(row)}")
        where, hot = f"{path}, patch {int(row)}:", arrays["label"]
        # Files have the bands last.
        reflectance = np.moveaxis(arrays["sen2"], -1, 0).astype(np.float32)
        seen = np.isfinite(reflectance).all(axis=0, keepdims=True) & (reflectance != 0).any(axis=0, keepdims=True)
        highest = reflectance.max(where=seen, initial=0.0)
        if not seen.any() or highest > HIGHEST:
            found = f"goes up to {highest:g}" if seen.any() else "holds no value but zeros"
            raise ValueError(f"{where} 'sen2' {found}; expected reflectance from 0 to about 3")
        # By name: the file has VH before VV.
        power = pick_bands(np.moveaxis(arrays["sen1"], -1, 0), RADAR, ("VV", "VH")).astype(np.float32)
        echo = np.isfinite(power).all(axis=0, keepdims=True) & (power > 0).all(axis=0, keepdims=True)
        # A patch in decibels is below 0 nearly everywhere; some zeros at a swath's edge are not unusual.
        if 2 * echo.sum() < echo.size:
            found = f"{where} 'sen1' is not above 0 in most of its channels 5 and 6"
            raise ValueError(f"{found}; expected linear intensities, not decibels")
        if not np.isin(hot, (0, 1)).all() or hot.sum() != 1:
            raise ValueError(f"{where} 'label' is {hot.tolist()}; expected a single 1 among {len(ZONES) - 1} zeros")
        series = observed_series("s2", np.ascontiguousarray(reflectance)[None], seen[None], [DAY])
        series |= observed_series("s1", with_ratio(power)[None], echo[None], [DAY])
        return {"id": key, **series, "tile": np.asarray(hot.argmax(), np.int32)}

"""SpaceNet 7: monthly Planet mosaics of growing cities, and the footprints of their buildings.

No published file was at hand: folders, names and bytes are those of the challenge's documentation and of a public
reader, read from made-up archives only.
"""

import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from data_pipelines.card import DatasetCard, Example
from data_pipelines.files import explained, inside, read_json, stems
from data_pipelines.rasters import read_raster
from data_pipelines.reader import ArchiveReader, layout_check

LABELS = {"labels_raster": ".tif", "labels_match_pix": ".geojson", "labels_match": ".geojson"}
"""Folders with labels, the first that has a mosaic's is taken, and how their files end."""


def read_buildings(
    folder: pathlib.Path, stem: str, shape: tuple[int, ...], place: dict[str, Any]
) -> Bool[np.ndarray, "h w"]:
    """Reads where the buildings of the area in `folder` are in a month.

    Of the area's mosaic, `stem` is the file's, `shape` (height, width), and `place` "crs" and "transform".

    Raises:
      FileNotFoundError, ValueError: there is no label, or it is unreadable or not as published.
      ImportError: rasterio is not installed.
    """
    paths = [folder / kind / f"{stem}_Buildings{suffix}" for kind, suffix in LABELS.items()]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no buildings of {stem} in {folder}; expected one of {', '.join(LABELS)}")
    if path.suffix == ".tif":
        kinds = "0 (no building) and 1 or 255 (building)"
        expected = f"a GeoTIFF of one band, {shape[1]} x {shape[0]} pixels like the mosaic, {kinds}"
        raster = read_raster(path, (1, *shape), "iuf", expected)[0][0]
        # Classes of 1 and 2 would all be buildings, and so would a month without any, all 1.
        if (found := set(np.unique(raster).tolist())) not in ({0}, {0, 1}, {0, 255}):
            raise ValueError(f"{path} holds {sorted(found)[:8]}; expected {expected}; recode it")
        return raster > 0
    # labels_match_pix is in pixels of the mosaic, labels_match in its coordinates.
    return _rasterised(path, shape, None if path.parent.name == "labels_match_pix" else place)


def _rasterised(path: pathlib.Path, shape: tuple[int, ...], place: dict[str, Any] | None) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels whose centre is in a footprint; with a `place` of None, footprints are in pixels."""
    import rasterio
    from rasterio.crs import CRS
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom

    expected = "a GeoJSON of building footprints, polygons or multipolygons"
    table = read_json(path, expected)
    if not isinstance(table, dict) or not isinstance(table.get("features"), list):
        raise ValueError(f"{path} has no list 'features'; expected {expected}")
    errors = (ValueError, TypeError, KeyError, AttributeError, IndexError, UserWarning)
    with explained(path, expected, *errors), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        # rasterize only warns of a geometry that it cannot draw, and would leave the building out.
        warnings.simplefilter("error", rasterio.errors.ShapeSkipWarning)
        geometries = [feature["geometry"] for feature in table["features"]]
        shapes = [one for one in geometries if one and one["coordinates"]]
        transform = rasterio.Affine.identity()
        if place is not None:
            if not place["crs"]:
                raise ValueError(
                    "the mosaic has no coordinate system, so that footprints in coordinates have no pixels"
                )
            # GeoJSON without a "crs" is in longitude and latitude.
            named = (table.get("crs") or {"properties": {"name": "OGC:CRS84"}})["properties"]["name"]
            origin, aim = CRS.from_user_input(named), CRS.from_user_input(place["crs"])
            if shapes and origin != aim:
                shapes = transform_geom(origin, aim, shapes)
            transform = rasterio.Affine(*place["transform"])
        if not shapes:
            return np.zeros(shape, np.bool_)  # which rasterize refuses
        return rasterize([(one, 1) for one in shapes], out_shape=shape, transform=transform, dtype="uint8") > 0


SIDE = 1024
SIDES = (1023, 1024)  # of the files; those of 1023 pixels are stretched by one
IGNORE = -1
METADATA = "metadata_train.json"
IMAGES = "images_masked"
_FRAME = re.compile(r"global_monthly_(?P<year>\d{4})_(?P<month>\d\d)_mosaic_(?P<aoi>[^/]+)")

# By area; those in neither list are train. The split of doi:10.3390/rs15215135, which other benchmarks took over.
VAL = (
    "L15-0357E-1223N_1429_3296_13",
    "L15-0361E-1300N_1446_2989_13",
    "L15-0368E-1245N_1474_3210_13",
    "L15-0566E-1185N_2265_3451_13",
    "L15-0614E-0946N_2459_4406_13",
    "L15-0760E-0887N_3041_4643_13",
    "L15-1014E-1375N_4056_2688_13",
    "L15-1049E-1370N_4196_2710_13",
    "L15-1185E-0935N_4742_4450_13",
    "L15-1289E-1169N_5156_3514_13",
    "L15-1296E-1198N_5184_3399_13",
    "L15-1615E-1205N_6460_3370_13",
    "L15-1617E-1207N_6468_3360_13",
    "L15-1669E-1160N_6678_3548_13",
    "L15-1748E-1247N_6993_3202_13",
)
TEST = (
    "L15-0387E-1276N_1549_3087_13",
    "L15-0434E-1218N_1736_3318_13",
    "L15-0506E-1204N_2027_3374_13",
    "L15-0544E-1228N_2176_3279_13",
    "L15-0977E-1187N_3911_3441_13",
    "L15-1025E-1366N_4102_2726_13",
    "L15-1172E-1306N_4688_2967_13",
    "L15-1200E-0847N_4802_4803_13",
    "L15-1204E-1204N_4819_3372_13",
    "L15-1335E-1166N_5342_3524_13",
    "L15-1479E-1101N_5916_3785_13",
    "L15-1690E-1211N_6763_3346_13",
    "L15-1691E-1211N_6764_3347_13",
    "L15-1848E-0793N_7394_5018_13",
)

CARD = DatasetCard(
    name="spacenet7",
    title="SpaceNet 7",
    sensors=("planet",),
    extent=3072.0,
    patch_sizes=(48,),
    splits=("train", "val", "test"),
    arrays={"planet": "uint8", "dense": "int8"},
    blocks=4,
    masks={"planet": "pixel"},
    georeferenced="planet",
    file_bands={"planet": ("R", "G", "B", "alpha")},
    units={"planet": "grey values of the visual mosaic"},
    dense_label="segmentation",
    dense_classes=("no building", "building"),
    dense_colours=("#d9d2c5", "#c8102e"),
    dense_metres=3.0,
    ignore_label=IGNORE,
    split_rule="by area: 15 val and 14 test of doi:10.3390/rs15215135, all others (31) train",
    natural_colour={"planet": (0, 1, 2)},
    size="60 areas with labels, about 24 months each (1,423 mosaics)",
    notes=(
        "A tile is an area in a month, AREA_YEAR_MONTH; a mosaic of a month has no day, so it is an image.",
        "Pixels are taken as 3 m, as in the paper's code; in truth they are 4.78 m in the map's units (zoom 15), about "
        "4 m on the ground, and 1024 of them reach 4 km.",
        "Pixels with alpha 0 or in UDM_masks were clouded and not labelled: they are masked, and have no label.",
        "Labels are read from labels_raster where it is there (rasters that are not part of the download), else made "
        "from the footprints of labels_match_pix or labels_match: a pixel whose centre lies in one is building.",
        f"Where {METADATA} is there (not part of the download), only its frames with a label and without a mask are "
        "read, as by the published reader. Without it, all frames with a label are.",
        "The paper's 30 train areas leave out L15-0571E-1075N_2287_3888_13, which is train here.",
        "The public test areas of the challenge have no labels and are not read.",
        "Colours are ours; the archive has no official ones.",
    ),
    licence="CC-BY-SA-4.0",
    citation="Van Etten et al., The Multi-Temporal Urban Development SpaceNet Dataset, CVPR 2021",
    url="https://spacenet.ai/sn7-challenge/",
)

LAYOUT = (
    f"train/AREA/{IMAGES}/global_monthly_YEAR_MONTH_mosaic_AREA.tif with the same in {', '.join(LABELS)} "
    "(one of them, *_Buildings) and UDM_masks (*_UDM.tif, of some months)"
)
holds_raw = layout_check(f"train/*/{IMAGES}/")


class SpaceNet7Reader(ArchiveReader):
    """Reads SpaceNet 7's labelled areas, each month as a tile."""

    def __init__(self, root: pathlib.Path) -> None:
        self._frames: dict[str, tuple[str, str]] = {}
        tiles: dict[str, list[str]] = {split: [] for split in CARD.splits}
        wanted, unlabelled, path = None, 0, root / METADATA
        if path.is_file():
            expected = "for each area a list of frames with aoi_id, year, month, mask and label"
            metadata = read_json(path, expected)
            try:
                # The keys of frames with a label and without a mask; without metadata, all frames are wanted.
                frames = [one for frames in metadata.values() for one in frames if one["label"] and not one["mask"]]
                wanted = {f"{one['aoi_id']}_{int(one['year']):04d}_{int(one['month']):02d}" for one in frames}
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} has an entry without {error}; expected {expected}") from error
        areas = sorted(path.name for path in (root / "train").glob("*") if path.is_dir())
        for area in areas:
            split = "val" if area in VAL else "test" if area in TEST else "train"
            for key, stem, labelled in _frames(inside(root / "train", area), wanted):
                unlabelled += not labelled
                if labelled:
                    self._frames[key] = (area, stem)
                    tiles[split].append(key)
        super().__init__(CARD, root, tiles)
        self.summary += f" of {len(areas)} areas; {unlabelled} mosaics without a label left out"

    def example(self, split: str, key: str) -> Example:
        area, stem = self._frames[key]
        folder = self.root / "train" / area
        path = folder / IMAGES / f"{stem}.tif"
        expected = f"a GeoTIFF of red, green, blue and alpha, {SIDE} x {SIDE} pixels, uint8"
        image, place = read_raster(path, (4, None, None), "uint8", expected)
        height, width = shape = image.shape[1:]
        if not set(shape) <= set(SIDES):
            raise ValueError(f"{path} is {width} x {height} pixels; expected {expected}")
        valid = image[3] > 0
        clouds = folder / "UDM_masks" / f"{stem}_UDM.tif"
        if clouds.is_file():  # only months with clouds have one
            expected = f"a GeoTIFF of one band, {width} x {height} pixels like the mosaic, not 0 where it was clouded"
            valid &= read_raster(clouds, (1, *shape), "iu", expected)[0][0] == 0
        if not valid.any():
            raise ValueError(f"{path}: every pixel is masked; take the file out")
        dense = np.where(valid, read_buildings(folder, stem, shape, place).astype(np.int8), np.int8(IGNORE))
        # After `stretch`, a pixel is a little smaller and the corner where it was.
        a, b, c, d, e, f = place["transform"]
        across, down = width / SIDE, height / SIDE
        return {
            "id": key,
            "planet": stretch(image[:3]),
            "planet_mask": stretch(valid)[None],
            "dense": stretch(dense),
            "crs": place["crs"],
            "transform": np.asarray([a * across, b * down, c, d * across, e * down, f], np.float64),
        }


def _frames(folder: pathlib.Path, wanted: set[str] | None) -> Iterator[tuple[str, str, bool]]:
    """Yields key, file stem and whether there is a label of each mosaic of an area."""
    labelled = set().union(*(stems(folder / kind, f"_Buildings{suffix}") for kind, suffix in LABELS.items()))
    for stem in sorted(stems(folder / IMAGES, ".tif")):
        match = _FRAME.fullmatch(stem)
        if match is None or match["aoi"] != folder.name or not 1 <= int(match["month"]) <= 12:
            raise ValueError(
                f"{folder / IMAGES / stem}.tif does not name a month of {folder.name}; expected a name like "
                f"global_monthly_2018_01_mosaic_{folder.name}.tif"
            )
        key = f"{folder.name}_{match['year']}_{match['month']}"
        if wanted is None or key in wanted:
            yield key, stem, stem in labelled


def stretch(array: Shaped[np.ndarray, "*axes h w"]) -> Shaped[np.ndarray, "*axes 1024 1024"]:
    """Resamples to 1024 x 1024 pixels by the nearest one; files of 1024 stay as they are."""
    # The nearest pixel, as labels and masks cannot be interpolated, and images must fit them.
    rows, columns = (((np.arange(SIDE) + 0.5) * side / SIDE).astype(np.int64) for side in array.shape[-2:])
    return np.ascontiguousarray(array[..., rows[:, None], columns])

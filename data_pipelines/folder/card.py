"""The card of a folder of tiles, made from its description."""

import colorsys

import numpy as np

from anysat_jax.sensors import Sensor, register, whole_number
from data_pipelines.card import DatasetCard
from data_pipelines.features import check_card
from data_pipelines.folder.description import Description, MaskFiles, SensorFiles, SplitRule

SPLITS = ("train", "val", "test")
_SHOWN = (("R", "G", "B"), ("B4", "B3", "B2"))  # bands that are red, green and blue, as most sensors call them


def folder_card(description: Description) -> DatasetCard:
    """Makes a description's sensors known and gives its card.

    Raises:
      ValueError: a sensor is known by other facts, a patch is no whole number of sub-patches, or the like; the message
        names the description's file.
    """
    try:
        for files in description.sensors:
            register(files.record)
        _check_mask_pixels(description)
        card = _card(description)
        check_card(card)
    except ValueError as error:
        raise ValueError(f"{description.path}: {error}") from error
    return card


def _check_mask_pixels(description: Description) -> None:
    mask, extent = description.mask, description.extent
    if mask and not whole_number(extent / mask.metres_per_pixel):
        raise ValueError(
            f"mask.metres_per_pixel is {mask.metres_per_pixel:g}, and the extent of {extent:g} m is not a whole number "
            "of such pixels"
        )


def _card(description: Description) -> DatasetCard:
    sensors, labels, mask = description.sensors, description.labels, description.mask
    rasters = [files.record.name for files in sensors if files.files.text.endswith((".tif", ".tiff"))]
    everywhere = [files.record.name for files in sensors if not files.optional and files.record.name in rasters]
    return DatasetCard(
        name=description.name,
        title=description.title,
        sensors=tuple(files.record.name for files in sensors),
        extent=description.extent,
        patch_sizes=description.patch_sizes,
        splits=SPLITS,
        arrays={files.record.name: files.dtype for files in sensors} | _dense_dtype(mask),
        sides={files.record.name: files.pixels for files in sensors if files.pixels},
        masks={files.record.name: "pixel" for files in sensors},
        optional=tuple(files.record.name for files in sensors if files.optional),
        georeferenced=everywhere[0] if everywhere else "",
        file_bands={files.record.name: files.bands for files in sensors if files.bands != files.record.bands},
        units={files.record.name: files.units for files in sensors if files.units},
        tile_label=labels.kind if labels else "none",
        tile_classes=labels.classes if labels else (),
        dense_label=("segmentation" if mask.classes else "regression") if mask else "none",
        dense_classes=mask.classes if mask else (),
        dense_colours=(mask.colours or palette(len(mask.classes))) if mask else (),
        dense_metres=mask.metres_per_pixel if mask else 10.0,
        label_unit=(labels.unit if labels else "") or (mask.unit if mask else ""),
        split_rule=_split_rule(description.splits, description.table),
        own_sensors=tuple(files.record for files in sensors if files.own),
        natural_colour={f.record.name: shown for f in sensors if (shown := _natural_colour(f))},
        size="as many tiles as the folder holds",
        notes=(f"A folder of one's own, described by {description.path.name}.",),
        licence=description.licence,
        citation=description.citation,
        url=description.url,
    )


def class_dtype(num_classes: int) -> np.dtype:
    """The smallest dtype that holds class numbers, counted from 0, and -1 for no label."""
    candidates = [np.dtype(name) for name in ("int8", "int16", "int32")]
    return next(dtype for dtype in candidates if num_classes - 1 <= np.iinfo(dtype).max)


def _dense_dtype(mask: MaskFiles | None) -> dict[str, str]:
    if mask is None:
        return {}
    return {"dense": class_dtype(len(mask.classes)).name if mask.classes else "float32"}


def palette(count: int) -> tuple[str, ...]:
    """Colours "#rrggbb" that tell classes apart, for descriptions that give none."""
    colours = []
    for number in range(count):
        hue, value = (number * 0.618034) % 1.0, (0.9, 0.65)[number % 2]
        colours.append("#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hsv_to_rgb(hue, 0.65, value)))
    return tuple(colours)


def _natural_colour(files: SensorFiles) -> tuple[int, int, int] | None:
    record: Sensor = files.record
    for bands in (files.natural_colour, *_SHOWN):
        if bands and all(band in record.bands for band in bands):
            red, green, blue = (record.bands.index(band) for band in bands)
            return red, green, blue
    return None


def _split_rule(rule: SplitRule, table: str) -> str:
    if rule.column:
        return f"column {rule.column!r} of {table}"
    return f"drawn by the tiles' names: {rule.val:.0%} val, {rule.test:.0%} test, seed {rule.seed}"

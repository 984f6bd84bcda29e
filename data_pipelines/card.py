"""Dataset cards: the facts of a dataset, the arrays of its examples, and card.json."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from anysat_jax.sensors import SENSORS, Sensor, get_sensor, register

TileLabel = Literal["multi_label", "class", "regression", "none"]
DenseLabel = Literal["segmentation", "change", "regression", "none"]
Example = dict[str, Any]
"""One tile in native units, bands in the order of the sensor's record.

"id": str, unique in the dataset.
`<sensor>`: (C, H, W), or (T, C, H, W) with T > 0 for a series, in the card's dtype.
`<sensor>_dates`: (T,) int32, days of the year, 1 January = 0, in time order; `<sensor>_years`: (T,) int16.
`<sensor>_mask`: bool, True where valid, (*T, C, H, W) or (*T, 1, H, W); for the card's `masks`.
`<sensor>_cloud`: (T, 1, H, W) uint8, probability of cloud or snow in percent; for the card's `clouds`.
`<sensor>_empty`: int32 (), dates left out as nothing was observed, if any; for the report, not stored.
    A sensor that the tile lacks (one of the card's `optional`) has none of these keys.
"tile": int32 () class, (K,) uint8 multi-hot, or float32 ().
"dense": (h, w), class numbers in the card's dtype, or float32 with NaN where there is no label.
"crs": str, e.g. "EPSG:25832", and "transform": (6,) float64, the affine map (a, b, c, d, e, f) from (column, row) of
    the card's `georeferenced` sensor to the coordinates; for cards that name one. A tile without has "" and NaN.
"""


@dataclasses.dataclass(frozen=True)
class DatasetCard:
    """The facts of a dataset that are known before it is opened."""

    name: str  # the name that configs use
    title: str  # the name that people use
    sensors: tuple[str, ...]  # names of the sensors, as registered
    extent: float  # side of a tile in metres, as the batches give it
    patch_sizes: tuple[int, ...]  # allowed patch sizes in metres (paper: Table C)
    splits: tuple[str, ...]  # names of the splits
    # Dtype of each stored array ("s2", "dense"); where it is not named float32, and int8 for a class map.
    arrays: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Pixels along a side of a stored array ("aerial", "dense") that reaches beyond the extent; the batches take its
    # centre.
    sides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # Sensors with `<sensor>_mask`; "pixel" for one mask of all bands, "band" for one each.
    masks: Mapping[str, Literal["pixel", "band"]] = dataclasses.field(default_factory=dict)
    clouds: tuple[str, ...] = ()  # sensors with `<sensor>_cloud`
    optional: tuple[str, ...] = ()  # sensors that some tiles lack
    blocks: int = 1  # records a side in which a tile is stored, so that a window of it can be read without the rest
    georeferenced: str = ""  # the sensor whose grid "transform" describes; "" where the archive has none
    # Names of the bands in the order of the files, for sensors whose files differ from our order.
    file_bands: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of each sensor's values, in words
    # By sensor {"mean": ..., "std": ...} of each of its bands, in these units, where the archive publishes them, and
    # where in it they are.
    statistics: Mapping[str, Mapping[str, tuple[float, ...]]] = dataclasses.field(default_factory=dict)
    statistics_source: str = ""
    dates: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what is known of each series' dates, in words
    # Of series whose days are less exact: the "month", or "none" where the archive has no dates; pictures show no more
    # than that.
    date_precision: Mapping[str, Literal["month", "none"]] = dataclasses.field(default_factory=dict)
    date_origin: str = ""  # "yyyy-mm-dd" from which the published readers count days; "": they count from 1 January
    tile_label: TileLabel = "none"  # kind of the label "tile", one for each tile
    tile_classes: tuple[str, ...] = ()  # its class names, in order
    # dense_label, dense_classes: the same of the label "dense", one for each pixel.
    dense_label: DenseLabel = "none"
    dense_classes: tuple[str, ...] = ()
    dense_colours: tuple[str, ...] = ()  # official colour "#rrggbb" of each dense class
    dense_metres: float = 10.0  # side of a pixel of "dense" in metres
    ignore_label: int = -1  # value of a class map where there is no label
    label_unit: str = ""  # what a regression's label measures, and in which unit
    # The folds that each split is made of, where the archive has folds.
    folds: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    split_rule: str = ""  # how tiles come to their splits, in words
    # For each sensor that can be shown, its (red, green, blue) channel numbers.
    natural_colour: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    # Records of the sensors that are not the library's; unpickling a card registers them, so that worker processes have
    # them.
    own_sensors: tuple[Sensor, ...] = ()
    size: str = ""  # how much there is, in words
    notes: tuple[str, ...] = ()  # traps of the archive, and differences from the published reader
    # licence, citation, url: terms, whom to cite, where to get it.
    licence: str = ""
    citation: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            for text in value if isinstance(value, tuple) else (value,):
                # Cards come from others' files, and a terminal would obey such characters.
                if isinstance(text, str) and not text.replace("\n", "").replace("\t", "").isprintable():
                    raise ValueError(f"the card's {field} is {text!r}, which has control characters; leave them out")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The registry of a worker process has the library's sensors only.
        for sensor in self.own_sensors:
            register(sensor)

    def dtype(self, key: str) -> np.dtype:
        """Returns the dtype of a stored array: a sensor's, or the label "dense"."""
        default = "int8" if key == "dense" and self.dense_label != "regression" else "float32"
        return np.dtype(self.arrays.get(key, default))

    def side(self, key: str) -> int:
        """Returns the pixels along a side of a stored array: a sensor's, or the label "dense"."""
        if key in self.sides:
            return self.sides[key]
        return round(self.extent / self.dense_metres) if key == "dense" else get_sensor(key).pixels(self.extent)


FILE_NAME = "card.json"
FORMAT = 1
REMEDY = "delete the folder that it is in and prepare the dataset again"


def to_json(card: DatasetCard) -> str:
    """Returns a card as JSON, with the records of its sensors and the shapes of its arrays."""
    content = {
        "format": FORMAT,
        "card": card,
        "sensors": {name: get_sensor(name) for name in card.sensors},
        "essentials": essentials(card),
    }
    return msgspec.json.format(msgspec.json.encode(content, enc_hook=_builtin), indent=1).decode() + "\n"


def decode_json(text: str | bytes, kind: Any = Any, dec_hook: Callable[[type, Any], Any] | None = None) -> Any:
    """Decodes a JSON file of a prepared dataset as a value of a type, with msgspec and its `dec_hook`.

    Raises:
      ValueError: it is not JSON, nested too deeply, of another type, or has a number that its array cannot hold.
    """
    try:
        return msgspec.json.decode(text, type=kind, dec_hook=dec_hook)
    except (RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def from_json(text: str | bytes, where: str) -> tuple[DatasetCard, dict[str, Any]]:
    """Reads the text of `to_json`, in the file `where`; registers sensors that are not known yet.

    Returns:
      The card, and its `essentials` when it was written.

    Raises:
      ValueError: it is not a card, or one of another format.
    """
    try:
        content = decode_json(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this release reads {FORMAT}")
        if strangers := set(content["card"]) - {field.name for field in dataclasses.fields(DatasetCard)}:
            raise ValueError(f"its fields {sorted(strangers)} are of another release")
        card = msgspec.convert(content["card"], DatasetCard)
        sensors = msgspec.convert(content["sensors"], dict[str, Sensor])
        stored = msgspec.convert(content["essentials"], dict[str, Any])
        if unknown := [name for name in card.sensors if name not in sensors]:
            raise ValueError(f"it lacks the records of {unknown}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is not a card of a dataset ({type(error).__name__}: {error}); {REMEDY}") from error
    # Only once the whole card is known to be right; the library's own sensors are not replaced.
    for sensor in sensors.values():
        if sensor.name not in SENSORS:
            register(sensor)
    return card, stored


def _builtin(value: Any) -> Any:
    """Converts mappings that are not dicts, and numpy's numbers."""
    return dict(value) if isinstance(value, Mapping) else value.item()


def read_card(folder: pathlib.Path) -> tuple[DatasetCard, dict[str, Any]]:
    """Returns the card of a prepared folder and its `essentials`; registers sensors that are not known yet.

    Raises:
      FileNotFoundError, ValueError: there is no card, or it cannot be read.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        reason = "it is not a prepared dataset of this release"
        raise FileNotFoundError(f"no {path}: {reason}; delete it and prepare it again")
    return from_json(path.read_bytes(), str(path))


def essentials(card: DatasetCard) -> dict[str, Any]:
    """Returns those facts of a card, as JSON values, that decide how prepared data are read and so must not change."""
    fields = ("name", "sensors", "extent", "optional", "tile_label", "tile_classes", "dense_label", "dense_classes")
    facts = {field: getattr(card, field) for field in (*fields, "ignore_label", "dense_metres", "georeferenced")}
    # Only where there are several: folders of earlier releases have no such field.
    facts |= {"blocks": card.blocks} if card.blocks > 1 else {}
    facts["bands"] = {name: get_sensor(name).bands for name in card.sensors}
    facts["arrays"] = {key: [str(dtype), *shape] for key, (shape, dtype) in example_spec(card).items()}
    # Lists in place of tuples, as when read: otherwise nothing would be equal.
    return msgspec.json.decode(msgspec.json.encode(facts, enc_hook=_builtin))


def check_essentials(where: pathlib.Path | str, stored: Mapping[str, Any], card: DatasetCard) -> None:
    """Refuses data at `where`, whose `essentials` are `stored`, if they were prepared for another card.

    Raises:
      ValueError: the message has both values of each difference.
    """
    wanted, lines = essentials(card), []
    for field in sorted(set(stored) | set(wanted)):
        there, here = stored.get(field), wanted.get(field)
        if isinstance(there, dict) and isinstance(here, dict):
            keys = [key for key in sorted(set(there) | set(here)) if there.get(key) != here.get(key)]
            lines += [f"{field} of {key!r} are {there.get(key)}, here {here.get(key)}" for key in keys]
        elif there != here:
            lines.append(f"{field} is {there}, here {here}")
    if lines:
        raise ValueError(
            f"{where} was prepared for another card of dataset {card.name!r}: {'; '.join(lines)}; delete it and "
            "prepare the dataset again, or use the release that prepared it"
        )


Spec = dict[str, tuple[tuple[int | None, ...], np.dtype]]
"""Shape and dtype of each array of an example; None is the number of dates."""


def example_spec(card: DatasetCard) -> Spec:
    """Returns the shapes and dtypes of a dataset's stored arrays, as its card promises them."""
    spec: Spec = {}
    for name in card.sensors:
        spec |= _sensor_spec(card, name)
    spec |= {f"{name}_present": ((), np.dtype(np.bool_)) for name in card.optional}
    several = (len(card.tile_classes),)
    tile = {"class": ((), np.int32), "multi_label": (several, np.uint8), "regression": ((), np.float32)}
    if card.tile_label != "none":
        shape, dtype = tile[card.tile_label]
        spec["tile"] = (shape, np.dtype(dtype))
    if card.dense_label != "none":
        spec["dense"] = ((card.side("dense"),) * 2, card.dtype("dense"))
    if card.georeferenced:
        spec["transform"] = ((6,), np.dtype(np.float64))
    return spec


def _sensor_spec(card: DatasetCard, name: str) -> Spec:
    sensor = get_sensor(name)
    dates: tuple[int | None, ...] = (None,) if sensor.has_dates else ()
    sides = (card.side(name),) * 2
    spec: Spec = {name: ((*dates, sensor.num_bands, *sides), card.dtype(name))}
    if sensor.has_dates:
        spec |= {f"{name}_dates": ((None,), np.dtype(np.int32)), f"{name}_years": ((None,), np.dtype(np.int16))}
    if name in card.masks:
        channels = sensor.num_bands if card.masks[name] == "band" else 1
        spec[f"{name}_mask"] = ((*dates, channels, *sides), np.dtype(np.bool_))
    if name in card.clouds:
        spec[f"{name}_cloud"] = ((*dates, 1, *sides), np.dtype(np.uint8))
    return spec

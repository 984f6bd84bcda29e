"""The description of a folder of tiles: a TOML file decoded into msgspec Structs, which check themselves."""

import contextlib
import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec.structs import asdict, force_setattr, replace

from anysat_jax.sensors import SENSORS, Sensor
from data_pipelines.own_tiles.pattern import FilePattern

DECIBELS, LINEAR = "dB", "linear power"
DTYPES = ("uint8", "int8", "uint16", "int16", "float32")

LARGEST_DESCRIPTION = 2**20  # bytes
_LARGEST = 2**31  # of whole numbers: what files, seeds and sides are made of
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SENSOR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_TAKEN = ("id", "crs", "transform", "tile", "dense")  # other keys of an example, and how keys of a sensor's fields end
_ENDS = ("_dates", "_years", "_mask", "_cloud", "_present")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")

# Texts come from others' files, and a terminal would obey control characters; titles may have several lines.
Text = Annotated[str, msgspec.Meta(pattern=r"\A(?=[\s\S]*\S)[^\x00-\x08\x0b-\x1f\x7f-\x9f]*\Z")]
Texts = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Whole = Annotated[int, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
Count = Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the tables of a description; the messages of their checks begin with the field."""


class ClearPixels(_Table, kw_only=True):
    """The table [sensors.NAME.clear]: which pixels count, by a classification of the scene."""

    # Numbers of the classes that count, such as 4, 5, 6, 7 of Sentinel-2's; a cloud mask may have 0 alone.
    values: Annotated[tuple[Whole, ...], msgspec.Meta(min_length=1)]
    # Pattern of the classification's files, for each date one if the images have a file for each.
    files: FilePattern | None = None
    band: Text = ""  # in place of files, a band of the images

    def __post_init__(self) -> None:
        if (self.files is None) != bool(self.band) or (self.files and self.files.has_band):
            raise ValueError(f"band is {self.band!r}; expected a band of the images, or files without {{band}}")


class SensorTable(_Table, kw_only=True):
    """A table [sensors.NAME]."""

    files: FilePattern  # pattern of the files
    bands: Texts  # names in the order of the files
    # CSV file with the dates of stacked files, or the name of an array of an npz file; "" for dates in names.
    dates: Text = ""
    array: Text = ""  # name of the array in npz files; "" for the only one
    nodata: float | None = None  # value of pixels that were not observed, besides NaN and what a GeoTIFF declares
    dtype: Text = "float32"  # of the stored array
    pixels: Count | None = None  # along a side, where the files reach beyond the extent
    optional: bool = False  # True if tiles may lack the sensor
    units: Text = ""  # of the values
    clear: ClearPixels | None = None  # which pixels count; all unless given
    # "join" if a tile may have several files of a day, which become one date; "" if that is an error.
    same_day: Text = ""
    natural_colour: Texts = ()  # bands to show as red, green and blue
    # kind, metres_per_pixel, subpatch_pixels, wavelengths_nm: of a sensor that this description registers.
    kind: Text = ""
    metres_per_pixel: Positive | None = None
    subpatch_pixels: Count | None = None
    wavelengths_nm: tuple[Annotated[float, msgspec.Meta(ge=0, lt=1e9)], ...] = ()  # of `bands`


class SensorFiles(SensorTable, kw_only=True):
    """The files of a sensor: the table of the description, and the sensor's record."""

    record: Sensor

    @property
    def computes_ratio(self) -> bool:
        """True if the sensor's third band, a ratio of the others, is not in the files."""
        bands = self.record.bands
        return len(bands) == 3 and bands[2] == f"{bands[0]}/{bands[1]}" and bands[2] not in self.bands

    def __post_init__(self) -> None:
        wanted = self.record.bands[:2] if self.computes_ratio else self.record.bands
        if len(set(self.bands)) != len(self.bands):
            raise ValueError(f"bands names a band twice: {', '.join(self.bands)}")
        if missing := [band for band in wanted if band not in self.bands]:
            raise ValueError(
                f"bands is {', '.join(self.bands)} and lacks {', '.join(missing)}; sensor {self.record.name!r} has the "
                f"bands {', '.join(self.record.bands)}. Name the files' bands like these, further ones as you like"
            )
        # The ratio of powers is a difference of decibels: without the units, it cannot be computed.
        if self.computes_ratio and self.units not in (DECIBELS, LINEAR):
            raise ValueError(
                f"units is {self.units!r}; the band {self.record.bands[2]} is computed from the others, so expected "
                f'their units: units = "{DECIBELS}" or units = "{LINEAR}"'
            )
        if unknown := [band for band in self.natural_colour if band not in self.record.bands]:
            raise ValueError(f"natural_colour has {', '.join(unknown)}; the sensor has {', '.join(self.record.bands)}")
        if len(self.natural_colour) not in (0, 3):
            raise ValueError(f"natural_colour has {len(self.natural_colour)} bands; expected red, green and blue")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if self.same_day not in ("", "join"):
            raise ValueError(f'same_day is {self.same_day!r}; expected "join", or leave it out')
        self._check_dates()

    def _check_dates(self) -> None:
        name, in_npz = self.record.name, self.files.suffix == ".npz"
        ways = "{date} in the file names, or dates = a CSV file (columns tile, date) or the name of an npz file's array"
        if self.record.has_dates and self.files.has_date == bool(self.dates):
            found = "two sources of" if self.dates else "no"
            what = f"{name!r} is a series with {found} dates"
            raise ValueError(f"dates is {self.dates!r}: {what}; expected one of: {ways}")
        if not self.record.has_dates and (self.files.has_date or self.dates):
            what = f"{name!r} is an image, which has no dates; leave them out"
            raise ValueError(f"dates is {self.dates!r}, files is {self.files.text!r}: {what}")
        if self.dates and not self.dates.endswith(".csv") and not in_npz:
            raise ValueError(f"dates is {self.dates!r}; expected a CSV file (or, for npz files, an array's name)")
        if self.array and not in_npz:
            raise ValueError(f"array is {self.array!r}, which only npz files have; files is {self.files.text!r}")
        if self.files.has_band and self.record.has_dates and not self.files.has_date:
            raise ValueError(
                f"files is {self.files.text!r}; expected {{date}} beside {{band}}: a file for each of both"
            )
        if self.clear and self.clear.band and self.clear.band not in self.bands:
            raise ValueError(f"clear.band is {self.clear.band!r}; expected one of bands: {', '.join(self.bands)}")
        if self.clear and self.clear.files and self.clear.files.has_date != self.files.has_date:
            raise ValueError(f"clear.files is {self.clear.files.text!r}; expected {{date}} in both files or in neither")


class TileLabels(_Table, kw_only=True):
    """The table [labels]: a label for each tile, a column of the CSV table."""

    column: Text
    kind: Text = ""  # filled in from the classes
    classes: Texts = ()
    unit: Text = ""

    def __post_init__(self) -> None:
        # The defaults depend on other fields, and Structs are frozen, so that a description cannot change later.
        force_setattr(self, "kind", self.kind or ("class" if self.classes else "regression"))
        if self.kind not in ("class", "multi_label", "regression") or bool(self.classes) == (self.kind == "regression"):
            raise ValueError(
                f"kind is {self.kind!r} with {len(self.classes)} classes; expected class or multi_label with classes, "
                "or regression without"
            )
        _check_classes(self.classes, self.unit)
        if self.kind == "multi_label" and (wrong := [name for name in self.classes if ";" in name]):
            raise ValueError(f"classes has {wrong[0]!r}; ';' separates the classes of a cell")


class MaskFiles(_Table, kw_only=True):
    """The table [mask]: a label for each pixel, class numbers or numbers to be predicted."""

    files: FilePattern
    array: Text = ""
    classes: Texts = ()
    colours: Texts = ()
    # Number of each class in the files; 0, 1, 2, ... unless given.
    values: Annotated[tuple[Whole, ...], msgspec.Meta(min_length=1)] = ()
    # Number of pixels without a label in the files; unless given -1 with classes, else None: NaN and what a GeoTIFF
    # declares.
    ignore: int | float | None = None
    metres_per_pixel: Positive = 10.0
    unit: Text = ""

    def __post_init__(self) -> None:
        force_setattr(self, "values", self.values or tuple(range(len(self.classes))))
        if self.classes and self.ignore is None:
            force_setattr(self, "ignore", -1)
        _check_classes(self.classes, self.unit)
        if self.files.has_date or self.files.has_band:
            raise ValueError(
                f"files is {self.files.text!r}; a mask has no {{date}} or {{band}}, but one file for a tile"
            )
        if len(self.values) != len(self.classes) or len(set(self.values)) != len(self.values):
            raise ValueError(f"values has {self.values} for {len(self.classes)} classes; expected one number each")
        if self.classes and not isinstance(self.ignore, int):
            raise ValueError(f"ignore is {self.ignore}; expected a whole number")
        if self.ignore in self.values:
            raise ValueError(f"ignore is {self.ignore}, the number of a class; choose another number")
        if len(self.colours) not in (0, len(self.classes)):
            raise ValueError(f"colours has {len(self.colours)} colours for {len(self.classes)} classes")
        if wrong := [colour for colour in self.colours if not _COLOUR.fullmatch(colour)]:
            raise ValueError(f"colours has {wrong[0]!r}; expected colours like #1f78b4")


def _check_classes(classes: tuple[str, ...], unit: str) -> None:
    if bool(classes) == bool(unit):
        raise ValueError(f'unit is {unit!r}; numbers have one (unit = "t/ha"), classes have none')
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes names a class twice: {', '.join(classes)}")


class SplitRule(_Table, kw_only=True):
    """The table [splits]: a column of the CSV table, or fractions drawn by a hash of the tiles' names."""

    column: Text = ""
    val: Fraction = 0.2
    test: Fraction = 0.0
    seed: Whole = 0

    def __post_init__(self) -> None:
        # Each is within [0, 1] by its type; together, they must leave tiles for training.
        if self.val + self.test >= 1:
            raise ValueError(f"val is {self.val:g} and test {self.test:g}; expected fractions that sum to less than 1")


class DescriptionTable(_Table, kw_only=True):
    """The top level of the TOML file."""

    name: Text
    extent: Positive
    patch_sizes: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1)]
    sensors: dict[str, dict[str, Any]]
    table: Text = ""
    labels: TileLabels | None = None
    mask: MaskFiles | None = None
    splits: SplitRule = SplitRule()
    version: Text = "1.0.0"
    title: Text = ""
    licence: Text = ""
    citation: Text = ""
    url: Text = ""


class Description(DescriptionTable, kw_only=True):
    """A folder of tiles, as its TOML file describes it."""

    # path, text: the file and its text.
    path: pathlib.Path
    text: str
    sensors: tuple[SensorFiles, ...]  # the sensors in the order of the file

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}; expected small letters, digits and '_', a letter first")
        if not _VERSION.fullmatch(self.version):
            raise ValueError(f"version is {self.version!r}; expected three numbers like 1.0.0")
        if not self.sensors:
            raise ValueError("sensors is empty; write a table [sensors.NAME] for each sensor")
        if not self.table and (self.labels or self.splits.column):
            raise ValueError('table is missing, but labels or splits name a column of it: table = "tiles.csv"')


def read_description(path: pathlib.Path) -> Description:
    """Reads and checks a description.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not TOML, or a field is missing, unknown or impossible; the message names file, field, value and
        what was expected.
    """
    try:
        if path.stat().st_size > LARGEST_DESCRIPTION:
            raise OSError(f"it is larger than {LARGEST_DESCRIPTION} bytes")
        text = path.read_text(encoding="utf-8-sig")  # Windows' Notepad writes a byte order mark first
        table = _whole_floats_as_ints(tomllib.loads(text))
    except FileNotFoundError:
        raise FileNotFoundError(f"no description {path}; docs/DATA.md shows how to write one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a TOML file ({error}); docs/DATA.md shows how to write one") from error
    facts = asdict(_decode(path, "", table, DescriptionTable))
    sensors = tuple(_sensor(path, name, one) for name, one in facts["sensors"].items())
    if len(sensors) == 1 and sensors[0].record.kind == "context":
        # A context has no place in the tile: alone, it is an ordinary series, with as many pixels as the tile has.
        record = dataclasses.replace(sensors[0].record, name=f"{sensors[0].record.name}-series", kind="series")
        sensors = (replace(sensors[0], record=record, kind="series"),)
    facts["sensors"] = sensors
    with _prefixed(f"{path}: "):
        return Description(**facts, path=path, text=text)


def _sensor(path: pathlib.Path, name: str, table: Mapping[str, Any]) -> SensorFiles:
    """Returns a sensor's files with its record: the registered one of that name, or the one that the table defines."""
    section = f"sensors.{name}"
    if not _SENSOR_NAME.fullmatch(name) or name in _TAKEN or name.endswith(_ENDS):
        raise ValueError(
            f"{path}: {section}: a sensor cannot be called {name!r}; expected letters, digits, '_' and '-', a letter "
            f"first, none of {', '.join(_TAKEN)}, and no end like {', '.join(_ENDS)}"
        )
    files, record = _decode(path, section, table, SensorTable), SENSORS.get(name)
    kind, metres, subpatch = files.kind, files.metres_per_pixel, files.subpatch_pixels
    with _prefixed(f"{path}: {section}: "):
        if record is not None and not kind and (metres or subpatch):
            raise ValueError(
                f"{name!r} is a known sensor of {record.metres_per_pixel:g} m per pixel; leave out metres_per_pixel "
                "and subpatch_pixels, or, if the pixels have another size, give the sensor a name of its own"
            )
        if (kind or record is None) and (not kind or not metres or (kind == "image" and not subpatch)):
            raise ValueError(
                f"{name!r} is none of the known sensors ({', '.join(SENSORS)}); to register it, write its kind (image, "
                "series or context), metres_per_pixel and, for an image, subpatch_pixels"
            )
        if kind:  # a description may repeat what another one has registered; `register` refuses other facts
            of_bands = files if record is None else record
            bands, centres = of_bands.bands, of_bands.wavelengths_nm
            record = Sensor(name, kind, bands, metres, subpatch_pixels=subpatch or 1, wavelengths_nm=centres)
    with _prefixed(f"{path}: {section}."):
        return SensorFiles(**asdict(files), record=record)


@contextlib.contextmanager
def _prefixed(place: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}{error}") from error


Decoded = TypeVar("Decoded", bound=_Table)


def _decode(file: pathlib.Path, section: str, table: Mapping[str, Any], kind: type[Decoded]) -> Decoded:
    """Decodes a table; `section` is its name in the file, "" for the top level."""

    def decode_pattern(_: type, text: Any) -> FilePattern:
        place = f"{file}: {section or 'mask'}.files"
        if not isinstance(text, str):
            raise ValueError(f"{place} is {text!r}; expected a text")
        return FilePattern(text, place)

    try:
        return msgspec.convert(table, kind, dec_hook=decode_pattern)
    except msgspec.ValidationError as error:
        raise ValueError(_explanation(file, section, table, kind, str(error))) from error


def _explanation(file: pathlib.Path, section: str, table: Any, kind: type[_Table], error: str) -> str:
    """Adds the file, the field's path and its value to msgspec's message "... - at `$.mask.classes[0]`"."""
    message, _, path = error.rstrip("`").partition(" - at `$")
    # msgspec wraps the errors of `decode_pattern` and of __post_init__ like its own.
    if message.startswith(str(file)):  # of FilePattern, complete
        return message
    place = f"{file}: {f'{section}{path}'.lstrip('.')}".removesuffix(": ")
    if found := re.fullmatch("Object missing required field `(.+)`?", message):
        return f"{place} has no {found[1].rstrip('`')}; docs/DATA.md describes it"
    if found := re.fullmatch("Object contains unknown field `(.+)`?", message):
        fields = {".labels": TileLabels, ".mask": MaskFiles, ".splits": SplitRule, ".clear": ClearPixels}.get(
            path, kind
        ).__struct_fields__
        return f"{place} has {found[1].rstrip('`')}, which is not known; known are {', '.join(sorted(fields))}"
    if not message.startswith(("Expected", "Number")):  # of a check of ours, which begins with the field
        return f"{place}.{message}"
    # Follows the path to the value, which msgspec does not name.
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        table = table[key or int(index)]
    # msgspec names types as JSON does
    expected = message.replace(" | null", "").replace("`object`", "`table`").replace("`array`", "`list`")
    expected, is_pattern, _ = expected.partition(" matching regex ")
    expected += ", not blank and without control characters" if is_pattern else ""
    return f"{place} is {repr(table)[:80]}; {expected[0].lower()}{expected[1:]}"


def _whole_floats_as_ints(value: Any) -> Any:
    # In TOML 10.0 is as good as 10, for which msgspec insists on an int; a float field takes both.
    if isinstance(value, dict):
        return {key: _whole_floats_as_ints(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_whole_floats_as_ints(one) for one in value]
    is_whole = isinstance(value, float) and abs(value) <= _LARGEST and value.is_integer()
    return int(value) if is_whole else value

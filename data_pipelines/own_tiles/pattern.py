"""File patterns such as `s2/{tile}_{date}_{band}.tif`: finds the files below a folder, and none outside it."""

import datetime
import functools
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

from data_pipelines.bands import band_key
from data_pipelines.dates import parse_day
from data_pipelines.files import inside

Found = dict[str, list[tuple[datetime.date | None, str | tuple[str, ...]]]]
"""For each tile, the days and paths (relative to the folder) of its files, in time order.

With a file for each band, their paths are a tuple in the order of the bands.
"""

RASTERS = (".tif", ".tiff", ".jp2")
SUFFIXES = (*RASTERS, ".npy", ".npz")
_PLACE = re.compile(r"(\{\w+\})")
_DAY = r"\d{8}|\d{4}-\d{2}-\d{2}"
_ANY_DAY = r"[^_/]+"  # matches a malformed day too, so that an error can name it


def same_letters(tile: str) -> str:
    """Returns a tile's name in Unicode's form NFC, as most tables have it; file names of macOS often are in NFD."""
    return unicodedata.normalize("NFC", tile)


class FilePattern:
    """A pattern of file names: {tile} is the tile's name, {date} its day, {band} a band, * anything; none holds a "/".

    The suffix may be in capitals, in the pattern and in the names.
    """

    def __init__(self, text: str, where: str) -> None:
        """Args:
          text: e.g. "s2/{tile}_{date}.tif", relative to the source folder.
          where: file and field, for errors.

        Raises:
          ValueError: it leads out of the folder, names no tile, has another placeholder or an unknown suffix.
        """
        self.text, self.where = text, where
        found = f"{where} is {text!r}"
        if "\\" in text or any(part in ("", ".", "..") for part in text.split("/")):
            raise ValueError(f"{found}; expected a path below the folder, without '..' or '\\'")
        if "{tile}" not in text:
            raise ValueError(f"{found}; write {{tile}} in place of the tile's name")
        if strange := set(re.findall(r"\{[^}]*\}", text)) - {"{tile}", "{date}", "{band}"}:
            raise ValueError(f"{where} has {', '.join(sorted(strange))}; there are {{tile}}, {{date}}, {{band}} and *")
        if set("{}") & set(re.sub(r"\{[^{}]*\}", "", text)):
            raise ValueError(f"{found}, where a brace is not closed; write {{tile}} and {{date}}")
        if not text.lower().endswith(SUFFIXES):
            raise ValueError(f"{found}; it must end with one of {', '.join(SUFFIXES)}")
        anything = itertools.count()
        self.parts = tuple(re.sub(r"\*", lambda _: f"{{any{next(anything)}}}", text).split("/"))

    @property
    def has_date(self) -> bool:
        return "{date}" in self.text

    @property
    def has_band(self) -> bool:
        return "{band}" in self.text

    @property
    def suffix(self) -> str:
        return pathlib.PurePath(self.text).suffix.lower()

    def head(self, root: pathlib.Path) -> pathlib.Path:
        """Returns the folder down to which the pattern has no placeholder."""
        return root.joinpath(*itertools.takewhile(lambda part: not _PLACE.search(part), self.parts[:-1]))

    def find(self, root: pathlib.Path, bands: Sequence[str] = (), same_day: str = "") -> Found:
        """Lists the files of each tile; `bands` are names for {band} ("B02" is "B2"), others are passed over.

        `same_day` is "join" if a tile may have several files of a day; with {band}, files of all bands of a product.

        Raises:
          FileNotFoundError: no file matches, or not for each band.
          ValueError: the text at {date} is not a day, two files are of one tile, day and band, or a link leads out of
            the folder.
        """
        numbers = {band_key(band): number for number, band in enumerate(bands)} if self.has_band else {"": 0}
        listed: dict[str, list[tuple[datetime.date | None, tuple[str, ...], int, str]]] = {}
        for path, fields in self._walk(root, "", self.parts, {}):
            if (number := numbers.get(band_key(fields.get("band", "")))) is None:
                continue
            day = parse_day(fields["date"], f"{root / path} (pattern {self.text!r})") if self.has_date else None
            product = self.product(path) if self.has_band and same_day else ()
            listed.setdefault(same_letters(fields["tile"]), []).append((day, product, number, path))
        if not listed:
            raise FileNotFoundError(f"{root} has no file {self.text!r}, which {self.where} asks for")
        for files in listed.values():
            files.sort(key=lambda one: (one[0] or datetime.date.min, *one[1:]))
            for (*one, path), (*following, other) in itertools.pairwise(files):
                if one == following and (self.has_band or not (same_day and one[0])):
                    when = f"on {one[0]}" if one[0] else "for which there is no {date}"
                    remedy = "" if self.has_band else ", {band} in the pattern for a file of each band"
                    remedy += ', or same_day = "join" for products of a day' if one[0] else ""
                    raise ValueError(
                        f"{root}: {path} and {other} fit {self.where} for one tile {when}; expected one{remedy}"
                    )
        return {tile: self._join(root, tile, files, bands) for tile, files in sorted(listed.items())}

    def _join(
        self,
        root: pathlib.Path,
        tile: str,
        files: Sequence[tuple[datetime.date | None, tuple[str, ...], int, str]],
        bands: Sequence[str],
    ) -> list[tuple[datetime.date | None, str | tuple[str, ...]]]:
        if not self.has_band:
            return [(day, path) for day, *_, path in files]
        joined: list[tuple[datetime.date | None, str | tuple[str, ...]]] = []
        for (day, _), group in itertools.groupby(files, key=lambda one: one[:2]):
            paths = {number: path for *_, number, path in group}
            if missing := [band for number, band in enumerate(bands) if number not in paths]:
                what = f"tile {tile!r} has no file {self.text!r} of {', '.join(missing)}{f' on {day}' if day else ''}"
                raise FileNotFoundError(f"{root}: {what}; {self.where} asks for one of each band")
            joined.append((day, tuple(paths.values())))
        return joined

    def product(self, path: str) -> tuple[str, ...]:
        """Returns the texts at each * of a path: the same for all files of a product."""
        matches = [_match(part, name) for part, name in zip(self.parts, path.split("/"), strict=True)]
        return tuple(text for match in matches for key, text in match.groupdict().items() if key.startswith("any"))

    def _walk(
        self, root: pathlib.Path, folder: str, parts: tuple[str, ...], known: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields paths below `root`, with their tile and the texts of their date and band."""
        part, rest = parts[0], parts[1:]
        for name, fields in _entries(root, folder, part, bool(rest)):
            # A placeholder that comes twice, as in {tile}/{tile}.tif, stands for the same text.
            if any(known.get(key, value) != value for key, value in fields.items()):
                continue
            path, fields = f"{folder}{name}", known | fields
            if rest:
                yield from self._walk(root, f"{path}/", rest, fields)
            else:
                yield path, fields


def _entries(root: pathlib.Path, folder: str, part: str, is_folder: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the entries of a folder that match one part of a pattern, from one listing."""
    place = root / folder
    if not place.is_dir():
        return
    with os.scandir(place) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") and not part.startswith(".")
            match = _match(part, entry.name)
            if hidden or match is None:
                continue
            # Bytes that are not UTF-8 arrive as lone surrogates, which no table and no TFRecord can hold.
            if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in entry.name):
                raise ValueError(f"{root}/{folder}: {entry.name!r} is not UTF-8 or has control characters; rename it")
            if not (entry.is_dir() if is_folder else entry.is_file()):
                continue
            if entry.is_symlink():
                inside(root, f"{folder}{entry.name}")
            yield entry.name, match.groupdict()


def _match(part: str, name: str) -> re.Match[str] | None:
    return _regex(part, _DAY).fullmatch(name) or _regex(part, _ANY_DAY).fullmatch(name)


@functools.cache
def _regex(part: str, day: str) -> re.Pattern[str]:
    # A group may be defined once only; the second time, the pattern refers to it.
    seen: set[str] = set()
    pieces = []
    for piece in _PLACE.split(part):
        if piece.startswith("{"):
            key = piece.strip("{}")
            text = {"tile": "[^/]+", "date": day, "band": "[^_/]+"}.get(key, "[^/]*")
            pieces.append(f"(?P={key})" if key in seen else f"(?P<{key}>{text})")
            seen.add(key)
        else:
            stem, dot, suffix = piece.rpartition(".")
            is_suffix = f".{suffix}".lower() in SUFFIXES
            pieces.append(f"{re.escape(stem + dot)}(?i:{suffix})" if is_suffix else re.escape(piece))
    return re.compile("".join(pieces))

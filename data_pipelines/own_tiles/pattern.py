"""File patterns such as `s2/{tile}_{date}.tif`: finds the files below a folder, and none outside it."""

import datetime
import functools
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator

from data_pipelines.dates import parse_day
from data_pipelines.files import inside

Found = dict[str, list[tuple[datetime.date | None, str]]]
"""For each tile, the days and paths (relative to the folder) of its files, in time order."""

SUFFIXES = (".tif", ".tiff", ".npy", ".npz")
_PLACE = re.compile(r"(\{tile\}|\{date\}|\*)")
_DAY = r"\d{8}|\d{4}-\d{2}-\d{2}"
_ANY_DAY = r"[^_/]+"  # matches a malformed day too, so that an error can name it


def same_letters(tile: str) -> str:
    """Returns a tile's name in Unicode's form NFC, as most tables have it; file names of macOS often are in NFD."""
    return unicodedata.normalize("NFC", tile)


class FilePattern:
    """A pattern of file names: {tile} is the tile's name, {date} its day, * anything; none of them holds a "/"."""

    def __init__(self, text: str, where: str) -> None:
        """Args:
          text: e.g. "s2/{tile}_{date}.tif", relative to the source folder.
          where: file and field, for errors.

        Raises:
          ValueError: it leads out of the folder, names no tile, has another placeholder or an unknown suffix.
        """
        self.text, self.where, self.parts = text, where, tuple(text.split("/"))
        found = f"{where} is {text!r}"
        if "\\" in text or any(part in ("", ".", "..") for part in self.parts):
            raise ValueError(f"{found}; expected a path below the folder, without '..' or '\\'")
        if "{tile}" not in text:
            raise ValueError(f"{found}; write {{tile}} in place of the tile's name")
        if strange := set(re.findall(r"\{[^}]*\}", text)) - {"{tile}", "{date}"}:
            raise ValueError(f"{where} has {', '.join(sorted(strange))}; there are {{tile}}, {{date}} and *")
        if set("{}") & set(re.sub(r"\{[^{}]*\}", "", text)):
            raise ValueError(f"{found}, where a brace is not closed; write {{tile}} and {{date}}")
        if not text.endswith(SUFFIXES):
            raise ValueError(f"{found}; it must end with one of {', '.join(SUFFIXES)}")

    @property
    def has_date(self) -> bool:
        return "{date}" in self.text

    def head(self, root: pathlib.Path) -> pathlib.Path:
        """Returns the folder down to which the pattern has no placeholder."""
        return root.joinpath(*itertools.takewhile(lambda part: not _PLACE.search(part), self.parts[:-1]))

    def find(self, root: pathlib.Path) -> Found:
        """Lists the files of each tile.

        Raises:
          FileNotFoundError: no file matches.
          ValueError: the text at {date} is not a day, two files are of one tile and day, or a link leads out of
            the folder.
        """
        found: Found = {}
        for path, tile, date in self._walk(root, "", self.parts, {}):
            day = parse_day(date, f"{root / path} (pattern {self.text!r})") if self.has_date else None
            found.setdefault(same_letters(tile), []).append((day, path))
        if not found:
            raise FileNotFoundError(f"{root} has no file {self.text!r}, which {self.where} asks for")
        for files in found.values():
            files.sort(key=lambda one: (one[0] or datetime.date.min, one[1]))
            for (day, path), (next_day, other) in itertools.pairwise(files):
                if day == next_day:
                    when = f"on {day}" if day else "for which there is no {date}"
                    raise ValueError(f"{root}: {path} and {other} fit {self.where} for one tile {when}; expected one")
        return dict(sorted(found.items()))

    def _walk(
        self, root: pathlib.Path, folder: str, parts: tuple[str, ...], known: dict[str, str]
    ) -> Iterator[tuple[str, str, str]]:
        """Yields paths below `root`, with their tile and the text of their date."""
        part, rest = parts[0], parts[1:]
        for name, fields in _entries(root, folder, part, bool(rest)):
            # A placeholder that comes twice, as in {tile}/{tile}.tif, stands for the same text.
            if any(known.get(key, value) != value for key, value in fields.items()):
                continue
            path, fields = f"{folder}{name}", known | fields
            if rest:
                yield from self._walk(root, f"{path}/", rest, fields)
            else:
                yield path, fields["tile"], fields.get("date", "")


def _entries(root: pathlib.Path, folder: str, part: str, is_folder: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the entries of a folder that match one part of a pattern, from one listing."""
    place = root / folder
    if not place.is_dir():
        return
    with os.scandir(place) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") and not part.startswith(".")
            match = _regex(part, _DAY).fullmatch(entry.name) or _regex(part, _ANY_DAY).fullmatch(entry.name)
            if hidden or match is None:
                continue
            # Bytes that are not UTF-8 arrive as lone surrogates, which no table and no TFRecord can hold.
            if any("\ud800" <= letter <= "\udfff" for letter in entry.name):
                raise ValueError(f"{root}/{folder} has a file {entry.name!r}, which is not UTF-8; rename it")
            if not (entry.is_dir() if is_folder else entry.is_file()):
                continue
            if entry.is_symlink():
                inside(root, f"{folder}{entry.name}")
            yield entry.name, match.groupdict()


@functools.cache
def _regex(part: str, day: str) -> re.Pattern[str]:
    # A group may be defined once only; the second time, the pattern refers to it.
    seen: set[str] = set()
    pieces = []
    for piece in _PLACE.split(part):
        if piece == "*":
            pieces.append("[^/]*")
        elif piece in ("{tile}", "{date}"):
            key = piece.strip("{}")
            pieces.append(f"(?P={key})" if key in seen else f"(?P<{key}>{'[^/]+' if key == 'tile' else day})")
            seen.add(key)
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces))

"""A table of a TOML file, whose fields are asked for one by one; what nobody asked for is refused."""

import math
import pathlib
import sys
from typing import Any

_REQUIRED: Any = object()
_LARGEST = 2**31  # of whole numbers: what files, seeds and sides are made of


class Section:
    """A table of a TOML file.

    Attributes:
      where: file and table, for errors.
    """

    def __init__(self, file: pathlib.Path, name: str, table: dict[str, Any]) -> None:
        self.where = f"{file}: {name}" if name else str(file)
        self._file, self._name = file, name
        self._table = table
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        self._taken.add(key)
        return key in self._table

    def names(self) -> tuple[str, ...]:
        """Names of the fields, in the order of the file."""
        return tuple(self._table)

    def section(self, key: str) -> "Section":
        """A table in this table.

        Raises:
          ValueError: it is missing or no table.
        """
        value = self._take(key, _REQUIRED)
        if not isinstance(value, dict):
            raise ValueError(f"{self.where}: {key} is {value!r}; expected a table [{key}]")
        return Section(self._file, f"{self._name}.{key}" if self._name else key, value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A text.

        Raises:
          ValueError: it is missing or none.
        """
        return self._checked(key, default, "a text", lambda value: isinstance(value, str) and bool(value.strip()))

    def number(self, key: str, default: float | None) -> float | None:
        """A number, NaN and infinity allowed.

        Raises:
          ValueError: it is none.
        """
        return _to(float, self._checked(key, default, "a number", _is_number))

    def positive(self, key: str, default: Any = _REQUIRED) -> Any:
        """A finite number above 0.

        Raises:
          ValueError: it is missing or none.
        """
        return _to(float, self._checked(key, default, "a number above 0", lambda v: _is_finite(v) and v > 0))

    def share(self, key: str, default: float) -> float:
        """A share, from 0 to 1.

        Raises:
          ValueError: it is none.
        """
        return float(self._checked(key, default, "a share from 0 to 1", lambda v: _is_finite(v) and 0 <= v <= 1))

    def whole(self, key: str, default: int | None, lowest: int = -_LARGEST) -> Any:
        """A whole number.

        Raises:
          ValueError: it is none, or below `lowest`.
        """
        expected = "a whole number" if lowest == -_LARGEST else f"a whole number, {lowest} or more"
        return _to(int, self._checked(key, default, expected, lambda v: _is_whole(v) and v >= lowest))

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
          ValueError: it is something else.
        """
        return self._checked(key, default, "true or false", lambda value: isinstance(value, bool))

    def texts(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        """A list of texts.

        Raises:
          ValueError: it is missing, empty or something else.
        """
        return tuple(self._checked(key, default, "a list of texts", lambda v: _is_list(v) and all(map(_is_text, v))))

    def wholes(self, key: str, default: Any = _REQUIRED, lowest: int = -_LARGEST) -> tuple[int, ...]:
        """A list of whole numbers.

        Raises:
          ValueError: it is missing, empty or something else, or one is below `lowest`.
        """
        expected = "a list of whole numbers" + ("" if lowest == -_LARGEST else f", {lowest} or more")
        found = self._checked(
            key, default, expected, lambda v: _is_list(v) and all(map(_is_whole, v)) and min(v) >= lowest
        )
        return tuple(map(int, found))

    def finish(self) -> None:
        """Refuses what nobody asked for.

        Raises:
          ValueError: there is such a field; the message lists those that there are.
        """
        if unknown := [key for key in self._table if key not in self._taken]:
            known = ", ".join(sorted(self._taken))
            raise ValueError(f"{self.where} has {', '.join(unknown)}, which is not known; known are {known}")

    def _take(self, key: str, default: Any) -> Any:
        self._taken.add(key)
        if key not in self._table and default is _REQUIRED:
            raise ValueError(f"{self.where} has no {key}; docs/DATA.md says what it is")
        return self._table.get(key, default)

    def _checked(self, key: str, default: Any, expected: str, fits: Any) -> Any:
        value = self._take(key, default)
        if key in self._table and not fits(value):
            raise ValueError(f"{self.where}: {key} is {repr(value)[:80]}; expected {expected}")
        return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    """An integer of TOML may have any number of digits."""
    is_int = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return is_int or isinstance(value, float)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_finite(value) and value == int(value) and abs(value) <= _LARGEST


def _to(kind: type, value: Any) -> Any:
    return None if value is None else kind(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)

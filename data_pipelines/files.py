"""Readers of raw files. Their errors name the file, what was expected of it, and a remedy.

The packages that only raw archives need (rasterio, h5py) are imported where they are used.
"""

import contextlib
import csv
import functools
import importlib
import io
import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

SURPLUS: Any = None  # csv's key for the cells of a row beyond the header's
REMEDY = "download or copy it again"

MOST_BYTES = 2**31  # of the arrays of one file; no archive has more, and a machine may have several readers


class TooLargeError(ValueError):
    """A file whose arrays would take more memory than `MOST_BYTES`."""


def check_size(path: pathlib.Path, size: int) -> None:
    """Raises TooLargeError if a file announces arrays of more than `MOST_BYTES` bytes."""
    if size > MOST_BYTES:
        limit = f"expected at most {MOST_BYTES / 2**30:g} GiB in one file"
        raise TooLargeError(f"{path} announces arrays of {size / 2**30:,.1f} GiB; {limit}: cut it into smaller ones")


def inside(root: pathlib.Path, name: str) -> pathlib.Path:
    """Returns `root / name`, for names that come from metadata or archives; `root` itself may be a link.

    Raises:
      ValueError: the name is empty, absolute, or leads out of `root` (also by a link).
    """
    path = root / name
    if not name.strip() or "\0" in name or not path.resolve().is_relative_to(root.resolve()):
        what = f"{name!r} leads out of {root}; the archive's metadata may only name files inside it"
        linked = ".." not in path.parts and not os.path.isabs(name) and name.strip() and "\0" not in name
        raise ValueError(f"{what}: a link leads to {path.resolve()}; copy the files in its place" if linked else what)
    return path


def stems(folder: pathlib.Path, suffix: str, prefix: str = "") -> set[str]:
    """Returns the file names of a folder that have this prefix and suffix, without them; one listing for all tiles."""
    if not folder.is_dir():
        return set()
    # Strings, as a Path for each of a million takes seconds. macOS copies a file "._NAME" beside each NAME.
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return {n[len(prefix) : len(n) - len(suffix)] for n in names if n.startswith(prefix) and n.endswith(suffix)}


def find_place(root: pathlib.Path, layouts: Mapping[str, Mapping[str, str]], kind: str, **names: str) -> pathlib.Path:
    """Returns where a file or folder lies: in the first of an archive's layouts in which it exists, else in the first.

    `layouts` has by the layout's name the path of each kind, like "split/{split}_filenames.lst"; `names` fill braces.
    """
    paths = [root / layout[kind].format(**names) for layout in layouts.values()]
    return next((path for path in paths if path.exists()), paths[0])


@contextlib.contextmanager
def explained(path: pathlib.Path, expected: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns a library's errors on a damaged file into a ValueError; a missing file stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; expected {expected}") from None
    except TooLargeError:
        raise
    except (OSError, *errors) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected {expected}; {REMEDY}") from error


def check_array(path: pathlib.Path, array: Any, shape: Sequence[int | None], dtype: Any, expected: str) -> np.ndarray:
    """Returns the array if it has this shape (None: any length) and one of these dtypes or kinds ("uint8", "iu", "f").

    Raises:
      ValueError: it is not; the message names the file.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is {type(array).__name__}; expected {expected}")
    kinds = (dtype,) if isinstance(dtype, str) else tuple(dtype)
    fits = array.ndim == len(shape) and all(wanted in (None, side) for side, wanted in zip(array.shape, shape))
    # "iu" and "f" are kinds of numpy's, "uint8" and "f4" dtypes.
    is_dtype = {kind: len(kind) > 3 or kind[-1:].isdigit() for kind in kinds}
    if not fits or not any(array.dtype == kind if is_dtype[kind] else array.dtype.kind in kind for kind in kinds):
        raise ValueError(f"{path} is {array.dtype} {array.shape}; expected {expected}")
    return array


def read_png(path: pathlib.Path, bands: int, side: int, expected: str, content: bytes) -> UInt8[np.ndarray, "C H W"]:
    """Reads all bands of a PNG image, also a fourth that is not transparency.

    `bands` must be their number, `side` its width and height; `path` names the file in errors.

    Raises:
      ValueError: it is unreadable, or of another shape or dtype.
    """
    from PIL import Image

    errors = (SyntaxError, ValueError, Image.DecompressionBombError)
    # GDAL would fill up an image that is cut off.
    with explained(path, expected, *errors), Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        values = np.array(image)
    shaped = np.ascontiguousarray(np.moveaxis(np.atleast_3d(values), -1, 0))
    return check_array(path, shaped, (bands, side, side), "uint8", expected)


def read_npy(
    path: pathlib.Path, shape: Sequence[int | None] | None, dtype: Any, expected: str, *, mapped: bool = False
) -> np.ndarray:
    """Reads a `.npy` array; nothing in the file is executed.

    `shape` (None: any), `dtype` and `expected` are as for `check_array`; `mapped` returns a view of the file, for small
    cuts from large arrays.

    Raises:
      FileNotFoundError, ValueError: it is missing, unreadable, pickled, or of another shape or dtype.
    """
    with explained(path, expected, ValueError, EOFError):
        with path.open("rb") as file:
            check_size(path, 0 if mapped else _announced(file))
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return check_array(path, array, [None] * np.ndim(array) if shape is None else shape, dtype, expected)


def _announced(file: Any) -> int:
    """Returns the bytes of an array by its `.npy` header; numpy would take that memory whatever the file holds."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    return math.prod(shape) * dtype.itemsize


def read_npz(path: pathlib.Path, expected: str) -> dict[str, np.ndarray]:
    """Reads all arrays of a `.npz` file by name; nothing in the file is executed.

    Raises:
      FileNotFoundError, ValueError: it is missing, unreadable, or pickled.
    """
    errors = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, AttributeError, NotImplementedError)
    with explained(path, expected, *errors):
        size = 0
        with zipfile.ZipFile(path) as members:
            for member in members.infolist():
                with members.open(member) as file:  # numpy returns the bytes of one that is not an array
                    size += max(_announced(file) if member.filename.endswith(".npy") else 0, member.file_size)
        check_size(path, size)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}


def _dataset(file: Any, key: str) -> Any:
    dataset = file[key]  # perhaps a link to another file, or made of parts of others
    if dataset.file.filename != file.filename or dataset.is_virtual or dataset.external:
        raise ValueError(f"its {key!r} lies in another file")
    return dataset


def read_hdf5(
    path: pathlib.Path, keys: Sequence[str], expected: str, use: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """Reads datasets of an HDF5 file by key: their values, or what `use` takes from each, such as `np.shape`.

    Raises:
      FileNotFoundError, ValueError: it is missing or unreadable, or lacks a key.
      ImportError: h5py is not installed.
    """
    h5py = import_package("h5py", path)
    errors = (KeyError, RuntimeError, ValueError, TypeError, AttributeError)
    with explained(path, expected, *errors), h5py.File(path) as file:
        missing = [key for key in keys if key not in file]
        datasets = {key: _dataset(file, key) for key in keys if key in file}
        check_size(path, 0 if use else sum(dataset.nbytes for dataset in datasets.values()))
        found = {key: use(dataset) if use else dataset[()] for key, dataset in datasets.items()}
    if missing:
        raise ValueError(f"{path} has no {missing}; expected {expected}")
    return found


def read_hdf5_row(path: pathlib.Path, keys: Sequence[str], row: int, expected: str) -> dict[str, np.ndarray]:
    """Reads one row of each of an HDF5 file's datasets, and no other.

    The file stays open in this process for further rows; a file that was replaced is opened again.

    Raises:
      FileNotFoundError, ValueError: it is missing or unreadable, or lacks a key or the row.
      ImportError: h5py is not installed.
    """
    import_package("h5py", path)
    with explained(path, expected, KeyError, RuntimeError, ValueError, TypeError, IndexError):
        state = path.stat()
        file = _open_hdf5(path, os.getpid(), (state.st_ino, state.st_mtime_ns, state.st_size))
        datasets = {key: _dataset(file, key) for key in keys}
        check_size(path, sum(dataset.nbytes // max(len(dataset), 1) for dataset in datasets.values()))
        return {key: dataset[row] for key, dataset in datasets.items()}


@functools.lru_cache(maxsize=16)
def _open_hdf5(path: pathlib.Path, process: int, state: tuple[int, int, int]) -> Any:
    # `process` keeps a fork from using its parent's file, `state` from using a file that was replaced.
    import h5py

    return h5py.File(path)


LARGEST_JSON = 2**30  # bytes; parsed it takes ten times as much memory


def read_json(path: pathlib.Path, expected: str) -> Any:
    """Reads a JSON file.

    Raises:
      FileNotFoundError, ValueError: it is missing, larger than `LARGEST_JSON`, or refused by `parse_json`.
    """
    with explained(path, expected):
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise OSError(f"{size} bytes are more than any JSON file of an archive has")
        content = path.read_bytes()
    return parse_json(path, content, expected)


def parse_json(path: pathlib.Path, content: str | bytes, expected: str) -> Any:
    """Returns the value of a JSON text; `path` only names it.

    Raises:
      ValueError: it is not JSON, nested too deeply, or holds a number that is infinite or of more than 20 digits.
    """
    with explained(path, expected, ValueError, RecursionError):
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:20]}... is a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"the number {text[:20]} is infinite")
    return number


def read_lines(path: pathlib.Path, expected: str) -> list[str]:
    """Reads the lines of a text file that are not empty, stripped.

    Raises:
      FileNotFoundError, ValueError: it is missing or not text.
    """
    with explained(path, expected, UnicodeDecodeError):
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def read_table(
    path: pathlib.Path, columns: Sequence[str], expected: str, delimiters: str = ","
) -> list[dict[str, str]]:
    """Reads the rows of a CSV file with a header that has (at least) these columns.

    Of `delimiters`, the one that the header has most separates cells. The text is UTF-8, or UTF-16 with its mark.

    Raises:
      FileNotFoundError, ValueError: it is missing, not text, lacks a column or has it twice, or a row has fewer or more
        cells than the header.
    """
    # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
    with explained(path, expected, UnicodeError, csv.Error):
        content = path.read_bytes()
        # Spreadsheets' "Unicode text" is UTF-16.
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        delimiter = max(delimiters, key=text.partition("\n")[0].count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows, header = list(table), table.fieldnames or []
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{path} has columns {list(header)} and lacks {missing}; expected {expected}")
    if twice := [column for column in columns if header.count(column) > 1]:
        raise ValueError(f"{path} has the column {twice[0]!r} twice; expected {expected}")
    for number, row in enumerate(rows, start=2):
        # More where a comma within a cell, perhaps of a number, has shifted what follows; fewer where the file was cut.
        more, fewer = any(row.pop(SURPLUS, ())), None in row.values()
        if fewer or more:
            what = f"{'fewer' if fewer else 'more'} cells than the header's {len(header)}"
            raise ValueError(f"{path}, line {number}: {what}; expected {expected}")
    return rows


def import_package(package: str, path: pathlib.Path) -> Any:
    """Imports a package of the extra `data`, or names what to install to read a file."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"reading {path} needs {package}: pip install -e '.[data]'") from error

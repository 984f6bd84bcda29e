"""Reading what `torch.save` wrote without running any of it: tensors, plain containers and named harmless classes."""

import pathlib
import pickle
import re
import threading
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.files import explained

_SAFE_CLASSES = threading.Lock()  # torch keeps one list of allowed classes for the whole process
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")


def read_torch(path: pathlib.Path, keys: Sequence[str], expected: str, classes: Sequence[type] = ()) -> dict[str, Any]:
    """Values of a dict that `torch.save` wrote; tensors come as arrays, tuples as lists.

    The file's pickle is never executed: torch's restricted reader makes tensors, containers, numbers and texts alone,
    and refuses every other class at its first mention.

    Args:
      path: of the file.
      keys: of the values.
      expected: what should be there, for errors.
      classes: further classes that may stand in the file; only such whose making has no effect, e.g. `datetime.date`.

    Raises:
      FileNotFoundError, ValueError: it is missing, unreadable, no dict with these keys, or holds another class.
      ImportError: torch is not installed, or older than 2.6, whose restricted reader could be tricked.
    """
    torch = _import_torch(path)
    errors = (RuntimeError, EOFError, KeyError, TypeError, AttributeError, IndexError, ValueError)
    try:
        with explained(path, expected, *errors), _SAFE_CLASSES, torch.serialization.safe_globals(list(classes)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error), expected) from None
    return _pick(path, content, keys, expected)


def _import_torch(path: pathlib.Path) -> Any:
    try:
        import torch.serialization
    except ImportError as error:
        raise ImportError(f"reading {path} needs torch: pip install -e '.[torch]'") from error
    if tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise ImportError(
            f"reading {path} needs torch 2.6 or newer, and {torch.__version__} is here: pip install -e '.[torch]'"
        )
    return torch


def _refusal(path: pathlib.Path, message: str, expected: str) -> ValueError:
    """Our words: those of torch advise to switch its protection off."""
    foreign = _FOREIGN.search(message)
    if foreign is None:
        return ValueError(f"{path} cannot be read (its pickle is damaged); expected {expected}; download it again")
    return ValueError(
        f"{path} holds a pickled {foreign[1]}, which is refused since reading it could run code; expected "
        f"{expected}; download it again from its publisher"
    )


def _pick(path: pathlib.Path, content: Any, keys: Sequence[str], expected: str) -> dict[str, Any]:
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if missing:
        found = sorted(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {found} and lacks {missing}; expected {expected}")
    values = {key: content[key] for key in keys}
    with explained(path, expected, RuntimeError, TypeError):
        return {key: _to_arrays(value) for key, value in values.items()}


def _to_arrays(value: Any) -> Any:
    """Tensors, also those in a list, as arrays; everything else as it is."""
    if isinstance(value, list | tuple):
        return [_to_arrays(one) for one in value]
    return value.numpy() if hasattr(value, "numpy") else value


def read_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file by name, as float32.

    The file holds a dictionary of tensors, or one below the key "state_dict" (what stands beside it is ignored). Only
    tensors and plain containers are decoded, never an arbitrary object, so nothing in the file can run.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: torch is not installed.
      ValueError: the file is damaged, no checkpoint, or holds objects that are not tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: give the path of a published .pth file")
    content = _load(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    return _to_numpy(state, path)


def _load(path: pathlib.Path) -> Any:
    """What the file holds, decoded by torch's restricted reader."""
    torch = _import_torch_of_reading()
    zipped = zipfile.is_zipfile(path)
    if not zipped and _first_bytes(path) == b"PK":
        raise ValueError(f"{path} is cut off: its end is missing. Get the file again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds objects other than tensors, which loading would have to execute; nothing of it was run. "
                "Save its state_dict alone and load that."
            ) from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged. Get the file again.") from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged ({error}). Get the file again.") from error


def _first_bytes(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _import_torch_of_reading() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("reading a published .pth checkpoint needs PyTorch: pip install -e '.[torch]'") from error
    return torch


def _to_numpy(state: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _import_torch_of_reading()
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            f"{path}: the content is {_kind(state)}; expected a dictionary of tensors, or one below 'state_dict'"
        )
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise ValueError(
                f"{path}: entry {name!r} is {_kind(tensor)}; expected a dense tensor. Save a model's state_dict."
            )
    return {name: tensor.detach().to(torch.float32).numpy() for name, tensor in state.items()}


def _kind(value: Any) -> str:
    if isinstance(value, Mapping) and not value:
        return "an empty dictionary"
    return f"of type {type(value).__name__}"

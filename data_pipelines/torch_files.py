"""Reading what `torch.save` wrote without running any of it: tensors, plain containers and named harmless classes."""

import pathlib
import pickle
import re
import threading
from collections.abc import Sequence
from typing import Any

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

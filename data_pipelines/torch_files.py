"""Files that `torch.save` wrote, read without running any code in them."""

import pathlib
import pickle
import re
import threading
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.files import REMEDY, explained

CHECKPOINT = "a PyTorch checkpoint: a model's state_dict, saved alone or below the key 'state_dict'"
# torch keeps one list of allowed classes for the whole process.
_SAFE_CLASSES = threading.Lock()
_FOREIGN_CLASS = re.compile(r"GLOBAL ([\w.]+)")


def load_torch(path: pathlib.Path, expected: str, classes: Sequence[type] = (), mmap: bool = False) -> Any:
    """Returns the content of a file that `torch.save` wrote.

    The file's pickle is never executed: torch's restricted reader makes tensors, containers, numbers and texts alone,
    and refuses every other class at its first mention. It may also hold `classes`, only such whose construction has no
    effect, e.g. `datetime.date`. With `mmap`, tensors are mapped from the file, where its format allows that, in place
    of being copied. `expected` is the content in words, for errors.

    Raises:
      FileNotFoundError, ValueError: the file is missing, unreadable, or holds another class.
      ImportError: torch is not installed, or older than 2.6, whose restricted reader could be tricked.
    """
    try:
        import torch.serialization
    except ImportError as error:
        raise ImportError(f"reading {path} needs torch: pip install -e '.[torch]'") from error
    # Files could run code in spite of weights_only before 2.6 (CVE-2025-32434).
    if tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        found = f"torch 2.6 or newer, and {torch.__version__} is here"
        raise ImportError(f"reading {path} needs {found}: pip install -e '.[torch]'")
    errors = (RuntimeError, EOFError, KeyError, TypeError, AttributeError, IndexError, ValueError, zipfile.BadZipFile)
    try:
        with explained(path, expected, *errors), _SAFE_CLASSES, torch.serialization.safe_globals(list(classes)):
            if is_zip := zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as file:
                    unpacked, held = sum(one.file_size for one in file.infolist()), path.stat().st_size
                    if unpacked > held:  # torch.save does not compress: this could fill the memory
                        raise ValueError(f"it has {held:,} bytes, and unpacks to {unpacked:,}")
                    if damaged := file.testzip():  # torch does not compare the checksums
                        raise ValueError(f"{damaged} in it does not match its checksum")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_zip and mmap else None)
    except pickle.UnpicklingError as error:
        # Not chained: its message advises to switch the protection off.
        foreign = _FOREIGN_CLASS.search(str(error))
    problem, remedy = "cannot be read (it is cut off or damaged, or its pickle of a kind that could run code)", REMEDY
    if foreign:
        problem = f"holds a pickled {foreign[1]}, which is refused since reading it could run code"
        remedy = "download it again from its publisher"
    raise ValueError(f"{path} {problem}; expected {expected}; {remedy}")


def read_torch(path: pathlib.Path, keys: Sequence[str], expected: str, classes: Sequence[type] = ()) -> dict[str, Any]:
    """Returns values of a dict that `torch.save` wrote; tensors as arrays, tuples as lists.

    Raises:
      FileNotFoundError, ValueError, ImportError: as `load_torch`, or it is not a dict with these keys.
    """
    content = load_torch(path, expected, classes)
    missing = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
    if missing:
        found = sorted(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {found} and lacks {missing}; expected {expected}")
    with explained(path, expected, RuntimeError, TypeError):
        return {key: _to_arrays(content[key]) for key in keys}


def _to_arrays(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_to_arrays(one) for one in value]
    return value.numpy() if hasattr(value, "numpy") else value


def read_arrays(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors of a `.pth` file by name, as float32, and the texts beside them.

    The file holds a dictionary of tensors, or one below the key "state_dict", beside which all but texts is ignored.

    Raises:
      FileNotFoundError, ValueError, ImportError: as `load_torch`, or it holds values that are not dense
        floating-point tensors, or more of them than bytes.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: give the path of a published .pth file")
    content = load_torch(path, CHECKPOINT, mmap=True)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        found = "an empty dictionary" if isinstance(state, Mapping) else f"of type {type(state).__name__}"
        raise ValueError(f"{path}: the content is {found}; expected {CHECKPOINT}")
    import torch

    for name, tensor in state.items():
        found = f"entry {name!r} is of type {type(tensor).__name__}"
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise ValueError(f"{path}: {found}; expected a dense tensor: save a model's state_dict")
        # Integers and complex numbers would lose a part; quantised and "meta" tensors do not have their values.
        if not tensor.is_floating_point() or tensor.is_quantized or tensor.is_meta:
            found = f"{found}, {tensor.dtype}" + (", without values (device meta)" if tensor.is_meta else "")
            raise ValueError(f"{path}: {found}; expected floating-point values: save the state_dict of the whole model")
    # Strides of 0 give a number any shape: a small file could fill the memory.
    size, held = sum(tensor.nbytes for tensor in state.values()), path.stat().st_size
    if size > held:
        raise ValueError(f"{path} has {held:,} bytes, and its tensors claim {size:,}; {REMEDY}")
    texts = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, str)}
    # numpy has no bfloat16.
    return {name: tensor.detach().to(torch.float32).numpy() for name, tensor in state.items()}, texts

"""Reads the arrays of a PyTorch checkpoint without executing anything that stands in it."""

import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np


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
    torch = _import_torch()
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


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("reading a published .pth checkpoint needs PyTorch: pip install -e '.[torch]'") from error
    return torch


def _to_numpy(state: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _import_torch()
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

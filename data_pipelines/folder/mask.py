"""The label of each pixel, from a file beside the tile."""

import pathlib

import numpy as np
from jaxtyping import Float, Int, Num

from data_pipelines.folder.arrays import Read, read_file
from data_pipelines.folder.description import MaskFiles


def read_mask(mask: MaskFiles, path: pathlib.Path, side: int, dtype: np.dtype) -> Num[np.ndarray, "h w"]:
    """A tile's dense label: class numbers with `mask.ignore` where there is none, or float32 with NaN there.

    Args:
      mask: what the description says of it.
      path: the file.
      side: pixels along a side.
      dtype: of a class map.

    Raises:
      FileNotFoundError, ValueError: the file is missing, unreadable, of another size, or holds an unknown class.
    """
    read = read_file(path, mask.array)
    values = read.values[0] if read.values.ndim == 3 and len(read.values) == 1 else read.values
    if values.shape != (side, side):
        metres = mask.metres_per_pixel
        raise ValueError(
            f"{path} has the shape {read.values.shape}; expected one band of {side} x {side} pixels, the described "
            f"extent of {side * metres:g} m in pixels of {metres:g} m (mask.metres_per_pixel)"
        )
    return _classes(mask, read, values, dtype) if mask.classes else _numbers(read, values)


def _numbers(read: Read, values: Num[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    numbers = values.astype(np.float32)
    known = np.isfinite(numbers) if read.nodata is None else np.isfinite(numbers) & (values != read.nodata)
    return np.where(known, numbers, np.float32(np.nan))


def _classes(mask: MaskFiles, read: Read, values: Num[np.ndarray, "h w"], dtype: np.dtype) -> Int[np.ndarray, "h w"]:
    known = np.isfinite(values) & (values != mask.ignore)
    if read.nodata is not None and read.nodata not in mask.values:
        known &= values != read.nodata
    classes = np.full(values.shape, mask.ignore, dtype)
    for number, value in enumerate(mask.values):
        classes[values == value] = number
    if strangers := sorted(set(np.unique(values[known]).tolist()) - set(mask.values)):
        raise ValueError(
            f"{read.path} holds {', '.join(f'{v:g}' for v in strangers[:8])}; expected {mask.values} for the classes "
            f"{', '.join(mask.classes)}, or {mask.ignore} for no label (mask.values, mask.ignore)"
        )
    return classes

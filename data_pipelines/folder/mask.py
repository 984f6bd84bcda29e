"""The label of each pixel, from a file beside the tile."""

import numpy as np
from jaxtyping import Float, Int, Num

from data_pipelines.folder.arrays import Read
from data_pipelines.folder.description import MaskFiles

NO_LABEL = -1  # whatever stands for it in the files: their own number may be that of a class once classes count from 0


def dense_label(mask: MaskFiles, read: Read, side: int, dtype: np.dtype) -> Num[np.ndarray, "h w"]:
    """A tile's dense label: class numbers with `NO_LABEL` where there is none, or float32 with NaN there.

    Args:
      mask: what the description says of it.
      read: the file.
      side: pixels along a side.
      dtype: of a class map.

    Raises:
      ValueError: the file is of another size, or holds an unknown class.
    """
    values = read.values[0] if read.values.ndim == 3 and len(read.values) == 1 else read.values
    if values.shape != (side, side):
        metres = mask.metres_per_pixel
        raise ValueError(
            f"{read.path} has the shape {read.values.shape}; expected one band of {side} x {side} pixels, the "
            f"described extent of {side * metres:g} m in pixels of {metres:g} m (mask.metres_per_pixel)"
        )
    return _classes(mask, read, values, dtype) if mask.classes else _numbers(mask, read, values)


def _numbers(mask: MaskFiles, read: Read, values: Num[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    numbers = values.astype(np.float32)
    known = np.isfinite(numbers)
    for nothing in (read.nodata, mask.ignore):
        if nothing is not None:
            known &= values != nothing
    return np.where(known, numbers, np.float32(np.nan))


def _classes(mask: MaskFiles, read: Read, values: Num[np.ndarray, "h w"], dtype: np.dtype) -> Int[np.ndarray, "h w"]:
    known = np.isfinite(values) & (values != mask.ignore)
    if read.nodata is not None and read.nodata not in mask.values:
        known &= values != read.nodata
    classes = np.full(values.shape, NO_LABEL, dtype)
    for number, value in enumerate(mask.values):
        classes[values == value] = number
    if strangers := sorted(set(np.unique(values[known]).tolist()) - set(mask.values)):
        raise ValueError(
            f"{read.path} holds {', '.join(f'{v:g}' for v in strangers[:8])}; expected {mask.values} for the classes "
            f"{', '.join(mask.classes)}, or {mask.ignore} for no label (mask.values, mask.ignore)"
        )
    return classes

"""A landscape drawn by hand, for tests."""

import numpy as np

from data_pipelines.mini import land_cover as lc
from data_pipelines.mini.landscape import Landscape


def plain_landscape(segments: np.ndarray, covers: list[str], metres: float = 1.0, shift: float = 0.0) -> Landscape:
    """A landscape of given segments without individual differences."""
    ones = np.ones(len(covers), np.float32)
    numbers = np.array([lc.COVER_INDEX[name] for name in covers], np.int32)
    extent = metres * len(segments)
    return Landscape(extent, metres, segments, numbers, shift * ones, ones, ones, ones, 0.0)

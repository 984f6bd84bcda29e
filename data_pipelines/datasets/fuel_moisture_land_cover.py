"""The pixels of `fuel_moisture.py` with another label: their land cover in the last of the three months."""

import pathlib

from data_pipelines.datasets.fuel_moisture import LAND_COVER_CARD, LAYOUT, LandCoverReader, holds_raw

__all__ = ["CARD", "LAYOUT", "holds_raw", "open_reader"]

CARD = LAND_COVER_CARD


def open_reader(root: pathlib.Path) -> LandCoverReader:
    """The reader of the raw data in `root`."""
    return LandCoverReader(root)

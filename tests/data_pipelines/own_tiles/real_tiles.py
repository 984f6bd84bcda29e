"""A folder as docs/DATA.md describes it, cut from a real chip of Sen1Floods11."""

import pathlib

import numpy as np
import rasterio
from rasterio.windows import Window

LAYERS = {
    "s2": ("S2/Spain_7370579_S2Hand.tif", "_20190918"),
    "s1": ("S1/Spain_7370579_S1Hand.tif", "_20190917"),
    "water": ("Labels/Spain_7370579_LabelHand.tif", ""),
}


def cut_tiles(chip: pathlib.Path, folder: pathlib.Path, side: int = 64, rows: int = 2) -> list[str]:
    """Cuts the upper rows of the chip into tiles; its left half is for training, its right half held out."""
    labels = {}
    for layer, (name, date) in LAYERS.items():
        (folder / layer).mkdir(parents=True)
        with rasterio.open(chip / "sample" / name) as file:
            for row, column in np.ndindex(rows, file.width // side):
                window = Window(column * side, row * side, side, side)
                tile, values = f"r{row}c{column}", file.read(window=window)
                _write(folder / layer / f"{tile}{date}.tif", values, file, window)
                labels[tile] = (column < file.width // side // 2, (values == 1).any())
    lines = [f"{t},{'train' if left else 'val'},{'partly' if wet else 'no'}" for t, (left, wet) in labels.items()]
    (folder / "tiles.csv").write_text("\n".join(["tile,split,flooded", *lines, ""]))
    return list(labels)


def _write(path, values, file, window):
    profile = dict(driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2])
    corner = rasterio.Affine.translation(window.col_off, window.row_off)
    place = dict(crs=file.crs, transform=file.transform @ corner, nodata=file.nodata)
    with rasterio.open(path, "w", dtype=values.dtype, **profile, **place) as tile:
        tile.write(values)

"""Peak memory of a run is that of its windows, whatever the size of the scene."""

import ctypes
import os
import pathlib

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from anysat_jax.scenes import cli, outputs
from tests import forked
from tests.scenes.fake_scenes import CRS, LEFT, TOP, fake_values, model, save_model

MMAP_THRESHOLD, ARENA_MAX = -3, -8  # of malloc.h
PLACES = ((0.05, 0.05), (0.35, 0.4), (0.9, 0.9))  # of the scene, where there is something


def write_sparse(path, side):
    """A Sentinel-2 file of which only three places of 300 pixels have values."""
    path.parent.mkdir()
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=10, height=side, width=side, crs=CRS, nodata=0, tiled=True,
        blockxsize=256, blockysize=256, transform=from_origin(LEFT, TOP, 10, 10), compress="deflate", sparse_ok=True,
    ) as file:  # fmt: skip
        for down, right in PLACES:
            row, column = (min(int(part * side), side - 300) for part in (down, right))
            file.write(fake_values(10, 300, 300).astype(np.uint16), window=Window(column, row, 300, 300))


def run(words, report):
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Otherwise what glibc keeps of freed memory, 200 MB more or less from run to run, hides what is in use.
    library = ctypes.CDLL(None)
    library.mallopt(MMAP_THRESHOLD, 2**16)
    library.mallopt(ARENA_MAX, 1)
    code = cli.main("embed", words)
    status = pathlib.Path("/proc/self/status").read_text()
    report.write_text(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    raise SystemExit(code)


@pytest.mark.slow
def test_peak_memory_does_not_depend_on_the_scene(tmp_path):
    weights, peaks = save_model(tmp_path / "tiny.safetensors", model("s2")), []
    for side in (1000, 10_980):
        source = tmp_path / f"scene{side}"
        write_sparse(source / "s2_20210110.tif", side)
        words = f"--s2 {source} --weights {weights} --output {tmp_path / f'{side}.tif'}"
        words += " --patch-size 40 --resolution 10 --components 4 --dtype int8"
        assert forked.call(run, words.split(), tmp_path / "peak") == 0
        peaks.append(int((tmp_path / "peak").read_text()) / 1024)
        with rasterio.open(tmp_path / f"{side}.tif") as file:
            assert file.shape == (side, side)
            assert (file.read(1) != -128).sum() == 3 * 300**2
    # Windows: 412 to 420 MB, both. Joining those of the larger scene fills what GDAL may keep.
    assert peaks[1] < 1.1 * peaks[0] + outputs.GDAL_OPTIONS["GDAL_CACHEMAX"] / 2**20, peaks

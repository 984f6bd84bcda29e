"""Random GeoTIFFs under random descriptions are read as they declare, or refused: never read wrongly."""

import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import rasterio

from anysat_jax.sensors import SENSORS
from data_pipelines.own_tiles.reader import folder_entry
from data_pipelines.prepare.shards import read_tile

DESCRIPTION = """
name = "random_tiles"
extent = 40
patch_sizes = [10]

[sensors.fixture_random]
files = "{{tile}}_{{date}}.tif"
bands = ["B2", "B3", "B8A"]
kind = "series"
metres_per_pixel = 10
dtype = "{dtype}"
{nodata}

[splits]
val = 0
"""
DAYS = ("20200101", "20200615")
NAMES = {
    "": None,
    "right": ("B2", "B3", "B8A"),
    "spelt": ("B02", "b3", "B8A (narrow)"),
    "swapped": ("B2", "B8A", "B3"),
}
UTM = rasterio.Affine(10, 0, 5e5, 0, -10, 6e6)
PLACES = {
    "plain": dict(crs="EPSG:32632", transform=UTM),
    "nowhere": dict(crs=None, transform=UTM),
    "zone": dict(crs="EPSG:32633", transform=UTM),
    "twenty": dict(crs="EPSG:32632", transform=rasterio.Affine(20, 0, 5e5, 0, -20, 6e6)),
    "turned": dict(crs="EPSG:32632", transform=rasterio.Affine(8, 6, 5e5, 6, -8, 6e6)),
    "feet": dict(crs="EPSG:2264", transform=UTM),
}
FILE = st.fixed_dictionaries(
    dict(
        seed=st.integers(0, 2**16),
        scale=st.sampled_from([1, 1, 1, 2, 0.5, 0.0001]),
        offset=st.sampled_from([0, 0, -3, 0.25, -0.0005]),
        nodata=st.sampled_from([None, 1, 7]),
        mask=st.sampled_from(["", "", "inside", "beside", "alpha"]),
        names=st.sampled_from(["", "right", "spelt", "right", "swapped"]),
        place=st.sampled_from(["plain"] * 8 + list(PLACES)),
    )
)
STORED = st.sampled_from(["uint8", "uint16", "int16", "float32"])
DTYPE = st.sampled_from(["float32", "uint8", "uint16", "int16"])


@pytest.fixture(autouse=True)
def _own_sensors_go(monkeypatch):
    monkeypatch.setattr("anysat_jax.sensors.SENSORS", dict(SENSORS))


def write(path, one, stored):
    """Writes a file as drawn; returns its values and which pixels its mask or alpha band leaves."""
    rng = np.random.default_rng(one["seed"])
    values = rng.integers(1, 30, (3, 4, 4)).astype(stored)
    if stored == "float32":
        values[rng.random(values.shape) < 0.05] = np.nan
    seen = rng.random((4, 4)) < 0.7 if one["mask"] else np.ones((4, 4), bool)
    written, profile = values, {}
    if one["mask"] == "alpha":
        written = np.concatenate([values, np.where(seen, 255 if stored == "uint8" else 1, 0)[None].astype(stored)])
        profile = dict(photometric="RGB", alpha="YES")
    shape = dict(count=len(written), height=4, width=4, dtype=stored, nodata=one["nodata"])
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=one["mask"] == "inside"),
        rasterio.open(path, "w", driver="GTiff", **shape, **profile, **PLACES[one["place"]]) as file,
    ):
        file.write(written)
        file.scales, file.offsets = [one["scale"]] * len(written), [one["offset"]] * len(written)
        if NAMES[one["names"]]:
            file.descriptions = [*NAMES[one["names"]], None][: len(written)]
        if one["mask"] in ("inside", "beside"):
            file.write_mask(seen)
    return values, seen


def plain_reading(values, seen, one, dtype, nodata):
    """Returns the values that a file declares, and where they are valid; None if they do not fit the dtype."""
    valid = np.isfinite(values).all(axis=0) & seen
    for nothing in (nodata, one["nodata"]):
        valid &= True if nothing is None else (values != nothing).all(axis=0)
    right = values.astype(np.float64) * one["scale"] + one["offset"]
    if dtype != "float32":
        if one["scale"] != round(one["scale"]):
            right = np.round(right / one["scale"], 3)  # numbers of the scale's steps
        kept, limits = right[:, valid], np.iinfo(dtype)
        if kept.size and ((kept != np.rint(kept)).any() or kept.min() < limits.min or kept.max() > limits.max):
            return None, valid
    return np.where(valid, right, 0), valid


def contradicts(both, dtype):
    scales = [one["scale"] for one in both]
    mixed = scales[0] != scales[1] and (dtype != "float32" or 1 in scales)
    zones = {PLACES[one["place"]]["crs"] for one in both} >= {"EPSG:32632", "EPSG:32633"}
    odd = any(one["names"] == "swapped" or one["place"] in ("twenty", "turned", "feet") for one in both)
    return mixed or zones or odd


@hypothesis.given(both=st.tuples(FILE, FILE), stored=STORED, dtype=DTYPE, nodata=st.sampled_from([None, 9]))
@hypothesis.settings(max_examples=500, derandomize=True, deadline=None, database=None)
def test_random_files_are_read_as_declared_or_refused(both, stored, dtype, nodata):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        raw = [write(root / f"a_{day}.tif", one, stored) for day, one in zip(DAYS, both, strict=True)]
        nothing = "" if nodata is None else f"nodata = {nodata}"
        (root / "own.toml").write_text(DESCRIPTION.format(dtype=dtype, nodata=nothing))
        right = [plain_reading(*read, one, dtype, nodata) for read, one in zip(raw, both, strict=True)]
        impossible = contradicts(both, dtype) or any(values is None for values, _ in right)
        reader = folder_entry(root / "own.toml").reader()
        if impossible or not any(valid.any() for _, valid in right):
            with pytest.raises(ValueError, match=r"a_2020\d+\.tif"):
                read_tile(reader, "train", "a")
            return
        example = read_tile(reader, "train", "a")
    kept = [(values, valid) for values, valid in right if valid.any()]
    np.testing.assert_array_equal(example["fixture_random_mask"][:, 0], [valid for _, valid in kept])
    assert example["fixture_random"].dtype == dtype
    np.testing.assert_allclose(example["fixture_random"], [values for values, _ in kept], rtol=1e-6, atol=1e-9)

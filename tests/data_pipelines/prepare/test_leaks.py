"""Held-out tiles with the bytes or the ground of a training tile: named in the report, refused if asked."""

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from data_pipelines.cli import main
from data_pipelines.prepare.leaks import Footprint, find_leaks, footprint
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.report import read_report, report_text
from tests.data_pipelines.fake_reader import FakeReader
from tests.data_pipelines.own_tiles.folders import DESCRIPTION, describe, reader_of, write_raster

PLACES = {"a": 0, "b": 4000, "same_bytes": 8000, "same_place": 0, "half": 4020, "beside": 4040, "far": 12000}
TRAINING = ("a", "b")
EXPECTED = [
    {"split": "val", "tile": "half", "train": "b", "reason": "same ground"},
    {"split": "val", "tile": "same_bytes", "train": "a", "reason": "same bytes"},
    {"split": "val", "tile": "same_place", "train": "a", "reason": "same ground"},
]


def write_tiles(root, names=tuple(PLACES)):
    """Tiles of 40 m with noise of their own, except for "same_bytes"."""
    for number, name in enumerate(names):
        rng = np.random.default_rng(0 if name == "same_bytes" else number)
        place = rasterio.Affine(10, 0, 5e5 + PLACES[name], 0, -10, 6e6)
        values = rng.integers(200, 3000, (11, 4, 4)).astype(np.uint16)
        write_raster(root / "s2" / f"{name}_20200301.tif", values, transform=place)
    rows = [f"{name},field,{'train' if name in TRAINING else 'val'}" for name in names]
    (root / "tiles.csv").write_text("\n".join(["tile,cover,split", *rows]) + "\n")
    return describe(root, DESCRIPTION)


def test_leaks_are_named_and_refused_if_asked(tmp_path, capsys):
    path = write_tiles(tmp_path)
    folder = prepare_dataset(reader_of(path), tmp_path / "out", "1.0.0", say=lambda _: None)
    report = read_report(folder)
    assert report["leaks"] == EXPECTED
    line = "LEAKS: 3 held-out tiles are in train, too: half of val and b of train (same ground), same_bytes of val"
    assert line in report_text(report)
    # A finished folder is refused as a new one is.
    for out in ("out", "other"):
        assert main(["prepare", str(path), "--out", str(tmp_path / out), "--refuse-leaks"]) == 1
        assert "LEAKS: 3 held-out tiles" in (error := capsys.readouterr().err) and "prepare without" in error
    assert not (tmp_path / "other" / "own_tiles" / "1.0.0").exists()


def test_tiles_side_by_side_are_no_leak(tmp_path, capsys):
    path = write_tiles(tmp_path, ("a", "b", "beside", "far"))
    assert main(["prepare", str(path), "--out", str(tmp_path / "out"), "--refuse-leaks"]) == 0
    assert "LEAKS" not in capsys.readouterr().out


def test_tiles_without_a_place_are_compared_by_their_bytes(tmp_path):
    def copy(split, index, example):
        if (split, index) == ("val", 1):
            example |= FakeReader().example("train", "train4")
        example["id"] = f"{split}{index}"

    folder = prepare_dataset(FakeReader(edit=copy), tmp_path, "1.0.0", say=lambda _: None)
    (leak,) = read_report(folder)["leaks"]
    assert leak == {"split": "val", "tile": "val1", "train": "train4", "reason": "same bytes"}


def at(crs, lon, lat, side=1280.0, east=0.0):
    """The footprint of a tile with its centre at a place, moved to the east by `east` of its sides."""
    (x,), (y,) = transform("EPSG:4326", crs, [lon], [lat])
    x, half = x + east * side, side / 2
    return Footprint(f"{crs} {lon} {east}", f"{crs} {lon} {lat} {east}", crs, (x - half, y - half, x + half, y + half))


@pytest.mark.parametrize("lat", [-52.0, 0.5, 58.0])
@pytest.mark.parametrize(
    ("crs", "side", "shared"),
    [
        ("EPSG:32632", 1280.0, (0.0, 0.4, -0.4)),
        ("EPSG:32732", 1280.0, (0.0, 0.4, -0.4)),
        ("EPSG:4326", 0.01, (0.0,)),
    ],
)
def test_the_same_ground_in_another_coordinate_system_is_found(lat, crs, side, shared):
    train = [at("EPSG:32631", 6.0, lat), at("EPSG:32631", 0.5, lat), at("EPSG:32650", 117.0, lat)]
    held_out = [at(crs, 6.0, lat, side, east) for east in (*shared, 2.0, -2.0, 1.001, -1.001)]
    # Nor do places that no other system has hide those of others, or leave a trace.
    nowhere = [Footprint("n", "n", crs, (1e12, 1e12, 1e13, 1e13)), Footprint("m", "m", "", (0, 0, 0, 0))]
    nowhere.append(Footprint("local", "local", 'LOCAL_CS["x",UNIT["metre",1]]', train[0].bounds))
    if side == 0.01:  # degrees, about 700 to 1100 m: the neighbours of larger tiles reach into them
        held_out = [one for one in held_out if one.tile.split()[2] in ("0.0", "2.0", "-2.0")]
    leaks = find_leaks("train", {"train": train, "val": [*nowhere, *held_out]})
    assert [(leak.tile, leak.train, leak.reason) for leak in leaks] == [
        (one.tile, train[0].tile, "same ground") for one in held_out[: len(shared)]
    ]


def plain(splits):
    """Compares every pair of footprints."""
    for split, some in splits.items():
        for one in some if split != "train" else ():
            for other in splits["train"]:
                west, south = np.maximum(one.bounds[:2], other.bounds[:2])
                east, north = np.minimum(one.bounds[2:], other.bounds[2:])
                sides = [b.bounds[2] - b.bounds[0] for b in (one, other)]
                common = max(0, east - west) * max(0, north - south)
                if one.crs == other.crs and common > 0.01 * min(sides) ** 2:
                    yield split, one.tile
                    break


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_are_found_as_by_comparing_all_pairs(seed):
    rng = np.random.default_rng(seed)
    splits = {"train": [], "val": [], "test": []}
    for number in range(300):
        x, y, side = *rng.uniform(-500, 500, 2), rng.choice([10, 20, 35])
        split, crs = rng.choice(list(splits)), rng.choice(["EPSG:32631", "EPSG:32632"])
        splits[split].append(Footprint(str(number), str(number), crs, (x, y, x + side, y + side)))
    found = {(leak.split, leak.tile) for leak in find_leaks("train", splits)}
    assert found == set(plain(splits)) and found


def test_only_the_extent_of_an_array_with_a_margin_counts():
    from tests.data_pipelines.prepare.test_records import FULL, full_example

    place = np.array([1.0, 0, 100, 0, -1, 200])
    one = footprint(FULL, full_example() | {"transform": place})
    assert one.crs == "EPSG:25832" and one.bounds == (102, 158, 142, 198)
    for nowhere in (np.full(6, np.nan), np.array([1.0, 0, 0, 0, 1, 0])):
        assert footprint(FULL, full_example() | {"transform": nowhere}).crs == ""

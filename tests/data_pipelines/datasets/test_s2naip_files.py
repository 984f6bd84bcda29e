"""S2NAIP's tables of dates, lists of splits and files: the forms that they may have, and what is refused."""

import json
import shutil
import tarfile

import numpy as np
import pytest

from data_pipelines.datasets.s2naip import S2NaipReader, holds_raw
from data_pipelines.datasets.s2naip_metadata import read_date_table, split_of
from data_pipelines.fakes.common import write_raster
from data_pipelines.prepare.shards import BadTileError
from tests.data_pipelines.datasets.s2naip_tile import (
    L8_DAYS,
    S1_DAYS,
    S2_DAYS,
    SCENES,
    TILE,
    naip_image,
    read_tile,
    write_naip,
    write_tile,
)
from tests.data_pipelines.fake_reader import examples_of


@pytest.fixture
def archive(tmp_path):
    return write_tile(tmp_path / "raw")


# Dates


@pytest.mark.parametrize(
    "rows",
    [
        [f"{TILE},{scene}" for scene in SCENES["sentinel2"]],
        [f'EPSG:32612,960,-6049,"{scene}",2020-08-01' for scene in SCENES["sentinel2"]],
        [f'{TILE},"{SCENES["sentinel2"]}"'],
        [f"{number},{TILE},{day[:4]}-{day[4:6]}-{day[6:]}T17:49:09Z" for number, day in enumerate(S2_DAYS)],
        [f'"{TILE}",{day}' for day in S2_DAYS],
    ],
)
def test_tables_of_dates_in_several_forms(archive, rows):
    """By product names or dates, one image a row or all of a tile; other tiles do not matter."""
    others = ["32612_960_-60490,S2A_MSIL1C_20190101T1", "32612_961_-6049,20190101"]
    (archive / "sentinel2.csv").write_text("\n".join(["a header", others[0], *rows, others[1]]))
    assert read_tile(archive)["s2_dates"].tolist() == [153, 158]


def test_a_table_in_memory_is_small_and_gives_no_days_for_other_tiles(archive):
    tiles = {TILE, "32612_1_-1"}
    with (archive / "sentinel1.csv").open("a") as file:
        file.write("32612_1_-1,S1A_IW_GRDH_1SDV_20200105T01_x\n")
    table = read_date_table(archive / "sentinel1.csv", "s1", tiles)
    assert [str(day) for day in table.days(TILE)] == ["2019-12-30", "2020-01-05"]
    assert len(table.days("32612_1_-1")) == 1 and table.days("32612_2_-1") == table.days("99999_1_1") == []


def test_as_many_dates_as_images(archive):
    with (archive / "sentinel2.csv").open("a") as file:
        file.write(f"{TILE},{SCENES['sentinel2'][0]}\n")
    with pytest.raises(ValueError, match=rf"sentinel2\.csv has 3 dates of tile {TILE}; expected 2, as in .*_8\.tif"):
        read_tile(archive)


def test_tables_that_are_missing_or_of_other_tiles(archive):
    (archive / "landsat.csv").write_text("tile,scene\n32612_961_-6049,20190101\n")
    with pytest.raises(ValueError, match=rf"landsat\.csv names none of the 1 tiles, e\.g\. {TILE}; expected"):
        S2NaipReader(archive)
    (archive / "landsat.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*landsat\.csv; expected the published table of the scenes"):
        S2NaipReader(archive)


def test_impossible_dates(archive):
    (archive / "sentinel2.csv").write_text(f"tile,scene\n{TILE},S2A_MSIL1C_20201345T1\n")
    with pytest.raises(ValueError, match=r"sentinel2\.csv, line 2: '20201345' is not a day"):
        S2NaipReader(archive)


# Splits


def copies(archive, names):
    for name in names:
        write_naip(archive, naip_image(), name)


def test_without_lists_a_block_of_tiles_is_in_one_split(archive):
    names = [f"32612_{column}_-6049" for column in range(400)]
    splits = {name: split_of(name) for name in names}
    share = sum(split == "val" for split in splits.values()) / len(names)
    assert 0 < share < 0.3 and all(len({splits[n] for n in names[i : i + 16]}) == 1 for i in range(0, 400, 16))
    assert splits["32612_0_-6049"] == split_of("32612_0_-6049")


def test_published_lists(archive):
    other = "32612_961_-6049"
    copies(archive, [other, "32612_962_-6049"])
    (archive / "train.csv").write_text(f"name,more\n{other},1\n32612_5_-6049,1\n")
    (archive / "val.csv").write_text(f"name\n{TILE}\n")
    reader = S2NaipReader(archive)
    assert (reader.keys("train"), reader.keys("val")) == ((other,), (TILE,))
    assert "2 tiles" in reader.summary and "of 3 listed; 3 have an image" in reader.summary


def split_dict(**changes):
    days = {"s2_dates": [list(S2_DAYS)], "s1_dates": [list(S1_DAYS)], "l8_dates": [[int(day) for day in L8_DAYS]]}
    return {"name": [TILE], **days} | changes


def test_lists_with_dates_as_the_published_reader_has_them(archive):
    for table in archive.glob("*.csv"):
        table.unlink()
    (archive / "val_dict.json").write_text(json.dumps(split_dict()))
    assert S2NaipReader(archive).splits() == ("val",)
    example = read_tile(archive)
    assert example["l8_dates"].tolist() == [0, 62, 365] and example["s1_dates"].tolist() == [363, 4]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "is not as expected; expected a dictionary of lists"),
        ({"name": [TILE]}, "is not as expected"),
        (split_dict(s2_dates=[]), r"has \[1, 0, 1, 1\] entries"),
        (split_dict(name=["../../etc/passwd"]), r"'\.\./\.\./etc/passwd' is not a tile"),
        (split_dict(s1_dates=[["yesterday"]]), f"tile {TILE}: 'yesterday' is not a day"),
        (split_dict(s1_dates=[20200101]), "is not as expected"),
        (split_dict(s1_dates=20200101), "is not as expected"),
    ],
)
def test_spoiled_lists(archive, table, message):
    (archive / "train_dict.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=rf"train_dict\.json.*({message})"):
        S2NaipReader(archive)


def test_lists_that_lead_out(archive):
    (archive / "train.csv").write_text("name\n../../etc/passwd\n")
    with pytest.raises(ValueError, match=r"train\.csv: '\.\./\.\./etc/passwd' is not a tile; expected a name like"):
        S2NaipReader(archive)


# Files


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("name", ["naip/T.png", "sentinel2/T_8.tif", "landsat/T_16.tif", "sentinel1/T.tif"])
def test_unreadable_files(archive, name, how):
    path = archive / name.replace("T", TILE)
    cut(path) if how == "cut" else path.write_bytes({"empty": b"", "text": b"<html>not found</html>"}[how])
    with pytest.raises(ValueError, match=rf"{path} cannot be read .* expected .*; download"):
        read_tile(archive)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("sentinel2/T_8.tif", np.zeros((7, 64, 64), np.uint16), "has 7 bands, not a multiple of 4"),
        ("sentinel2/T_8.tif", np.zeros((8, 32, 64), np.uint16), r"is uint16 \(8, 32, 64\); expected a GeoTIFF"),
        ("sentinel2/T_8.tif", np.zeros((8, 64, 64), np.float32), r"is float32 \(8, 64, 64\); expected a GeoTIFF"),
        ("sentinel2/T_8.tif", np.full((8, 64, 64), -3, np.int16), "runs from -3 to -3; expected"),
        ("sentinel2/T_16.tif", np.ones((18, 32, 32), np.uint16), r"has 3 dates, .*_8\.tif 2; download both again"),
        ("landsat/T_16.tif", np.zeros((11, 32, 32), np.uint16), "has 11 bands, not a multiple of 10"),
        ("sentinel1/T.tif", np.zeros((3, 64, 64), np.float32), "has 3 bands, not a multiple of 2"),
        ("sentinel1/T.tif", np.ones((6, 64, 64), np.float32), r"sentinel1\.csv has 2 dates .* expected 3"),
    ],
)
def test_misshapen_files(archive, name, array, message):
    write_raster(archive / name.replace("T", TILE), array)
    with pytest.raises(ValueError, match=message):
        read_tile(archive)


@pytest.mark.parametrize("shape", [(3, 512, 512), (4, 256, 512)])
def test_misshapen_images(archive, shape):
    write_naip(archive, np.ones(shape, np.uint8))
    with pytest.raises(ValueError, match=r"\.png is uint8 .*; expected a PNG of 4 bands R, G, B, NIR, 512 x 512"):
        read_tile(archive)


def test_an_image_that_went_away(archive):
    reader = S2NaipReader(archive)
    (archive / "naip" / f"{TILE}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"no .*{TILE}\.png; expected a PNG of 4 bands"):
        examples_of(reader, reader.splits()[0])


def test_half_of_a_series(archive):
    (archive / "sentinel2" / f"{TILE}_16.tif").unlink()
    with pytest.raises(BadTileError, match=rf"no .*{TILE}_16\.tif; expected a GeoTIFF of the bands B5, B6"):
        read_tile(archive)


def pack(root):
    """As downloaded: tar archives for each kind of data and UTM zone."""
    for kind in ("naip", "sentinel2", "sentinel1", "landsat"):
        (root / f"{kind}_32612").mkdir()
        with tarfile.open(root / f"{kind}_32612" / "32612_30_-190.tar", "w") as packed:
            packed.add(root / kind, kind)
        shutil.rmtree(root / kind)


def test_archives_are_read_without_unpacking(archive):
    expected = read_tile(archive)
    pack(archive)
    assert holds_raw(archive)
    example = read_tile(archive)
    assert set(example) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(example[key], value)


def test_damaged_and_missing_archives(archive):
    pack(archive)
    (archive / "sentinel1_32612" / "32612_30_-190.tar").unlink()
    assert "s1" not in read_tile(archive)
    cut(archive / "sentinel2_32612" / "32612_30_-190.tar")
    with pytest.raises(ValueError, match=r"sentinel2_32612/32612_30_-190\.tar (is cut off|cannot be read)"):
        read_tile(archive)


def test_nothing_there(tmp_path):
    assert not holds_raw(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no tile of 's2naip'; see https"):
        S2NaipReader(tmp_path)

"""Patterns find the files of a folder, and nothing outside it."""

import datetime
import os

import pytest

from data_pipelines.own_tiles.pattern import FilePattern


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root, pattern):
    return FilePattern(pattern, "tiles.toml: sensors.s2.files").find(root)


def test_days_come_in_time_order_and_may_be_written_in_two_ways(tmp_path):
    put(tmp_path, "s2/a_b_20210301.tif", "s2/a_b_2020-12-31.tif", "s2/c_20210101.tif", "s2/readme.txt")
    days = {tile: [str(day) for day, _ in files] for tile, files in found(tmp_path, "s2/{tile}_{date}.tif").items()}
    assert days == {"a_b": ["2020-12-31", "2021-03-01"], "c": ["2021-01-01"]}


def test_a_tile_may_be_a_folder_and_a_star_stands_for_anything(tmp_path):
    put(tmp_path, "data/t1/S2A_MSIL2A_20200102T102421_N0213.tif", "data/t2/S2B_MSIL2A_20200107T102421_N0214.tif")
    files = found(tmp_path, "data/{tile}/S2*_{date}T*.tif")
    assert files["t2"] == [(datetime.date(2020, 1, 7), "data/t2/S2B_MSIL2A_20200107T102421_N0214.tif")]


def test_a_name_that_comes_twice_must_be_the_same(tmp_path):
    put(tmp_path, "a/a_aerial.tif", "a/b_aerial.tif", "b/b_aerial.tif")
    assert found(tmp_path, "{tile}/{tile}_aerial.tif") == {
        "a": [(None, "a/a_aerial.tif")],
        "b": [(None, "b/b_aerial.tif")],
    }


def test_hidden_files_and_folders_are_no_tiles(tmp_path):
    put(tmp_path, "s2/a_20200101.tif", "s2/._a_20200101.tif")
    (tmp_path / "s2" / "b_20200101.tif").mkdir()
    assert list(found(tmp_path, "s2/{tile}_{date}.tif")) == ["a"]


def test_a_date_that_is_none(tmp_path):
    put(tmp_path, "s2/a_20201345.tif")
    with pytest.raises(ValueError, match=r"s2/a_20201345\.tif .*'20201345' is not a day; expected yyyymmdd"):
        found(tmp_path, "s2/{tile}_{date}.tif")


def test_a_name_without_a_date_is_not_passed_over(tmp_path):
    put(tmp_path, "s2/a_20200101.tif", "s2/a_clouds.tif")
    with pytest.raises(ValueError, match=r"s2/a_clouds\.tif .*'clouds' is not a day"):
        found(tmp_path, "s2/{tile}_{date}.tif")


def test_two_files_of_one_day(tmp_path):
    put(tmp_path, "s2/a_20200101.tif", "s2/a_2020-01-01.tif")
    with pytest.raises(ValueError, match=r"a_20200101\.tif fit tiles\.toml: .* for one tile on 2020-01-01; expected"):
        found(tmp_path, "s2/{tile}_{date}.tif")


def test_two_files_without_a_date(tmp_path):
    put(tmp_path, "s2/a_1.npy", "s2/a_2.npy")
    with pytest.raises(ValueError, match=r"a_1\.npy and s2/a_2\.npy fit .* no \{date\}; expected one"):
        found(tmp_path, "s2/{tile}_*.npy")


def test_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no file 's2/\{tile\}\.tif', which tiles\.toml: sensors"):
        found(tmp_path, "s2/{tile}.tif")


def test_names_with_control_characters(tmp_path):
    put(tmp_path, "s2/a\x1b[31m.tif")
    with pytest.raises(ValueError, match=r"s2/: 'a.x1b\[31m\.tif' is .* control characters; rename it"):
        found(tmp_path, "s2/{tile}.tif")


def test_names_that_are_no_text(tmp_path):
    put(tmp_path, "s2/a.tif")
    try:
        os.rename(tmp_path / "s2" / "a.tif", os.fsencode(tmp_path / "s2") + b"/\xff.tif")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(ValueError, match=r"s2/: '.udcff\.tif' is not UTF-8 or has .*; rename it"):
        found(tmp_path, "s2/{tile}.tif")


def test_links_may_not_lead_out(tmp_path):
    put(tmp_path, "elsewhere/s2/a.tif", "root/s2/b.tif")
    (tmp_path / "root" / "s2" / "a.tif").symlink_to(tmp_path / "elsewhere" / "s2" / "a.tif")
    with pytest.raises(ValueError, match="'s2/a.tif' leads out of"):
        found(tmp_path / "root", "s2/{tile}.tif")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="'linked' leads out of"):
        found(tmp_path / "root", "linked/s2/{tile}.tif")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("../s2/{tile}.tif", r"expected a path below the folder, without '\.\.'"),
        ("/data/{tile}.tif", "expected a path below the folder"),
        ("s2\\{tile}.tif", "expected a path below the folder"),
        ("s2/all.tif", r"write \{tile\} in place of the tile's name"),
        ("s2/{tile}_{day}.tif", r"has \{day\}; there are \{tile\}, \{date\}, \{band\} and \*"),
        ("s2/{tile}.png", r"must end with one of \.tif, \.tiff, \.jp2, \.npy, \.npz"),
    ],
)
def test_patterns_that_cannot_be(pattern, message):
    with pytest.raises(ValueError, match=message):
        FilePattern(pattern, "tiles.toml: sensors.s2.files")

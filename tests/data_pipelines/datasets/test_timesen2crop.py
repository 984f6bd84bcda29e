"""TimeSen2Crop: an archive written here in the published layout."""

import pickle
import shutil

import numpy as np
import pytest

from anysat_jax.sensors import get_sensor
from data_pipelines import load
from data_pipelines.datasets import timesen2crop
from data_pipelines.datasets.timesen2crop import CARD, CROPS, LAYOUT, TILES, TimeSen2CropReader, holds_raw
from data_pipelines.fakes.timesen2crop import HEADER, write_archive
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.prepared import PreparedDataset
from tests.data_pipelines.fake_reader import data_config

DAYS = ("20170904", "20171231", "20180101", "20180831")
NAMES = ("B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B11", "B12")
KEY = "33UXP/2/7"


def write_days(root, tile="33UXP", days=DAYS):
    (root / tile).mkdir(parents=True, exist_ok=True)
    (root / tile / "dates.csv").write_text("\n".join(("acquisition_date", *days)) + "\n")


def write_pixel(root, rows, key=KEY, header=HEADER):
    path = root / f"{key}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n")


def known_rows():
    """Band number k of date t is 100 (t + 1) + k + 1; every date has another flag."""
    return [[*(100 * (t + 1) + k + 1 for k in range(9)), t] for t in range(4)]


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "raw"
    write_days(root)
    write_pixel(root, known_rows())
    return root


def example_of(archive):
    return TimeSen2CropReader(archive).example("train", KEY)


def by_band(array):
    return dict(zip(get_sensor("s2").bands, array[..., 0, 0].T.tolist()))


def test_bands_come_to_their_places_and_the_flag_to_none(archive):
    example = example_of(archive)
    values, valid = by_band(example["s2"]), by_band(example["s2_mask"])
    for number, name in enumerate(NAMES, start=1):
        assert values[name] == [100 + number, 200 + number, 300 + number, 400 + number] and valid[name] == [True] * 4
    assert values["B8"] == [0] * 4 and valid["B8"] == [False] * 4
    assert example["s2"].shape == (4, 10, 1, 1) and example["id"] == KEY
    check_example(CARD, KEY, example)


def test_columns_may_have_the_names_of_the_bands(archive):
    """The published files say B1 to B9; a file that names its bands is read by name."""
    before = example_of(archive)
    order = [9, 3, 0, 1, 2, 8, 7, 6, 5, 4]
    names = (*NAMES, "Flag")
    write_pixel(archive, [[row[i] for i in order] for row in known_rows()], header=[names[i] for i in order])
    after = example_of(archive)
    for key in ("s2", "s2_mask", "s2_cloud"):
        np.testing.assert_array_equal(after[key], before[key])


def test_flags_become_percent(archive):
    cloud = example_of(archive)["s2_cloud"]
    assert cloud.dtype == np.uint8 and cloud.shape == (4, 1, 1, 1) and cloud.ravel().tolist() == [0, 100, 100, 100]


def test_days_of_the_year_start_at_zero_and_keep_their_year(archive):
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [246, 364, 0, 242]
    assert example["s2_years"].tolist() == [2017, 2017, 2018, 2018]


def test_series_are_put_in_time_order(archive):
    before = example_of(archive)
    write_days(archive, days=DAYS[::-1])
    write_pixel(archive, known_rows()[::-1])
    after = example_of(archive)
    for key in ("s2", "s2_cloud", "s2_dates", "s2_years"):
        np.testing.assert_array_equal(after[key], before[key])


def test_empty_cells_are_masked_and_empty_dates_left_out(archive):
    rows = known_rows()
    rows[0][6] = ""
    rows[1][:9] = [0] * 9
    rows[2][:9] = [""] * 9
    rows[3][0] = 0  # one dark band is a measurement
    write_pixel(archive, rows)
    example = example_of(archive)
    assert example["s2_dates"].tolist() == [246, 242]
    assert by_band(example["s2_mask"])["B8A"] == [False, True] and by_band(example["s2_mask"])["B2"] == [True, True]
    assert by_band(example["s2"])["B8A"] == [0, 407]
    check_example(CARD, KEY, example)


def test_the_class_is_the_folder(archive):
    assert example_of(archive)["tile"] == 2 and example_of(archive)["tile"].dtype == np.int32
    assert CROPS[2] == "Maize" and len(CROPS) == 16


def test_splits_go_by_tile_and_that_of_2019_belongs_to_none(archive):
    for tile in ("33TWN", "33UVP", "2019_33UVP", "33TVN"):
        write_days(archive, tile)
        write_pixel(archive, known_rows(), f"{tile}/15/0")
    reader = TimeSen2CropReader(archive)
    assert reader.keys("train") == ("33TVN/15/0", KEY)
    assert (reader.keys("val"), reader.keys("test")) == (("33TWN/15/0",), ("33UVP/15/0",))
    assert "4 of 15 Sentinel-2 tiles" in reader.summary
    assert len({tile for tiles in TILES.values() for tile in tiles}) == 15


def test_pixels_are_ordered_by_class_and_number_and_listed_without_opening(archive, monkeypatch):
    for key in ("33UXP/2/10", "33UXP/10/3", "33UXP/2/._7"):
        write_pixel(archive, known_rows(), key)
    monkeypatch.setattr(timesen2crop, "read_lines", None)
    assert TimeSen2CropReader(archive).keys("train") == (KEY, "33UXP/2/10", "33UXP/10/3")


def test_the_fake_archive_keeps_the_promise_of_the_card(tmp_path):
    check_card(CARD)
    write_archive(tmp_path, {"train": 20, "val": 3, "test": 2})
    reader = TimeSen2CropReader(tmp_path)
    assert [len(reader.keys(split)) for split in CARD.splits] == [20, 3, 2]
    for split in reader.splits():
        for key in reader.keys(split):
            check_example(CARD, key, reader.example(split, key))


def test_the_fake_archive_follows_its_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_archive(tmp_path / name, {"train": 1}, seed)
    a, b, c = (TimeSen2CropReader(tmp_path / name).example("train", "32TNT/0/0")["s2"] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert a.shape != c.shape or (a != c).any()


def test_prepared_and_batched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_archive(tmp_path / "raw", {"train": 6, "val": 1})
    reader = TimeSen2CropReader(tmp_path / "raw")
    folder = prepare_dataset(reader, tmp_path / "out", "1.0.0")
    record = PreparedDataset.open(CARD, folder).records("train")[2]
    np.testing.assert_array_equal(record["s2"], reader.example("train", reader.keys("train")[2])["s2"])
    config = data_config(tmp_path / "raw")
    config.datasets = {CARD.name: dict(batch_size=4, weight=1.0, patch_sizes=(10,), max_dates=8)}
    batch = next(load.open_datasets(config)[CARD.name].evaluation_batches("train", patch_size=10, batch_size=4))
    assert batch.grid == (1, 1) and batch.observations["s2"].values.shape == (4, 8, 10, 1, 1)


def rows_with(row, column, value):
    rows = known_rows()
    rows[row][column] = value
    return rows


SPOILED = {
    "rows": (lambda a: write_pixel(a, known_rows()[:3]), r"7\.csv has 3 rows; expected 4, one for each date"),
    "no rows": (lambda a: write_pixel(a, []), r"7\.csv has 0 rows; expected 4"),
    "columns": (lambda a: write_pixel(a, known_rows(), header=HEADER[:9]), r"7\.csv has the columns .*expected a tab"),
    "no flag": (lambda a: write_pixel(a, known_rows(), header=(*HEADER[:9], "B10")), "has the columns .*'B10'"),
    "word": (lambda a: write_pixel(a, rows_with(1, 3, "x")), r"7\.csv, line 3: '201,.*is not a row of 10 numbers"),
    "short": (lambda a: write_pixel(a, [*known_rows()[:3], [1, 2]]), r"7\.csv, line 5: '1,2' is not a row of 10"),
    "flag": (
        lambda a: write_pixel(a, rows_with(0, 9, 4)),
        r"7\.csv: Flag holds \[1\.0, 2\.0, 3\.0, 4\.0\]; expected 0",
    ),
    "nothing": (lambda a: write_pixel(a, [[0] * 10] * 4), r"7\.csv: all bands are zero or empty on every date"),
    "day": (lambda a: write_days(a, days=("20171345", *DAYS[1:])), r"dates\.csv: '20171345' is not a day"),
    "no days": (lambda a: write_days(a, days=()), r"dates\.csv has no dates; expected one a line"),
    "no column": (lambda a: (a / "33UXP/dates.csv").write_text("x\n1\n"), r"dates\.csv has columns \['x'\] and lacks"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_files(archive, case):
    change, message = SPOILED[case]
    change(archive)
    with pytest.raises(ValueError, match=message):
        example_of(archive)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", r"7\.csv cannot be read .*; download or copy it again"),
        (b"", r"7\.csv has the columns \[''\]; expected"),
        (b"<html>not found</html>", r"7\.csv has the columns \['<html>not found</html>'\]; expected"),
    ],
)
def test_unreadable_files(archive, content, message):
    (archive / f"{KEY}.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        example_of(archive)


def test_a_file_cut_within_a_row(archive):
    path = archive / f"{KEY}.csv"
    path.write_bytes(path.read_bytes()[:-25])
    with pytest.raises(ValueError, match=r"7\.csv, line 5: .* is not a row of 10 numbers"):
        example_of(archive)


def test_missing_files(archive):
    reader = TimeSen2CropReader(archive)
    (archive / f"{KEY}.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*7\.csv; expected a table"):
        reader.example("train", KEY)
    (archive / "33UXP" / "dates.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*dates\.csv; expected TimeSen2Crop as published"):
        TimeSen2CropReader(archive)


def test_tiles_may_lie_on_another_disk(archive, tmp_path):
    before = example_of(archive)["s2"]
    (archive / "33UXP").rename(tmp_path / "33UXP")
    (archive / "33UXP").symlink_to(tmp_path / "33UXP")
    np.testing.assert_array_equal(example_of(archive)["s2"], before)


def test_links_that_lead_out_are_refused(archive, tmp_path):
    (archive / f"{KEY}.csv").rename(tmp_path / "secret.csv")
    (archive / f"{KEY}.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(ValueError, match="leads out of"):
        example_of(archive)


def test_nothing_on_disk(archive, tmp_path):
    assert holds_raw(archive) and not holds_raw(tmp_path) and "dates.csv" in LAYOUT
    shutil.rmtree(archive / "33UXP" / "2")
    with pytest.raises(FileNotFoundError, match=r"holds no tile of 'timesen2crop'; see https://zenodo\.org"):
        TimeSen2CropReader(archive)


def test_readers_go_to_worker_processes(archive):
    assert pickle.loads(pickle.dumps(TimeSen2CropReader(archive))).example("train", KEY)["id"] == KEY

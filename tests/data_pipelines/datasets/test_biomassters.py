"""BioMassters: an archive made up in the published layout, with known values put into single files."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import load
from data_pipelines.datasets.biomassters import CARD, SIDE, VERSION, BioMasstersReader, holds_raw, month_day
from data_pipelines.fakes.biomassters import S1_MONTHS, S2_MONTHS, write_archive
from data_pipelines.fakes.common import write_raster
from data_pipelines.prepare.plan import plan_facts
from data_pipelines.prepare.prepare import prepare_dataset
from data_pipelines.prepare.records import check_card, check_example
from data_pipelines.reader import num_tiles
from tests.data_pipelines.fake_reader import examples_of

CHIP = "00000000"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("biomassters")
    write_archive(root, {"train": 4, "val": 1, "test": 1})
    return root


@pytest.fixture
def one_chip(tmp_path):
    write_archive(tmp_path, {"train": 1})
    return tmp_path


def flat(*values, dtype="float32"):
    return np.stack([np.full((SIDE, SIDE), value, dtype) for value in values])


def put(root, name, array):
    write_raster(root / name, array)


def radar(root, month, array):
    put(root, f"train_features/{CHIP}_S1_{month:02d}.tif", array)


def optical(root, month, array):
    put(root, f"train_features/{CHIP}_S2_{month:02d}.tif", array)


def example_of(root):
    example = BioMasstersReader(root).example("train", CHIP)
    check_example(CARD, CHIP, example)
    return example


def test_the_card():
    check_card(CARD)
    assert CARD.side("dense") == CARD.side("s2") == SIDE


def test_all_made_up_tiles_keep_the_cards_promise(archive):
    reader = BioMasstersReader(archive)
    for split in CARD.splits:
        for example in examples_of(reader, split):
            check_example(CARD, example["id"], example)
    assert [len(reader.keys(split)) for split in CARD.splits] == [4, 1, 1]


def test_months_run_from_september_to_august():
    days = [month_day(month) for month in range(12)]
    assert (days[0].month, days[3].month, days[4].month, days[11].month) == (9, 12, 1, 8)
    assert days == sorted(days) and days[4].year == days[3].year + 1


def test_dates_of_a_chip_are_in_time_order_over_the_new_year(one_chip):
    example = example_of(one_chip)
    assert example["s1_dates"].tolist() == [257, 257, 14, 14, 134, 134, 226, 226]  # months 0, 4, 8 and 11
    assert example["s1_years"].tolist() == [2018] * 2 + [2019] * 6
    assert example["s2_dates"].tolist() == [287, 134, 165]  # months 1, 8 and 9


def test_both_orbits_of_a_month_come_with_their_ratio_in_decibels(one_chip):
    radar(one_chip, 0, flat(-10, -17, -11, -19))
    example = example_of(one_chip)
    assert example["s1"][0, :, 5, 5].tolist() == [-10, -17, 7] and example["s1"][1, :, 5, 5].tolist() == [-11, -19, 8]


def test_what_radar_did_not_see_is_masked(one_chip):
    image = flat(-10, -17, -11, -19)
    image[0, 3, 4], image[3, 6, 7] = -9999, np.nan
    radar(one_chip, 0, image)
    example = example_of(one_chip)
    assert np.argwhere(~example["s1_mask"][:2]).tolist() == [[0, 0, 3, 4], [1, 0, 6, 7]]
    assert example["s1"][0, :, 3, 4].tolist() == [0, 0, 0]


def test_an_orbit_that_saw_nothing_is_left_out(one_chip):
    radar(one_chip, 0, flat(-9999, -9999, -11, -19))
    example = example_of(one_chip)
    assert len(example["s1"]) == 7 and example["s1"][0, :, 0, 0].tolist() == [-11, -19, 8]


def test_bands_and_clouds_of_sentinel_2(one_chip):
    image = flat(*range(1, 12), dtype="uint16")
    image[10, 0, 0], image[10, 0, 1] = 100, 255
    image[:10, 2, 2] = 0
    image[4, 3, 3] = 0  # a single band that saw nothing
    optical(one_chip, 1, image)
    example = example_of(one_chip)
    assert example["s2"][0, :, 9, 9].tolist() == list(range(1, 11))
    assert example["s2_cloud"][0, 0, 0, :3].tolist() == [100, 0, 11]
    assert np.argwhere(~example["s2_mask"][0]).tolist() == [[0, 2, 2], [0, 3, 3]]


def test_a_month_of_zeros_is_left_out(one_chip):
    dates = example_of(one_chip)["s2_dates"].tolist()
    optical(one_chip, 1, flat(*[0] * 10, 255, dtype="uint16"))
    assert example_of(one_chip)["s2_dates"].tolist() == dates[1:]


def test_the_table_and_the_parts_of_split_zips_are_passed_over(one_chip):
    """As re-hosted: the table under another name, and what the images were unpacked from."""
    (one_chip / "The_BioMassters_-_features_metadata.csv.csv").write_text("filename,chip_id\n")
    for name in ("train_features.zip", "train_features.z01", "test_features_splits.zip", "train_agbm.zip"):
        (one_chip / name).touch()
    assert BioMasstersReader(one_chip).keys("train") == (CHIP,)
    assert example_of(one_chip)["id"] == CHIP


def test_missing_months_are_skipped(one_chip):
    for month in S2_MONTHS:
        (one_chip / f"train_features/{CHIP}_S2_{month:02d}.tif").unlink()
    (one_chip / f"train_features/{CHIP}_S1_{S1_MONTHS[1]:02d}.tif").unlink()
    example = example_of(one_chip)
    assert "s2" not in example and "s2_cloud" not in example and len(example["s1"]) == 6


def test_unknown_biomass_is_nan(one_chip):
    label = flat(63.5)
    label[0, 0, :3] = (np.nan, -9999, np.inf)
    put(one_chip, f"train_agbm/{CHIP}_agbm.tif", label)
    dense = example_of(one_chip)["dense"]
    assert np.isnan(dense[0, :3]).all() and dense[0, 3] == 63.5 and np.isnan(dense).sum() == 3


def test_val_is_drawn_from_train_by_name(archive):
    reader = BioMasstersReader(archive)
    assert all((archive / "train_agbm" / f"{chip}_agbm.tif").is_file() for chip in reader.keys("val"))
    assert not set(reader.keys("train")) & set(reader.keys("val"))


def test_lists_decide_where_there_are_any(archive, tmp_path):
    write_archive(tmp_path, {"train": 3, "test": 1})
    train, test = BioMasstersReader(tmp_path).tiles["train"], BioMasstersReader(tmp_path).tiles["test"]
    lists = {"train": train[:1], "val": [*train[1:2], "elsewhere"], "test": test}
    for split, chips in lists.items():
        (tmp_path / f"{split}_Data_list.csv").write_text("\n".join(["chip_id", *chips]))
    assert BioMasstersReader(tmp_path).tiles == {"train": train[:1], "val": train[1:2], "test": test}
    (tmp_path / "val_Data_list.csv").write_text("id\nx\n")
    with pytest.raises(ValueError, match=r"val_Data_list\.csv has columns \['id'\] and lacks \['chip_id'\]"):
        BioMasstersReader(tmp_path)
    (tmp_path / "val_Data_list.csv").write_text(f"chip_id\n{train[0]}\n../../etc/passwd\n")
    with pytest.raises(ValueError, match=f"tile {train[0]!r} comes in 'train' and 'val'"):
        plan_facts(BioMasstersReader(tmp_path), "1.0.0", None, None)


def test_test_chips_without_labels_are_left_out(tmp_path):
    write_archive(tmp_path, {"train": 1, "test": 2})
    for path in (tmp_path / "test_agbm").iterdir():
        path.unlink()
    reader = BioMasstersReader(tmp_path)
    assert reader.splits() == ("train",) and reader.summary.endswith("2 chips lack their images or their label")


def test_the_fingerprint_follows_the_chips(one_chip):
    before = BioMasstersReader(one_chip).fingerprint
    write_archive(one_chip, {"train": 2})
    assert BioMasstersReader(one_chip).fingerprint != before


def test_prepared_and_batched(archive, tmp_path):
    prepare_dataset(BioMasstersReader(archive), tmp_path, VERSION)
    assert (tmp_path / "biomassters" / VERSION).is_dir()
    section = dict(batch_size=2, weight=1.0, patch_sizes=(160,), max_dates=3)
    config = ConfigDict(dict(root=str(tmp_path), datasets={"biomassters": section}))
    batch = next(load.train_iterator(load.open_datasets(config), seed=0))
    assert batch.labels["dense"].shape == (2, SIDE, SIDE) and batch.observations["s1"].values.shape[1:3] == (3, 3)


def test_nothing_there(tmp_path):
    assert not holds_raw(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no tile of 'biomassters'; see https://huggingface"):
        BioMasstersReader(tmp_path)


def test_other_files_in_the_folders_do_not_matter(one_chip):
    (one_chip / "train_features" / f"{CHIP}_S1_12.tif").touch()
    (one_chip / "train_features" / "readme.txt").touch()
    assert num_tiles(BioMasstersReader(one_chip)) == 1


DAMAGE = {
    "radar bands": (lambda r: radar(r, 0, flat(-1, -2)), r"S1_00\.tif is float32 \(2, 256, 256\); expected .* dB"),
    "radar size": (lambda r: radar(r, 0, flat(1, 1, 1, 1)[:, :9]), r"S1_00\.tif is float32 \(4, 9, 256\)"),
    "radar dtype": (lambda r: radar(r, 0, flat(1, 1, 1, 1, dtype="int16")), r"S1_00\.tif is int16"),
    "power": (lambda r: radar(r, 0, flat(0.1, 0.02, 0.1, 0.02)), r"S1_00\.tif has no value below 0; expected decibels"),
    "bands": (lambda r: optical(r, 1, flat(*range(10))), r"S2_01\.tif is float32 \(10, 256, 256\); expected .* ten"),
    "negative": (lambda r: optical(r, 1, flat(-4, *range(10))), r"S2_01\.tif runs from -4 to 8; expected digital"),
    "NaN": (lambda r: optical(r, 1, flat(np.nan, *range(10))), r"S2_01\.tif runs from nan to nan"),
    "cloud": (lambda r: optical(r, 1, flat(*[9] * 10, 101)), r"S2_01\.tif: the last band runs from 101 to 101; expect"),
    "label": (lambda r: put(r, f"train_agbm/{CHIP}_agbm.tif", flat(1, 2)), r"agbm\.tif is float32 \(2, 256, 256\)"),
    "cut": (lambda r: (r / f"train_agbm/{CHIP}_agbm.tif").write_bytes(b"II*"), r"agbm\.tif cannot be read .*again"),
    "gone": (lambda r: (r / f"train_features/{CHIP}_S1_00.tif").unlink(), r"no .*S1_00\.tif; expected a GeoTIFF"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_name_themselves(one_chip, case):
    spoil, message = DAMAGE[case]
    reader = BioMasstersReader(one_chip)
    spoil(one_chip)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        reader.example("train", CHIP)


def test_a_chip_without_a_valid_pixel(one_chip):
    for month in S1_MONTHS:
        radar(one_chip, month, flat(*[-9999] * 4))
    for month in S2_MONTHS:
        optical(one_chip, month, flat(*[0] * 11))
    with pytest.raises(ValueError, match=f"train_features: no image of chip {CHIP} has a valid pixel"):
        example_of(one_chip)

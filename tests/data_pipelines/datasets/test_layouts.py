"""Archives in the layout that their address hands out, and in that of the authors' disk: the same examples."""

import pathlib
import shutil

import h5py
import numpy as np
import pytest

from data_pipelines import load
from data_pipelines.datasets import hls_burn_scars, sen1floods11, treesatai_ts
from data_pipelines.fakes import write_fake
from data_pipelines.prepare.plan import plan_facts
from data_pipelines.registry import get_entry
from tests.data_pipelines.fake_reader import data_config

MODULES = {"treesatai_ts": treesatai_ts, "hls_burn_scars": hls_burn_scars, "sen1floods11": sen1floods11}
FOREST = "TreeSatBA_v9_60m_multi_labels.json"
FIRE = "subsetted_512x512_HLS.S30.T10TAA.2018100.v1.4"
FILES = {
    "treesatai_ts": {FOREST, *(f"split/{split}_filenames.lst" for split in ("train", "val", "test"))},
    "hls_burn_scars": {
        *(f"data/{FIRE}{end}" for end in ("_merged.tif", ".mask.tif")),
        *(f"splits/{split}.txt" for split in ("train", "val", "test")),
    },
    "sen1floods11": {
        *("Sen1Floods11_Metadata.geojson", "data/S1GRDHand/Ghana_0_S1Hand.tif", "data/S2L1CHand/Ghana_0_S2Hand.tif"),
        *(f"splits/flood_{name}_data.txt" for name in ("train", "valid", "test", "bolivia")),
        "data/LabelHand/Ghana_0_LabelHand.tif",
    },
}
"""Some files of each download, as its public readers name them."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The three archives in both layouts: the folder by name and layout."""
    folders = {(n, one): tmp_path_factory.mktemp(f"{n}_{one}") for n in MODULES for one in ("original", "download")}
    for (name, layout), folder in folders.items():
        write_fake(name, folder, tiles=1, layout=layout)
    return folders


@pytest.fixture
def copied(written, tmp_path):
    """Copies an archive in its download's layout, to be changed."""
    return lambda name: pathlib.Path(shutil.copytree(written[name, "download"], tmp_path / "raw"))


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", MODULES)
def test_the_made_up_download_has_the_files_of_the_real_one(written, name):
    folder = written[name, "download"]
    top = folder / "sen1floods11_v1.1" if name == "sen1floods11" else folder
    assert FILES[name] <= files_below(top)
    assert not FILES[name] & files_below(written[name, "original"])


@pytest.mark.parametrize("name", MODULES)
def test_both_layouts_give_the_same_examples(written, name):
    """But for the pixels of Sentinel-1 that are NaN in TreeSatAI's download: they are masked."""
    assert set(MODULES[name].LAYOUTS) == {"original", "download"}
    old, new = (get_entry(name).reader(written[name, layout]) for layout in ("original", "download"))
    assert old.splits() == new.splits() == get_entry(name).card.splits
    for split in old.splits():
        assert old.keys(split) == new.keys(split) and len(new.keys(split)) == 1
        first, second = (reader.example(split, reader.keys(split)[0]) for reader in (old, new))
        assert first.keys() == second.keys()
        if name == "treesatai_ts":
            hidden = ~second["s1-asc_mask"]
            assert np.argwhere(hidden).tolist() == [[0, 0, 0, 0]] and first["s1-asc_mask"].all()
            first["s1-asc"] = np.where(hidden, 0, first["s1-asc"])
            first["s1-asc_mask"] = first["s1-asc_mask"] & ~hidden
        for field, value in first.items():
            np.testing.assert_array_equal(second[field], value, err_msg=field)


def test_the_download_is_opened_as_the_readme_s_command_opens_it(written, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = data_config(written["treesatai_ts", "download"])
    config.datasets = {"treesatai_ts": dict(batch_size=1, weight=1.0, patch_sizes=(10, 20, 30), max_dates=8)}
    batch = next(load.train_iterator(load.open_datasets(config), seed=0))
    assert set(batch.observations) == {"aerial", "s2", "s1-asc"}


FOREST_MOVES = {
    "lists at the top": [("split/train_filenames.lst", "train_filenames.lst")],
    "labels in their folder": [(FOREST, f"labels/{FOREST}")],
    "series in the other folder": [("sentinel-ts", "sentinel")],
}


@pytest.mark.parametrize("case", FOREST_MOVES)
def test_half_renamed_forests(copied, case):
    root = copied("treesatai_ts")
    for old, new in FOREST_MOVES[case]:
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)
    reader = get_entry("treesatai_ts").reader(root)
    assert [len(reader.keys(split)) for split in ("train", "val", "test")] == [1, 1, 1]
    assert reader.example("train", reader.keys("train")[0])["s2_mask"].any()


def test_the_year_of_a_series_is_not_part_of_the_tiles_name_and_one_is_expected(copied):
    root = copied("treesatai_ts")
    before = treesatai_ts.TreeSatReader(root)
    (tile,) = before.keys("train")
    series = root / "sentinel-ts" / f"{tile}_2020.h5"
    shutil.copy(series, series.with_name(f"{tile}_2019.h5"))
    with pytest.raises(ValueError, match=rf"sentinel-ts/{tile}_2019\.h5 and {tile}_2020\.h5 are of one tile; expected"):
        treesatai_ts.TreeSatReader(root)
    series.unlink()
    assert treesatai_ts.TreeSatReader(root).fingerprint != before.fingerprint
    # A name that ends like a year is a tile's own where the aerial image has it, too.
    (root / "aerial" / f"{tile}.tif").rename(root / "aerial" / f"{tile}_2019.tif")
    for path in (root / "split" / "train_filenames.lst", root / FOREST):
        path.write_text(path.read_text().replace(f"{tile}.tif", f"{tile}_2019.tif"))
    reader = treesatai_ts.TreeSatReader(root)
    assert reader.keys("train") == (f"{tile}_2019",) and reader.example("train", f"{tile}_2019")["id"]


def test_single_dates_beside_the_series_are_not_read(copied):
    root = copied("treesatai_ts")
    (tile,) = treesatai_ts.TreeSatReader(root).keys("train")
    (root / "sentinel").mkdir()
    (root / "sentinel" / f"{tile}.h5").write_text("a single date")
    assert treesatai_ts.TreeSatReader(root).example("train", tile)["s2"].shape[0] > 1


def test_a_damaged_series_of_the_download_names_its_file(copied):
    root = copied("treesatai_ts")
    reader = treesatai_ts.TreeSatReader(root)
    (tile,) = reader.keys("train")
    with h5py.File(root / "sentinel-ts" / f"{tile}_2020.h5", "a") as file:
        del file["sen-2-data"]
    with pytest.raises(ValueError, match=rf"sentinel-ts/{tile}_2020\.h5 has no \['sen-2-data'\]"):
        reader.example("train", tile)


def test_lists_of_fires_decide_and_what_they_do_not_name_is_counted(copied):
    root = copied("hls_burn_scars")
    (root / "splits" / "val.txt").write_text(f"{FIRE}_merged.tif\n")
    (root / "splits" / "train.txt").write_text("subsetted_512x512_HLS.S30.T10TZZ.2018100.v1.4\n")
    reader = get_entry("hls_burn_scars").reader(root)
    assert reader.keys("val") == (FIRE,) and not reader.keys("train")
    assert "2 of 3 listed scenes, 1 in no list left out" in reader.summary
    (root / "splits" / "train.txt").write_text(f"{FIRE}\n")
    with pytest.raises(ValueError, match=f"'{FIRE}' comes in 'train' and 'val'"):
        plan_facts(hls_burn_scars.BurnScarsReader(root), "1.0.0", None, None)


def test_fires_without_a_list_are_refused(copied):
    root = copied("hls_burn_scars")
    with pytest.raises(FileNotFoundError, match=rf"expected data/ with .*; {root} does: name that folder"):
        get_entry("hls_burn_scars").reader(root / "data")
    (root / "splits" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"splits/val\.txt; expected HLS Burn Scars as published: data/"):
        hls_burn_scars.BurnScarsReader(root)
    shutil.rmtree(root / "splits")
    assert not hls_burn_scars.holds_raw(root)


@pytest.mark.parametrize("line", ["Ghana_0,", "Ghana_0_S1Hand.tif,Ghana_0_LabelHand.tif", "Ghana", "../../secret_1"])
def test_lines_of_the_floods_lists_that_are_not_a_chip(copied, line):
    root = copied("sen1floods11")
    (root / "sen1floods11_v1.1" / "splits" / "flood_train_data.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"flood_train_data\.txt: .*, expected a line like Ghana_103272$"):
        sen1floods11.Sen1FloodsReader(root)


def test_the_floods_tar_is_read_from_its_own_folder_and_needs_its_metadata(copied):
    root = copied("sen1floods11") / "sen1floods11_v1.1"
    reader = get_entry("sen1floods11").reader(root)
    assert reader.splits() == sen1floods11.CARD.splits and "4 of 4 listed chips" in reader.summary
    assert not sen1floods11.is_sample(root)
    (root / "splits" / "flood_bolivia_data.txt").unlink()
    assert sen1floods11.Sen1FloodsReader(root).splits() == ("train", "val", "test")
    (root / sen1floods11.METADATA).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{sen1floods11.METADATA}; expected the floods' metadata.*github"):
        sen1floods11.Sen1FloodsReader(root)

"""Checksums of a folder: every flipped bit, missing byte and missing file is seen. The model of a checkpoint."""

import pathlib

import pytest

from anysat_jax.errors import ConfigError
from anysat_jax.weights.checkpoint_files import FILE, SEALED, check_same_model, find_damage, write_checksums
from tests.train.damage import cut_short, flip_bit


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    (tmp_path / "state" / "d").mkdir(parents=True)
    for name, content in {"state/d/values": bytes(range(256)) * 5000, "state/names": b"{}", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
    write_checksums(tmp_path)
    return tmp_path


def test_a_folder_as_it_was_written_is_whole(folder):
    assert find_damage(folder) is None
    (folder / "added").write_text("later")
    assert find_damage(folder) is None


@pytest.mark.parametrize("name", ["state/d/values", "state/names"])
@pytest.mark.parametrize("damage", [flip_bit, cut_short])
def test_a_damaged_file_is_named(folder, name, damage):
    damage(folder / name)
    assert find_damage(folder) == f"{name} is not what was written"


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999999])
def test_any_bit_counts(folder, place):
    flip_bit(folder / "state" / "d" / "values", place)
    assert find_damage(folder) == "state/d/values is not what was written"


def test_missing_files_are_named_and_counted(folder):
    (folder / "empty").unlink()
    assert find_damage(folder) == "empty is missing"
    (folder / "state" / "names").unlink()
    assert find_damage(folder) == "empty is missing (and 1 more)"


def test_two_damaged_files_are_counted(folder):
    flip_bit(folder / "state" / "d" / "values")
    (folder / "empty").write_bytes(b"!")
    assert find_damage(folder) == "empty is not what was written (and 1 more)"


@pytest.mark.parametrize("place", [i / 12 for i in range(12)])
def test_a_bit_of_the_checksums_themselves_counts(folder, place):
    flip_bit(folder / FILE, place)
    assert find_damage(folder) is not None


def test_checksums_cut_short_are_damage_and_none_at_all_are_not(folder):
    cut_short(folder / FILE)
    assert find_damage(folder).startswith(f"{FILE} cannot be read: ")
    (folder / FILE).unlink()
    assert find_damage(folder) == "its files are gone"
    (folder / "meta").mkdir()
    (folder / "meta" / "metadata").write_text("{}")
    assert find_damage(folder) is None  # a folder of an earlier version
    (folder / "meta" / "metadata").write_text(f'{{"{SEALED}": true}}')
    assert find_damage(folder) == "it is half deleted: its checksums are gone"
    cut_short(folder / "meta" / "metadata")
    assert find_damage(folder).startswith("meta cannot be read: ")


def test_writing_again_writes_the_same(folder):
    before = (folder / FILE).read_bytes()
    write_checksums(folder)
    assert (folder / FILE).read_bytes() == before


@pytest.mark.parametrize("dim", [96, None])  # None: of the preset
def test_a_run_from_before_norm_groups_goes_on_where_they_have_no_effect(folder, dim):
    section = {"preset": "tiny", "dim": dim}
    check_same_model({"model": section}, {"model": section | {"norm_groups": "width"}}, folder)


def test_a_narrow_run_from_before_norm_groups_goes_on_with_the_published_ones(folder):
    section = {"preset": "tiny", "dim": 64}
    check_same_model({"model": section}, {"model": section | {"norm_groups": "published"}}, folder)
    with pytest.raises(ConfigError, match=r"model\.norm_groups: 'published' there, 'width' now"):
        check_same_model({"model": section}, {"model": section | {"norm_groups": "width"}}, folder)

"""Frozen features on disk."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax.downstream import feature_cache
from anysat_jax.downstream.feature_cache import Writer, find_features, hold_entry, key_of, open_features
from anysat_jax.errors import ConfigError

FACTS = {"weights": "abc", "patch_size": 10.0, "split": "train"}
ROWS = {
    "features": np.arange(35, dtype=np.float32).reshape(5, 7),
    "labels": np.arange(5, dtype=np.int32),
    "index": np.arange(5, dtype=np.int32),
}


class Maker:
    """Writes ROWS in two parts, and counts how often it was asked."""

    def __init__(self, rows=ROWS):
        self.rows, self.calls = rows, 0

    def __call__(self, writer):
        self.calls += 1
        for part in (slice(0, 3), slice(3, 5)):
            writer.add(**{name: array[part] for name, array in self.rows.items()})


def find_or_make(folder, facts, make, rows=5):
    entry = entry_of(folder, facts)
    with hold_entry(entry):
        found = find_features(entry)
        if found is None:
            with Writer(entry, facts, rows) as writer:
                make(writer)
        return found or open_features(entry)


def entry_of(folder, facts=FACTS):
    return folder / key_of(facts)


def assert_rows(found, rows=ROWS):
    for name, array in rows.items():
        stored = getattr(found, name)
        assert stored.dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(stored), array)


def test_features_are_made_once(tmp_path):
    maker = Maker()
    assert_rows(find_or_make(tmp_path, FACTS, maker))
    assert_rows(find_or_make(tmp_path, dict(reversed(FACTS.items())), maker))
    assert maker.calls == 1
    assert json.loads((entry_of(tmp_path) / "meta.json").read_text())["facts"] == FACTS


def test_bfloat16_keeps_its_bits(tmp_path):
    rows = ROWS | {"features": ROWS["features"].astype(ml_dtypes.bfloat16) / 3}
    assert_rows(find_or_make(tmp_path, FACTS, Maker(rows)), rows)
    assert_rows(open_features(entry_of(tmp_path)), rows)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["features.npy", "labels.npy", "index.npy", "meta.json"])
@pytest.mark.parametrize("damage", [cut, flip_a_bit, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_what_is_damaged_is_made_again_and_said(tmp_path, caplog, file, damage):
    maker = Maker()
    find_or_make(tmp_path, FACTS, maker)
    damage(entry_of(tmp_path) / file)
    assert_rows(find_or_make(tmp_path, FACTS, maker))
    assert maker.calls == 2 and file in caplog.text and "made again" in caplog.text


def test_a_making_that_was_cut_short_leaves_no_entry(tmp_path):
    def broken(writer):
        writer.add(**{name: array[:3] for name, array in ROWS.items()})
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        find_or_make(tmp_path, FACTS, broken)
    assert not entry_of(tmp_path).exists()
    assert_rows(find_or_make(tmp_path, FACTS, Maker()))


@pytest.mark.parametrize("rows", [4, 6])
def test_another_number_of_rows_than_expected_is_refused(tmp_path, rows):
    with pytest.raises(ValueError, match=f"got 5 samples, expected ({rows}|5)"):
        find_or_make(tmp_path, FACTS, lambda writer: writer.add(**ROWS), rows)
    assert not entry_of(tmp_path).exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"features cannot be kept in .*file.* set cache.folder"):
        find_or_make(tmp_path / "file", FACTS, Maker())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(FACTS)), st.text(min_size=1))
def test_any_other_fact_makes_another_key(name, value):
    assert key_of(FACTS | {name: value}) != key_of(FACTS) or FACTS[name] == value
    assert key_of(FACTS | {name + value: 1}) != key_of(FACTS)


def test_the_default_place_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert feature_cache.features_folder("") == tmp_path / "anysat_jax" / "features"
    assert feature_cache.features_folder(str(tmp_path / "x")) == tmp_path / "x" / "features"

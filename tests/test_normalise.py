"""Statistics of raw values: which are chosen, and that they standardise."""

import json
import re

import jax
import numpy as np
import pytest

from anysat_jax import AnySat
from anysat_jax.normalise import choose_statistics, read_statistics, standardise
from anysat_jax.sensors import SENSORS
from anysat_jax.validate import to_batch
from data_pipelines.registry import dataset_names, get_entry
from tests.validate.fakes import make_data

SPOT = {"mean": [90, 100, 110], "std": [20, 30, 40]}
OWN = {"spot": SPOT, "s2@fields": {"mean": [1500] * 10, "std": [600] * 10}}


def refused(normalise, name, message, own=OWN, error=ValueError):
    with pytest.raises(error, match=re.escape(message)):
        choose_statistics(normalise, own, name)


def test_those_of_the_weights():
    assert choose_statistics("auto", OWN, "spot").mean.tolist() == SPOT["mean"]
    assert choose_statistics("auto", OWN, "s2").std.tolist() == [600] * 10  # of the only dataset
    assert choose_statistics("fields", OWN, "s2").mean.tolist() == [1500] * 10
    refused("auto", "s1", "normalise='auto' has no statistics of 's1'. `anysat data statistics FOLDER --out")
    refused("auto", "s2", "has no statistics of 's2'. Named datasets that have them: 'pastis_hd'. `anysat", own={})
    several = OWN | {"s2@forests": OWN["s2@fields"]}
    refused("auto", "s2", "trained on 's2' of fields, forests, each standardised by its own statistics", own=several)
    refused("forests", "s2", "has no statistics of 's2'. Named datasets that have them: 'fields', 'pastis_hd'")


def test_those_of_a_published_dataset():
    found = choose_statistics("pastis_hd", {}, "s2")
    assert found.mean[0] == np.float32(1186.8) and found.std[9] == np.float32(1310.1)
    refused("pastis_hd", "spot", "normalise='pastis_hd' has no statistics of 'spot'", own={})


@pytest.mark.parametrize("name", dataset_names())
def test_published_statistics_are_of_all_bands_and_have_a_source(name):
    card = get_entry(name).card
    assert bool(card.statistics) == bool(card.statistics_source)
    for sensor in card.statistics:
        assert sensor in card.sensors and choose_statistics(name, {}, sensor).mean.size == SENSORS[sensor].num_bands


def test_published_statistics_are_those_of_the_archive(real_data):
    folds = json.loads((real_data / "pastis/PASTIS/NORM_S2_patch.json").read_text())
    found = choose_statistics("pastis_hd", {}, "s2")
    for key in ("mean", "std"):
        expected = np.mean([folds[f"Fold_{fold}"][key] for fold in (1, 2, 3)], axis=0)
        np.testing.assert_allclose(getattr(found, key), expected, atol=0.051)


def test_those_of_a_file_and_of_a_dict(tmp_path):
    file = tmp_path / "statistics.json"
    by_name = {"bands": ["B", "R", "G"], "mean": [110, 90, 100], "std": [40, 20, 30]}
    file.write_text(json.dumps({"sensors": {"spot": by_name}}))
    for how in (str(file), file, OWN, {"spot": by_name}, {"spot": str(file)}, {"spot": "auto"}):
        found = choose_statistics(how, OWN, "spot")
        assert (found.mean.tolist(), found.std.tolist()) == (SPOT["mean"], SPOT["std"])
    assert choose_statistics(None, OWN, "spot") is choose_statistics({"spot": None}, OWN, "spot") is None
    refused({"s2": SPOT}, "spot", "has no statistics of 'spot'")
    refused(str(tmp_path / "none.json"), "spot", "none.json", error=FileNotFoundError)
    refused(
        3, "spot", "normalise is a int; expected None, 'auto', the name of a dataset, a .json file", error=TypeError
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SPOT | {"std": [1, 2]}, "of 'spot' mean and std have the shapes (3,) and (2,); expected a number for each of"),
        (SPOT | {"std": [1, 2, 0]}, "of 'spot' means must be finite and deviations above 0"),
        (SPOT | {"mean": ["a", 1, 2]}, "of 'spot' mean and std must be numbers, for R, G, B"),
        (SPOT | {"mean": [1] * 4, "std": [1] * 4}, "of 'spot' mean and std have the shapes (4,) and (4,)"),
        (SPOT | {"bands": ["R", "G", "NIR"]}, "of 'spot' the band 'B' is missing; there are R, G, NIR"),
        ({"mean": [1]}, 'of \'spot\' expected {"mean": [...], "std": [...]}, a number for each band'),
        ([1, 2], "a number for each band; got [1, 2]"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(given, message):
    refused({"spot": given}, "spot", f"the given statistics: {message}" if message.startswith("of") else message)


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"sensors": 3}', "[" * 100_000])
def test_files_that_are_not_statistics_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is not JSON like"):
        read_statistics(tmp_path / "a.json")


def test_raw_values_become_standardised_ones():
    """With the mask, in numpy as in jit, and as the batches of prepared data are."""
    data, rng = make_data("spot", extent=60), np.random.default_rng(0)
    raw = np.rint(data["spot"] * np.reshape(SPOT["std"], (3, 1, 1)) + np.reshape(SPOT["mean"], (3, 1, 1)))
    raw, mask = raw.clip(0, 255).astype(np.uint8), rng.random((2, 60, 60)) > 0.2

    def values(raw):
        batch = to_batch({"spot": raw, "spot_mask": mask}, 10, ("spot",), lambda n: choose_statistics("auto", OWN, n))
        return batch.observations["spot"].values

    expected = (raw.astype(np.float32) - np.float32(SPOT["mean"])[:, None, None]) / np.float32(SPOT["std"])[
        :, None, None
    ]
    np.testing.assert_array_equal(values(raw), np.where(mask[:, None], expected, 0))
    np.testing.assert_allclose(jax.jit(values)(raw), values(raw), atol=1e-6)
    assert standardise(raw[0].astype(np.float32), choose_statistics("auto", OWN, "spot")).shape == (3, 60, 60)


def test_the_model_passes_its_statistics_on(monkeypatch):
    seen = []
    monkeypatch.setattr("anysat_jax.api._features", lambda config, params, batch, *_: seen.append(batch))
    model = AnySat.from_config("tiny", sensors=("spot",))
    assert model.statistics == {}
    model.statistics = OWN
    raw = np.full((1, 3, 60, 60), 100, np.uint8)
    raw[..., ::2] = 80
    model({"spot": raw}, normalise="auto")
    np.testing.assert_allclose(seen[0].observations["spot"].values[0, :, 0, 1], [0.5, 0, -0.25])

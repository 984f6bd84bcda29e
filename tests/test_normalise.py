"""Statistics of raw values: which are chosen, that they standardise, and values that are in other units."""

import json
import re
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anysat_jax import AnySat
from anysat_jax.normalise import choose_statistics, clean, read_statistics
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


# ---------------------------------------------------------------- units

SPECTRA = np.array(  # reflectance of vegetation, soil, water and cloud in the bands of s2
    [
        [0.03, 0.06, 0.04, 0.09, 0.25, 0.32, 0.35, 0.37, 0.19, 0.09],
        [0.08, 0.11, 0.15, 0.18, 0.20, 0.22, 0.24, 0.26, 0.32, 0.28],
        [0.05, 0.04, 0.03, 0.02, 0.02, 0.02, 0.01, 0.01, 0.005, 0.004],
        [0.60, 0.58, 0.58, 0.60, 0.60, 0.61, 0.62, 0.62, 0.45, 0.35],
    ]
)
POWER = np.array([0.11, 0.033])  # of VV and VH


def spread(values):
    return {"mean": values.mean((0, 1, 3, 4)), "std": values.std((0, 1, 3, 4))}


def scene(rng, clouds):
    """Whole numbers of reflectance x 10000, mostly of vegetation, (1, T, 10, 6, 6)."""
    parts = rng.dirichlet([3, 1, 0.3], (1, 12, 6, 6))
    reflectance = np.moveaxis(parts @ SPECTRA[:3] * rng.lognormal(0, 0.2, (1, 12, 6, 6, 1)), -1, 2)
    cloud = (rng.random((1, 12, 1, 6, 6)) < clouds) * rng.uniform(0.3, 1, (1, 12, 1, 6, 6))
    return np.rint(1e4 * (reflectance * (1 - cloud) + cloud * SPECTRA[3][:, None, None]))


def backscatter(rng):
    """Linear power, (1, T, 2, 6, 6)."""
    return POWER[:, None, None] * rng.lognormal(0, 0.8, (1, 4, 2, 6, 6))


def cleaned(name, values, statistics):
    sensor = SENSORS[name]
    return clean(sensor, values.astype(np.float32), None, choose_statistics({name: statistics}, {}, name))


def as_8_bits(values):
    return np.clip(np.rint(values / 3000 * 255), 70, 255)


RADAR = {"dB": lambda power: 10 * np.log10(power), "linear power": lambda power: power}
OPTICAL = {
    "reflectance x 10000": lambda values: values,
    "reflectance of 0 to 1": lambda values: values / 1e4,
    "grey values of 8 bits": as_8_bits,
}


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    clouds=st.sampled_from([0.0, 0.2, 0.5]),
    expected=st.sampled_from(["reflectance x 10000", "reflectance of 0 to 1"]),
    given_as=st.sampled_from([*OPTICAL, "values that are standardised already"]),
)
def test_units_of_optical_values(seed, clouds, expected, given_as):
    rng = np.random.default_rng(seed)
    whole, tile = np.concatenate([scene(rng, clouds) for _ in range(8)]), scene(rng, clouds)
    statistics = spread(OPTICAL[expected](whole))
    if given_as == expected:
        assert abs(cleaned("s2", OPTICAL[expected](tile), statistics)).max() < 30
        return
    wrong = OPTICAL.get(given_as, lambda values: cleaned("s2", OPTICAL[expected](values), statistics))(tile)
    # Grey values are above 10 as much as numbers x 10000 are.
    like = "reflectance x 10000" if expected.endswith("1") and given_as.startswith("grey") else given_as
    message = rf"units of the given statistics: band 'B2' runs from .* like {like}; expected {expected[:11]}"
    with pytest.raises(ValueError, match=f"'s2' is not in the {message}"):
        cleaned("s2", wrong, statistics)


@pytest.mark.filterwarnings("error")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    expected=st.sampled_from(sorted(RADAR)),
    given_as=st.sampled_from([*RADAR, "values that are standardised already"]),
)
def test_units_of_radar(seed, expected, given_as):
    rng = np.random.default_rng(seed)
    whole, tile = np.concatenate([backscatter(rng) for _ in range(8)]), backscatter(rng)
    statistics = spread(RADAR[expected](whole))
    if given_as == expected:
        assert abs(cleaned("s1-asc", RADAR[expected](tile), statistics)).max() < 50
        return
    wrong = RADAR.get(given_as, lambda values: cleaned("s1-asc", RADAR[expected](values), statistics))(tile)
    with pytest.raises(ValueError, match=rf"band 'VV' runs from .*, like {given_as}; expected {expected}, mean"):
        cleaned("s1-asc", wrong, statistics)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), offset=st.booleans(), expected=st.booleans())
def test_the_offset_of_processing_baseline_4(seed, offset, expected):
    rng = np.random.default_rng(seed)
    whole, tile = np.concatenate([scene(rng, 0.0) for _ in range(8)]), scene(rng, 0.0)
    statistics = spread(whole + 1000 * expected)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cleaned("s2", tile + 1000 * offset, statistics)
    texts = [str(one.message) for one in caught]
    assert len(texts) == (offset != expected)
    if texts:
        assert "processing baseline 04.00 (25 January 2022): " + ("subtract 1000" if offset else "add 1000") in texts[0]
        assert ("no value near 0" if offset else "values below 1000") in texts[0] and "given statistics" in texts[0]


def test_grey_values_and_fills():
    image = np.random.default_rng(0).integers(20, 240, (1, 3, 60, 60))
    for wrong, like in ((image / 255, "values divided by 255"), (image * 9, "numbers of more than 8 bits")):
        with pytest.raises(
            ValueError, match=f"band 'R' runs from .*, like {like}; expected grey values, mean 90 and std 20"
        ):
            cleaned("spot", wrong, SPOT)
    image[0, 1, 3, 3] = -9999
    message = (
        r"band 'G' runs from -9999 to 239, .*expected grey values.*, 0 to 255: mark fill values in spot_mask, False"
    )
    with pytest.raises(ValueError, match=message):
        cleaned("spot", image, SPOT)
    masked = to_batch(
        {"spot": np.ma.masked_equal(image, -9999)}, 10, ("spot",), lambda n: choose_statistics(OWN, {}, n)
    )
    values = masked.observations["spot"].values
    assert values[0, 1, 3, 3] == 0 and values[0, 1, 3, 4] == np.float32(image[0, 1, 3, 4] - 100) / 30


def test_values_far_from_their_statistics_are_warned_about():
    image = np.full((1, 3, 60, 60), 250)
    with pytest.warns(
        UserWarning, match=r"'spot' is far from the given statistics: with these, R \(mean 16, std 0\); expected"
    ):
        cleaned("spot", image, {"mean": [90, 200, 200], "std": [10, 30, 40]})


@pytest.mark.filterwarnings("error")
def test_real_samples_raise_no_alarm(real_data):
    h5py, rasterio = pytest.importorskip("h5py"), pytest.importorskip("rasterio")
    with h5py.File(real_data / "treesatai_ts/sentinel/Abies_alba_1_1005_WEFL_NLF.h5") as file:
        forest, radar = file["sen-2-data"][:][None], file["sen-1-asc-data"][:][None]
    with rasterio.open(real_data / "sen1floods11/sample/S2/Spain_7370579_S2Hand.tif") as file:
        flood = file.read([2, 3, 4, 5, 6, 7, 8, 9, 12, 13])[None, None]
    with rasterio.open(real_data / "sen1floods11/sample/S1/Spain_7370579_S1Hand.tif") as file:
        decibels = file.read()[None, None]
    with h5py.File(real_data / "galileo/normalizing_dict.h5") as file:
        many = {key: file[key][:][[2, 3, 4, 5, 6, 7, 8, 9, 11, 12]] for key in ("mean", "std")}
    for statistics in (many, get_entry("pastis_hd").card.statistics["s2"]):
        for dates in (1, 5, 12):  # whatever the clouds
            for first in range(0, forest.shape[1] - dates, 7):
                cleaned("s2", forest[:, first : first + dates], statistics)
        cleaned("s2", flood, statistics)
    cleaned("s1-asc", radar, {"mean": POWER, "std": POWER})
    seen = np.isfinite(decibels)
    chosen = choose_statistics({"s1-asc": {"mean": [-11.4, -18.7], "std": [4, 4.7]}}, {}, "s1-asc")
    clean(SENSORS["s1-asc"], decibels, seen, chosen)

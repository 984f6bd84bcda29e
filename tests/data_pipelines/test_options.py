"""Options of a dataset: defaults, and how bad values are refused by key."""

import dataclasses

import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from data_pipelines import registry
from data_pipelines.load import read_options, train_iterator
from data_pipelines.options import DatasetOptions, Sampling
from data_pipelines.reader import DatasetEntry
from tests.data_pipelines.coordinate_tiles import CARD

NO_LABEL = dataclasses.replace(CARD, tile_label="none", tile_classes=())


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, CARD.name, lambda: DatasetEntry(CARD))


def options(**section):
    section = {"batch_size": 2} | section
    return read_options(ConfigDict({"root": "", "datasets": {CARD.name: section}}))[CARD.name]


def test_absent_fields_mean_whole_tiles_with_all_dates():
    one = options()
    assert one.sampling == Sampling() and one.patch_sizes == (30.0, 60.0) and one.weight == 1
    assert DatasetOptions(CARD) == options(batch_size=1)
    nothing = dict(max_dates=placeholder(int), extent=placeholder(float), max_cloud=placeholder(float), date_buckets=())
    assert options(**nothing).sampling == Sampling()


def test_all_fields():
    given = dict(max_dates=20, temporal_dropout=0.3, max_cloud=40.0, extent=60.0, augment=False, dates="published")
    one = options(patch_sizes=(30,), weight=2.0, date_buckets=[8, 16], **given)
    assert one.sampling == Sampling(**given, date_buckets=(8, 16)) and one.patch_sizes == (30.0,) and one.weight == 2
    assert one.sampling.limit == 16


def test_patch_sizes_follow_the_extent():
    card = dataclasses.replace(CARD, patch_sizes=(30, 60, 120))
    assert DatasetOptions(card).check_patch_size(120) == 120.0
    with pytest.raises(
        ValueError, match=r"patches of 120 m do not fit: samples of 60 m .*; the usual sizes are 30, 60"
    ):
        DatasetOptions(card, sampling=Sampling(extent=60.0)).check_patch_size(120)
    assert options(extent=30.0).patch_sizes == (30.0,)


def test_any_patch_size_that_fits_may_be_asked_for():
    assert options(patch_sizes=(120,)).patch_sizes == (120.0,)
    with pytest.raises(ValueError, match="patches of 20 m do not fit: a patch of 20 m is not a whole number of"):
        options(patch_sizes=(20,))


def test_an_extent_that_no_usual_size_divides_asks_for_others(monkeypatch):
    card = dataclasses.replace(CARD, patch_sizes=(120,))
    monkeypatch.setitem(registry._ENTRIES, CARD.name, lambda: DatasetEntry(card))
    with pytest.raises(ValueError, match=r"extent is 60\.0; none of .* patch sizes \(120,\) divides .*\.patch_sizes"):
        options(extent=60.0)
    assert options(extent=60.0, patch_sizes=(60,)).patch_sizes == (60.0,)


WRONG = {
    "batch size": (dict(batch_size=2.5), r"batch_size is 2\.5; it must be a positive number of tiles"),
    "no batch size": (dict(batch_size=None), "batch_size is missing"),
    "no batch": (dict(batch_size=0), "batch_size is 0"),
    "huge batch": (dict(batch_size=10**6), "batch_size is 1000000; it must be .* at most 65536"),
    "weight": (dict(weight=0.0), r"weight is 0\.0; it must be positive"),
    "tiny weight": (dict(weight=1e-9), r"weight is 1e-09"),
    "huge weight": (dict(weight=1e300), r"weight is 1e\+300; it must be positive, at least 0.001 and at most 1000"),
    "nan": (dict(weight=float("nan")), "weight is nan"),
    "patch size": (dict(patch_sizes=(30, 40)), "patches of 40 m do not fit: .*; the usual sizes are 30, 60 m"),
    "patch sizes": (dict(patch_sizes=("a",)), r"patch_sizes is \('a',\); it must be sides in metres"),
    "dates": (dict(max_dates=0), "max_dates is 0; it must be positive, or None"),
    "dropout": (dict(temporal_dropout=1.0), r"temporal_dropout is 1\.0; it must be a fraction of the dates"),
    "negative dropout": (dict(temporal_dropout=-0.1), r"temporal_dropout is -0\.1"),
    "cloud": (dict(max_cloud=101.0), r"max_cloud is 101\.0; it must be percent, 0 to 100"),
    "falling buckets": (dict(date_buckets=(32, 16)), r"date_buckets is \(32, 16\); it must be lengths in rising order"),
    "empty bucket": (dict(date_buckets=(0, 16)), "date_buckets is"),
    "equal buckets": (dict(date_buckets=(16, 16)), "date_buckets is"),
    "extent": (dict(extent=50.0), r"extent is 50\.0; 50 m; tiles of 120 m are cut into a whole number of windows"),
    "fine extent": (dict(extent=40.0), r"extent is 40\.0; 40 m; windows are whole multiples of 30 m"),
    "text": (dict(extent="60"), "extent is '60'"),
    "fraction": (dict(fraction=0.0), r"fraction is 0\.0; it must be a fraction of the training tiles"),
    "fraction seed": (dict(fraction_seed=-1), "fraction_seed is -1; it must be a whole number"),
    "noise": (dict(noise=-0.1), r"noise is -0\.1; it must be 0 or more, in standard deviations"),
    "augment": (dict(augment="yes"), "augment is 'yes'; it must be True or False"),
    "kind of dates": (dict(dates="weeks"), "dates is 'weeks'; it must be one of day_of_year, published"),
    "unknown": (dict(max_date=3), r"\.max_date is unknown; the keys are augment, batch_size, date_buckets"),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_cannot_be_are_refused_by_name(case):
    changes, message = WRONG[case]
    where = "" if case == "patch size" else rf"^data\.datasets\.{CARD.name}\."
    with pytest.raises(ValueError, match=where + message.removeprefix(r"\.")):
        options(**changes)


def test_what_the_dataset_does_not_have_is_refused():
    for card, section, message in (
        (dataclasses.replace(CARD, clouds=()), dict(max_cloud=10.0), "the dataset has no cloud layer"),
        (
            dataclasses.replace(CARD, date_origin=""),
            dict(dates="published"),
            "its published dates are days of the year",
        ),
        (
            dataclasses.replace(CARD, tile_label="class"),
            dict(extent=60.0),
            "the labels of whole tiles are not those of",
        ),
        (dataclasses.replace(CARD, tile_classes=("x",)), dict(extent=60.0), "no dense label has the same classes"),
    ):
        with pytest.raises(ValueError, match=message):
            DatasetOptions(card, sampling=Sampling(**section))
    assert DatasetOptions(NO_LABEL, sampling=Sampling(extent=60.0)).extent == 60.0
    whole = dataclasses.replace(CARD, tile_label="class")
    assert DatasetOptions(whole, sampling=Sampling(extent=120.0)).extent == DatasetOptions(whole).extent == 120.0


def test_no_dataset_and_unknown_datasets():
    with pytest.raises(ValueError, match=r"data\.datasets is empty"):
        read_options(ConfigDict({"datasets": {}}))
    with pytest.raises(ValueError, match=r"unknown dataset 'coordinate_tile'; known datasets: .*treesatai_ts"):
        read_options(ConfigDict({"datasets": {"coordinate_tile": {"batch_size": 2}}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_corrupt": "yes"}, r"data\.skip_corrupt = 'yes' must be True or False"),
        ({"root": 5}, "data.root = 5 must be a folder or an address"),
        ({"datasets": {"flair": None}}, "data.datasets.flair = None must be a section with a batch_size"),
        ({"num_workers": -1}, r"data\.num_workers = -1 must be 0 \(threads\) or more"),
        ({"num_workers": 10**12}, r"data\.num_workers = 1000000000000 must be 0 \(threads\) or more, and at most 1024"),
        (
            {"datasets": {"treesatai_ts": {"batch_size": 2, "patch_sizes": ()}}},
            r"data\.datasets\.treesatai_ts\.patch_sizes = \(\) must be at least one size",
        ),
    ],
)
def test_values_of_the_section_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        read_options(ConfigDict({"datasets": {"treesatai_ts": {"batch_size": 2}}} | changes))


def test_worker_processes():
    with pytest.raises(ValueError, match=r"data\.num_workers = -1 must be 0"):
        train_iterator({}, seed=0, num_workers=-1)

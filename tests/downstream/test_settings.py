"""What is refused of a config of fine-tuning, probing or evaluation, before anything is read."""

import dataclasses

import pytest

from anysat_jax.configs import evaluate, finetune, probe
from anysat_jax.downstream import config as settings
from anysat_jax.errors import ConfigError
from data_pipelines import registry


def config_of(name="mini_flair", **changes):
    config = finetune.get_config(name)
    config.init = "none"
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("module", [finetune, probe, evaluate], ids=lambda module: module.__name__)
def test_every_config_passes(module):
    for name in module.NAMES:
        for arg in (name, f"{name},smoke"):
            config = module.get_config(arg)
            config.init = "none"
            _, task = settings.check(config)
            assert (task.level, task.metric) == (config.task.level, config.task.metric), arg


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("init", "", r"config.init is empty; give 'none' for a random start, the workdir"),
        ("mode", "train", r"mode = 'train' must be one of finetune, probe, last_block, projector, scratch"),
        ("epochs", -1, r"epochs = -1 must be 0 or more"),
        ("seed", 10**19, r"seed = 10000000000000000000 must be 0 or more, and at most 4294967295"),
        ("seed", -1, r"seed = -1 must be 0 or more, and at most 4294967295"),
        ("watchdog_seconds", float("inf"), r"watchdog_seconds = inf must be 0 or more"),
        ("early_stopping", 0, r"early_stopping = 0 must be None or above 0"),
        ("max_nonfinite_steps", 0, r"max_nonfinite_steps = 0 must be above 0"),
        ("watchdog_seconds", -1.0, r"watchdog_seconds = -1.0 must be 0 or more"),
        ("profile.steps", (5, 2), r"profile.steps = \(5, 2\) must be None, or the first and the last step"),
        ("model.norm_groups", "4", r"model.norm_groups = '4' must be None, 'width' or 'published'"),
        ("model.drop_path", 1.0, r"model.drop_path = 1.0 must be at least 0 and below 1"),
        ("data.fake_tiles", -1, r"data.fake_tiles = -1 must be 0 or more"),
        ("data.datasets.mini_flair.fraction", 0.0, r"mini_flair.fraction is 0.0; it must be"),
        ("data.datasets.mini_flair.extent", 15.0, r"mini_flair.extent is 15.0"),
        ("data.datasets.mini_flair.patch_sizes", (15,), r"patches of 15 m do not fit: samples of 40 m"),
        ("task.level", "pixel", r"task.level = 'pixel' must be 'tile' or 'dense'"),
        ("task.level", "dense", r"head.input = 'tile' does not fit task.level = 'dense', which wants 'dense'"),
        ("task.metric", "r2", r"task.metric = 'r2': the labels of 'mini_flair' are of kind 'class'"),
        ("task.class_weights", "even", r"task.class_weights = 'even' must be 'none', 'balanced', or a number"),
        ("task.class_weights", (1, -1), r"task.class_weights = \(1, -1\) must be 'none'"),
        ("task.class_weights", (1, 2.5), r"has 2 numbers, and 'mini_flair' has 6 classes"),
        ("task.label_smoothing", 1.0, r"label_smoothing = 1.0 must be at least 0 and below 1"),
        ("head.kind", "deep", r"head.kind = 'deep' must be 'linear' or 'mlp'"),
        ("head.input", "dense", r"head.input = 'dense' does not fit task.level = 'tile', which wants 'tile' or 'mean'"),
        ("optimizer.schedule", "step", r"schedule = 'step' must be 'cosine' or 'plateau'"),
        ("optimizer.layer_decay", 0.0, r"layer_decay = 0.0 must be above 0 and at most 1"),
        ("head_init", "zero", r"head_init = 'zero' must be 'random' or 'probe'"),
        ("optimizer.warmup_epochs", 8, r"warmup_epochs = 8 must be below epochs = 8"),
        ("evaluate.every", 9, r"evaluate.every = 9 must be at most epochs = 8"),
        (
            "evaluate.splits",
            ("test",),
            r"has no split 'test', which evaluate.splits needs; it has train, val",
        ),
        (
            "evaluate.patch_sizes",
            (10, 30),
            r"patches of 30 m do not fit: .*; the usual sizes are 10, 20",
        ),
        ("evaluate.patch_sizes", (), r"evaluate.patch_sizes = \(\) must be at least one size"),
        ("evaluate.patch_sizes", ("10",), r"evaluate.patch_sizes = \('10',\) must be at least one size"),
        ("evaluate.splits", (1,), r"evaluate.splits = \(1,\) must be of the type tuple\[str, ...\]"),
        ("profile.steps", ("a", "b"), r"profile.steps = \('a', 'b'\) must be None, or the first and the last step"),
        ("profile.steps", (1.5, 2), r"profile.steps = \(1.5, 2\) must be of the type tuple\[int, int\]"),
        ("task.class_weights", ("a", "b"), r"task.class_weights = \('a', 'b'\) must be 'none'"),
        ("new_sensors", (1,), r"new_sensors = \(1,\) must be of the type tuple\[str, ...\]"),
        ("cache.max_gb", 0.0, r"cache.max_gb = 0.0 must be above 0"),
        ("knn.neighbours", -1, r"knn.neighbours = -1 must be 0 or more"),
        ("new_sensors", ("hls",), r"new_sensors names 'hls'; the sensors of 'mini_flair' are aerial-flair, s2"),
        ("mode", "projector", r"mode = 'projector' trains the projectors of new_sensors, and that is empty"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value, message):
    with pytest.raises(ConfigError, match=message):
        settings.check(config_of(**{name: value}))


def test_weights_for_each_class_are_taken():
    assert settings.check(config_of(**{"task.class_weights": (1, 2, 0.5, 1, 1, 0)}))[1].num_outputs == 6


def test_a_regression_has_no_classes_to_weigh():
    changes = {"task.class_weights": "balanced"}
    with pytest.raises(ConfigError, match=r"labels of 'fuel_moisture' are a regression; leave them"):
        settings.check(config_of("fuel_moisture", **changes))


def test_pixels_have_no_neighbours():
    config = config_of("mini_pastis_hd_semseg", **{"knn.neighbours": 5})
    with pytest.raises(ConfigError, match=r"knn.neighbours = 5 compares tiles, and the task of 'mini_pastis_hd' is de"):
        settings.check(config)


def test_scratch_takes_no_weights():
    with pytest.raises(ConfigError, match=r"mode = 'scratch' starts at random, and init = 'runs/mini' names weights"):
        settings.check(config_of(mode="scratch", init="runs/mini"))


def test_the_warm_up_may_be_left_out_of_a_single_epoch():
    settings.check(config_of(epochs=1, **{"optimizer.warmup_epochs": 0, "evaluate.every": 1}))


def test_only_evaluation_takes_a_dataset_that_has_no_split_for_training(monkeypatch):
    entry = registry.get_entry("mini_flair")
    card = dataclasses.replace(entry.card, splits=("val",))
    monkeypatch.setitem(registry._ENTRIES, "mini_flair", lambda: dataclasses.replace(entry, card=card))
    with pytest.raises(ConfigError, match=r"has no split 'train', which training needs; it has val"):
        settings.check(config_of())
    config = evaluate.get_config("mini_flair")
    config.init = "none"
    settings.check(config)


def test_no_epoch_is_enough_for_a_solved_head_only():
    settings.check(config_of(epochs=0, head_init="probe"))
    with pytest.raises(ConfigError, match=r"epochs = 0 trains nothing; give at least 1, or head_init = 'probe'"):
        settings.check(config_of(epochs=0, head_init="random"))


def test_one_dataset_is_learnt():
    config = config_of()
    config.data.datasets.mini_planted = config.data.datasets.mini_flair
    with pytest.raises(ConfigError, match=r"must name one dataset, .*; it names mini_flair, mini_planted"):
        settings.check(config)


def test_an_unknown_dataset_and_a_missing_value_are_named():
    with pytest.raises(ConfigError, match=r"unknown dataset 'fields'"):
        settings.check(config_of("prepared,fields"))
    config = config_of()
    del config.epochs
    with pytest.raises(ConfigError, match=r"the config has no epochs; configs/adaptation.py shows every field"):
        settings.check(config)


def test_the_former_name_of_head_init_is_refused_with_the_new_one():
    config = config_of()
    with config.unlocked():
        config.head_start = "solved"
    with pytest.raises(ConfigError, match=r"head_start.*it is head_init now, and its 'solved' is 'probe'"):
        settings.check(config)

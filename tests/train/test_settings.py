"""Configs as values, and what is refused."""

import pytest

from anysat_jax.errors import ConfigError
from anysat_jax.train import config as settings
from configs import pretrain


def test_differences_are_by_dotted_name():
    old, new = {"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"b": 2, "c": [1, 2]}, "e": 4}
    assert settings.differences(old, new) == [("a.b", 1, 2), ("d", 3, None), ("e", None, 4)]


def test_the_config_as_json_equals_itself():
    config = pretrain.get_config()
    assert settings.differences(settings.as_json(config), settings.as_json(pretrain.get_config())) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("total_steps", 0, r"total_steps = 0 must be above 0"),
        ("seed", -1, r"seed = -1 must be 0 or more"),
        ("dtype", "float16", r"dtype = 'float16' must be 'float32' or 'bfloat16'"),
        ("model.dim", 100, r"model.dim = 100"),
        ("model.preset", "huge", r"unknown preset 'huge'; there are tiny, small, base"),
        ("model.sensors", ("s3",), r"unknown sensor 's3'"),
        ("pretrain.mask_buckets", (3, 2), r"mask_buckets = \(3, 2\) must be two numbers above 0"),
        ("pretrain.target_scale", (0.8, 0.2), r"target_scale = \(0.8, 0.2\) must be two shares"),
        ("pretrain.ema_start", 1.5, r"ema_start = 1.5 must be from 0 to 1"),
        ("optimizer.schedule", "step", r"schedule = 'step' must be 'cosine' or 'plateau'"),
        ("optimizer.clip_norm", 0.0, r"clip_norm = 0.0 must be None or above 0"),
        ("mesh.fsdp", 0, r"mesh.fsdp = 0 must be above 0"),
        ("evaluate.batch_size", 0, r"evaluate.batch_size = 0 must be at least 1"),
        ("data.datasets.mini_flair.patch_sizes", (), r"mini_flair.patch_sizes = \(\) must be at least one size"),
        ("data.datasets.mini_flair.batch_size", 0, r"mini_flair.batch_size = 0 must be above 0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value, message):
    config = pretrain.get_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ConfigError, match=message):
        settings.check(config)


def test_a_missing_value_is_named():
    config = pretrain.get_config()
    del config.optimizer.weight_decay
    with pytest.raises(ConfigError, match=r"the config has no optimizer.weight_decay"):
        settings.check(config)


def test_a_config_without_data_is_refused():
    config = pretrain.get_config()
    config.data.datasets = {}
    with pytest.raises(ConfigError, match=r"data.datasets is empty"):
        settings.check(config)

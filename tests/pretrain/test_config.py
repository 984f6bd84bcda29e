"""The config of a pretraining: what is refused."""

import re

import pytest

from anysat_jax.configs import pretrain
from anysat_jax.errors import ConfigError
from anysat_jax.pretrain.config import PretrainConfig
from data_pipelines.options import DatasetOptions
from data_pipelines.registry import get_entry


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("total_steps", 0, r"total_steps = 0 must be above 0"),
        ("checkpoint_every", 10**20, r"checkpoint_every = 1000.* must be below 2147483648"),
        ("total_steps", -5, "total_steps = -5 must be above 0"),
        ("pretrain.num_target_blocks", 10**9, "pretrain.num_target_blocks = 1000000000 must be from 1 to 256"),
        ("optimizer.warmup_steps", 301, r"optimizer.warmup_steps = 301 must be at most total_steps = 300"),
        ("pretrain.predictive_weight", 0.0, r"pretrain.predictive_weight and pretrain.contrastive_weight are 0; one"),
        ("seed", -1, r"seed = -1 must be 0 or more"),
        ("profile.steps", (5, 2), r"profile.steps = \(5, 2\) must be None, or the first and the last step"),
        ("dtype", "float16", r"dtype = 'float16' must be 'float32' or 'bfloat16'"),
        ("model.dim", 100, r"model.dim = 100"),
        ("model.preset", "huge", r"unknown preset 'huge'; there are tiny, small, base"),
        ("model.sensors", ("s3",), r"unknown sensor 's3'"),
        ("pretrain.mask_buckets", (3, 2), r"pretrain.mask_buckets = \(3, 2\) must be two numbers above 0"),
        ("pretrain.target_scale", (0.8, 0.2), r"pretrain.target_scale = \(0.8, 0.2\) must be two fractions"),
        ("pretrain.objective", "best", r"pretrain.objective = 'best' must be 'paper' or 'reconstruction'"),
        ("pretrain.negatives", "none", r"pretrain.negatives = 'none' must be 'global' or 'device'"),
        ("pretrain.contrastive_block", 0, r"pretrain.contrastive_block = 0 must be above 0"),
        ("pretrain.temperature", 0.0, r"pretrain.temperature = 0.0 must be above 0"),
        ("pretrain.ema_start", 1.5, r"pretrain.ema_start = 1.5 must be from 0 to 1"),
        ("health.max_cosine", 2.0, r"health.max_cosine = 2.0 must be from 0 to 1"),
        ("optimizer.learning_rate", float("inf"), r"optimizer.learning_rate = inf must be above 0 and finite"),
        ("optimizer.schedule", "step", r"optimizer.schedule = 'step' must be 'cosine' or 'plateau'"),
        ("optimizer.clip_norm", 0.0, r"optimizer.clip_norm = 0.0 must be None or above 0"),
        ("optimizer.plateau.window", 0, r"optimizer.plateau.window = 0 must be above 0"),
        ("mesh.fsdp", 0, r"mesh.fsdp = 0 must be above 0"),
        ("evaluate.batch_size", 0, r"evaluate.batch_size = 0 must be above 0"),
        ("evaluate.max_tiles", 0, r"evaluate.max_tiles = 0 must be above 0"),
        ("evaluate.pictures", -1, r"evaluate.pictures = -1 must be 0 or more"),
        ("evaluate.patch_size", 0.0, r"evaluate.patch_size = 0.0 must be None or above 0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value, message):
    config = pretrain.get_config()
    config.update_from_flattened_dict({name: value})
    if name == "pretrain.predictive_weight":
        config.pretrain.contrastive_weight = 0.0
    with pytest.raises(ConfigError, match=message):
        PretrainConfig.read(config)


@pytest.mark.parametrize(
    ("dataset", "objective", "weights", "found"),
    [
        ("mini_flair", "paper", (1.0, 1.0), None),
        ("bradd_s1ts", "paper", (1.0, 1.0), "bradd_s1ts has one sensor with patches, s1"),
        ("bradd_s1ts", "reconstruction", (1.0, 0.0), None),
        (
            "fuel_moisture",
            "paper",
            (1.0, 1.0),
            "tiles of a single patch, .*=reconstruction",
        ),
        ("fuel_moisture", "reconstruction", (1.0, 0.0), None),
    ],
)
def test_an_objective_that_does_not_fit_a_dataset_is_named(dataset, objective, weights, found):
    config = pretrain.get_config()
    config.pretrain.update(objective=objective, predictive_weight=weights[0], contrastive_weight=weights[1])
    problems = PretrainConfig.read(config).problems_of(DatasetOptions(get_entry(dataset).card))
    assert bool(problems) == bool(found) and all(re.search(found, one) for one in problems)


def test_an_objective_without_any_loss_is_refused():
    config = pretrain.get_config()
    config.pretrain.update(predictive_weight=0.0, contrastive_weight=1.0)
    with pytest.raises(ConfigError, match="bradd_s1ts has one sensor.* set that to 1"):
        PretrainConfig.read(config).problems_of(DatasetOptions(get_entry("bradd_s1ts").card))


def test_a_missing_value_is_named():
    config = pretrain.get_config()
    del config.optimizer.weight_decay
    with pytest.raises(ConfigError, match=r"the config has no optimizer.weight_decay; configs/pretrain.py shows every"):
        PretrainConfig.read(config)


def test_the_values_arrive_where_they_are_used():
    config = PretrainConfig.read(pretrain.get_config())
    assert (config.model.dim, config.pretrain.mask_buckets, config.optimizer.warmup_steps) == (128, (1, 1), 30)
    assert config.evaluate.datasets == ("mini_pastis_hd", "mini_flair") and config.mesh.data is None

import re

import pytest

from anysat_jax.model.config import PRESETS, ModelConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_consistent(preset):
    config = ModelConfig.from_preset(preset)
    assert config.head_dim * config.num_heads == config.dim
    assert len(config.sensors) == 11


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_heads=5), "model.num_heads = 5 must divide model.dim = 256"),
        (dict(predictor_heads=0), "model.predictor_heads = 0 must divide model.dim = 256"),
        (dict(dim=48), "model.dim = 48 must be a multiple of 32"),
        (dict(depth=0), "model.depth = 0 and model.predictor_depth = 4 must be at least 1"),
        (dict(positions="learned"), "model.positions = 'learned' must be 'paper' or 'released'"),
        (dict(dtype="float16"), "dtype = 'float16' must be 'float32' or 'bfloat16'"),
        (dict(sensors=()), "model.sensors is empty"),
        (dict(sensors=("s2", "s3")), "unknown sensor 's3'"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.from_preset("tiny", **fields)


def test_an_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'large'; there are tiny, small, base"):
        ModelConfig.from_preset("large")


def test_a_section_of_a_config():
    section = {"preset": "small", "dim": None, "depth": 3, "sensors": ["s2", "s1"]}
    config = ModelConfig.from_section(section, dtype="bfloat16")
    assert (config.dim, config.depth, config.sensors, config.dtype) == (512, 3, ("s2", "s1"), "bfloat16")

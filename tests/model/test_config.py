"""Model configs: presets, and what does not fit together."""

import pytest

from anysat_jax.model.config import PRESETS, ModelConfig


@pytest.mark.parametrize(
    ("name", "dim", "depth", "heads"), [("base", 768, 6, 12), ("small", 512, 4, 8), ("tiny", 256, 2, 4)]
)
def test_presets(name: str, dim: int, depth: int, heads: int) -> None:
    config = ModelConfig.from_preset(name)
    assert (config.dim, config.depth, config.num_heads) == (dim, depth, heads)


def test_section_falls_back_on_its_preset() -> None:
    section = {"preset": "tiny", "dim": 128, "depth": None, "sensors": ["s2"]}
    config = ModelConfig.from_section(section, dtype="bfloat16")
    assert (config.dim, config.depth, config.sensors, config.dtype) == (
        128,
        PRESETS["tiny"]["depth"],
        ("s2",),
        "bfloat16",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 7}, "model.num_heads = 7 must divide model.dim = 256"),
        ({"dim": 48, "num_heads": 4, "predictor_heads": 4}, "multiple of 32"),
        ({"depth": 0}, "model.depth = 0"),
        ({"positions": "learned"}, "'paper' or 'released'"),
        ({"norm_groups": "4"}, "model.norm_groups = '4' must be 'width' or 'published'"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
        ({"sensors": ()}, "model.sensors is empty"),
        ({"sensors": ("s3",)}, "unknown sensor 's3'"),
        ({"sensors": "s2"}, r"model.sensors = 's2' must be a tuple of names"),
        ({"sensors": ("s2", "s1", "s2")}, "names a sensor twice"),
        ({"sensors": (1,)}, r"model.sensors = \(1,\) must be a tuple of names"),
        ({"dim": "64"}, "model.dim = '64' must be a whole number"),
        ({"dim": 64.0}, "model.dim = 64.0 must be a whole number"),
        ({"depth": True}, "model.depth = True must be a whole number"),
        ({"dim": 10**20}, f"model.dim = {10**20} and .* and the first at most 16384"),
        ({"dim": 0}, "model.dim = 0 and model.mlp_ratio = 4 must be at least 1"),
        ({"mlp_ratio": 0}, "model.mlp_ratio = 0 must be at least 1"),
        ({"dropout": "false"}, "model.dropout = 'false' must be True or False"),
        ({"width": 64}, "unknown fields of the model: width; there are dim, depth"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_preset("tiny", **fields)


def test_a_list_of_sensors_is_a_tuple() -> None:
    config = ModelConfig(sensors=["s2", "s1"])
    assert config.sensors == ("s2", "s1") and hash(config) == hash(ModelConfig(sensors=("s2", "s1")))


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="tiny, small, base"):
        ModelConfig.from_preset("huge")


def test_files_from_before_policies_had_names_are_understood():
    section = dict(preset="tiny", sensors=["s2"])
    assert ModelConfig.from_section(section | dict(remat=True)).remat == "full"
    assert ModelConfig.from_section(section | dict(remat=False)).remat == "none"
    assert ModelConfig.from_section(section | dict(remat="dots")).remat == "dots"


def test_a_policy_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"model.remat = 'most' must be one of 'none', 'dots', 'full'"):
        ModelConfig(remat="most")

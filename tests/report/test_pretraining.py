"""The whole report on a real, very small encoder and made-up data."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from ml_collections import ConfigDict

from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import init_encoder
from anysat_jax.pretrain import probe as pretraining
from anysat_jax.pretrain.config import EvaluateSettings
from data_pipelines.options import DatasetOptions
from tests.report.toy import CARD, toy_batch

CARDS = {
    "toy": dataclasses.replace(CARD, sensors=("s2",), natural_colour={"s2": (2, 1, 0)}),
    "bare": dataclasses.replace(CARD, name="bare", title="Bare", tile_label="none", dense_label="none"),
    "gone": dataclasses.replace(CARD, name="gone", title="Gone"),
}
MODEL = dict(preset="tiny", dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2",))


class ToyDataset:
    """Two batches of each split, the second padded; classes can be told from the reflectance."""

    def __init__(self, card):
        self.card, self.options = card, DatasetOptions(card, patch_sizes=(20, 10))

    def evaluation_batches(self, split, *, patch_size, batch_size):
        if self.card.name == "gone":
            raise FileNotFoundError("no folder of gone")
        return toy_batches(split, patch_size, batch_size)


def toy_batches(split, patch_size, batch_size):
    for seed in range(2):
        batch = toy_batch(batch_size, seed=seed + 10 * (split == "val"), valid=batch_size - seed)
        s2 = batch.observations["s2"]
        values = 0.1 * s2.values + batch.labels["dense"][:, None, None]
        labels = batch.labels | {"index": np.arange(batch_size)}
        observations = {"s2": s2.replace(values=values.astype(np.float32))}
        yield batch.replace(observations=observations, labels=labels, patch_size=float(patch_size))


DATASETS = {name: ToyDataset(card) for name, card in CARDS.items()}


@pytest.fixture
def config() -> ConfigDict:
    datasets = {name: dict(batch_size=4, patch_sizes=(20, 10)) for name in CARDS}
    evaluate = dict(batch_size=4, pictures=1)
    return ConfigDict(
        dict(
            name="toy",
            seed=0,
            total_steps=3,
            dtype="float32",
            model=MODEL,
            data=dict(root="", datasets=datasets),
            evaluate=evaluate,
        )
    )


def test_report_prints_writes_and_returns(config, tmp_path, capsys, caplog):
    model = ModelConfig.from_section(config.model.to_dict())
    with caplog.at_level(logging.INFO):
        result = pretraining.report_pretraining(
            config, DATASETS, tmp_path, init_encoder(model, 1), init_encoder(model, 0)
        )
    probe = json.loads(json.dumps(result))["probe"]
    assert set(probe) == {"tile", "dense", "datasets"}
    assert all(0 <= probe[task][name] <= 1 for task in ("tile", "dense") for name in ("random", "pretrained"))
    assert set(probe["datasets"]) == {"Toy"}
    assert probe["datasets"]["Toy"]["dense"]["accuracy"]["random"] > 0.7  # reflectance gives the classes away
    assert "Toy      tile   weighted F1" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"README.md", "probes.png", "features_toy.png"}
    said = caplog.text
    assert "no probe of bare: it has no labels" in said
    assert "no probe of gone: no folder of gone" in said
    assert str(tmp_path / "report" / "README.md") in said


def test_without_probes_only_the_curves_are_drawn(config, tmp_path):
    config.evaluate.probe = False
    (tmp_path / "metrics.csv").write_text(
        "step,dataset,loss_predictive,loss_contrastive,learning_rate\n1,toy,1,2,0.1\n2,toy,1,2,0.1\n"
    )
    result = pretraining.report_pretraining(config, DATASETS, tmp_path, {}, {})
    assert result["probe"]["dense"] == {"random": None, "pretrained": None}
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"README.md", "curves.png"}


def test_no_dataset_that_can_be_probed_gives_none(config, tmp_path):
    config.evaluate.datasets = ("bare",)
    result = pretraining.report_pretraining(config, DATASETS, tmp_path, {}, {})
    assert result["probe"]["tile"] == {"random": None, "pretrained": None}
    assert "Nothing was probed." in (tmp_path / "report" / "README.md").read_text()


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("max_tiles", 0), ("pixels_per_tile", -1), ("pictures", -1), ("patch_size", 0)],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"evaluate.{field} = {value} must be"):
        EvaluateSettings.from_section({field: value})


def test_settings_take_what_the_config_says_and_leave_the_rest():
    settings = EvaluateSettings.from_section(ConfigDict(dict(probe=True, datasets=["a"], max_tiles=3)))
    assert settings == EvaluateSettings(datasets=("a",), max_tiles=3)

"""What is printed of weights, and the card beside an exported file."""

import dataclasses
import hashlib
import json

import pytest

from anysat_jax import describe, export
from anysat_jax.__main__ import COMMANDS
from anysat_jax.downstream.network import HeadConfig, NetworkConfig, init_head
from anysat_jax.downstream.task import Task
from anysat_jax.model.config import ModelConfig
from anysat_jax.model.init import count_parameters, init_encoder, init_student
from anysat_jax.weights.exported import ExportedHead, checksum, save_exported
from tests.parity.cases import read_index

MODEL = ModelConfig(dim=32, depth=1, num_heads=2, predictor_depth=1, predictor_heads=2, sensors=("s2", "spot"))
TASK = Task("fields", "Fields | all", "tile", "class", ("wheat", "maize"))
STATISTICS = {
    "s2@plots": {"mean": [1.0] * 10, "std": [2.5] * 10},
    "spot": {"mean": [0.5, 1.25, 1234.5678], "std": [2.0, 3.0, 1 / 3]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a finished fine-tuning."""
    folder = tmp_path_factory.mktemp("finished")
    params = init_head(NetworkConfig(MODEL, HeadConfig(), TASK), 0)
    head = ExportedHead(dataclasses.asdict(HeadConfig()), dataclasses.asdict(TASK), params)
    source = {"name": "fields", "init": {"source": "runs/mini", "digest": None}, "dataset": "fields"}
    save_exported(
        folder / "model.safetensors", MODEL, init_encoder(MODEL, 1), head=head, statistics=STATISTICS, source=source
    )
    summary = {"scores": {"test": {"macro_f1": 0.51237}}, "provenance": {"commit": "abc", "versions": {"jax": "0.12"}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def rows(text):
    """The cells of all tables, as one line for each row."""
    return [" ".join(line.strip("|").split()) for line in text.splitlines() if line.startswith("|")]


def test_a_finished_run(run, capsys):
    assert describe.main([str(run)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{run}: weights of a run, an encoder of ") and " for s2, spot; a head for Fields" in text
    file = run / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for row in [
        "positions | paper",
        "title | Fields \\| all",
        "spot | image | R G B | 1",
        f"projector spot | {count_parameters(init_encoder(MODEL, 1)['projector_spot']):,}",
        "s2@plots | B2 | 1 | 2.5",
        "spot | B | 1234.57 | 0.333333",
        "scores test macro_f1 | 0.5124",
        "init source | runs/mini",
        "provenance commit | abc",
        f"parameters of the encoder (SHA-256) | {checksum(init_encoder(MODEL, 1))}",
        f"file of {file.stat().st_size:,} bytes (SHA-256) | {digest}",
    ]:
        assert any(one.startswith(row) for one in rows(text)), (row, rows(text))
    assert "None" not in text


def test_a_whole_pretraining_and_a_summary_that_cannot_be_read(tmp_path):
    student = init_student(MODEL, 0)
    save_exported(tmp_path / "model.safetensors", MODEL, student["encoder"], source={}, student=student)
    (tmp_path / "summary.json").write_text("{")
    text = describe.describe(tmp_path)
    assert "; of the student encoder, mask_token, predictor\n" in text and "## Statistics" not in text
    assert "student's mask token | 32" in rows(text) and "## Scores" not in text and "## Origin" not in text


def test_a_published_checkpoint(golden_folder):
    pytest.importorskip("torch")
    text = describe.describe(golden_folder / "weights.pth")
    assert text.startswith(f"{golden_folder}/weights.pth: weights of a published checkpoint, an encoder of ")
    assert f"dim | {read_index(golden_folder)['dim']}" in rows(text) and "positions | released" in rows(text)


def test_what_cannot_be_described_is_said_in_one_sentence(tmp_path, capsys):
    assert describe.main([str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err.startswith(f"anysat_jax.describe: no {tmp_path}/no; expected a published .pth file")


def test_the_command_takes_weights_or_a_config():
    assert COMMANDS["describe"].of_files == "anysat_jax.describe" and not COMMANDS["data"].of_files


def test_an_export_writes_a_card_that_the_hub_can_read(run, tmp_path, caplog):
    cards = pytest.importorskip("huggingface_hub.repocard")
    export.export(run, tmp_path / "fields.safetensors")
    card = cards.ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "anysat-jax" and data["license"] == "other"
    assert {"earth-observation", "s2", "spot"} <= set(data["tags"])
    assert 'AnySat.from_pretrained("fields.safetensors")' in card.text and "# Fields" in card.text
    assert {"spot | image | R G B | 1.0", "scores test macro_f1 | 0.5124", "spot | R | 0.5 | 2"} <= set(rows(card.text))
    export.export(run, tmp_path / "fields.safetensors")  # its own card is written again
    assert "left as it is" not in caplog.text
    (tmp_path / "README.md").write_text("# Mine\n")
    export.export(run, tmp_path / "fields.safetensors")
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert f"{tmp_path}/README.md is left as it is: it is not the card of fields.safetensors" in caplog.text


def test_a_conversion_writes_no_card(run, tmp_path):
    export.export(run, tmp_path / "a.safetensors", whole=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

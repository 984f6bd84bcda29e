"""The reference part of docs/DATA.md is true: its tables are those of the cards and options, its commands run."""

import dataclasses
import pathlib
import re
import shlex

import jax
import pytest

from anysat_jax import api
from data_pipelines.cli import main
from data_pipelines.options import DatasetOptions, Sampling
from tests.data_pipelines.docs_table import docs_table

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "DATA.md"


def section(title):
    return PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(title):
    """What stands in backticks in the first column of a section's table."""
    return re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`[^|]*) \|", section(title), re.MULTILINE)))


def test_the_table_of_datasets_is_that_of_the_cards():
    (table,) = re.findall(r"(?:^\|.*\n)+", section("Datasets"), re.MULTILINE)
    assert table.strip() == docs_table(), (
        "write the output of `python -m tests.data_pipelines.docs_table` into the page"
    )


def test_the_sampling_options_are_those_of_the_code():
    fields = {field.name for one in (Sampling, DatasetOptions) for field in dataclasses.fields(one)}
    assert set(first_cells("From tiles to batches")) == fields - {"card", "sampling"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The page's commands, done in their order in an empty folder: what each printed."""
    folder, printed = tmp_path_factory.mktemp("page"), []
    commands = [
        shlex.split(line) for line in re.search(r"```bash\n(.*?)```", section("Commands"), re.DOTALL)[1].splitlines()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands:
            if command[2] == "data_pipelines":  # what trains is checked in tests/test_docs.py
                printed.append((command[3:], main(command[3:])))
    return folder, printed


def test_the_commands_run(done):
    folder, printed = done
    assert [code for _, code in printed] == [0] * len(printed)
    assert {words[0] for words, _ in printed} == {"list", "show", "fake", "look", "prepare", "statistics"}
    assert len(list((folder / "pictures").glob("*.png"))) == 2 and (folder / "pictures" / "index.html").is_file()


def test_the_examples_of_raw_values_run(tmp_path, monkeypatch):
    """As written, except that a model's shapes take the place of its compiled program."""
    features = api._features

    def shapes(config, params, batch, *how):
        return jax.eval_shape(lambda params, batch: features(config, params, batch, *how), params, batch)

    monkeypatch.setattr(api, "_features", shapes)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", section("Raw values"), re.DOTALL):
        exec(block, names)
    assert names["tile"].shape == (1, names["model"].config.dim)


def test_a_prepared_folder_holds_what_the_page_says(done):
    folder, printed = done
    ((name, out),) = [(words[1], words[words.index("--out") + 1]) for words, _ in printed if words[0] == "prepare"]
    (version,) = [path for path in (folder / out / name).iterdir() if not path.name.startswith(".")]  # beside a lock
    found = {path.name for path in version.iterdir()}
    records = {file for file in found if "array_record" in file}
    named = set(first_cells("A prepared folder"))
    assert f"{name}-train.array_record-00000-of-00001" in records
    assert found - records == named - {"NAME-SPLIT.array_record-00000-of-00001"}


def test_the_error_lines_are_those_of_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in (PAGE.parents[1] / "data_pipelines").rglob("*.py"))
    code = re.sub(r'"\s*f?"', "", code)  # sentences that run over several lines
    for line in first_cells("When something goes wrong"):
        pattern = re.escape(line).replace("NAME", r"\{\w+\}").replace("rasterio", r"\{\w+\}")
        assert re.search(pattern, code), line

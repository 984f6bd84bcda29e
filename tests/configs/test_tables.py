"""Every row of the paper's tables that is AnySat's has a config, and docs/TASKS.md lists them all."""

import pathlib
import re

import pytest

from anysat_jax.configs import adaptation, finetune, probe, tasks
from anysat_jax.report.paper import BLOCKS, METRIC_NAMES
from anysat_jax.train import config as settings

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "TASKS.md").read_text(encoding="utf-8")
PAPER = {row.row: (block, row) for block in BLOCKS for row in block.rows if row.row}
NAMES = [
    *((finetune, name) for name in (*finetune.NAMES, *(f"{name},scratch" for name in finetune.NAMES))),
    *((probe, name) for name in (*probe.NAMES, *(f"{name},random" for name in probe.NAMES))),
]
CONFIGS = {
    f"{module.__name__.rpartition('.')[2].removeprefix('configs.')}.py:{name}": module.get_config(name)
    for module, name in NAMES
}


def listed() -> dict[str, list[str]]:
    """The cells of each config's line on the page: row, hardware, the paper's numbers, command."""
    lines = re.findall(r"^\| `(\w+\.py:[\w,]+)` \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(lines) == len(dict(lines)), "a config is listed twice"
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


def test_each_row_of_the_paper_has_one_config():
    rows = [config.row for config in CONFIGS.values() if config.row]
    assert sorted(rows) == sorted(PAPER)


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.row])
def test_the_page_has_the_row_and_its_numbers(name):
    config = CONFIGS[name]
    block, row = PAPER[config.row]
    numbers = [f"{METRIC_NAMES[metric]} {score}" for metric, score in zip(block.metrics, row.scores, strict=True)]
    parameters = re.search(r"linear ([\d.]+[kKM])", row.model)
    shown_row, _, shown_numbers, _ = listed()[name]
    assert shown_row == config.row
    assert shown_numbers == ", ".join([*numbers, *([f"{parameters[1].upper()} parameters"] if parameters else [])])
    assert config.task.metric in block.metrics


def test_the_page_lists_every_config_with_its_command():
    """But ",scratch" and ",random" of those that the paper has no row of, which the page explains."""
    wanted = {name for name, config in CONFIGS.items() if config.row or "," not in name or is_little(name)}
    assert set(listed()) == wanted
    for name, (*_, command) in listed().items():
        assert command.startswith(f"`python -m anysat_jax.main --config=configs/{name}")
        assert ("--config.init=" in command) == (CONFIGS[name].init == ""), name


def is_little(name: str) -> bool:
    return name.partition(":")[2].split(",")[0] in tasks.LITTLE


def test_every_option_of_the_page_is_there():
    config = adaptation.common("", "")
    config.data.datasets.NAME = adaptation.dataset(1)
    known = settings.flatten(config)
    table = PAGE[PAGE.index("| option | default") :].split("\n\n")[0]
    rows = [re.findall(r"`([\w.]+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    assert len(rows) > 20
    for names in rows:
        section = names[0].rpartition(".")[0]
        for name in names:
            assert (f"{section}{name}" if name.startswith(".") else name) in known, name

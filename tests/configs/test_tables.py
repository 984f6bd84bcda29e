"""Every row of the paper's tables has a config, docs/TASKS.md lists them all, and every option of the pages works."""

import pathlib
import re

import pytest

from anysat_jax.configs import evaluate, finetune, pretrain, probe, tasks
from anysat_jax.downstream import config as settings
from anysat_jax.main import check_overrides
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.report.paper import BLOCKS, METRIC_NAMES
from data_pipelines.load import open_datasets, train_iterator

PAGE_FILE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "TASKS.md"
PAGE = PAGE_FILE.read_text(encoding="utf-8")
PAPER = {row.row: (block, row) for block in BLOCKS for row in block.rows if row.row}
NAMES = [
    *((finetune, name) for name in (*finetune.NAMES, *(f"{name},scratch" for name in finetune.NAMES))),
    *((probe, name) for name in (*probe.NAMES, *(f"{name},random" for name in probe.NAMES))),
]
CONFIGS = {
    f"{module.__name__.rpartition('.')[2].removeprefix('configs.')}.py:{name}": module.get_config(name)
    for module, name in NAMES
}


@pytest.fixture(scope="module")
def mini_flair_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


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


OF_A_DATASET = {
    "batch_size": 2,
    "weight": 2.0,
    "patch_sizes": (10, 20),
    "max_dates": 4,
    "temporal_dropout": 0.5,
    "noise": 0.1,
    "max_cloud": None,  # the embedded dataset has no cloud layer
    "date_buckets": (4, 8),
    "extent": 40.0,
    "fraction": 0.1,
    "fraction_seed": 3,
    "augment": False,
    "dates": "day_of_year",
}
OF_ADAPTATIONS = {
    "mode": "last_block",
    "new_sensors": ("s2",),
    "epochs": 9,
    "early_stopping": 3,
    "evaluate.every": 2,
    "task.level": "tile",
    "task.metric": "accuracy",
    "task.sensor": "",
    "task.class_weights": "balanced",
    "task.label_smoothing": 0.1,
    "task.allow_absent_classes": True,
    "head.kind": "mlp",
    "head.input": "mean",
    "head.upsample": "bilinear",
    "head_init": "probe",
    "average_decay": 0.9,
    "evaluate.patch_sizes": (10, 20),
    "evaluate.splits": ("val",),
    "data.datasets.NAME.patch_sizes": (20,),
    "data.datasets.NAME.fraction": 0.1,
    "data.datasets.NAME.fraction_seed": 3,
    "data.datasets.NAME.noise": 0.1,
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip_norm": 1.0,
    "optimizer.schedule": "plateau",
    "optimizer.layer_decay": 0.5,
    "model.input_gain": 0.01,
    "model.drop_path": 0.1,
    "cache.folder": "cache",
    "cache.max_gb": 1.0,
    "cache.pixels_per_tile": 9,
    "knn.neighbours": 5,
    "data.skip_corrupt": True,
    "max_nonfinite_steps": 2,
    "watchdog_seconds": 60.0,
    "profile.steps": (20, 24),
    "seed": 2**32 - 1,
    "dtype": "bfloat16",
    "model.remat": "full",
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
}
JOBS = {"pretrain": pretrain, "finetune": finetune, "probe": probe, "evaluate": evaluate}


def options_of(page: str, header: str) -> list[str]:
    """The options of a table's rows; `.name` continues the section of the name before it."""
    names = []
    for line in page[page.index(header) :].split("\n\n")[0].splitlines()[2:]:
        row = re.findall(r"`([\w.]+)`", line.split("|")[1])
        names += [f"{row[0].rpartition('.')[0]}{name}" if name.startswith(".") else name for name in row]
    return names


def test_every_option_of_the_pages_is_tried():
    assert options_of(PAGE, "| option | default") == list(OF_ADAPTATIONS)
    data = PAGE_FILE.with_name("DATA.md").read_text(encoding="utf-8")
    assert options_of(data, "| field | default | meaning") == list(OF_A_DATASET)


@pytest.mark.parametrize(
    ("job", "name"),
    [
        *((job, f"data.datasets.NAME.{name}") for job in JOBS for name in OF_A_DATASET),
        *((job, name) for job in JOBS if job != "pretrain" for name in OF_ADAPTATIONS),
    ],
)
def test_every_option_works_in_every_job(job, name, mini_flair_root):
    key = name.rpartition(".")[2]
    value = OF_ADAPTATIONS[name] if name in OF_ADAPTATIONS else OF_A_DATASET[key]
    name = name.replace("NAME", "mini_flair")
    config = JOBS[job].get_config("prepared,mini_flair" if job == "pretrain" else "mini_flair")
    config.init = config.init or "none"
    config.data.root = str(mini_flair_root)
    check_overrides([name], config)
    config.update_from_flattened_dict({name: value})
    if job == "pretrain":
        PretrainConfig.read(config)
    else:
        settings.check(config)
    batch = next(train_iterator(open_datasets(config.data), seed=0))
    assert batch.dataset == "mini_flair"


def test_the_options_of_the_data_reach_the_batches(mini_flair_root):
    config = pretrain.get_config("prepared,mini_flair")
    config.data.root = str(mini_flair_root)
    config.data.datasets.mini_flair.update(batch_size=2, fraction=0.1, augment=False)
    few = open_datasets(config.data)["mini_flair"]
    config.data.datasets.mini_flair.noise = 0.5
    noisy = open_datasets(config.data)["mini_flair"]
    assert 0 < len(few.training_tiles) < len(few.records("train")) / 5
    plain, other = (next(train_iterator({"mini_flair": one}, seed=0)) for one in (few, noisy))
    assert set(plain.labels["index"]) <= set(few.training_tiles.tolist())
    difference = plain.observations["s2"].values - other.observations["s2"].values
    assert 0.3 < difference[difference != 0].std() < 0.7

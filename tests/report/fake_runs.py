"""Folders of runs as a fine-tuning or a probe leaves them, made up."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from matplotlib import image

from anysat_jax.downstream.task import METRICS, Task
from anysat_jax.report.maps import Mosaic, Picture
from anysat_jax.report.runs import Run, read_runs
from data_pipelines.card import DatasetCard

CROPS = Task(
    "pastis",
    "PASTIS-HD",
    "dense",
    "class",
    ("meadow", "wheat", "maize"),
    ("#a0db8e", "#c7b12b", "#e0522f"),
    metric="mean_iou",
    metres=10.0,
    sensor="s2",
)
TREES = Task("treesat", "TreeSatAI-TS", "tile", "multi_label", ("oak", "pine"), metric="weighted_f1")
MOISTURE = Task("fuel", "Fuel moisture", "tile", "regression", metric="rmse", unit="percent")
BIOMASS = Task("biomass", "BioMassters", "dense", "regression", metric="rmse", metres=10.0, sensor="s2", unit="t/ha")


def summary(task: Task = CROPS, **changes: Any) -> dict[str, Any]:
    """The content of summary.json."""
    classes = len(task.classes)
    matrices = {
        "class": np.full((classes, classes), 2) + 20 * np.eye(classes, dtype=int),
        "multi_label": np.tile([[30, 5], [4, 11]], (classes, 1, 1)),
        "regression": None,
    }
    confusion = matrices[task.kind]
    scores = {name: 0.5 + 0.05 * i for i, name in enumerate(METRICS[task.kind])}
    return {
        "job": "finetune", "name": "pastis_hd_semseg", "row": "", "mode": "finetune",
        "init": {"source": "/home/somebody/runs/geoplex", "kind": "run", "digest": "ab12"},
        "dataset": task.dataset, "task": dataclasses.asdict(task), "seed": 0, "fraction": 1.0,
        "best": {"epoch": 2, "metric": task.metric, "value": 0.6},
        "scores": {"val": scores, "test": scores},
        "confusion": {"test": None if confusion is None else confusion.tolist()},
        "knn": None,
        "provenance": {"commit": "0123456789abcdef", "dirty": False, "date": "2026-11-22T10:00:00Z", "seconds": 61.4},
        "config": {"seed": 0, "init": "/home/somebody/runs/geoplex", "data": {"root": "/data", "fake_tiles": 0}},
        **changes,
    }  # fmt: skip


def scored(task: Task, **scores: float) -> dict[str, dict[str, float]]:
    """The scores of a summary on the test split, those that are not given 0.5."""
    return {"test": {name: scores.get(name, 0.5) for name in METRICS[task.kind]}}


def write_run(folder: pathlib.Path, content: dict[str, Any], logs: bool = True, panels: bool = True) -> pathlib.Path:
    """A run's folder."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(content))
    task = Task.from_json(content["task"]) if logs or panels else CROPS
    if logs:
        rows = [f"{step},{step // 10},x,10,{3 / (1 + step)},{1e-4 * step},1,5" for step in range(1, 31)]
        header = "step,epoch,dataset,patch_size,loss,learning_rate,grad_norm,tiles_per_second"
        (folder / "metrics.csv").write_text("\n".join([header, *rows]))
        scores = "\n".join(f"{epoch},{10 * epoch},0.7,{value}" for epoch, value in enumerate((0.4, 0.6, 0.55), 1))
        (folder / "evaluation.csv").write_text(f"epoch,step,loss,{task.metric}\n{scores}\n")
    if panels:
        np.savez(folder / "panels.npz", **panel_arrays(task))
    return folder


def panel_arrays(task: Task, tiles: int = 2, side: int = 16) -> dict[str, np.ndarray]:
    """The content of panels.npz."""
    rng = np.random.default_rng(0)
    arrays = {
        "sensors": np.array(["s2", "s1"]),
        "input_0": rng.integers(0, 255, (tiles, side, side, 3), np.uint8),
        "input_1": rng.integers(0, 255, (tiles, side, side, 3), np.uint8),
        "ids": np.array([f"tile_{i}" for i in range(tiles)]),
        "extent": np.float64(10 * side),
    }
    if task.level == "tile":
        texts = np.array([task.classes[i] if task.classes else f"{i} percent" for i in range(tiles)])
        return arrays | {"truth_text": texts, "prediction_text": texts}
    if task.kind == "regression":
        maps = rng.random((2, tiles, side, side), np.float32) * 200
        maps[0, :, :4] = np.nan
    else:
        maps = rng.integers(0, len(task.classes), (2, tiles, side // 4, side // 4)).repeat(4, -1).repeat(4, -2)
        maps[0, :, :3] = -1
        maps = maps.astype(np.int32)
    return arrays | {"truth": maps[0], "prediction": maps[1]}


def run_of(folder: pathlib.Path, content: dict[str, Any], **parts: bool) -> Run:
    """A run as the report reads it."""
    [run], problems = read_runs([write_run(folder / "run", content, **parts)])
    assert not problems
    return run


def has_colour(path: pathlib.Path, colour: str) -> bool:
    """Whether a picture has pixels of a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(image.imread(path)[..., :3] - wanted).max(axis=-1) < 0.02).sum() > 10)


CARD = DatasetCard(
    name="toy",
    title="Toy",
    sensors=("aerial", "s2"),
    extent=40.0,
    patch_sizes=(10, 20),
    splits=("train", "val"),
    dense_label="segmentation",
    dense_classes=("wood", "water", "town"),
    dense_colours=("#0b3d2e", "#2274a5", "#d7263d"),
    natural_colour={"aerial": (0, 1, 2)},
)


def toy_mosaic() -> Mosaic:
    """Two tiles with land cover of two of three classes."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(2):
        features = {name: rng.standard_normal((8, 8, 5)) for name in ("random", "pretrained")}
        maps = {name: rng.integers(-1, 2, (4, 4)) for name in ("random", "pretrained", "label")}
        pictures.append(Picture((40.0, 40.0), rng.random((20, 20, 3)), "aerial", features, maps))
    return Mosaic(CARD, "aerial", pictures)

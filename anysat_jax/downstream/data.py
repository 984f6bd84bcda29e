"""Inputs of a job before its first step: devices, dataset, task, checked labels, and a network with its weights."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int64
from ml_collections import ConfigDict

import data_pipelines.datasets
import data_pipelines.fakes
from anysat_jax.downstream.config import DownstreamConfig, check
from anysat_jax.downstream.network import NetworkConfig, Params, init_head
from anysat_jax.downstream.task import LossConfig, Task, balanced_weights
from anysat_jax.errors import ConfigError
from anysat_jax.train.config import as_json
from anysat_jax.train.distributed import agree
from anysat_jax.train.input import check_same_datasets
from anysat_jax.train.monitor import first_names
from anysat_jax.train.sharding import check_batch_sizes, check_heads, make_mesh
from anysat_jax.weights.load import initial_encoder
from data_pipelines import load
from data_pipelines.fakes import write_fake
from data_pipelines.load import OpenDataset
from data_pipelines.prepare.records import CorruptTileError
from data_pipelines.prepare.report import NO_LABEL, labels_report, read_report
from data_pipelines.prepare.statistics import SplitCounts
from data_pipelines.prepare.storage import MANIFEST_FILE, cache_folder, hold_lock, temporary_name
from data_pipelines.registry import ARCHIVE_NAMES

TRAIN = "train"


def check_labels(
    task: Task, report: Mapping[str, Any], splits: Sequence[str], *, allow_absent_classes: bool = False
) -> tuple[Task, dict[str, Int64[np.ndarray, "K"]]]:
    """Checks that a task can be trained and evaluated on the labels of a dataset.

    Args:
      report: of the dataset's preparation, see `data_pipelines.prepare.report.read_report`.
      splits: that the job reads; "train" is among them if it trains.
      allow_absent_classes: whether another split may have a class that no training tile has.

    Returns:
      The task, of a regression with mean and standard deviation of the training labels as offset and scale; and by
      split the number of tiles or pixels of each class, (K,) int64, of a regression of those with a value, (1,).

    Raises:
      ConfigError: a split is missing, empty or without labels of the task; the labels have other classes than the task;
        or a class of another split is absent from training.
    """
    # From the report of the preparation, before any step: no tile is read.
    counts = {split: _counts(task, report, split) for split in splits}
    if TRAIN not in splits:
        return task, counts
    if task.kind == "regression":
        labels = report["splits"][TRAIN]["labels"][task.level]
        # The network predicts numbers about 0 of deviation 1, whatever the unit; equal labels have no deviation.
        task = dataclasses.replace(task, offset=labels["mean"], scale=labels["std"] if labels["std"] > 0 else 1.0)
    elif not allow_absent_classes:
        for split, found in counts.items():
            unseen = (found > 0) & (counts[TRAIN] == 0)
            if unseen.any():
                absent = [name for name, is_unseen in zip(task.classes, unseen, strict=True) if is_unseen]
                raise ConfigError(
                    f"split {split!r} of dataset {task.dataset!r} has labels of {_some(absent)}, and {TRAIN!r} has "
                    "none, so that no model can learn them; set task.allow_absent_classes to continue nevertheless"
                )
    return task, counts


def _counts(task: Task, report: Mapping[str, Any], split: str) -> Int64[np.ndarray, "K"]:
    """Returns the number of labels of each class in a split."""
    there = report["splits"]
    if split not in there:
        raise ConfigError(f"dataset {task.dataset!r} has no split {split!r}; as prepared it has {', '.join(there)}")
    if not there[split]["examples"]:
        raise ConfigError(
            f"split {split!r} of dataset {task.dataset!r} is empty ({there[split]['skipped']} tiles were skipped when "
            "it was prepared); prepare it from data that has some, or leave the split out"
        )
    labels = there[split]["labels"].get(task.level, {})
    if task.kind == "regression":
        counts = np.array([labels.get("count", 0)], np.int64)
    else:
        names = [name for name in labels if name != NO_LABEL]
        if tuple(names) != task.classes:
            raise ConfigError(
                f"split {split!r} of dataset {task.dataset!r} was prepared with labels of {_some(names)}, and the task "
                f"has {_some(task.classes)}; prepare the dataset again"
            )
        counts = np.array([labels[name] for name in names], np.int64)
    if not counts.any():
        raise ConfigError(
            f"split {split!r} of dataset {task.dataset!r} has no {task.level} label in any of its "
            f"{there[split]['examples']} tiles; leave it out, or choose another task.level"
        )
    return counts


def _some(names: Sequence[str]) -> str:
    return first_names([repr(name) for name in names]) or "no class"


def report_of_fraction(report: dict[str, Any], dataset: OpenDataset) -> dict[str, Any]:
    """Returns a report with the labels of those training tiles only that training uses. Reads these tiles.

    Raises:
      ValueError: a tile cannot be read, and the dataset does not skip corrupt ones.
    """
    # The report counts all tiles: a class that none of the chosen ones has would seem to be there.
    tiles, prepared = dataset.training_tiles, dataset.prepared
    records, counts = prepared.records(TRAIN), SplitCounts.empty(prepared.card)
    for tile in tiles:
        with contextlib.suppress(CorruptTileError) if dataset.skip_corrupt else contextlib.nullcontext():
            counts.update(records[int(tile)])
    labels = {"examples": len(tiles), "labels": labels_report(prepared.card, counts)}
    return {**report, "splits": {**report["splits"], TRAIN: {**report["splits"][TRAIN], **labels}}}


# Packages on whose source code the fake archives depend: they are written again when it changes.
CODE = (data_pipelines.fakes, data_pipelines.datasets)


def make_fake_archive(name: str, tiles: int) -> pathlib.Path:
    """Returns the folder of a fake archive, for `data.root`; writes it into the user's cache unless it is there.

    Raises:
      ConfigError: the dataset has no fake archive.
      ImportError: a package that writes the archive's files is not installed; the message names it.
      OSError: the cache cannot be written.
    """
    if name not in ARCHIVE_NAMES:
        raise ConfigError(
            f"data.fake_tiles = {tiles}: there is no fake archive of {name!r}, only of {', '.join(ARCHIVE_NAMES)}; "
            "set data.fake_tiles = 0 to read data.root"
        )
    base = cache_folder() / "smoke"
    sources = sorted(path for package in CODE for path in pathlib.Path(package.__path__[0]).glob("*.py"))
    # One hash of all of them: which dataset uses which code is not known.
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    folder = base / f"{name}-{tiles}-{digest[:12]}"
    if folder.is_dir():  # renamed to this name, it is whole
        return folder
    temporary = folder.with_name(temporary_name(folder.name))
    with hold_lock(base / f"{name}.lock", f"writing a fake archive of {name}"):
        if not folder.is_dir():  # another process may have written it while this one waited
            try:
                write_fake(name, temporary, tiles)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclasses.dataclass(frozen=True)
class Data:
    """Devices, dataset and task of a job."""

    config: DownstreamConfig  # of the job
    values: dict[str, Any]  # the whole config, JSON values
    mesh: Mesh  # the devices
    dataset: OpenDataset  # with card, options, records and statistics
    task: Task  # of the labels
    counts: dict[str, Int64[np.ndarray, "K"]]  # of the labels by split, see `check_labels`

    @property
    def name(self) -> str:
        return self.task.dataset

    @property
    def patch_sizes(self) -> tuple[float, ...]:
        """Patch sizes of evaluations in metres: the config's, or those of training."""
        return tuple(float(size) for size in self.config.evaluate.patch_sizes or self.dataset.options.patch_sizes)


@dataclasses.dataclass(frozen=True)
class Start:
    """A network before its first step."""

    network: NetworkConfig  # encoder, head and task
    params: Params  # {"encoder", "head"}, float32 numpy arrays
    source: dict[str, Any]  # origin of the weights: {"source", "kind", "digest"}
    mode: str  # which parameters train, or, of a finished network, trained


def open_data(config: ConfigDict, splits: Sequence[str]) -> Data:
    """Checks the config, makes the mesh, and opens the dataset, which is prepared if it is not yet.

    If "train" is among the splits that the job reads, it must have every class of the others.

    Raises:
      ConfigError: a value does not fit the machine or the dataset, or the labels do not fit the task.
    """
    settings, task = check(config)
    # Before the dataset is opened, which may have to be prepared for hours.
    mesh = make_mesh(config.mesh)
    check_batch_sizes(config.data.datasets, mesh)
    config = config.copy_and_resolve_references()  # `_open` sets data.root in this copy
    # A failure in one process is raised in all: the others would wait for its collectives for ever.
    dataset, report = agree(lambda: _open(config))
    check_same_datasets({dataset.name: dataset})
    task, counts = check_labels(task, report, splits, allow_absent_classes=settings.task.allow_absent_classes)
    return Data(settings, as_json(config), mesh, dataset, task, counts)


def _open(config: ConfigDict) -> tuple[OpenDataset, dict[str, Any]]:
    """Opens the dataset and reads the report of its preparation; sets `data.root` if its tiles are fake."""
    try:
        if config.data.fake_tiles:
            (options,) = load.read_options(config.data).values()
            config.data.root = str(make_fake_archive(options.card.name, config.data.fake_tiles))
        (dataset,) = load.open_datasets(config.data).values()
        report = read_report(dataset.prepared.folder)
        if dataset.options.fraction < 1:
            report = report_of_fraction(report, dataset)
    except (ValueError, OSError, ImportError) as error:  # its message is one sentence, for the user
        raise ConfigError(str(error)) from error
    return dataset, report


def start_network(data: Data) -> Start:
    """Returns the encoder that `config.init` names, with a randomly initialised head.

    Raises:
      ConfigError: the weights cannot be read, or do not fit the config, the sensors or the task.
    """
    config = data.config
    initial = initial_encoder(
        config.init,
        dataclasses.asdict(config.model),
        data.dataset.card.sensors,
        new_sensors=config.new_sensors,
        dtype=config.dtype,
        seed=config.seed,
    )
    network = NetworkConfig(initial.model, config.head, data.task)
    # Without "predictor_heads": nothing here has a predictor.
    check_heads(initial.model, data.mesh, ("num_heads",))
    params = {"encoder": initial.params, "head": init_head(network, config.seed)}
    logging.info("%s: weights of %s (%s)", data.task.title, config.init, initial.source["kind"])
    return Start(network, params, initial.source, config.mode)


def loss_config(data: Data) -> LossConfig:
    """Returns class weights and label smoothing; "balanced" counts the labels of the tiles that train."""
    weights = data.config.task.class_weights
    if weights == "balanced":
        weights = balanced_weights(data.counts[TRAIN])
    return LossConfig(None if weights == "none" else tuple(weights), data.config.task.label_smoothing)


def fingerprint(data: Data, start: Start) -> dict[str, Any]:
    """Returns JSON values that must be the same when a run is resumed."""
    model = dataclasses.asdict(start.network.model)
    model.pop("remat")  # changes memory and time, not numbers
    if model["norm_groups"] == "published":
        model.pop("norm_groups")  # absent, too, in runs from before there was a choice
    # The data by their manifest, not by their folder: they may be mounted elsewhere when the run is resumed.
    manifest = hashlib.sha256((data.dataset.prepared.folder / MANIFEST_FILE).read_bytes())
    values = {
        "dataset": {"name": data.name, "digest": manifest.hexdigest()},
        "model": model,
        "head": dataclasses.asdict(start.network.head),
        "task": dataclasses.asdict(data.task),
        "mode": start.mode,
        "weights": start.source["digest"],
    }
    return json.loads(json.dumps(values))  # tuples become lists, as in the checkpoint

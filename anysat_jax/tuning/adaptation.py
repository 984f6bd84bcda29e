"""What a fine-tuning, a probing or an evaluation needs before its first step: devices, data, task, labels, weights."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from anysat_jax.adapt.heads import HeadConfig
from anysat_jax.adapt.losses import LossConfig, balanced_weights
from anysat_jax.adapt.network import NetworkConfig, Params, init_head
from anysat_jax.adapt.tasks import Task
from anysat_jax.train.datasets import agreed
from anysat_jax.train.errors import ConfigError
from anysat_jax.train.initial import initial_encoder
from anysat_jax.train.mesh import check_batch_sizes, check_heads, make_mesh
from anysat_jax.tuning import settings
from anysat_jax.tuning.label_checks import LabelFacts, check_labels
from anysat_jax.tuning.label_share import with_share
from anysat_jax.tuning.smoke_data import make_fake_archive
from data_pipelines import load
from data_pipelines.contents import FILE_NAME as CONTENTS
from data_pipelines.locate import locate
from data_pipelines.options import DatasetOptions, dataset_options, skips_corrupt
from data_pipelines.preparation_report import read_report
from data_pipelines.prepared import PreparedDataset


@dataclasses.dataclass(frozen=True)
class Data:
    """A config's dataset, ready to be read, and what is asked of it.

    Attributes:
      config: the run's, with `data.root` where the data are.
      mesh: the devices.
      prepared: the dataset, with its card, records and statistics.
      options: how its tiles become samples.
      task: what is asked of them.
      facts: of the labels.
    """

    config: ConfigDict
    mesh: Mesh
    prepared: PreparedDataset
    options: DatasetOptions
    task: Task
    facts: LabelFacts

    @property
    def name(self) -> str:
        return self.task.dataset

    @property
    def extent(self) -> float:
        """Side of a sample in metres."""
        return self.options.sampling.extent or self.prepared.card.extent

    @property
    def patch_sizes(self) -> tuple[float, ...]:
        """Of an evaluation, in metres: the config's, or those of training."""
        return tuple(float(size) for size in self.config.evaluate.patch_sizes or self.options.patch_sizes)

    @property
    def digest(self) -> str:
        """Of the list of the prepared dataset's files."""
        return hashlib.sha256((self.prepared.folder / CONTENTS).read_bytes()).hexdigest()

    def tile_ids(self, split: str, positions: Sequence[int]) -> list[str]:
        """Names of tiles by their position in a split."""
        records = self.prepared.records(split)
        return [bytes(records[int(position)]["id"]).decode() for position in positions]


@dataclasses.dataclass(frozen=True)
class Start:
    """A network before its first step.

    Attributes:
      network: encoder, head and task.
      params: {"encoder", "head"}, float32 numpy arrays.
      source: where the weights are from: {"source", "kind", "digest"}.
      mode: what of the network trains, or, of a finished one, trained.
    """

    network: NetworkConfig
    params: Params
    source: dict[str, Any]
    mode: str


def open_data(config: ConfigDict, splits: Sequence[str]) -> Data:
    """Checks the config, takes the devices, and finds or prepares the dataset.

    Args:
      config: the run's.
      splits: those that will be read; with "train" among them, every class that is measured must be there.

    Raises:
      ConfigError: a value does not fit the machine or the dataset, or the labels do not fit the task.
    """
    task = settings.check(config)
    mesh = make_mesh(config.mesh)
    check_batch_sizes(config.data.datasets, mesh)
    config = config.copy_and_resolve_references()
    prepared, report, options = agreed(config, lambda: _prepare(config, task.dataset))
    facts = check_labels(task, report, splits, allow_absent_classes=config.task.allow_absent_classes)
    return Data(config, mesh, prepared, options, facts.task, facts)


def _prepare(config: ConfigDict, dataset: str) -> tuple[PreparedDataset, dict[str, Any], DatasetOptions]:
    """Finds or prepares the dataset; sets `data.root` where its tiles are made up."""
    try:
        if config.data.fake_tiles:
            config.data.root = str(make_fake_archive(dataset, config.data.fake_tiles))
        load.prepare(config.data)
        prepared = locate(dataset, config.data.root)
        report = read_report(prepared.folder)
        (options,) = dataset_options(config.data)
        if options.fraction < 1:
            tiles = load.training_tiles(config.data, dataset)
            report = with_share(report, prepared, tiles, skips_corrupt(config.data))
    except (ValueError, OSError, ImportError) as error:  # the readers say what is wrong, in one sentence
        raise ConfigError(str(error)) from error
    return prepared, report, options


def start_network(data: Data) -> Start:
    """The encoder that `config.init` names, and a fresh head.

    Raises:
      ConfigError: the weights cannot be read, or do not fit the config, the sensors or the task.
    """
    config = data.config
    initial = initial_encoder(config, data.prepared.card.sensors)
    try:
        network = NetworkConfig(initial.model, HeadConfig.from_json(config.head.to_dict()), data.task)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    check_heads(initial.model, data.mesh, ("num_heads",))
    params = {"encoder": initial.params, "head": init_head(network, config.seed)}
    logging.info("%s: weights of %s (%s)", data.task.title, config.init, initial.source["kind"])
    return Start(network, params, initial.source, config.mode)


def loss_config(data: Data) -> LossConfig:
    """Class weights and label smoothing of the config; "balanced" counts the labels of the share that trains."""
    weights = data.config.task.class_weights
    if weights == "none":
        weights = None
    elif weights == "balanced":
        weights = balanced_weights(data.facts.counts["train"])
    return LossConfig(None if weights is None else tuple(weights), data.config.task.label_smoothing)


def band_statistics(prepared: PreparedDataset) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation of each sensor's bands, in native units: what the inputs are standardised with."""
    return {
        name: {"mean": one.mean.tolist(), "std": one.std.tolist()} for name, one in sorted(prepared.statistics.items())
    }


def fingerprint(data: Data, start: Start) -> dict[str, Any]:
    """What must not differ between a start and a resume, JSON values."""
    model = dataclasses.asdict(start.network.model)
    model.pop("remat")  # the same numbers with less memory
    values = {
        "dataset": {"name": data.name, "digest": data.digest},
        "model": model,
        "head": start.network.head.to_json(),
        "task": data.task.to_json(),
        "mode": start.mode,
        "weights": start.source["digest"],
    }
    return json.loads(json.dumps(values))  # tuples become lists, as in the checkpoint

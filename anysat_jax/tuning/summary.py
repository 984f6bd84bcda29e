"""summary.json of a fine-tuning, a probing or an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from anysat_jax.adapt import modes
from anysat_jax.adapt.tally import json_values
from anysat_jax.model.init import count_parameters
from anysat_jax.train import settings
from anysat_jax.train.provenance import provenance
from anysat_jax.tuning.adaptation import Data, Start
from anysat_jax.tuning.evaluating import Evaluation
from anysat_jax.tuning.fit import FitResult
from data_pipelines import load

TRAINING_SPLITS = ("train", "val")


def training_summary(
    data: Data,
    start: Start,
    result: FitResult,
    measured: Mapping[str, Evaluation],
    neighbours: Mapping[str, Any] | None,
    left_out: Mapping[str, Sequence[int]],
    seconds: float,
) -> dict[str, Any]:
    """The summary of a run that has trained.

    Args:
      data, start: what it started from.
      result: what fitting found.
      measured: by split.
      neighbours: scores of the nearest-neighbour probe, None where there was none.
      left_out: as for `common_summary`.
      seconds: this process took; "training" has those of the steps of all processes before it, too.
    """
    config = data.config
    trainable, _ = modes.split(start.params, config.mode, data.prepared.card.sensors, config.new_sensors)
    found = common_summary(data, start, measured, left_out, seconds)
    found["parameters"]["trainable"] = count_parameters(trainable)
    return found | {
        "epochs": result.record["epochs"],
        "steps": result.record["steps"],
        "best": json_values({"epoch": result.best[0], "metric": data.task.metric, "value": result.best[1]}),
        "training": json_values(result.record),
        "knn": json_values(neighbours),
    }


def common_summary(
    data: Data,
    start: Start,
    measured: Mapping[str, Evaluation],
    left_out: Mapping[str, Sequence[int]],
    seconds: float,
) -> dict[str, Any]:
    """What the summaries of all jobs hold; numbers that are not finite are None.

    Args:
      data, start: what was measured.
      measured: by split.
      left_out: positions of the tiles that could not be read and that evaluations or features do without, by split.
      seconds: this process took.
    """
    config, params = data.config, start.params
    counts = {"trainable": 0, "total": count_parameters(params), "head": count_parameters(params["head"])}
    return json_values(
        {
            "job": config.job,
            "name": config.name,
            "row": config.row,
            "mode": start.mode,
            "init": dict(start.source),
            "dataset": data.name,
            "task": start.network.task.to_json(),
            "head": start.network.head.to_json(),
            "patch_sizes": list(data.patch_sizes),
            "parameters": counts,
            "samples": _samples(data, measured),
            "left_out": {split: list(tiles) for split, tiles in left_out.items()},
            "epochs": 0,
            "steps": 0,
            "best": None,
            "scores": {split: {**one.scores, "loss": one.loss} for split, one in measured.items()},
            "per_class": {split: one.per_class for split, one in measured.items()},
            "confusion": {split: one.confusion for split, one in measured.items()},
            "knn": None,
            "fraction": data.options.fraction,
            "seed": config.seed,
            "provenance": provenance(seconds),
            "config": settings.as_json(config),
        }
    )


def _samples(data: Data, measured: Mapping[str, Evaluation]) -> dict[str, int]:
    """How many samples each split had, by split; of training the tiles that were used."""
    found = {split: one.samples for split, one in measured.items()}
    if data.config.job == "evaluate":
        return found
    val = found.get("val", load.num_samples(data.config.data, data.name, "val"))
    return found | {"train": len(load.training_tiles(data.config.data, data.name)), "val": val}

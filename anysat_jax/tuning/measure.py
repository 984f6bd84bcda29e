"""The end of a run: its scores on whole splits, samples to look at, summary.json and the report's pages."""

import pathlib
from typing import Any

import jax
from absl import logging

from anysat_jax.adapt.losses import LossConfig
from anysat_jax.adapt.network import NetworkConfig, Params
from anysat_jax.train.ledger import first_names
from anysat_jax.train.summary import write_json
from anysat_jax.tuning.adaptation import Data
from anysat_jax.tuning.evaluating import Evaluation, evaluate_split
from anysat_jax.tuning.panels import PanelBook, write_panels
from anysat_jax.tuning.vitals import Vitals


def measure(
    data: Data,
    network: NetworkConfig,
    params: Params,
    loss: LossConfig,
    workdir: pathlib.Path,
    vitals: Vitals | None = None,
) -> dict[str, Evaluation]:
    """Evaluates each split of `evaluate.splits`; panels.npz shows samples of the last one."""
    config, found = data.config, {}
    for split in config.evaluate.splits:
        book = PanelBook(network.task, config.evaluate.panels if split == config.evaluate.splits[-1] else 0)
        found[split] = evaluate_split(
            network,
            params,
            config.data,
            split,
            data.patch_sizes,
            config.evaluate.batch_size,
            data.mesh,
            loss=loss,
            watch=book if book.size else None,
            vitals=vitals,
        )
        logging.info("%s: %s", split, in_words(found[split], network.task.metric))
        if book.size and jax.process_index() == 0:
            records = data.prepared.records(split)
            write_panels(workdir, book.arrays(data.prepared.card, records, data.extent))
    return found


def in_words(evaluation: Evaluation, metric: str) -> str:
    """The scores on a line, the task's metric first."""
    names = (metric, *(name for name in evaluation.scores if name not in (metric, "count")))
    shown = ", ".join(f"{name} {evaluation.scores[name]:.4g}" for name in names)
    left_out = f"; tiles that cannot be read: {first_names([*map(str, evaluation.left_out)])}"
    return f"{shown}; {evaluation.samples} tiles{left_out if evaluation.left_out else ''}"


def finish(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    """Writes summary.json and the report, in the first process."""
    if jax.process_index() != 0:
        return
    from anysat_jax.report.results import write_results

    write_json(workdir / "summary.json", summary)
    page = write_results([workdir], workdir / "report")
    logging.info("results: %s", page)

"""The report of a pretraining run: what the frozen features know, next to the same network before any training."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from anysat_jax.adapt.features import make_extractor
from anysat_jax.batch import Batch
from anysat_jax.model.config import ModelConfig
from anysat_jax.report import figures
from anysat_jax.report.evaluation import probe_dataset
from anysat_jax.report.page import write_page
from anysat_jax.report.pictures import Picture
from anysat_jax.report.plan import Plan, make_plan
from anysat_jax.report.samples import Networks
from anysat_jax.report.settings import EvaluateSettings
from anysat_jax.report.tables import Score, score_tree, task_means, text_table
from data_pipelines import load

STAGES = ("training tiles", "held-out tiles")


@dataclasses.dataclass
class Findings:
    """What the probes found.

    Attributes:
      scores: of every dataset that was probed.
      pictures: held-out tiles by dataset.
    """

    scores: list[Score] = dataclasses.field(default_factory=list)
    pictures: list[tuple[Plan, list[Picture]]] = dataclasses.field(default_factory=list)


def report_pretraining(
    config: ConfigDict, workdir: pathlib.Path, pretrained_params: Any, random_params: Any
) -> dict[str, Any]:
    """Probes frozen features, prints a table, and writes figures and a page to `<workdir>/report`.

    A dataset that cannot be probed (no labels, nothing held out) is passed over with a word about why.

    Args:
      config: the run's config; `config.evaluate` says what to probe.
      workdir: the run's folder; the curves come from its metrics.csv.
      pretrained_params: parameters of the pretrained encoder (the teacher).
      random_params: parameters of the same encoder at its random start.

    Returns:
      {"probe": {"tile": {"random", "pretrained"}, "dense": {...}, "datasets": ...}}: means over the datasets of each
      task's headline score in [0, 1], None where no dataset has the task; then every score.

    Raises:
      ValueError: a value of `config.evaluate` is out of range.
    """
    settings = EvaluateSettings.from_section(config.evaluate)
    networks = {"random": jax.device_put(random_params), "pretrained": jax.device_put(pretrained_params)}
    findings = probe_all(config, settings, networks) if settings.probe else Findings()
    if findings.scores:
        print(f"\nLinear probes of frozen features, on held-out tiles\n{text_table(findings.scores)}\n", flush=True)
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{config.name or 'run'}, {config.total_steps} steps, seed {config.seed}"
    written = figures.draw_all(folder, name, workdir / "metrics.csv", findings.scores, findings.pictures)
    page = write_page(folder, name, findings.scores, written)
    logging.info("report: %s, with %d figures beside it", page, len(written))
    return {"probe": {**task_means(findings.scores), "datasets": score_tree(findings.scores)}}


def probe_all(config: ConfigDict, settings: EvaluateSettings, networks: Networks) -> Findings:
    """Probes each dataset in turn, with a progress bar."""
    names = settings.datasets or tuple(sorted(config.data.datasets))
    findings = Findings()
    with tqdm(total=len(names) * len(STAGES), desc="probes", unit="stage", dynamic_ncols=True) as bar:
        for done, name in enumerate(names, start=1):
            try:
                _probe_one(config, settings, networks, name, findings, bar)
            except (ValueError, OSError) as error:
                logging.warning("no probe of %s: %s", name, error)
            bar.update(done * len(STAGES) - bar.n)
    return findings


def _probe_one(
    config: ConfigDict, settings: EvaluateSettings, networks: Networks, name: str, findings: Findings, bar: tqdm
) -> None:
    plan = make_plan(load.dataset_card(name, config.data.root))
    if not plan.tasks:
        raise ValueError("it has no labels that a linear probe could learn")
    patch_size = settings.patch_size or _smallest_patch(config, plan)
    stages = iter(STAGES)

    def batches(split: str) -> Iterator[Batch]:
        tiles = load.evaluation_batches(config.data, name, split, patch_size=patch_size, batch_size=settings.batch_size)
        return _shown(tiles, bar, f"{plan.card.title}: {next(stages)}")

    model = ModelConfig.from_section(config.model.to_dict(), dtype=config.dtype)
    extract = make_extractor(model, plan.sensors)
    scores, pictures = probe_dataset(plan, batches, extract, networks, settings, config.seed)
    findings.scores.extend(scores)
    if pictures:
        findings.pictures.append((plan, pictures))


def _smallest_patch(config: ConfigDict, plan: Plan) -> float:
    """The smallest patch that the run trains with, or else that the dataset allows, in metres."""
    section = config.data.datasets.get(plan.card.name, {})
    return min(section.get("patch_sizes") or plan.card.patch_sizes)


def _shown(batches: Iterable[Batch], bar: tqdm, stage: str) -> Iterator[Batch]:
    """The batches, with the stage and the number of tiles so far on the bar."""
    bar.set_description(stage)
    tiles = 0
    for batch in batches:
        yield batch
        tiles += batch.batch_size
        bar.set_postfix_str(f"{tiles} tiles")
    bar.update()

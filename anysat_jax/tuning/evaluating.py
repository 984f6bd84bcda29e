"""A network on a whole split: every sample once, several patch sizes at once if wanted, counts summed over everything.

Counts are summed over batches, devices and processes, so that scores do not depend on how a split was cut.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped
from ml_collections import ConfigDict
from tqdm import tqdm

from anysat_jax.adapt import tally
from anysat_jax.adapt.labels import known_labels
from anysat_jax.adapt.losses import LossConfig, task_loss
from anysat_jax.adapt.network import NetworkConfig, Params, apply_network
from anysat_jax.adapt.tally import Tally, TallySum
from anysat_jax.adapt.tasks import Task
from anysat_jax.batch import Batch
from anysat_jax.train.compiled import Compiled
from anysat_jax.train.feed import until_end
from anysat_jax.train.log import QUIET_SECONDS
from anysat_jax.train.mesh import batch_sharding, put_batch, replicated
from anysat_jax.train.share import batch_share, put_params
from anysat_jax.tuning.vitals import Vitals
from data_pipelines import load
from data_pipelines.options import check_patch_size

Watch = Callable[[Batch, Float[np.ndarray, "B ..."]], None]
"""Is shown each batch of this process, on the host, with the logits of its samples."""

Judged = tuple[Float[Array, "B ..."], Tally, Float[Array, "3"], Int[Array, "B"] | None]
"""Logits, counts, [sum of the samples' losses, samples that have a label, samples], and the label "skipped"."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation has found.

    Attributes:
      scores: by name, as `adapt.tally.scores` gives them; nan where nothing can be said.
      per_class: by score, then by class.
      confusion: (K, K), truth in the rows, or (K, 2, 2) for a multi-label task; None for a regression.
      loss: mean over the samples that have a label, each sample's own mean counting once; nan without any.
      samples: how many there were: tiles, or windows of them.
      left_out: positions in the split of the tiles that could not be read, and that nothing here rests on.
    """

    scores: dict[str, float]
    per_class: dict[str, dict[str, float]]
    confusion: Int[np.ndarray, "..."] | None
    loss: float
    samples: int
    left_out: tuple[int, ...] = ()

    @property
    def of_metrics(self) -> dict[str, float]:
        """The scores and the loss, without the count."""
        return {name: value for name, value in self.scores.items() if name != "count"} | {"loss": self.loss}


class Totals:
    """Sums over the batches of an evaluation."""

    def __init__(self, task: Task) -> None:
        self._task, self._counts, self._sums = task, TallySum(task), np.zeros(3)
        self._left_out: set[int] = set()

    def add(self, counts: Tally, sums: Float[Array, "3"], skipped: Int[Array, "B"] | None = None) -> int:
        """Adds a batch, with its label "skipped" where it has one; returns how many samples it had."""
        self._counts.add(jax.device_get(counts))
        new = np.asarray(sums, np.float64)
        self._left_out.update(skipped_tiles(skipped))
        self._sums += new
        return int(new[2])

    def result(self) -> Evaluation:
        """What the sums say."""
        loss, labelled, samples = self._sums
        return Evaluation(
            scores=tally.scores(self._task, self._counts),
            per_class=tally.per_class(self._task, self._counts),
            confusion=tally.confusion(self._task, self._counts),
            loss=float(loss / labelled) if labelled else float("nan"),
            samples=int(samples),
            left_out=tuple(sorted(self._left_out)),
        )


def skipped_tiles(skipped: Int[Array, "B"] | None) -> list[int]:
    """The tile of each sample that was left out, of a batch's label "skipped"; None: nothing is ever left out."""
    if skipped is None:
        return []
    tiles = np.asarray(skipped)
    return tiles[tiles >= 0].tolist()


def evaluate_split(
    network: NetworkConfig,
    params: Params,
    data: ConfigDict,
    split: str,
    patch_sizes: Sequence[float],
    batch_size: int,
    mesh: Mesh,
    *,
    loss: LossConfig | None = None,
    watch: Watch | None = None,
    leave: bool = True,
    vitals: Vitals | None = None,
) -> Evaluation:
    """Scores of a network on a split, with a progress bar.

    With `data.skip_corrupt`, tiles that cannot be read are left out: every other sample counts once.

    Args:
      network: what is evaluated; its task names the dataset.
      params: {"encoder", "head"}, on the mesh or on the host.
      data: the config's section `data`.
      split: name of the split.
      patch_sizes: in metres; of several, the mean of the logits answers.
      batch_size: samples of a batch over all processes; rounded up to a multiple of the mesh's devices.
      mesh: where to compute.
      loss: class weights and smoothing of the loss; None: without.
      watch: is shown what was predicted.
      leave: whether the progress bar stays.
      vitals: of the job.

    Raises:
      ValueError, OSError: the split is unknown, a patch size does not fit, or the data cannot be had.
      DataError: a tile cannot be read.
    """
    vitals = vitals or Vitals()
    params = put_params(params, mesh)
    judge = _program(network, tuple(patch_sizes), loss or LossConfig(), mesh)
    totals = Totals(network.task)
    batches = split_batches(data, network.task.dataset, split, patch_sizes, batch_size, mesh)
    total = load.num_samples(data, network.task.dataset, split)
    with (
        sample_bar(f"{network.task.title}: {split}", total, leave) as bar,
        vitals.passing("evaluating", split, total, judge) as passing,
    ):
        for batch, (logits, *judged) in one_ahead(
            passing.timed(batches), lambda batch: judge(params, put_batch(only_labels(batch, network.task), mesh))
        ):
            samples = totals.add(*judged)
            bar.update(samples)
            passing.done(samples)
            if watch is not None:
                watch(batch, local_rows(logits))
    found = totals.result()
    vitals.leave_out(split, found.left_out)
    return found


def split_batches(
    data: ConfigDict,
    dataset: str,
    split: str,
    patch_sizes: Sequence[float],
    batch_size: int,
    mesh: Mesh,
    **chosen: Any,
) -> Iterator[Batch]:
    """This process' share of a split's batches, cut by the first of the patch sizes; every size is checked.

    Args: as `evaluate_split`; `chosen` goes to `load.evaluation_batches`.

    Raises:
      ValueError, OSError: at once, as `evaluate_split`.
      DataError: by the iterator: a tile cannot be read.
    """
    card = load.dataset_card(dataset, data.root)
    for size in patch_sizes:
        check_patch_size(card, size, data.datasets[dataset].get("extent"))
    batches = load.evaluation_batches(
        data,
        dataset,
        split,
        patch_size=patch_sizes[0],
        batch_size=whole_batch(batch_size, mesh),
        share=batch_share(mesh),
        **chosen,
    )
    return until_end(batches)


def whole_batch(batch_size: int, mesh: Mesh) -> int:
    """A batch size, rounded up to a multiple of the mesh's devices."""
    return -(-batch_size // mesh.size) * mesh.size


def sample_bar(title: str, total: int, leave: bool = True) -> tqdm:
    """A progress bar over samples, with their rate; only the first process shows it."""
    interval = 0.5 if sys.stderr.isatty() else QUIET_SECONDS
    hidden = jax.process_index() != 0
    look = dict(mininterval=interval, dynamic_ncols=True, disable=hidden, leave=leave)
    return tqdm(total=total, desc=title, unit="tile", **look)


def one_ahead(items: Iterator[Any], compute: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Each item with what it is computed to; the next one is computing while the caller looks at the last."""
    pending: list[tuple[Any, Any]] = []
    for item in items:
        pending.append((item, compute(item)))
        if len(pending) > 1:
            yield pending.pop(0)
    yield from pending


def only_labels(batch: Batch, task: Task) -> Batch:
    """The batch with those labels only that the devices need."""
    wanted = (task.level, "valid", "skipped")
    return batch.replace(labels={name: batch.labels[name] for name in wanted if name in batch.labels})


def local_rows(array: Shaped[jax.Array, "B ..."]) -> Shaped[np.ndarray, "b ..."]:
    """This process' rows of an array that is cut over all devices."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}  # some may be repeated
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


@functools.lru_cache(maxsize=8)
def _program(network: NetworkConfig, patch_sizes: tuple[float, ...], loss: LossConfig, mesh: Mesh) -> Compiled:
    """(params, batch) -> `Judged`: one program for all patch sizes, the same one for every evaluation of a run."""

    def judge(params: Params, batch: Batch) -> Judged:
        answers = [apply_network(network, params, batch.replace(patch_size=float(size))) for size in patch_sizes]
        logits = sum(answers) / len(answers)
        # Processes know which of their own tiles were skipped: through here, all know of all.
        return logits, *judge_logits(network.task, loss, logits, batch.labels), batch.labels.get("skipped")

    same = replicated(mesh)
    return Compiled(judge, out_shardings=(batch_sharding(mesh), same, same, same))


def judge_logits(
    task: Task, loss: LossConfig, logits: Float[Array, "B ..."], labels: dict[str, Array]
) -> tuple[Tally, Float[Array, "3"]]:
    """Counts of a batch, and [sum of the samples' losses, samples that have a label, samples]. Traceable."""
    truth, valid = labels[task.level], labels["valid"]
    _, losses = task_loss(task, loss, logits, truth, valid)
    labelled = known_labels(task, truth, valid).reshape(len(valid), -1).any(axis=1)
    sums = jnp.stack([jnp.where(labelled, losses, 0.0).sum(), labelled.sum(), valid.sum()])
    return tally.tally_batch(task, logits, truth, valid), sums

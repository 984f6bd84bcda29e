"""One run of a preparation: what is there is taken up, missing shards are written, and the whole is published."""

import contextlib
import errno
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_pipelines import card_json, contents, preparation_report
from data_pipelines.card import DatasetCard, Reader
from data_pipelines.features import example_spec
from data_pipelines.output import Output
from data_pipelines.parts import Part, Whole
from data_pipelines.plan import FILE_NAME, Plan, Shard, make_plan, num_bytes, probe_positions
from data_pipelines.pool import WorkerDiedError, write_shards
from data_pipelines.prepared import save_lengths
from data_pipelines.progress import ProgressBar
from data_pipelines.shards import BadTileError, read_tile, write_shard
from data_pipelines.statistics import SPLIT, save_statistics
from data_pipelines.tfds_metadata import write_metadata

Say = Callable[[str], None]

SMALLEST_SHARE = 0.5  # of the expected size, which few tiles tell: with less space the disk is sure to run full
USUAL_DATES = 32  # of a series, to guess a tile's size where none could be read


class Preparation:
    """Makes a whole dataset of whatever is there; to be called under the output's lock."""

    def __init__(
        self,
        reader: Reader,
        keys: Mapping[str, Sequence[str]],
        facts: Mapping[str, Any],
        output: Output,
        *,
        workers: int,
        skip_bad: bool,
        say: Say,
    ) -> None:
        """Args:
        reader: of the raw data.
        keys: of the tiles to write, by split.
        facts: all that decides what is written.
        output: gets the files.
        workers: processes; 0: this one.
        skip_bad: leaves out tiles that cannot be read, and records them.
        say: is told what happens.
        """
        self.reader, self.keys, self.facts, self.output = reader, keys, facts, output
        self.workers, self.skip_bad, self.say = workers, skip_bad, say

    def __call__(self) -> None:
        """Runs.

        Raises:
          OSError, ValueError: as `prepare_dataset`.
        """
        plan = self._take_up() or self._start()
        shards = plan.shards()
        missing = self._missing(shards)
        if len(missing) < len(shards):
            self.say(f"{self.reader.card.name}: {len(shards) - len(missing)} of {len(shards)} shards are there already")
        self._check_space(plan, missing)
        with self._advice(shards):
            self._write(missing)
        self._finish(plan)

    def _take_up(self) -> Plan | None:
        """The plan of the run that left its shards here; None where there was none, or one of something else."""
        content = self.output.read_part(FILE_NAME)
        if content is None:
            return None
        try:
            left = Plan.from_json(content)
        except ValueError:
            return None
        if left.facts == self.facts:
            return left
        others = ", ".join(sorted(key for key in self.facts if left.facts[key] != self.facts[key]))
        self.say(f"{self.output.target}: an unfinished run differs in {others}; its shards are not used")
        return None

    def _start(self) -> Plan:
        if self.output.is_whole():
            self.say(f"{self.output.target} holds only the first tiles of each split and will be replaced")
        self.output.start_anew()
        plan = make_plan(self.facts, self._tile_bytes())
        self.output.put_part(FILE_NAME, plan.to_json().encode())
        return plan

    def _tile_bytes(self) -> int:
        """The mean size of a few tiles; where none can be read, what the card lets expect."""
        sizes = []
        keys = self.keys[SPLIT]
        for position in probe_positions(len(keys)):
            try:
                with self._advice([]):
                    sizes.append(num_bytes(read_tile(self.reader, SPLIT, keys[position])))
            except ValueError:
                if not self.skip_bad:
                    raise
        return sum(sizes) // len(sizes) if sizes else _usual_bytes(self.reader.card)

    def _missing(self, shards: Sequence[Shard]) -> list[Shard]:
        sizes = self.output.sizes()
        return [shard for shard in shards if not self._is_written(shard, sizes.get(shard.file_name))]

    def _is_written(self, shard: Shard, size: int | None) -> bool:
        """Whether a shard is there, whole, and without gaps that this run may be able to fill."""
        content = None if size is None else self.output.read_part(shard.part_name)
        if content is None:
            return False
        try:
            part = Part.from_bytes(self.reader.card, shard.split, content)
        except ValueError:
            return False
        has_gaps = bool(part.skipped) and (not self.skip_bad or not part.examples)
        return part.file_bytes == size and not has_gaps

    def _check_space(self, plan: Plan, missing: Sequence[Shard]) -> None:
        remaining = sum(shard.stop - shard.start for shard in missing) * plan.tile_bytes
        free = self.output.free_bytes()
        needed = SMALLEST_SHARE * (remaining if isinstance(self.output.target, pathlib.Path) else 0)
        if free < needed:
            message = f"{free / 1e9:.2f} GB are free, what is missing takes about {remaining / 1e9:.2f} GB"
            raise OSError(errno.ENOSPC, message)

    def _write(self, missing: Sequence[Shard]) -> None:
        name, total = self.reader.card.name, sum(map(len, self.keys.values()))
        done = total - sum(shard.stop - shard.start for shard in missing)
        with ProgressBar(f"preparing {name}", total, done) as bar:
            common: dict[str, Any] = dict(skip_bad=self.skip_bad, progress=bar)
            if self.workers and missing:
                write_shards(self.reader, missing, self.keys, self.output, workers=self.workers, **common)
                return
            for shard in missing:
                keys = self.keys[shard.split][shard.start : shard.stop]
                write_shard(self.reader, shard, keys, self.output, **common)

    @contextlib.contextmanager
    def _advice(self, shards: Sequence[Shard]) -> Iterator[None]:
        """Says how to go on after a bad tile or a dead worker."""
        try:
            yield
        except BadTileError as error:
            kept = self._kept(shards)
            how = "mend or fetch the file and start again, or leave such tiles out: --skip-bad (skip_bad=True)"
            raise ValueError(f"{error}. {kept}; {how}") from error
        except WorkerDiedError as error:
            how = "start again, with fewer workers if memory ran out"
            raise WorkerDiedError(f"dataset {self.reader.card.name!r}: {error}. {self._kept(shards)}; {how}") from error

    def _kept(self, shards: Sequence[Shard]) -> str:
        return f"{len(shards) - len(self._missing(shards))} finished shards are kept"

    def _finish(self, plan: Plan) -> None:
        """Merges the parts in the order of the shards, adds what describes the whole, and publishes it."""
        whole = Whole(self.reader.card, self._parts(plan))
        self._check_examples(whole)
        report = preparation_report.make_report(self.reader.card, plan, whole)
        folder = self.output.scratch / "description"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _describe(folder, self.reader.card, plan, whole, report)
        sizes = self.output.sizes()
        shards = {shard.file_name: sizes[shard.file_name] for shard in plan.shards()}
        (folder / contents.FILE_NAME).write_text(contents.contents_json(shards, folder), encoding="utf-8")
        self.output.publish(folder)
        self.say(preparation_report.report_text(report))

    def _parts(self, plan: Plan) -> Iterator[Part]:
        for shard in plan.shards():
            yield Part.from_bytes(self.reader.card, shard.split, self.output.read_part(shard.part_name) or b"")

    def _check_examples(self, whole: Whole) -> None:
        for split, lengths in whole.shard_lengths.items():
            if not sum(lengths):
                reasons = "; ".join(dict.fromkeys(one.reason for one in whole.skipped if one.split == split))[:500]
                raise ValueError(
                    f"dataset {self.reader.card.name!r}: not one tile of split {split!r} could be read ({reasons}); "
                    "check the source"
                )


def _describe(folder: pathlib.Path, card: DatasetCard, plan: Plan, whole: Whole, report: dict[str, Any]) -> None:
    """Writes the files that stand beside the shards."""
    write_metadata(folder, card, plan.facts["version"], whole.shard_lengths, whole.record_bytes, plan.limit)
    save_statistics(folder, card.name, whole.statistics.result())
    save_lengths(folder, whole.lengths)
    texts = {
        card_json.FILE_NAME: card_json.to_json(card),
        FILE_NAME: plan.to_json(),
        preparation_report.FILE_NAME: preparation_report.report_json(report),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _usual_bytes(card: DatasetCard) -> int:
    arrays = example_spec(card).values()
    return sum(math.prod(USUAL_DATES if n is None else n for n in shape) * dtype.itemsize for shape, dtype in arrays)

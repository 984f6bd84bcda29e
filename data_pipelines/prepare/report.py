"""Counts of shards and splits, and the report of a preparation: `report.json` in the prepared folder, and its text."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, Self

import msgspec
import numpy as np
from jaxtyping import Int32, Int64
from tabulate import tabulate

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.prepare.plan import Plan
from data_pipelines.prepare.statistics import RunningMoments, RunningStatistics, array_to_list, list_to_array
from data_pipelines.windows import in_list

REPORT_FILE = "report.json"
CLOUDY = 50  # percent from which a pixel counts as cloudy
NO_LABEL = "(no label)"
BARS = 8  # of a histogram of dates
BAR_WIDTH = 30
SHOWN_SKIPPED = 5
SHOWN_CLASSES = 20  # the most frequent
SHOWN_EMPTY = 5


@dataclasses.dataclass
class SensorCounts:
    """Counts of one sensor.

    Attributes:
      missing: tiles without it.
      pixels, invalid: values of its masks, and how many of them are False.
      seen, cloudy: values of its cloud layers, and how many of them are at least CLOUDY percent.
    """

    missing: int = 0
    pixels: int = 0
    invalid: int = 0
    seen: int = 0
    cloudy: int = 0

    def update(self, name: str, example: Example) -> None:
        """Adds a complete example."""
        if not example.get(f"{name}_present", True):
            self.missing += 1
            return
        if (mask := example.get(f"{name}_mask")) is not None:
            self.pixels += mask.size
            self.invalid += int(mask.size - np.count_nonzero(mask))
        if (cloud := example.get(f"{name}_cloud")) is not None:
            self.seen += cloud.size
            self.cloudy += int(np.count_nonzero(cloud >= CLOUDY))

    def merge(self, other: Self) -> None:
        """Adds other counts, in place."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass
class SplitSummary:
    """Counts of the sensors and labels of a split, or of a part of one.

    Attributes:
      sensors: counts of each sensor.
      classes: for each class label, tiles ("tile") or pixels ("dense") of each class and, last, without a label.
      numbers: for each regression label, moments of its values.
    """

    sensors: dict[str, SensorCounts]
    classes: dict[str, Int64[np.ndarray, "counts"]]
    numbers: dict[str, RunningMoments]

    @classmethod
    def empty(cls, card: DatasetCard) -> "SplitSummary":
        """Returns the summary of no tile."""
        summary = cls({name: SensorCounts() for name in card.sensors}, {}, {})
        for key, kind, names in (
            ("tile", card.tile_label, card.tile_classes),
            ("dense", card.dense_label, card.dense_classes),
        ):
            if kind == "regression":
                summary.numbers[key] = RunningMoments.empty(1)
            elif kind != "none":
                summary.classes[key] = np.zeros(len(names) + 1, np.int64)
        return summary

    def update(self, example: Example) -> None:
        """Adds a complete example."""
        for name, one in self.sensors.items():
            one.update(name, example)
        for key, counts in self.classes.items():
            counts += _class_counts(np.asarray(example[key]), len(counts) - 1, multi_hot=key == "tile")
        for key, moments in self.numbers.items():
            values = np.asarray(example[key]).ravel()
            moments.merge(RunningMoments.of([values[np.isfinite(values)]]))

    def merge(self, other: Self) -> None:
        """Adds another part of the split, in place."""
        for name, one in self.sensors.items():
            one.merge(other.sensors[name])
        for key, counts in self.classes.items():
            counts += other.classes[key]
        for key, moments in self.numbers.items():
            moments.merge(other.numbers[key])


def _class_counts(label: np.ndarray, num_classes: int, *, multi_hot: bool) -> Int64[np.ndarray, "K+1"]:
    """Counts each class and, last, pixels without a label or tiles without any class."""
    if multi_hot and label.ndim == 1:
        return np.append(label.astype(np.int64), int(not label.any()))
    numbers = label.astype(np.int64).ravel()
    known = np.where((numbers >= 0) & (numbers < num_classes), numbers, num_classes)
    return np.bincount(known, minlength=num_classes + 1)


Lengths = dict[str, Int32[np.ndarray, "N"]]
"""Number of dates of each series of each tile; 0 where the tile lacks the sensor."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A tile that was left out, and the reason."""

    split: str
    tile: str
    reason: str


@dataclasses.dataclass
class ShardStats:
    """Everything that is kept of a shard's examples beside its records.

    Attributes:
      split: the shard's split.
      statistics: moments of each sensor's bands.
      summary: counts for the report.
      lengths: number of dates of each series of each tile.
      examples: tiles written.
      skipped: tiles left out.
      record_bytes: size of the records.
      file_bytes: size of the shard's file.
    """

    split: str
    statistics: RunningStatistics
    summary: SplitSummary
    lengths: dict[str, list[int]]
    examples: int = 0
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    record_bytes: int = 0
    file_bytes: int = 0

    @classmethod
    def empty(cls, card: DatasetCard, split: str) -> "ShardStats":
        """Returns the statistics of a shard without examples."""
        lengths: dict[str, list[int]] = {name: [] for name in card.sensors if get_sensor(name).has_dates}
        return cls(split, RunningStatistics.empty(card), SplitSummary.empty(card), lengths)

    def update(self, example: Example, record_bytes: int) -> None:
        """Adds a complete, checked example and the size of its records."""
        self.examples += 1
        self.record_bytes += record_bytes
        self.summary.update(example)
        for name, counts in self.lengths.items():
            counts.append(len(example[name]))
        self.statistics.update(self.split, example)

    def to_json(self) -> bytes:
        """Encodes the statistics; floats keep every bit."""
        return msgspec.json.encode(self, enc_hook=array_to_list)

    @classmethod
    def from_json(cls, content: bytes) -> "ShardStats":
        """Decodes the bytes of `to_json`.

        Raises:
          ValueError: the content is something else.
        """
        return msgspec.json.decode(content, type=cls, dec_hook=list_to_array)


class DatasetStats:
    """The statistics of all shards of a dataset, merged in their order.

    Attributes:
      statistics: moments of each sensor's bands.
      summaries: counts of each split.
      lengths: number of dates of each series of each tile, by split.
      shard_lengths: examples of each shard, by split.
      record_bytes, file_bytes: sizes, by split.
      skipped: tiles left out.
    """

    def __init__(self, card: DatasetCard, shards: Iterable[ShardStats]) -> None:
        self.statistics = RunningStatistics.empty(card)
        self.summaries: dict[str, SplitSummary] = {}
        self.shard_lengths: dict[str, list[int]] = {}
        self.record_bytes: dict[str, int] = {}
        self.file_bytes: dict[str, int] = {}
        self.skipped: list[Skipped] = []
        lengths: dict[str, dict[str, list[int]]] = {}
        for one in shards:
            self.statistics.merge(one.statistics)
            self.summaries.setdefault(one.split, SplitSummary.empty(card)).merge(one.summary)
            self.shard_lengths.setdefault(one.split, []).append(one.examples)
            self.record_bytes[one.split] = self.record_bytes.get(one.split, 0) + one.record_bytes
            self.file_bytes[one.split] = self.file_bytes.get(one.split, 0) + one.file_bytes
            self.skipped += one.skipped
            for name, counts in one.lengths.items():
                lengths.setdefault(one.split, {}).setdefault(name, []).extend(counts)
        self.lengths: dict[str, Lengths] = {
            split: {name: np.asarray(counts, np.int32) for name, counts in lengths.get(split, {}).items()}
            for split in self.summaries
        }


def make_report(card: DatasetCard, plan: Plan, stats: DatasetStats) -> dict[str, Any]:
    """Returns the content of `report.json`, plain numbers and strings."""
    return {
        "dataset": card.name,
        "title": card.title,
        "version": plan.facts.version,
        "source": plan.facts.source,
        "limit": plan.limit,
        "cloudy_percent": CLOUDY,
        "splits": {split: _split_report(card, split, stats) for split in stats.summaries},
        "sensors": {name: _sensor_report(name, stats) for name in card.sensors},
        "skipped": [dataclasses.asdict(one) for one in stats.skipped],
    }


def report_json(report: dict[str, Any]) -> str:
    """Returns the text of `report.json`."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the report of a prepared folder.

    Raises:
      FileNotFoundError: the folder has no report.
      ValueError: the report is not JSON.
    """
    path = folder / REPORT_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; delete {folder} and prepare the dataset again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a report ({error}); delete {folder} and prepare the dataset again") from error


def _split_report(card: DatasetCard, split: str, stats: DatasetStats) -> dict[str, Any]:
    return {
        "examples": sum(stats.shard_lengths[split]),
        "skipped": sum(one.split == split for one in stats.skipped),
        "shards": len(stats.shard_lengths[split]),
        "megabytes": round(stats.file_bytes[split] / 1e6, 3),
        "labels": labels_report(card, stats.summaries[split]),
    }


def labels_report(card: DatasetCard, summary: SplitSummary) -> dict[str, Any]:
    """Returns a report's facts about the labels of a split, or of a part of one.

    Returns:
      For each label: of classes, the count of each by name; of a regression, its count, unit and moments.
    """
    report: dict[str, Any] = {}
    for key, counts in summary.classes.items():
        names = (*(card.tile_classes if key == "tile" else card.dense_classes), NO_LABEL)
        report[key] = dict(zip(names, counts.tolist(), strict=True))
    for key, moments in summary.numbers.items():
        one = {"count": int(moments.count[0]), "unit": card.label_unit}
        if one["count"]:
            fields = {"mean": moments.mean, "std": moments.std, "min": moments.minimum, "max": moments.maximum}
            one |= {field: float(array[0]) for field, array in fields.items()}
        report[key] = one
    return report


def _sensor_report(name: str, stats: DatasetStats) -> dict[str, Any]:
    total = SensorCounts()
    for summary in stats.summaries.values():
        total.merge(summary.sensors[name])
    report: dict[str, Any] = {"missing": total.missing}
    if total.pixels:
        report["invalid_share"] = total.invalid / total.pixels
    if total.seen:
        report["cloudy_share"] = total.cloudy / total.seen
    lengths = [by_sensor[name] for by_sensor in stats.lengths.values() if name in by_sensor]
    if lengths:
        counts = np.concatenate(lengths)
        report["dates"] = _dates_report(counts[counts > 0])
    return report


def _dates_report(counts: Int32[np.ndarray, "N"]) -> dict[str, Any]:
    """Returns the range, mean and histogram, rows of [fewest, most, tiles], of the numbers of dates."""
    if not counts.size:
        return {"least": 0, "most": 0, "mean": 0.0, "histogram": []}
    least, most = int(counts.min()), int(counts.max())
    width = -(-(most - least + 1) // BARS)
    starts = range(least, most + 1, width)
    histogram = [[at, min(at + width - 1, most), int(((counts >= at) & (counts < at + width)).sum())] for at in starts]
    return {"least": least, "most": most, "mean": round(float(counts.mean()), 3), "histogram": histogram}


def report_text(report: dict[str, Any]) -> str:
    """Returns the report as Markdown, for a terminal."""
    origin = f" from {report['source']}" if report["source"] else ""
    blocks = [f"{report['title']} ({report['dataset']}) {report['version']}{origin}"]
    if report["limit"] is not None:
        tiles = "1 tile" if report["limit"] == 1 else f"{report['limit']:,} tiles"
        blocks.append(f"ONLY the first {tiles} of each split")
    splits, sensors = report["splits"], report["sensors"]
    rows = [
        [split, f"{one['examples']:,}", f"{one['skipped']:,}", one["shards"], f"{one['megabytes']:,.1f}"]
        for split, one in splits.items()
    ]
    blocks.append(_table(rows, ["split", "tiles", "skipped", "files", "MB"]))
    labels = [(split, key, facts) for split, one in splits.items() for key, facts in one["labels"].items()]
    blocks.append("\n".join(f"- {split}, {key}: {_label_text(facts)}" for split, key, facts in labels))
    headers = ["sensor", "dates", "mean", "missing", "masked", f"cloudy (from {report['cloudy_percent']} %)"]
    blocks.append(_table([_sensor_row(name, one) for name, one in sensors.items()], headers))
    for name, one in sensors.items():
        if len(histogram := one.get("dates", {}).get("histogram", [])) > 1:
            blocks.append("\n".join([f"Tiles by their dates of {name}:", *_bars(histogram)]))
    if skipped := report["skipped"]:
        shown = [f"- {one['split']} {one['tile']}: {one['reason']}" for one in skipped[:SHOWN_SKIPPED]]
        rest = len(skipped) - SHOWN_SKIPPED
        more = [f"- and {rest:,} more, in {REPORT_FILE}"] if rest > 0 else []
        blocks.append("\n".join([f"Skipped tiles ({len(skipped):,}):", *shown, *more]))
    return "\n\n".join(block for block in blocks if block)


def _table(rows: list[list[Any]], headers: list[str]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def _label_text(counts: dict[str, Any]) -> str:
    if isinstance(counts.get("unit"), str):  # a regression's; a class of that name would have a count
        if not counts["count"]:
            return "no value"
        spread = f"mean {counts['mean']:.4g}, std {counts['std']:.4g}, {counts['min']:.4g} to {counts['max']:.4g}"
        return f"{counts['count']:,} values in {counts['unit']}: {spread}"
    found = sorted(((count, name) for name, count in counts.items() if count), key=lambda one: -one[0])
    shown = [f"{in_list(name)} {count:,}" for count, name in found[:SHOWN_CLASSES]]
    more = [f"and {len(found) - SHOWN_CLASSES} more"] if len(found) > SHOWN_CLASSES else []
    empty = [in_list(name) for name, count in counts.items() if not count and name != NO_LABEL]
    none = f"; none of {', '.join(empty[:SHOWN_EMPTY])}" if empty else ""
    rest = f" and {len(empty) - SHOWN_EMPTY} more" if len(empty) > SHOWN_EMPTY else ""
    return ", ".join(shown + more) + none + rest


def _sensor_row(name: str, one: dict[str, Any]) -> list[str]:
    dates, mean = "", ""
    if "dates" in one:
        least, most = one["dates"]["least"], one["dates"]["most"]
        dates, mean = f"{least} to {most}" if least < most else str(most), f"{one['dates']['mean']:.1f}"
    masked = f"{one['invalid_share']:.2%}" if "invalid_share" in one else ""
    cloudy = f"{one['cloudy_share']:.1%}" if "cloudy_share" in one else ""
    return [name, dates, mean, f"{one['missing']:,}", masked, cloudy]


def _bars(histogram: list[list[int]]) -> Iterator[str]:
    largest = max(count for _, _, count in histogram)
    for first, last, count in histogram:
        label = f"{first}" if first == last else f"{first} to {last}"
        bar = "#" * -(-BAR_WIDTH * count // largest)
        yield f"{label:>12} {bar:<{BAR_WIDTH}} {count:,}"

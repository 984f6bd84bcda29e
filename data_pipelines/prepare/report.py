"""The report at the end of a preparation: `report.json` in the prepared folder, and the same as text."""

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from jaxtyping import Int32, Int64

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, Example
from data_pipelines.prepare.plan import Plan
from data_pipelines.prepare.statistics import DatasetStatistics, Moments
from data_pipelines.windows import in_list

CLOUDY = 50  # percent; from there on a pixel counts as cloudy
NO_LABEL = "(no label)"


@dataclasses.dataclass
class SensorTally:
    """Counts of one sensor.

    Attributes:
      missing: tiles that lack it.
      pixels, invalid: values of its masks, and how many of them are False.
      seen, cloudy: values of its cloud layers, and how many of them are CLOUDY percent or more.
    """

    missing: int = 0
    pixels: int = 0
    invalid: int = 0
    seen: int = 0
    cloudy: int = 0

    def update(self, name: str, example: Example) -> None:
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
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Tally:
    """Counts of sensors and labels, of one shard or of a whole split.

    Attributes:
      sensors: counts of each sensor.
      classes: for each class label, tiles ("tile") or pixels ("dense") of each class, and last those without a label.
      numbers: for each regression label, moments of its values.
    """

    def __init__(self, card: DatasetCard) -> None:
        self.sensors = {name: SensorTally() for name in card.sensors}
        self.classes: dict[str, Int64[np.ndarray, "K+1"]] = {}
        self.numbers: dict[str, Moments] = {}
        for key, kind, names in _labels(card):
            if kind == "regression":
                self.numbers[key] = Moments.empty(1)
            elif kind != "none":
                self.classes[key] = np.zeros(len(names) + 1, np.int64)

    def update(self, example: Example) -> None:
        """Counts a complete example."""
        for name, one in self.sensors.items():
            one.update(name, example)
        for key, counts in self.classes.items():
            counts += _class_counts(np.asarray(example[key]), len(counts) - 1, multi_hot=key == "tile")
        for key, moments in self.numbers.items():
            values = np.asarray(example[key]).ravel()
            moments.merge(Moments.of([values[np.isfinite(values)]]))

    def merge(self, other: Self) -> None:
        """Adds another part's counts."""
        for name, one in self.sensors.items():
            one.merge(other.sensors[name])
        for key, counts in self.classes.items():
            counts += other.classes[key]
        for key, moments in self.numbers.items():
            moments.merge(other.numbers[key])

    def to_json(self) -> dict[str, Any]:
        """Plain numbers that `from_json` takes; floats keep every bit."""
        numbers = {k: {f: a.tolist() for f, a in dataclasses.asdict(m).items()} for k, m in self.numbers.items()}
        return {
            "sensors": {name: dataclasses.asdict(one) for name, one in self.sensors.items()},
            "classes": {key: counts.tolist() for key, counts in self.classes.items()},
            "numbers": numbers,
        }

    @classmethod
    def from_json(cls, card: DatasetCard, content: dict[str, Any]) -> "Tally":
        """The tally of `to_json`."""
        tally = cls(card)
        tally.sensors = {name: SensorTally(**content["sensors"][name]) for name in tally.sensors}
        tally.classes = {key: np.asarray(content["classes"][key], np.int64) for key in tally.classes}
        for key in tally.numbers:
            fields = content["numbers"][key]
            tally.numbers[key] = Moments(
                **{f: np.asarray(v, np.int64 if f == "count" else np.float64) for f, v in fields.items()}
            )
        return tally


def _labels(card: DatasetCard) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    return ("tile", card.tile_label, card.tile_classes), ("dense", card.dense_label, card.dense_classes)


def _class_counts(label: np.ndarray, num_classes: int, *, multi_hot: bool) -> Int64[np.ndarray, "K+1"]:
    """Counts of classes and, last, of what is none: pixels without a label, or a tile without any class."""
    if multi_hot and label.ndim == 1:
        return np.append(label.astype(np.int64), int(not label.any()))
    numbers = label.astype(np.int64).ravel()
    known = np.where((numbers >= 0) & (numbers < num_classes), numbers, num_classes)
    return np.bincount(known, minlength=num_classes + 1)


Lengths = dict[str, Int32[np.ndarray, "N"]]
"""Dates of each series of each tile; 0 where the tile lacks it."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A tile that was left out, and why."""

    split: str
    tile: str
    reason: str


class Part:
    """Gathers what is to be known of a shard while its examples pass by.

    Attributes:
      split: the shard's split.
      statistics: of each sensor's bands.
      tally: counts for the report.
      lengths: dates of each series of each tile.
      skipped: tiles that were left out.
      record_bytes: of the records.
      file_bytes: of the shard's file.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.split = split
        self.tally = Tally(card)
        self.statistics = DatasetStatistics(card)
        self._lengths: dict[str, list[int]] = {s: [] for s in card.sensors if get_sensor(s).has_dates}
        self.examples = 0
        self.skipped: list[Skipped] = []
        self.record_bytes = 0
        self.file_bytes = 0

    @property
    def lengths(self) -> Lengths:
        return {name: np.asarray(counts, np.int32) for name, counts in self._lengths.items()}

    def update(self, example: Example, record_bytes: int) -> None:
        """Adds a complete, checked example."""
        self.examples += 1
        self.record_bytes += record_bytes
        self.tally.update(example)
        for name, counts in self._lengths.items():
            counts.append(len(example[name]))
        self.statistics.update(self.split, example)

    def to_bytes(self) -> bytes:
        """A `.npz` file; the same part always gives the same bytes."""
        facts = {
            "examples": self.examples,
            "record_bytes": self.record_bytes,
            "file_bytes": self.file_bytes,
            "skipped": [dataclasses.asdict(one) for one in self.skipped],
            "tally": self.tally.to_json(),
        }
        arrays = {f"lengths/{name}": counts for name, counts in self.lengths.items()}
        arrays |= {f"statistics/{key}": array for key, array in self.statistics.state().items()}
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, facts=text, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, card: DatasetCard, split: str, content: bytes) -> "Part":
        """The part of `to_bytes`.

        Raises:
          ValueError: it is something else.
        """
        part = cls(card, split)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            part._restore(card, json.loads(arrays["facts"].tobytes()), arrays)
        except Exception as error:  # what a damaged zip file raises is not documented
            raise ValueError(f"it is no record of a finished shard ({type(error).__name__}: {error})") from error
        return part

    def _restore(self, card: DatasetCard, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.examples, self.record_bytes, self.file_bytes = (
            int(facts[key]) for key in ("examples", "record_bytes", "file_bytes")
        )
        self.skipped = [Skipped(**one) for one in facts["skipped"]]
        self.tally = Tally.from_json(card, facts["tally"])
        self._lengths = {name: arrays[f"lengths/{name}"].tolist() for name in self._lengths}
        prefix = "statistics/"
        state = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        self.statistics = DatasetStatistics.restore(card, state)


class Whole:
    """All parts of a dataset, merged in the order of the shards.

    Attributes:
      statistics: of each sensor's bands.
      tallies: counts of each split.
      lengths: dates of each series of each tile, by split.
      shard_lengths: examples of each shard, by split.
      record_bytes, file_bytes: of each split.
      skipped: tiles that were left out.
    """

    def __init__(self, card: DatasetCard, parts: Iterator[Part]) -> None:
        self.statistics = DatasetStatistics(card)
        self.tallies: dict[str, Tally] = {}
        self.shard_lengths: dict[str, list[int]] = {}
        self.record_bytes: dict[str, int] = {}
        self.file_bytes: dict[str, int] = {}
        self.skipped: list[Skipped] = []
        self._lengths: dict[str, list[Lengths]] = {}
        for part in parts:
            self._add(card, part)

    def _add(self, card: DatasetCard, part: Part) -> None:
        split = part.split
        self.tallies.setdefault(split, Tally(card)).merge(part.tally)
        self.shard_lengths.setdefault(split, []).append(part.examples)
        self.record_bytes[split] = self.record_bytes.get(split, 0) + part.record_bytes
        self.file_bytes[split] = self.file_bytes.get(split, 0) + part.file_bytes
        self.skipped += part.skipped
        self._lengths.setdefault(split, []).append(part.lengths)
        self.statistics.merge(part.statistics)

    @property
    def lengths(self) -> dict[str, Lengths]:
        return {
            split: {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
            for split, parts in self._lengths.items()
        }


FILE_NAME = "report.json"
BARS = 8  # of a histogram of dates
BAR_WIDTH = 30
SHOWN_SKIPPED = 5
SHOWN_CLASSES = 20  # the most frequent
SHOWN_EMPTY = 5


def make_report(card: DatasetCard, plan: Plan, whole: Whole) -> dict[str, Any]:
    """All that is known of a preparation, as plain numbers and words."""
    tallies = list(whole.tallies.values())
    return {
        "dataset": card.name,
        "title": card.title,
        "version": plan.facts["version"],
        "source": plan.facts["source"],
        "limit": plan.limit,
        "cloudy_percent": CLOUDY,
        "splits": {split: _split_report(card, split, whole) for split in whole.tallies},
        "sensors": {name: _sensor_report(name, tallies, whole) for name in card.sensors},
        "skipped": [{"split": one.split, "tile": one.tile, "reason": one.reason} for one in whole.skipped],
    }


def report_json(report: dict[str, Any]) -> str:
    """The text of `report.json`."""
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(folder: pathlib.Path) -> dict[str, Any]:
    """The report of a prepared folder.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is no JSON.
    """
    path = folder / FILE_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; delete {folder} and prepare the dataset again") from None
    except ValueError as error:
        raise ValueError(f"{path} is no report ({error}); delete {folder} and prepare the dataset again") from error


def _split_report(card: DatasetCard, split: str, whole: Whole) -> dict[str, Any]:
    tally = whole.tallies[split]
    return {
        "examples": sum(whole.shard_lengths[split]),
        "skipped": sum(one.split == split for one in whole.skipped),
        "shards": len(whole.shard_lengths[split]),
        "megabytes": round(whole.file_bytes[split] / 1e6, 3),
        "labels": labels_report(card, tally),
    }


def labels_report(card: DatasetCard, tally: Tally) -> dict[str, Any]:
    """What a report tells of the labels of a split, or of some of its tiles: counts of classes, moments of numbers."""
    report: dict[str, Any] = {}
    for key, counts in tally.classes.items():
        names = (*(card.tile_classes if key == "tile" else card.dense_classes), NO_LABEL)
        report[key] = dict(zip(names, counts.tolist(), strict=True))
    for key, moments in tally.numbers.items():
        one = {"count": int(moments.count[0]), "unit": card.label_unit}
        if one["count"]:
            fields = {"mean": moments.mean, "std": moments.std, "min": moments.minimum, "max": moments.maximum}
            one |= {field: float(array[0]) for field, array in fields.items()}
        report[key] = one
    return report


def _sensor_report(name: str, tallies: list[Tally], whole: Whole) -> dict[str, Any]:
    total = SensorTally()
    for tally in tallies:
        total.merge(tally.sensors[name])
    report: dict[str, Any] = {"missing": total.missing}
    if total.pixels:
        report["invalid_share"] = total.invalid / total.pixels
    if total.seen:
        report["cloudy_share"] = total.cloudy / total.seen
    lengths = [by_sensor[name] for by_sensor in whole.lengths.values() if name in by_sensor]
    if lengths:
        counts = np.concatenate(lengths)
        report["dates"] = _dates_report(counts[counts > 0])
    return report


def _dates_report(counts: Int32[np.ndarray, "N"]) -> dict[str, Any]:
    """Numbers of dates of the tiles that have any, with a histogram of [fewest, most, tiles]."""
    if not counts.size:
        return {"least": 0, "most": 0, "mean": 0.0, "histogram": []}
    least, most = int(counts.min()), int(counts.max())
    width = -(-(most - least + 1) // BARS)
    starts = range(least, most + 1, width)
    histogram = [[at, min(at + width - 1, most), int(((counts >= at) & (counts < at + width)).sum())] for at in starts]
    return {"least": least, "most": most, "mean": round(float(counts.mean()), 3), "histogram": histogram}


def report_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [f"{report['title']} ({report['dataset']}) {report['version']}" + _of(report["source"])]
    if report["limit"] is not None:
        lines.append(f"  ONLY the first {_count(report['limit'], 'tile')} of each split")
    for split, one in report["splits"].items():
        lines += _split_lines(split, one)
    for name, one in report["sensors"].items():
        lines += _sensor_lines(name, one, report["cloudy_percent"])
    return "\n".join([*lines, *_skipped_lines(report["skipped"])])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _of(source: str) -> str:
    return f" from {source}" if source else ""


def _split_lines(split: str, one: dict[str, Any]) -> Iterator[str]:
    skipped = f", {one['skipped']:,} skipped" if one["skipped"] else ""
    size = f"{one['megabytes']:,.1f} MB in {_count(one['shards'], 'file')}"
    yield f"  {split}: {_count(one['examples'], 'example')}{skipped}, {size}"
    for key, counts in one["labels"].items():
        yield f"    {key}: {_label_text(counts)}"


def _label_text(counts: dict[str, Any]) -> str:
    if isinstance(counts.get("unit"), str):  # of a regression; a class of that name would have a count
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


def _sensor_lines(name: str, one: dict[str, Any], cloudy: int) -> Iterator[str]:
    facts = [f"missing in {_count(one['missing'], 'tile')}"] if one["missing"] else []
    if "invalid_share" in one:
        facts.append(f"{one['invalid_share']:.2%} of the values masked")
    if "cloudy_share" in one:
        facts.append(f"{one['cloudy_share']:.1%} of the pixels cloudy ({cloudy} % or more)")
    if "dates" in one:
        dates = one["dates"]
        spread = f"{dates['least']} to {dates['most']} dates, {dates['mean']:.1f} on average"
        facts.insert(0, spread if dates["least"] < dates["most"] else _count(dates["most"], "date"))
    yield f"  {name}: {'; '.join(facts) or 'in every tile'}"
    histogram = one.get("dates", {}).get("histogram", [])
    if len(histogram) > 1:
        yield from _bars(histogram)


def _bars(histogram: list[list[int]]) -> Iterator[str]:
    """A bar for each range of dates."""
    largest = max(count for _, _, count in histogram)
    for first, last, count in histogram:
        label = f"{first}" if first == last else f"{first} to {last}"
        bar = "#" * -(-BAR_WIDTH * count // largest)
        yield f"    {label:>12} {bar:<{BAR_WIDTH}} {count:,}"


def _skipped_lines(skipped: list[dict[str, str]]) -> Iterator[str]:
    if skipped:
        yield f"  skipped {_count(len(skipped), 'tile')}:"
    for one in skipped[:SHOWN_SKIPPED]:
        yield f"    {one['split']} {one['tile']}: {one['reason']}"
    if len(skipped) > SHOWN_SKIPPED:
        yield f"    and {len(skipped) - SHOWN_SKIPPED:,} more, in {FILE_NAME}"

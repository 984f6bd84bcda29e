"""The report at the end of a preparation: `report.json` in the prepared folder, and the same as text."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from data_pipelines.card import DatasetCard
from data_pipelines.labels import in_list
from data_pipelines.parts import Whole
from data_pipelines.plan import Plan
from data_pipelines.tally import CLOUDY, NO_LABEL, SensorTally, Tally

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

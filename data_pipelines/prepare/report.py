"""The report of a preparation: `report.json` in the prepared folder, and the same as Markdown."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from anysat_jax.sensors import get_sensor
from data_pipelines.card import DatasetCard, decode_json
from data_pipelines.prepare.leaks import find_leaks
from data_pipelines.prepare.plan import Plan
from data_pipelines.prepare.statistics import CLOUDY, SPLIT, SensorCounts, ShardStats, SplitCounts, merge
from data_pipelines.windows import in_list

REPORT_FILE = "report.json"
NO_LABEL = "(no label)"
BARS = 8  # of a histogram of dates
BAR_WIDTH = 30
SHOWN = 5  # of skipped tiles, leaks, and classes without a pixel
SHOWN_CLASSES = 20  # the most frequent


def make_report(card: DatasetCard, plan: Plan, splits: Mapping[str, ShardStats]) -> dict[str, Any]:
    """Returns the content of `report.json`, plain numbers and strings, from the merged statistics of each split."""
    return {
        "dataset": card.name,
        "title": card.title,
        "version": plan.facts.version,
        "source": plan.facts.source,
        "limit": plan.facts.limit,
        "cloudy_percent": CLOUDY,
        "splits": {
            split: {
                "examples": one.examples,
                "skipped": len(one.skipped),
                "shards": len(plan.starts[split]) - 1,
                "megabytes": round(one.file_bytes / 1e6, 3),
                "labels": labels_report(card, one.counts),
            }
            for split, one in splits.items()
        },
        "sensors": {name: _sensor_report(name, splits) for name in card.sensors},
        "leaks": [leak._asdict() for leak in find_leaks(SPLIT, {s: one.footprints for s, one in splits.items()})],
        "skipped": [dataclasses.asdict(tile) for one in splits.values() for tile in one.skipped],
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
        return decode_json(path.read_bytes(), dict[str, Any])
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path}; delete {folder} and prepare the dataset again") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a report ({error}); delete {folder} and prepare the dataset again") from error


def labels_report(card: DatasetCard, split: SplitCounts) -> dict[str, Any]:
    """Returns a report's facts about the labels of a split, or of a part of one, for each label.

    They are, of classes, the count of each by name; of a regression, its count, unit and moments.
    """
    report: dict[str, Any] = {}
    for key, counts in split.classes.items():
        names = (*(card.tile_classes if key == "tile" else card.dense_classes), NO_LABEL)
        report[key] = dict(zip(names, counts.tolist(), strict=True))
    for key, moments in split.numbers.items():
        one = {"count": int(moments.count[0]), "unit": card.label_unit}
        if one["count"]:
            fields = {"mean": moments.mean, "std": moments.std, "min": moments.minimum, "max": moments.maximum}
            one |= {field: float(array[0]) for field, array in fields.items()}
        report[key] = one
    return report


def _sensor_report(name: str, splits: Mapping[str, ShardStats]) -> dict[str, Any]:
    total = functools.reduce(merge, (one.counts.sensors[name] for one in splits.values()), SensorCounts())
    report: dict[str, Any] = {"missing": total.missing}
    if total.pixels:
        report["invalid_share"] = total.invalid / total.pixels
    if total.seen:
        report["cloudy_share"] = total.cloudy / total.seen
    report["values"] = _values_report(name, total, splits)
    if not any(name in one.lengths for one in splits.values()):
        return report
    counts = np.concatenate([np.asarray(one.lengths[name], np.int32) for one in splits.values()])
    # 0 stands for a tile without the sensor.
    counts = counts[counts > 0]
    least, most = (int(counts.min()), int(counts.max())) if counts.size else (0, 0)
    width = -(-(most - least + 1) // BARS)
    starts = range(least, most + 1, width) if counts.size else ()
    report["dates"] = {
        "empty": total.empty,
        "least": least,
        "most": most,
        "mean": round(float(counts.mean()), 3) if counts.size else 0.0,
        # Rows of [fewest dates, most dates, tiles].
        "histogram": [
            [at, min(at + width - 1, most), int(((counts >= at) & (counts < at + width)).sum())] for at in starts
        ],
    }
    return report


def _values_report(name: str, total: SensorCounts, splits: Mapping[str, ShardStats]) -> dict[str, Any]:
    """Returns the extremes of a sensor's values, ratios left out, and the most frequent value with its fraction."""
    bands = [number for number, band in enumerate(get_sensor(name).bands) if "/" not in band]
    moments = [one.moments[name] for one in splits.values()]
    pairs = [(np.append(one.minimum[bands], one.maximum[bands])) for one in moments]
    found = [value for value in np.concatenate(pairs).tolist() if value == value]  # NaN of bands without values
    report: dict[str, Any] = {"smallest": min(found), "largest": max(found)} if found else {}
    counts: collections.Counter[float] = collections.Counter()
    for value, count in total.frequent:
        counts[value] += count
    if counts:
        value, count = max(counts.items(), key=lambda one: (one[1], one[0]))
        report |= {"most_frequent": value, "most_frequent_share": count / total.sampled}
    return report


def _values_text(name: str, one: dict[str, Any]) -> str:
    """Returns a line on a sensor's values; "" of one without values, and of reports of earlier releases."""
    if "smallest" not in (values := one.get("values", {})):
        return ""
    text = f"- {name}: values from {values['smallest']:.6g} to {values['largest']:.6g}"
    if "most_frequent" in values:
        text += f", of which {values['most_frequent']:.6g} makes up {values['most_frequent_share']:.1%}"
    empty = one.get("dates", {}).get("empty", 0)
    return text + (f"; {empty:,} dates without data are left out" if empty else "")


def leaks_text(report: dict[str, Any]) -> str:
    """Returns the tiles of held-out splits that are in the training split, too; "" without any."""
    if not (leaks := report.get("leaks")):
        return ""
    shown = [f"{one['tile']} of {one['split']} and {one['train']} of train ({one['reason']})" for one in leaks]
    more = f", and {len(leaks) - SHOWN:,} more, in {REPORT_FILE}" if len(leaks) > SHOWN else ""
    return f"LEAKS: {len(leaks):,} held-out tiles are in train, too: {', '.join(shown[:SHOWN])}{more}"


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
    blocks.append("\n".join(line for name, one in sensors.items() if (line := _values_text(name, one))))
    for name, one in sensors.items():
        if len(histogram := one.get("dates", {}).get("histogram", [])) > 1:
            blocks.append("\n".join([f"Tiles by their dates of {name}:", *_bars(histogram)]))
    if leaks := leaks_text(report):
        blocks.append(leaks)
    if skipped := report["skipped"]:
        shown = [f"- {one['split']} {one['tile']}: {one['reason']}" for one in skipped[:SHOWN]]
        rest = len(skipped) - SHOWN
        more = [f"- and {rest:,} more, in {REPORT_FILE}"] if rest > 0 else []
        blocks.append("\n".join([f"Skipped tiles ({len(skipped):,}):", *shown, *more]))
    return "\n\n".join(block for block in blocks if block)


def _table(rows: list[list[Any]], headers: list[str]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def _label_text(counts: dict[str, Any]) -> str:
    # Of a regression: a class of that name would have a count.
    if isinstance(counts.get("unit"), str):
        if not counts["count"]:
            return "no value"
        spread = f"mean {counts['mean']:.4g}, std {counts['std']:.4g}, {counts['min']:.4g} to {counts['max']:.4g}"
        return f"{counts['count']:,} values in {counts['unit']}: {spread}"
    found = sorted(((count, name) for name, count in counts.items() if count), key=lambda one: -one[0])
    shown = [f"{in_list(name)} {count:,}" for count, name in found[:SHOWN_CLASSES]]
    more = [f"and {len(found) - SHOWN_CLASSES} more"] if len(found) > SHOWN_CLASSES else []
    empty = [in_list(name) for name, count in counts.items() if not count and name != NO_LABEL]
    none = f"; none of {', '.join(empty[:SHOWN])}" if empty else ""
    rest = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
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
        label, bar = f"{first}" if first == last else f"{first} to {last}", "#" * -(-BAR_WIDTH * count // largest)
        yield f"{label:>12} {bar:<{BAR_WIDTH}} {count:,}"

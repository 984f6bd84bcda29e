"""Descriptions of weights, printed, and as the model card that `anysat export` writes beside a file.

python -m anysat_jax.describe WEIGHTS        (anysat describe WEIGHTS)

WEIGHTS is a workdir, a .safetensors or .pth file, or hf:ORGANISATION/NAME[@REVISION][/FILE], as for --config.init. What
is printed: sizes, sensors, parameters of each part, statistics, scores, origin and checksums, of which weights may lack
some.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
from tabulate import tabulate

from anysat_jax.model.init import count_parameters
from anysat_jax.sensors import SENSORS, get_sensor
from anysat_jax.train.workdir import end_soon_on_interrupt, run_command
from anysat_jax.weights.exported import Exported, checksum
from anysat_jax.weights.hub import locate, pinned
from anysat_jax.weights.load import exported_file, load_weights
from data_pipelines.prepare.storage import write_whole

CARD = "README.md"
_CARD = """---
library_name: anysat-jax
license: other
license_name: not-chosen
pipeline_tag: image-feature-extraction
tags:
{tags}
---
{mark}

# {title}

Weights of [AnySat](https://arxiv.org/abs/2412.14123) in JAX: {what}.
The licence is not chosen yet: name one above that the licences of the training data allow.

```python
import anysat_jax

model = anysat_jax.AnySat.from_pretrained("{file}")  # or "hf:ORGANISATION/NAME", when it is on the Hub
```

{sections}
"""


def describe(source: str | os.PathLike[str]) -> str:
    """Returns a description of weights in Markdown.

    Raises:
      RunError, ValueError, ImportError, OSError: as `load_weights`.
    """
    path = locate(source)
    content, kind = load_weights(path)
    sums = [("parameters of the encoder (SHA-256)", checksum(content.encoder_params))]
    if (file := exported_file(path) or path).is_file():
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        sums.append((f"file of {file.stat().st_size:,} bytes (SHA-256)", digest))
    names = {"run": "a run", "export": "an exported file", "published": "a published checkpoint"}
    title = f"{pinned(source, path)}: weights of {names[kind]}, {summarise(content)}"
    checksums = f"## Checksums\n\n{_table(('of', 'value'), sums)}"
    return "\n\n".join([title, sections(content, read_summary(path)), checksums])


def summarise(content: Exported) -> str:
    """Returns what weights hold, in a line."""
    count, sensors = count_parameters(content.encoder_params), ", ".join(content.model.sensors)
    student = f"; of the student {', '.join(sorted(content.student))}" if content.student else ""
    head = f"; a head for {content.head.task['title']}" if content.head else ""
    return f"an encoder of {count:,} parameters for {sensors}{student}{head}"


def read_summary(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a run's summary.json; nothing where there is none that can be read."""
    try:
        found = json.loads((path / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sections(content: Exported, summary: Mapping[str, Any]) -> str:
    """Returns sizes, sensors, parameters, statistics, scores and origin of weights in Markdown.

    Args:
      summary: see `read_summary`.
    """
    model = dataclasses.asdict(content.model)
    records = [get_sensor(name) for name in model.pop("sensors")]
    sensors = [(one.name, one.kind, " ".join(one.bands), one.metres_per_pixel) for one in records]
    parts = content.encoder_params | {f"student's {name}": one for name, one in (content.student or {}).items()}
    parts |= {"head": content.head.params} if content.head else {}
    parameters = [(name.replace("_", " ", 1), f"{count_parameters(one):,}") for name, one in sorted(parts.items())]
    statistics = [
        (name, band, f"{mean:.6g}", f"{std:.6g}")
        for name, one in sorted(content.statistics.items())  # of a sensor, or of SENSOR@DATASET
        if (sensor := SENSORS.get(name.partition("@")[0]))
        for band, mean, std in zip(sensor.bands, one["mean"], one["std"], strict=True)
    ]
    task = content.head.task if content.head else {}
    scores = {"scores": summary.get("scores") or {}, "probe": summary.get("probe") or {}}
    blocks = {
        "Model": (("", ""), _flat(model)),
        "Task": (("", ""), _flat(task)),
        "Sensors": (("sensor", "kind", "bands", "metres per pixel"), sensors),
        "Parameters": (("part", "parameters"), parameters),
        "Statistics of the inputs": (("sensor", "band", "mean", "standard deviation"), statistics),
        "Scores": (("", ""), _flat(scores)),
        "Origin": (("", ""), _flat(content.source | {"provenance": summary.get("provenance") or {}})),
    }
    return "\n\n".join(f"## {title}\n\n{_table(*block)}" for title, block in blocks.items() if block[1])


def _flat(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the values of nested dicts by their joined names, without those that are None."""
    flat = flax.traverse_util.flatten_dict(dict(tree), sep=" ")
    return [(name, f"{one:.4g}" if isinstance(one, float) else one) for name, one in flat.items() if one is not None]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    return tabulate(cells, columns, tablefmt="github", disable_numparse=True)


def write_card(path: pathlib.Path, content: Exported, summary: Mapping[str, Any]) -> pathlib.Path | None:
    """Writes README.md, with the metadata that the Hugging Face Hub reads, beside an exported file.

    Returns:
      Its path; None where a README.md is left as it is, since it is not the card of this file.

    Raises:
      OSError: it cannot be written.
    """
    card, mark = path.with_name(CARD), f"<!-- Card of {path.name}, written by anysat export. -->"
    if card.exists() and mark not in card.read_text(encoding="utf-8", errors="replace"):
        return None
    tags = ("anysat", "earth-observation", "remote-sensing", "jax", *content.model.sensors)
    text = _CARD.format(
        tags="\n".join(f"- {json.dumps(tag)}" for tag in tags),
        mark=mark,
        title=content.head.task["title"] if content.head else path.stem,
        what=summarise(content),
        file=path.name,
        sections=sections(content, summary),
    )
    write_whole(card, text.encode())
    return card


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m anysat_jax.describe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="WEIGHTS")
    options = parser.parse_args(argv)
    return run_command(lambda: describe(options.source), "anysat_jax.describe")


if __name__ == "__main__":
    end_soon_on_interrupt()
    sys.exit(main(sys.argv[1:]))

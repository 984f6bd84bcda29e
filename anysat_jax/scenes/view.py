"""A page to look at outputs of a scene: side by side, moved together, and searched for places like one that is clicked.

python -m anysat_jax.scenes.view OUTPUT [OUTPUT ...] [--out PAGE.html]

OUTPUT is an embedding, class map, probabilities or map of numbers that `anysat embed` or `anysat predict` wrote; the
picture of the input beside the first, NAME_input.tif, comes along by itself. The page is one file, by default beside
the first output, that loads nothing else: it opens without a server or a network, and can be sent.
"""

import argparse
import base64
import dataclasses
import gzip
import io
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Shaped, UInt8

from anysat_jax.errors import complain, reason
from anysat_jax.scenes.looking import (
    Components,
    Frame,
    Layer,
    Output,
    component_layer,
    frame_for_all,
    input_beside,
    open_output,
    overlap,
    read_components,
    read_layers,
)
from data_pipelines.plots.tile import COLOURS_OF_NUMBERS
from data_pipelines.prepare.storage import write_whole

PROGRAM = "anysat view"
MOST_PIXELS = 2**20
TEMPLATE = pathlib.Path(__file__).with_name("view.html")
MARK = '<meta name="generator" content="anysat view">'  # of a page that may be replaced
MOST_BANDS = 32  # of probabilities on a page
SIGNIFICANT = 65_534  # steps of numbers on the page
STOPS = 9  # colours of a colour bar


@dataclasses.dataclass(frozen=True)
class Panel:
    """An output on the page."""

    output: Output
    layers: Sequence[Layer]

    @property
    def title(self) -> str:
        return "Input" if self.output.path.stem.endswith("_input") else self.output.path.stem

    @property
    def detail(self) -> str:
        """The meaning of the colours, in words."""
        output = self.output
        return {
            "picture": output.tags.get("COMPOSITE", "natural colour"),
            "embedding": f"first three principal components of {len(output.bands)}",
            "classes": f"{len(output.classes)} classes",
            "numbers": output.unit,
        }[output.kind]

    def data(self) -> dict[str, Any]:
        """Returns what the script draws and reads."""
        return {
            "kind": self.output.kind,
            "unit": self.output.unit,
            "names": {value: name for layer in self.layers for value, name, _ in layer.legend},
            "layers": [layer_data(layer) for layer in self.layers],
        }


def layer_data(layer: Layer) -> dict[str, Any]:
    """Returns a picture as PNG and, of a map, its numbers in steps from `low` on, from 1; 0 is no data."""
    data: dict[str, Any] = {"picture": png(layer.image)}
    if layer.values is not None:
        valid = np.isfinite(layer.values)
        low, high = (float(end(layer.values[valid], initial=0)) for end in (np.min, np.max)) if valid.any() else (0, 1)
        step = 1.0 if layer.legend else max((high - low) / SIGNIFICANT, 1e-30)
        steps = np.where(valid, np.rint((np.where(valid, layer.values, low) - low) / step) + 1, 0)
        data |= {"values": packed(steps.astype("<u2")), "low": low, "step": step}
    return data


def search_data(components: Components, panel: int) -> dict[str, Any]:
    """Returns components in steps of int8, each with its own step; -128 in the first marks no data."""
    steps = np.abs(components.values).max(axis=(0, 1), initial=0) / 127
    stored = np.rint(components.values / np.where(steps > 0, steps, 1)).astype(np.int8)
    stored[~components.valid, 0] = -128
    facts = {"panel": panel, "count": len(steps), "lean": components.lean.tolist(), "base": components.base}
    return facts | {"steps": steps.tolist(), "values": packed(stored)}


def packed(array: Shaped[np.ndarray, "..."]) -> str:
    """Returns numbers compressed, as base64."""
    # Level 1: noise of an embedding compresses to the same size at any level.
    return base64.b64encode(gzip.compress(array.tobytes(), 1, mtime=0)).decode()


def png(image: UInt8[np.ndarray, "H W 4"]) -> str:
    """Returns a PNG as base64."""
    from matplotlib.image import imsave

    # Without the default metadata, which has matplotlib's version.
    imsave(content := io.BytesIO(), image, format="png", metadata={"Software": None})
    return base64.b64encode(content.getvalue()).decode()


def make_page(paths: Sequence[pathlib.Path]) -> str:
    """Returns the page of outputs on the pixels of the first.

    Raises:
      FileNotFoundError, ValueError: an output is missing, damaged, without a place, or of another place.
    """
    given = dict.fromkeys(paths)  # in order, each once
    if beside := input_beside(paths[0]):
        given = {beside: None} | given
    with open_output(paths[0]) as first:
        frame, whole = frame_for_all(first, MOST_PIXELS), first.frame
    panels, search = [], None
    for path in given:
        with open_output(path) as output:
            if not overlap(output.frame, frame):
                raise ValueError(f"{path} and {paths[0]} have no common area: view outputs of one scene")
            if output.kind == "embedding":
                components = read_components(output, frame)
                panels.append(Panel(output, [component_layer(components)]))
                search = search or search_data(components, len(panels) - 1)
            else:
                panels.append(Panel(output, read_layers(output, frame)[:MOST_BANDS]))
    return render(paths[0].stem, frame, whole, panels, search)


def render(title: str, frame: Frame, whole: Frame, panels: Sequence[Panel], search: dict[str, Any] | None) -> str:
    """Returns the page of panels on the pixels of `frame`, whose files have those of `whole`."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    (rows, columns), box = frame.shape, frame.bounds
    scene = {
        "crs": frame.crs.to_string(),
        "left": box.left,
        "top": box.top,
        "width": box.width,
        "height": box.height,
        "rows": rows,
        "columns": columns,
        "panels": [panel.data() for panel in panels],
        "search": search,
    }
    # Names in files are escaped in the page, and by the filter `tojson` in the script's data.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    colours = [to_hex(colormaps[COLOURS_OF_NUMBERS](stop / (STOPS - 1))) for stop in range(STOPS)]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, scene=scene, panels=panels, search=search, colours=colours, frame=frame, whole=whole
    )


def write_page(paths: Sequence[pathlib.Path], page: pathlib.Path) -> None:
    """Writes the page of outputs; one that exists is replaced.

    Raises:
      FileNotFoundError, ValueError: those of `make_page`; or `page` is another file, or cannot be written.
    """
    content = make_page(paths).encode()
    try:
        if page.is_file():
            with page.open("rb") as file:
                if MARK.encode() not in file.read(2000):
                    raise ValueError(f"{page} exists and is not a page of {PROGRAM}: give another name with --out")
        write_whole(page, content)
    except OSError as error:
        raise ValueError(f"{page} cannot be written ({reason(error)}): give another place with --out") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page, prints its path, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "outputs", nargs="+", type=pathlib.Path, metavar="OUTPUT", help="a raster; the first one's grid"
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="PAGE", help="default: the first output's name with .html")
    given = parser.parse_args(argv)
    page = given.out or given.outputs[0].with_suffix(".html")
    try:
        write_page(given.outputs, page)
    except (ValueError, OSError) as error:
        return complain(error, PROGRAM)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

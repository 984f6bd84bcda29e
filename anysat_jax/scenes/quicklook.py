"""A picture of an output beside its input: the first three components, a class map or a map of numbers."""

import io
import os
import pathlib
from collections.abc import Sequence
from typing import IO, Any

from anysat_jax.report import style
from anysat_jax.scenes.looking import Frame, Layer, Output, frame_for_all, open_output, read_layers
from data_pipelines.plots.tile import COLOURS_OF_NUMBERS, EDGE_COLOUR, add_scale_bar, bare
from data_pipelines.prepare.storage import write_whole

MOST_PIXELS = 2**19  # of a panel
MOST_BANDS = 4  # of probabilities that are drawn
PANEL_INCHES = 5.0  # longer side of a panel
LEGEND_INCHES = 2.2
GROUND = "#e9ecef"  # where there is no data
CLASSES_IN_A_COLUMN = 20
Panel = tuple[str, Output, Layer]


def write_quicklook(
    path: str | os.PathLike[str], output: str | os.PathLike[str], picture: str | os.PathLike[str] | None = None
) -> None:
    """Draws an output, and beside it the picture of its input if there is one, as a PNG.

    Raises:
      FileNotFoundError, ValueError: a raster is missing, damaged, or not an output with a place in metres.
      OSError: the PNG cannot be written.
    """
    with open_output(output) as opened:
        frame = frame_for_all(opened, MOST_PIXELS)
        layers = read_layers(opened, frame)[:MOST_BANDS]
        panels = [(title(opened, layer), opened, layer) for layer in layers]
    if picture is not None:
        with open_output(picture) as opened:
            name = ", ".join(["Input", *filter(None, [opened.tags.get("COMPOSITE")])])
            panels.insert(0, (name, opened, read_layers(opened, frame)[0]))
    draw(content := io.BytesIO(), frame, panels)
    write_whole(pathlib.Path(path), content.getvalue())


def title(output: Output, layer: Layer) -> str:
    """Returns what a panel shows."""
    if output.kind == "embedding":
        return "Embedding, first three principal components"
    return layer.name or {"classes": "Classes", "picture": "Picture"}.get(output.kind, output.bands[0])


def draw(content: IO[bytes], frame: Frame, panels: Sequence[Panel]) -> None:
    """Draws panels in a row, as PNG."""
    box = frame.bounds
    longest = max(box.width, box.height)
    # Very long scenes stay wide enough for a title and a bar.
    width, height = (max(PANEL_INCHES * side / longest, 0.4 * PANEL_INCHES) for side in (box.width, box.height))
    beside = LEGEND_INCHES if panels[-1][1].kind in ("classes", "numbers") else 0
    size = ((width + 0.3) * len(panels) + beside, height + 0.9)
    with style.new_figure(content, size, panels[-1][1].path.stem) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (name, output, layer) in zip(axes, panels, strict=True):
            ax.set_title(name, fontsize=10.5)
            ax.set_facecolor(GROUND)
            extent = (box.left, box.right, box.bottom, box.top)
            ax.imshow(layer.image, extent=extent, interpolation="nearest", aspect="equal")
            bare(ax)
            add_scale_bar(ax, box.width)
            draw_legend(figure, ax, output, layer)
        axes[0].set_xlabel(
            f"{frame.crs}, x {box.left:,.0f} to {box.right:,.0f} m, y {box.bottom:,.0f} to {box.top:,.0f} m",
            fontsize=8.5,
        )


def draw_legend(figure: Any, ax: Any, output: Output, layer: Layer) -> None:
    """Draws the classes of a map, or the colour bar of numbers with its unit."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Patch

    if output.kind == "classes":
        handles = [
            Patch(facecolor=colour, edgecolor=EDGE_COLOUR, linewidth=0.5, label=name)
            for _, name, colour in layer.legend
        ]
        columns = -(-len(handles) // CLASSES_IN_A_COLUMN) or 1
        style_of = dict(handlelength=1.2, handleheight=1.2, ncols=columns)
        figure.legend(handles=handles, loc="outside right center", **style_of)
    elif output.kind == "numbers":
        colours = ScalarMappable(Normalize(*layer.ends), COLOURS_OF_NUMBERS)
        figure.colorbar(colours, ax=ax, shrink=0.8, label=output.unit)

"""The row of panels: every sensor as one image, with a scale bar; what is missing says so."""

from typing import Any

from anysat_jax.sensors import Sensor
from data_pipelines.look.sheet import DOTS_PER_INCH, EDGE_COLOUR, FAINT_COLOUR, Sheet, bare, show_image
from data_pipelines.look.stretch import hatched
from data_pipelines.look.views import View

BAR_SHARE = 0.3  # of the panel's width, which a scale bar stays below
TITLE_INCHES = 0.56
_STEPS = (1, 2, 5)


def draw_view(sheet: Sheet, left: float, top: float, side: float, view: View, extent: float) -> None:
    """One sensor as an image of `side` inches, below its titles; `extent` in metres."""
    draw_titles(sheet, left, top, view.sensor.name, _caption(view), view.how)
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    show_image(ax, hatched(*view.summary(), display=round(side * DOTS_PER_INCH)))
    add_scale_bar(ax, extent)


def draw_missing(sheet: Sheet, left: float, top: float, side: float, sensor: Sensor) -> None:
    """Where a sensor would be that the tile lacks."""
    draw_titles(sheet, left, top, sensor.name, f"{sensor.metres_per_pixel:g} m")
    ax = sheet.axes(left, top + TITLE_INCHES, side, side)
    bare(ax)
    ax.patch.set(facecolor="#f4f4f4", edgecolor="#d0d0d0", hatch="//")
    box = dict(facecolor="white", edgecolor=EDGE_COLOUR, boxstyle="round,pad=0.5")
    ax.text(0.5, 0.5, f"no {sensor.name}\nin this tile", ha="center", va="center", bbox=box, transform=ax.transAxes)


def draw_titles(sheet: Sheet, left: float, top: float, name: str, *lines: str) -> None:
    """A panel's name and up to two lines below it."""
    sheet.text(left, top, name, fontsize=11.5, fontweight="bold")
    sheet.text(left, top + 0.2, "\n".join(lines), fontsize=8.5, color=FAINT_COLOUR, linespacing=1.15)


def _caption(view: View) -> str:
    metres = f"{view.sensor.metres_per_pixel:g} m"
    if not view.days:
        return f"{metres}, date not known" if view.sensor.has_dates else metres
    if len(view.days) == 1:
        return f"{metres}, {view.days[0]:{view.day_format}}"
    return f"{metres}, {'clear ' if view.cloud is not None else ''}median of {len(view.days)} dates"


def bar_metres(extent: float) -> float:
    """The longest of 1, 2, 5, 10, ... metres that is at most BAR_SHARE of the extent."""
    longest = BAR_SHARE * extent
    power = 10.0 ** (len(str(int(longest))) - 1) if longest >= 1 else 0.1
    return max((step * power for step in _STEPS if step * power <= longest), default=power)


def add_scale_bar(ax: Any, extent: float) -> None:
    """A bar and its length in metres in the lower left corner, readable on any ground."""
    from matplotlib import patheffects

    metres = bar_metres(extent)
    outline = [patheffects.withStroke(linewidth=3, foreground="black")]
    place = dict(transform=ax.transAxes, color="white", clip_on=True)
    ends = [0.05, 0.05 + metres / extent]
    ax.plot(ends, [0.05, 0.05], linewidth=2, path_effects=outline, solid_capstyle="butt", **place)
    label = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    ax.text(0.05, 0.075, label, fontsize=9, va="bottom", path_effects=outline, **place)

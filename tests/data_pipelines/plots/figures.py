"""Figures caught on their way to the file, and what stands on them."""

import contextlib

from matplotlib.figure import Figure


@contextlib.contextmanager
def caught(monkeypatch):
    """A list that gets every figure that is saved; nothing is drawn, so this is quick."""
    figures = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **_: figures.append(self))
        yield figures


def texts(figure):
    """All texts of a figure and its axes, legends and tick labels apart."""
    found = [*figure.texts, *(text for ax in figure.axes for text in (ax.title, *ax.texts))]
    return [text.get_text() for text in found if text.get_text()]


def legend_texts(figure):
    """The texts of all legends."""
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def collisions(figure):
    """Pairs of texts that lie over each other, and texts that leave the paper."""
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    placed = [(t, t.get_window_extent(renderer)) for t in _visible(figure)]
    pairs = [
        (one.get_text(), other.get_text())
        for i, (one, box) in enumerate(placed)
        for other, second in placed[i + 1 :]
        if _overlap(box, second)
    ]
    paper = figure.bbox
    beyond = [
        text.get_text() for text, b in placed if b.x0 < 0 or b.y0 < 0 or b.x1 > paper.width or b.y1 > paper.height
    ]
    return pairs, beyond


def _visible(figure):
    labels = [text for ax in figure.axes for text in (*_tick_labels(ax.xaxis), *_tick_labels(ax.yaxis), ax.yaxis.label)]
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    inside = [text for legend in legends for text in legend.get_texts()]
    own = [*figure.texts, *(text for ax in figure.axes for text in ax.texts)]
    return [text for text in (*own, *labels, *inside) if text.get_text() and text.get_visible()]


def _tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def _overlap(one, other, slack=1.0):
    wide = min(one.x1, other.x1) - max(one.x0, other.x0) > slack
    return wide and min(one.y1, other.y1) - max(one.y0, other.y0) > slack

"""Reading a figure back: its lines, its legend, and whether anything sticks out of it."""

from __future__ import annotations


def line(ax, start):
    """Return (x, y) of the line whose label begins with `start`."""
    (found,) = [drawn for drawn in ax.lines if str(drawn.get_label()).startswith(start)]
    return found.get_xdata(), found.get_ydata()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def assert_inside(ax):
    ax.figure.draw_without_rendering()
    width, height = ax.figure.bbox.size
    for artist in (ax.get_legend(), ax.xaxis.label, ax.yaxis.label):
        box = artist.get_window_extent()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1

"""How gradlab's figures look, and how they are written to files."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.results import replacing

STYLE = Path(__file__).with_name("gradlab.mplstyle")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply gradlab's style sheet to the figures made inside, and to nothing else.

    Examples:
        >>> before = mpl.rcParams["font.size"]
        >>> with style():
        ...     mpl.rcParams["font.size"]
        7.0
        >>> mpl.rcParams["font.size"] == before
        True
    """
    with matplotlib.style.context(STYLE):
        yield


def save_figure(fig: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write a figure as vector PDF and as PNG beside it, each whole or not at all.

    The same figure gives the same bytes: no date is written.

    Args:
        fig: the figure.
        path: where, with or without ".pdf" or ".png"; the folder must exist.

    Returns:
        The paths of the PDF and of the PNG.

    Raises:
        TypeError: `fig` is not a figure.
        FileNotFoundError: the folder does not exist.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [p.name for p in save_figure(plt.figure(), Path(folder) / "gain_1.5")]
        ['gain_1.5.pdf', 'gain_1.5.png']
        >>> plt.close()
    """
    if not isinstance(fig, Figure):
        raise TypeError(f"fig must be a matplotlib Figure, got {type(fig).__name__}; axes have theirs as ax.figure")
    base = Path(path)
    if base.suffix in (".pdf", ".png"):
        base = base.with_suffix("")
    made = (base.with_name(base.name + ".pdf"), base.with_name(base.name + ".png"))
    with style(), _quiet_fonts():
        for target in made:
            kind = target.suffix[1:]
            with replacing(target) as temporary:
                fig.savefig(temporary, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
    return made


@contextlib.contextmanager
def axes(ax: Axes | None, height: float | None = None) -> Iterator[Axes]:
    """Yield `ax` in the caller's style, or the axes of a new figure in gradlab's.

    Args:
        ax: axes, or None for a new figure.
        height: height of a new figure in inches; that of the style sheet if not given.

    Yields:
        The axes.

    Examples:
        >>> with axes(None, height=2.0) as ax:
        ...     [float(inches) for inches in ax.figure.get_size_inches()]
        [3.4, 2.0]
        >>> plt.close()
    """
    if ax is not None:
        yield ax
        return
    with style():
        width, usual = mpl.rcParams["figure.figsize"]
        _, ax = plt.subplots(figsize=(width, height or usual))
        # ticks are made when first drawn, outside of the style: fix theirs now
        ax.tick_params(
            length=mpl.rcParams["xtick.major.size"],
            width=mpl.rcParams["xtick.major.width"],
            labelsize=mpl.rcParams["xtick.labelsize"],
            direction=mpl.rcParams["xtick.direction"],
        )
        yield ax


def legend_above(ax: Axes, handles: list[Any] | None = None, title: str | None = None) -> None:
    """Put the legend above the axes in two columns, where it covers no data.

    Args:
        ax: the axes.
        handles: what to list; what the axes hold with a label if not given.
        title: a line above.
    """
    handles = handles or list(ax.get_legend_handles_labels()[0])
    size = mpl.rcParams["legend.fontsize"]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        title=title,
        title_fontsize=size,
        alignment="left",
    )


@contextlib.contextmanager
def _quiet_fonts() -> Iterator[None]:
    """Silence fontTools, which finds the dates in DejaVu Sans too old to believe and says so at every figure."""
    log = logging.getLogger("fontTools")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)

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
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.results import replacing
from gradlab.variables import VARIABLES

STYLE = Path(__file__).with_name("gradlab.mplstyle")
ROUNDING = 1e-12  # nats per step: below this, a rate is rounding
LEAST_HEIGHT = 1e-6  # nats: a frame that is lower magnifies rounding


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


def one_network(ds: xr.Dataset, figure: str) -> xr.Dataset:
    """Return a dataset with the last step first, or raise if it holds more than one network.

    At a lag that repeats (a gap in the mask) the value that comes last is drawn. With the last step first this is that
    of the earliest t, which `fit_decay` takes. All values at a lag agree only for a loss at T.

    Args:
        ds: the dataset.
        figure: what is drawn.

    Returns:
        The dataset, its time reversed.

    Raises:
        ValueError: a variable has a dim that it does not have after `gl.analyze`, like the stage of `gl.run`.

    Examples:
        >>> ds = xr.Dataset({"decay_rate": (("stage", "batch"), [[-0.1], [-0.2]])}, {"stage": ["initial", "trained"]})
        >>> one_network(ds, "decay")
        Traceback (most recent call last):
        ...
        ValueError: decay draws one network, and this dataset has the extra dim 'stage' (initial, trained);
        choose one: ds.sel(stage='trained')
    """
    known = {name: dims for name, (dims, *_) in VARIABLES.items()} | {"lag": ("batch", "time")}
    for name, dims in known.items():
        for dim in ds[name].dims if name in ds.variables else ():
            if dim not in dims and not (dim == "credit_lag" and "lag" in dims):  # as a run calls it
                chosen = f"ds.isel({dim}=0)"
                values = f"{ds.sizes[dim]} of them"
                if dim in ds.coords:
                    entries = ds[dim].values.tolist()
                    chosen = f"ds.sel({dim}={entries[-1]!r})" if entries else chosen
                    values = ", ".join(map(str, entries[:5])) + (", …" if len(entries) > 5 else "")
                raise ValueError(
                    f"{figure} draws one network, and this dataset has the extra dim {dim!r} ({values});"
                    f" choose one: {chosen}"
                )
    return ds.isel(time=slice(None, None, -1)) if "time" in ds.dims else ds


def keep_height(ax: Axes) -> None:
    """Widen the vertical limits to LEAST_HEIGHT if they lie closer, so that rounding is seen as none."""
    low, high = ax.get_ylim()
    if high - low < LEAST_HEIGHT:
        middle = 0.5 * (low + high)
        ax.set_ylim(middle - 0.5 * LEAST_HEIGHT, middle + 0.5 * LEAST_HEIGHT)
        ax.yaxis.set_major_formatter("{x:g}")  # "4e-07" at the tick: a common factor would lie on the legend


def legend_above(ax: Axes, handles: list[Any] | None = None, title: str | None = None) -> None:
    """Put the legend above the axes in two columns, where it covers no data.

    In a figure without a layout engine, which would make room, a legend that does not fit gets one column, and if that
    does not fit either, it ends where the axes end.

    Args:
        ax: the axes.
        handles: what to list; what the axes hold with a label if not given.
        title: a line above.
    """
    handles = handles or list(ax.get_legend_handles_labels()[0])
    size = mpl.rcParams["legend.fontsize"]
    figure = ax.get_figure(root=True)
    places: tuple[dict[str, Any], ...] = (
        {"ncols": 2, "loc": "lower left", "bbox_to_anchor": (0, 1)},
        {"ncols": 1, "loc": "lower left", "bbox_to_anchor": (0, 1)},
        {"ncols": 1, "loc": "lower right", "bbox_to_anchor": (1, 1)},
    )
    for place in places:
        legend = ax.legend(handles=handles, title=title, title_fontsize=size, alignment="left", **place)
        if figure is None or figure.get_layout_engine() is not None:
            return
        if legend.get_window_extent().x1 <= _room(ax, figure):
            return


def _room(ax: Axes, figure: Figure) -> float:
    """Return where the room to the right of the axes ends, in pixels: at the next axes or the edge of the figure."""
    box = ax.get_window_extent()
    others = (other.get_window_extent() for other in figure.axes if other is not ax)
    beside = [other.x0 for other in others if other.x0 >= box.x1 and other.y0 < box.y1 and other.y1 > box.y0]
    return float(min([figure.bbox.x1, *beside]))


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

"""Values of several sequences over the lag, and the axes that they are drawn on: what the figures share."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradlab.validation import Array

# Okabe & Ito
BLACK, GREY = "#000000", "#8c8c8c"
BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
ANALYSE = "gl.analyze(cell, inputs) makes it"


def need(ds: xr.Dataset, figure: str, **made_by: str) -> None:
    """Raise ValueError naming the first variable that `ds` lacks, and what makes it."""
    if not isinstance(ds, xr.Dataset):
        raise TypeError(f"ds must be an xarray.Dataset, got {type(ds).__name__}; gl.analyze returns one")
    for name, how in made_by.items():
        if name not in ds.variables:
            raise ValueError(f"{figure} needs the variable {name}, which this dataset lacks; {how}")


def one_layer(ds: xr.Dataset, figure: str, layer: str | None, **made_by: str) -> tuple[xr.Dataset, str]:
    """Return the part of a dataset that belongs to one layer, the first if none is named, and its name.

    Args:
        ds: with or without a dim layer.
        figure: what is drawn.
        layer: which.
        made_by: variables that are needed, and what makes each.

    Raises:
        ValueError: a variable is missing, or there is no such layer.
    """
    need(ds, figure, **made_by)
    if "layer" not in ds.dims:
        return ds, str(ds["layer"].item()) if "layer" in ds.coords else ""
    names = [str(one) for one in ds["layer"].values]
    if not names:
        raise ValueError(f"{figure} needs a look that was finite, got none; training diverged before the first")
    chosen = names[0] if layer is None else layer
    if chosen not in names:
        raise ValueError(f"layer must be one of {names}, got {layer!r}")
    return ds.isel(layer=names.index(chosen)), chosen


def drawn(values: Array) -> Array:
    """Return values with NaN for what cannot be drawn."""
    return np.where(np.isfinite(values), values, np.nan)


def by_lag(ds: xr.Dataset, name: str) -> Array:
    """Return a variable (batch, time, …) as [B, K+1, …] over lags 0…K, NaN beyond the start of a sequence."""
    lag, values = (a if "batch" in a.dims else a.expand_dims("batch") for a in (ds["lag"], ds[name]))
    steps = lag.transpose("batch", "time").values.astype(np.int64)  # [B, T+1]
    source = values.transpose("batch", "time", ...).values
    reach = np.sort(steps.max(axis=1))[::-1]
    longest = int(reach[(len(reach) - 1) // 2])  # at least half of the sequences get so far
    out = np.full((len(steps), int(reach[0]) + 1, *source.shape[2:]), np.nan)
    # masked steps share their lag: the last one written stays, so the caller decides by the order of `steps`
    out[np.arange(len(steps))[:, None], steps] = source
    return out[:, : longest + 1]


def quantile(values: Array, q: float) -> Array:
    """Return the quantile of values [B, …] over the batch without NaN; −∞ counts as the least number."""
    ordered = np.sort(values, axis=0)  # NaN last
    count = np.sum(~np.isnan(values), axis=0, keepdims=True)
    place = q * np.maximum(count - 1, 0)
    # no interpolation as in np.nanquantile, where −∞ becomes NaN
    below, above = (np.take_along_axis(ordered, f(place).astype(np.int64), axis=0) for f in (np.floor, np.ceil))
    return (0.5 * (below + above))[0]


def relative_gradient(ds: xr.Dataset, figure: str) -> Array:
    """Return ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖ by lag [B, K+1], NaN where the gradient at T is zero."""
    need(ds, figure, log_gradient_norm=ANALYSE, lag=ANALYSE)
    norms = by_lag(ds, "log_gradient_norm")
    end = norms[:, :1]
    if not np.isfinite(end).any():
        raise ValueError(f"{figure} needs a gradient at T, got ∂L/∂h_T = 0 in every sequence; use a loss at T")
    return norms - np.where(np.isfinite(end), end, np.nan)


def frame(ax: Axes, inner: list[Array], outer: list[Array] | None = None) -> None:
    """Set the limits to hold `inner` (lags first), and `outer` above it as far as it does not crush it."""

    def span(curves: list[Array]) -> tuple[float, float]:
        values = np.concatenate([np.zeros(1), *(curve.ravel() for curve in curves)])
        values = values[np.isfinite(values)]
        return float(values.min()), float(values.max())

    low, high = span(inner)
    height = high - low or 1.0
    top = min(max(high, span(outer or [])[1]), high + height)
    ax.set_ylim(low - 0.05 * height, top + 0.05 * height)
    ax.set_xlim(0, max(1, len(inner[0]) - 1))


def label_lag(ax: Axes, ylabel: str) -> None:
    """Label both axes and mark where nothing has grown or shrunk."""
    ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
    ax.set(xlabel="lag $k$ (steps before the end)", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))

"""All singular values of ∂h_T/∂h_t over the lag: the fan, and how far into it floating point sees."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from gradlab.figures import axes, keep_height, legend_above, one_network
from gradlab.lags import ANALYSE, BLACK, BLUE, ORANGE, SKY, by_lag, frame, label_lag, need, quantile, relative_gradient
from gradlab.validation import Array


def fan(ds: xr.Dataset, *, batch: int | None = None, ax: Axes | None = None) -> Axes:
    r"""Draw all singular values of ∂h_T/∂h_t over the lag, with the gradient relative to lag 0 among them.

    Modes that are exactly zero (ln σ = −∞) cannot be drawn; the legend counts them at the longest lag.

    Args:
        ds: needs log_singular_values and lag; log_gradient_norm is drawn if there.
        batch: which sequence (index); the median over all if not given.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or the dataset holds several networks.
        TypeError: `batch` is not an integer.
        IndexError: there is no such sequence.

    Examples:
        >>> ds = xr.Dataset(
        ...     {"log_singular_values": (("batch", "time", "mode"), [[[-0.5, -np.inf], [0.0, 0.0]]])},
        ...     coords={"lag": (("batch", "time"), [[1, 0]])},
        ... )
        >>> [text.get_text() for text in fan(ds).get_legend().get_texts()][-1]
        '1 of 2: $\\sigma = 0$ at lag 1'
    """
    ds = _one(ds, "fan", batch)
    modes, middle = _modes(ds)
    lags, n = np.arange(len(middle)), middle.shape[1]
    # dark is large; the lightest still shows on white
    colours = mpl.colormaps["Blues"](np.linspace(0.9, 0.3, n))
    with axes(ax) as ax:
        width = 0.6 * mpl.rcParams["lines.linewidth"]
        lines = [np.column_stack([lags, middle[:, i]])[np.isfinite(middle[:, i])] for i in range(n)]
        ax.add_collection(LineCollection(lines, colors=list(colours), linewidths=width))
        handles = [Line2D([], [], color=colours[0], label=r"$\ln\sigma_1$")]
        if n > 1:
            handles.append(Line2D([], [], color=colours[-1], label=rf"$\ln\sigma_{{{n}}}$"))
        inner = [middle]
        if "log_gradient_norm" in ds:
            inner.append(quantile(relative_gradient(ds, "fan"), 0.5))
            ax.plot(lags, inner[-1], color=BLACK)
            handles.append(Line2D([], [], color=BLACK, label="gradient"))
        if len(modes) > 1:
            handles.append(Line2D([], [], linestyle="none", label=f"medians of {len(modes)}"))
        dead = int(np.isneginf(middle[-1]).sum())
        if dead:
            label = f"{dead} of {n}: $\\sigma = 0$ at lag {lags[-1]}"
            handles.append(Line2D([], [], linestyle="none", label=label))
        frame(ax, inner)
        keep_height(ax)
        label_lag(ax, r"$\ln\sigma_i(\partial h_T/\partial h_t)$ (nats)")
        legend_above(ax, handles)
    return ax


def horizon(ds: xr.Dataset, *, batch: int | None = None, ax: Axes | None = None) -> Axes:
    r"""Draw the fan of singular values of ∂h_T/∂h_t, coloured by what a product formed in the open still gets right.

    Blue: P ← P·J_s and an SVD in float32 give the value to a tenth of itself. Light blue: only in float64. Orange: in
    neither, from the lag where it is lost for good. A dot marks where float32 loses a mode, a ring where float64 does.
    Dashed: 2⁻²⁴σ_1 and 2⁻⁵³σ_1, where the rounding of the largest mode is as large as the mode. Exact zeros (ln σ = −∞)
    cannot be drawn; the legend counts them.

    Args:
        ds: needs log_singular_values, lag, horizon_float32 and horizon_float64.
        batch: which sequence (index); medians over all, of values and horizons alike, if not given.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or the dataset holds several networks.
        TypeError: `batch` is not an integer.
        IndexError: there is no such sequence.

    Examples:
        >>> ds = xr.Dataset(
        ...     {
        ...         "log_singular_values": (("batch", "time", "mode"), [[[0.0, -60.0], [0.0, -30.0], [0.0, 0.0]]]),
        ...         "horizon_float32": (("batch", "mode"), [[np.inf, 1.0]]),
        ...         "horizon_float64": (("batch", "mode"), [[np.inf, 2.0]]),
        ...     },
        ...     coords={"lag": (("batch", "time"), [[2, 1, 0]])},
        ... )
        >>> [text.get_text() for text in horizon(ds).get_legend().get_texts()][:3]
        ['in float32: 1', 'in float64 only: 0', 'in neither: 1']
    """
    need(ds, "horizon", **dict.fromkeys(("horizon_float32", "horizon_float64"), ANALYSE))
    ds = _one(ds, "horizon", batch)
    _, middle = _modes(ds)
    single, double = (_last_right(ds, name) for name in ("horizon_float32", "horizon_float64"))
    double = np.maximum(single, double)  # chance can give float32 a value back that float64 has lost
    lags, n = np.arange(len(middle)), middle.shape[1]
    last = lags[-1]
    finite = np.isfinite(middle)
    ranges = ((np.zeros(n), single, BLUE), (single, double, SKY), (double, np.full(n, np.inf), ORANGE))
    with axes(ax, height=3.0) as ax:
        width, size = 0.6 * mpl.rcParams["lines.linewidth"], 0.7 * mpl.rcParams["lines.markersize"]
        for first, end, colour in ranges:
            shown = finite & (lags[:, None] >= first) & (lags[:, None] <= end)
            lines = [np.column_stack([lags, middle[:, i]])[shown[:, i]] for i in range(n)]
            ax.add_collection(LineCollection(lines, colors=colour, linewidths=width))
        for bits in (24, 53):
            depth = middle[:, 0] - bits * math.log(2.0)
            ax.plot(lags, depth, color=BLACK, linestyle="--", linewidth=width, zorder=2.5)
        for end, colour, face in ((single, BLUE, BLUE), (double, SKY, "white")):
            k = np.minimum(end, last).astype(np.int64)
            lost = np.flatnonzero((k > 0) & (k < last) & finite[np.minimum(k + 1, last), np.arange(n)])
            dots: dict[str, Any] = {"markerfacecolor": face, "markeredgewidth": width, "markersize": size}
            ax.plot(k[lost], middle[k[lost], lost], "o", color=colour, zorder=3, **dots)
        alive = finite[-1]
        right = [int((alive & (end >= last)).sum()) for end in (single, double)]
        counts = (right[0], right[1] - right[0], int(alive.sum()) - right[1])
        words = ("in float32", "in float64 only", "in neither")
        handles = [
            Line2D([], [], color=colour, label=f"{word}: {count}")
            for word, count, (*_, colour) in zip(words, counts, ranges, strict=True)
        ]
        label = r"$2^{-24}\sigma_1$, $2^{-53}\sigma_1$"
        handles.append(Line2D([], [], color=BLACK, linestyle="--", linewidth=width, label=label))
        if n - alive.sum():
            handles.append(Line2D([], [], linestyle="none", label=rf"$\sigma = 0$: {n - int(alive.sum())}"))
        frame(ax, [middle])
        keep_height(ax)
        label_lag(ax, r"$\ln\sigma_i(\partial h_T/\partial h_t)$ (nats)")
        legend_above(ax, handles, title=f"modes right at lag {last}, of {n}")
    return ax


def _one(ds: xr.Dataset, figure: str, batch: int | None) -> xr.Dataset:
    """Return what is there to draw: the dataset of one network, or one sequence of it."""
    need(ds, figure, log_singular_values=ANALYSE, lag=ANALYSE)
    ds = one_network(ds, figure)
    if batch is None:
        return ds
    if isinstance(batch, bool | np.bool_) or not isinstance(batch, int | np.integer):
        raise TypeError(f"batch must be an integer or None, got {batch!r}; it is the index of a sequence")
    if "batch" not in ds.dims or not -ds.sizes["batch"] <= batch < ds.sizes["batch"]:
        raise IndexError(f"batch must be below {ds.sizes.get('batch', 0)}, got {batch}; None draws the median")
    return ds.isel(batch=[batch])


def _modes(ds: xr.Dataset) -> tuple[Array, Array]:
    """Return ln σ by lag [B, K+1, n] and its median over sequences [K+1, n]."""
    modes = by_lag(ds, "log_singular_values")
    return modes, quantile(modes, 0.5)


def _last_right(ds: xr.Dataset, name: str) -> Array:
    """Return the median over sequences of the last lag at which each mode is right [n]; ∞ where it is never lost."""
    horizons = ds[name] if "batch" in ds[name].dims else ds[name].expand_dims("batch")
    return np.floor(quantile(horizons.transpose("batch", "mode").values.astype(np.float64), 0.5)) - 1.0

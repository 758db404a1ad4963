"""By which paths through the gates the gradient comes back: the account of every step, over the lag."""

from __future__ import annotations

from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from gradlab.figures import axes, legend_above, one_network
from gradlab.lags import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY, by_lag, label_lag, need
from gradlab.validation import Array

_COLOURS = {
    "highway": BLUE,
    "input_gate": ORANGE,
    "forget_gate": GREEN,
    "update_gate": GREEN,
    "candidate": SKY,
    "output_gate": PINK,
    "reset_gate": RED,
}
_KINDS = {
    "gradient": ("path_share_of_gradient", r"share of the gradient $J_t^\top\, \partial L/\partial h_t$"),
    "singular_value": ("path_share_of_singular_value", r"share of $\sigma_1(J_t)$"),
    "product": ("path_share_of_product", r"share of $\sigma_1(\partial h_T/\partial h_0)$"),
}


def gate_paths(
    ds: xr.Dataset, *, of: Literal["gradient", "singular_value", "product"] = "gradient", ax: Axes | None = None
) -> Axes:
    """Draw what each path through the gates contributes to each step, over the lag.

    At every lag the shares of the paths add up to 1 (dashed). Those that contribute are stacked upwards from 0; those
    that work against the others are stacked downwards, so that the stack above the dashed line is as high as the one
    below 0 is deep. At lag k is the step from T − k − 1 to T − k. Drawn are means over sequences, because only these
    add up; sequences without a share at a lag (masked, or nothing comes back) are left out there. Rare steps at which
    the terms all but cancel have shares far above 1, and leave the frame. The legend gives each path's mean over the
    lags.

    Args:
        ds: needs lag and the shares that `of` names: path_share_of_gradient, path_share_of_singular_value or
            path_share_of_product.
        of: what is shared out (see `gradlab.paths.GatePaths`).
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, the dataset holds several networks, no step has shares, or an unknown `of`.

    Examples:
        >>> shares = [[[np.nan, np.nan], [0.7, 0.3], [1.25, -0.25]]]
        >>> ds = xr.Dataset(
        ...     {"path_share_of_gradient": (("batch", "time", "path"), shares)},
        ...     coords={"lag": (("batch", "time"), [[2, 1, 0]]), "path": ["highway", "reset_gate"]},
        ... )
        >>> [text.get_text() for text in gate_paths(ds).get_legend().get_texts()]
        ['highway: +0.975', 'reset gate: +0.025', 'sum: 1']
    """
    if of not in _KINDS:
        raise ValueError(f"of must be one of {list(_KINDS)}, got {of!r}")
    variable, label = _KINDS[of]
    why = "gl.analyze makes it for an LSTM or a GRU"
    need(ds, "gate_paths", **{variable: why, "path": why, "lag": why})
    ds = one_network(ds, "gate_paths")
    names = [str(name) for name in ds["path"].values]
    mean = _mean(by_lag(ds.transpose(..., "path"), variable))  # [K, P]
    lags = np.flatnonzero(np.isfinite(mean[:, 0]))
    if not len(lags):
        raise ValueError("gate_paths needs a step at which something comes back, got none; choose another loss")
    # a step at a lag is a bar one lag wide
    edges = np.arange(len(mean) + 1) - 0.5
    above, below = (np.cumsum(part, axis=1) for part in (np.maximum(mean, 0.0), np.minimum(mean, 0.0)))
    with axes(ax) as ax:
        handles: list[Any] = []
        for p, name in enumerate(names):
            colour = _COLOURS.get(name, BLACK)
            for stack in (above, below):
                start = stack[:, p - 1] if p else np.zeros(len(mean))
                ax.stairs(stack[:, p], edges, baseline=start, fill=True, facecolor=colour, linewidth=0)
            handles.append(Patch(facecolor=colour, linewidth=0, label=f"{name.replace('_', ' ')}: "))
        for handle, value in zip(handles, np.nanmean(mean, axis=0), strict=True):
            text = "0" if abs(value) < 5e-4 else f"{value:+.3f}".replace("-", "−")
            handle.set_label(handle.get_label() + text)
        whole = ax.axhline(1, color=BLACK, linestyle=(0, (4, 2)), linewidth=mpl.rcParams["lines.linewidth"])
        ax.set_xlim(-0.5, lags[-1] + 0.5)
        ax.set_ylim(*_limits(below[lags, -1], above[lags, -1]))
        label_lag(ax, label)
        ax.axhline(0, color=BLACK, linewidth=mpl.rcParams["axes.linewidth"])
        handles.append(Line2D([], [], color=BLACK, linestyle=whole.get_linestyle(), label="sum: 1"))
        legend_above(ax, handles, title=f"share of each path, mean over lags {lags[0]} to {lags[-1]}")
    return ax


def _mean(shares: Array) -> Array:
    """Return the mean over sequences of shares [B, K+1, P] at the lags of steps, [K, P]; NaN where there is none."""
    shares = shares[:, :-1] if np.isnan(shares[:, -1]).all() else shares  # no step ends at t = 0
    whole: NDArray[np.bool_] = np.all(np.isfinite(shares), axis=2, keepdims=True)
    count = whole.sum(axis=0)
    return np.where(whole, shares, 0.0).sum(axis=0) / np.where(count, count, np.nan)


def _limits(below: Array, above: Array) -> tuple[float, float]:
    """Return the ends of a frame that holds both stacks, but for the few lags at which they are many times as high."""
    top, bottom = (float(np.quantile(height, 0.95)) for height in (above, -below))
    high, low = min(float(above.max()), 1.5 * top), min(float(-below.min()), 1.5 * max(bottom, 0.1))
    size = max(high, 1.0) + low
    return -low - 0.03 * size if low else 0.0, max(high, 1.0) + 0.05 * size

"""Figures of a result: each function takes the dataset of `gl.analyze` and draws on one pair of axes.

Nothing here needs TensorFlow, so a figure can be remade from a saved file in a second. Without `ax`, a function makes
a figure one column wide in gradlab's style; with `ax`, it draws in the style the caller has chosen. Values of several
sequences are compared at equal lag (steps that a mask leaves out do not count), up to the longest lag that at least
half of the sequences reach. Of steps at the same lag, the earliest counts.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from numpy.typing import NDArray

from gradlab.credit_figures import clipping, clipping_profile, credit, left_out, truncation
from gradlab.fans import fan, horizon
from gradlab.figures import ROUNDING, axes, keep_height, legend_above, one_network, save_figure, style
from gradlab.lags import (
    ANALYSE,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    by_lag,
    frame,
    label_lag,
    need,
    relative_gradient,
)
from gradlab.lags import quantile as _quantile
from gradlab.pseudospectra import pseudospectrum
from gradlab.shares import gate_paths
from gradlab.training_figures import (
    animate_spectrum,
    gradient_curves,
    gradient_flow,
    rates,
    spectrum_over_training,
    weight_gradients,
)
from gradlab.validation import Array

__all__ = [
    "animate_spectrum",
    "budget",
    "clipping",
    "clipping_profile",
    "credit",
    "decay",
    "eigenvalues",
    "fan",
    "gate_paths",
    "gradient_curves",
    "gradient_flow",
    "horizon",
    "left_out",
    "pseudospectrum",
    "rates",
    "save_figure",
    "spectrum_over_training",
    "style",
    "truncation",
    "weight_gradients",
]

# from the loosest to the tightest: variable, label, colour, line (dashes that show all three where they coincide)
_CHAIN: tuple[tuple[str, str, str, Any], ...] = (
    ("bound_promise", r"promise $\gamma\sigma_1(W)$", RED, (0, (2, 4))),
    ("bound_slopes", "slopes", ORANGE, (0, (4, 2))),
    ("bound_step_norms", r"step norms", GREEN, "-"),
)
# the account runs from the first of the first two that is there down to what is measured
_ACCOUNT = (
    ("budget_promise", "promise", BLACK),
    ("budget_step_norms", "step norms", BLACK),
    ("budget_saturation", "saturation", BLUE),
    ("budget_within_step", "within the step", SKY),
    ("budget_between_steps", "between steps", GREEN),
    ("budget_direction", "direction", ORANGE),
    ("budget_other_times", "other times", PINK),
)


def decay(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw how the gradient decays over the lag, between what the recurrence allows and what theory promised.

    Black: ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖, median over sequences with the range of the middle 80 %. Lines: the median of
    ln σ_1 and ln σ_n of ∂h_T/∂h_t, between which a gradient of a loss at T must lie, and the chain of upper bounds of
    ln σ_1. If the loss reads earlier states, too (the dataset then has no gradient_upper_bound), they bound the part
    that comes from h_T and no more, as the legend says. Bounds far from what is measured leave the frame: the legend
    gives each line's mean slope. The fitted rate is the mean over sequences, with its standard error over them.

    Args:
        ds: needs log_gradient_norm and lag; draws what else there is.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, the dataset holds several networks, or the gradient at T is zero in every
            sequence.

    Examples:
        >>> ds = xr.Dataset(
        ...     {"log_gradient_norm": (("batch", "time"), [[-2.0, -1.0, 0.0]])},
        ...     coords={"lag": (("batch", "time"), [[2, 1, 0]])},
        ... )
        >>> [line.get_ydata().tolist() for line in decay(ds).lines if line.get_label() == "gradient"]
        [[0.0, -1.0, -2.0]]
    """
    need(ds, "decay", log_gradient_norm=ANALYSE, lag=ANALYSE)
    ds = one_network(ds, "decay")
    gradient = relative_gradient(ds, "decay")
    middle, low, high = (_quantile(gradient, q) for q in (0.5, 0.1, 0.9))
    lags = np.arange(len(middle))
    bounds = [(label, colour, line, _median(ds, name)) for name, label, colour, line in _CHAIN if name in ds]
    inner, outer = [middle, low, high], [values for *_, values in bounds]
    if "log_singular_values" in ds:
        modes = _median(ds, "log_singular_values")  # [K+1, n]
        inner.append(modes[:, 0])
        bounds.append((r"$\sigma_1(\partial h_T/\partial h_t)$", BLUE, "-", modes[:, 0]))
        if modes.shape[1] > 1:
            bounds.append((r"$\sigma_n(\partial h_T/\partial h_t)$", BLUE, "--", modes[:, -1]))
    with axes(ax, height=3.1) as ax:
        for i, (label, colour, line, values) in enumerate(bounds):
            label = f"{label}: {_signed(values[-1] / max(lags[-1], 1))}"
            if i == len(bounds) - 1 and "log_singular_values" in ds and "gradient_upper_bound" not in ds:
                label += "\n($\\sigma$: of the part\nfrom $h_T$ alone)"
            # the looser bound on top of the tighter, so that its dashes show where the two coincide
            ax.plot(lags, values, color=colour, linestyle=line, label=label, zorder=2 - 0.01 * i)
        ax.fill_between(lags, low, high, color=BLACK, alpha=0.18, linewidth=0)
        label = "gradient" if len(gradient) == 1 else f"gradient, median of {len(gradient)}\n(grey: middle 80 %)"
        ax.plot(lags, middle, color=BLACK, linewidth=1.5 * mpl.rcParams["lines.linewidth"], label=label)
        if "decay_rate" in ds:
            _draw_fit(ds, ax, middle)
        frame(ax, inner, outer)
        keep_height(ax)
        label_lag(ax, r"$\ln\Vert\partial L/\partial h_t\Vert - \ln\Vert\partial L/\partial h_T\Vert$ (nats)")
        legend_above(ax, title=f"nats per step, mean to lag {lags[-1]}")
    return ax


def eigenvalues(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues of the recurrent matrix W in the complex plane.

    Grey: the unit circle. Dashed: the circle of the spectral radius ρ. The legend gives σ_1(W), which the bounds
    need and eigenvalues do not show: the further it lies above ρ, the less normal is W.

    Args:
        ds: needs eigenvalue_real and eigenvalue_imag; sigma_max is named if there.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or the dataset holds several networks.

    Examples:
        >>> parts = {"eigenvalue_real": [0.0, 0.0], "eigenvalue_imag": [2.0, -2.0]}
        >>> ds = xr.Dataset({name: ("eigenvalue", part) for name, part in parts.items()})
        >>> [round(circle.radius, 6) for circle in eigenvalues(ds).patches]
        [1.0, 2.0]
    """
    why = "gl.analyze makes it for a cell with one recurrent matrix"
    need(ds, "eigenvalues", eigenvalue_real=why, eigenvalue_imag=why)
    ds = one_network(ds, "eigenvalues")
    real, imaginary = ds["eigenvalue_real"].values, ds["eigenvalue_imag"].values
    radius = float(np.hypot(real, imaginary).max())
    with axes(ax, height=3.4) as ax:
        width = 1.5 * mpl.rcParams["axes.linewidth"]
        ax.axhline(0, color=GREY, linewidth=width / 3, zorder=0.5)
        ax.axvline(0, color=GREY, linewidth=width / 3, zorder=0.5)
        handles: list[Any] = []
        circles: tuple[tuple[float, str, Any, str], ...] = (
            (1.0, GREY, "-", "unit circle"),
            (radius, RED, "--", rf"$\rho(W)$ = {radius:.3f}"),
        )
        for size, colour, line, label in circles:
            ax.add_patch(Circle((0, 0), size, fill=False, edgecolor=colour, linestyle=line, linewidth=width))
            handles.append(Line2D([], [], color=colour, linestyle=line, linewidth=width, label=label))
        # many eigenvalues get small dots
        area = min(12.0, 1200.0 / len(real))
        label = "eigenvalue" if len(real) == 1 else f"{len(real)} eigenvalues"
        handles.append(ax.scatter(real, imaginary, s=area, color=BLUE, linewidths=0, label=label, clip_on=False))
        if "sigma_max" in ds:
            label = rf"$\sigma_1(W)$ = {float(ds['sigma_max']):.3f}"
            handles.append(Line2D([], [], linestyle="none", label=label))
        extent = 1.08 * max(1.0, radius)
        ax.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        ax.locator_params(nbins=5)
        ax.set(xlabel=r"Re $\lambda(W)$", ylabel=r"Im $\lambda(W)$")
        legend_above(ax, handles)
    return ax


def budget(ds: xr.Dataset, *, per_step: bool = True, ax: Axes | None = None) -> Axes:
    """Draw where the distance between the promise of theory and the measured gradient goes.

    The dashed line on top is k·ln(γ σ_1(W)), for gated cells Σ ln‖J_s‖. Each band below it is what one term of the
    budget takes away; the black line at their foot is the measured ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖. A term that adds is
    hatched, and one that is rounding is left out. Drawn are means over sequences, because only these add up as the
    terms do; sequences whose gradient is exactly zero at a lag are left out there. A single lag is drawn as a bar.

    Args:
        ds: needs lag and the budget of a loss: budget_promise or budget_step_norms, budget_between_steps,
            budget_direction, budget_measured; draws what other terms there are.
        per_step: divide by the lag, to show the account in nats per step; else in nats.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, the dataset holds several networks, or no sequence has a gradient that
            differs from zero.

    Examples:
        >>> terms = {"step_norms": 0.5, "between_steps": -0.7, "direction": -0.1, "measured": -0.3}
        >>> ds = xr.Dataset(
        ...     {f"budget_{name}": (("batch", "time"), [[value, 0.0]]) for name, value in terms.items()},
        ...     coords={"lag": (("batch", "time"), [[1, 0]])},
        ... )
        >>> [text.get_text() for text in budget(ds).get_legend().get_texts()]
        ['step norms: +0.500', 'between steps: −0.700', 'direction: −0.100', 'measured: −0.300']
    """
    need(ds, "budget", **dict.fromkeys(("budget_between_steps", "budget_direction", "budget_measured"), ANALYSE))
    if "budget_promise" not in ds:
        need(ds, "budget", budget_step_norms=ANALYSE)
    need(ds, "budget", lag=ANALYSE)
    ds = one_network(ds, "budget")
    present = [row for row in _ACCOUNT if row[0] in ds]
    account = np.stack([by_lag(ds, name) for name in (*(row[0] for row in present), "budget_measured")])
    whole: NDArray[np.bool_] = np.all(np.isfinite(account), axis=0, keepdims=True)  # [1, B, K+1]
    if not whole[:, :, 1:].any():
        raise ValueError(
            "budget needs a gradient that differs from zero at some lag ≥ 1, got none; choose another loss"
        )
    count = np.where(np.any(whole, axis=1), np.sum(whole, axis=1), np.nan)
    mean = np.where(whole, account, 0.0).sum(axis=1) / count  # [terms + 1, K+1]
    mean = mean[:, : np.flatnonzero(np.isfinite(mean[-1]))[-1] + 1]  # to where the last gradient dies
    lags = np.arange(mean.shape[1])
    if per_step:
        mean, lags = mean[:, 1:] / lags[1:], lags[1:]
    last = lags[-1]
    if len(lags) == 1:  # a bar
        mean, lags = np.repeat(mean, 2, axis=1), np.array([last - 0.3, last + 0.3])
    edges = np.cumsum(mean[:-1], axis=0)
    small = max(1e-9 * np.nanmax(np.abs(mean)), ROUNDING)
    with axes(ax) as ax:
        ax.plot(lags, edges[0], color=BLACK, linestyle="--")
        ends = mean[:, -1] if per_step else mean[:, -1] / max(last, 1)
        handles: list[Any] = [
            Line2D([], [], color=BLACK, linestyle="--", label=f"{present[0][1]}: {_signed(ends[0], 3)}")
        ]
        for i, (_, label, colour) in enumerate(present[1:], start=1):
            if np.nanmax(np.abs(mean[i])) <= small:
                continue
            label = f"{label}: {_signed(ends[i], 3)}"
            face: dict[str, Any] = {"facecolor": colour, "linewidth": 0}
            above, below, adds = edges[i - 1], edges[i], mean[i] > small
            ax.fill_between(lags, below, above, where=~adds, interpolate=True, **face)
            if adds.any():
                hatch: dict[str, Any] = {"facecolor": "none", "edgecolor": colour, "hatch": "//////", "linewidth": 0}
                ax.fill_between(lags, below, above, where=adds, interpolate=True, **hatch)
                face = hatch if adds[-1] else face
            handles.append(Patch(**face, label=label))
        ax.plot(lags, mean[-1], color=BLACK, linewidth=1.5 * mpl.rcParams["lines.linewidth"])
        handles.append(Line2D([], [], color=BLACK, label=f"measured: {_signed(ends[-1], 3)}"))
        bar = last < lags[-1]
        ax.set_xlim(*((last - 0.8, last + 0.8) if bar else (lags[0], last)))
        ax.axhline(0, color=BLACK, linewidth=0.5 * mpl.rcParams["axes.linewidth"])
        keep_height(ax)
        label_lag(ax, "mean over the lag (nats/step)" if per_step else "sum over the lag (nats)")
        if bar:
            ax.set_xticks([last])
        legend_above(ax, handles, title=f"nats per step at lag {last}")
    return ax


def _median(ds: xr.Dataset, name: str) -> Array:
    """Return the median of a variable over sequences at equal lag, [K+1, …]."""
    return _quantile(by_lag(ds, name), 0.5)


def _draw_fit(ds: xr.Dataset, ax: Axes, middle: Array) -> None:
    """Draw the fitted rate as a line through the middle of the median gradient, and name it."""
    rates = np.atleast_1d(ds["decay_rate"].values)
    if not len(rates := rates[np.isfinite(rates)]):
        return
    rate = float(rates.mean())
    if len(rates) > 1:
        error = float(rates.std(ddof=1) / math.sqrt(len(rates)))
    else:
        error = float(np.nanmean(ds["decay_rate_standard_error"])) if "decay_rate_standard_error" in ds else math.nan
    label = f"fit: {_with_error(rate, error)}"
    if "decay_half_life" in ds and not _rounding(rate, error):
        half = float(_quantile(np.atleast_1d(ds["decay_half_life"].values), 0.5))
        label += f"\nhalf-life {half:.3g} steps" if math.isfinite(half) else "\n(does not vanish)"
    first, last = 0, len(middle) - 1
    if "decay_first_lag" in ds and "decay_last_lag" in ds:
        ends = [float(np.nanmedian(ds[name])) for name in ("decay_first_lag", "decay_last_lag")]
        first, last = max(0, round(ends[0])), min(last, round(ends[1]))
    lags = np.arange(first, last + 1)
    fitted = middle[first : last + 1]
    good = np.isfinite(fitted)
    if good.any():
        line = rate * lags
        line = line + float(np.mean(fitted[good] - line[good]))
        ax.plot(lags, line, color=PINK, linestyle=(0, (3, 2)), label=label, zorder=3)


def _with_error(value: float, error: float) -> str:
    """Return "value ± error" with two digits of the error; below 1e-5, with its order of magnitude."""
    if _rounding(value, error):
        return "0 within rounding"
    if not math.isfinite(error) or error <= 0:
        return f"{value:+.3g}".replace("-", "−")
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        return f"{value:+.6g} ± {error:.1g}".replace("-", "−")
    return f"{value:+.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


def _rounding(rate: float, error: float) -> bool:
    """Whether a rate and its error, if there is one, are nothing but rounding."""
    return abs(rate) < ROUNDING and not error >= ROUNDING


def _signed(rate: float, decimals: int | None = None) -> str:
    """Return a rate with its sign, to two digits or to so many decimals."""
    if np.isneginf(rate):
        return "−∞"
    if abs(rate) < ROUNDING:
        return "0"
    return (f"{rate:+.2g}" if decimals is None else f"{rate:+.{decimals}f}").replace("-", "−")

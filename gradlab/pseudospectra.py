"""The pseudospectrum of the recurrent matrix: what eigenvalues alone do not show of a matrix that is not normal."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import ArrayLike

from gradlab.figures import axes, legend_above, one_network
from gradlab.lags import BLACK, ORANGE, RED, need
from gradlab.resolvent import numerical_range, smallest_singular_values
from gradlab.spectrum import RecurrentSpectrum, recurrent_spectrum
from gradlab.validation import Array, square_matrix

LARGEST = 512  # at which the grid takes about a minute
FINE, COARSE = 161, 81  # points across the figure, up to and beyond FINE_UP_TO units
FINE_UP_TO = 128
MOST_LEVELS, MOST_TICKS = 13, 7
REACH = 2.5  # times the spectral radius or 1: a numerical range beyond leaves the frame


def pseudospectrum(W_or_ds: ArrayLike | xr.Dataset, *, ax: Axes | None = None) -> Axes:
    r"""Draw how near to singular zI − W is over the complex plane, with the unit circle.

    Contours of log10 σ_min(zI − W): inside the contour −p lie all eigenvalues of all W + E with ‖E‖ ≤ 10^{−p}. For a
    normal W they are circles about the eigenvalues. Where a contour of ε lies further outside the unit circle than ε,
    the powers of W grow before they decay: the Kreiss constant is the largest (|z| − 1)/σ_min(zI − W), and the legend
    gives a number it is at least, beside the largest ‖W^k‖. Orange: the boundary of the numerical range; if it lies
    in the unit disc, ‖W^k‖ ≤ 2 for all k. All of this is about W; only a linear network has W^k for its Jacobians.

    Args:
        W_or_ds: W [n, n] as it acts, a = W h (the transpose of a Keras `recurrent_kernel`), or a dataset with the
            variable recurrent_matrix; n ≤ 512.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: W is not a finite square matrix or larger than 512, the variable is missing, or the dataset holds
            several networks.
        TypeError: W does not hold real numbers.

    Source:
        Trefethen & Embree 2005, Spectra and Pseudospectra.

    Examples:
        >>> ax = pseudospectrum([[0.5, 4.0], [0.0, 0.5]])
        >>> ax.get_legend().get_title().get_text()
        '$\\rho$ = 0.5, $w$ = 2.5, $K \\geq$ 2.12, sup $\\Vert W^k\\Vert$ = 4.06'
    """
    W = _matrix(W_or_ds)
    w, boundary = recurrent_spectrum(W), numerical_range(W)
    x, y = _grid(w, boundary, len(W))
    half = smallest_singular_values(W, x[None, :] + 1j * y[:, None])  # [Y, X], y ≥ 0
    floor = len(W) * np.finfo(float).eps * max(w.sigma_max, 1e-300)
    log_sigma = np.log10(np.maximum(np.concatenate([half[:0:-1], half]), floor))  # W is real: the lower half mirrors
    with axes(ax, height=3.3) as ax:
        levels = _levels(log_sigma)
        filled = ax.contourf(x, np.r_[-y[:0:-1], y], log_sigma, levels, cmap="Blues_r", extend="min")
        ax.contour(filled, colors="white", linestyles="solid", linewidths=0.5 * mpl.rcParams["axes.linewidth"])
        _draw_landmarks(ax, w, boundary)
        ax.set(xlim=(x[0], x[-1]), ylim=(-y[-1], y[-1]), aspect="equal")
        ax.locator_params(nbins=5)
        ax.set(xlabel=r"Re $z$", ylabel=r"Im $z$")
        bar = ax.get_figure(root=True).colorbar(filled, ax=ax, fraction=0.046, pad=0.03)  # type: ignore[union-attr]
        bar.set_ticks(_ticks(levels), minor=False)
        bar.set_label(r"$\log_{10}\,\sigma_{\min}(zI - W)$")
        bar.ax.tick_params(labelsize=mpl.rcParams["xtick.labelsize"], length=mpl.rcParams["xtick.major.size"])
        bar.outline.set_linewidth(mpl.rcParams["axes.linewidth"])
        legend_above(ax, _legend(w), title=_numbers(w))
    return ax


def _matrix(W_or_ds: ArrayLike | xr.Dataset) -> Array:
    """Return W [n, n], checked."""
    if isinstance(W_or_ds, xr.Dataset):
        why = "pass W itself, as_step(cell).recurrence.recurrent_matrix, or analyze a cell that has one"
        need(W_or_ds, "pseudospectrum", recurrent_matrix=why)
        W_or_ds = one_network(W_or_ds, "pseudospectrum")["recurrent_matrix"].values
    W = square_matrix("W", W_or_ds)
    if len(W) > LARGEST:
        raise ValueError(
            f"pseudospectrum takes at most {LARGEST} units, got {len(W)}; gl.recurrent_spectrum gives the numbers,"
            " gradlab.resolvent.smallest_singular_values the values at points of your choice"
        )
    return W


def _grid(w: RecurrentSpectrum, boundary: Any, n: int) -> tuple[Array, Array]:
    """Return x [X] and y ≥ 0 [Y] of a frame that holds the unit circle, the eigenvalues, and what it can of the range.

    The frame is a square about the origin, with unequal numbers of points across so that no eigenvalue lies on one.
    """
    inner = max(1.0, w.spectral_radius)
    extent = 1.12 * min(max(inner, float(np.abs([boundary.real, boundary.imag]).max())), REACH * inner)
    points = FINE if n <= FINE_UP_TO else COARSE
    return np.linspace(-extent, extent, points), np.linspace(0.0, extent, points // 2 + 1)


def _levels(log_sigma: Array) -> Array:
    """Return at most MOST_LEVELS round levels that hold the middle of the values, with the largest at the top."""
    top, low = float(log_sigma.max()), float(np.quantile(log_sigma, 0.005))
    for step in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0):
        levels = step * np.arange(math.floor(low / step), math.ceil(top / step) + 1)
        if len(levels) <= MOST_LEVELS + 1:
            break
    return np.asarray(levels)


def _ticks(levels: Array) -> list[float]:
    """Return at most MOST_TICKS of the levels, evenly apart and zero among them where it is a level."""
    step = float(levels[1] - levels[0])
    stride = math.ceil(len(levels) / MOST_TICKS)
    return [float(level) for level in levels if round(float(level) / step) % stride == 0]


def _draw_landmarks(ax: Axes, w: RecurrentSpectrum, boundary: Any) -> None:
    """Draw the unit circle, the boundary of the numerical range and the eigenvalues."""
    width = 1.5 * mpl.rcParams["axes.linewidth"]
    ax.add_patch(Circle((0, 0), 1.0, fill=False, edgecolor=BLACK, linewidth=1.5 * width, zorder=2.5))
    edge = [patheffects.withStroke(linewidth=2.2 * width, foreground="white")]
    ax.plot(boundary.real, boundary.imag, color=ORANGE, linewidth=1.3 * width, path_effects=edge)
    area = min(12.0, 600.0 / len(w.eigenvalues))
    ax.scatter(
        w.eigenvalues.real,
        w.eigenvalues.imag,
        s=area,
        color=RED,
        edgecolors="white",
        linestyles="solid",
        linewidths=0.3,
        zorder=3,
    )


def _legend(w: RecurrentSpectrum) -> list[Any]:
    """Return the handles of what is drawn."""
    width = 1.5 * mpl.rcParams["axes.linewidth"]
    many = f"{len(w.eigenvalues)} eigenvalues" if len(w.eigenvalues) > 1 else "eigenvalue"
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.5, "markeredgewidth": 0}
    return [
        Line2D([], [], color=BLACK, linewidth=1.5 * width, label="unit circle"),
        Line2D([], [], color=ORANGE, linewidth=1.3 * width, label="numerical range"),
        Line2D([], [], color=RED, label=many, **dot),
    ]


def _numbers(w: RecurrentSpectrum) -> str:
    """Return the numbers that the figure is about."""
    said = rf"$\rho$ = {w.spectral_radius:.3g}, $w$ = {w.numerical_radius:.3g}, "
    if not math.isfinite(w.transient_peak):
        return said + r"$\Vert W^k\Vert$ grows without end"
    sign = "=" if w.transient_peak_upper == w.transient_peak else r"$\geq$"
    return said + rf"$K \geq$ {w.kreiss_lower_bound:.3g}, sup $\Vert W^k\Vert$ {sign} {w.transient_peak:.3g}"

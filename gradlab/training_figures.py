"""Figures of a model in training, from the dataset of `gl.GradientTracker` alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from gradlab.figures import axes, keep_height, legend_above, style
from gradlab.lags import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, drawn, need, one_layer
from gradlab.results import replacing
from gradlab.validation import Array

TRACK = "gl.GradientTracker(…).dataset() holds it, and gl.tracked(ds) of a run that was tracked"
_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK)


def gradient_flow(ds: xr.Dataset, *, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw how far back the gradient reaches, look by look: ln‖∂L/∂h_t‖ relative to its largest value over t.

    One column a look, labelled with the epoch. What is more than 30 nats (1e13) below the largest is drawn like 30;
    looks after training diverged are left grey.

    Args:
        ds: needs log_gradient_norm over epoch, layer and time.
        layer: which; the first if not given.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or there is no such layer.

    Examples:
        >>> norms = [[[-2.0, -1.0, 0.0]], [[-0.2, -0.1, 0.0]]]
        >>> ds = xr.Dataset(
        ...     {"log_gradient_norm": (("epoch", "layer", "time"), norms)},
        ...     {"epoch": [0.0, 1.0], "layer": ["rnn"], "time": [0, 1, 2]},
        ... )
        >>> gradient_flow(ds).get_ylabel()
        'time step $t$'
    """
    ds, name = _one_layer(ds, "gradient_flow", layer, "log_gradient_norm")
    norms = ds["log_gradient_norm"].transpose("time", "epoch").values
    norms = norms[~np.isnan(norms).all(axis=1)]
    top = _largest(norms)
    with np.errstate(invalid="ignore"):
        shown = np.maximum(norms - top, -30.0)
    low = float(np.nanmin(shown)) if np.isfinite(shown).any() else -1.0
    with axes(ax) as ax:
        edges = np.arange(ds.sizes["epoch"] + 1) - 0.5
        rows = np.arange(len(norms) + 1) - 0.5
        ax.set_facecolor("0.85")
        mesh = ax.pcolormesh(edges, rows, shown, cmap="viridis", vmin=min(low, -1.0), vmax=0.0, rasterized=True)
        _epoch_ticks(ax, ds["epoch"].values)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(ylabel="time step $t$", xlabel="epoch (one column a look)")
        ax.set_title(name.removeprefix(", "))
        bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
        bar.set_label(r"$\ln\Vert\partial L/\partial h_t\Vert$ less its largest over $t$ (nats)")
        bar.outline.set_linewidth(mpl.rcParams["axes.linewidth"])
    return ax


def gradient_curves(ds: xr.Dataset, *, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw ln‖∂L/∂h_t‖ over t, a line for each look, from light (first) to dark (last); dotted: the direct part.

    Args:
        ds: needs log_gradient_norm over epoch, layer and time; log_direct_gradient_norm is drawn for the last look.
        layer: which; the first if not given.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or there is no such layer.

    Examples:
        >>> t = np.arange(5)
        >>> steep = (t - 4.0)[None, None] * np.array([1.0, 0.5, 0.1])[:, None, None]  # epoch, layer, time
        >>> ds = xr.Dataset({"log_gradient_norm": (("epoch", "layer", "time"), steep)})
        >>> ax = gradient_curves(ds.assign_coords(epoch=[0.0, 1.0, 10.0], layer=["rnn"], time=t))
        >>> [line.get_label() for line in ax.lines]
        ['epoch 0', 'epoch 1', 'epoch 10']
    """
    ds, name = _one_layer(ds, "gradient_curves", layer, "log_gradient_norm")
    values, epochs = ds["log_gradient_norm"].transpose("epoch", "time").values, ds["epoch"].values
    seen = np.flatnonzero(np.isfinite(values).any(axis=1))
    shades = mpl.colormaps["Blues"](np.linspace(0.3, 1.0, max(len(seen), 2)))
    with axes(ax) as ax:
        named = {seen[0], seen[len(seen) // 2], seen[-1]} if len(seen) else set()
        for shade, e in zip(shades[-len(seen) :] if len(seen) else [], seen, strict=True):
            label = f"epoch {epochs[e]:g}" if e in named else None
            ax.plot(ds["time"], drawn(values[e]), color=shade, label=label)
        if "log_direct_gradient_norm" in ds and len(seen):
            direct = drawn(ds["log_direct_gradient_norm"].transpose("epoch", "time").values[seen[-1]])
            mark: dict[str, Any] = {"marker": "o", "markersize": 2.5, "linestyle": ":", "color": RED, "clip_on": False}
            ax.plot(ds["time"], direct, label="direct, last look", **mark)
        _time_axis(ax, rf"$\ln\Vert\partial L/\partial h_t\Vert$ (nats){name}")
        keep_height(ax)
        legend_above(ax)
    return ax


def rates(ds: xr.Dataset, *, layer: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw over training the measured decay rate of ‖∂L/∂h_t‖ beside λ_1 and ln ρ(W), of an LSTM or a GRU ln ρ(W_c).

    Above 0 gradients grow on their way back, below they shrink.

    Args:
        ds: needs decay_rate, largest_lyapunov_exponent and spectral_radius over epoch and layer.
        layer: which; the first if not given.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or there is no such layer.

    Examples:
        >>> names = ("decay_rate", "largest_lyapunov_exponent", "spectral_radius")
        >>> ds = xr.Dataset(
        ...     {name: (("epoch", "layer"), [[0.5], [0.9]]) for name in names}, {"epoch": [0.0, 1.0], "layer": ["rnn"]}
        ... )
        >>> len(rates(ds).lines)
        4
    """
    wanted = ("decay_rate", "largest_lyapunov_exponent", "spectral_radius")
    ds, name = _one_layer(ds, "rates", layer, *wanted)
    blocks = json.loads(ds.attrs.get("recurrent_matrix", "{}"))  # of a gated cell the candidate's
    block = str(blocks.get(str(ds["layer"].item()) if "layer" in ds.coords else "", "W")).split(".")[-1]
    radius = r"$\ln\rho(W)$" if block in ("W", "") else rf"$\ln\rho(W_{block})$"
    epochs = ds["epoch"].values
    with axes(ax) as ax, np.errstate(divide="ignore"):
        ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
        lines: tuple[tuple[Array, dict[str, Any]], ...] = (
            (ds["decay_rate"].values, {"color": BLACK, "label": "gradient", "marker": "o"}),
            (ds["largest_lyapunov_exponent"].values, {"color": BLUE, "label": r"$\lambda_1$", "marker": "s"}),
            (np.log(ds["spectral_radius"].values), {"color": ORANGE, "label": radius, "linestyle": "--"}),
        )
        for values, look in lines:
            ax.plot(epochs, drawn(values), markersize=2.5, **look)
        ax.set(xlabel="epoch", ylabel=f"rate (nats/step){name}")
        _epoch_axis(ax, epochs)
        keep_height(ax)
        legend_above(ax)
    return ax


def spectrum_over_training(
    ds: xr.Dataset, *, lag: int | None = None, layer: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw ln σ_1 and quantiles of the spectrum of ∂h_T/∂h_{T−k} per step, (1/k) ln σ_i, over training.

    Blue line: the largest; bands: the middle 50 and 80 % of the modes, with their median. A mode that is exactly zero
    is below every frame.

    Args:
        ds: needs log_singular_values_at_lag.
        lag: k, one of spectrum_lag; the longest if not given.
        layer: which; the first if not given.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing, or there is no such layer or lag.

    Examples:
        >>> ds = xr.Dataset(
        ...     {"log_singular_values_at_lag": (("epoch", "layer", "spectrum_lag", "mode"), np.zeros((2, 1, 1, 5)))},
        ...     {"epoch": [0.0, 1.0], "layer": ["rnn"], "spectrum_lag": [8]},
        ... )
        >>> spectrum_over_training(ds).get_ylabel().endswith("(nats/step), $k$ = 8")
        True
    """
    ds, name, k, modes = _modes(ds, "spectrum_over_training", layer, lag)
    epochs = ds["epoch"].values
    per_step = np.sort(modes, axis=1) / k  # NaN last; −∞ stays below all
    count = np.sum(~np.isnan(modes), axis=1)

    def at(q: float) -> Array:
        place = np.floor(q * np.maximum(count - 1, 0)).astype(np.int64)
        return drawn(np.take_along_axis(per_step, place[:, None], axis=1)[:, 0])

    with axes(ax) as ax:
        ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
        ax.plot(epochs, at(1.0), color=BLUE, marker="o", markersize=2.5, label=r"$\sigma_1$")
        ax.plot(epochs, at(0.5), color=BLACK, linewidth=0.8, label="median mode")
        for low, high, alpha, label in ((0.25, 0.75, 0.35, "middle 50 %"), (0.1, 0.9, 0.18, "middle 80 %")):
            ax.fill_between(epochs, at(low), at(high), color=SKY, alpha=alpha, linewidth=0, label=label)
        ax.set(xlabel="epoch", ylabel=rf"$\ln\sigma_i/k$ (nats/step), $k$ = {k}{name}")
        _epoch_axis(ax, epochs)
        keep_height(ax)
        legend_above(ax)
    return ax


def weight_gradients(ds: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Draw the norm of the gradient of every weight over training, before clipping (lines) and after (dots).

    Args:
        ds: needs log_weight_gradient_norm; log_clipped_weight_gradient_norm is drawn if it differs.
        ax: axes to draw on; a new figure if not given.

    Returns:
        The axes.

    Raises:
        ValueError: a variable is missing.

    Examples:
        >>> ds = xr.Dataset(
        ...     {"log_weight_gradient_norm": (("epoch", "weight"), [[0.0], [-1.0]])},
        ...     {"epoch": [0.0, 1.0], "weight": ["rnn/kernel"]},
        ... )
        >>> [float(y) for y in weight_gradients(ds).lines[0].get_ydata().round(3)]
        [1.0, 0.368]
    """
    need(ds, "weight_gradients", log_weight_gradient_norm=TRACK)
    epochs = ds["epoch"].values
    before = np.exp(ds["log_weight_gradient_norm"].transpose("epoch", "weight").values)
    after = before
    if "log_clipped_weight_gradient_norm" in ds:
        after = np.exp(ds["log_clipped_weight_gradient_norm"].transpose("epoch", "weight").values)
    names = _short([str(one) for one in ds["weight"].values])
    with axes(ax, height=3.1) as ax:
        for i, name in enumerate(names):
            line = ("-", "--", ":")[i // len(_COLOURS) % 3]
            colour = _COLOURS[i % len(_COLOURS)]
            ax.plot(epochs, before[:, i], color=colour, linestyle=line, label=name)
            clipped = np.abs(after[:, i] - before[:, i]) > 1e-6 * before[:, i]
            ax.plot(epochs[clipped], after[clipped, i], "o", color=colour, markersize=2.5, markerfacecolor="white")
        if (np.abs(after - before) > 1e-6 * before).any():
            ax.plot([], [], "o", color=GREY, markersize=2.5, markerfacecolor="white", label="after clipping")
        ax.set(xlabel="epoch", ylabel=r"$\Vert\partial L/\partial w\Vert$", yscale="log")
        low, high = ax.get_ylim()
        if high < 300 * low:  # too few decades to be ticks enough
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        _epoch_axis(ax, epochs)
        legend_above(ax)
    return ax


def animate_spectrum(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    lags: list[int] | None = None,
    frames_per_second: int = 3,
) -> Path:
    """Write a GIF of the singular values of ∂h_T/∂h_{T−k} at several lags k, look by look.

    Each frame shows (1/k) ln σ_i over the rank of the mode, from the largest to the smallest: the whole spectrum, on
    axes that stay as they are.

    Args:
        ds: needs log_singular_values_at_lag.
        path: where to, ending in ".gif"; written whole or not at all.
        layer: which; the first if not given.
        lags: which k; up to four spread over those that there are if not given.
        frames_per_second: how fast.

    Returns:
        The path.

    Raises:
        ValueError: a variable is missing, there is no such layer or lag, nothing finite to draw, or another ending.

    Examples:
        >>> import tempfile
        >>> ds = xr.Dataset(
        ...     {"log_singular_values_at_lag": (("epoch", "layer", "spectrum_lag", "mode"), np.zeros((2, 1, 1, 5)))},
        ...     {"epoch": [0.0, 1.0], "layer": ["rnn"], "spectrum_lag": [8]},
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     animate_spectrum(ds, Path(folder) / "spectrum.gif").name
        'spectrum.gif'
    """
    if Path(path).suffix.lower() != ".gif":
        raise ValueError(f'path must end in ".gif", got {os.fspath(path)!r}')
    need(ds, "animate_spectrum", log_singular_values_at_lag=TRACK)
    known = [int(k) for k in ds["spectrum_lag"].values]
    chosen = lags or [known[i] for i in sorted({*np.linspace(0, len(known) - 1, 4).round().astype(int).tolist()})]
    curves = {k: _modes(ds, "animate_spectrum", layer, k)[3] / k for k in chosen}
    _, name = _one_layer(ds, "animate_spectrum", layer, "log_singular_values_at_lag")
    everything = np.concatenate([one[np.isfinite(one)] for one in curves.values()])
    if not everything.size:
        raise ValueError("animate_spectrum needs a singular value that is finite, got none; look at earlier epochs")
    epochs = ds["epoch"].values
    # a few tiny values must not press the rest together
    low, high = np.quantile(everything, 0.005), everything.max()
    room = 0.06 * max(high - low, 1e-6)
    shades = mpl.colormaps["viridis_r"](np.linspace(0.15, 0.95, len(chosen)))
    with style():
        fig, ax = plt.subplots(figsize=(3.4, 2.7))
        try:
            ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
            lines = [ax.plot([], [], color=c, label=f"$k$ = {k}")[0] for k, c in zip(chosen, shades, strict=True)]
            n = max(int(np.sum(~np.isnan(one), axis=1).max()) for one in curves.values())
            ax.set(xlim=(1, max(n, 2)), ylim=(low - room, high + room))
            ax.set(xlabel="mode $i$", ylabel=r"$\ln\sigma_i(\partial h_T/\partial h_{T-k})/k$ (nats/step)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            legend_above(ax)
            text = ax.text(0.98, 0.96, "", transform=ax.transAxes, ha="right", va="top")

            def draw(e: int) -> list[Any]:
                for k, line in zip(chosen, lines, strict=True):
                    values = drawn(curves[k][e])
                    line.set_data(np.arange(1, len(values) + 1), values)
                text.set_text(f"epoch {epochs[e]:g}{name}")
                return [*lines, text]

            film = FuncAnimation(fig, draw, frames=len(epochs), blit=False)
            with replacing(path) as temporary:
                # the writer goes by the ending, which a temporary file does not have
                whole = temporary.with_suffix(".gif")
                try:
                    film.save(whole, writer=PillowWriter(fps=frames_per_second), dpi=160)
                    os.replace(whole, temporary)
                finally:
                    whole.unlink(missing_ok=True)
        finally:
            plt.close(fig)
    return Path(path)


def _one_layer(ds: xr.Dataset, figure: str, layer: str | None, *variables: str) -> tuple[xr.Dataset, str]:
    """Return the dataset of one layer, and ", layer <name>" to tell it from others, if there are any."""
    need(ds, figure, **dict.fromkeys(variables, TRACK))
    for variable in variables:
        if "epoch" not in ds[variable].dims:
            raise ValueError(
                f"{figure} draws {variable} of every look, and here it has the dims {ds[variable].dims}; {TRACK}"
            )
    chosen, name = one_layer(ds, figure, layer, **dict.fromkeys(variables, TRACK))
    return chosen, f", layer {name}" if ds.sizes.get("layer", 1) > 1 else ""


def _modes(ds: xr.Dataset, figure: str, layer: str | None, lag: int | None) -> tuple[xr.Dataset, str, int, Array]:
    """Return (dataset, what tells the layer from others, lag, ln σ [epoch, mode]) of one layer at one lag."""
    ds, name = _one_layer(ds, figure, layer, "log_singular_values_at_lag")
    values = ds["log_singular_values_at_lag"].transpose("epoch", "spectrum_lag", "mode").values
    known = [int(k) for k in ds["spectrum_lag"].values]
    reached = [k for i, k in enumerate(known) if not np.isnan(values[:, i]).all()]
    k = (reached or known)[-1] if lag is None else int(lag)
    if k not in known:
        raise ValueError(f"lag must be one of {known}, got {lag}")
    return ds, name, k, values[:, known.index(k)]


def _largest(norms: Array) -> Array:
    """Return the largest finite value of each column; NaN where there is none."""
    finite = np.where(np.isfinite(norms), norms, -np.inf).max(axis=0)
    return np.where(np.isfinite(finite), finite, np.nan)


def _short(names: list[str]) -> list[str]:
    """Return paths of weights without the parts that all of them share at the front."""
    parts = [name.split("/") for name in names]
    while len(parts) > 1 and all(len(one) > 2 for one in parts) and len({one[0] for one in parts}) == 1:
        parts = [one[1:] for one in parts]
    # a layer that holds its cell says the name of it, too
    return ["/".join([one[0], one[-1]]) if len(one) > 2 else "/".join(one) for one in parts]


def _epoch_ticks(ax: Axes, epochs: Array) -> None:
    """Label columns with their epochs, as many as there is room for."""
    step = max(1, -(-len(epochs) // 9))
    places = np.arange(0, len(epochs), step)
    ax.set_xticks(places, [f"{epochs[i]:.3g}" for i in places])


def _epoch_axis(ax: Axes, epochs: Array) -> None:
    """Let the epochs fill the width."""
    if len(epochs) > 1:
        ax.set_xlim(epochs[0], epochs[-1])
    ax.xaxis.set_major_locator(MaxNLocator(integer=bool(np.all(epochs == np.round(epochs)))))


def _time_axis(ax: Axes, ylabel: str) -> None:
    """Label the axes of something over the steps of a sequence."""
    ax.set(xlabel="time step $t$", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))

"""The figures of `decay_vs_spectrum.py`, from its dataset alone. No TensorFlow.

The overview is drawn again by

    python benchmarks/decay_vs_spectrum_figures.py out/decay_vs_spectrum.nc
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from decay_vs_spectrum_report import CELLS, PREDICTORS, predictors, summarise
from matplotlib.lines import Line2D

import gradlab as gl

COLOURS = {"tanh": "#0072B2", "relu": "#D55E00", "lstm": "#009E73", "gru": "#CC79A7"}
MARKERS = {"tanh": "o", "relu": "s", "lstm": "^", "gru": "D"}


def draw_overview(ds: xr.Dataset, summary: pd.DataFrame, stem: Path) -> None:
    """Draw predictors against measurement (top) and the decay itself (bottom)."""
    with gl.plot.style():
        figure, axes = plt.subplots(2, 4, figsize=(7.2, 4.1), layout="constrained")
        for ax, names in zip(
            axes[0],
            (["log_spectral_radius"], ["mean_field_rate"], [_lyapunov(ds)], ["log_promise", "log_step_norm"]),
            strict=True,
        ):
            _scatter(ds, summary, names, ax)
        axes[0, 0].set_ylabel("measured decay rate\n(nats/step)")
        cells = list(dict.fromkeys(ds["cell"].values))
        for ax, cell in zip(axes[1], cells, strict=False):
            _curves(ds, cell, ax)
        for ax in axes[1, len(cells) :]:
            ax.set_axis_off()
        axes[1, 0].set_ylabel("ln‖∂L/∂h$_t$‖ − ln‖∂L/∂h$_T$‖\n(nats)")
        _legends(figure, axes, ds, cells)
        gl.plot.save_figure(figure, stem)
        plt.close(figure)


def _lyapunov(ds: xr.Dataset) -> str:
    """Return the exponent to draw: the forecast, where there is one."""
    return "lyapunov_held_out" if "lyapunov_held_out" in ds else "lyapunov"


def _scatter(ds: xr.Dataset, summary: pd.DataFrame, names: list[str], ax: plt.Axes) -> None:
    """Draw measured against predicted; the last of `names` serves the cells that the first does not hold for."""
    for cell in dict.fromkeys(ds["cell"].values):
        runs = ds.isel(run=np.flatnonzero(ds["cell"].values == cell))
        name = names[0] if np.isfinite(runs[names[0]]).any() else names[-1]
        for stage in runs["stage"].values:
            one = runs.sel(stage=stage)
            filled = COLOURS[cell] if stage == "trained" else "white"
            ax.scatter(one[name], one["rate"], s=9, marker=MARKERS[cell], c=filled, edgecolors=COLOURS[cell], lw=0.7)
    low, high = _limits(ds)
    ax.axline((0, 0), slope=1, color="0.4", lw=0.8, zorder=0)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set_xlabel(" or ".join(PREDICTORS[name][0] for name in names) + "\n(nats/step)")
    title = {
        "log_spectral_radius": "spectral radius",
        "mean_field_rate": "mean field",
        "lyapunov": "Lyapunov exponent",
        "lyapunov_held_out": "Lyapunov exponent",
        "log_promise": "upper bound",
    }[names[0]]
    ax.set_title(title)
    label = "both" if ds.sizes["stage"] > 1 else str(ds["stage"].values[0])
    rmse = summary[summary["stage"] == label].set_index("predictor")["rmse"]
    symbol = PREDICTORS[names[0]][0]
    if symbol in rmse.index:
        said = f"rms error {rmse[symbol]:.2f}"
        if names[0] == "lyapunov_held_out":
            said = f"rms error {rmse[symbol]:.3f}\n(same sequences:\n{rmse[PREDICTORS['lyapunov'][0]]:.3f})"
        ax.text(0.04, 0.96, said, transform=ax.transAxes, va="top", fontsize=7)


def _limits(ds: xr.Dataset) -> tuple[float, float]:
    """Return limits that serve every panel alike, so that a distance from the diagonal means the same in each."""
    values = np.concatenate([ds[name].values.ravel() for name in ("rate", *predictors(ds))])
    values = values[np.isfinite(values)]
    margin = 0.06 * np.ptp(values) + 0.02
    return float(values.min() - margin), float(values.max() + margin)


def _curves(ds: xr.Dataset, cell: str, ax: plt.Axes) -> None:
    """Draw the median decay curve of one cell, a colour a gain, mean over seeds."""
    gains = sorted(set(ds["gain"].values[ds["cell"].values == cell]))
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.88, len(gains)))
    for gain, colour in zip(gains, colours, strict=True):
        runs = ds["decay_curve"].isel(run=np.flatnonzero((ds["cell"].values == cell) & (ds["gain"].values == gain)))
        for stage in runs["stage"].values:
            curve = runs.sel(stage=stage).median("run")
            ax.plot(
                ds["lag"], curve.where(np.isfinite(curve)), color=colour, lw=1.0,
                ls="--" if stage == "trained" else "-", label=f"{gain:g}" if stage == ds["stage"].values[0] else None,
            )  # fmt: skip
    ax.axhline(0.0, color="0.6", lw=0.6, zorder=0)
    ax.set_title(CELLS[cell])
    ax.set_xlabel("lag k (steps)")


def _legends(figure: plt.Figure, axes: np.ndarray, ds: xr.Dataset, cells: list[str]) -> None:
    """Say what markers, fillings and colours mean, once."""
    handles = [
        Line2D([], [], ls="", marker=MARKERS[c], mfc="white", mec=COLOURS[c], ms=4, label=CELLS[c]) for c in cells
    ]
    if ds.sizes["stage"] > 1:
        handles += [
            Line2D([], [], ls="", marker="o", mfc="white", mec="0.3", ms=4, label="initial (open, solid line)"),
            Line2D([], [], ls="", marker="o", mfc="0.3", mec="0.3", ms=4, label="trained (filled, dashed line)"),
        ]
    handles.append(Line2D([], [], color="0.4", lw=0.8, label="prediction = measurement"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, columnspacing=1.2)
    axes[1, 0].legend(title="gain g", fontsize=5.5, title_fontsize=6, loc="best", ncols=2, handlelength=1.2)


def draw_anatomy(ds: xr.Dataset, stem: Path) -> None:
    """Draw one trained network from four sides: decay with bounds, fan of singular values, W in the plane, budget."""
    last = ds.isel(stage=-1)
    with gl.plot.style():
        figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.2), layout="constrained")
        gl.plot.decay(last, ax=axes[0, 0])
        gl.plot.fan(last, ax=axes[0, 1])
        gl.plot.eigenvalues(last, ax=axes[1, 0])
        gl.plot.budget(last, ax=axes[1, 1])
        described = json.loads(ds.attrs["experiment"])
        figure.suptitle(
            f"{ds.attrs['cell']}, gain {described['gain']:g}, seed {described['seed']},"
            f" {last['stage'].values!s}, {described['data']}"
        )
        gl.plot.save_figure(figure, stem)
        plt.close(figure)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    dataset = gl.load(source)
    draw_overview(dataset, summarise(dataset), source.with_suffix(""))

"""The figures of `vanishing_gradients.py`, from its dataset alone. No TensorFlow.

They are drawn again by

    python benchmarks/vanishing_gradients_figures.py benchmarks/results/vanishing_gradients.nc
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from vanishing_gradients_report import LN2, UNDECIDED, judged, number, runs_of, tasks_of
from vanishing_gradients_runs import ACCOUNT, BUDGET

import gradlab as gl
from gradlab.statistics import mean_interval

BLACK, GREY = "#000000", "#8c8c8c"
BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
ROLES = {"far": ("tanh", BLUE, "-"), "near": ("tanh", SKY, "--"), "lstm": ("LSTM", ORANGE, "-.")}
TERMS = {
    "promise": (r"promise, $\ln\gamma\sigma_1(W)$", BLACK),
    "saturation": ("saturation, of the steepest unit", BLUE),
    "within_step": ("within the step", SKY),
    "between_steps": ("between steps", GREEN),
    "direction": ("direction", ORANGE),
}
PARTS = {
    "powers": (r"$W$ alone, $\ln\sigma_1(W^T)/T$", BLACK),
    "bent": (r"slopes $\varphi'\geq 0.1$", PINK),
    "flat": (r"saturated units, $\varphi'<0.1$", BLUE),
    "direction": ("direction", ORANGE),
}
TESTS = {
    "rate, initial": "rate, initial",
    "rate, trained": "rate, trained",
    "ends, initial": "from end to end, initial",
    "ends, trained": "from end to end, trained",
    "slopes, initial": "all slopes, initial",
    "slopes, trained": "all slopes, trained",
    "saturation, initial": "saturated units, initial",
    "saturation, trained": "saturated units, trained",
    "saturation, change": "saturated units, change",
    "whole, change": "slopes and $W$, change",
    "fall": "fall, last third",
    "remains": "what remains",
    "less near": "… less short distance",
    "less lstm": "… less LSTM",
}
VERDICTS = {"supported": BLUE, "refuted": RED, UNDECIDED: GREY}


def draw_task(ds: xr.Dataset, task: str, stem: Path) -> None:
    """Draw one task from six sides: the gradient as a heat map and as curves, loss, accuracy, saturation, rates."""
    far = runs_of(ds, task, "far")
    with gl.plot.style():
        figure, panels = plt.subplots(2, 3, figsize=(7.2, 4.4), layout="constrained")
        _heat_map(far, panels[0, 0])
        _curves(far, panels[0, 1])
        _rates(far, panels[0, 2])
        _learning(ds, task, "training_loss", panels[1, 0])
        _learning(ds, task, "test_accuracy", panels[1, 1])
        _saturation(far, panels[1, 2])
        handles = [
            Line2D([], [], color=colour, linestyle=line, label=f"{cell}, T = {int(runs['steps'][0])}")
            for role, (cell, colour, line) in ROLES.items()
            if (runs := runs_of(ds, task, role)).sizes["run"]
        ]
        _legend_above(panels[1, 0], handles=handles)
        for letter, ax in zip("abcdef", panels.ravel(), strict=True):
            _letter(ax, letter)
        gl.plot.save_figure(figure, stem)
        plt.close(figure)


def _legend_above(ax: Axes, **given: Any) -> None:
    """Put a legend of two columns above the axes; it is narrower than these, and must not widen their margin."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=0.9, **given)


def _letter(ax: Axes, letter: str) -> None:
    ax.annotate(letter, (0, 1), (-26, 3), "axes fraction", "offset points", fontweight="bold", fontsize=8)


def _norms(far: xr.Dataset) -> np.ndarray:
    """Return ln‖∂L/∂h_t‖ [run, look, T+1]."""
    T = int(far["steps"][0])
    values: np.ndarray = far["log_gradient_norm"].transpose("run", "look", "time").values[..., : T + 1]
    return np.where(np.isfinite(values), values, np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis without NaN."""
    count = np.isfinite(values).sum(axis=0)
    total = np.where(np.isfinite(values), values, 0.0).sum(axis=0)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _heat_map(far: xr.Dataset, ax: Axes) -> None:
    """Draw the gradient over looks and time steps, mean of its logarithm over networks."""
    norms = _mean(_norms(far)).T
    edges, rows = np.arange(norms.shape[1] + 1) - 0.5, np.arange(norms.shape[0] + 1) - 0.5
    ax.set_facecolor("0.85")
    high = np.nanmax(norms)
    mesh = ax.pcolormesh(edges, rows, norms, cmap="magma", vmin=max(np.nanmin(norms), high - 25), vmax=high)
    mesh.set_rasterized(True)
    looks = far["look"].values
    step = max(1, -(-len(looks) // 8))
    ax.set_xticks(np.arange(0, len(looks), step), [f"{one:g}" for one in looks[::step]])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch (one column a look)", ylabel="time step $t$")
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, aspect=25)
    bar.set_label(r"$\ln\,\Vert\partial L/\partial h_t\Vert$ (nats)")
    bar.outline.set_linewidth(mpl.rcParams["axes.linewidth"])


def _curves(far: xr.Dataset, ax: Axes) -> None:
    """Draw the gradient over the lag relative to the end, a line a look; a band for the middle of the networks."""
    norms = _norms(far)
    relative = (norms - norms[..., -1:])[..., ::-1]
    looks, lags = far["look"].values, np.arange(norms.shape[-1])
    shades = mpl.colormaps["viridis_r"](np.linspace(0.1, 0.95, len(looks)))
    named = {0, len(looks) // 3, 2 * len(looks) // 3, len(looks) - 1}
    ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
    for e, (look, shade) in enumerate(zip(looks, shades, strict=True)):
        curves = relative[:, e]
        if e in (0, len(looks) - 1) and len(curves) > 2 and np.isfinite(curves).any(axis=0).all():
            low, high = np.nanquantile(curves, [0.1, 0.9], axis=0)
            ax.fill_between(lags, low, high, color=shade, alpha=0.2, linewidth=0)
        ax.plot(lags, _mean(curves), color=shade, label=f"epoch {look:g}" if e in named else None)
    ratio = r"\Vert\partial L/\partial h_t\Vert/\Vert\partial L/\partial h_T\Vert"
    ax.set(xlabel="lag $k=T-t$ (steps)", ylabel=rf"$\ln\,{ratio}$ (nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(ax)


def _band(ax: Axes, x: np.ndarray, values: np.ndarray, colour: str, **look: Any) -> None:
    """Draw the mean over networks [network, x], and its 95 % interval where there are enough of them."""
    good = np.isfinite(values).all(axis=1)
    if good.sum() > 6:
        low, high = mean_interval(values[good], resamples=1999)
        ax.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
    ax.plot(x, _mean(values), color=colour, **look)


def _rates(far: xr.Dataset, ax: Axes) -> None:
    """Draw the fitted rate beside λ1 and ln ρ(W)."""
    looks = far["look"].values
    ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
    threshold = -LN2 / float(far["steps"][0])
    ax.axhline(threshold, color=GREY, linestyle=":", linewidth=0.9, zorder=0.5, label=r"$-\ln 2/T$")
    with np.errstate(divide="ignore"):
        radius = np.log(far["spectral_radius"].transpose("run", "look").values)
    _band(ax, looks, far["rate"].transpose("run", "look").values, BLACK, marker="o", markersize=2, label="gradient")
    _band(ax, looks, far["lyapunov"].transpose("run", "look").values, BLUE, label=r"$\lambda_1$")
    _band(ax, looks, radius, ORANGE, linestyle="--", label=r"$\ln\rho(W)$")
    ax.set(xlabel="epoch", ylabel="rate (nats/step)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(looks[0], looks[-1])
    _legend_above(ax)


def _learning(ds: xr.Dataset, task: str, name: str, ax: Axes) -> None:
    """Draw a learning curve: thin lines for networks, a thick one for their mean, grey for guessing."""
    for role, (_, colour, line) in ROLES.items():
        runs = runs_of(ds, task, role)
        if not runs.sizes["run"]:
            continue
        epochs = np.arange(1, int(runs["epochs"][0]) + 1)
        values = runs[name].transpose("run", "epoch").values[:, : len(epochs)]
        ax.plot(epochs, values.T, color=colour, linewidth=0.4, alpha=0.45)
        ax.plot(epochs, _mean(values), color=colour, linestyle=line, linewidth=1.4)
    far = runs_of(ds, task, "far")
    loss = name.endswith("loss")
    guess = float(far["guess"][0]) if loss else float(far["baseline"][0])
    ax.axhline(guess, color=GREY, linestyle=":", linewidth=0.9, zorder=0.5)
    where = ((1, guess), (-2, 2), ("axes fraction", "data"), "offset points")
    ax.annotate("guessing", *where, ha="right", color="0.4", fontsize=6)
    ax.set(xlabel="epoch", ylabel="training loss (nats)" if loss else "test accuracy")
    ax.set_ylim(0, 1.15 * guess if loss else 1.02)
    ax.set_xlim(1, epochs[-1])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _saturation(far: xr.Dataset, ax: Axes) -> None:
    """Draw the share of flat units and the mean slope."""
    looks = far["look"].values
    _band(ax, looks, far["saturation"].transpose("run", "look").values, BLUE, label=r"saturated, $\varphi'<0.1$")
    stages, slopes = far["stage"].values, far["mean_slope"].transpose("run", "stage").values
    _band(ax, stages, slopes, GREEN, linestyle="--", label=r"mean $\varphi'$")
    ax.set(xlabel="epoch", ylabel="share of units; slope", ylim=(-0.02, 1))
    ax.set_xlim(looks[0], looks[-1])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(ax)


def draw_claims(ds: xr.Dataset, tests: pd.DataFrame, stem: Path) -> None:
    """Draw for each task the budget over training, W against the slopes, and the tests of the claims."""
    tasks = tasks_of(ds)
    with gl.plot.style():
        figure = plt.figure(figsize=(7.2, 0.9 + 2.9 * len(tasks)), layout="constrained")
        grid = figure.add_gridspec(len(tasks), 3, width_ratios=(1, 1, 1.15))
        for row, task in enumerate(tasks):
            far, rows = runs_of(ds, task, "far"), tests[tests["task"] == task]
            budget, account = (figure.add_subplot(grid[row, i]) for i in (0, 1))
            _stack(far["budget"].rename(term="part"), BUDGET, TERMS, budget)
            _stack(far["account"], ACCOUNT, PARTS, account)
            inner = grid[row, 2].subgridspec(2, 1, height_ratios=(10, 4))
            rates, losses = (figure.add_subplot(one) for one in inner)
            _forest(rows[rows["claim"] != 2], rates, "nats/step")
            _forest(rows[rows["claim"] == 2], losses, "training loss (losses of guessing)")
            budget.set_title(f"{task}: the decay budget", loc="left")
            account.set_title("what $W$ does, and what the slopes", loc="left")
            rates.set_title("the claims on trial", loc="left")
        _keys(budget, account, losses)
        gl.plot.save_figure(figure, stem)
        plt.close(figure)


def _keys(budget: Axes, account: Axes, losses: Axes) -> None:
    """Say below the last row what the colours mean."""
    measured = Line2D(
        [], [], color=BLACK, marker="D", ls="", ms=3, label=r"measured, $\Vert\partial L/\partial h_0\Vert$"
    )
    for ax, looks in ((budget, TERMS), (account, PARTS)):
        (first, _), *others = looks.values()
        handles: list[Any] = [Line2D([], [], color=BLACK, label=first)]
        handles += [Patch(facecolor=colour, linewidth=0, label=label) for label, colour in others]
        ax.legend(handles=[*handles, measured], loc="upper left", bbox_to_anchor=(-0.12, -0.16))
    verdicts: list[Any] = [Line2D([], [], color=c, marker="o", ms=3, label=word) for word, c in VERDICTS.items()]
    mark = Line2D([], [], color=GREY, marker=9, ls="", ms=4, label="claimed: on this side of the threshold")
    losses.legend(handles=[*verdicts, mark], loc="upper left", bbox_to_anchor=(-0.05, -0.42))


def _stack(values: xr.DataArray, order: tuple[str, ...], looks: dict[str, tuple[str, str]], ax: Axes) -> None:
    """Draw an account as bars, one a stage: from its first term, each other one takes away or adds, to the measured."""
    means = np.stack([_mean(values.sel(part=name).transpose("run", "stage").values) for name in order])
    places, width = np.arange(means.shape[1]), 0.72
    ax.axhline(0, color=GREY, linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
    for x, terms in zip(places, means.T, strict=True):
        ax.hlines(terms[0], x - width / 2, x + width / 2, color=BLACK, linewidth=1.2)
        at = terms[0]
        for name, term in zip(order[1:], terms[1:], strict=True):
            adds = term > 0
            colour = looks[name][1]
            face: dict[str, Any] = (
                {"facecolor": "none", "edgecolor": colour, "hatch": "////////", "linewidth": 0.4}
                if adds
                else {"facecolor": colour, "linewidth": 0}
            )
            ax.bar(x, term, width, bottom=at, **face)
            at += term
        ax.plot(x, at, marker="D", color=BLACK, markersize=3)
    stages = values["stage"].values
    ax.set_xticks(places, [f"{one:g}" for one in stages])
    ax.set(xlabel="epoch", ylabel="nats/step, mean over $T$ steps", xlim=(-0.6, len(stages) - 0.4))
    ax.use_sticky_edges = False
    ax.margins(y=0.05)


def _forest(rows: pd.DataFrame, ax: Axes, unit: str) -> None:
    """Draw each test below its name: the number with its interval, coloured by the verdict, and the threshold."""
    places = np.arange(len(rows))[::-1]
    ax.axvline(0, color="0.85", linewidth=mpl.rcParams["axes.linewidth"], zorder=0.5)
    for place, (_, row) in zip(places, rows.iterrows(), strict=True):
        colour = VERDICTS[row["verdict"]]
        if np.isfinite(row["low"]):
            ax.hlines(place, row["low"], row["high"], color=colour, linewidth=1.4)
        ax.plot(row["estimate"], place, "o", color=colour, markersize=3)
        ax.vlines(row["threshold"], place - 0.2, place + 0.2, color=GREY, linewidth=0.8)
        ax.plot(row["threshold"], place, marker=8 if row["claimed"] == "below" else 9, color=GREY, markersize=4)
        name = f"({row['claim']}) {TESTS[row['test']]}"
        for at, side, text in ((0, "left", name), (1, "right", number(row, 2).replace("-", "−"))):
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": side, "va": "center"}
            ax.annotate(text, (at, place + 0.45), fontsize=5.5, **where)
    ax.set_yticks([])
    ax.set_ylim(-0.5, len(rows) - 0.3)
    ax.margins(x=0.08)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(unit)


def draw(ds: xr.Dataset, tests: pd.DataFrame, stem: Path) -> list[Path]:
    """Draw all figures beside `stem`, and return their stems."""
    made = []
    for task in tasks_of(ds):
        made.append(stem.with_name(f"{stem.name}_{task.replace(' ', '_')}"))
        draw_task(ds, task, made[-1])
    made.append(stem.with_name(f"{stem.name}_claims"))
    draw_claims(ds, tests, made[-1])
    return made


if __name__ == "__main__":
    source = Path(sys.argv[1])
    dataset = gl.load(source)
    draw(dataset, judged(dataset), source.with_suffix(""))

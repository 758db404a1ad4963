"""The figure of `fixes_compared.py`, from its dataset and table alone. No TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from fixes_compared_report import final_success
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from gradlab.record import figure

COLOURS = {  # Okabe & Ito
    "nothing": "#000000",
    "activation and W": "#0072B2",
    "penalty": "#CC79A7",
    "update": "#D55E00",
    "gates": "#009E73",
    "exploding": "#A66F00",  # a darker orange, which is read as text too
}
BEFORE, AFTER = -0.17, 0.17  # of a row, up and down from its middle


def draw(ds: xr.Dataset, summary: pd.DataFrame, path: Path) -> None:
    """Draw a row for each fix: rate, credit horizon, right answers and time, with 95 % intervals over networks."""
    rows = summary.to_dict(orient="records")
    places = _places(rows)
    with figure(path, 1, 4, figsize=(7.2, 1.15 + 0.185 * (places[-1] + 1)), sharey=True,
                gridspec_kw={"width_ratios": [1.25, 1.0, 1.1, 0.85]}) as (made, axes):  # fmt: skip
        rate, horizon, success, cost = axes[0]
        _before_and_after(rate, rows, places, "rate")
        rate.margins(x=0.04)
        rate.axvline(0.0, color="0.35", lw=0.7, zorder=0)
        rate.set_xlabel("decay rate of ‖∂L/∂h$_t$‖\n(nats per step)")
        rate.set_title("Does the gradient reach back?")
        _before_and_after(horizon, rows, places, "horizon")
        T = ds.sizes["lag"] - 1
        for low, high in ((0.8, 0.9), (0.4, 0.5)):  # the two symbols stand in [0.1, 0.2) and [0.5, 0.6) of T
            horizon.axvspan(low * T, high * T, color="0.88", lw=0, zorder=0)
        horizon.set(xlim=(-0.02 * T, 1.02 * T), xlabel="credit horizon: 90 % of ∂L/∂W$_{hh}$\n(steps back)")
        horizon.set_title("How far does credit go?")
        _right_answers(success, ds, rows, places)
        _costs(cost, rows, places)
        rate.set_yticks(places, [row["fix"] for row in rows])
        for label, row in zip(rate.get_yticklabels(), rows, strict=True):
            label.set_color(COLOURS[row["group"]])
        rate.set_ylim(places[-1] + 0.6, -0.6)
        for ax in axes[0]:
            ax.set_title(ax.get_title(), pad=10, weight="bold")
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.hlines(places, 0, 1, transform=ax.get_yaxis_transform(), color="0.93", lw=0.5, zorder=-1)
        _legend(made)


def _places(rows: list[dict[str, Any]]) -> list[float]:
    """Return where each row stands, groups a little apart."""
    places, at = [], -1.0
    for i, row in enumerate(rows):
        at += 1.0 if i == 0 or rows[i - 1]["group"] == row["group"] else 1.45
        places.append(at)
    return places


def _bar(ax: Any, row: dict[str, Any], name: str, y: float, **style: Any) -> None:
    """Draw a mean with its interval, if it has one."""
    value, low, high = (row[name + end] for end in ("", " low", " high"))
    colour = COLOURS[row["group"]]
    if np.isfinite([low, high]).all():
        ax.plot([low, high], [y, y], color=colour, lw=1.0, solid_capstyle="butt")
    ax.plot([value], [y], ls="", color=colour, clip_on=False, **style)


def _before_and_after(ax: Any, rows: list[dict[str, Any]], places: list[float], name: str) -> None:
    """Draw what was measured at the start (open) and after training (filled)."""
    for row, y in zip(rows, places, strict=True):
        _bar(ax, row, f"{name} before", y + BEFORE, marker="o", ms=3.6, mfc="white", mew=0.9)
        _bar(ax, row, f"{name} after", y + AFTER, marker="o", ms=3.6)


def _right_answers(ax: Any, ds: xr.Dataset, rows: list[dict[str, Any]], places: list[float]) -> None:
    """Draw the success of every network, its mean, and how many solved the task."""
    every = final_success(ds)
    ax.axvline(ds.attrs["baseline"], color="0.35", lw=0.7, ls=":", zorder=0)
    for row, y in zip(rows, places, strict=True):
        values = every.sel(fix=row["fix"]).values[np.isfinite(ds["parameters"].sel(fix=row["fix"]))]
        shift = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else [0.0]
        ax.plot(values, y + AFTER + shift, ls="", marker=".", ms=3.6, mew=0, color=COLOURS[row["group"]], alpha=0.5)
        _bar(ax, row, "success", y + BEFORE, marker="o", ms=3.6)
        ax.text(1.05, y, f"{row['solved']}/{row['seeds']}", va="center", fontsize=6, color=COLOURS[row["group"]])
    ax.text(1.05, -0.65, "solved", va="bottom", fontsize=6, color="0.35")
    ax.text(ds.attrs["baseline"], -0.65, "chance", ha="center", va="bottom", fontsize=6, color="0.35")
    ax.set(xlim=(0.0, 1.2), xticks=[0.0, 0.5, 1.0], xlabel="test sequences right\nafter training")
    ax.set_title("Is the task solved?")


def _costs(ax: Any, rows: list[dict[str, Any]], places: list[float]) -> None:
    """Draw the processor time of an epoch relative to what a fix is against."""
    for row, y in zip(rows, places, strict=True):
        if np.isfinite(row["cost"]):
            _bar(ax, row, "cost", y, marker="o", ms=3.6)
    ax.axvline(1.0, color="0.35", lw=0.7, zorder=0)
    ax.set_xscale("log")
    highest = max([2.0, *(row["cost high"] for row in rows if np.isfinite(row["cost high"]))])
    highest = max(highest, *(row["cost"] for row in rows if np.isfinite(row["cost"])), 2.0)
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if t <= highest * 1.3]
    ax.set_xlim(0.5, highest * 1.3)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("processor time of an\nepoch (× plain tanh)")
    ax.set_title("What does it cost?")


def _legend(made: Any) -> None:
    """Say what the markers mean."""
    handles = [
        Line2D([], [], ls="", marker="o", mfc="white", mec="0.2", mew=0.9, ms=3.6, label="at the start"),
        Line2D([], [], ls="", marker="o", color="0.2", ms=3.6, label="after training"),
        Line2D([], [], color="0.2", lw=1.0, label="95 % interval over networks"),
        Line2D([], [], ls="", marker=".", color="0.2", alpha=0.5, ms=3.6, mew=0, label="one network"),
        Patch(color="0.88", label="where the symbols are"),
    ]
    made.legend(handles=handles, loc="outside lower center", ncols=len(handles))

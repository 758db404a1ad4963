"""The report of `bounds_vs_truth.py`: intervals, table, figure and sentences, from the record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from gradlab.record import figure
from gradlab.statistics import cluster_bootstrap, root_mean_square

LEAST_NETWORKS = 7  # for an interval
COLOURS = LogNorm(3e-3, 3.0)  # nats per step; an error of 3e-3 is a fifth of a factor of two over 64 steps
DARK = 0.68  # of the colour scale, above which a number is written in white
W_ALONE = "W"


def cell(networks: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return one cell of the table from what a statement says of each network of a class.

    Args:
        networks: entries of `evaluate`; those with a reason break a hypothesis and give no number.
        seed: of the bootstrap.
    """
    reasons = sorted({one["reason"] for one in networks if "reason" in one})
    good = [one for one in networks if "reason" not in one]
    found: dict[str, Any] = {"networks": len(good), "of": len(networks), "reason": "; ".join(reasons) or None}
    if not good:
        return found
    errors = np.concatenate([one["errors"] for one in good])
    clusters = np.repeat(np.arange(len(good)), [len(one["errors"]) for one in good])
    for name, statistic in (("mean", np.nanmean), ("rms", root_mean_square)):
        found[name] = float(statistic(errors))
        ends = [None, None]
        if len(good) >= LEAST_NETWORKS:
            interval = cluster_bootstrap(errors, clusters, statistic, seed=seed)
            ends = [interval.low, interval.high]
        found[f"{name}_low"], found[f"{name}_high"] = ends
    for name in ("crossings", "checked", "certified", "wrong_sign"):
        if name in good[0]:
            found[name] = int(sum(one[name] for one in good))
    return found | {"errors": [one["errors"] for one in good]}


def by_place(record: dict[str, Any]) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Return the statements, the classes, and the cells by both."""
    cells = {(one["statement"], one["class"]): one for one in record["cells"]}
    return list(dict.fromkeys(s for s, _ in cells)), list(dict.fromkeys(c for _, c in cells)), cells


def signed(value: float, kind: str) -> str:
    """Return an error to two or three decimals: with its sign for a prediction, which may have either."""
    value = 0.0 if abs(value) < 5e-5 else value
    said = f"{value:+.3f}" if abs(value) < 0.0995 else f"{value:+.2f}"
    return (said if kind == "prediction" else said.lstrip("+")).replace("-", "−")


def table(record: dict[str, Any]) -> pd.DataFrame:
    """Return statements by classes: mean error with its interval, or why there is none."""
    statements, classes, cells = by_place(record)
    rows = []
    for name in statements:
        one = cells[name, classes[0]]
        row = {"statement": name, "kind": one["kind"], "needs": one["needs"]}
        for column in classes:
            row[column] = _text(cells[name, column])
        rows.append(row)
    return pd.DataFrame(rows)


def _text(one: dict[str, Any]) -> str:
    """Return one cell in words."""
    if one["networks"] == 0:
        return f"— ({one['reason']})"
    said = signed(one["mean"], one["kind"])
    if one["mean_low"] is not None:
        said += f" [{signed(one['mean_low'], one['kind'])}, {signed(one['mean_high'], one['kind'])}]"
    if one["networks"] < one["of"]:
        said += f" ({one['networks']} of {one['of']} networks)"
    return said


def sentences(record: dict[str, Any]) -> list[str]:
    """Return what the table settles: the folk rule's error, which statement to use when, and the crossings."""
    statements, classes, cells = by_place(record)
    folk = statements[0]
    worst = max(classes, key=lambda c: cells[folk, c]["rms"])
    one = cells[folk, worst]
    said = [
        f"The folk rule is off by {one['rms']:.3f} nats per step (root mean square) in {worst} networks, where it is"
        f" worst; its sign is wrong on {sum(cells[folk, c]['wrong_sign'] for c in classes)} of"
        f" {sum(len(e) for c in classes for e in cells[folk, c]['errors'])} sequences."
    ]
    for column in classes:
        said.append(f"{column}: " + "; ".join(_choices(statements, column, cells)) + ".")
    certificates = {}
    for one in (one for one in record["cells"] if one.get("certified") is not None):
        before = certificates.get(one["statement"], (0, 0))
        certificates[one["statement"]] = (before[0] + one["certified"], before[1] + one["networks"])
    shares = ", ".join(f"{name} in {yes} of {asked}" for name, (yes, asked) in certificates.items())
    said.append(f"Vanishing is certified by {shares} networks that meet the hypothesis.")
    bounds = [one for one in record["cells"] if "crossings" in one]
    crossed, checked = (sum(one[name] for one in bounds) for name in ("crossings", "checked"))
    verdict = "never crossed" if crossed == 0 else f"CROSSED {crossed} TIMES"
    said.append(f"The bounds are {verdict} in {checked} comparisons.")
    return said


def _choices(statements: list[str], column: str, cells: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    """Return the best statement of each kind of knowledge for one class, in words."""

    def best(kind: str, needs: set[str], size: str) -> str | None:
        there = [cells[s, column] for s in statements]
        there = [c for c in there if c["kind"] == kind and c["needs"] in needs and c["networks"] == c["of"]]
        if not there:
            return None
        found = min(there, key=lambda c: c[size])
        only = "only " if len(there) == 1 and kind == "prediction" and W_ALONE in needs else ""
        return f"{only}{found['statement']} ({abs(found[size]):.3f})"

    before = {W_ALONE, "g", "g, input variance"}
    wanted = (
        ("forecast without a run", best("prediction", before, "rms")),
        ("forecast from other runs", best("prediction", {"other runs"}, "rms")),
        ("guarantee from W", best("upper", {W_ALONE}, "mean")),
        ("guarantee from the steps", best("upper", {W_ALONE, "this run"}, "mean")),
    )
    return [f"{what}: {found}" for what, found in wanted if found is not None]


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the table, coloured by the size of the error, from the record alone."""
    statements, classes, cells = by_place(record)
    reasons = list(dict.fromkeys(one["reason"] for one in record["cells"] if one["networks"] == 0))
    size = (2.3 + 0.53 * len(classes), 1.3 + 0.235 * len(statements) + 0.13 * len(reasons))
    with figure(path, figsize=size) as (made, axes):
        ax = axes[0, 0]
        for row, name in enumerate(statements):
            for column, kind in enumerate(classes):
                _draw_cell(ax, column, row, cells[name, kind], reasons)
        _draw_frame(ax, statements, classes, cells)
        colours = mpl.cm.ScalarMappable(COLOURS, "YlOrRd")
        label = "|error| (predictions: root mean square) or slack, nats per step"
        bar = made.colorbar(colours, ax=ax, location="top", fraction=0.02, aspect=60, pad=0.01, extend="both")
        bar.set_label(label, fontsize=6)
        bar.ax.tick_params(labelsize=6, length=2)
        bar.ax.xaxis.set_major_formatter("{x:g}")
        bar.ax.minorticks_off()
        lines = [f"({chr(97 + i)}) {reason}" for i, reason in enumerate(reasons)]
        given = "; below: half the width of its 95 % interval over networks" if _has_intervals(record) else ""
        lines.append(f"Number: mean error over {record['networks']} networks{given}. Prediction: minus measured rate.")
        if any(0 < one["networks"] < one["of"] for one in record["cells"]):
            lines.append("*: not all networks of the class meet the hypothesis; mean over those that do.")
        made.supxlabel("\n".join(lines), fontsize=5.8, x=0.01, ha="left")


def _has_intervals(record: dict[str, Any]) -> bool:
    return any(one.get("mean_low") is not None for one in record["cells"])


def _draw_cell(ax: Any, column: int, row: int, one: dict[str, Any], reasons: list[str]) -> None:
    """Draw one cell: its colour and number, or the letter of the reason why it is empty."""
    if one["networks"] == 0:
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="0.93", edgecolor="white", linewidth=0.8))
        letter = chr(97 + reasons.index(one["reason"]))
        ax.text(column, row, f"({letter})", ha="center", va="center", fontsize=5, color="0.45")
        return
    strength = one["rms"] if one["kind"] == "prediction" else one["mean"]
    shade = float(np.clip(COLOURS(max(strength, 1e-12)), 0.0, 1.0))
    face = mpl.colormaps["YlOrRd"](shade)
    ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=face, edgecolor="white", linewidth=0.8))
    ink = "white" if shade > DARK else "black"
    number = signed(one["mean"], one["kind"]) + ("*" if one["networks"] < one["of"] else "")
    wide = one["mean_low"] is not None
    ax.text(column, row - (0.17 if wide else 0), number, ha="center", va="center", fontsize=5.6, color=ink)
    if wide:
        half = (one["mean_high"] - one["mean_low"]) / 2
        said = "±" + signed(half, "upper")
        ax.text(column, row + 0.24, said, ha="center", va="center", fontsize=4.2, color=ink)


def _draw_frame(
    ax: Any, statements: list[str], classes: list[str], cells: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """Draw the names of rows and columns, what each statement needs, and the lines between the kinds."""
    rows = [cells[name, classes[0]] for name in statements]
    ax.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(statements) - 0.5, -0.5))
    ax.set_xticks(range(len(classes)), [name.replace(", ", "\n") for name in classes], fontsize=5.8)
    ax.xaxis.tick_bottom()
    ax.set_yticks(range(len(statements)), statements, fontsize=6)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    last = len(classes) - 0.35
    for row, one in enumerate(rows):
        ax.text(last, row, one["needs"], ha="left", va="center", fontsize=5, color="0.35")
    ax.text(last, -0.9, "needs", ha="left", va="center", fontsize=5.5, color="0.35")
    for row in range(1, len(rows)):
        if rows[row]["kind"] != rows[row - 1]["kind"]:
            ax.axhline(row - 0.5, color="black", linewidth=0.9)
    names = {"prediction": "predictions", "upper": "upper bounds", "lower": "lower"}
    for kind, label in names.items():
        places = [i for i, one in enumerate(rows) if one["kind"] == kind]
        if places:
            middle = (places[0] + places[-1]) / 2
            place = {"xytext": (-104, 0), "textcoords": "offset points", "xycoords": ("axes fraction", "data")}
            ax.annotate(label, (0, middle), rotation=90, ha="center", va="center", fontsize=6.5, weight="bold", **place)

"""The claims of `vanishing_gradients.py` on trial: numbers, intervals, verdicts, sentences, from its dataset alone.

A claim says that a number lies below (or above) a threshold that was fixed beforehand. It is supported where the
whole 95 % interval over networks does, refuted where none of it does, else undecided; also where there are too few
networks for an interval. (Two kinds of tests, from end to end and of the decay as a whole, were added when results
were known: they can only be read beside the others.) Each interval is at 95 % by itself: of two dozen tests one may
fall wrong by chance. With T steps, and ln C the loss of guessing among C classes:

1. *Gradients shrink with distance*: the fitted rate of ln‖∂L/∂h_t‖ over the lag is below −ln 2/T, so that less than
   half of the gradient would reach the start. At initialisation, and after training. Beside it the same of what lies
   between the ends, (ln‖∂L/∂h_0‖ − ln‖∂L/∂h_T‖)/T: the fit leaves out the first tenth of the lags, in which the
   gradient turns, and with it what it gains or loses there.
2. *The loss stagnates*: over the last third of the epochs the training loss falls by less than 5 % of that of guessing,
   and it still is above half of it. Both must hold; one that does not refutes. *Because of the distance*: the loss
   that remains is larger by more than 10 % of guessing than that of the same network on the same data with a short
   distance, and *because of the cell*: than that of an LSTM at the same distance, seed by seed.
3. *Saturation makes it worse*. What the slopes do, given W: (ln σ1(∂h_T/∂h_0) − ln σ1(W^T))/T, the actual network
   against a linear one with the same W. It has two parts: units on their flat parts, φ' < 0.1, and all the others,
   bent. The claim is that the flat ones take more than ln 2/T, at initialisation and after training, and that their
   part grows by that much in training. Beside it are on trial what all slopes take, which φ' ≤ 1 makes no surprise,
   and whether the decay as a whole gets worse in training, W included. The parts are those of
   `vanishing_gradients_runs.account`. (The term "saturation" of the decay budget is that of the steepest unit, hardly
   ever flat; what the others do lies in the terms after it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from gradlab.statistics import Interval, cluster_bootstrap, paired_bootstrap

LN2 = float(np.log(2.0))
FALL, REMAINS, MORE = 0.05, 0.5, 0.1  # in losses of guessing
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"


@dataclass(frozen=True)
class Claim:
    """One test of a claim.

    Attributes:
        claim: 1, 2 or 3.
        test: a short name.
        says: what the claim says of the number, in words.
        sign: −1 where the claim is that the number lies below the threshold, +1 above.
        threshold: fixed beforehand.
        unit: of the number.
        values: of each network; NaN where it is missing.
        pairs: of the network that each is compared with, if any: the number is the mean difference.
    """

    claim: int
    test: str
    says: str
    sign: int
    threshold: float
    unit: str
    values: np.ndarray
    pairs: np.ndarray | None = None


def verdict(low: float, high: float, threshold: float, sign: int) -> str:
    """Return what an interval says of a claim that a number lies below (sign −1) or above (+1) a threshold."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return UNDECIDED
    low, high, threshold = [*sorted((sign * low, sign * high)), sign * threshold]
    return SUPPORTED if low > threshold else REFUTED if high < threshold else UNDECIDED


def both(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim all parts of which must hold: one that does not hold refutes it."""
    if REFUTED in verdicts:
        return REFUTED
    return SUPPORTED if set(verdicts) == {SUPPORTED} else UNDECIDED


def trials(ds: xr.Dataset, task: str) -> list[Claim]:
    """Return the tests of the claims on one task.

    Args:
        ds: what `collect` returns.
        task: one of its tasks.
    """
    far = runs_of(ds, task, "far").transpose("run", ...)
    margin = LN2 / float(far["steps"][0])
    rows = [
        Claim(1, f"rate, {when}", "the fitted rate of ‖∂L/∂h_t‖ back through time", -1, -margin, "nats/step", values)
        for when, values in (("initial", far["rate"].values[:, 0]), ("trained", far["rate"].values[:, -1]))
    ]
    account = far["account"]
    begin, end = (account.isel(stage=i) for i in (0, -1))
    whole = [one.sum("part", skipna=False).values for one in (begin, end)]
    says = "ln‖∂L/∂h_0‖ − ln‖∂L/∂h_T‖, mean over sequences, over T"
    rows += [
        Claim(1, f"ends, {when}", says, -1, -margin, "nats/step", values)
        for when, values in zip(("initial", "trained"), whole, strict=True)
    ]
    loss = stagnation(far)
    rows += [
        Claim(2, "fall", "the fall of the training loss over the last third", -1, FALL, "of guessing", loss["fall"]),
        Claim(2, "remains", "the training loss that remains", +1, REMAINS, "of guessing", loss["remains"]),
    ]
    for role, cause in (("near", "with a short distance"), ("lstm", "of an LSTM")):
        other = runs_of(ds, task, role)
        if not other.sizes["run"]:
            continue
        seeds = far["seed"].values.tolist()
        known = dict(zip(other["seed"].values.tolist(), stagnation(other)["remains"], strict=True))
        pairs = np.array([known.get(seed, np.nan) for seed in seeds])
        says = f"the loss that remains, less that {cause}"
        rows.append(Claim(2, f"less {role}", says, +1, MORE, "of guessing", loss["remains"], pairs))
    slopes = [one.sel(part=["bent", "flat"]).sum("part", skipna=False).values for one in (begin, end)]
    flat = [one.sel(part="flat").values for one in (begin, end)]
    for name, says, values in (
        ("slopes", "what all slopes take, given W", slopes),
        ("saturation", "what the units on their flat parts take, given W", flat),
    ):
        for when, part in zip(("initial", "trained"), values, strict=True):
            rows.append(Claim(3, f"{name}, {when}", says, -1, -margin, "nats/step", part))
    says = "the change in training of what the units on their flat parts take"
    rows.append(Claim(3, "saturation, change", says, -1, -margin, "nats/step", flat[1], flat[0]))
    says = "the change in training of all that happens to the gradient, W included"
    rows.append(Claim(3, "whole, change", says, -1, -margin, "nats/step", whole[1], whole[0]))
    return rows


def stagnation(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Return, of each run, how far the training loss falls over the last third of the epochs, and what then remains.

    Both in losses of guessing: the fall is that of a straight line fitted over these epochs, what remains their mean.
    "half" is the first epoch with less than half the loss of guessing, ∞ where there is none.
    """
    relative = ds["training_loss"].transpose("run", "epoch").values / ds["guess"].values[:, None]
    fall, remains, half = (np.full(len(relative), np.nan) for _ in range(3))
    for i, (curve, epochs) in enumerate(zip(relative, ds["epochs"].values, strict=True)):
        curve = curve[: int(epochs)]
        last = curve[-max(2, round(len(curve) / 3)) :]
        if len(curve) < 2 or not np.isfinite(curve).all():
            continue
        fall[i] = -np.polyfit(np.arange(len(last)), last, 1)[0] * (len(last) - 1)
        remains[i] = last.mean()
        half[i] = 1 + np.argmax(curve < 0.5) if (curve < 0.5).any() else np.inf
    return {"fall": fall, "remains": remains, "half": half}


def judged(ds: xr.Dataset) -> pd.DataFrame:
    """Return every test with its number, interval over networks, threshold and verdict."""
    rows = []
    for task in tasks_of(ds):
        for one in trials(ds, task):
            found, networks = _interval(one, runs_of(ds, task, "far")["seed"].values)
            rows.append(
                {
                    "task": task,
                    "claim": one.claim,
                    "test": one.test,
                    "number": one.says,
                    "unit": one.unit,
                    "estimate": found[0],
                    "low": found[1],
                    "high": found[2],
                    "claimed": "below" if one.sign < 0 else "above",
                    "threshold": one.threshold,
                    "networks": networks,
                    "verdict": verdict(*found[1:], one.threshold, one.sign),
                }
            )
    return pd.DataFrame(rows)


def _interval(one: Claim, seeds: np.ndarray) -> tuple[tuple[float, float, float], int]:
    """Return (estimate, low, high) of a mean over networks, and how many there are; no ends for fewer than 7."""
    values = np.where(np.isfinite(one.values), one.values, np.nan)
    pairs = None if one.pairs is None else np.where(np.isfinite(one.pairs), one.pairs, np.nan)
    there = values if pairs is None else values - pairs
    networks = int(np.isfinite(there).sum())
    try:
        found: Interval = cluster_bootstrap(values, seeds) if pairs is None else paired_bootstrap(values, pairs, seeds)
    except ValueError:  # finite or NaN, and one stratum: there are too few
        return (float(np.nanmean(there)) if networks else np.nan, np.nan, np.nan), networks
    return (found.estimate, found.low, found.high), networks


def sentences(ds: xr.Dataset, tests: pd.DataFrame) -> list[str]:
    """Return the answer to each claim on each task, in words."""
    said = []
    for task in tasks_of(ds):
        far = runs_of(ds, task, "far")
        rows = tests[tests["task"] == task].set_index("test")
        said += [_shrinking(far, rows, task), _stagnating(far, rows, task), _saturating(far, rows, task)]
    return said


def number(row: Any, digits: int = 3) -> str:
    """Return an estimate with its interval, if there is one."""
    estimate, low, high = (f"{round(row[name], digits) + 0.0:+.{digits}f}" for name in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]" if np.isfinite(row["low"]) else estimate


def _shrinking(far: xr.Dataset, rows: pd.DataFrame, task: str) -> str:
    """Return the sentence on claim 1."""
    text = f"(1) {task}, gradients shrink with distance."
    for when, name in (("initial", "At initialisation"), ("trained", f"After {int(far['epochs'][0])} epochs")):
        row, ends = rows.loc[f"rate, {when}"], rows.loc[f"ends, {when}"]
        rate, change = row["estimate"], ends["estimate"] * int(far["steps"][0])
        life = f"half-life {LN2 / -rate:.0f} steps" if rate < 0 else "no decay"
        text += (
            f" {name} {row['verdict'].upper()}: {number(row)} nats/step against {row['threshold']:+.3f} ({life});"
            f" from end to end {ends['verdict']}, {number(ends)} nats/step, a factor {np.exp(change):.2g} over the"
            " whole length (geometric mean)."
        )
    return text


def _stagnating(far: xr.Dataset, rows: pd.DataFrame, task: str) -> str:
    """Return the sentence on claim 2."""
    found = stagnation(far)
    answer = both([rows.loc[name, "verdict"] for name in ("fall", "remains")])
    each = int(((found["fall"] < FALL) & (found["remains"] > REMAINS)).sum())
    half = found["half"][~np.isnan(found["half"])]
    reached = int(np.isfinite(half).sum())
    text = (
        f"(2) {task}, the loss stagnates: {answer.upper()}. Over the last third of {int(far['epochs'][0])} epochs the"
        f" training loss falls by {number(rows.loc['fall'])} of that of guessing, and {number(rows.loc['remains'])}"
        f" remains; {each} of {len(half)} networks stagnate by both criteria, {reached} came below half the loss of"
        " guessing"
    )
    text += f" (the median of these in epoch {np.median(half[np.isfinite(half)]):.0f})." if reached else "."
    for role, cause in (("near", "Because of the distance"), ("lstm", "Because of the cell")):
        if f"less {role}" in rows.index:
            row = rows.loc[f"less {role}"]
            other = "the short distance" if role == "near" else "an LSTM"
            text += f" {cause}: {row['verdict'].upper()}, {number(row)} more remains than with {other}."
    return text


def _saturating(far: xr.Dataset, rows: pd.DataFrame, task: str) -> str:
    """Return the sentence on claim 3."""
    text = f"(3) {task}, saturation makes it worse."
    for when, name in (("initial", "At initialisation"), ("trained", "After training")):
        row = rows.loc[f"saturation, {when}"]
        text += (
            f" {name} {row['verdict'].upper()}: flat units take {number(row)} nats/step given W, all slopes"
            f" {number(rows.loc[f'slopes, {when}'])} ({rows.loc[f'slopes, {when}', 'verdict']})."
        )
    row, whole, account = rows.loc["saturation, change"], rows.loc["whole, change"], far["account"]
    change = (account.isel(stage=-1) - account.isel(stage=0)).mean("run")
    text += (
        f" In training the part of the flat units changes by {number(row)} ({row['verdict'].upper()} that it grows);"
        f" meanwhile that of the others changes by {float(change.sel(part='bent')):+.3f}, of W alone by"
        f" {float(change.sel(part='powers')):+.3f} and of the direction by {float(change.sel(part='direction')):+.3f}:"
        f" together {number(whole)} nats/step ({whole['verdict'].upper()} that the decay gets worse)."
    )
    return text


def answers(ds: xr.Dataset, tests: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return claim → task → verdict, in a word each: that after training, or where there are several parts, of all."""
    found: dict[str, dict[str, str]] = {}
    parts = {
        "gradients shrink with distance, initial": ["rate, initial"],
        "gradients shrink with distance, trained": ["rate, trained"],
        "gradients shrink from end to end, initial": ["ends, initial"],
        "gradients shrink from end to end, trained": ["ends, trained"],
        "the loss stagnates": ["fall", "remains"],
        "the loss stagnates because of the distance": ["less near"],
        "saturated units make it worse, initial": ["saturation, initial"],
        "saturated units make it worse, trained": ["saturation, trained"],
        "saturated units make it worse in training": ["saturation, change"],
        "the decay gets worse in training": ["whole, change"],
        "slopes below 1 make it worse, initial": ["slopes, initial"],
        "slopes below 1 make it worse, trained": ["slopes, trained"],
    }
    for claim, names in parts.items():
        for task in tasks_of(ds):
            rows = tests[tests["task"] == task].set_index("test")
            if set(names) <= set(rows.index):
                found.setdefault(claim, {})[task] = both([rows.loc[name, "verdict"] for name in names])
    return found


def tasks_of(ds: xr.Dataset) -> list[str]:
    """Return the tasks in the order of their runs."""
    return list(dict.fromkeys(map(str, ds["task"].values)))


def runs_of(ds: xr.Dataset, task: str, role: str) -> xr.Dataset:
    """Return the runs of one task and role, of its own epochs and looks."""
    return ds.isel(run=np.flatnonzero((ds["task"].values == task) & (ds["role"].values == role)))

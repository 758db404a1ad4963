"""What `fixes_compared.py` makes of its runs: one dataset, one table with intervals, some sentences. No TensorFlow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from fixes_compared_networks import FIXES
from scipy import stats

from gradlab.experiment import DATA, SAMPLES
from gradlab.statistics import cluster_bootstrap, paired_bootstrap

Array = np.ndarray
LEAST_SEEDS = 7  # for an interval
# The decay budget at the longest lag: the first three add up to the fourth, which is all that there is of a cell with
# gates, a leak or a residual; and the last three to what is measured.
PARTS = ("promise", "saturation", "within_step")
TERMS = ("step_norms", "between_steps", "direction")


def collect(runs: Mapping[tuple[str, int], xr.Dataset]) -> xr.Dataset:
    """Return the numbers of all runs, by fix and seed: one of each kind for a network, its curves by lag and epoch."""
    fixes, seeds = (list(dict.fromkeys(place[i] for place in runs)) for i in (0, 1))
    first = next(iter(runs.values()))
    T, epochs = first.sizes["time"], first.sizes["epoch"]
    stages = first["stage"].values
    shapes: dict[str, tuple[tuple[str, ...], tuple[int, ...], str, str]] = {
        "rate": (("stage",), (2,), "nats/step", "fitted rate of ln‖∂L/∂h_t‖ over lag, mean over the probes"),
        "credit_horizon": (("stage",), (2,), "steps", "lag from which on the lags up to it hold 90 % of ∂L/∂W"),
        "budget": (("stage", "term"), (2, len(PARTS + TERMS)), "nats/step", "budget at the longest lag over that lag"),
        "log_gradient": (("stage", "lag"), (2, T), "nats", "ln‖∂L/∂h_{T−k}‖ − ln‖∂L/∂h_T‖, median over the probes"),
        "test_success": (("epoch",), (epochs,), "1", "share of test sequences answered right"),
        "test_loss": (("epoch",), (epochs,), "nats", "cross-entropy on the test sequences"),
        "epoch_seconds": ((), (), "s", "median processor time of an epoch, the first left out"),
        "measured_sequences": (("stage",), (2,), "1", "probes with a finite rate"),
        "parameters": ((), (), "1", "trainable parameters"),
        "units": ((), (), "1", "units"),
    }
    values = {name: np.full((len(fixes), len(seeds), *shape), np.nan) for name, (_, shape, _, _) in shapes.items()}
    for (fix, seed), ds in runs.items():
        place = fixes.index(fix), seeds.index(seed)
        rates = np.where(np.isfinite(ds["decay_rate"]), ds["decay_rate"], np.nan)
        values["measured_sequences"][place] = np.isfinite(rates).sum(axis=1)
        values["rate"][place] = _mean(rates)
        values["credit_horizon"][place] = ds["credit_horizon"]
        values["budget"][place] = budget(ds)
        curves = ds["log_gradient_norm"].values[:, :, ::-1]
        with np.errstate(invalid="ignore"):  # −∞ − −∞: nothing came back from nothing
            values["log_gradient"][place] = np.median(curves - curves[:, :, :1], axis=1)
        for name in ("test_success", "test_loss"):
            values[name][place] = ds[name]
        later = np.atleast_1d(ds.attrs["epoch_processor_seconds"])[1:]
        values["epoch_seconds"][place] = np.median(later) if len(later) else np.nan
        values["parameters"][place] = ds.attrs["trainable_parameters"]
        values["units"][place] = json.loads(ds.attrs["experiment"])["units"]
    ds = xr.Dataset(
        {
            name: (("fix", "seed", *dims), values[name], {"units": units, "long_name": said})
            for name, (dims, _, units, said) in shapes.items()
        },
        {
            "fix": fixes,
            "seed": seeds,
            "stage": stages,
            "term": [*PARTS, *TERMS],
            "lag": np.arange(T),
            "epoch": np.arange(1, epochs + 1),
        },
    )
    described = json.loads(first.attrs["experiment"])
    ds.attrs |= {name: described[name] for name in ("data", "batch_size", "learning_rate")}
    ds.attrs |= {"length": described["length"] or DATA[described["data"]]}  # None stands for the usual one
    ds.attrs |= {"samples": described["samples"] or SAMPLES[described["data"]]}
    ds.attrs |= {"success": first.attrs["success"], "baseline": first.attrs["baseline"]}
    experiments: dict[str, Any] = {}
    for (fix, _), one in runs.items():
        experiments.setdefault(fix, json.loads(one.attrs["experiment"]))  # other seeds: the seed alone differs
    ds.attrs["experiments"] = json.dumps(experiments)
    ds.attrs["commits_of_runs"] = sorted({str(one.attrs["commit"]) for one in runs.values()})
    return ds


def budget(ds: xr.Dataset) -> Array:
    """Return the terms of the decay budget [stage, term] at the longest lag k, over k, mean over the probes.

    NaN where a cell has no such term, and where the gradient does not reach back in any probe.
    """
    found = {name: ds[f"budget_{name}"][:, :, 0] / ds["lag"][:, 0] for name in PARTS + TERMS if f"budget_{name}" in ds}
    if "step_norms" not in found:
        found["step_norms"] = sum(found[name] for name in PARTS)
    blank = np.full((ds.sizes["stage"], ds.sizes["batch"]), np.nan)
    arrived = np.isfinite(ds["budget_measured"][:, :, 0])
    terms = [np.asarray(found[name].where(arrived)) if name in found else blank for name in PARTS + TERMS]
    return np.stack([_mean(np.where(np.isfinite(term), term, np.nan)) for term in terms], axis=1)


def _mean(values: Array) -> Array:
    """Return the mean over the last axis of what is not NaN, NaN if that is nothing."""
    count = np.isfinite(values).sum(axis=-1)
    return np.where(count > 0, np.nansum(values, axis=-1) / np.maximum(count, 1), np.nan)


def final_success(ds: xr.Dataset) -> xr.DataArray:
    """Return the share of test sequences answered right in the end; a training that broke off answers none.

    NaN is a run that is missing.
    """
    last: xr.DataArray = ds["test_success"].isel(epoch=-1).fillna(0.0).where(np.isfinite(ds["parameters"]))
    return last


def summarise(ds: xr.Dataset) -> pd.DataFrame:
    """Return a row for each fix: means over networks with 95 % intervals, and differences from what it is against."""
    success = final_success(ds)
    columns = {
        "rate before": ds["rate"].isel(stage=0),
        "rate after": ds["rate"].isel(stage=-1),
        "horizon before": ds["credit_horizon"].isel(stage=0),
        "horizon after": ds["credit_horizon"].isel(stage=-1),
        "success": success,
    }
    for name in TERMS:
        for when, stage in (("before", 0), ("after", -1)):
            columns[f"{name} {when}"] = ds["budget"].sel(term=name).isel(stage=stage)
    fixes = [str(name) for name in ds["fix"].values]
    rows = []
    for fix in fixes:
        one = FIXES[fix]
        row: dict[str, Any] = {"fix": fix, "group": one.group, "source": one.source, "against": one.against}
        row["units"], row["parameters"] = (int(ds[name].sel(fix=fix).max()) for name in ("units", "parameters"))
        row["seeds"] = int(np.isfinite(ds["parameters"].sel(fix=fix)).sum())
        for name, values in columns.items():
            row |= _interval(name, values.sel(fix=fix).values)
            row |= _interval(f"{name}, gain", values.sel(fix=fix).values, values.sel(fix=one.against).values)
        for when in ("before", "after"):  # of the mean rate; an end of its interval gives an end of this one
            for end in ("", " low", " high"):
                rate = row[f"rate {when}{end}"]
                row[f"half-life {when}{end}"] = _half_life(rate)
        there = success.sel(fix=fix).values[np.isfinite(ds["parameters"].sel(fix=fix))]
        solved = int((there >= ds.attrs["success"]).sum())
        ends = stats.binomtest(solved, len(there)).proportion_ci(method="exact")
        row |= {"solved": solved, "solved low": float(ends.low), "solved high": float(ends.high)}
        seconds = [np.log(ds["epoch_seconds"].sel(fix=name).values) for name in (fix, one.against)]
        cost = _interval("cost", *seconds)
        row |= {name: math.exp(value) for name, value in cost.items()}
        row |= _interval("seconds per epoch", np.exp(seconds[0]))
        rows.append(row)
    return pd.DataFrame(rows)


def _half_life(rate: float) -> float:
    """Return −ln 2/rate in steps, ∞ where the gradient does not shrink."""
    if math.isnan(rate):
        return math.nan
    return -math.log(2.0) / rate if rate < 0.0 else math.inf


def _interval(name: str, values: Array, against: Array | None = None) -> dict[str, float]:
    """Return a mean over seeds and its 95 % interval, or that of paired differences; NaN if there are too few."""
    there = np.isfinite(values if against is None else values - against)
    mean = float(_mean(values[there] if against is None else values[there] - against[there]))
    found = {name: mean, f"{name} low": math.nan, f"{name} high": math.nan}
    if there.sum() >= LEAST_SEEDS:
        seeds = np.arange(there.sum())
        if against is None:
            interval = cluster_bootstrap(values[there], seeds)
        else:
            interval = paired_bootstrap(values[there], against[there], seeds)
        found |= {f"{name} low": interval.low, f"{name} high": interval.high}
    return found


def said(row: Any, name: str, form: str) -> str:
    """Return a number with its interval, as it is printed."""
    value, low, high = (row[name + end] for end in ("", " low", " high"))
    if value != value:
        return "—"
    text = f"{value:{form}}"
    if np.isfinite(value) and low == low:
        text += f" [{low:{form}}, {high:{form}}]"
    return text.replace("-", "−").replace("inf", "∞")


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """Return what is printed: every mean with its interval."""
    rows = []
    for _, row in summary.iterrows():
        rows.append(
            {
                "fix": row["fix"],
                "n": row["units"],
                "weights": row["parameters"],
                "rate before (nats/step)": said(row, "rate before", "+.3f"),
                "rate after": said(row, "rate after", "+.3f"),
                "half-life before (steps)": said(row, "half-life before", ".1f"),
                "credit horizon before (steps)": said(row, "horizon before", ".1f"),
                "after": said(row, "horizon after", ".1f"),
                "right answers": said(row, "success", ".2f"),
                "solved": f"{row['solved']}/{row['seeds']} [{row['solved low']:.2f}, {row['solved high']:.2f}]",
                "processor time × plain": said(row, "cost", ".2f"),
            }
        )
    return pd.DataFrame(rows)


def _where_it_acts(row: Any) -> str:
    """Return which term of the budget at the start a fix changes most, in words; nothing if it changes none."""
    changes = {name: abs(row[f"{name} before, gain"]) for name in TERMS}
    if not any(change > 0.0 for change in changes.values()):
        return ""
    most = max(changes, key=lambda name: changes[name] if np.isfinite(changes[name]) else -1.0)
    return f"in the budget at the start most {most.replace('_', ' ')} {said(row, f'{most} before, gain', '+.3f')}, "


def sentences(ds: xr.Dataset, summary: pd.DataFrame) -> list[str]:
    """Return what the table settles."""
    rows = summary.set_index("fix")
    found = []
    solving = [name for name in rows.index if rows.loc[name, "solved"] == rows.loc[name, "seeds"]]
    never = [name for name in rows.index if rows.loc[name, "solved"] == 0]
    data = f"{ds.attrs['data']}, T = {ds.attrs['length']}"
    found.append(
        f"Solved ({ds.attrs['success']:.0%} of test sequences right; {data}) by every network of: "
        f"{'; '.join(solving) or 'no setting'}; by none of: {'; '.join(never) or 'no setting'}."
    )
    for name in rows.index:
        row = rows.loc[name]
        if row["against"] == name:
            continue
        known = row["success, gain low"] == row["success, gain low"]
        better = known and row["success, gain low"] > 0
        verdict = ("more" if better else "fewer" if row["success, gain high"] < 0 else "not settled") if known else ""
        found.append(
            f"{name} against {row['against']}: right answers {said(row, 'success, gain', '+.2f')}"
            f"{f' ({verdict})' if verdict else ''}, credit horizon at the start"
            f" {said(row, 'horizon before, gain', '+.1f')} steps, after training"
            f" {said(row, 'horizon after, gain', '+.1f')}, {_where_it_acts(row)}processor time"
            f" ×{said(row, 'cost', '.2f')}."
        )
    return found

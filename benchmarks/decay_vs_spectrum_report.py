"""What `decay_vs_spectrum.py` makes of its runs: one dataset, one table, one summary, some sentences. No TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from gradlab.statistics import cluster_bootstrap, root_mean_square

CELLS = {"tanh": "tanh", "relu": "ReLU", "lstm": "LSTM", "gru": "GRU"}
LEAST_NETWORKS = 3  # fewer are not summarised
SIMPLE = ("tanh", "relu")  # h = φ(W h + U x + b): only here do ρ(W) and γσ1(W) bear on the gradient at all

# name: (symbol, what it is)
PREDICTORS = {
    "log_spectral_radius": ("ln ρ(W)", "the folk rule, decay = ρ(W)^k; tanh and ReLU"),
    "mean_field_rate": ("½ ln χ₁", "mean field with the inputs' variances; tanh"),
    "lyapunov": ("λ₁", "largest Lyapunov exponent along the very sequences, a check; every cell"),
    "lyapunov_held_out": ("λ₁ held out", "the same along other sequences, a forecast; every cell"),
    "log_promise": ("ln γσ₁(W)", "upper bound known beforehand; tanh and ReLU"),
    "log_step_norm": ("⟨ln‖J‖⟩", "upper bound along the sequence; every cell"),
}

SUMMARY = (  # of a predictor at a stage
    "predictor", "stage", "cells", "networks", "seeds", "left out", "bias", "bias low", "bias high",
    "rmse", "rmse low", "rmse high", "rank correlation",
)  # fmt: skip


def collect(runs: list[xr.Dataset]) -> xr.Dataset:
    """Return one dataset over all runs: one number per run and stage for each quantity, and the median decay curve."""
    columns: dict[str, list[np.ndarray]] = {}
    for ds in runs:
        for name, value in _numbers(ds).items():
            columns.setdefault(name, []).append(value)
    descriptions = [json.loads(ds.attrs["experiment"]) for ds in runs]
    stages = runs[0]["stage"].values
    units = dict.fromkeys(columns, "nats/step") | {"test_loss": "nats", "half_life": "steps"}
    units |= dict.fromkeys(("bound_crossings", "test_accuracy"), "1")
    units |= {"spectral_radius": "1", "decay_curve": "nats"}
    variables = {
        name: (("run", "stage", "lag") if name == "decay_curve" else ("run", "stage"), np.array(values))
        for name, values in columns.items()
    }
    ds = xr.Dataset(variables, coords={"stage": stages})
    for name in ds.data_vars:
        ds[name].attrs["units"] = units[str(name)]
    ds = ds.assign_coords(
        cell=("run", [one["cell"] for one in descriptions]),
        gain=("run", [one["gain"] for one in descriptions]),
        seed=("run", [one["seed"] for one in descriptions]),
        recurrent_matrix=("run", [one.attrs["recurrent_matrix"] for one in runs]),
        lag=np.arange(ds.sizes["lag"]),
    )
    ds.attrs["data"] = descriptions[0]["data"]
    ds.attrs["units"] = descriptions[0]["units"]
    ds.attrs["loss"] = runs[0].attrs["loss"]
    ds.attrs["metric"], ds.attrs["baseline"] = runs[0].attrs["metric"], runs[0].attrs["baseline"]
    ds.attrs["commits_of_runs"] = sorted({str(one.attrs["commit"]) for one in runs})
    ds.attrs["failures"] = [
        f"{one.attrs['cell']}: {stage}: {one.attrs[f'status_{stage}']}"
        for one in runs
        for stage in map(str, stages)
        if one.attrs[f"status_{stage}"] != "ok"
    ]
    ds.attrs["experiments"] = json.dumps(descriptions)
    return ds


def _numbers(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the numbers of one run, each [stage], and its decay curve [stage, lag]."""
    nothing = xr.full_like(ds["decay_rate"], np.nan)
    rate = ds["decay_rate"]
    sequences = np.isfinite(rate).sum("batch")
    mean_rate = rate.mean("batch")
    simple = "bound_promise" in ds
    out = {
        "rate": mean_rate,
        # over sequences: what another draw of test sequences would change
        "rate_standard_error": rate.std("batch", ddof=1) / np.sqrt(sequences),
        "half_life": xr.where(mean_rate < 0, -np.log(2) / mean_rate, np.inf).where(np.isfinite(mean_rate)),
        "spectral_radius": ds["spectral_radius"],
        "log_spectral_radius": np.log(ds["spectral_radius"]) if simple else nothing.mean("batch"),
        "mean_field_rate": ds.get("mean_field_rate", nothing).mean("batch"),
        "lyapunov": ds["lyapunov_exponent"].isel(mode=0).mean("batch"),
        "lyapunov_held_out": ds["held_out_lyapunov_exponent"].isel(mode=0).mean("held_out"),
        "log_promise": _slope(ds, ds["bound_promise"]).mean("batch") if simple else nothing.mean("batch"),
        "log_step_norm": _slope(ds, ds["bound_step_norms"]).mean("batch"),
        "bound_crossings": _crossings(ds),
        "log_sigma_max": _slope(ds, ds["log_singular_values"].isel(mode=0)).mean("batch"),
    }
    numbers = {name: value.values.astype(np.float64) for name, value in out.items()}
    stages = ds.sizes["stage"]
    for name in ("test_accuracy", "test_loss"):
        # the score belongs to the trained network; the initial one was not scored
        values = np.full(stages, np.nan)
        if name in ds and stages == 2:
            values[1] = ds[name].values[-1]
        numbers[name] = values
    numbers["decay_curve"] = _curve(ds)
    return numbers


def _crossings(ds: xr.Dataset) -> xr.DataArray:
    """Return how often a bound of the chain lies below ln σ1 by more than the rounding of its sum."""
    top = ds["log_singular_values"].isel(mode=0)
    # each link adds k logarithms, each right to about n roundings of its norm, and their sum to k roundings of itself
    k, n = ds["lag"], ds.sizes["mode"]
    count = xr.zeros_like(ds["decay_rate"].isel(batch=0), dtype=int)
    for name in ("bound_step_norms", "bound_slopes", "bound_promise"):
        if name in ds:
            bound = ds[name].where(np.isfinite(ds[name]), -np.inf)
            allowance = 4.0 * np.finfo(float).eps * k * (n + np.abs(bound.where(np.isfinite(bound), 0.0)))
            count = count + (top > bound + allowance).sum(["batch", "time"])
    return count


def _slope(ds: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Return the mean slope of a quantity over lag, on the range of lags that the decay was fitted on."""
    first, last = (values.where(ds["lag"] == ds[f"decay_{end}_lag"]).mean("time") for end in ("first", "last"))
    return (last - first) / (ds["decay_last_lag"] - ds["decay_first_lag"])


def _curve(ds: xr.Dataset) -> np.ndarray:
    """Return the median over sequences of ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖ at each lag, [stage, T+1]."""
    measured, lag = ds["budget_measured"].transpose("stage", "batch", "time").values, ds["lag"].values
    curve = np.full((measured.shape[0], lag.shape[1]), np.nan)
    for k in range(int(lag.max()) + 1):
        at = [measured[:, b, np.flatnonzero(lag[b] == k)[0]] for b in range(len(lag)) if (lag[b] == k).any()]
        curve[:, k] = np.median(at, axis=0)
    return curve


def predictors(ds: xr.Dataset) -> dict[str, tuple[str, str]]:
    """Return the PREDICTORS that a dataset has: older ones have no held-out sequences."""
    return {name: what for name, what in PREDICTORS.items() if name in ds}


def table(ds: xr.Dataset) -> pd.DataFrame:
    """Return cell × gain × stage: the mean over seeds of every number, the rate with its standard error."""
    frame = ds.drop_vars(["decay_curve", "lag"]).to_dataframe().reset_index()
    rows = []
    for cell in dict.fromkeys(frame["cell"]):
        for (stage, gain), group in frame[frame["cell"] == cell].groupby(["stage", "gain"], sort=True):
            rates = group["rate"].dropna()
            between = rates.std(ddof=1) / np.sqrt(len(rates)) if len(rates) > 1 else group["rate_standard_error"].mean()
            mean = rates.mean()
            rows.append(
                {
                    "cell": CELLS[cell],
                    "stage": stage,
                    "gain": gain,
                    "seeds": len(rates),
                    "rate": mean,
                    "± s.e.": between,
                    "half-life": -np.log(2) / mean if mean < 0 else np.inf,
                    "ρ": group["spectral_radius"].mean(),
                    **{symbol: group[name].mean() for name, (symbol, _) in predictors(ds).items()},
                    "accuracy" if ds.attrs["metric"] == "accuracy" else "test loss": group[
                        "test_accuracy" if ds.attrs["metric"] == "accuracy" else "test_loss"
                    ].mean(),
                }
            )
    return pd.DataFrame(rows)


def latex(numbers: pd.DataFrame) -> str:
    """Return the table in LaTeX with booktabs rules."""
    symbols = {
        "± s.e.": r"$\pm$ s.e.",
        "ρ": r"$\rho$",
        "ln ρ(W)": r"$\ln\rho(W)$",
        "½ ln χ₁": r"$\frac12\ln\chi_1$",
        "λ₁": r"$\lambda_1$",
        "λ₁ held out": r"$\lambda_1$ held out",
        "ln γσ₁(W)": r"$\ln\gamma\sigma_1(W)$",
        "⟨ln‖J‖⟩": r"$\langle\ln\|J\|\rangle$",
    }

    def number(value: float) -> str:
        return r"$\infty$" if np.isinf(value) else f"{value:.3f}"

    styled = numbers.rename(columns=symbols).style.hide(axis="index").format(na_rep="--")
    floats = [symbols.get(name, name) for name in numbers.columns if numbers[name].dtype.kind == "f" and name != "gain"]
    text: str = styled.format(number, subset=floats, na_rep="--").format("{:g}", subset=["gain"]).to_latex(hrules=True)
    return text


def summarise(ds: xr.Dataset) -> pd.DataFrame:
    """Return how far each predictor is from the measured rate, with 95 % intervals by bootstrap over seeds.

    What is resampled is all that came from one seed (`cluster_bootstrap`): here a network with its two stages. Cells
    and gains are chosen, not drawn, so networks are resampled within each cell and gain, and the spread between these
    is not in the interval. Where networks of several gains share a seed, as in results made before each had its own,
    the seeds are resampled whole. The interval is NaN where there are too few of them.

    "seeds" counts the independent draws, "left out" the networks for which the predictor is defined, but not finite at
    one of the stages, or the rate is not. Fewer than LEAST_NETWORKS give no row; the columns are always there.
    """
    rows = []
    stages = [str(stage) for stage in ds["stage"].values]
    strata = _strata(ds)
    for name, (symbol, _) in predictors(ds).items():
        for label, chosen in [(stage, [stage]) for stage in stages] + ([("both", stages)] if len(stages) > 1 else []):
            predicted, measured = (ds[one].sel(stage=chosen).values for one in (name, "rate"))
            good = np.isfinite(predicted) & np.isfinite(measured)
            networks = np.flatnonzero(good.any(axis=1))
            if len(networks) < LEAST_NETWORKS:
                continue
            defined = ~np.isnan(predicted).all(axis=1)  # ln ρ(W) is not, for a gated cell
            error = np.where(good, predicted - measured, np.nan)[networks]
            seeds = ds["seed"].values[networks]
            numbers: list[float] = []
            for statistic in (np.nanmean, root_mean_square):
                numbers += statistic(error, None), *_interval(error, seeds, strata[networks], statistic)
            cells = " ".join(dict.fromkeys(CELLS[c] for c in ds["cell"].values[networks]))
            left_out = int((defined & ~good.all(axis=1)).sum())
            rank = stats.spearmanr(predicted[good], measured[good]).statistic
            rows.append((symbol, label, cells, len(networks), len(set(seeds)), left_out, *numbers, rank))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def _strata(ds: xr.Dataset) -> np.ndarray:
    """Return which cell and gain each run has, as a number [run]; 0 throughout if seeds are shared between these."""
    design, _ = pd.factorize(pd.MultiIndex.from_arrays([ds["cell"].values, ds["gain"].values]))
    shared = (pd.Series(design).groupby(ds["seed"].values).nunique() > 1).any()
    return np.zeros_like(design) if shared else design


def _interval(
    error: np.ndarray, seeds: np.ndarray, strata: np.ndarray, statistic: Callable[..., float]
) -> tuple[float, float]:
    """Return the 95 % interval of a statistic of errors [network, stage], NaN if there are too few seeds for one."""
    each = error.shape[1]
    try:
        found = cluster_bootstrap(error.ravel(), seeds.repeat(each), statistic, strata=strata.repeat(each))
    except ValueError:  # the errors are finite or NaN and every seed is in one stratum: it is their number
        return np.nan, np.nan
    return found.low, found.high


def sentences(ds: xr.Dataset, summary: pd.DataFrame) -> list[str]:
    """Return the few sentences that a write-up could cite."""
    if summary.empty:
        return [
            f"Too few networks for a summary: got {ds.sizes['run']}, and it takes {LEAST_NETWORKS} with a finite"
            f" rate; the rates are in the table. {_crossed(ds, 'The chain of upper bounds')}."
        ]
    label = "both" if "both" in set(summary["stage"]) else str(summary["stage"].iloc[0])
    rows = summary[summary["stage"] == label].set_index("predictor")

    def number(symbol: str, what: str, form: str) -> str:
        value, low, high = (rows.loc[symbol, what + end] for end in ("", " low", " high"))
        return f"{value:{form}}" + (f" [{low:{form}}, {high:{form}}]" if np.isfinite(low) else "")

    def rmse(symbol: str) -> str:
        return number(symbol, "rmse", ".3f")

    def bias(symbol: str) -> str:
        return number(symbol, "bias", "+.3f")

    when = {"both": "before and after training", "initial": "at initialisation"}[label]
    said = []
    if "λ₁" in rows.index:
        row = rows.loc["λ₁"]
        known = "95 % bootstrap intervals" if np.isfinite(row["rmse low"]) else "too few for intervals"
        forecast = " along the same sequences"
        if "λ₁ held out" in rows.index:
            forecast += f", and forecasts it along other sequences with {rmse('λ₁ held out')}"
        said.append(
            f"Over {row['networks']} networks ({row['cells']}; {ds.attrs['data']}, n = "
            f"{ds.attrs['units']}, {when}) the largest Lyapunov exponent predicts the measured decay rate of"
            f" ‖∂L/∂h_t‖ with a root-mean-square error of {rmse('λ₁')} nats/step{forecast}"
            f" ({row['seeds']} independent seeds, {known})."
        )
    if "ln ρ(W)" in rows.index:
        text = (
            f"For the simple networks ({rows.loc['ln ρ(W)', 'cells']}) the folk rule ln ρ(W) misses by"
            f" {rmse('ln ρ(W)')} nats/step, bias {bias('ln ρ(W)')}"
        )
        if "½ ln χ₁" in rows.index:
            text += f"; mean field (tanh alone) misses by {rmse('½ ln χ₁')}, bias {bias('½ ln χ₁')}"
        said.append(text + ".")
    bounds = [symbol for symbol in ("ln γσ₁(W)", "⟨ln‖J‖⟩") if symbol in rows.index]  # gated cells have the second only
    if bounds:
        held = _crossed(ds, f"The bound {bounds[0]}")
        text = f"{held} and lies {bias(bounds[0])} nats/step above the measured rate"
        if len(bounds) > 1:
            text += f"; the mean log step norm, which bounds gated cells too, {bias(bounds[1])}"
        said.append(text + ".")
    else:
        said.append(_crossed(ds, "The chain of upper bounds") + ".")
    if ds.sizes["stage"] == 2:
        initial, trained = (np.abs(ds["rate"].sel(stage=stage).values) for stage in ("initial", "trained"))
        both = np.isfinite(initial) & np.isfinite(trained)
        closer = int((trained < initial)[both].sum())
        said.append(
            f"Training brings {closer} of {int(both.sum())} networks closer to a gradient that neither shrinks nor"
            f" grows: the median |rate| goes from {np.median(initial[both]):.3f} to {np.median(trained[both]):.3f}"
            " nats/step."
        )
    return said


def _crossed(ds: xr.Dataset, bound: str) -> str:
    """Return the beginning of a sentence: whether the chain of bounds held in every network."""
    crossed = int(ds["bound_crossings"].sum())
    return f"{bound} is never crossed" if crossed == 0 else f"{bound} IS CROSSED {crossed} TIMES (which is a bug)"

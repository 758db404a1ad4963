"""What `vanishing_gradients.py` keeps of its runs: one dataset, with what W and what the slopes do to the gradient."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from gradlab.products import log_singular_values

FLAT = 0.1  # of the largest slope, as `gradlab.saturation` counts
BUDGET = ("promise", "saturation", "within_step", "between_steps", "direction")
ACCOUNT = ("powers", "bent", "flat", "direction")
CURVES = ("training_loss", "test_loss", "training_accuracy", "test_accuracy")


def collect(
    runs: Sequence[xr.Dataset], tasks: Sequence[str], roles: Sequence[str], classes: Sequence[int]
) -> xr.Dataset:
    """Return one dataset over all runs, what is shorter filled up with NaN.

    Args:
        runs: of `gradlab.run`, tracked; those of the role "far" analysed, with the slopes.
        tasks: what each is a run of.
        roles: "far", "near" or "lstm" of each.
        classes: C of each.

    Returns:
        Dims run, look (epochs done), time, epoch, stage (epochs done), term (of the budget), part (of W and slopes).
        Coordinates over run: task, role, seed, steps (T), epochs, guess (ln C, the loss of guessing), baseline.
    """
    parts = [_one(run) for run in runs]
    steps = [part.sizes["time"] - 1 for part in parts]
    whole = xr.concat(parts, "run", data_vars="all", coords="minimal", join="outer", combine_attrs="drop")
    descriptions = [json.loads(run.attrs["experiment"]) for run in runs]
    whole = whole.assign_coords(
        task=("run", list(tasks)),
        role=("run", list(roles)),
        seed=("run", [one["seed"] for one in descriptions]),
        steps=("run", steps),
        epochs=("run", [one["epochs"] for one in descriptions]),
        guess=("run", np.log(classes)),
        baseline=("run", [float(run.attrs["baseline"]) for run in runs]),
    )
    attrs = {
        "commits_of_runs": sorted({str(run.attrs["commit"]) for run in runs}),
        "failures": [
            f"{task}, {role}, seed {run.attrs['seed']}: {name.removeprefix('status_')}: {what}"
            for run, task, role in zip(runs, tasks, roles, strict=True)
            for name, what in run.attrs.items()
            if name.startswith("status_") and what != "ok"
        ],
        "experiments": json.dumps(descriptions),
    }
    return whole.assign_attrs(attrs)


def _one(run: xr.Dataset) -> xr.Dataset:
    """Return the numbers of one run."""
    from gradlab.tracking_dataset import tracked  # with TensorFlow, which a report from a file need not wait for

    seen = tracked(run).isel(layer=0, drop=True)
    ds = xr.Dataset(
        {
            "log_gradient_norm": (("look", "time"), seen["log_gradient_norm"].transpose("epoch", "time").values),
            "rate": ("look", seen["decay_rate"].values),
            "lyapunov": ("look", seen["largest_lyapunov_exponent"].values),
            "spectral_radius": ("look", seen["spectral_radius"].values),
            "saturation": ("look", seen["saturation"].values),
            **{name: ("epoch", run[name].values) for name in CURVES},
        },
        coords={
            "look": seen["epoch"].values,
            "time": seen["time"].values,
            "epoch": run["epoch"].values,
        },
    )
    if "activation_slope" not in run:
        return ds
    accounts = [account(run.isel(stage=i)) for i in range(run.sizes["stage"])]
    T = ds.sizes["time"] - 1
    budget = np.stack([run[f"budget_{name}"].isel(time=0).mean("batch").values / T for name in BUDGET], axis=1)
    return ds.assign(
        budget=(("stage", "term"), budget),
        account=(("stage", "part"), np.array([[one[name] for name in ACCOUNT] for one in accounts])),
        mean_slope=("stage", run["activation_slope"].mean(["batch", "time", "unit"]).values),
    ).assign_coords(stage=[_epoch(str(one), run) for one in run["stage"].values], term=list(BUDGET), part=list(ACCOUNT))


def _epoch(stage: str, run: xr.Dataset) -> int:
    """Return after how many epochs a stage of `gradlab.run` was."""
    ends = {"initial": 0, "trained": int(run["epoch"][-1])}
    return ends[stage] if stage in ends else int(stage.removeprefix("epoch "))


def account(ds: xr.Dataset) -> dict[str, float]:
    """Return what W and the slopes do to the gradient over the whole length, in nats per step, mean over sequences.

    "powers" is the linear network with the same W, ln σ1(W^T)/T; "bent" and "flat" what the slopes of units on their
    flat parts (φ' < 0.1) and of the others change in ln σ1(∂h_T/∂h_0)/T, each the mean of what it changes first and
    last (a Shapley value: that what the two do together is no sum, is split); "direction" that the loss does not ask in
    the direction that comes through best. Their sum is (ln‖∂L/∂h_0‖ − ln‖∂L/∂h_T‖)/T for a loss at T.

    Args:
        ds: a stage of a run, with activation_slope, recurrent_matrix, log_singular_values and budget_direction.

    Example:
        >>> slopes = np.full((1, 3, 2), [1.0, 0.05])  # the second unit is flat: with W = 1 only the first one counts
        >>> slopes[:, 0] = np.nan
        >>> ds = xr.Dataset({"activation_slope": (("batch", "time", "unit"), slopes)})
        >>> ds["recurrent_matrix"] = (("to", "from"), np.diag([0.5, 0.9]))
        >>> ds["budget_direction"] = (("batch", "time"), np.zeros((1, 3)))
        >>> {name: round(float(value), 3) for name, value in account(ds).items()}
        {'powers': -0.105, 'bent': 0.0, 'flat': -0.588, 'direction': 0.0}
    """
    slopes = ds["activation_slope"].transpose("batch", "time", "unit").values[:, 1:]
    W = ds["recurrent_matrix"].transpose("to", "from").values
    _, T, n = slopes.shape
    if not (np.isfinite(slopes).all() and np.isfinite(W).all()):
        return dict.fromkeys(ACCOUNT, np.nan)

    def growth(diagonals: np.ndarray) -> np.ndarray:
        steps = diagonals[..., None] * W
        return log_singular_values(steps, times=[0])[:, 0, 0] / T

    flat = slopes < FLAT
    without = growth(np.ones((1, T, n)))
    bent_alone, flat_alone, all_slopes = (
        growth(one) for one in (np.where(flat, 1.0, slopes), np.where(flat, slopes, 1.0), slopes)
    )
    bent = 0.5 * ((bent_alone - without) + (all_slopes - flat_alone))
    parts = {"powers": without, "bent": bent, "flat": all_slopes - without - bent}
    parts["direction"] = ds["budget_direction"].transpose("batch", "time").values[:, 0] / T
    return {name: float(parts[name].mean()) for name in ACCOUNT}

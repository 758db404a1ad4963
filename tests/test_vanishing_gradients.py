"""benchmarks/vanishing_gradients.py: the claims fall either way, as the numbers say, and everything is written."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import gradlab as gl

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "vanishing_gradients.py"
E, T, LOOKS = 12, 20, [0.0, 3.0, 12.0]
LN2 = np.log(2.0)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("vanishing_gradients_report")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("vanishing_gradients_runs")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("vanishing_gradients_figures")


def invented(
    rate: float = -0.3,
    loss: tuple[float, float] = (1.0, 0.95),  # in losses of guessing, at the first and the last epoch
    near: float = 0.1,
    flat: tuple[float, float] = (-0.1, -0.3),  # at initialisation, after training
    bent: float = -0.2,
    scatter: float = 0.01,
    networks: int = 9,
) -> xr.Dataset:
    """Return what `collect` would make of a training in which these numbers are known."""
    rng = np.random.default_rng(0)
    roles = ["far", "near", "lstm"]
    runs, guess = networks * 3, np.log(4)

    def scattered(*shape: int) -> np.ndarray:
        drawn = rng.standard_normal((3, networks, *shape))
        return scatter * (drawn - drawn.mean(axis=1, keepdims=True)).reshape(runs, *shape)  # means are as asked for

    noise = scattered(1)
    far = np.repeat([True, False, False], networks)
    end = np.where(far, loss[1], near)[:, None] + noise
    curves = guess * (loss[0] + (end - loss[0]) * np.linspace(0, 1, E))
    rates = rate + noise + np.zeros(3)
    lags = np.arange(T, -1, -1)
    parts = np.full((runs, 2, 4), np.nan)
    # as much from end to end at initialisation as the rate says
    parts[far, :, :] = np.array([rate - bent - flat[0] + 0.05, bent, 0.0, -0.05])
    parts[far, :, 2] = np.array(flat) + scattered(2)[far]
    terms = np.full((runs, 2, 5), 0.1)
    per_look = dict.fromkeys(("rate", "lyapunov", "spectral_radius", "saturation"), (("run", "look"), rates)) | {
        "spectral_radius": (("run", "look"), np.exp(rates))
    }
    return xr.Dataset(
        per_look
        | {
            "log_gradient_norm": (("run", "look", "time"), rates[:, :, None] * lags),
            "training_loss": (("run", "epoch"), curves),
            "test_accuracy": (("run", "epoch"), 1 - curves / guess / 2),
            "account": (("run", "stage", "part"), parts),
            "budget": (("run", "stage", "term"), terms),
            "mean_slope": (("run", "stage"), np.full((runs, 2), 0.5)),
        },
        {
            "look": LOOKS,
            "time": np.arange(T + 1),
            "epoch": np.arange(1, E + 1),
            "stage": [0, E],
            "part": ["powers", "bent", "flat", "direction"],
            "term": ["promise", "saturation", "within_step", "between_steps", "direction"],
            "task": ("run", ["noise"] * runs),
            "role": ("run", np.repeat(roles, networks)),
            "seed": ("run", np.tile(np.arange(networks), 3)),
            "steps": ("run", np.full(runs, T)),
            "epochs": ("run", np.full(runs, E)),
            "guess": ("run", np.full(runs, guess)),
            "baseline": ("run", np.full(runs, 0.25)),
        },
    )


def verdicts(report: ModuleType, ds: xr.Dataset) -> dict[str, str]:
    tests = report.judged(ds)
    return {claim: found["noise"] for claim, found in report.answers(ds, tests).items()}


def test_claims_that_hold_are_supported(report: ModuleType) -> None:
    assert set(verdicts(report, invented()).values()) == {"supported"}


def test_claims_that_do_not_hold_are_refuted(report: ModuleType) -> None:
    growing = invented(rate=0.1, loss=(1.0, 0.1), near=0.1, flat=(0.0, 0.01), bent=0.0)
    assert set(verdicts(report, growing).values()) == {"refuted"}


def test_each_claim_falls_by_itself(report: ModuleType) -> None:
    found = verdicts(report, invented(flat=(-0.3, -0.1)))  # less saturated after training than before
    for change in ("saturated units make it worse in training", "the decay gets worse in training"):
        assert found.pop(change) == "refuted"
    assert set(found.values()) == {"supported"}
    found = verdicts(report, invented(near=0.93))  # as bad at a short distance: it is not the distance
    assert found["the loss stagnates"] == "supported"
    assert found["the loss stagnates because of the distance"] == "refuted"
    found = verdicts(report, invented(loss=(1.3, 0.6)))  # far from solved, but it falls
    assert found["the loss stagnates"] == "refuted"
    found = verdicts(report, invented(loss=(0.31, 0.3), near=0.0))  # it no longer falls, as most is learnt
    assert found["the loss stagnates"] == "refuted"


@pytest.mark.parametrize("ds", [invented(scatter=2.0), invented(networks=5)])
def test_what_the_interval_does_not_say_is_undecided(report: ModuleType, ds: xr.Dataset) -> None:
    found = verdicts(report, ds)
    assert set(found.values()) == {"undecided"}
    assert any("UNDECIDED" in sentence for sentence in report.sentences(ds, report.judged(ds)))


def test_a_rate_that_halves_nothing_over_the_sequence_does_not_shrink(report: ModuleType) -> None:
    small = invented(rate=-0.5 * LN2 / T, scatter=1e-4)  # far from 0 for the interval, but 0.7 of it arrives
    assert verdicts(report, small)["gradients shrink with distance, initial"] == "refuted"


def test_networks_that_diverged_are_left_out_and_counted(report: ModuleType) -> None:
    ds = invented(networks=10)
    for name in ("training_loss", "rate", "account"):
        ds[name].values[3] = np.nan
    tests = report.judged(ds)
    assert set(tests["networks"]) == {9}
    assert set(tests["verdict"]) == {"supported"}


def test_the_fall_and_the_remainder_are_those_of_a_straight_line(report: ModuleType) -> None:
    ds = invented(loss=(1.0, 0.46), scatter=0.0)
    found = report.stagnation(ds.isel(run=[0]))
    per_epoch = 0.54 / (E - 1)
    np.testing.assert_allclose(found["fall"], 3 * per_epoch, rtol=1e-9)  # 4 of 12 epochs, 3 steps
    np.testing.assert_allclose(found["remains"], 0.46 + 1.5 * per_epoch, rtol=1e-9)
    assert found["half"] == [12]
    assert report.stagnation(invented(scatter=0.0).isel(run=[0]))["half"] == [np.inf]


def stage(W: np.ndarray, slopes: np.ndarray, direction: float = 0.0) -> xr.Dataset:
    """Return a stage of a run: slopes [B, T, n]."""
    with_start = np.concatenate([np.full_like(slopes[:, :1], np.nan), slopes], axis=1)
    ds = xr.Dataset({"activation_slope": (("batch", "time", "unit"), with_start)})
    ds["recurrent_matrix"] = (("to", "from"), W)
    ds["budget_direction"] = (("batch", "time"), np.full(with_start.shape[:2], direction))
    return ds


def test_slopes_are_told_from_w(runs: ModuleType) -> None:
    rng = np.random.default_rng(1)
    W = rng.standard_normal((6, 6)) / np.sqrt(6)
    ones = np.ones((2, T, 6))
    growth = np.log(np.linalg.svd(np.linalg.matrix_power(W, T), compute_uv=False)[0]) / T
    # a linear network: W alone; every unit bent alike: bent alone; every unit flat alike: flat alone
    for slope, part in ((1.0, "powers"), (0.6, "bent"), (0.05, "flat")):
        found = runs.account(stage(W, slope * ones, direction=-0.4 * T))
        expected = dict.fromkeys(runs.ACCOUNT, 0.0) | {"powers": growth, "direction": -0.4}
        if part != "powers":
            expected[part] = np.log(slope)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-10, err_msg=f"{part}: {name}")
    mixed = rng.uniform(0.01, 1.0, (2, T, 6))
    found = runs.account(stage(W, mixed))
    top = gl.log_singular_values(mixed[..., None] * W)[:, 0, 0].mean() / T
    np.testing.assert_allclose(sum(found.values()), top, atol=1e-10)
    assert found["flat"] < 0 > found["bent"]


def test_parts_of_slopes_do_not_depend_on_which_is_taken_first(runs: ModuleType) -> None:
    # two units in a ring, one flat and one bent at every other step: they meet in the product, and share what it costs
    W = np.array([[0.0, 1.0], [1.0, 0.0]])
    slopes = np.full((1, T, 2), [0.5, 0.05])
    found = runs.account(stage(W, slopes))
    # σ1 of both: every pair of steps gives 0.5·0.05; of one alone: the product of its slopes at every other step
    np.testing.assert_allclose(found["bent"], 0.5 * np.log(0.5), atol=1e-10)
    np.testing.assert_allclose(found["flat"], 0.5 * np.log(0.05), atol=1e-10)


def test_every_figure_is_drawn(report: ModuleType, figures: ModuleType, tmp_path: Path) -> None:
    ds = invented()
    made = figures.draw(ds, report.judged(ds), tmp_path / "vanishing")
    assert [one.name for one in made] == ["vanishing_noise", "vanishing_claims"]
    for one in made:
        for suffix in (".pdf", ".png"):
            assert one.with_suffix(suffix).stat().st_size > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("vanishing")
    small = [
        "--quick",
        "--tasks",
        "temporal order",
        "--length",
        "12",
        "--units",
        "4",
        "--epochs",
        "2",
        "--samples",
        "64",
    ]
    command = [sys.executable, str(SCRIPT), "--out", str(out), *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(
        [*command, "--resume", "--animate"], capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "3 runs (3 reused)" in again.stdout
    return out, done.stdout


def test_the_script_writes_what_it_says(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for name in (".nc", ".csv", ".json", "_temporal_order.png", "_temporal_order.pdf", "_claims.png", "_spectrum.gif"):
        assert (out / f"vanishing_gradients_quick{name}").stat().st_size > 0, name
    record = json.loads((out / "vanishing_gradients_quick.json").read_text())
    assert {"gradlab_version", "commit", "dirty", "command", "created_utc"} <= record["environment"].keys()
    assert record["runs"] == len(record["experiments"]) == 3
    for sentence in record["sentences"]:
        assert sentence in printed
    for found in record["verdicts"].values():
        assert set(found.values()) == {"undecided"}  # one network
    tests = pd.read_csv(out / "vanishing_gradients_quick.csv")
    assert np.isfinite(tests["estimate"]).all()
    assert tests["low"].isna().all()


def test_parts_and_budget_sum_to_what_is_measured(finished: tuple[Path, str]) -> None:
    ds = gl.load(finished[0] / "vanishing_gradients_quick.nc")
    far = ds.isel(run=ds["role"].values.tolist().index("far"))
    assert dict(far["account"].sizes) == {"stage": 3, "part": 4}
    np.testing.assert_allclose(far["account"].sum("part"), far["budget"].sum("term"), atol=1e-9)


def test_slopes_in_a_dataset_are_those_of_the_network() -> None:
    run = gl.Experiment(
        "tanh", data="latching", length=6, samples=20, units=3, epochs=0, probes=2, held_out=1, measured=["slopes"]
    )
    slopes = gl.run(run)["activation_slope"].isel(stage=0)
    task = gl.tasks.latching(6, 20, seed=0)
    cell = gl.VanillaRNNCell(3, "tanh", recurrent_initializer="gaussian", recurrent_gain=1.0, seed=0)
    states = gl.rollout(cell, task.test_inputs[:2]).states
    assert slopes.dims == ("batch", "time", "unit")
    assert np.isnan(slopes[:, 0]).all()
    # h = tanh(a), so φ'(a) = 1 − h²; weights are float32 in training and float64 here
    np.testing.assert_allclose(slopes[:, 1:], 1 - states[:, 1:] ** 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r'measured has "slopes", which go with h_t = φ\(a_t\).* got "lstm"'):
        gl.Experiment("lstm", measured=["slopes"])
    with pytest.raises(ValueError, match=r"not leaky, not residual, got .* leak=0\.5"):
        gl.Experiment("tanh", leak=0.5, measured=["slopes"])


def test_a_bad_argument_is_explained(tmp_path: Path) -> None:
    for arguments, message in (
        (["--epochs", "1"], "--epochs must be at least 2, for a loss to fall"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--length", "5"], 'length of "temporal_order" must be at least 10, got 5'),
    ):
        command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr

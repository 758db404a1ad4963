"""benchmarks/fixes_compared.py: fixes of equal size on the same draws, and a report that says what the numbers say."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr

mpl.use("Agg")

import gradlab as gl

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "fixes_compared.py"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Return an importer of the modules beside the script."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | paths)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("fixes_compared")
    small = ["--units", "4", "--length", "12", "--samples", "80", "--epochs", "1", "--seeds", "2"]
    done = run(out, "--quick", *small, "--fixes", "tanh, orthogonal")  # what it is against is run as well
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_everything_is_written(finished: tuple[Path, str], module) -> None:
    out, printed = finished
    for suffix in ("nc", "csv", "pdf", "png", "json"):
        assert (out / f"fixes_compared_quick.{suffix}").stat().st_size > 0
    ds = gl.load(out / "fixes_compared_quick.nc")
    assert ds["fix"].values.tolist() == ["tanh, naive", "tanh, orthogonal"]
    assert dict(ds["rate"].sizes) == {"fix": 2, "seed": 2, "stage": 2}
    assert np.isfinite(ds[["rate", "credit_horizon", "test_success"]].to_array()).all()
    record = json.loads((out / "fixes_compared_quick.json").read_text(encoding="utf-8"))
    assert {"gradlab_version", "commit", "dirty", "command", "wall_seconds", "blas"} <= record["environment"].keys()
    assert "NaN" not in json.dumps(record["fixes"])
    for sentence in record["sentences"]:
        assert sentence in printed
    # the numbers are those of the runs
    store = gl.open_store(out / "runs")
    orthogonal = store.isel(run=np.flatnonzero(store["initializer"].values == "orthogonal"))
    np.testing.assert_allclose(ds["rate"].sel(fix="tanh, orthogonal"), orthogonal["decay_rate"].mean("batch"))
    np.testing.assert_array_equal(ds["credit_horizon"].sel(fix="tanh, orthogonal"), orthogonal["credit_horizon"])


def test_a_bad_argument_is_explained(tmp_path: Path) -> None:
    for arguments, message in (
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--fixes", "prayer"], "invalid choice: 'prayer'"),
        (["--plot-only"], "run without --plot-only"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_fixes_are_of_equal_size_and_on_the_same_draws(module) -> None:
    networks = module("fixes_compared_networks")
    made = networks.experiments(list(networks.FIXES), 2, units=32, features=6, classes=4, data="temporal_order")
    budget = networks.parameters("tanh", 32, 6, 4)
    assert len({one.key for one in made.values()}) == len(made) == 2 * len(networks.FIXES)
    for (name, seed), one in made.items():
        assert one.seed == seed
        # the nearest number of units: half of what one unit more or less makes, 2 √gates / n of the whole
        assert abs(networks.parameters(one.cell, one.units, 6, 4) / budget - 1) < 2 / one.units
        assert networks.FIXES[networks.FIXES[name].against].against == networks.FIXES[name].against
        assert networks.FIXES[name].source
    naive = made["tanh, naive", 0]
    assert naive.gain / np.sqrt(naive.units) == pytest.approx(0.05)
    assert naive.clip_norm is None


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_parameters_are_counted_as_keras_counts(cell: str, module) -> None:
    networks = module("fixes_compared_networks")
    keras = pytest.importorskip("keras")
    layers = {"tanh": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    model = keras.Sequential([keras.Input((5, 6)), layers[cell](7), keras.layers.Dense(4)])
    assert networks.parameters(cell, 7, 6, 4) == model.count_params()


def collected(seeds: int) -> xr.Dataset:
    """Return what `collect` would make of two fixes: orthogonal solves it, at twice the time; one naive run broke."""
    rng = np.random.default_rng(0)
    fixes, shared = ["tanh, naive", "tanh, orthogonal"], 0.01 * rng.standard_normal(seeds)
    rate = np.stack([-1.0 + shared, -0.1 + shared])[:, :, None] * np.array([1.0, 0.5])
    success = np.stack([np.full(seeds, 0.25), np.full(seeds, 1.0)])[:, :, None]
    success[0, 0] = np.nan
    terms = ["promise", "saturation", "within_step", "step_norms", "between_steps", "direction"]
    ds = xr.Dataset(
        {
            "rate": (("fix", "seed", "stage"), rate),
            "credit_horizon": (("fix", "seed", "stage"), 20.0 + 10 * rate),
            "budget": (("fix", "seed", "stage", "term"), rate[..., None] * np.array([np.nan] * 3 + [0.7, 0.2, 0.1])),
            "log_gradient": (("fix", "seed", "stage", "lag"), rate[..., None] * np.arange(11)),
            "test_success": (("fix", "seed", "epoch"), success),
            "epoch_seconds": (("fix", "seed"), np.exp(np.stack([shared, shared + np.log(2.0)]))),
            "parameters": (("fix", "seed"), np.full((2, seeds), 100.0)),
            "units": (("fix", "seed"), np.full((2, seeds), 8.0)),
        },
        {
            "fix": fixes,
            "stage": ["initial", "trained"],
            "term": terms,
            "lag": np.arange(11),
            "seed": np.arange(seeds),
            "epoch": [1],
        },
    )
    return ds.assign_attrs(data="temporal_order", length=10, success=0.99, baseline=0.25, failed=[])


def test_intervals_are_of_pairs(module) -> None:
    report = module("fixes_compared_report")
    rows = report.summarise(collected(8)).set_index("fix")
    orthogonal, naive = rows.loc["tanh, orthogonal"], rows.loc["tanh, naive"]
    # what the seeds share cancels in the differences, and not in the means
    assert orthogonal["rate before, gain high"] - orthogonal["rate before, gain low"] < 1e-12
    assert orthogonal["rate before, gain"] == pytest.approx(0.9)
    assert orthogonal["rate before low"] < orthogonal["rate before"] < orthogonal["rate before high"]
    assert orthogonal["half-life before"] == pytest.approx(-np.log(2) / orthogonal["rate before"])
    assert orthogonal["half-life before low"] < orthogonal["half-life before"] < orthogonal["half-life before high"]
    assert [orthogonal[f"cost{end}"] for end in ("", " low", " high")] == pytest.approx([2.0] * 3)
    assert (orthogonal["solved"], naive["solved"]) == (8, 0)
    assert naive["success"] == pytest.approx(0.25 * 7 / 8)  # a training that broke off answers nothing right
    # Clopper and Pearson of 8 in 8: the α/2 quantile is 0.025^(1/8)
    assert orthogonal["solved low"] == pytest.approx(0.025 ** (1 / 8))


def test_sentences_say_what_the_numbers_say(module) -> None:
    report = module("fixes_compared_report")
    ds = collected(8)
    first, second = report.sentences(ds, report.summarise(ds))
    assert first.endswith("by every network of: tanh, orthogonal; by none of: tanh, naive.")
    assert "tanh, orthogonal against tanh, naive: right answers +0.78" in second
    assert "(more)" in second
    assert "in the budget at the start most step norms +0.630 [+0.630, +0.630]" in second
    assert "processor time ×2.00 [2.00, 2.00]" in second


@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_the_budget_adds_up_to_what_is_measured(cell: str, module) -> None:
    report = module("fixes_compared_report")
    described = {
        "data": "temporal_order",
        "length": 12,
        "samples": 40,
        "units": 4,
        "epochs": 1,
        "probes": 3,
        "held_out": 2,
    }
    ds = gl.run(gl.Experiment(cell, **described, measured=["analysis"]))
    terms = report.budget(ds)
    assert terms.shape == (2, 6)
    # means over probes of six terms of at most 12·5 nats, over a lag of 12
    measured = ds["budget_measured"][:, :, 0].mean(axis=1) / 12
    np.testing.assert_allclose(terms[:, 3:].sum(axis=1), measured, rtol=0, atol=1e-12)
    if cell == "tanh":
        np.testing.assert_allclose(terms[:, :3].sum(axis=1), terms[:, 3], rtol=0, atol=1e-12)
    else:
        assert np.isnan(terms[:, :3]).all()


def test_few_networks_have_no_intervals(module, tmp_path: Path) -> None:
    report, figure = module("fixes_compared_report"), module("fixes_compared_figure")
    ds = collected(2)
    summary = report.summarise(ds)
    assert np.isnan(summary["rate before low"]).all()
    table = report.table(summary)
    assert isinstance(table, pd.DataFrame)
    assert "[" not in table["rate before (nats/step)"].iloc[1]
    figure.draw(ds, summary, tmp_path / "figure.json")
    figure.draw(collected(8), report.summarise(collected(8)), tmp_path / "eight.json")
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert (tmp_path / "eight.pdf").stat().st_size > 0

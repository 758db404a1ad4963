"""benchmarks/bounds_vs_truth.py: networks are what their classes say, bounds hold, empty cells have their reason."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

from gradlab.spectrum import recurrent_spectrum

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "bounds_vs_truth.py"
EPS = np.finfo(np.float64).eps
LINEAR_ALONE = ("2wᵏ, numerical radius", "Henrici", "κ(V)ρᵏ", "Stein metric", "Kreiss e·n·K", "sup‖Wᵏ‖")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Return an importer of the modules beside the script."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("bounds_vs_truth")
    done = run(out, "--quick", "--units", "6", "--steps", "20")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture
def record(finished: tuple[Path, str]) -> dict:
    return json.loads((finished[0] / "bounds_vs_truth_quick.json").read_text(encoding="utf-8"))


def test_the_record_is_whole(finished: tuple[Path, str], record: dict, module) -> None:
    out, printed = finished
    assert {"commit", "dirty", "command", "seed", "blas", "wall_seconds"} <= record["environment"].keys()
    kinds, statements = (module(f"bounds_vs_truth_{part}") for part in ("networks", "statements"))
    names = [one.name for one in statements.STATEMENTS]
    assert [(one["statement"], one["class"]) for one in record["cells"]] == [(s, c) for s in names for c in kinds.KINDS]
    assert {len(rates) for rates in record["rates"].values()} == {2}
    for one in record["cells"]:
        assert one["of"] == 2
        assert (one["networks"] == 2) == (one["reason"] is None)
        assert ("mean" in one) == (one["networks"] > 0)
        if one["networks"]:
            assert np.isfinite([one["mean"], one["rms"]]).all()
            assert one["rms"] >= abs(one["mean"]) * (1 - 8 * EPS)
            assert one["mean_low"] is None  # two networks give no interval
            assert np.shape(one["errors"]) == (one["networks"], record["sequences"])
            assert one["mean"] == pytest.approx(np.mean(one["errors"]), abs=1e-14)
    for suffix in (".csv", ".pdf", ".png"):
        assert (out / f"bounds_vs_truth_quick{suffix}").stat().st_size > 0
    assert "The folk rule is off by" in printed
    assert record["classes"]["tanh, saturated"] == {"activation": "tanh", "drive": 9.0, "gain": 1.5, "trained": None}


def test_no_bound_is_crossed(record: dict, finished: tuple[Path, str]) -> None:
    bounds = [one for one in record["cells"] if one["kind"] != "prediction" and one["networks"]]
    assert len(bounds) > 100
    for one in bounds:
        steps = 64 if one["class"].endswith("trained") else record["steps"]
        assert one["crossings"] == 0
        assert one["checked"] == one["networks"] * record["sequences"] * steps
        assert min(min(errors) for errors in one["errors"]) > -1e-9
    assert "The bounds are never crossed" in finished[1]


def test_the_chain_is_in_order(record: dict) -> None:
    """σ₁(P) ≤ Π‖J‖ ≤ Π(max φ′ σ₁) ≤ (γσ₁)^k, for every sequence of every network."""
    cells = {(one["statement"], one["class"]): one for one in record["cells"]}
    for name in record["rates"]:
        links = ("σ₁(P)", "Π‖J‖, mean chain", "Π (max φ′ σ₁)", "(γσ₁)ᵏ")
        sizes = np.array([cells[link, name]["errors"] for link in links])
        assert (np.diff(sizes, axis=0) >= -1e-12).all()


def test_where_a_hypothesis_does_not_hold_the_cell_is_empty(record: dict) -> None:
    cells = {(one["statement"], one["class"]): one for one in record["cells"]}
    for name in record["rates"]:
        linear = name.startswith("linear")
        for statement in LINEAR_ALONE:
            assert linear or "not linear" in cells[statement, name]["reason"]
        assert bool(cells["Π max φ′, orthogonal W", name]["networks"]) == ("orthogonal" in name)
        random = name in ("tanh, random", "tanh, saturated", "tanh, chaotic")
        assert bool(cells["mean field ½ ln χ₁", name]["networks"]) == random
        assert bool(cells["gᵏ, circular law", name]["networks"]) == (name == "linear, random")
        assert cells["ρ(W)ᵏ, the folk rule", name]["networks"] == 2
    assert "ρ(W) < 1" in cells["Stein metric", "linear, orthogonal"]["reason"]


def test_the_table_and_the_figure_come_from_the_record_alone(
    finished: tuple[Path, str], record: dict, module, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = finished
    table = pd.read_csv(out / "bounds_vs_truth_quick.csv")
    assert list(table.columns) == ["statement", "kind", "needs", *record["rates"]]
    assert not table.isna().any(axis=None)
    before = (out / "bounds_vs_truth_quick.csv").read_bytes()
    figure = out / "bounds_vs_truth_quick.png"
    figure.unlink()
    monkeypatch.setattr(sys, "argv", ["job", "--quick", "--plot-only", "--out", str(out)])
    module("bounds_vs_truth").main()
    assert figure.stat().st_size > 0
    assert (out / "bounds_vs_truth_quick.csv").read_bytes() == before


def test_the_classes_are_what_they_are_called(module) -> None:
    kinds = module("bounds_vs_truth_networks")
    for n in (7, 16):
        rng = np.random.default_rng(n)
        normal = recurrent_spectrum(kinds.normal(rng, n))
        assert normal.henrici_departure < 10 * n * EPS
        assert normal.spectral_radius == pytest.approx(0.95, abs=10 * n * EPS)
        assert normal.transient_peak == 1
        leaning = recurrent_spectrum(kinds.non_normal(rng, n))
        assert leaning.henrici_departure > 1
        assert leaning.sigma_max > 1.3 > 1 > leaning.spectral_radius
        Q = kinds.orthogonal(rng, n)
        assert np.abs(Q.T @ Q - np.eye(n)).max() < 4 * n * EPS
    entries = kinds.gaussian(1.5)(rng, 200)
    assert np.sqrt(200) * entries.std() == pytest.approx(1.5, rel=4 / np.sqrt(2 * 200**2))


def test_networks_are_independent_and_repeatable(module) -> None:
    measured = module("bounds_vs_truth_networks").measured
    sizes = {"units": 4, "steps": 10, "sequences": 2, "epochs": 1}
    first, again, other = (measured("tanh, random", r, seed=0, **sizes) for r in (0, 0, 1))
    reseeded = measured("tanh, random", 0, seed=1, **sizes)
    np.testing.assert_array_equal(first.drop, again.drop)
    for one in (other, reseeded):
        assert np.abs(first.W - one.W).min() > 0


def test_a_cell_of_enough_networks_has_an_interval_over_networks(module) -> None:
    report = module("bounds_vs_truth_report")
    noise = np.random.default_rng(0).standard_normal(20)
    networks = [{"errors": [x, x, x], "wrong_sign": 1} for x in noise] + [{"reason": "broken"}]
    found = report.cell(networks, 0)
    assert (found["networks"], found["of"], found["reason"], found["wrong_sign"]) == (20, 21, "broken", 20)
    assert found["mean"] == pytest.approx(noise.mean(), abs=1e-14)
    # ± t_19 standard errors of 20 draws, not of 60 numbers
    half = 2.093 * noise.std(ddof=1) / np.sqrt(20)
    assert (found["mean_high"] - found["mean_low"]) / 2 == pytest.approx(half, rel=0.15)
    assert report._text({**found, "kind": "prediction"}).endswith("(20 of 21 networks)")
    assert report.cell([{"reason": "b"}, {"reason": "a"}], 0)["reason"] == "a; b"


def test_a_crossing_would_be_spoken_of(record: dict, module) -> None:
    report = module("bounds_vs_truth_report")
    assert report.sentences(record)[-1].startswith("The bounds are never crossed in")
    next(one for one in record["cells"] if "crossings" in one)["crossings"] = 2
    assert report.sentences(record)[-1].startswith("The bounds are CROSSED 2 TIMES")


def test_a_bad_argument_is_explained(
    module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = module("bounds_vs_truth")
    for arguments, message in (
        (["--networks", "0"], "--networks must be at least 1, got 0"),
        (["--steps", "7"], "--steps must be at least 8, got 7"),
        (["--classes", "cubic"], "invalid choice: 'cubic'"),
        (["--plot-only"], "no record at"),
    ):
        monkeypatch.setattr(sys, "argv", ["job", "--out", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as stopped:
            job.main()
        assert message in f"{stopped.value} {capsys.readouterr().err}"

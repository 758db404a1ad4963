"""benchmarks/fit_decay_coverage.py: its walks are what it says, its record is whole, and the docstring quotes it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gradlab.decay import fit_decay

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "fit_decay_coverage.py"
DOCUMENTED = " ".join((fit_decay.__doc__ or "").split())
QUOTED = r"([\d.]+) at m = 20, ([\d.]+) at 50, ([\d.]+) at 100, ([\d.]+) at 500"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("fit_decay_coverage")


def test_walks_have_the_moments_that_they_are_given(module: ModuleType) -> None:
    """Drift, unit variance and correlation, from the first increment on; 4 standard errors of 20000 sequences."""
    for correlation in module.CORRELATIONS:
        curves = module.walks(np.random.default_rng(0), 20000, 6, correlation)
        assert (curves[:, -1] == 0).all()
        increments = -np.diff(curves, axis=1)[:, ::-1] - module.DRIFT
        np.testing.assert_allclose(increments.mean(axis=0), 0, atol=4 / np.sqrt(20000))
        np.testing.assert_allclose((increments**2).mean(axis=0), 1, atol=4 * np.sqrt(2 / 20000))
        product = (increments[:, 1:] * increments[:, :-1]).mean(axis=0)
        np.testing.assert_allclose(product, correlation, atol=4 * np.sqrt(2 / 20000))


def test_the_docstring_quotes_what_the_simulation_gives(module: ModuleType) -> None:
    """Another seed, fewer sequences: 4 binomial errors of both, and half a unit of the last digit quoted."""
    quoted = [[float(one) for one in found] for found in re.findall(QUOTED, DOCUMENTED)]
    assert len(quoted) == len(module.CORRELATIONS)
    for correlation, values in zip(module.CORRELATIONS, quoted, strict=True):
        for m, value in zip(module.INCREMENTS, values, strict=True):
            row = module.measure(m, correlation, 400, seed=1)
            apart = np.sqrt(value * (1 - value) * (1 / 400 + 1 / 20000))
            assert row["coverage"] == pytest.approx(value, abs=4 * apart + 0.005)
    times = [int(one) for one in re.findall(r"(\d+) times at", DOCUMENTED)]
    for m, value in zip((20, 500), times, strict=True):
        # a ratio of root mean squares: the actual error is known to 1/√800 of itself, the claimed one better
        assert module.measure(m, None, 400, seed=1)["claimed_over_actual"] == pytest.approx(value, rel=0.15)


def test_the_record(module: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--sequences", "50", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "fit_decay_coverage_quick.json").read_text(encoding="utf-8"))
    assert {"commit", "dirty", "command", "seed", "blas"} <= record["environment"].keys()
    assert len(record["rows"]) == 16
    assert all(0 < row["binomial_standard_error"] < 0.1 for row in record["rows"])
    assert module.sentence(record) in done.stdout
    figure = tmp_path / "fit_decay_coverage_quick.png"
    assert figure.stat().st_size > 0
    figure.unlink()
    again = subprocess.run([*command, "--plot-only"], capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert figure.stat().st_size > 0


def test_what_is_not_there_or_makes_no_sense_is_explained(tmp_path: Path) -> None:
    for arguments, message in ((["--plot-only"], "no record at"), (["--sequences", "1"], "must be at least 2, got 1")):
        command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_the_docstring_is_that_of_the_committed_record(module: ModuleType) -> None:
    path = ROOT / "benchmarks" / "results" / "fit_decay_coverage.json"
    if not path.exists():
        pytest.skip("no committed record yet")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert module.sentence(record) in DOCUMENTED
    assert record["environment"]["dirty"] is False

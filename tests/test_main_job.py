"""benchmarks/decay_vs_spectrum.py: writes everything it promises, resumes, and its report says what the numbers say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gradlab as gl

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "decay_vs_spectrum.py"


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("job")
    small = ["--quick", "--data", "vowels", "--cells", "tanh", "gru", "--units", "5", "--epochs", "1"]
    done = run(out, *small, "--gains", "0.7", "1.3")
    assert done.returncode == 0, done.stderr
    # one of the four runs is lost; --resume makes that one again and no other
    next((out / "runs").glob("gru-*.nc")).unlink()
    again = run(out, *small, "--gains", "0.7", "1.3", "--resume")
    assert again.returncode == 0, again.stderr
    assert "4 runs (3 reused)" in again.stdout
    return out, done.stdout


def test_everything_is_written(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for suffix in ("nc", "csv", "tex", "pdf", "png", "json"):
        assert (out / f"decay_vs_spectrum.{suffix}").stat().st_size > 0
    ds = gl.load(out / "decay_vs_spectrum.nc")
    assert dict(ds.sizes) == {"run": 4, "stage": 2, "lag": 30}
    assert int(ds["bound_crossings"].sum()) == 0
    gru = ds.isel(run=np.flatnonzero(ds["cell"].values == "gru"))
    for name in ("log_spectral_radius", "log_promise", "mean_field_rate"):  # these do not hold for a gated cell
        assert np.isnan(gru[name]).all()
    assert np.isfinite(gru[["lyapunov", "log_step_norm", "rate"]].to_array()).all()
    table = pd.read_csv(out / "decay_vs_spectrum.csv")
    assert len(table) == 8
    assert "\\toprule" in (out / "decay_vs_spectrum.tex").read_text()
    assert "root-mean-square error" in printed


def test_the_record_can_be_cited(finished: tuple[Path, str]) -> None:
    out, printed = finished
    record = json.loads((out / "decay_vs_spectrum.json").read_text())
    assert {"gradlab_version", "commit", "dirty", "command", "created_utc"} <= record["provenance"].keys()
    assert len(record["experiments"]) == record["runs"] == 4
    # the same runs give the same sentences: the resumed record repeats what the first job printed
    for sentence in record["sentences"]:
        assert sentence in printed


def test_a_bad_argument_is_explained(tmp_path: Path) -> None:
    for arguments, message in (
        (["--gains", "-1"], "gain must be a positive finite number"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--cells", "transformer"], "invalid choice: 'transformer'"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr

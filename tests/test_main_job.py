"""benchmarks/decay_vs_spectrum.py: writes everything it promises, resumes, and its report says what the numbers say."""

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
    assert np.isfinite(gru[["lyapunov", "lyapunov_held_out", "log_step_norm", "rate"]].to_array()).all()
    assert len(set(ds["seed"].values)) == 4
    table = pd.read_csv(out / "decay_vs_spectrum.csv")
    assert len(table) == 8
    assert (table["λ₁ held out"] != table["λ₁"]).all()
    assert "\\toprule" in (out / "decay_vs_spectrum.tex").read_text()
    assert "root-mean-square error" in printed
    assert "forecasts it along other sequences with" in printed
    assert "(4 independent seeds, too few for intervals)" in printed


def test_the_record_can_be_cited(finished: tuple[Path, str]) -> None:
    out, printed = finished
    record = json.loads((out / "decay_vs_spectrum.json").read_text())
    assert {"gradlab_version", "commit", "dirty", "command", "created_utc"} <= record["provenance"].keys()
    assert len(record["experiments"]) == record["runs"] == 4
    assert {"λ₁", "λ₁ held out"} <= {row["predictor"] for row in record["predictors"]}
    assert "NaN" not in json.dumps(record["predictors"])  # an interval that is not there is null
    # the same runs give the same sentences: the resumed record repeats what the first job printed
    for sentence in record["sentences"]:
        assert sentence in printed


def test_a_bad_argument_is_explained(tmp_path: Path) -> None:
    for arguments, message in (
        (["--gains", "-1"], "gain must be a positive finite number"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:9"], "not allowed with argument"),
        (["--cells", "transformer"], "invalid choice: 'transformer'"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """Return the job and its report, imported."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("decay_vs_spectrum"), importlib.import_module("decay_vs_spectrum_report")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("decay_vs_spectrum_figures")


def collected(
    cells: str, stages: tuple[str, ...] = ("initial", "trained"), gains: list[float] | None = None
) -> xr.Dataset:
    """Return what `collect` would make of runs of these cells ("tg": tanh and GRU), each with a seed of its own."""
    names = [{"t": "tanh", "g": "gru"}[c] for c in cells]
    shape = (len(names), len(stages))
    rate = -0.1 - 0.02 * np.arange(np.prod(shape), dtype=float).reshape(shape)
    gated = np.array([name == "gru" for name in names])[:, None]
    columns = {"rate": rate, "lyapunov": rate + 0.01, "lyapunov_held_out": rate + 0.02, "log_step_norm": rate + 0.3}
    columns |= {name: np.where(gated, np.nan, rate + 0.5) for name in ("log_spectral_radius", "log_promise")}
    columns |= {"mean_field_rate": columns["log_promise"], "bound_crossings": np.zeros(shape)}
    ds = xr.Dataset({name: (("run", "stage"), values) for name, values in columns.items()}, {"stage": list(stages)})
    ds["decay_curve"] = (("run", "stage", "lag"), rate[:, :, None] * np.arange(4))
    ds = ds.assign_coords(cell=("run", names), gain=("run", gains or [1.0] * len(names)), lag=np.arange(4))
    ds = ds.assign_coords(seed=("run", np.arange(len(names))))
    return ds.assign_attrs(data="noise", units=4)


def test_one_network_is_too_few_for_a_summary_and_is_reported_all_the_same(tmp_path: Path) -> None:
    out = tmp_path / "one"
    done = run(out, *["--quick", "--data", "noise", "--cells", "gru", "--gains", "1", "--seeds", "1", "--units", "4"])
    assert done.returncode == 0, done.stderr
    for suffix in ("nc", "csv", "tex", "pdf", "png", "json"):
        assert (out / f"decay_vs_spectrum.{suffix}").stat().st_size > 0
    (sentence,) = json.loads((out / "decay_vs_spectrum.json").read_text())["sentences"]
    assert sentence.startswith("Too few networks for a summary: got 1, and it takes 3")
    assert "The chain of upper bounds is never crossed" in sentence


def test_the_report_of_few_networks(
    modules: tuple[ModuleType, ModuleType], figures: ModuleType, tmp_path: Path
) -> None:
    _, report = modules
    few, enough = report.summarise(collected("tg")), report.summarise(collected("ggg"))
    assert len(few) == 0
    assert list(few.columns) == list(enough.columns)
    figures.draw_overview(collected("tg"), few, tmp_path / "overview")
    assert (tmp_path / "overview.png").stat().st_size > 0


def test_crossings_are_spoken_of_for_gated_cells_too(modules: tuple[ModuleType, ModuleType]) -> None:
    _, report = modules
    for cells, bound in (("gggg", "⟨ln‖J‖⟩"), ("tttg", "ln γσ₁(W)"), ("g", "chain of upper bounds")):
        ds = collected(cells)
        (said,) = [text for text in report.sentences(ds, report.summarise(ds)) if "crossed" in text]
        assert f"{bound} is never crossed" in said
        ds["bound_crossings"][0, 0] = 2
        assert any(f"{bound} IS CROSSED 2 TIMES" in text for text in report.sentences(ds, report.summarise(ds)))


def test_networks_are_resampled_within_their_cell_and_gain(modules: tuple[ModuleType, ModuleType]) -> None:
    """What all networks of a gain have in common, the interval does not hold; what a network's stages have, it does."""
    _, report = modules
    ds = collected("t" * 12, gains=[0.5] * 6 + [2.0] * 6)
    noise = np.random.default_rng(0).standard_normal(12)
    for name in ("lyapunov", "lyapunov_held_out"):
        ds[name] = ds["rate"] + noise[:, None] + 10.0 * (ds["gain"] > 1)
    summary = report.summarise(ds).set_index(["predictor", "stage"])
    row, one = summary.loc[("λ₁", "both")], summary.loc[("λ₁", "initial")]
    assert (row["networks"], row["seeds"]) == (12, 12)
    assert row["bias"] == pytest.approx(5.0 + noise.mean(), abs=1e-12)
    assert (row["bias low"], row["bias high"]) == pytest.approx((one["bias low"], one["bias high"]), abs=1e-12)
    within = np.sqrt((noise[:6].var(ddof=1) + noise[6:].var(ddof=1)) / 24)
    # an interval of ± t_10 standard errors, made of a bootstrap distribution of six values in each stratum
    assert (row["bias high"] - row["bias low"]) / (2 * 2.228 * within) == pytest.approx(1.0, abs=0.2)


def test_networks_that_share_a_seed_are_resampled_together(modules: tuple[ModuleType, ModuleType]) -> None:
    _, report = modules
    ds = collected("t" * 24, gains=[0.5] * 12 + [2.0] * 12)
    noise = np.random.default_rng(0).standard_normal(12)
    ds["lyapunov"] = ds["rate"] + np.tile(noise, 2)[:, None]
    apart = report.summarise(ds).set_index(["predictor", "stage"]).loc[("λ₁", "both")]
    ds = ds.assign_coords(seed=("run", np.tile(np.arange(12), 2)))
    together = report.summarise(ds).set_index(["predictor", "stage"]).loc[("λ₁", "both")]
    assert (apart["seeds"], together["seeds"]) == (24, 12)
    widths = [row["bias high"] - row["bias low"] for row in (together, apart)]
    # every number is there twice: 12 draws, not 24, and t_11 against t_22; the expansions differ by the discreteness
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(23 / 11) * 2.201 / 2.074, rel=0.15)


def test_the_committed_results_of_any_age_can_be_reported(
    modules: tuple[ModuleType, ModuleType], figures: ModuleType, tmp_path: Path
) -> None:
    """Those of before the held-out sequences lack a column, and their three seeds give no interval."""
    _, report = modules
    ds = gl.load(SCRIPT.parent / "results" / "decay_vs_spectrum.nc")
    old = ds.drop_vars("lyapunov_held_out", errors="ignore").assign_coords(seed=("run", np.arange(ds.sizes["run"]) % 3))
    for one in (ds, old):
        summary = report.summarise(one)
        assert ("λ₁ held out" in set(summary["predictor"])) == ("lyapunov_held_out" in one)
        assert len(report.table(one)) == 48
        assert any("never crossed" in said for said in report.sentences(one, summary))
    assert summary["bias low"].isna().all()
    figures.draw_overview(old, summary, tmp_path / "overview")


def test_every_network_has_a_seed_of_its_own(modules: tuple[ModuleType, ModuleType]) -> None:
    job, _ = modules
    seeds = [
        job.network_seed(replicate, cell, gain)
        for replicate in range(50)
        for cell in job.CHOICES["cells"]
        for gain in job.DEFAULT_GAINS
    ]
    assert len(set(seeds)) == len(seeds) == 1200
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert job.network_seed(0, "tanh", 1) == job.network_seed(0, "tanh", 1.0)


def test_left_out_counts_networks_with_a_predictor_that_lack_a_stage(modules: tuple[ModuleType, ModuleType]) -> None:
    _, report = modules
    ds = collected("tttttgg")
    ds["log_promise"][0, 1] = -np.inf
    ds["rate"][1, 0] = np.nan
    summary = report.summarise(ds).set_index(["predictor", "stage"])["left out"]
    assert summary["ln γσ₁(W)"].to_dict() == {"initial": 1, "trained": 1, "both": 2}  # not the two GRUs
    assert summary["λ₁"].to_dict() == {"initial": 1, "trained": 0, "both": 1}


def test_resume_warns_of_a_dirty_tree(
    modules: tuple[ModuleType, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job, _ = modules

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gl, "sweep", stop)
    monkeypatch.setattr(sys, "argv", ["job", "--quick", "--resume", "--data", "noise", "--out", str(tmp_path)])
    for dirty in (True, False):
        monkeypatch.setattr(job, "provenance", lambda dirty=dirty: {"dirty": dirty})
        with pytest.raises(KeyboardInterrupt):
            job.main()
        assert ("the tree is dirty" in capsys.readouterr().err) is dirty

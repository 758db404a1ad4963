"""The README does what it says: its script runs, and its commands name files and options that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import gradlab as gl

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script, _ = SCRIPTS
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    plt.close("all")
    rate, exponent, radius = map(float, capsys.readouterr().out.split())
    ds = gl.load(tmp_path / "tanh.nc")
    assert (rate, radius) == (float(ds["decay_rate"].mean()), float(ds["spectral_radius"]))
    assert exponent == float(ds["lyapunov_exponent"][:, 0].mean())


def test_the_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is printed, but with fewer and smaller networks, and without a cluster (`test_sweep_cluster`)."""
    _, script = SCRIPTS
    monkeypatch.chdir(tmp_path)
    small = "gl.Experiment('lstm', gain=g, seed=s, units=2, data='noise', epochs=0, probes=2, held_out=2)"
    script = script.replace('gl.Experiment("lstm", gain=g, seed=s)', small).replace("range(10)", "range(1)")
    lines = [line for line in script.splitlines() if "scheduler" not in line]
    names = {"gl": gl}
    exec(compile("\n".join(lines), "README.md", "exec"), names)
    assert len(list((tmp_path / "runs").glob("*.nc"))) == 3
    assert sorted(names["ds"]["gain"].to_numpy().ravel().tolist()) == [0.5, 1.0, 2.0]


def test_every_public_name_has_a_line() -> None:
    for name in gl.__all__:
        assert f"`{name}`" in README, f"README.md does not say what gl.{name} is"


def test_links_and_commands_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"benchmarks/\w+\.py", README):
        assert (ROOT / target).exists(), target


def test_the_findings_are_those_of_the_committed_results() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "decay_vs_spectrum.json").read_text(encoding="utf-8"))
    text = " ".join(README.split())
    for sentence in record["sentences"]:
        assert sentence in text, f"README.md does not hold what the main job printed: {sentence}"
    assert record["provenance"]["dirty"] is False


def test_what_is_said_of_the_fixes_is_in_the_record() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "fixes_compared.json").read_text(encoding="utf-8"))["fixes"]
    lost = {one["fix"]: -one["between_steps before"] for one in rows}
    solving = {one["fix"] for one in rows if one["solved"] > one["seeds"] / 2}
    most, least = max(lost[name] for name in solving), min(lost[name] for name in lost.keys() - solving)
    said = " ".join(README.split())
    assert f"at most {most:.2f} nats per step in the first, at least {least:.2f} in the others" in said

"""Descriptions read from files: single runs, grids, and what is wrong in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gradlab as gl


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_descriptions_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"runs.{suffix}"
    if suffix == "toml":
        path.write_text(
            """
            data = "adding"
            length = 20
            clip_norm = "none"
            [[runs]]
            cell = "tanh"
            grid = {gain = [0.5, 1], seed = [1, 2]}
            [[runs]]
            cell = "lstm"
            forget_bias = "chrono"
            length = 30
            """
        )
    else:
        runs = [{"cell": "tanh", "grid": {"gain": [0.5, 1], "seed": [1, 2]}}]
        runs += [{"cell": "lstm", "forget_bias": "chrono", "length": 30}]
        path.write_text(json.dumps({"data": "adding", "length": 20, "clip_norm": None, "runs": runs}))
    found = gl.read_experiments(path)
    tanh = [gl.Experiment("tanh", g, s, "adding", length=20, clip_norm=None) for g in (0.5, 1.0) for s in (1, 2)]
    assert found == [*tanh, gl.Experiment("lstm", data="adding", length=30, clip_norm=None, forget_bias="chrono")]
    (tmp_path / "list.json").write_text(json.dumps([one.as_dict() for one in found]))
    assert gl.read_experiments(tmp_path / "list.json") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('cell = "tanh"\ngian = 2.0', r"runs.toml: unknown key 'gian' \(did you mean 'gain'\?\)"),
        (
            '[[runs]]\ncell = "tanh"\n[[runs]]\ncell = "elman"',
            r"run 2: cell must be one of \['tanh', 'relu', 'linear', 'lstm', 'gru'\]",
        ),
        ("gain = 2.0", r"needs the key 'cell', one of \['tanh'"),
        ("cell = ", "must be TOML, got text that is not"),
        ('cell = "tanh"\n[grid]\ngain = 2.0', "grid must be a table of lists"),
        ('cell = "tanh"\ngain = 1.0\n[grid]\ngain = [2.0]', r"\['gain'\] stand in the grid and beside it"),
        ("runs = []", "runs.toml: runs must hold at least one table, got none"),
        ('cell = "tanh"\n[grid]\ngain = []', "the grid must have at least one value for 'gain', got none"),
        ('cell = "t\udce4nh"', "runs.toml must be TOML, got text that is not .*can't decode byte 0xe4"),
        ("runs = 3", "runs must be a list of tables, got 3"),
        ('[grid]\ngain = [2.0]\n[[runs]]\ncell = "tanh"', "put a grid into each of the runs"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "runs.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises((ValueError, TypeError), match=message):
        gl.read_experiments(tmp_path / "runs.toml")
    with pytest.raises(ValueError, match=r"must end in .toml or .json, got '.yaml'"):
        gl.read_experiments(tmp_path / "runs.yaml")

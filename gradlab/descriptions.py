"""Descriptions of runs in TOML and JSON files, one by one and in grids. No TensorFlow."""

from __future__ import annotations

import itertools
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradlab.experiment import Experiment


def read_experiments(path: str | os.PathLike[str]) -> list[Experiment]:
    r"""Read descriptions from a TOML or JSON file.

    A table whose keys are fields of `Experiment` is one run. The table ``grid`` holds lists: every combination of them
    is a run, the last key varying fastest. The list ``runs`` holds tables, each a run, or a grid, of its own over what
    stands beside it. A JSON file may also be a list of descriptions.

    Args:
        path: the file, ending in .toml or .json.

    Returns:
        The experiments in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither TOML nor JSON, or a description is wrong; the message names file, run and key.

    Example:
        >>> import tempfile
        >>> text = 'cell = "tanh"\nunits = 8\n[grid]\ngain = [0.5, 1.5]\nseed = [0, 1]'
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "runs.toml"
        ...     _ = path.write_text(text)
        ...     [(one.units, one.gain, one.seed) for one in read_experiments(path)]
        [(8, 0.5, 0), (8, 0.5, 1), (8, 1.5, 0), (8, 1.5, 1)]
    """
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"{path} must end in .toml or .json, got {path.suffix or 'no suffix'!r}; rename it")
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{path} must be {path.suffix[1:].upper()}, got text that is not ({error}); mend it"
        ) from error
    try:
        return _expanded(found if isinstance(found, Mapping) else {"runs": found}, {})
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def _expanded(table: Mapping[str, Any], shared: Mapping[str, Any]) -> list[Experiment]:
    """Return the experiments of a table, given what stands beside or above it."""
    own = {key: value for key, value in table.items() if key not in ("runs", "grid")}
    base = {**shared, **own}
    if "runs" in table:
        if "grid" in table:
            raise ValueError("grid and runs stand side by side; put a grid into each of the runs")
        runs = table["runs"]
        if not isinstance(runs, list) or not all(isinstance(one, Mapping) for one in runs):
            raise TypeError(f"runs must be a list of tables, got {runs!r}")
        if not runs:
            raise ValueError("runs must hold at least one table, got none")
        found = []
        for number, one in enumerate(runs, 1):
            try:
                found += _expanded(one, base)
            except (ValueError, TypeError) as error:
                raise type(error)(f"run {number}: {error}") from error
        return found
    grid = table.get("grid", {})
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) for values in grid.values()):
        raise TypeError(f"grid must be a table of lists, got {grid!r}; put brackets around single values")
    for key, values in grid.items():
        if not values:
            raise ValueError(f"the grid must have at least one value for {key!r}, got none")
    twice = sorted(set(grid) & set(own))
    if twice:
        raise ValueError(f"{twice} stand in the grid and beside it; leave them out of one")
    return [
        Experiment.from_dict(base | dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]

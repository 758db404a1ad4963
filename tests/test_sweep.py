"""Sweeps in one process: what is run, what is kept, what is said."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sweep_bodies
import xarray as xr

import gradlab as gl
from gradlab.jobs import DONE, KEPT, Job, name_of, perform
from gradlab.results import content_hash
from gradlab.stamps import stamped

CONFIGS = sweep_bodies.configs(6)


def hashes(store: gl.Store) -> dict[str, str]:
    return {key: content_hash(store.load(key)) for key in store.finished()}


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    ran: list[int] = []

    def body(experiment: gl.Experiment) -> xr.Dataset:
        ran.append(experiment.seed)
        return sweep_bodies.drawn(experiment)

    first = gl.sweep(CONFIGS[:3], tmp_path, run=body, progress=False)
    again = gl.sweep([*CONFIGS, CONFIGS[0], CONFIGS[4].as_dict()], tmp_path, run=body, progress=False)
    assert ran == [0, 1, 2, 3, 4, 5]  # each once, in the order given
    assert (first.done, first.kept, again.done, again.kept) == (3, 0, 3, 3)
    assert again.experiments == tuple(CONFIGS)
    (tmp_path / f"{CONFIGS[1].key}.nc").unlink()
    gl.sweep(CONFIGS, tmp_path, run=body, progress=False)
    assert ran[6:] == [1]
    gl.sweep(CONFIGS[:2], tmp_path, run=body, reuse="none", progress=False)
    assert ran[7:] == [0, 1]
    assert str(again).startswith("3 runs made, 3 kept, 0 failed, in")


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    def interrupted(experiment: gl.Experiment) -> xr.Dataset:
        if experiment.seed == 3:
            raise KeyboardInterrupt
        return sweep_bodies.drawn(experiment)

    interrupted.__module__, interrupted.__qualname__ = (
        "sweep_bodies",
        "drawn",
    )  # the same function, but for the hand on the keyboard
    with pytest.raises(KeyboardInterrupt):
        gl.sweep(CONFIGS, tmp_path, run=interrupted, progress=False)
    assert gl.Store(tmp_path).finished() == sorted(one.key for one in CONFIGS[:3])
    done = gl.sweep(CONFIGS, tmp_path, run=sweep_bodies.drawn, progress=False)
    assert (done.done, done.kept) == (3, 3)


def test_a_failing_run_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = gl.sweep(CONFIGS, tmp_path, run=sweep_bodies.failing)
    assert (done.done, list(done.failed)) == (4, [CONFIGS[1], CONFIGS[4]])
    assert done.failed[CONFIGS[4]] == "ArithmeticError: no result for seed 4"
    assert f"{CONFIGS[4].key}: ArithmeticError" in str(done)
    trace = gl.Store(tmp_path).failures()[CONFIGS[1].key]["traceback"]
    assert re.search(r'File "tests/sweep_bodies.py", line \d+, in failing\n    raise ArithmeticError', trace)
    assert str(Path(__file__).parent.parent) not in trace
    said = capsys.readouterr().err
    assert f"{CONFIGS[1].key} failed: ArithmeticError: no result for seed 1" in said
    assert "done=4, failed=2, left=0" in said
    again = gl.sweep(CONFIGS, tmp_path, run=sweep_bodies.failing, progress=False)
    assert (again.kept, again.done, len(again.failed)) == (4, 0, 2)  # tried again


def test_the_bar_shows_what_is_left_and_for_how_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gl.sweep(CONFIGS[:2], tmp_path, run=sweep_bodies.drawn, progress=False)
    assert capsys.readouterr().err == ""
    gl.sweep(CONFIGS, tmp_path, run=sweep_bodies.drawn)
    said = capsys.readouterr().err
    assert "2/6 [" in said  # begins with what is there
    assert re.search(r"6/6 \[\d\d:\d\d<00:00, .*done=6, failed=0, left=0\]", said)


def test_nothing_is_run_when_a_description_is_wrong(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    with pytest.raises(ValueError, match=r"unknown key 'gian' \(did you mean 'gain'\?\); an experiment has \['cell'"):
        gl.sweep([CONFIGS[0], {"cell": "tanh", "gian": 2.0}], store, run=sweep_bodies.drawn)
    with pytest.raises(ValueError, match="configs must hold at least one description, got none"):
        gl.sweep([], store)
    with pytest.raises(TypeError, match="a description must be an Experiment or a table of its fields, got 3"):
        gl.sweep([3], store)
    with pytest.raises(ValueError, match=r"reuse must be one of \['any', 'same-code', 'none'\], got 'all'"):
        gl.sweep(CONFIGS, store, reuse="all")
    with pytest.raises(ValueError, match="drop one"):
        gl.sweep(CONFIGS, store, "tcp://127.0.0.1:1", workers=2)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        gl.sweep(CONFIGS, store, workers=0)
    assert not store.exists()


def test_a_store_holds_the_results_of_one_function(tmp_path: Path) -> None:
    gl.sweep(CONFIGS[:2], tmp_path, run=sweep_bodies.drawn, progress=False)
    done = gl.sweep(CONFIGS[:2], tmp_path, run=sweep_bodies.slowly, progress=False)
    assert len(done.failed) == 2
    assert "was made by sweep_bodies.drawn, not by sweep_bodies.slowly" in done.failed[CONFIGS[0]]


def scaled_by(scale: float) -> Callable[[gl.Experiment], xr.Dataset]:
    def run(experiment: gl.Experiment) -> xr.Dataset:
        return sweep_bodies.drawn(experiment) * scale

    return run


class Scaled:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, experiment: gl.Experiment) -> xr.Dataset:
        return sweep_bodies.drawn(experiment) * self.scale


def test_functions_are_told_apart_by_their_names() -> None:
    scaled = functools.partial(sweep_bodies.drawn, scale=2.0)
    names = [name_of(run) for run in (None, sweep_bodies.drawn, scaled, functools.partial(scaled, scale=3.0))]
    assert names[0] == name_of(gl.run) == "gradlab.run"
    assert names[1] == "sweep_bodies.drawn"
    assert names[2] == "sweep_bodies.drawn(*(), **{'scale': 2.0})"
    assert len(set(names)) == 4
    assert name_of(scaled_by(2.0)) != name_of(scaled_by(3.0))
    assert "scaled_by.<locals>.run[scale=2.0]" in name_of(scaled_by(2.0))
    nameless = [lambda experiment: experiment, functools.partial(lambda e: e), functools.partial(print, object())]
    nameless += [Scaled(2.0), Scaled(2.0).__call__, functools.partial(print, np.arange(3))]
    for run in nameless:
        with pytest.raises(ValueError, match=r"run must have a name .*; use a function made with def"):
            gl.sweep(CONFIGS, "memory://unnamed", run=run, progress=False)
    assert gl.Store("memory://unnamed").finished() == []


def test_a_result_that_grew_out_of_another_is_stamped_anew(tmp_path: Path) -> None:
    def extended(experiment: gl.Experiment) -> xr.Dataset:
        other = gl.Experiment("gru", seed=77)
        return stamped(sweep_bodies.drawn(other), other, 99.0).assign_attrs(commit="then").assign(more=1.0)

    gl.sweep(CONFIGS[:1], tmp_path, run=extended, progress=False)
    ds = gl.Store(tmp_path).load(CONFIGS[0])  # which checks the hash of the numbers
    assert json.loads(ds.attrs["experiment"]) == CONFIGS[0].as_dict()
    assert (ds.attrs["experiment_hash"], ds.attrs["seed"]) == (CONFIGS[0].hash, CONFIGS[0].seed)
    assert ds.attrs["commit"] == "then"
    assert ds.attrs["wall_seconds"] < 99.0
    assert gl.sweep(CONFIGS[:1], tmp_path, run=extended, progress=False).kept == 1


@pytest.mark.parametrize("reuse", ["any", "same-code", "none"])
def test_the_results_of_another_function_are_safe(tmp_path: Path, reuse: str) -> None:
    gl.sweep(CONFIGS[:2], tmp_path, run=sweep_bodies.drawn, progress=False)
    before = hashes(gl.Store(tmp_path))
    other = functools.partial(sweep_bodies.drawn, scale=2.0)
    swept = gl.sweep(CONFIGS[:2], tmp_path, run=other, reuse=reuse, progress=False)
    assert len(swept.failed) == 2
    assert all("holds the results of one function: use another store" in why for why in swept.failed.values())
    assert hashes(gl.Store(tmp_path)) == before


def test_a_worker_finds_what_its_predecessor_made(tmp_path: Path) -> None:
    """A worker that dies after it has written: the next one is done, whatever is to be reused."""
    store = gl.Store(tmp_path)
    store.begin("0" * 16)
    job = Job(store.location, "0" * 16, "none", sweep_bodies.drawn, name_of(sweep_bodies.drawn))
    assert perform(job, CONFIGS[0], store).status == DONE
    before = (tmp_path / f"{CONFIGS[0].key}.nc").stat().st_ino
    assert perform(job, CONFIGS[0]).status == DONE
    assert (tmp_path / f"{CONFIGS[0].key}.nc").stat().st_ino == before
    assert perform(dataclasses.replace(job, token="1" * 16, reuse="any"), CONFIGS[0], store).status == KEPT


def test_this_process_keeps_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    gl.sweep(CONFIGS[:1], tmp_path, run=sweep_bodies.drawn, progress=False)
    assert "TF_NUM_INTRAOP_THREADS" not in os.environ


def test_what_a_file_cannot_hold_is_a_failure_of_its_run(tmp_path: Path) -> None:
    def odd(experiment: gl.Experiment) -> xr.Dataset:
        return sweep_bodies.drawn(experiment).assign_attrs(odd={"x": object()} if experiment.seed == 2 else 1)

    done = gl.sweep(CONFIGS, tmp_path, run=odd, progress=False)
    assert done.done == 5
    assert "attribute odd of ds must hold" in done.failed[CONFIGS[2]]


@pytest.mark.parametrize("location", ["{folder}", "memory://{folder}"])
def test_two_sweeps_on_one_store(location: str, tmp_path: Path) -> None:
    """At once, in opposite orders: nothing is lost, and hardly anything is run twice."""
    store, configs = gl.Store(location.format(folder=tmp_path)), sweep_bodies.configs(12)
    ends: list[object] = []

    def work(order: list[gl.Experiment]) -> None:
        ends.append(gl.sweep(order, store, run=sweep_bodies.slowly, progress=False))

    threads = [threading.Thread(target=work, args=(order,)) for order in (configs, configs[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 2
    assert all(end.done + end.kept == 12 and not end.failed for end in ends)
    assert 12 <= sum(end.done for end in ends) <= 14  # where they meet, both may be at the same one
    assert hashes(store) == {one.key: content_hash(sweep_bodies.drawn(one)) for one in configs}
    assert [name for name in store.folder.names() if name.startswith(".")] == []


def test_the_real_thing(tmp_path: Path) -> None:
    """gl.run through a store and back, bit for bit."""
    experiment = gl.Experiment("gru", data="noise", units=3, epochs=0, probes=2, length=10)
    gl.sweep([experiment], tmp_path, progress=False)
    stored, again = gl.Store(tmp_path).load(experiment), gl.run(experiment)
    xr.testing.assert_equal(stored, again)
    assert stored.attrs["content_hash"] == again.attrs["content_hash"] == content_hash(again)
    assert stored.attrs["wall_seconds"] > 0
    ds = gl.open_store(tmp_path).isel(run=0)
    for name in again.data_vars:
        assert ds[name].dims == again[name].dims
        assert ds[name].values.tobytes() == again[name].values.tobytes()
    assert stored.attrs["thread_pools"] == again.attrs["thread_pools"]
    assert again.attrs["thread_pools"]["blas"] == 1

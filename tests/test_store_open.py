"""A store opened as one dataset: every run and parameter, nothing read before it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sweep_bodies
import xarray as xr

import gradlab as gl
from gradlab import store as module
from gradlab.stamps import stamped


def shaped(experiment: gl.Experiment) -> xr.Dataset:
    """What runs of different cells and lengths give: more modes, other labels, variables that others lack."""
    n, T = experiment.units, experiment.length or 3
    draw = np.random.default_rng(experiment.seed).standard_normal
    ds = xr.Dataset(
        {
            "rate": ("batch", draw(2), {"units": "nats/step"}),
            "fan": (("time", "mode"), draw((T + 1, n))),
            "count": 7,
        },
        {"time": np.arange(T + 1), "mode": np.arange(1, n + 1), "lag": (("batch", "time"), np.ones((2, T + 1)))},
    )
    if experiment.cell == "lstm":
        ds["share"] = (("path", "time"), draw((2, T + 1)))
        ds["path"] = ["forget", "input"]
    if experiment.cell == "gru":
        ds["share"] = (("path", "time"), draw((2, T + 1)))
        ds["path"] = ["update", "input"]
    return ds


CONFIGS = [
    gl.Experiment(cell, seed=seed, data="noise", epochs=0, units=units, length=length)
    for seed, (cell, units, length) in enumerate([("tanh", 3, None), ("lstm", 2, 5), ("gru", 4, 4), ("tanh", 5, 4)])
]


@pytest.fixture(params=["{folder}", "memory://{folder}"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> gl.Store:
    store = gl.Store(request.param.format(folder=tmp_path))
    gl.sweep(CONFIGS, store, run=shaped, progress=False)
    return store


def of(ds: xr.Dataset, experiment: gl.Experiment) -> xr.Dataset:
    return ds.isel(run=int(np.flatnonzero(ds["key"].values == experiment.key)[0]))


def test_every_value_is_where_its_run_has_it(store: gl.Store) -> None:
    ds = gl.open_store(store)
    assert dict(ds.sizes) == {"run": 4, "batch": 2, "time": 6, "mode": 5, "path": 3}
    assert ds["count"].dtype.kind == "i"  # all have it, so that nothing had to be filled
    assert ds["rate"].attrs["units"] == "nats/step"
    for experiment in CONFIGS:
        one, run = shaped(experiment), of(ds, experiment)
        for name in one.data_vars:
            own = run[name].sel({dim: one[dim] for dim in one[name].dims if dim in one.coords})
            np.testing.assert_array_equal(own.values, one[name].values)
            assert int(run[name].notnull().sum()) == one[name].size  # and NaN everywhere else
    assert np.isnan(of(ds, CONFIGS[0])["share"]).all()


def test_every_parameter_is_a_coordinate(store: gl.Store) -> None:
    ds = gl.open_store(store)
    for name in ("cell", "units", "seed", "length"):
        assert ds[name].dims == ("run",)
    assert ds["gain"].ndim == 0
    assert {**CONFIGS[0].as_dict()}.keys() <= set(ds.coords)
    assert np.isnan(of(ds, CONFIGS[0])["length"])
    assert ds["lag"].dims == ("run", "batch", "time")
    square = ds[["rate"]].set_index(run=["cell", "units"]).unstack()["rate"]
    np.testing.assert_array_equal(square.sel(cell="gru", units=4), shaped(CONFIGS[2])["rate"])
    assert len(set(ds["content_hash"].values)) == 4


def test_nothing_is_read_before_it_is_asked_for(store: gl.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    whole = module.Store.opened
    monkeypatch.setattr(module.Store, "opened", lambda self, key: (opened.append(key), whole(self, key))[1])
    ds = gl.open_store(store)
    assert sorted(opened) == store.finished()  # once each, for what it holds
    opened.clear()
    part = ds["fan"].isel(run=[2, 0], mode=slice(1, 3))
    assert opened == []
    expected = gl.open_store(store).load()["fan"].isel(run=[2, 0], mode=slice(1, 3))
    opened.clear()
    np.testing.assert_array_equal(part.values, expected.values)
    assert len(opened) == 2
    assert ds["fan"].isel(run=1, time=-1, mode=[0, 1]).values.shape == (2,)
    assert ds["fan"].isel(run=slice(0, 0)).values.shape == (0, 6, 5)


def test_why_a_stage_is_missing_is_said(tmp_path: Path) -> None:
    def staged(experiment: gl.Experiment) -> xr.Dataset:
        names = ["initial", "trained"][: 1 + experiment.seed]
        ds = xr.Dataset({"rate": ("stage", np.zeros(len(names)))}, {"stage": names})
        return ds.assign_attrs({f"status_{name}": ["ok", "it exploded"][names.index(name)] for name in names})

    gl.sweep(sweep_bodies.configs(2), tmp_path, run=staged, progress=False)
    status = gl.open_store(tmp_path)["status"]
    assert status.dims == ("run", "stage")
    assert status.values.tolist() == [["ok", ""], ["ok", "it exploded"]]


def test_a_field_that_came_later_has_its_default(tmp_path: Path) -> None:
    store = gl.Store(tmp_path)
    store.folder.make()
    for number, one in enumerate(sweep_bodies.configs(2)):
        fields = one.as_dict()
        if not number:
            del fields["momentum"], fields["measured"], fields["initializer"]
        store.write(one, stamped(sweep_bodies.drawn(one), one, 0.1).assign_attrs(experiment=json.dumps(fields)))
    ds = gl.open_store(store)
    assert [ds[name].item() for name in ("momentum", "measured", "initializer")] == [
        0.0,
        "analysis, held_out",
        "gaussian",
    ]


def test_what_failed_is_said(tmp_path: Path) -> None:
    gl.sweep(sweep_bodies.configs(5), tmp_path, run=sweep_bodies.failing, progress=False)
    with pytest.warns(
        UserWarning, match=r"2 runs of .* are failed, the first: tanh-noise-.*; see ds.attrs\['failed'\]"
    ):
        ds = gl.open_store(tmp_path)
    assert ds.sizes["run"] == 3
    assert {one["experiment"]["seed"] for one in ds.attrs["failed"]} == {1, 4}
    assert {one["error"] for one in ds.attrs["failed"]} == {f"ArithmeticError: no result for seed {s}" for s in (1, 4)}
    gl.save(ds, tmp_path / "all.netcdf")  # a dataset like any other
    gl.sweep(sweep_bodies.configs(2)[1:], tmp_path / "new", run=sweep_bodies.failing, progress=False)
    with pytest.warns(UserWarning, match="1 runs"):
        ds = gl.open_store(tmp_path / "new")
    assert dict(ds.sizes) == {}

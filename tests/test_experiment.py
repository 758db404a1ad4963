"""Described runs: checked, reproducible, and honest when a network explodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab import experiment as module


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cell": "rnn"}, ValueError, r"cell must be one of \['tanh', 'relu', 'lstm', 'gru'\], got 'rnn'"),
        ({"data": "mnist"}, ValueError, "data must be one of"),
        ({"units": 0}, ValueError, "units must be at least 1"),
        ({"held_out": 0}, ValueError, "held_out must be at least 1"),
        ({"units": 3.5}, TypeError, "units must be a positive integer"),
        ({"gain": -1.0}, ValueError, "gain must be a positive finite number"),
        ({"gain": float("nan")}, ValueError, "gain must be a positive finite number"),
        ({"epochs": -1}, ValueError, "epochs must not be negative"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"data": "noise"}, ValueError, "nothing to learn"),
    ],
)
def test_impossible_descriptions(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gl.Experiment(**({"cell": "tanh"} | changes))


def test_key_is_the_content() -> None:
    assert gl.Experiment("tanh").key == gl.Experiment("tanh", gain=1.0).key
    assert len({gl.Experiment("tanh", seed=seed, gain=g).key for seed in (0, 1) for g in (1.0, 1.1)}) == 4


@pytest.mark.parametrize(("cell", "data"), [("tanh", "vowels"), ("lstm", "vowels"), ("relu", "adding")])
def test_before_and_after_training(cell: str, data: str) -> None:
    experiment = gl.Experiment(cell, data=data, units=6, epochs=2, probes=3)
    ds, again = gl.run(experiment), gl.run(experiment)
    xr.testing.assert_equal(ds, again)  # bit for bit
    assert list(ds["stage"].values) == ["initial", "trained"]
    assert ds.attrs["status_initial"] == ds.attrs["status_trained"] == "ok"
    assert json.loads(ds.attrs["experiment"])["units"] == 6
    assert ds["training_loss"].values[-1] < ds["training_loss"].values[0]
    change = np.abs(ds["log_singular_values"].sel(stage="trained") - ds["log_singular_values"].sel(stage="initial"))
    assert float(change.where(np.isfinite(change)).max()) > 1e-3
    if data == "vowels":
        assert len(set(ds["lag"].values[:, 0])) > 1  # masked: lengths differ


def test_what_ran_before_changes_nothing() -> None:
    experiment = gl.Experiment("gru", data="vowels", units=5, epochs=1, probes=2)
    first = gl.run(experiment)
    gl.run(gl.Experiment("gru", gain=2.0, seed=3, data="vowels", units=5, epochs=1, probes=2))  # the same model object
    xr.testing.assert_equal(gl.run(experiment), first)
    module._compiled.cache_clear()
    xr.testing.assert_equal(gl.run(experiment), first)


def test_the_loss_is_the_one_that_is_trained() -> None:
    experiment = gl.Experiment("tanh", data="vowels", units=4, epochs=1, probes=370)
    task = module.load_task(experiment)
    network = module._network(experiment, task)
    loss = module._probe_loss(network.readout, experiment, task, task.test_targets)
    states = gl.rollout(network.layer, task.test_inputs, mask=task.test_mask).states
    ours = float(np.mean(loss(states)))
    features = [task.test_inputs.astype("f4"), task.test_mask]
    keras_loss = network.model.evaluate(features, task.test_targets, verbose=0)[0]
    # Keras computes in float32: up to 29 steps of sums over 4 + 12 products, then a mean of values of order 2
    assert abs(ours - keras_loss) < 29 * 16 * np.finfo(np.float32).eps * 2


@pytest.mark.parametrize("data", ["vowels", "adding"])
def test_held_out_sequences_are_the_next_ones(data: str) -> None:
    """What is held out of one run and analysed in another, with the same network, has the same exponents."""
    small = {"data": data, "units": 5, "epochs": 1}
    ds = gl.run(gl.Experiment("tanh", **small, probes=2, held_out=3))
    assert ds["held_out_lyapunov_exponent"].dims == ("stage", "held_out", "mode")
    wide = gl.run(gl.Experiment("tanh", **small, probes=5, held_out=1))
    for kind in ("exponent", "standard_error"):
        # in another batch a state is rounded differently, and the steps between two QRs may be others: 1e-8 at most
        np.testing.assert_allclose(ds[f"held_out_lyapunov_{kind}"], wide[f"lyapunov_{kind}"][:, 2:], atol=1e-8)
    assert not np.isin(ds["held_out_lyapunov_exponent"], ds["lyapunov_exponent"]).any()


def test_there_must_be_sequences_to_hold_out() -> None:
    with pytest.raises(ValueError, match="at most the 370 test sequences of vowels together, got 370 and 1"):
        gl.run(gl.Experiment("tanh", data="vowels", units=3, epochs=0, probes=370, held_out=1))
    ds = gl.run(gl.Experiment("tanh", data="noise", units=3, epochs=0, probes=14, held_out=5))
    assert (ds.sizes["batch"], ds.sizes["held_out"]) == (14, 5)


def test_a_network_that_explodes_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    analyze = module.analyze

    def explode_when_trained(*args: object, **kwargs: object) -> xr.Dataset:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("the trajectory left the finite numbers at batch 0, step 3")
        return analyze(*args, **kwargs)

    monkeypatch.setattr(module, "analyze", explode_when_trained)
    ds = gl.run(gl.Experiment("relu", data="vowels", units=3, epochs=1, probes=2))
    assert "step 3" in ds.attrs["status_trained"]
    assert np.isnan(ds["decay_rate"].sel(stage="trained")).all()
    assert np.isfinite(ds["lag"]).all()


def test_nothing_to_analyse_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> xr.Dataset:
        raise ValueError("no numbers")

    monkeypatch.setattr(module, "analyze", fail)
    with pytest.raises(ValueError, match="could not be analysed at any stage"):
        gl.run(gl.Experiment("tanh", data="noise", units=3, epochs=0, probes=2))

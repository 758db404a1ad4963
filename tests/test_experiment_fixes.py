"""Described runs on every task, with penalties, other updates, credit and tracking; and what they cost."""

from __future__ import annotations

import inspect

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab import fixes, networks, tasks, training
from gradlab.experiment import DATA
from gradlab.tracking_dataset import tracked

SMALL = {"units": 3, "epochs": 1, "samples": 60, "probes": 3, "held_out": 2, "batch_size": 20}


def test_every_task_can_be_described() -> None:
    functions = {name for name in tasks.__all__ if inspect.isfunction(getattr(tasks, name)) and name != "stream"}
    assert set(DATA) == functions | {"digits_rows"}
    steps = {"digits": 64, "digits_rows": 8, "vowels": 29, "gunpoint": 150, "copy": 32, "memorization": 32}
    for data, length in DATA.items():
        given = {"probes": 3, "held_out": 3} | ({} if length is None else {"length": 12, "samples": 30})
        task = training.load_task(gl.Experiment("tanh", data=data, seed=3, epochs=0, **given))
        assert task.inputs.shape[1] == steps.get(data, 12)
        if length:
            assert len(task.inputs) == 30
            again = training.load_task(gl.Experiment("tanh", data=data, seed=4, epochs=0, **given))
            assert not np.array_equal(task.inputs, again.inputs)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"length": 9, "data": "temporal_order"}, ValueError, 'length of "temporal_order" must be at least 10, got 9'),
        ({"length": 2, "data": "latching"}, ValueError, 'length of "latching" must be at least 3, got 2'),
        ({"length": 50, "data": "gunpoint"}, ValueError, 'got length=50 and "gunpoint"'),
        ({"measured": ["tracking"], "epochs": 0}, ValueError, "which looks at a training, and epochs=0; leave it out"),
        ({"leak": 1.5}, ValueError, r"leak must be a number in \(0, 1\], got 1.5"),
        ({"residual": 0}, ValueError, "residual must be a positive finite number, got 0"),
        ({"leak": 0.5, "residual": 0.5}, ValueError, "leak=0.5 and residual=0.5 are two updates of one state"),
        ({"leak": 0.5, "cell": "gru"}, ValueError, r"leak goes with cell in \['tanh', .*, got it with .gru"),
        ({"residual": 0.5, "cell": "lstm"}, ValueError, r"residual goes with cell in \['tanh', .* with .lstm"),
        ({"omega": "2"}, ValueError, "omega must be a positive finite number, got '2'"),
        ({"omega": 2.0, "epochs": 0}, ValueError, "omega is a term of the training loss, got it with epochs=0"),
        ({"flossing": -1.0}, ValueError, "flossing must be a positive finite number"),
        ({"flossing_exponents": 2}, ValueError, "flossing_exponents goes with flossing, got 2 without it"),
        ({"flossing_exponents": 0}, ValueError, "flossing_exponents must be at least 1, got 0"),
        ({"flossing": 1.0, "flossing_exponents": 33}, ValueError, "at most 32, the state, got 33"),
    ],
)
def test_impossible_descriptions(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gl.Experiment(**({"cell": "tanh"} | changes))


def features(task: tasks.Task) -> object:
    x = task.test_inputs.astype("f4")
    return x if task.test_mask is None else [x, task.test_mask]


@pytest.mark.parametrize("data", ["memorization", "addition", "latching"])
def test_the_loss_and_the_success_are_those_of_the_task(data: str) -> None:
    """Labels at every step, values with a mask, one label: trained, then seen from outside."""
    experiment = gl.Experiment("gru", data=data, length=20, **SMALL, measured=["decay"], measured_at=[1])
    ds = gl.run(experiment)
    task = training.load_task(experiment)
    made = networks.network(experiment, task)
    made.model.fit(features_of_training(task), task.targets, verbose=0, epochs=3, batch_size=20)
    outputs = made.model.predict(features(task), verbose=0)
    evaluated = made.model.evaluate(features(task), task.test_targets, verbose=0, return_dict=True)
    rate = evaluated.get("success", evaluated.get("accuracy"))
    assert rate == pytest.approx(task.success_rate(outputs), abs=1e-6)
    assert ds["test_success"].dims == ("epoch",)
    assert 0.0 <= float(ds["test_success"][-1]) <= 1.0
    loss = training.loss_of_states(made.readout, experiment, task, task.test_targets)
    ours = loss(gl.rollout(made.layer, task.test_inputs, mask=task.test_mask).states).numpy()
    assert ours.shape == (len(task.test_inputs),)
    # Keras computes in float32: 40 steps of sums over 3 + 7 products, then a mean of values of order 2
    assert abs(ours.mean() - evaluated["loss"]) < 40 * 10 * np.finfo(np.float32).eps * 2
    assert ds.attrs["success"] == task.success == 0.99


def features_of_training(task: tasks.Task) -> object:
    x = task.inputs.astype("f4")
    return x if task.mask is None else [x, task.mask]


def test_a_loss_at_every_step_reaches_every_step() -> None:
    ds = gl.run(gl.Experiment("tanh", data="copy", length=5, **SMALL | {"epochs": 0}, measured=["decay"]))
    direct = ds["log_direct_gradient_norm"].isel(stage=0)
    assert np.isneginf(direct.isel(time=0)).all()  # no answer is read from h_0
    assert np.isfinite(direct.isel(time=slice(1, None))).all()


def test_penalties_are_trained_with() -> None:
    small = SMALL | {"data": "latching", "length": 12, "epochs": 2}
    plain = gl.run(gl.Experiment("tanh", **small, measured=[]))
    for fix, kind in (
        ({"omega": 2.0}, [fixes.NormPreservation]),
        ({"flossing": 0.5, "flossing_exponents": 2, "omega": 1.0}, [fixes.NormPreservation, fixes.Flossing]),
    ):
        experiment = gl.Experiment("tanh", **small, **fix, measured=[])
        ds = gl.run(experiment)
        assert (ds["training_loss"] > plain["training_loss"]).all()  # the penalties are not negative, and counted
        assert not np.array_equal(ds["test_loss"], plain["test_loss"])
        xr.testing.assert_equal(gl.run(experiment), ds)
        made = networks.network(experiment, training.load_task(experiment))
        assert isinstance(made.model, fixes.RegularizedModel)
        assert [type(one) for one in made.model._penalties] == kind
        assert made.model._penalties[0].weight == experiment.omega
        assert (made.model._penalties[-1].get_config().get("k", 2), made.model._penalties[-1].weight) == (
            2,
            experiment.flossing or experiment.omega,
        )
    again = gl.run(gl.Experiment("tanh", **small, measured=[]))  # its own model, not the one with penalties
    xr.testing.assert_equal(again, plain)


@pytest.mark.parametrize("update", [{"leak": 0.3}, {"residual": 0.2}])
def test_updates_are_trained_and_analysed(update: dict) -> None:
    experiment = gl.Experiment("tanh", data="latching", length=12, **SMALL, **update)
    ds = gl.run(experiment)
    cell = networks.network(experiment, training.load_task(experiment)).layer.cell
    assert {name: getattr(cell, name) for name in update} == update
    assert "bound_promise" not in ds
    assert (ds["log_singular_values"].isel(mode=0) <= ds["bound_step_norms"] + 1e-9).all()
    plain = networks.network(gl.Experiment("tanh", data="latching", length=12, **SMALL), training.load_task(experiment))
    for one, other in zip(cell.get_weights(), plain.layer.cell.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)  # the same draws: only the update differs


def test_tracking_is_the_tracker_and_changes_nothing() -> None:
    small = SMALL | {"data": "addition", "length": 20, "epochs": 4}
    plain = gl.run(gl.Experiment("tanh", **small))
    experiment = gl.Experiment("tanh", **small, measured=["analysis", "held_out", "tracking"])
    ds = gl.run(experiment)
    own = [name for name in ds.data_vars if str(name).startswith("tracking_")]
    xr.testing.assert_equal(ds.drop_vars([name for name in ds.variables if str(name).startswith("tracking_")]), plain)
    assert {"tracking_decay_rate", "tracking_saturation", "tracking_log_gradient_norm"} <= set(own)
    seen = tracked(ds)
    np.testing.assert_array_equal(seen["epoch"], [0, 1, 2, 4])  # logarithmic
    assert seen["layer"].values.tolist() == ["recurrent"]
    assert "recurrent/tanh_cell/recurrent_kernel" in seen["weight"].values

    # as the callback itself sees it in a `fit` of the same network
    task = training.load_task(experiment)
    model = networks.network(experiment, task).model
    probe = [task.test_inputs[:3].astype("f4"), task.test_mask[:3]]
    tracker = gl.GradientTracker(probe, task.test_targets[:3])
    keras.utils.set_random_seed(experiment.seed)
    model.fit(features_of_training(task), task.targets, batch_size=20, epochs=4, verbose=0, callbacks=[tracker])
    looks = tracker.dataset().drop_vars("tracking_seconds")
    xr.testing.assert_equal(seen, looks)
    assert seen["decay_rate"].attrs == looks["decay_rate"].attrs
    assert gl.run(experiment).attrs["content_hash"] == ds.attrs["content_hash"]  # no clock in the numbers
    assert ds.attrs["tracking_seconds"] > 0


def test_tracking_looks_when_it_is_told_to() -> None:
    small = SMALL | {"data": "latching", "length": 8, "epochs": 3}
    for at, looks in (([0, 3], [0, 3]), ([2], [0, 2, 3])):
        experiment = gl.Experiment("tanh", **small, measured=["tracking"], measured_at=at)
        ds = gl.run(experiment)
        assert experiment.stages == {}
        assert "stage" not in ds.dims
        np.testing.assert_array_equal(ds["tracking_epoch"], looks)
    with pytest.raises(ValueError, match=r'nothing was tracked in this run; describe it with "tracking" in measured'):
        tracked(gl.run(gl.Experiment("tanh", **small, measured=[])))


def test_a_training_that_diverges_is_tracked_to_the_end() -> None:
    small = SMALL | {"data": "adding", "length": 40, "epochs": 2, "clip_norm": None}
    ds = gl.run(gl.Experiment("relu", gain=60.0, **small, measured=["tracking", "decay"]))
    assert np.isnan(ds["training_loss"]).any() or np.isinf(ds["training_loss"]).any()
    assert ds.attrs["tracking_diverged_reason"]
    assert any("left the finite numbers" in one for one in ds.attrs["warnings"])
    assert tracked(ds)["decay_rate"].sizes["layer"] == 1


def test_credit_is_that_of_the_probes() -> None:
    experiment = gl.Experiment("lstm", data="latching", length=9, **SMALL | {"epochs": 0}, measured=["credit"])
    ds = gl.run(experiment).isel(stage=0)
    task = training.load_task(experiment)
    made = networks.network(experiment, task)
    loss = training.loss_of_states(made.readout, experiment, task, task.test_targets[:3])
    expected = gl.credit_by_lag(made.layer, task.test_inputs[:3], loss)
    np.testing.assert_array_equal(ds["credit_cumulative"], expected["credit_cumulative"])
    np.testing.assert_array_equal(ds["credit_horizon"], expected["credit_horizon"])
    assert ds["credit_lag"].attrs["units"] == "steps"
    # beside the lags of sequences, and where there is nothing to learn
    ds = gl.run(gl.Experiment("tanh", data="noise", units=3, epochs=0, length=9, measured=["analysis", "credit"]))
    assert ds["lag"].dims == ("batch", "time")
    assert (abs(ds["credit_share"].sum("credit_lag") - 1) < 1e-9).all()


def test_costs_are_on_record() -> None:
    experiment = gl.Experiment("lstm", data="latching", length=8, **SMALL | {"epochs": 3}, measured=[])
    ds = gl.run(experiment)
    n, d, classes = 3, 1, 2
    assert ds.attrs["trainable_parameters"] == 4 * (n * n + n * d + n) + (n + 1) * classes
    assert len(ds.attrs["epoch_seconds"]) == 3
    assert min(*ds.attrs["epoch_seconds"], *ds.attrs["epoch_processor_seconds"]) > 0
    assert ds.attrs["training_seconds"] == pytest.approx(sum(ds.attrs["epoch_seconds"]), abs=1e-3)
    assert ds.attrs["training_seconds"] < ds.attrs["wall_seconds"]
    still = gl.run(gl.Experiment("lstm", data="noise", units=3, epochs=0, length=8, measured=["decay"]))
    assert still.attrs["training_seconds"] == 0


def test_fixes_side_by_side_in_a_store() -> None:
    small = SMALL | {"data": "latching", "length": 8, "measured": ["decay", "credit", "tracking"]}
    configs = [gl.Experiment("tanh", **small, **fix) for fix in ({}, {"leak": 0.5}, {"omega": 1.0})]
    swept = gl.sweep(configs, "memory://fixes-side-by-side", progress=False)
    assert not swept.failed
    ds = gl.open_store("memory://fixes-side-by-side")
    assert ds["credit_horizon"].dims == ("run", "stage")
    assert ds["tracking_decay_rate"].dims == ("run", "tracking_epoch")
    assert (ds["training_seconds"] > 0).all()
    assert (ds["trainable_parameters"] == 3 * 3 + 3 + 3 + 8).all()
    assert sorted(float(one) for one in ds["leak"].values if one is not None and np.isfinite(one)) == [0.5]
    assert tracked(ds.isel(run=0).load()).sizes["layer"] == 1


def test_everything_measured_can_be_drawn() -> None:
    """With every entry of `measured` in one dataset, each figure draws one stage, and says so where there are more."""
    described = {"data": "temporal_order", "length": 12, "batch_size": 20, "samples": 60, "units": 4, "epochs": 1}
    measured = ["analysis", "held_out", "credit", "slopes", "tracking"]
    ds = gl.run(gl.Experiment("tanh", **described, probes=3, held_out=2, measured=measured))
    for name in ("test_loss", "training_loss", "test_success", "training_accuracy", "test_accuracy", "epoch"):
        assert {"long_name", "units"} <= ds[name].attrs.keys(), name
    one = ds.sel(stage="trained")
    for figure in ("decay", "fan", "eigenvalues", "budget", "credit", "truncation"):
        getattr(gl.plot, figure)(one)
        with pytest.raises(ValueError, match=f"{figure} draws one network, .* ds.sel.stage='trained'"):
            getattr(gl.plot, figure)(ds)
    for figure in ("gradient_flow", "gradient_curves", "rates", "spectrum_over_training"):
        getattr(gl.plot, figure)(tracked(ds))
    with pytest.raises(ValueError, match=r"draws log_gradient_norm of every look, .* gl.tracked\(ds\)"):
        gl.plot.gradient_flow(ds)
    with pytest.raises(ValueError, match=r"got the dims \['run'\] as well; choose one: ds.isel\(run=0\)"):
        tracked(xr.concat([ds, ds], "run"))
    plt.close("all")


def test_a_description_prints_as_it_is_made() -> None:
    experiment = gl.Experiment("lstm", gain=1.2, measured=["decay"])
    assert repr(experiment) == "Experiment(cell='lstm', gain=1.2, measured=('decay',))"
    assert eval(repr(experiment), {"Experiment": gl.Experiment}) == experiment
    assert len(repr(tasks.adding(20, 50))) < 100
    with pytest.raises(TypeError, match="configs must be a list of descriptions, got one"):
        gl.sweep(experiment, "memory://one")
    with pytest.raises(TypeError, match="a description must be an Experiment"):
        gl.run("tanh")

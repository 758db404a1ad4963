"""Described runs: checked, reproducible, and honest when a network explodes."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings

import keras
import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab import networks, training
from gradlab import runs as module
from gradlab.tracking_dataset import tracked
from gradlab.trajectory import LeftFiniteNumbers


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cell": "rnn"}, ValueError, r"cell must be one of \['tanh', 'relu', 'linear', 'lstm', 'gru'\], got 'rnn'"),
        ({"data": "mnist"}, ValueError, "data must be one of"),
        ({"units": 0}, ValueError, "units must be at least 1"),
        ({"held_out": 0}, ValueError, "held_out must be at least 1"),
        ({"units": 3.5}, TypeError, "units must be a positive integer"),
        ({"gain": -1.0}, ValueError, "gain must be a positive finite number"),
        ({"gain": float("nan")}, ValueError, "gain must be a positive finite number"),
        ({"epochs": -1}, ValueError, "epochs must not be negative"),
        ({"seed": 2**32}, ValueError, r"seed must be below 2\*\*32, got 4294967296"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"data": "noise"}, ValueError, "nothing to learn"),
        (
            {"initializer": "xavier"},
            ValueError,
            r"initializer must be one of \['gaussian', 'orthogonal', 'glorot', 'ide",
        ),
        ({"optimizer": "adamw"}, ValueError, r"optimizer must be one of \['adam', 'sgd', 'rmsprop'\], got 'adamw'"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be a positive finite number"),
        ({"clip_norm": "1"}, ValueError, "clip_norm must be a positive finite number, got '1'"),
        (
            {"clip_value": 1},
            ValueError,
            r"at most one of .* must be given, got clip_norm=1.0 and clip_value=1.0; set the",
        ),
        ({"momentum": 0.9}, ValueError, 'momentum goes with optimizer "sgd", got momentum=0.9 and "adam"'),
        ({"momentum": 1.0, "optimizer": "sgd"}, ValueError, r"momentum must be a number in \[0, 1\)"),
        ({"forget_bias": 1.0}, ValueError, 'forget_bias goes with cell "lstm" or "gru", got it with "tanh"'),
        ({"forget_bias": "large", "cell": "gru"}, ValueError, "a finite number, \"chrono\" or None, got 'large'"),
        ({"length": 50}, ValueError, r"length goes with data in \['adding', .*'noise'\], got length=50 and \"digits\""),
        ({"samples": 50}, ValueError, "samples goes with data in"),
        ({"length": 1, "data": "adding"}, ValueError, 'length of "adding" must be at least 2, got 1'),
        ({"measured": "analysis"}, TypeError, "measured must be a list, got 'analysis'; put brackets around it"),
        ({"measured": None}, TypeError, "measured must be a list, got None; put brackets around it"),
        (
            {"cell": "gru", "forget_bias": "chrono", "data": "adding", "length": 2},
            ValueError,
            "length of at least 3, got length=2",
        ),
        ({"measured": ["spectrum"]}, ValueError, r"measured must be one of \['analysis', 'decay', 'held_out', "),
        ({"measured": ["analysis", "decay"]}, ValueError, "the first contains the second"),
        ({"measured": [], "epochs": 0}, ValueError, "learning curves alone"),
        ({"measured_at": [0, 13]}, ValueError, r"increasing epochs from 0 to epochs=12, got \[0, 13\]"),
        ({"measured_at": [3, 0]}, ValueError, "increasing epochs"),
        ({"measured_at": [0.5]}, TypeError, "measured_at must be an integer, got 0.5"),
    ],
)
def test_impossible_descriptions(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gl.Experiment(**({"cell": "tanh"} | changes))


def test_key_is_the_content() -> None:
    assert gl.Experiment("tanh").key == gl.Experiment("tanh", gain=1.0).key
    assert len({gl.Experiment("tanh", seed=seed, gain=g).key for seed in (0, 1) for g in (1.0, 1.1)}) == 4


def test_what_is_equal_has_one_name() -> None:
    same = [
        gl.Experiment("lstm", gain=1, clip_norm=1, measured=["held_out", "analysis"], measured_at=[0, 12]),
        gl.Experiment("lstm", gain=np.float32(1.0), units=np.int64(32), measured_at=(0, 12)),
        gl.Experiment.from_dict(json.loads(json.dumps(gl.Experiment("lstm").as_dict()))),
        pickle.loads(pickle.dumps(gl.Experiment("lstm"))),
    ]
    assert set(same) == {gl.Experiment("lstm")}
    assert {one.hash for one in same} == {gl.Experiment("lstm").hash}


def test_names_stay() -> None:
    """Results keep the names that they have in stores: a new field must not change these, nor a new default."""
    added = {"leak", "residual", "omega", "flossing", "flossing_exponents"}  # since the first of these had its name
    assert gl.Experiment("tanh").key == "tanh-digits-56c406716ddc4523"
    job = gl.Experiment("lstm", gain=1.5, seed=258610932, units=16, epochs=1, batch_size=128, probes=4, held_out=4)
    assert job.key == "lstm-digits-c576ac19920f2bd0"
    every = {"gain": 2.0, "seed": 1, "data": "adding", "units": 3, "epochs": 4, "batch_size": 5, "learning_rate": 0.1}
    every |= {"clip_norm": None, "probes": 6, "held_out": 7, "initializer": "glorot", "forget_bias": "chrono"}
    every |= {"length": 8, "samples": 30, "optimizer": "sgd", "momentum": 0.5, "global_clip_norm": 0.25}
    every |= {"measured": ["decay"], "measured_at": [1, 2], "clip_value": None}
    assert every.keys() | {"cell"} | added == {field.name for field in dataclasses.fields(gl.Experiment)}
    assert gl.Experiment("gru", **every).key == "gru-adding-04e477c678f93188"
    every |= {"forget_bias": None, "omega": 2.0, "flossing": 0.5, "flossing_exponents": 3}
    keys = [gl.Experiment("tanh", **every, **{name: 0.5}).key for name in ("leak", "residual")]
    assert keys == ["tanh-adding-460fe772850000e0", "tanh-adding-3b6110543a71530a"]


def started(experiment: gl.Experiment) -> list[np.ndarray]:
    """Return U, W and b at the start."""
    return networks.network(experiment, training.load_task(experiment)).layer.cell.get_weights()


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("initializer", ["gaussian", "orthogonal", "glorot", "identity"])
def test_every_gate_starts_from_the_matrix_that_is_asked_for(cell: str, initializer: str) -> None:
    n, g = 24, 1.5
    kernel = started(gl.Experiment(cell, g, 1, "noise", n, epochs=0, initializer=initializer))[1]
    blocks = np.split(kernel, kernel.shape[1] // n, axis=1)
    for block in blocks:
        if initializer == "orthogonal":
            np.testing.assert_allclose(block @ block.T, g**2 * np.eye(n), atol=1e-5)  # float32, sums of n products
        elif initializer == "identity":
            np.testing.assert_array_equal(block, np.float32(g) * np.eye(n))
        else:
            # the variance of N draws has a standard error of √((κ − 1)/N) of itself, κ = 3 (normal) or 9/5 (uniform)
            kurtosis = 3.0 if initializer == "gaussian" else 1.8
            assert abs(block.var() * n / g**2 - 1) < 4 * np.sqrt((kurtosis - 1) / n**2)
            assert (np.abs(block).max() <= g * np.sqrt(3 / n) * (1 + 1e-6)) == (initializer == "glorot")
    if initializer != "identity":
        assert len({block.tobytes() for block in blocks}) == len(blocks)


def test_the_forget_bias_is_the_forget_gate_s() -> None:
    """Seen from what the cell does, not from where Keras keeps it: with f = 1 the state stays, with f = 0 it goes."""
    n, rng = 6, np.random.default_rng(0)
    for cell, large in (("lstm", 30.0), ("gru", 30.0)):
        for sign in (1, -1):
            experiment = gl.Experiment(cell, 0.1, data="noise", units=n, epochs=0, forget_bias=sign * large)
            made = networks.network(experiment, training.load_task(experiment)).layer.cell
            state = rng.uniform(-0.5, 0.5, (3, n)).astype("f4")
            x = keras.ops.convert_to_tensor(rng.standard_normal((3, 4)).astype("f4"))
            states = [state, state] if cell == "lstm" else [state]
            kept = np.asarray(made(x, [keras.ops.convert_to_tensor(s) for s in states])[1][-1])
            if cell == "gru":
                assert (np.abs(kept - state).max() < 1e-6) == (sign > 0)
            else:  # c = f c + i·g, |i·g| < 1: the difference between f = 1 and f = 0 is c itself
                weights = made.get_weights()
                weights[-1][n : 2 * n] *= -1
                made.set_weights(weights)
                other = np.asarray(made(x, [keras.ops.convert_to_tensor(s) for s in states])[1][-1])
                np.testing.assert_allclose(sign * (kept - other), state, atol=1e-6)


def test_chrono_biases_span_the_sequence() -> None:
    n, T = 400, 50
    task = {"data": "adding", "length": T, "samples": 10, "epochs": 0, "probes": 1, "held_out": 1, "units": n}
    lstm = started(gl.Experiment("lstm", forget_bias="chrono", **task))[2]
    gru = started(gl.Experiment("gru", forget_bias="chrono", **task))[2]
    assert (lstm[:n] == -lstm[n : 2 * n]).all()
    assert (lstm[2 * n :] == 0).all()
    assert (gru[0, n:] == 0).all()
    assert (gru[1] == 0).all()
    for bias in (lstm[n : 2 * n], gru[0, :n]):
        memory = np.exp(bias)  # U[1, T − 1]: its mean within 4 standard errors
        assert 1 <= memory.min() < 3
        assert T - 3 < memory.max() <= T - 1 + 1e-4
        assert abs(memory.mean() - T / 2) < 4 * (T - 2) / np.sqrt(12 * n)


def test_optimisers_and_clipping_are_keras_s() -> None:
    small = {"data": "vowels", "units": 3, "epochs": 1, "measured": []}
    for description, kind, found in (
        ({}, keras.optimizers.Adam, {"clipnorm": 1.0}),
        ({"optimizer": "sgd", "momentum": 0.9, "clip_norm": None}, keras.optimizers.SGD, {"momentum": 0.9}),
        ({"optimizer": "rmsprop", "clip_norm": None, "clip_value": 0.5}, keras.optimizers.RMSprop, {"clipvalue": 0.5}),
        ({"clip_norm": None, "global_clip_norm": 2.0}, keras.optimizers.Adam, {"global_clipnorm": 2.0}),
    ):
        experiment = gl.Experiment("tanh", learning_rate=0.02, **small, **description)
        optimizer = networks.network(experiment, training.load_task(experiment)).model.optimizer
        assert type(optimizer) is kind
        assert float(optimizer.learning_rate) == np.float32(0.02)
        nothing = {"clipnorm": None, "clipvalue": None, "global_clipnorm": None}
        for name, value in (nothing | found).items():
            assert getattr(optimizer, name) == value
    # another learning rate is no new model
    again = networks.network(gl.Experiment("tanh", learning_rate=0.5, **small), training.load_task(experiment))
    first = networks.network(gl.Experiment("tanh", **small), training.load_task(experiment))
    assert again is first
    assert float(first.model.optimizer.learning_rate) == np.float32(3e-3)


def test_what_is_measured_on_the_way_changes_nothing() -> None:
    small = {"data": "vowels", "units": 4, "epochs": 3, "probes": 2, "held_out": 1}
    plain = gl.run(gl.Experiment("tanh", **small))
    every = gl.run(gl.Experiment("tanh", **small, measured_at=[0, 1, 2, 3]))
    assert list(every["stage"].values) == ["initial", "epoch 1", "epoch 2", "trained"]
    xr.testing.assert_equal(every.sel(stage=["initial", "trained"]), plain)
    assert not np.array_equal(every["decay_rate"][1], every["decay_rate"][2])
    less = gl.run({"cell": "tanh", **small, "measured": ["decay"], "measured_at": [2]})
    assert list(less["stage"].values) == ["epoch 2"]
    assert "log_singular_values" not in less
    for name in less.data_vars:
        np.testing.assert_array_equal(less[name], every.sel(stage=["epoch 2"])[name])
    curves = gl.run(gl.Experiment("tanh", **small, measured=[]))
    names = {"training_loss", "test_loss", "training_accuracy", "test_accuracy", "test_success"}
    assert set(curves.data_vars) == names
    xr.testing.assert_equal(curves["test_loss"], plain["test_loss"])


def test_the_dataset_says_what_made_it() -> None:
    experiment = gl.Experiment("relu", seed=5, data="noise", units=3, epochs=0, probes=2, length=12)
    ds = gl.run(experiment)
    assert ds.sizes["time"] == 13
    assert gl.Experiment.from_dict(json.loads(ds.attrs["experiment"])) == experiment
    assert (ds.attrs["seed"], ds.attrs["experiment_hash"]) == (5, experiment.hash)
    assert {"commit", "dirty", "tensorflow_version", "platform", "processors", "created_utc"} <= ds.attrs.keys()
    assert ds.attrs["thread_pools"].keys() >= {"blas", "tensorflow"}
    assert 0 < ds.attrs["wall_seconds"] < 600


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
    networks._compiled.cache_clear()
    xr.testing.assert_equal(gl.run(experiment), first)


def test_the_loss_is_the_one_that_is_trained() -> None:
    experiment = gl.Experiment("tanh", data="vowels", units=4, epochs=1, probes=370, measured=["decay"])
    task = training.load_task(experiment)
    network = networks.network(experiment, task)
    loss = training.loss_of_states(network.readout, experiment, task, task.test_targets)
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
    """What a run would ask for and not find is said when it is described, before anything is trained."""
    for data, there in (("vowels", 370), ("digits", 360), ("digits_rows", 360), ("gunpoint", 150)):
        assert (
            len(training.load_task(gl.Experiment("tanh", data=data, probes=there - 1, held_out=1)).test_inputs) == there
        )
        with pytest.raises(
            ValueError, match=f'at most the {there} test sequences of "{data}", got {there} and 1; take f'
        ):
            gl.Experiment("tanh", data=data, probes=there, held_out=1)
    small = {"data": "adding", "length": 5, "samples": 24, "units": 3, "epochs": 1}  # 4 test sequences
    assert len(training.load_task(gl.Experiment("tanh", **small, probes=3, held_out=1)).test_inputs) == 4
    assert gl.run(gl.Experiment("tanh", **small, probes=4, measured=["decay"])).sizes["batch"] == 4
    assert "test_loss" in gl.run(gl.Experiment("tanh", **small, measured=[]))
    with pytest.raises(ValueError, match=r'probes and held_out together .* of "adding", got 4 and 1; .*at least 25$'):
        gl.Experiment("tanh", **small, probes=4, held_out=1, measured=["held_out"])
    with pytest.raises(
        ValueError, match=r"probes must be at most the 4 test .* got 5; take fewer, or samples of at least 25"
    ):
        gl.Experiment("tanh", **small, probes=5, measured=["tracking"])
    assert gl.Experiment("tanh", **(small | {"samples": 25}), probes=4, held_out=1)
    ds = gl.run(gl.Experiment("tanh", data="noise", units=3, epochs=0, probes=14, held_out=5))
    assert (ds.sizes["batch"], ds.sizes["held_out"]) == (14, 5)


def test_a_network_that_explodes_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    analyze = module.analyze

    def explode_when_trained(*args: object, **kwargs: object) -> xr.Dataset:
        calls.append(1)
        if len(calls) == 2:
            raise LeftFiniteNumbers("the trajectory left the finite numbers at batch 0, step 3")
        return analyze(*args, **kwargs)

    monkeypatch.setattr(module, "analyze", explode_when_trained)
    ds = gl.run(gl.Experiment("relu", data="vowels", units=3, epochs=1, probes=2))
    assert "step 3" in ds.attrs["status_trained"]
    assert np.isnan(ds["decay_rate"].sel(stage="trained")).all()
    assert np.isfinite(ds["lag"]).all()


def test_what_is_wrong_in_the_analysis_is_no_explosion(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> xr.Dataset:
        raise ValueError("cannot reshape")

    monkeypatch.setattr(module, "analyze", fail)
    with pytest.raises(ValueError, match="cannot reshape"):
        gl.run(gl.Experiment("tanh", data="noise", units=3, epochs=0, probes=2))


def test_no_stage_after_the_loss_left_the_numbers() -> None:
    """A gain at which the squared output is more than float32 holds and float64 does not mind: the loss is infinite."""
    small = {"data": "adding", "length": 40, "samples": 200, "units": 4, "probes": 2, "held_out": 1}
    ds = gl.run(gl.Experiment("relu", gain=60.0, epochs=3, measured_at=[0, 1, 3], **small, clip_norm=None))
    assert not np.isfinite(ds["training_loss"]).any()
    assert ds.attrs["status_initial"] == "ok"
    for stage in ("epoch 1", "trained"):
        assert ds.attrs[f"status_{stage}"] == "training had stopped, its loss was NaN or infinite"
        assert np.isnan(ds["decay_rate"].sel(stage=stage)).all()


def test_what_was_seen_before_it_exploded_is_kept() -> None:
    small = {"data": "adding", "length": 40, "samples": 200, "units": 4, "probes": 2, "held_out": 1}
    measured = {"measured": ["decay", "tracking"], "measured_at": [3]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the tracker's, and what overflows on the way
        ds = gl.run(gl.Experiment("relu", gain=60.0, epochs=3, **measured, **small, clip_norm=None))
    assert ds.attrs["status_trained"] == "training had stopped, its loss was NaN or infinite"
    assert "decay_rate" not in ds
    assert not np.isfinite(ds["training_loss"]).any()
    assert len(tracked(ds).epoch) >= 1


@pytest.mark.parametrize(
    ("cell", "given"),
    [
        ("tanh", {"data": "adding", "length": 100}),
        ("tanh", {"data": "adding", "samples": 2000}),
        ("gru", {"data": "noise", "epochs": 0, "samples": 64}),
        ("lstm", {"forget_bias": 1}),
        ("gru", {"forget_bias": 0.0}),
    ],
)
def test_one_run_has_one_name(cell: str, given: dict) -> None:
    plain = {name: value for name, value in given.items() if name in ("data", "epochs")}
    assert gl.Experiment(cell, **given) == gl.Experiment(cell, **plain)
    assert gl.Experiment(cell, **given).key == gl.Experiment(cell, **plain).key


def test_warnings_of_other_kinds_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    analyze = module.analyze

    def warning(*args: object, **kwargs: object) -> xr.Dataset:
        warnings.warn("soon to go", FutureWarning, stacklevel=1)
        warnings.warn("roughly", RuntimeWarning, stacklevel=1)
        return analyze(*args, **kwargs)

    monkeypatch.setattr(module, "analyze", warning)
    with pytest.warns(FutureWarning, match="soon to go") as caught:
        ds = gl.run(gl.Experiment("tanh", data="noise", units=3, epochs=0, probes=2))
    assert "roughly" in ds.attrs["warnings"]
    assert not [one for one in caught if issubclass(one.category, RuntimeWarning)]


def test_nothing_to_analyse_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> xr.Dataset:
        raise LeftFiniteNumbers("no numbers")

    monkeypatch.setattr(module, "analyze", fail)
    with pytest.raises(ValueError, match="could not be analysed at any stage"):
        gl.run(gl.Experiment("tanh", data="noise", units=3, epochs=0, probes=2))

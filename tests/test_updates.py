"""Leaky and residual updates of the simple network: their states, their Jacobians, and what does not hold for them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradlab as gl
from gradlab.cells import VanillaRNNCell
from gradlab.saturation import saturation

B, T, D, N = 3, 12, 2, 5
UPDATES = [{"leak": 0.3}, {"leak": 1.0}, {"residual": 0.25}]
X = np.random.default_rng(0).standard_normal((B, T, D))


def cell(update: dict, activation: str = "tanh", dtype: str = "float64") -> VanillaRNNCell:
    return VanillaRNNCell(N, activation, recurrent_gain=1.3, seed=4, dtype=dtype, **update)


@pytest.mark.parametrize("update", UPDATES, ids=str)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_states_are_those_of_the_formula(update: dict, activation: str) -> None:
    made = cell(update, activation)
    traj = gl.rollout(made, X)
    U, W = np.asarray(made.kernel), made.recurrent_matrix
    kept, added = (1 - update["leak"], update["leak"]) if "leak" in update else (1.0, update["residual"])
    phi = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0)}[activation]
    h = np.zeros((B, N))
    for t in range(T):
        h = kept * h + added * phi(h @ W.T + X[:, t] @ U)
        # T steps of sums of N + D products of values up to (1 + α)^T < 15, each rounding grown by no more than that
        np.testing.assert_allclose(traj.states[:, t + 1], h, atol=T * (N + D) * 15**2 * 2**-52)


@pytest.mark.parametrize("update", UPDATES, ids=str)
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "linear"])
def test_jacobians_are_those_of_the_tape_and_of_differences(update: dict, activation: str) -> None:
    made = cell(update, activation)
    traj = gl.rollout(made, X)
    formula, tape = (gl.step_jacobians(traj, method=method) for method in ("closed_form", "autodiff"))
    np.testing.assert_allclose(formula, tape, atol=1e-13)  # sums of a few products of order one
    step = 2.0**-17  # so that ε/step and step² are both of the order of 1e-10, and 1e-8 is far above
    before = traj.states[:, :-1].reshape(-1, N)
    inputs = tf.constant(X.reshape(-1, D))
    for j in range(N):
        ends = [traj.step(tf.constant(before + s * step * np.eye(N)[j]), inputs).numpy() for s in (1, -1)]
        column = (ends[0] - ends[1]) / (2 * step)
        if activation == "relu":  # a kink between the two ends is no error
            far = np.abs(before @ made.recurrent_matrix.T + X.reshape(-1, D) @ np.asarray(made.kernel)) > 1e-3
            column = np.where(far, column, formula.reshape(-1, N, N)[:, :, j])
        np.testing.assert_allclose(formula.reshape(-1, N, N)[:, :, j], column, atol=1e-8)


def test_a_leak_of_one_is_the_plain_network() -> None:
    plain, leaky = (gl.rollout(cell(update), X) for update in ({}, {"leak": 1.0}))
    np.testing.assert_array_equal(leaky.states, plain.states)
    np.testing.assert_array_equal(gl.step_jacobians(leaky), gl.step_jacobians(plain))


def test_gradients_are_those_of_an_unrolled_loop() -> None:
    made = cell({"leak": 0.2})
    found = gl.state_gradients(made, X, lambda states: tf.reduce_sum(states[:, -1] ** 2, axis=-1)).total
    start = tf.zeros((B, N), tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(start)
        h = start
        for t in range(T):
            h = made(tf.constant(X[:, t]), [h])[1][0]
        loss = tf.reduce_sum(h**2)
    np.testing.assert_allclose(found[:, 0], tape.gradient(loss, start), atol=1e-13)


@pytest.mark.parametrize("update", UPDATES, ids=str)
def test_what_holds_for_plain_updates_alone_is_left_out(update: dict) -> None:
    traj = gl.rollout(cell(update), X)
    assert traj.step.recurrence is None
    assert gl.activation_slopes(traj) is None
    ds = gl.analyze(traj, None)
    gone = {"bound_promise", "bound_slopes", "lower_slopes", "budget_promise", "budget_saturation", "dominance_radius"}
    gone |= {"mean_field_rate", "largest_slope", "mean_slope"}
    assert gone <= set(gl.analyze(cell({}), X).data_vars)
    assert not gone & set(ds.data_vars)
    # what holds for any cell is there, and holds
    leading, allowed = ds["log_singular_values"].isel(mode=0), ds["bound_step_norms"]
    assert (leading <= allowed + 1e-9).all()
    np.testing.assert_allclose(ds["log_determinant"], ds["log_singular_values"].sum("mode"), atol=1e-8)
    assert ds["spectral_radius"] == pytest.approx(gl.spectral_radius(traj.step.recurrent_matrices["W"]))


def test_the_promise_of_a_plain_update_would_be_wrong() -> None:
    """γσ_1(W) < 1 promises vanishing, and a residual network's gradient grows all the same."""
    made = VanillaRNNCell(N, recurrent_gain=0.5, residual=0.5, seed=0)
    ds = gl.analyze(made, 0.1 * X)
    assert ds["sigma_max"] < 1
    assert (ds["log_singular_values"].isel(mode=0, time=0) > 0).all()


def test_saturation_is_of_the_activation() -> None:
    leaky = gl.rollout(cell({"leak": 0.5}), X)
    a = leaky.states[:, :-1] @ leaky.step.recurrent_matrices["W"].T + X @ np.asarray(leaky.step.cell.kernel)
    assert saturation(leaky) == pytest.approx((1 - np.tanh(a) ** 2 < 0.1).mean())


@pytest.mark.parametrize("update", UPDATES, ids=str)
def test_saved_and_loaded(update: dict, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    made = cell(update, dtype="float32")
    model = keras.Sequential([keras.Input((T, D)), keras.layers.RNN(made), keras.layers.Dense(1)])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))
    config = VanillaRNNCell.from_config(made.get_config())
    assert (config.leak, config.residual) == (update.get("leak"), update.get("residual"))
    # its twin in float64 is the same cell, and not one of another update that was analysed before
    states = [gl.rollout(one, X).states for one in (cell({}, dtype="float32"), made, again.layers[0])]
    np.testing.assert_array_equal(states[1], states[2])
    assert (np.abs(states[0] - states[1]).max() < 1e-12) == (update == {"leak": 1.0})


def test_the_description_names_the_update() -> None:
    names = [gl.as_step(cell(update), input_size=D).description for update in ({}, *UPDATES)]
    assert names == [f"VanillaRNNCell({N}, tanh{end})" for end in ("", ", leak=0.3", ", leak=1", ", residual=0.25")]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"leak": 0.0}, "leak must be a positive finite number, got 0.0"),
        ({"leak": 1.1}, r"leak must be a number in \(0, 1\], got 1.1"),
        ({"leak": "half"}, "leak must be a positive finite number, got 'half'"),
        ({"residual": -1.0}, "residual must be a positive finite number, got -1.0"),
        ({"residual": True}, "residual must be a positive finite number, got True"),
        ({"leak": 0.5, "residual": 1.0}, "two updates of one state; give one of them"),
    ],
)
def test_impossible_updates(update: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cell(update)


def test_the_property_checks_pass() -> None:
    for update in ({"leak": 0.3}, {"residual": 0.3}):
        gl.testing.check_cell(VanillaRNNCell(3, seed=0, **update), 2)

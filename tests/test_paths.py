"""The paths of a gated cell: each is what autodiff gives with every other way stopped, and their shares add up to 1."""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import BATCH, EPS, FEATURES, MASK, STEPS, UNITS, jacobian_rounding, random_trajectory, ready
from hypothesis import given, settings
from hypothesis import strategies as st

import gradlab as gl
from gradlab.activations import sigmoid, tanh
from gradlab.paths import GatePaths, gate_paths

LSTM = ("highway", "input_gate", "forget_gate", "candidate", "output_gate")
GRU = ("highway", "update_gate", "reset_gate", "candidate")
NAMES = {"lstm": LSTM, "gru": GRU, "gru reset before": GRU}
SEEDS, SCALES = st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 1.0, 1.5])


# --- the independent route: the cells from scratch, with one way open and tf.stop_gradient on all others -------------


def lstm_with_one_way(weights, state, x, way, phi, gate):
    U, W, b = weights
    h, c = tf.split(state, 2, axis=1)

    def entering(name, value):
        return value if name == way else tf.stop_gradient(value)

    def pre(k, name):
        part = slice(k * UNITS, (k + 1) * UNITS)
        return x @ U[:, part] + entering(name, h) @ W[:, part] + b[part]

    i, f = gate(pre(0, "input_gate")), gate(pre(1, "forget_gate"))
    g, o = phi(pre(2, "candidate")), gate(pre(3, "output_gate"))
    # the old cell state enters once, and there it is the highway
    c = f * entering("highway", c) + i * g
    return tf.concat([o * phi(c), c], axis=1)


def gru_with_one_way(weights, h, x, way, phi, gate, *, reset_after):
    U, W, b = weights
    b_in, b_re = (b[0], b[1]) if reset_after else (b, tf.zeros_like(b))

    def entering(name):
        return h if name == way else tf.stop_gradient(h)

    def driven(k):
        return x @ U[:, k * UNITS : (k + 1) * UNITS] + b_in[k * UNITS : (k + 1) * UNITS]

    def recurrent(k, value):
        return value @ W[:, k * UNITS : (k + 1) * UNITS] + b_re[k * UNITS : (k + 1) * UNITS]

    z = gate(driven(0) + recurrent(0, entering("update_gate")))
    r = gate(driven(1) + recurrent(1, entering("reset_gate")))
    if reset_after:
        g = phi(driven(2) + r * recurrent(2, entering("candidate")))
    else:
        g = phi(driven(2) + recurrent(2, r * entering("candidate")))
    return z * entering("highway") + (1.0 - z) * g


STEPPED = {
    "lstm": lstm_with_one_way,
    "gru": partial(gru_with_one_way, reset_after=True),
    "gru reset before": partial(gru_with_one_way, reset_after=False),
}


@cache
def isolated(name, phi, gate):
    """Return the traced (weights, state, x) → ∂state'/∂state by each way [N, P, n, n]."""

    @tf.function
    def jacobians(weights, state, x):
        found = []
        for way in NAMES[name]:
            with tf.GradientTape() as tape:
                tape.watch(state)
                after = STEPPED[name](weights, state, x, way, phi, gate)
            found.append(tape.batch_jacobian(after, state))
        return tf.stack(found, axis=1)

    return jacobians


def by_autodiff(name, traj, phi=tanh, gate=sigmoid):
    n = traj.step.state_size
    before, x = traj.states[:, :-1].reshape(-1, n), traj.inputs.reshape(-1, FEATURES)
    found = isolated(name, phi, gate)(traj.step.weights, tf.constant(before), tf.constant(x)).numpy()
    return found.reshape(*traj.inputs.shape[:2], len(NAMES[name]), n, n)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(seed=SEEDS, scale=SCALES)
def test_each_path_is_what_is_left_with_the_other_ways_stopped(name, seed, scale):
    traj = random_trajectory(name, seed, scale)
    paths = gate_paths(traj)
    assert paths.names == NAMES[name]
    # a path holds some of the products that an entry of J sums, each in one order here and in another there
    assert np.abs(paths.jacobians - by_autodiff(name, traj)).max() <= 2 * jacobian_rounding(traj)


@pytest.mark.parametrize("name", NAMES)
def test_other_activations(name):
    """The logistic function for the candidate and tanh for the gates, without bias."""
    kinds = {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell, "gru reset before": keras.layers.GRUCell}
    options = {"reset_after": name == "gru"} if name != "lstm" else {}
    cell = kinds[name](UNITS, activation="sigmoid", recurrent_activation="tanh", use_bias=False, **options)
    rng = np.random.default_rng(8)
    traj = gl.rollout(cell, rng.standard_normal((BATCH, STEPS, FEATURES)))
    bias = tf.zeros((2, 3 * UNITS) if name == "gru" else (4 * UNITS,), tf.float64)
    with_bias = dataclasses.replace(traj, step=dataclasses.replace(traj.step, weights=(*traj.step.weights, bias)))
    error = gate_paths(traj).jacobians - by_autodiff(name, with_bias, phi=sigmoid, gate=tanh)
    assert np.abs(error).max() <= 2 * jacobian_rounding(traj)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(seed=SEEDS, scale=SCALES, masked=st.booleans())
def test_the_paths_sum_to_the_step_jacobians(name, seed, scale, masked):
    traj = random_trajectory(name, seed, scale, mask=MASK if masked else None)
    J = gate_paths(traj).jacobians
    for method in ("closed_form", "autodiff"):
        whole = gl.step_jacobians(traj, method=method)
        # the paths and the whole each within the rounding of an entry
        assert np.abs(J.sum(axis=2) - whole).max() <= 2 * jacobian_rounding(traj)
    if masked:
        assert (J[~MASK][:, 0] == np.eye(traj.step.state_size)).all()
        assert (J[~MASK][:, 1:] == 0.0).all()


def test_each_path_of_an_lstm_enters_h_through_the_cell():
    traj = random_trajectory("lstm", 2)
    J = gate_paths(traj).jacobians
    into_h, into_c = J[..., :UNITS, :], J[..., UNITS:, :]
    highway = into_c[:, :, 0, :, UNITS:]
    f = np.einsum("btii->bti", highway)
    assert np.array_equal(highway, f[..., None] * np.eye(UNITS))
    assert ((f > 0) & (f < 1)).all()
    assert (into_c[:, :, 4] == 0.0).all()  # the output gate writes into h alone
    through = np.einsum("btii->bti", into_h[:, :, 0, :, UNITS:]) / f  # o φ'(c), the same for every path
    np.testing.assert_allclose(into_h[:, :, :4], through[:, :, None, :, None] * into_c[:, :, :4], rtol=8 * EPS, atol=0)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_highway_is_what_gate_path_multiplies_up(name):
    traj = random_trajectory(name, 3)
    gates = np.einsum("btii->bti", gate_paths(traj).jacobians[:, :, 0, -UNITS:, -UNITS:])
    product = np.eye(UNITS)
    for one in gates[0][::-1]:
        product = product @ np.diag(one)
    np.testing.assert_allclose(np.exp(gl.bounds.gate_path(gates)[0, 0]), np.diag(product), rtol=100 * EPS)


# --- shares -----------------------------------------------------------------------------------------------------------


def loss(states):
    """A loss that reads three times of the run, in every unit."""
    return tf.reduce_sum(tf.sin(states[:, -1]) + states[:, 1] ** 2 + 0.3 * states[:, 3], axis=-1)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(seed=SEEDS, scale=SCALES, masked=st.booleans())
def test_shares_sum_to_one(name, seed, scale, masked):
    traj = random_trajectory(name, seed, scale, mask=MASK if masked else None)
    paths = gate_paths(traj)
    gradients = gl.state_gradients(traj, None, loss)
    for shares in (
        paths.shares_of_singular_value(),
        paths.shares_of_product(),
        paths.shares_of_gradient(gradients),
    ):
        assert shares.shape == (BATCH, STEPS, len(NAMES[name]))
        taken = MASK if masked else np.ones((BATCH, STEPS), bool)
        assert np.isnan(shares[~taken]).all()
        # a division for each and P − 1 additions
        size = np.abs(shares[taken]).sum(axis=-1)
        assert (np.abs(shares[taken].sum(axis=-1) - 1.0) <= 2 * len(NAMES[name]) * EPS * size).all()


def form_rounding(traj, J):
    """Rounding of uᵀ J_p v for unit vectors: n² entries of J_p that err as they do, and a sum over them."""
    n = traj.step.state_size
    return n * (2 * jacobian_rounding(traj) + 2 * n * EPS * np.abs(J).max())


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(seed=SEEDS, scale=SCALES)
def test_shares_of_the_gradient_are_their_definition(name, seed, scale):
    traj = random_trajectory(name, seed, scale)
    gradients = gl.state_gradients(traj, None, loss)
    J = by_autodiff(name, traj)
    terms = np.einsum("btpij,bti->btpj", J, gradients.total[:, 1:])  # J_pᵀ g_t
    r = gradients.recurrent[:, :-1]
    ours = gate_paths(traj).shares_of_gradient(gradients)
    expected = np.einsum("btpj,btj->btp", terms, r) / (r**2).sum(-1)[..., None]
    # what comes back may cancel: each term is known to the rounding of the larger vectors; and so is g_t itself, whose
    # error the steps since T have carried with them
    lengths = np.linalg.norm(gradients.total[:, 1:], axis=-1) / np.linalg.norm(r, axis=-1)
    carried = np.cumprod(np.maximum(1.0, np.linalg.norm(J.sum(2), axis=(2, 3)))[:, ::-1] ** 2, axis=1)[:, ::-1]
    allowance = 10 * STEPS * form_rounding(traj, J) * (carried * lengths * (1 + lengths))[..., None]
    assert (np.abs(ours - expected) <= allowance * (1 + np.abs(expected).max(-1, keepdims=True))).all()


def test_step_jacobians_that_are_there_are_used():
    traj = random_trajectory("lstm", 6)
    J = gl.step_jacobians(traj)
    given_to = gate_paths(traj, J=J)
    assert given_to.total is J
    np.testing.assert_array_equal(given_to.shares_of_product(), gate_paths(traj).shares_of_product())


def test_for_a_loss_at_the_end_the_gradient_arrives_by_the_paths_alone():
    traj = random_trajectory("gru", 4)
    gradients = gl.state_gradients(traj, None, lambda states: tf.reduce_sum(states[:, -1] ** 2, axis=-1))
    g = gradients.total
    J = gate_paths(traj).jacobians
    expected = np.einsum("btj,btpij,bti->btp", g[:, :-1], J, g[:, 1:]) / (g[:, :-1] ** 2).sum(-1)[..., None]
    np.testing.assert_allclose(gate_paths(traj).shares_of_gradient(gradients), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(seed=SEEDS, scale=SCALES)
def test_shares_of_the_singular_value_are_its_derivative(name, seed, scale):
    """d ln σ_1 / d ln α_p by central differences in α: a route that knows nothing of singular vectors."""
    traj = random_trajectory(name, seed, scale)
    J = by_autodiff(name, traj)
    sigma = np.linalg.svd(J.sum(2), compute_uv=False)
    gap = 1.0 - sigma[..., 1] / sigma[..., 0]
    step = 1e-5
    found = np.empty((BATCH, STEPS, len(NAMES[name])))
    for p in range(len(NAMES[name])):
        up, down = (np.linalg.norm(J.sum(2) + sign * step * J[:, :, p], 2, axis=(2, 3)) for sign in (1, -1))
        found[..., p] = (np.log(up) - np.log(down)) / (2 * step)
    # the second and third derivatives of ln σ_1 go with (‖J_p‖/σ_1)³/gap²; differences of logarithms lose ε/step
    size = np.linalg.norm(J, 2, axis=(3, 4)).max(-1) / sigma[..., 0]
    allowance = 50 * step**2 * (1 + size) ** 3 / gap**2 + 100 * EPS / step
    error = np.abs(gate_paths(traj).shares_of_singular_value() - found).max(-1)
    assert (error <= allowance)[gap > 0.05].all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_shares_of_the_product_are_its_derivative(name, seed):
    traj = random_trajectory(name, seed, mask=MASK)
    paths = gate_paths(traj)
    J, shares = paths.jacobians, paths.shares_of_product()
    step = 1e-5

    def log_norm(b, factors):
        return np.log(np.linalg.norm(np.linalg.multi_dot(factors[b][::-1]), 2))

    for b, s in zip(*np.nonzero(MASK), strict=True):
        for p in range(len(paths.names)):
            values = []
            for sign in (1, -1):
                factors = J.sum(2)
                factors[b, s] += sign * step * J[b, s, p]
                values.append(log_norm(b, factors))
            # σ_1 of these products is simple by far, so third derivatives are of the order of the shares cubed
            size = 1 + np.abs(shares[b, s]).max()
            found = (values[0] - values[1]) / (2 * step)
            assert abs(found - shares[b, s, p]) <= 50 * step**2 * size**3 + 100 * EPS * size / step


def test_shares_outlive_the_underflow_of_the_gradient():
    """About ten nats a step over 200 steps: e^−2000, which float64 does not hold."""
    cell = keras.layers.GRUCell(2, dtype="float64")
    cell.build((None, 1))
    rng = np.random.default_rng(0)
    # z = logistic(−10): all but nothing stays, and the candidate hardly listens
    bias = np.zeros((2, 6))
    bias[0, :2] = -10.0
    cell.set_weights([rng.standard_normal((1, 6)), 1e-5 * rng.standard_normal((2, 6)), bias])
    traj = gl.rollout(cell, rng.standard_normal((1, 200, 1)))
    gradients = gl.state_gradients(traj, None, lambda states: states[:, -1, 0])
    assert (gradients.total[0, 0] == 0.0).all()
    assert gradients.log_total_norm[0, 0] < -1500
    shares = gate_paths(traj).shares_of_gradient(gradients)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(-1), 1.0, rtol=0, atol=100 * EPS)
    # step by step, the direction of g alone carried on
    J = gl.step_jacobians(traj)[0]
    g = np.array([1.0, 0.0])
    for s in range(199, -1, -1):
        r = J[s].T @ g
        expected = np.array([r @ (one.T @ g) for one in gate_paths(traj).jacobians[0, s]]) / (r @ r)
        np.testing.assert_allclose(shares[0, s], expected, rtol=1e-9, atol=1e-9)
        g = r / np.abs(r).max()


def test_without_recurrent_weights_all_is_highway():
    cell = keras.layers.LSTMCell(UNITS, dtype="float64")
    cell.build((None, FEATURES))
    kernel, recurrent, bias = cell.get_weights()
    cell.set_weights([kernel, 0.0 * recurrent, bias])
    traj = gl.rollout(cell, np.random.default_rng(1).standard_normal((1, 6, FEATURES)))
    paths = gate_paths(traj)
    for shares in (paths.shares_of_singular_value(), paths.shares_of_product()):
        np.testing.assert_array_equal(shares, np.broadcast_to([1.0, 0, 0, 0, 0], shares.shape))
    # and a gradient that is in h alone does not go on at all: no shares of nothing
    only_h = gl.state_gradients(traj, None, lambda states: states[:, -1, 0])
    shares = paths.shares_of_gradient(only_h)
    assert np.isfinite(shares[:, -1]).all()  # through o φ'(c) into c
    only_c = gl.state_gradients(traj, None, lambda states: states[:, 0, 0])
    assert np.isnan(paths.shares_of_gradient(only_c)).all()


# --- what is taken, and what is refused -------------------------------------------------------------------------------


def test_layers_and_both_directions_are_taken():
    x = np.random.default_rng(5).standard_normal((BATCH, STEPS, FEATURES))
    both = keras.layers.Bidirectional(keras.layers.LSTM(UNITS))
    both.build((None, STEPS, FEATURES))
    for layer in (both.forward_layer, both.backward_layer, keras.layers.GRU(UNITS, reset_after=False)):
        traj = gl.rollout(layer, x, mask=MASK)
        difference = gate_paths(traj).jacobians.sum(axis=2) - gl.step_jacobians(traj, method="autodiff")
        assert np.abs(difference).max() <= 2 * jacobian_rounding(traj)


@pytest.mark.parametrize("name", ["vanilla tanh", "gru unusual", "stack", "custom", "callable"])
def test_what_has_no_gates_or_no_formula_is_refused(name):
    traj = random_trajectory(name, 4)
    match = (
        r"gate_paths takes a run of a Keras LSTMCell or GRUCell itself, .* got .*of a stack\s+give one layer at a time"
    )
    with pytest.raises(TypeError, match=match):
        gate_paths(traj)


def test_wrong_arguments_are_named():
    with pytest.raises(
        TypeError, match=r"traj must be a Trajectory, got ndarray; gl.rollout\(cell, inputs\) makes one"
    ):
        gate_paths(np.zeros((1, 2, 3)))
    paths = gate_paths(random_trajectory("gru", 0))
    assert isinstance(paths, GatePaths)
    with pytest.raises(TypeError, match="gradients must be StateGradients, got ndarray"):
        paths.shares_of_gradient(np.zeros((BATCH, STEPS + 1, UNITS)))
    other = gl.state_gradients(random_trajectory("gru", 0, steps=4), None, loss)
    with pytest.raises(
        ValueError, match=r"gradients must be those of this trajectory, .* = \(2, 6, 3\), got .*\(2, 5,"
    ):
        paths.shares_of_gradient(other)
    with pytest.raises(ValueError, match=r"J must be \[batch, time, n, n\] = \(2, 5, 3, 3\), got shape \(5, 3, 3\)"):
        gate_paths(paths.traj, J=paths.total[0])
    cell = ready("gru")
    traj = gl.rollout(cell, np.random.default_rng(0).standard_normal((1, 4, FEATURES)))
    cell.activation = keras.activations.sigmoid
    with pytest.raises(ValueError, match="with other settings by now; roll it out again"):
        gate_paths(traj)

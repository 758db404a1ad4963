from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import (
    EPS,
    FEATURES,
    MASK,
    STEPPED,
    STEPS,
    jacobian_rounding,
    product_rounding,
    random_trajectory,
    ready,
    state_rounding,
)
from differences import SPACING, richardson
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradlab.cells import VanillaRNNCell
from gradlab.gradients import log_norm, state_gradients
from gradlab.jacobian import step_jacobians
from gradlab.trajectory import rollout

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.1, 0.3, 0.6])  # five steps of more stretch leave no room for differences


def last(states):
    """A loss at T only: the sum of a fixed direction."""
    return tf.reduce_sum(states[:, -1] * np.cos(np.arange(states.shape[-1])), axis=-1)


def several(states):
    """A loss at several times, not linear, that mixes times and units."""
    s = tf.tanh(tf.reduce_sum(states * np.sin(1.0 + np.arange(states.shape[-1])), axis=-1))  # [B, T + 1]
    return s[:, 0] * s[:, 2] + tf.sin(s[:, 3] + s[:, -1]) + s[:, -1] * s[:, 2]


def continued(traj, points):
    """Return the states [M, T + 1, n] of the rollouts by the eager step in which one h_t is one of `points` [M, n].

    The points come for every sequence and every t = 0 … T in turn, equally many for each.
    """
    B, T, _ = traj.inputs.shape
    each = len(points) // (B * (T + 1))
    b, t = (np.repeat(one.ravel(), each) for one in np.indices((B, T + 1)))
    taken = np.ones((B, T), bool) if traj.mask is None else traj.mask
    states = traj.states[b]
    states[np.arange(len(points)), t] = points
    for s in range(T):
        after = traj.step(tf.constant(states[:, s]), tf.constant(traj.inputs[b, s])).numpy()
        after = np.where(taken[b, s, None], after, states[:, s])
        states[t <= s, s + 1] = after[t <= s]
    return states


def gradient_rounding(traj, J, g):
    """Return a bound on the rounding gathered in each total gradient of the loss `several`, in norm [B, T + 1].

    A direct part errs by the loss's curvature, at most 10·n, times the error of the states; a Jacobian by its own
    rounding and its Lipschitz constant, at most (n·weight)² for every cell here, times the same.
    """
    n = J.shape[-1]
    weight = max([1.0, *(float(np.abs(w).max()) for w in traj.step.weights)])
    stretch = np.linalg.norm(J, 2, axis=(2, 3))
    states = state_rounding(traj, J)
    error = 10 * n * (states + 10 * EPS)
    for t in reversed(range(J.shape[1])):
        factor = n * (jacobian_rounding(traj) + EPS * stretch[:, t]) + (n * weight) ** 2 * states[:, t]
        error[:, t] += stretch[:, t] * error[:, t + 1] + factor * np.linalg.norm(g.total[:, t + 1], axis=-1)
    return error


@pytest.mark.parametrize("name", STEPPED)
@settings(max_examples=6)
@given(seed=seeds, scale=scales, masked=st.booleans())
def test_total_is_the_derivative_of_the_rest_of_the_rollout(name, seed, scale, masked):
    traj = random_trajectory(name, seed, scale, mask=MASK if masked else None)
    if name == "vanilla relu":
        U, W, b = (w.numpy() for w in traj.step.weights)
        reach = SPACING * max(1.0, np.linalg.norm(W, 2)) ** STEPS * np.abs(W).max()
        assume(np.abs(traj.states[:, :-1] @ W + traj.inputs @ U + b).min() > reach)
    g = state_gradients(traj, None, several)
    J = step_jacobians(traj)
    # rounding of the loss: its own, of order one, and |∂L/∂h_s| ≤ 4√n times that of each state
    n = traj.step.state_size
    rounding = 50 * EPS + 4 * np.sqrt(n) * state_rounding(traj, J).sum(axis=1)
    expected, error = richardson(
        lambda points: several(tf.constant(continued(traj, points))).numpy(),
        traj.states.reshape(-1, n),
        rounding.max(),
    )
    assert error.max() < 1e-3 * max(1.0, np.abs(g.total).max())  # or there would be no test
    assert (np.abs(g.total - expected.reshape(g.total.shape)) <= error.reshape(2, STEPS + 1, 1)).all()


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("mask", [None, MASK], ids=["every step", "masked"])
def test_a_loss_at_the_end_goes_back_by_the_product_of_step_jacobians(name, mask):
    traj = random_trajectory(name, seed=11, mask=mask)
    g = state_gradients(traj, None, last)
    J = step_jacobians(traj)
    expected = np.empty_like(g.total)
    expected[:, -1] = g.direct[:, -1]
    for t in reversed(range(STEPS)):
        expected[:, t] = np.einsum("bji,bj->bi", J[:, t], expected[:, t + 1])
    bound = 2 * product_rounding(traj, J) * np.linalg.norm(g.direct[:, -1], axis=-1)[:, None]
    assert np.array_equal(g.total[:, -1], g.direct[:, -1])
    assert not g.direct[:, :-1].any()
    assert (np.linalg.norm(g.total - expected, axis=-1)[:, :-1] <= bound).all()
    assert np.array_equal(g.loss, last(tf.constant(traj.states)).numpy())


@pytest.mark.parametrize("name", ["vanilla sigmoid", "gru", "stack", "plain"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["every step", "masked"])
def test_a_tape_through_the_unrolled_loop_agrees(name, mask):
    traj = random_trajectory(name, seed=12, mask=mask)
    with tf.GradientTape() as tape:
        states = [tf.constant(traj.states[:, 0])]
        tape.watch(states[0])
        for t in range(STEPS):
            new = traj.step(states[-1], tf.constant(traj.inputs[:, t]))
            states.append(new if mask is None else tf.where(mask[:, t, None], new, states[-1]))
        value = several(tf.stack(states, axis=1))
        summed = tf.reduce_sum(value)
    expected = np.stack(tape.gradient(summed, states), axis=1)
    g = state_gradients(traj, None, several)
    bound = 2 * gradient_rounding(traj, step_jacobians(traj), g)
    assert (bound < 1e-6 * np.linalg.norm(g.total, axis=-1)).all()  # or there would be no test
    assert (np.linalg.norm(g.total - expected, axis=-1) <= bound).all()
    assert np.allclose(g.loss, value, rtol=0.0, atol=bound.max())


@given(seed=seeds, name=st.sampled_from(["vanilla tanh", "lstm", "custom", "callable"]), masked=st.booleans())
def test_direct_and_recurrent_add_up(seed, name, masked):
    traj = random_trajectory(name, seed, mask=MASK if masked else None)
    g = state_gradients(traj, None, several)
    size = np.abs(g.direct) + np.abs(g.recurrent)
    # the sum is one rounding, at the precision of the scaled numbers
    assert (np.abs(g.direct + g.recurrent - g.total) <= 2 * EPS * size).all()
    assert not g.recurrent[:, -1].any()
    states = tf.constant(traj.states)
    with tf.GradientTape() as tape:
        tape.watch(states)
        value = tf.reduce_sum(several(states))
    assert np.array_equal(g.direct, tape.gradient(value, states).numpy())
    for array, log_norms in (
        (g.total, g.log_total_norm),
        (g.direct, g.log_direct_norm),
        (g.recurrent, g.log_recurrent_norm),
    ):
        norms = np.linalg.norm(array, axis=-1)
        with np.errstate(divide="ignore"):
            expected = np.log(norms)
        assert np.array_equal(np.isneginf(log_norms), norms == 0.0)
        finite = norms > 0.0
        # n + 2 roundings in the norm, and a logarithm of size |ln|
        bound = (array.shape[-1] + 2) * EPS + 4 * EPS * np.abs(expected[finite])
        assert (np.abs(log_norms[finite] - expected[finite]) <= bound).all()


def test_a_masked_step_passes_the_gradient_on():
    traj = random_trajectory("lstm", seed=13, mask=MASK)
    g = state_gradients(traj, None, last)
    for b in range(2):
        kept = rollout(traj.step, traj.inputs[b : b + 1, MASK[b]], traj.states[b, 0])
        short = state_gradients(kept, None, last).total[0]
        rounding = 2 * product_rounding(kept, step_jacobians(kept)).max() * np.sqrt(6)
        # index of each h_t of the long sequence in the short one
        where = np.concatenate([[0], np.cumsum(MASK[b])])
        assert np.abs(g.total[b] - short[where]).max() <= rounding


# --- long sequences --------------------------------------------------------------------------------------------------


def linear_cell(gain, units=3, **kwargs):
    return VanillaRNNCell(units, "linear", recurrent_gain=gain, seed=3, dtype="float64", **kwargs)


@pytest.mark.parametrize(("gain", "T", "inside"), [(1e-2, 2000, 150), (3.0, 1000, 640)], ids=["underflow", "overflow"])
def test_log_norms_are_right_where_the_arrays_are_not(gain, T, inside):
    """W = gain·Q: ln‖∂L/∂h_t‖ = (T − t) ln gain + ln‖g_T‖ exactly, to −9210 and to +1099."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        g = state_gradients(linear_cell(gain), np.zeros((2, T, 1)), last)
    lag = T - np.arange(T + 1)
    expected = lag * np.log(gain) + 0.5 * np.log(np.sum(np.cos(np.arange(3)) ** 2))
    # each factor: W is orthogonal to 2n eps, the product rounds n + 1 times; then ln 2 times an exponent, and a sum
    allowance = (lag + 1) * 4 * 3 * EPS + 4 * EPS * np.abs(expected)
    assert (np.abs(g.log_total_norm - expected) <= allowance).all()
    assert (np.abs(g.log_recurrent_norm - expected) <= allowance)[:, :-1].all()
    assert np.isneginf(g.log_recurrent_norm[:, -1]).all()
    representable = np.abs(log_norm(g.total[:, -inside:]) - g.log_total_norm[:, -inside:])
    assert (representable <= 4 * EPS * (1 + np.abs(expected[-inside:]))).all()
    beyond = g.total[:, 0]
    assert not beyond.any() if gain < 1 else np.isinf(beyond).all()


@pytest.mark.parametrize("w", [0.5, 3.0, 1e-200], ids=["decay", "growth", "far below the direct part"])
def test_a_loss_at_every_time_sums_a_geometric_series(w):
    """One linear unit: ∂L/∂h_t = Σ_{k ≤ T−t} w^k, terms of any size side by side."""
    T = 1000
    cell = VanillaRNNCell(1, "linear", recurrent_initializer="identity", recurrent_gain=w, dtype="float64")
    g = state_gradients(cell, np.zeros((1, T, 1)), lambda states: tf.reduce_sum(states, axis=[1, 2]))
    terms = T - np.arange(T + 1) + 1
    if w < 1.0:
        expected = np.log((1.0 - w**terms) / (1.0 - w))
    else:
        expected = terms * np.log(w) - np.log(w - 1.0) + np.log1p(-np.exp(-terms * np.log(w)))
    # a sum of positive terms: one product and one addition per step
    allowance = 2 * terms * EPS + 4 * EPS * np.abs(expected) + 4 * EPS
    assert (np.abs(g.log_total_norm[0] - expected) <= allowance).all()
    assert np.array_equal(g.direct, np.ones((1, T + 1, 1)))
    previous = g.log_total_norm[0, 1:] + np.log(w)
    assert (np.abs(g.log_recurrent_norm[0, :-1] - previous) <= 4 * EPS * (1 + np.abs(previous))).all()


def test_a_direct_part_above_an_underflown_one_and_the_reverse():
    """A loss that weighs early states 1e250 times more, or less, than the last."""
    cell = linear_cell(1e-3)
    for size in (1e250, 1e-250):

        def loss(states, size=size):
            return states[:, -1, 0] + size * states[:, 0, 1]

        g = state_gradients(cell, np.zeros((1, 50, 1)), loss)
        back = 50 * np.log(1e-3)  # −345: the recurrent part at t = 0
        ours, theirs = g.log_recurrent_norm[0, 0], back
        assert abs(ours - theirs) <= 51 * 12 * EPS + 4 * EPS * abs(back)
        expected = np.log(size) if size > 1 else back  # e^−575 beside e^−345 is below rounding
        assert abs(g.log_total_norm[0, 0] - expected) <= 51 * 12 * EPS + 4 * EPS * abs(expected)


def test_dead_units_give_an_exact_zero():
    cell = VanillaRNNCell(3, "relu", bias_initializer=keras.initializers.Constant(-1.0), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        g = state_gradients(cell, np.zeros((1, 4, 1)), last)
    assert not g.total[:, :-1].any()
    assert np.isneginf(g.log_total_norm[:, :-1]).all()
    assert np.isfinite(g.log_total_norm[:, -1]).all()


def test_log_norm_neither_under_nor_overflows():
    vectors = np.array([[3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0], [2.0**-1074, 0.0]])
    expected = [np.log(5) - 200 * np.log(10), np.log(5) + 200 * np.log(10), -np.inf, -1074 * np.log(2)]
    assert np.allclose(log_norm(vectors), expected, rtol=4 * EPS, atol=0.0)


# --- the trap, and what is refused -----------------------------------------------------------------------------------


def test_the_gradient_of_a_keras_output_tensor_leaves_the_recurrence_out():
    layer = ready("LSTM", "float64")
    inputs = tf.constant(np.random.default_rng(0).standard_normal((2, STEPS, FEATURES)))
    with tf.GradientTape() as tape:
        outputs = layer(inputs)
        tape.watch(outputs)
        value = tf.reduce_sum(outputs[:, -1])
    trap = tape.gradient(value, outputs).numpy()
    assert not trap[:, :-1].any()
    g = state_gradients(layer, inputs, lambda states: tf.reduce_sum(states[:, -1, :3], axis=-1))
    assert np.array_equal(g.total[:, -1, :3], trap[:, -1])
    assert (np.linalg.norm(g.total[:, :-1], axis=-1) > 1e-3).all()


def test_bad_losses_are_named():
    traj = random_trajectory("vanilla tanh", seed=14)
    for loss, error, match in (
        ("mse", TypeError, r"loss must be a function of states .* got str"),
        (lambda states: tf.ones(2, tf.float64), ValueError, "does not depend on the states"),
        (lambda states: float(np.sum(states)), ValueError, "does not depend on the states"),
        (lambda states: states[:, -1], ValueError, r"got shape \(2, 3\); reduce over time and units"),
        (lambda states: states[0, -1], ValueError, r"per sequence \[batch\] = \(2,\), got shape \(3,\)"),
        (lambda states: tf.sqrt(states[:, -1, 0] - 10.0), ValueError, "NaN or infinite"),
        (lambda states: tf.sqrt(0.0 * states[:, -1, 0]), ValueError, "derivative is NaN or infinite"),
    ):
        with pytest.raises(error, match=match):
            state_gradients(traj, None, loss)


def test_a_derivative_that_is_not_finite_is_named():
    def rooted(state, inputs):
        return tf.sqrt(tf.abs(state)) + inputs

    traj = rollout(rooted, np.ones((1, 3, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="derivative of rooted is not finite along this trajectory"):
        state_gradients(traj, None, last)


def test_a_step_that_cannot_be_differentiated_is_no_zero():
    def outside(state, inputs):
        return tf.ensure_shape(tf.numpy_function(np.tanh, [state], tf.float64), [None, 3])

    with pytest.raises(ValueError, match="does not depend on the old one in a way that TensorFlow can differentiate"):
        state_gradients(rollout(outside, np.ones((1, 2, 1)), np.ones(3)), None, last)


def test_a_scalar_loss_is_the_sum_of_its_sequences():
    traj = random_trajectory("gru", seed=15)
    each = state_gradients(traj, None, several)
    scalar = state_gradients(traj, None, lambda states: tf.reduce_sum(several(states)))
    assert np.array_equal(each.total, scalar.total)
    assert scalar.loss.shape == ()


def test_a_cell_and_its_trajectory_give_the_same():
    cell = ready("gru")
    inputs = np.random.default_rng(1).standard_normal((2, STEPS, FEATURES))
    a = state_gradients(cell, inputs, several, initial_state=np.ones(3), mask=MASK)
    b = state_gradients(rollout(cell, inputs, np.ones(3), MASK), None, several)
    assert np.array_equal(a.total, b.total)


@pytest.mark.parametrize("size", [1e-300, 1e307])
def test_the_scale_of_the_loss_shifts_the_logarithms(size):
    cell, x = VanillaRNNCell(4, seed=0), np.random.default_rng(0).standard_normal((2, 30, 2))
    plain, scaled = (state_gradients(cell, x, lambda h, c=c: c * h[:, -1, 0]) for c in (1.0, size))
    # the same mantissas but for one rounding by `size` a step; the logarithm itself is right to an ulp of 700
    np.testing.assert_allclose(scaled.log_total_norm, plain.log_total_norm + np.log(size), rtol=0, atol=31 * 700 * EPS)

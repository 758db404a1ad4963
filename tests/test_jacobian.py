from __future__ import annotations

import keras
import mpmath
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import (
    EPS,
    FEATURES,
    MASK,
    STEPPED,
    jacobian_rounding,
    random_trajectory,
    ready,
    step_rounding,
)
from differences import SPACING, richardson
from hypothesis import assume, given
from hypothesis import strategies as st

from gradlab import jacobian
from gradlab.cells import VanillaRNNCell
from gradlab.jacobian import activation_slopes, check_elementwise, step_jacobians
from gradlab.trajectory import rollout

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.1, 0.5, 1.0, 1.5])
ELEMENTWISE = ["vanilla tanh", "vanilla sigmoid", "vanilla linear", "vanilla relu", "vanilla callable", "simple"]


def autodiff(traj):
    """Return the step Jacobians by the general route, whether or not there is a formula for the cell."""
    return step_jacobians(traj, method="autodiff")


def differences(traj):
    """Return (J by central differences of the eager step [B, T, n, n], error bound [B, T, 1, 1])."""
    B, T, d = traj.inputs.shape
    n = traj.step.state_size
    inputs = traj.inputs.reshape(B * T, d)

    def function(states):
        repeated = np.repeat(inputs, len(states) // len(inputs), axis=0)
        return traj.step(tf.constant(states), tf.constant(repeated)).numpy()

    J, error = richardson(function, traj.states[:, :-1].reshape(B * T, n), step_rounding(traj))
    return J.reshape(B, T, n, n), error.reshape(B, T, 1, 1)


@pytest.mark.parametrize("name", STEPPED)
@given(seed=seeds, scale=scales, masked=st.booleans())
def test_step_jacobians_are_the_derivative_of_the_eager_step(name, seed, scale, masked):
    traj = random_trajectory(name, seed, scale, mask=MASK if masked else None)
    if name == "vanilla relu":
        U, W, b = (w.numpy() for w in traj.step.weights)
        distance = np.abs(traj.states[:, :-1] @ W + traj.inputs @ U + b).min()
        assume(distance > SPACING * np.abs(W).max())  # no kink within reach of the differences
    expected, error = differences(traj)
    if masked:
        expected[~MASK] = np.eye(traj.step.state_size)
    for J in (autodiff(traj), step_jacobians(traj)):
        assert J.dtype == np.float64
        assert error.max() < 1e-5 * max(1.0, np.abs(J).max())  # or there would be no test
        assert (np.abs(J - expected) <= error).all()
        assert not masked or np.array_equal(J[~MASK], expected[~MASK])


@pytest.mark.parametrize("name", ["vanilla tanh", "gru", "stack"])
@pytest.mark.parametrize("rows", [0.5, 4.0, 9.9])
def test_chunks_give_the_same_numbers(monkeypatch, name, rows):
    traj = random_trajectory(name, seed=1)
    whole = autodiff(traj)
    monkeypatch.setattr(jacobian, "_CHUNK_ENTRIES", int(rows * traj.step.state_size**2))
    assert np.abs(autodiff(traj) - whole).max() <= 2 * jacobian_rounding(traj)


@pytest.mark.parametrize("name", ["vanilla tanh", "lstm"])
def test_xla_gives_the_same_numbers(name):
    traj = random_trajectory(name, seed=2, mask=MASK)
    compiled = step_jacobians(traj, jit_compile=True)
    assert np.abs(compiled - autodiff(traj)).max() <= 2 * jacobian_rounding(traj)


@pytest.mark.parametrize("name", ["lstm", "plain"])
def test_sequences_of_a_batch_do_not_touch_each_other(name):
    traj = random_trajectory(name, seed=3)
    alone = rollout(traj.step, traj.inputs[1:], traj.states[1:, 0])
    assert np.abs(autodiff(traj)[1:] - autodiff(alone)).max() <= 2 * jacobian_rounding(traj)


def test_a_float32_cell_is_differentiated_in_float64():
    cell = ready("lstm", "float32")
    twin = keras.layers.LSTMCell(3, dtype="float64")
    twin.build((None, FEATURES))
    twin.set_weights([w.astype(np.float64) for w in cell.get_weights()])
    inputs = np.random.default_rng(0).standard_normal((1, 3, FEATURES))
    ours, theirs = (rollout(one, inputs) for one in (cell, twin))
    assert np.array_equal(autodiff(ours), autodiff(theirs))
    assert np.array_equal(step_jacobians(ours), step_jacobians(theirs))


# --- saturated units -------------------------------------------------------------------------------------------------


def sech2(a):
    return 4.0 * np.exp(-2.0 * np.abs(a)) / (1.0 + np.exp(-2.0 * np.abs(a))) ** 2


def logistic_slope(a):
    return np.exp(-np.abs(a)) / (1.0 + np.exp(-np.abs(a))) ** 2


@pytest.mark.parametrize(
    ("cell", "slope"),
    [
        (VanillaRNNCell(4, "tanh", dtype="float64"), sech2),
        (VanillaRNNCell(4, "sigmoid", dtype="float64"), logistic_slope),
        (keras.layers.SimpleRNNCell(4, "tanh", dtype="float64"), sech2),
        (keras.layers.SimpleRNNCell(4, "sigmoid", dtype="float32"), logistic_slope),
    ],
    ids=["vanilla tanh", "vanilla sigmoid", "Keras tanh", "Keras sigmoid"],
)
def test_slopes_of_saturated_units_are_accurate(cell, slope):
    cell.build((None, 1))
    # powers of two and halves: every pre-activation is exact in either precision
    W = np.array([[1.0, 0.0, 0.0, 0.5], [0.5, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.25, 0.0, -1.0]])
    a = np.array([19.5, -40.0, 120.0, 300.0])
    cell.set_weights([a[None], W.T, np.zeros(4)])
    traj = rollout(cell, np.ones((1, 1, 1)))
    expected = slope(a)[:, None] * W
    for J in (autodiff(traj)[0, 0], step_jacobians(traj)[0, 0]):
        # exp to 2 eps in either formula, and six more roundings
        assert np.all(np.abs(J - expected) <= 8 * EPS * np.abs(expected))
        assert np.all((J != 0.0) == (W != 0.0))


def lstm_exactly(h, c, x, U, W, b):
    sigmoid, tanh = (lambda a: 1 / (1 + mpmath.exp(-a))), mpmath.tanh
    i, f, g, o = (W[k] * h + U[k] * x + b[k] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru_exactly(h, x, U, W, b, b_recurrent):
    sigmoid, tanh = (lambda a: 1 / (1 + mpmath.exp(-a))), mpmath.tanh
    z, r = (sigmoid(W[k] * h + b_recurrent[k] + U[k] * x + b[k]) for k in (0, 1))
    return z * h + (1 - z) * tanh(U[2] * x + b[2] + r * (W[2] * h + b_recurrent[2]))


def test_saturated_gates_are_accurate():
    """One unit; closed input gate and open output gate far out, where 1 − tanh² is nothing but rounding."""
    x = mpmath.mpf(1)
    U, W, b = [0.0] * 4, [0.5, -0.25, 2.0, 1.0], [-30.0, 3.0, 1.0, -40.0]
    cell = keras.layers.LSTMCell(1, dtype="float64")
    cell.build((None, 1))
    cell.set_weights([np.array([U]), np.array([W]), np.array(b)])
    traj = rollout(cell, np.ones((1, 1, 1)), initial_state=[0.5, 24.0])
    with mpmath.workdps(60):

        def part(index):
            return lambda h, c: lstm_exactly(h, c, x, U, W, b)[index]

        at = (mpmath.mpf(0.5), mpmath.mpf(24))
        exact = [[float(mpmath.diff(part(i), at, order)) for order in ((1, 0), (0, 1))] for i in (0, 1)]
    # pre-activations are sums of at most three numbers under 41, and each slope e^{−|a|} repeats their absolute error:
    # 3·41 eps; c is known to 24·4 eps and enters sech²(c) twice over; ∂c/∂h adds two gates of unlike sign
    for J in (autodiff(traj)[0, 0], step_jacobians(traj)[0, 0]):
        assert np.allclose(J, exact, rtol=4 * (3 * 41 + 2 * 24 * 4) * EPS, atol=0.0)
        assert abs(J[0, 1]) < 1e-30  # the slope of tanh(c), and it is not 0

    U, W = [0.0] * 3, [0.5, 0.25, 1.0]
    b, b_recurrent = [-45.0, 0.5, 20.0], [0.0, 0.0, 1.0]
    cell = keras.layers.GRUCell(1, dtype="float64")
    cell.build((None, 1))
    cell.set_weights([np.array([U]), np.array([W]), np.array([b, b_recurrent])])
    traj = rollout(cell, np.ones((1, 1, 1)), initial_state=[0.5])
    with mpmath.workdps(60):
        exact = float(mpmath.diff(lambda h: gru_exactly(h, x, U, W, b, b_recurrent), mpmath.mpf(0.5)))
    # z, z' (h − h̃) and sech²: sums of positive and negative terms of like size, each good to 4·46 eps
    for J in (autodiff(traj), step_jacobians(traj)):
        assert np.isclose(J[0, 0, 0, 0], exact, rtol=4 * 4 * 46 * EPS, atol=0.0)


# --- slopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_step_jacobians_are_slopes_times_w(name):
    cell = ready(name, seed=4)
    inputs = np.random.default_rng(4).standard_normal((2, 5, FEATURES))
    traj = rollout(cell, inputs, mask=MASK)
    slopes, J = activation_slopes(traj), step_jacobians(traj)
    W = traj.step.recurrent_matrices["W"]
    assert slopes.shape == (2, 5, 3)
    expected = slopes[..., None] * W
    assert np.abs(J - expected)[MASK].max() <= 2 * jacobian_rounding(traj)
    assert np.abs(J - expected)[~MASK].max() > 0.01  # what a masked step would have been
    check_elementwise(traj, J, slopes)


@pytest.mark.parametrize("name", ["lstm", "gru", "stack", "custom", "callable"])
def test_other_cells_have_no_slopes(name):
    traj = random_trajectory(name, seed=5)
    assert activation_slopes(traj) is None
    assert jacobian.pre_activations(traj) is None
    check_elementwise(traj, step_jacobians(traj), None)


def test_an_activation_that_mixes_units_is_refused():
    cell = VanillaRNNCell(3, activation=tf.nn.softmax, seed=0)
    traj = rollout(cell, np.random.default_rng(0).standard_normal((2, 4, FEATURES)))
    J = step_jacobians(traj)
    with pytest.raises(ValueError, match=r"softmax.* does not act on each unit by itself .* batch 0, step 1\)"):
        check_elementwise(traj, J, activation_slopes(traj))


def test_a_kink_is_no_mixing():
    """Tenths that cancel leave rounding for a pre-activation, on either side of 0 by the order of the sum."""
    disagreements = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cell = VanillaRNNCell(4, "relu", dtype="float64")
        cell.build((None, 4))
        cell.set_weights([rng.integers(-3, 4, shape) / 10 for shape in ((4, 4), (4, 4), 4)])
        traj = rollout(cell, rng.integers(-3, 4, (2, 5, 4)) / 10)
        J, slopes = autodiff(traj), activation_slopes(traj)
        disagreements += not np.allclose(J, slopes[..., None] * cell.recurrent_matrix)
        check_elementwise(traj, J, slopes)
    assert disagreements > 0  # or there was no kink to speak of


# --- what cannot be had ----------------------------------------------------------------------------------------------


def test_an_infinite_derivative_names_its_place():
    def rooted(state, inputs):
        return tf.sqrt(tf.abs(state)) * inputs

    initial = np.ones((2, 3))
    initial[1, 2] = 0.0
    inputs = np.ones((2, 3, 3))
    with pytest.raises(ValueError, match=r"rooted is not finite at batch 1, step 1, though the state is"):
        step_jacobians(rollout(rooted, inputs, initial))
    inputs[0, 1] = 0.0
    with pytest.raises(ValueError, match=r"not finite at batch 0, step 3"):
        step_jacobians(rollout(rooted, inputs, np.ones(3)))
    mask = np.ones((2, 3), bool)
    mask[0, 2] = False
    J = step_jacobians(rollout(rooted, inputs, np.ones(3), mask))
    assert np.array_equal(J[0, 2], np.eye(3))


@pytest.mark.parametrize("method", ["autodiff", "closed_form"])
def test_derivatives_whose_sum_overflows_are_finite(method):
    cell = VanillaRNNCell(2, "linear", dtype="float64")
    cell.build((None, 1))
    cell.set_weights([np.zeros((1, 2)), np.full((2, 2), 1e308), np.zeros(2)])
    J = step_jacobians(rollout(cell, np.zeros((1, 2, 1))), method=method)
    assert np.array_equal(J, np.full((1, 2, 2, 2), 1e308))


def test_a_step_that_cannot_be_differentiated_is_no_zero():
    def outside(state, inputs):
        return tf.ensure_shape(tf.numpy_function(np.tanh, [state], tf.float64), [None, 3])

    traj = rollout(outside, np.ones((1, 2, 1)), np.ones(3))
    with pytest.raises(ValueError, match="does not depend on the old one in a way that TensorFlow can differentiate"):
        step_jacobians(traj)

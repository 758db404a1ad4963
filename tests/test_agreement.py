"""Independent routes to ∂h_T/∂h_t agree: each below shares no code with the step Jacobians but the step itself."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import EPS, MASK, STEPS, product_rounding, random_trajectory, step_rounding

from gradlab.gradients import state_gradients
from gradlab.jacobian import step_jacobians

CASES = [("vanilla tanh", False), ("lstm", True), ("gru", False), ("stack", True), ("custom", False)]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    """Return (trajectory, step Jacobians, their products P_t [B, T, n, n], error bound in norm [B, T])."""
    name, masked = request.param
    traj = random_trajectory(name, seed=21, scale=0.6, mask=MASK if masked else None)
    J = step_jacobians(traj)
    P = J.copy()
    for t in reversed(range(STEPS - 1)):
        P[:, t] = P[:, t + 1] @ J[:, t]
    # the routes differ by the rounding of each Jacobian and product, and by where their states have been rounded to,
    # which moves a Jacobian by at most its Lipschitz constant: (n·weight)² for every cell here
    n = J.shape[-1]
    stretch = np.maximum(1.0, np.linalg.norm(J, 2, axis=(2, 3)))
    weight = max([1.0, *(float(np.abs(w).max()) for w in traj.step.weights)])
    moved = (n * weight) ** 2 * n * step_rounding(traj) * stretch.prod(axis=1, keepdims=True) ** 2 * STEPS**2
    bound = 2 * product_rounding(traj, J) + 2 * moved
    assert (bound < 1e-5).all()  # or there would be no test
    return traj, J, P, bound


def unrolled(traj, t, state):
    """Return h_T from h_t, [B·m, n] for m states to each sequence, by the eager or traced step."""
    m = state.shape[0] // len(traj.inputs)
    for s in range(t, STEPS):
        new = traj.step(state, tf.constant(np.repeat(traj.inputs[:, s], m, axis=0)))
        state = new if traj.mask is None else tf.where(np.repeat(traj.mask[:, s, None], m, axis=0), new, state)
    return state


def agree(ours, theirs, bound):
    return (np.linalg.norm(ours - theirs, axis=(-2, -1)) <= bound).all()


def test_batch_jacobian_through_the_unrolled_loop(case):
    traj, _, P, bound = case

    @tf.function
    def jacobians(states):
        with tf.GradientTape() as tape:
            tape.watch(states)
            end = unrolled(traj, 0, states)
        return tape.batch_jacobian(end, states)

    assert agree(P[:, 0], jacobians(tf.constant(traj.states[:, 0])).numpy(), bound[:, 0])


def test_rows_by_a_persistent_tape_through_the_unrolled_loop(case):
    traj, _, P, bound = case
    with tf.GradientTape(persistent=True) as tape:
        states = [tf.constant(traj.states[:, 0])]
        tape.watch(states[0])
        for t in range(STEPS):
            new = traj.step(states[-1], tf.constant(traj.inputs[:, t]))
            states.append(new if traj.mask is None else tf.where(traj.mask[:, t, None], new, states[-1]))
        units = tf.unstack(states[-1], axis=-1)
    rows = [np.stack(tape.gradient(unit, states[:-1]), axis=1) for unit in units]
    assert agree(P, np.stack(rows, axis=2), bound)


def test_columns_by_forward_mode(case):
    traj, _, P, bound = case
    B, n = len(P), P.shape[-1]
    for t in (0, STEPS - 2):
        at = tf.constant(np.repeat(traj.states[:, t], n, axis=0))
        with tf.autodiff.ForwardAccumulator(at, tf.constant(np.tile(np.eye(n), (B, 1)))) as accumulator:
            end = unrolled(traj, t, at)
        columns = accumulator.jvp(end).numpy().reshape(B, n, n)
        assert agree(P[:, t], columns.swapaxes(1, 2), bound[:, t])


def test_rows_by_state_gradients(case):
    traj, _, P, bound = case
    for i in range(P.shape[-1]):
        g = state_gradients(traj, None, lambda states, i=i: states[:, -1, i])
        assert (np.linalg.norm(g.total[:, :-1] - P[:, :, i], axis=-1) <= bound).all()


def test_log_singular_values_are_those_of_the_product(case):
    from gradlab.products import log_singular_values

    _, J, P, _ = case
    ours = log_singular_values(J)
    sigma = np.linalg.svd(P, compute_uv=False)
    # P formed in float64 errs by k·n·eps·Π‖J‖, its svd by n·eps·‖P‖; Weyl: every σ moves by no more than this in all.
    # ln σ then errs by that over σ: say so only where it is small
    n = J.shape[-1]
    norms = np.flip(np.cumprod(np.flip(np.linalg.norm(J, axis=(2, 3)), 1), 1), 1)
    lag = STEPS - np.arange(STEPS)
    error = ((lag + 1) * n * EPS * norms)[..., None] / sigma
    known = error < 1e-4
    assert known[..., 0].all()
    assert known.mean() > 0.5
    assert (np.abs(ours - np.log(sigma))[known] <= 2 * error[known] + 8 * EPS * np.abs(ours[known])).all()


def test_a_trained_model_is_differentiated_as_it_predicts():
    """Against finite differences of a whole Keras model in float64: the cell inside is the one that was trained."""
    layer = keras.layers.GRU(3, dtype="float64")
    model = keras.Sequential([keras.layers.Input((STEPS, 2)), layer, keras.layers.Dense(1, dtype="float64")])
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, STEPS, 2)).astype("float32"), rng.standard_normal((8, 1))
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    W, b = model.layers[-1].get_weights()
    g = state_gradients(layer, x, lambda states: tf.linalg.matmul(states[:, -1], tf.constant(W))[:, 0] + b[0])
    assert np.abs(g.loss - model(x).numpy()[:, 0]).max() <= 50 * EPS * np.abs(W).sum() + 50 * EPS
    shift = 1e-5
    up, down = (layer(x, initial_state=tf.constant([[s, 0.0, 0.0]] * 8, tf.float64)) for s in (shift, -shift))
    difference = (up - down).numpy() @ W[:, 0] / (2 * shift)
    # h²·f'''/6 with f''' of order 10 at most here, and 100 eps / h of rounding
    assert np.abs(g.total[:, 0, 0] - difference).max() <= 10 * shift**2 + 100 * EPS / shift

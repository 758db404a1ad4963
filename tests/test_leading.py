from __future__ import annotations

import cases
import cell_cases
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import gradlab as gl
from gradlab.frames import _Graded, _graded_svd, _groups
from gradlab.leading import leading_singular_values
from gradlab.products import log_singular_values


def linear_run(W: np.ndarray, T: int, B: int = 1) -> gl.Trajectory:
    """h ← W h from 0, so that P_t = W^(T−t)."""
    matrix = tf.constant(W.T)
    step = gl.as_step(lambda state, inputs: tf.matmul(state, matrix), state_size=len(W), input_size=1)
    return gl.rollout(step, np.zeros((B, T, 1)))


def driven(cell, T: int, B: int = 2, mask=None) -> gl.Trajectory:
    return gl.rollout(cell, np.random.default_rng(0).standard_normal((B, T, 2)), mask=mask)


def dense(traj: gl.Trajectory, times, k: int) -> np.ndarray:
    return log_singular_values(gl.step_jacobians(traj))[:, list(times), :k]


# --- Against the dense answer ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a step Jacobian is singular:RuntimeWarning")  # the dense route, on "plain"
@pytest.mark.parametrize("name", ["vanilla callable", "gru", "custom with a layer", "plain", "callable"])
def test_every_kind_of_cell_with_a_mask(name: str) -> None:
    traj = cell_cases.random_trajectory(name, 3, mask=cell_cases.MASK)
    k = min(2, traj.step.state_size)
    found = leading_singular_values(traj, k, times=range(cell_cases.STEPS))
    # these states are small, so the frame is whole and nothing but rounding is left: 5 steps of a few ε·κ, κ < 1e3
    np.testing.assert_allclose(found.log_values, dense(traj, range(cell_cases.STEPS), k), atol=1e-11)
    assert found.converged.all()
    assert (found.iterations == 1).all()


LARGE = {
    "tanh": lambda: gl.VanillaRNNCell(70, recurrent_gain=1.5, seed=0),
    "tanh saturated": lambda: gl.VanillaRNNCell(70, recurrent_gain=6.0, seed=1),
    "relu, clustered": lambda: gl.VanillaRNNCell(70, activation="relu", recurrent_gain=1.4, seed=2),
    "lstm": lambda: keras.layers.LSTMCell(35, kernel_initializer=keras.initializers.GlorotUniform(0)),
    "gru": lambda: keras.layers.GRUCell(70, recurrent_initializer=keras.initializers.Orthogonal(1.0, seed=0)),
}


@pytest.mark.parametrize("name", LARGE)
def test_blocks_agree_with_the_dense_spectrum(name: str) -> None:
    traj, k, times = driven(LARGE[name](), 120), 6, (0, 70, 117)
    found = leading_singular_values(traj, k, times=times, vectors=True)
    expected = dense(traj, times, k)
    error = np.abs(found.log_values - expected)
    # asked for 1e-8, an estimate from residuals that may be ten times too small in a cluster; rounding stays below:
    # 120 steps of ε·κ, κ up to 1e4 in saturated ones, 3e-10
    assert error.max() < 1e-7
    assert (error <= 10 * found.error + 1e-9).all()
    assert found.converged.all()
    # a Ritz value is never above the value it stands for
    assert (found.log_values <= expected + 1e-9).all()


def test_vectors_are_those_of_the_product() -> None:
    traj = driven(LARGE["tanh"](), 12)
    found = leading_singular_values(traj, 5, times=(4, 0), vectors=True, tolerance=1e-11)
    J = gl.step_jacobians(traj)
    for i, t in enumerate((4, 0)):
        for b in range(2):
            P = np.linalg.multi_dot(J[b, t:][::-1])
            u, v, s = found.left[b, i], found.right[b, i], np.exp(found.log_values[b, i])
            np.testing.assert_allclose(u.T @ u, np.eye(5), atol=1e-13)
            np.testing.assert_allclose(v.T @ v, np.eye(5), atol=1e-13)
            np.testing.assert_allclose(P @ v, u * s, atol=1e-12 * s[0])
            back = np.linalg.norm(P.T @ u - v * s, axis=0) / s
            # the residual is what it says: the sine of an angle where this is its tangent, up to rounding
            np.testing.assert_allclose(found.residual[b, i], back, rtol=0.05, atol=1e-11)


def test_several_times_are_the_single_ones() -> None:
    traj = driven(LARGE["tanh"](), 150)
    together = leading_singular_values(traj, 3, times=[140, 0, 60, 60])
    assert together.log_values.shape == together.residual.shape == (2, 4, 3)
    assert together.times.tolist() == [140, 0, 60, 60]
    np.testing.assert_array_equal(together.log_values[:, 2], together.log_values[:, 3])
    for i, t in enumerate((140, 0)):
        alone = leading_singular_values(traj, 3, times=t)
        # each is within the tolerance of the truth
        np.testing.assert_allclose(together.log_values[:, i], alone.log_values[:, 0], atol=1e-7)


# --- Closed forms ------------------------------------------------------------------------------------------------


def test_values_far_below_what_float64_holds() -> None:
    eigenvalues = np.concatenate([[1.5, 0.9, 1e-3, 1e-9], np.full(56, 1e-12)])
    V = cases.random_orthogonal(60, np.random.default_rng(0))
    T = 200
    found = leading_singular_values(linear_run((V * eigenvalues) @ V.T, T), 4)
    # W holds its eigenvalues to ε·1.5: T·ε·1.5/λ_i in ln σ, a few times over
    error = np.abs(found.log_values[0, 0] - T * np.log(eigenvalues[:4]))
    assert (error <= 20 * T * 2.0**-52 * 1.5 / eigenvalues[:4]).all()
    assert found.iterations[0] == 1


def test_an_orthogonal_network_has_one_cluster() -> None:
    W = cases.random_orthogonal(60, np.random.default_rng(1))
    found = leading_singular_values(linear_run(W, 100), 3, times=(0, 99))
    np.testing.assert_allclose(found.log_values, 0.0, atol=100 * 60 * 2.0**-52)
    assert found.converged.all()


def test_masked_steps_are_the_identity() -> None:
    mask = np.ones((2, 60), bool)
    mask[1, 30:] = False
    traj = driven(LARGE["tanh"](), 60, mask=mask)
    found = leading_singular_values(traj, 3, times=(0, 40))
    np.testing.assert_allclose(found.log_values[1, 1], 0.0, atol=1e-13)
    np.testing.assert_allclose(found.log_values, dense(traj, (0, 40), 3), atol=1e-7)


def test_zero_singular_values() -> None:
    dead = np.zeros((4, 4))
    dead[0, 1] = 2.0
    found = leading_singular_values(linear_run(dead, 1), 3)
    np.testing.assert_allclose(found.log_values[0, 0, 0], np.log(2.0), rtol=1e-14)
    assert np.isneginf(found.log_values[0, 0, 1:]).all()
    assert (found.residual[0, 0, 1:] == 0).all()
    assert found.converged.all()
    assert np.isneginf(leading_singular_values(linear_run(dead, 3), 2).log_values).all()


def test_low_rank_weights_are_announced() -> None:
    rng = np.random.default_rng(0)
    W = np.outer(rng.standard_normal(9), rng.standard_normal(9))
    with pytest.warns(RuntimeWarning, match="vanished in rounding"):
        found = leading_singular_values(linear_run(W, 5), 2)
    assert np.isfinite(found.log_values[0, 0, 0])
    assert np.isneginf(found.log_values[0, 0, 1])


def test_what_is_not_converged_says_so() -> None:
    traj = driven(LARGE["tanh"](), 3)
    with pytest.warns(RuntimeWarning, match=r"t = \[2\] are not converged.*raise max_iterations"):
        found = leading_singular_values(traj, 4, times=2, max_iterations=1)
    assert found.converged.tolist() == [False]
    assert found.error.max() > 1e-8
    # and the residual bounds the distance to a true value: |σ − σ_j| ≤ ρσ for some j
    s = np.exp(dense(traj, (2,), 70)[:, 0])
    nearest = np.abs(np.exp(found.log_values[:, 0])[..., None] - s[:, None]).min(axis=2)
    slack = np.tan(np.arcsin(np.minimum(found.residual[:, 0], 0.999)))
    assert (nearest <= slack * np.exp(found.log_values[:, 0])).all()


# --- The small product -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 7, 40]), st.floats(0, 40), st.integers(0, 99))
def test_graded_products_of_triangles(m: int, L: int, grading: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    R = np.triu(rng.standard_normal((L, 1, m, m))) + 2 * np.eye(m)
    R *= np.exp(-grading * np.sort(rng.uniform(0, 1, (L, 1, m, 1)), axis=2))  # directions in order, as in a frame
    product = _Graded.identity(1, m)
    for factor in R:
        product = product.times(factor)
    values, left, right = _graded_svd(product)
    # two gradings of the same product; L steps of ε·κ, κ of a triangle but for the scales of its rows
    kappa = np.linalg.cond(R[:, 0] / np.linalg.norm(R[:, 0], axis=2, keepdims=True)).max()
    np.testing.assert_allclose(values[0], log_singular_values(R[:, 0])[0], rtol=1e-14, atol=100 * L * 2.0**-52 * kappa)
    for Q in (left[0], right[0]):
        np.testing.assert_allclose(Q.T @ Q, np.eye(m), atol=1e-13)
    if L == 1:
        np.testing.assert_allclose((left[0] * np.exp(values[0])) @ right[0].T, R[0, 0], atol=1e-13)


def test_groups_part_only_where_rows_do_not_act_on_each_other() -> None:
    assert _groups(np.array([0.0, -10, -300, -310, -np.inf])) == [(2, 4), (0, 2)]
    assert _groups(np.array([-np.inf])) == []
    chain = -50.0 * np.arange(50)  # no wide gap, and yet too long for one float64 matrix: cut somewhere
    assert sorted(i for group in _groups(chain) for i in range(*group)) == list(range(50))
    assert len(_groups(chain)) > 1


# --- Inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 4}, ValueError, "k must be at most the length of the carried state n = 3, got 4"),
        ({"k": 1.0}, TypeError, "k must be a positive integer"),
        ({"times": 5}, ValueError, "times must lie in 0 … T−1 = 4"),
        ({"times": (0, -1)}, ValueError, "times must lie in 0"),
        ({"times": ()}, (ValueError, TypeError), "times"),
        ({"times": 0.5}, TypeError, "times must be an integer t or several, got 0.5"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a positive number"),
        ({"tolerance": float("nan")}, ValueError, "tolerance"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], says: str) -> None:
    traj = cell_cases.random_trajectory("vanilla tanh", 0)
    with pytest.raises(error, match=says):
        leading_singular_values(traj, **({"k": 1} | arguments))


def test_jacobians_are_not_a_trajectory() -> None:
    with pytest.raises(TypeError, match="traj must be a Trajectory, got ndarray"):
        leading_singular_values(np.ones((1, 2, 3, 3)), 1)


def test_a_derivative_that_is_not_finite() -> None:
    step = gl.as_step(lambda state, inputs: tf.sqrt(tf.abs(state)), state_size=2, input_size=1)
    with pytest.raises(ValueError, match="not finite between steps 1 and 3"):
        leading_singular_values(gl.rollout(step, np.zeros((1, 3, 1))), 1)


def test_the_seed_only_moves_what_is_within_the_tolerance() -> None:
    traj = driven(LARGE["gru"](), 40)
    one, same, other = (leading_singular_values(traj, 3, seed=seed).log_values for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    np.testing.assert_allclose(one, other, atol=1e-7)

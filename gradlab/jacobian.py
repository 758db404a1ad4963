"""Step Jacobians J_t = ∂h_t/∂h_{t−1} along a trajectory, and the slopes φ'(a_t) where they exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from gradlab import activations
from gradlab.step import StepFunction
from gradlab.trajectory import Trajectory
from gradlab.validation import Array

# entries of ∂h/∂h per call of the graph; autodiff holds about ten arrays of this size at once: 0.3 GiB
_CHUNK_ENTRIES = 1 << 22


def step_jacobians(traj: Trajectory, *, jit_compile: bool = False) -> Array:
    """Return the Jacobian of every step, J_t = ∂h_t/∂h_{t−1}, rows = outputs.

    One ``tf.GradientTape.batch_jacobian`` over the B·T flattened steps, in one traced graph that is kept per
    architecture, in chunks where the memory of all steps at once would not fit. A masked step is the identity.

    Args:
        traj: what `rollout` returns.
        jit_compile: compile the graph with XLA: faster for gated cells after seconds of compiling.

    Returns:
        float64 [B, T, n, n]; array index s holds t = s + 1.

    Raises:
        ValueError: a derivative that is NaN or infinite (names the batch entry and the step), or that TensorFlow
            cannot take.

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(4, activation="linear", seed=0)
        >>> J = step_jacobians(gl.rollout(cell, np.zeros((2, 7, 3))))
        >>> bool(np.allclose(J[1, 5], cell.recurrent_matrix))
        True
    """
    B, T, d = traj.inputs.shape
    n = traj.step.state_size
    before, inputs = traj.states[:, :-1].reshape(B * T, n), traj.inputs.reshape(B * T, d)
    jacobian = traj.step.function.graph(_jacobian_graph, bool(jit_compile))
    J = np.empty((B * T, n, n))
    rows = max(1, _CHUNK_ENTRIES // n**2)
    for start in range(0, B * T, rows):
        chunk = slice(start, start + rows)
        J[chunk] = jacobian(traj.step.weights, tf.constant(before[chunk]), tf.constant(inputs[chunk])).numpy()
    J = J.reshape(B, T, n, n)
    if traj.mask is not None:
        J[~traj.mask] = np.eye(n)
    good = np.isfinite(J).all(axis=(2, 3))
    if not good.all():
        b, s = (int(i) for i in np.unravel_index(int(np.argmin(good)), good.shape))
        raise ValueError(
            f"the derivative of {traj.step.description} is not finite at batch {b}, step {s + 1}, though the state is;"
            " look for a square root, a division or a norm at 0 in the cell"
        )
    return J


def _jacobian_graph(step: StepFunction, jit_compile: bool) -> Any:
    """Return the traced (weights, h [N, n], x [N, d]) → ∂step/∂h [N, n, n]."""

    @tf.function(reduce_retracing=True, jit_compile=jit_compile)
    def jacobian(weights: Any, state: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(state)
            new_state = step(weights, state, inputs)
        check_connected(tape.gradient(new_state, state))  # batch_jacobian would say 0
        return tape.batch_jacobian(new_state, state)

    return jacobian


def check_connected(gradient: Any) -> None:
    """Raise where TensorFlow finds no way from the new state back to the old one (None), which is not a zero."""
    if gradient is None:
        raise ValueError(
            "the new state does not depend on the old one in a way that TensorFlow can differentiate;"
            " make the step of TensorFlow operations on its `state` argument"
        )


def activation_slopes(traj: Trajectory) -> Array | None:
    """Return φ'(a_t) at every step of a simple RNN, h_t = φ(a_t), a_t = W h_{t−1} + U x_t + b.

    Args:
        traj: what `rollout` returns.

    Returns:
        float64 [B, T, n]; None where the cell is not of that form. At a masked step it is what the step would have
        had, had it been taken.

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(4, activation="tanh", seed=0)
        >>> activation_slopes(gl.rollout(cell, np.zeros((1, 3, 2))))[0, 0]
        array([1., 1., 1., 1.])
    """
    recurrence = traj.step.recurrence
    if recurrence is None:
        return None
    a = pre_activations(traj)
    assert a is not None
    return activations.slopes(recurrence.activation, tf.constant(a)).numpy()


def pre_activations(traj: Trajectory) -> Array | None:
    """Return a_t = W h_{t−1} + U x_t + b of a simple RNN, float64 [B, T, n]; None for every other cell."""
    recurrence = traj.step.recurrence
    if recurrence is None:
        return None
    drive = traj.inputs @ recurrence.input_matrix.T + recurrence.bias
    return traj.states[:, :-1] @ recurrence.recurrent_matrix.T + drive


def check_elementwise(traj: Trajectory, J: Array, slopes: Array) -> None:
    """Raise unless J_t = diag φ'(a_t)·W: a callable activation that mixes units has no slopes, and no chain of bounds.

    Raises:
        ValueError: the step Jacobians are not diag φ'·W.
    """
    recurrence = traj.step.recurrence
    if recurrence is None:
        return
    W = recurrence.recurrent_matrix
    taken = np.ones(J.shape[:2], bool) if traj.mask is None else traj.mask
    # both sides come from the same a up to a few roundings of sums over n + d terms, and φ' amplifies those by its own
    # Lipschitz constant; 1e-6 of the largest entry is far above that and far below any real mixing of units
    allowance = 1e-6 * float(np.abs(J).max(initial=0.0))
    # at a kink (relu at 0) two roundings of the same a may fall on either side, and either slope will do
    a = pre_activations(traj)
    assert a is not None
    sizes = np.abs(traj.states[:, :-1]) @ np.abs(W.T) + np.abs(traj.inputs) @ np.abs(recurrence.input_matrix.T)
    rounding = 2.0**-50 * (len(W) + traj.inputs.shape[2]) * (sizes + np.abs(recurrence.bias))
    beside = [activations.slopes(recurrence.activation, tf.constant(a + s * rounding)).numpy() for s in (-1.0, 1.0)]
    for b in range(J.shape[0]):
        distances = [np.abs(J[b] - one[b][:, :, None] * W).max(axis=2) for one in (slopes, *beside)]
        wrong = np.minimum.reduce(distances).max(axis=1) > allowance
        if (wrong & taken[b]).any():
            raise ValueError(
                f"the activation of {traj.step.description} does not act on each unit by itself (J differs from"
                f" diag φ'·W at batch {b}, step {int(np.argmax(wrong & taken[b])) + 1}); wrap it in a cell of its own"
            )

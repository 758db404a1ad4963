"""Step Jacobians J_t = ∂h_t/∂h_{t−1} along a trajectory, and the slopes φ'(a_t) where they exist."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradlab import activations
from gradlab.closed_form import Formula, closed_form
from gradlab.cores import over_cores
from gradlab.step import StepFunction
from gradlab.trajectory import Trajectory
from gradlab.validation import Array

# entries of ∂h/∂h per call of the graph; autodiff holds about ten arrays of this size at once: 0.3 GiB
_CHUNK_ENTRIES = 1 << 22
# entries per call of a formula: 4 MiB, which a core's cache holds while BLAS writes them row by row
_CACHE_ENTRIES = 1 << 19


class NotFiniteError(ValueError):
    """A derivative is NaN or infinite where the state is finite."""


def step_jacobians(
    traj: Trajectory,
    *,
    method: Literal["auto", "autodiff", "closed_form"] = "auto",
    jit_compile: bool = False,
) -> Array:
    """Return the Jacobian of every step, J_t = ∂h_t/∂h_{t−1}, rows = outputs.

    The general route, for whatever TensorFlow can differentiate, is one ``tf.GradientTape.batch_jacobian`` over the B·T
    flattened steps, in one traced graph that is kept per architecture, in chunks where the memory of all steps at once
    would not fit. For the simple RNN, the LSTM and the GRU there are formulas, which are the same to rounding and many
    times faster (see `gradlab.closed_form`). A masked step is the identity.

    Args:
        traj: what `rollout` returns.
        method: "autodiff" is the general route. "closed_form" is the formula, an error where there is none. "auto"
            takes the formula for exactly the classes `VanillaRNNCell`, SimpleRNNCell, LSTMCell and GRUCell with
            activations among tanh, sigmoid, relu and linear, if the formula's own h_t are the trajectory's (they are
            not if the cell's settings were changed after the run); and autodiff for all else: subclasses, other
            activations, stacks, callables, cells without a float64 version, and where `jit_compile` asks for it.
        jit_compile: compile the graph of autodiff with XLA: faster for gated cells after seconds of compiling.

    Returns:
        float64 [B, T, n, n]; array index s holds t = s + 1.

    Raises:
        NotFiniteError: a ValueError: a derivative that is NaN or infinite (names the batch entry and the step).
        ValueError: a derivative that TensorFlow cannot take; an unknown `method`; "closed_form" for a cell without a
            formula, or together with `jit_compile`.
        TypeError: something that is not a `Trajectory`.

    Warns:
        RuntimeWarning: autodiff of a function that gradlab does not know gave a row of exact zeros: a dead unit, or one
            saturated past what its derivative resolves.

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(4, activation="linear", seed=0)
        >>> J = step_jacobians(gl.rollout(cell, np.zeros((2, 7, 3))))
        >>> bool(np.allclose(J[1, 5], cell.recurrent_matrix))
        True
    """
    _check_trajectory(traj)
    if method not in ("auto", "autodiff", "closed_form"):
        raise ValueError(f"method must be 'auto', 'autodiff' or 'closed_form', got {method!r}")
    if method == "closed_form" and jit_compile:
        raise ValueError("jit_compile=True is for autodiff, got it with method='closed_form'; leave one of them out")
    formula = None if method == "autodiff" or jit_compile else closed_form(traj.step)
    made = None if formula is None else _by_formula(traj, formula)
    if made is None and method == "closed_form":
        raise ValueError(
            "method='closed_form' needs a VanillaRNNCell, SimpleRNNCell, LSTMCell or GRUCell itself, with activations"
            f" among tanh, sigmoid, relu and linear, as it was when the trajectory was made; got"
            f" {traj.step.description}{' with other settings by now' if formula else ''}; use method='auto'"
        )
    if made is None:
        made = _by_autodiff(traj, jit_compile)
        _warn_of_zero_rows(traj, made.J)
    J, finite = made
    if traj.mask is not None:
        J[~traj.mask] = np.eye(traj.step.state_size)
        finite |= ~traj.mask
    if not finite.all():
        b, s = (int(i) for i in np.unravel_index(int(np.argmin(finite)), finite.shape))
        raise NotFiniteError(
            f"the derivative of {traj.step.description} is not finite at batch {b}, step {s + 1}, though the state"
            " is; look for a square root, a division or a norm at 0 in the cell"
        )
    return J


def _check_trajectory(traj: Any) -> None:
    """Raise unless `traj` is one."""
    if not isinstance(traj, Trajectory):
        raise TypeError(
            f"traj must be a Trajectory, got {type(traj).__name__}; gl.rollout(cell, inputs) makes one of a cell"
        )


def _warn_of_zero_rows(traj: Trajectory, J: Array) -> None:
    """Warn where autodiff of an unknown function may have rounded a slope to zero.

    TensorFlow differentiates tanh from its output, 1 − tanh², which is exactly 0 from a = 19.5 on. The functions that
    gradlab knows are differentiated from the pre-activation, and a zero of theirs is a zero.
    """
    step = traj.step
    known = bool(step.recurrent_matrices) and (step.recurrence is None or step.recurrence.activation_name is not None)
    if known or J[:, :, 0].size == 0 or J.any(axis=3).all():
        return
    warnings.warn(
        f"some rows of ∂h_t/∂h_{{t−1}} of {step.description} are exactly zero: dead units, or units saturated past what"
        " autodiff resolves (tf.tanh: |a| > 19); give the cell an activation by name, or use gradlab.activations.tanh"
        " in your own step, to tell them apart",
        RuntimeWarning,
        stacklevel=3,
    )


class _Made(NamedTuple):
    """Step Jacobians and where they are finite, which is looked for while each chunk is in the cache."""

    J: Array  # [B, T, n, n]
    finite: NDArray[np.bool_]  # [B, T]


def _by_formula(traj: Trajectory, formula: Formula) -> _Made | None:
    """Return J from the closed form; None where it does not lead from each state to the next."""
    (B, T, d), n = traj.inputs.shape, traj.step.state_size
    before, inputs = traj.states[:, :-1].reshape(B * T, n), traj.inputs.reshape(B * T, d)
    J, after, finite = np.empty((B * T, n, n)), np.empty((B * T, n)), np.empty(B * T, bool)

    def fill(chunk: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named by the caller
            after[chunk] = formula(before[chunk], inputs[chunk], J[chunk])
        finite[chunk] = _finite_steps(J[chunk])

    # on all cores for the sake of J's memory too: getting it from the system takes longer than filling it
    over_cores(fill, _chunks(B * T, max(1, _CACHE_ENTRIES // n**2)))
    if not leads_on(traj, after.reshape(B, T, n)):
        return None
    return _Made(J.reshape(B, T, n, n), finite.reshape(B, T))


def _chunks(steps: int, size: int) -> list[slice]:
    """Return the slices of `size` steps, the last one shorter, that make up all of them."""
    return [slice(start, start + size) for start in range(0, steps, size)]


def _finite_steps(J: Array) -> NDArray[np.bool_]:
    """Return [N], whether each of J [N, n, n] is finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(J.sum(axis=(1, 2)))
    if not finite.all():  # seldom; a sum may overflow where no entry does
        finite[~finite] = np.isfinite(J[~finite]).all(axis=(1, 2))
    return finite


def leads_on(traj: Trajectory, after: Array) -> bool:
    """Return whether a formula's own states h_1 … h_T [B, T, n] are those of the trajectory."""
    d, n = traj.inputs.shape[2], traj.step.state_size
    # far above any rounding of the sums over n + d terms, far below what another activation would do
    weight = max(1.0, *(float(np.abs(w).max(initial=0.0)) for w in traj.step.weights))
    size = 1.0 + float(np.abs(traj.states).max())
    allowance = 1e-9 * size * weight * (n * size + d * float(np.abs(traj.inputs).max()))
    wrong = np.abs(after - traj.states[:, 1:]).max(axis=2)
    if traj.mask is not None:
        wrong[~traj.mask] = 0.0
    return bool((wrong <= allowance).all())


def _by_autodiff(traj: Trajectory, jit_compile: bool) -> _Made:
    """Return J from one `batch_jacobian` over the flattened steps."""
    (B, T, d), n = traj.inputs.shape, traj.step.state_size
    before, inputs = traj.states[:, :-1].reshape(B * T, n), traj.inputs.reshape(B * T, d)
    jacobian = traj.step.function.graph(_jacobian_graph, bool(jit_compile))
    J, finite = np.empty((B * T, n, n)), np.empty(B * T, bool)
    for chunk in _chunks(B * T, max(1, _CHUNK_ENTRIES // n**2)):
        J[chunk] = jacobian(traj.step.weights, tf.constant(before[chunk]), tf.constant(inputs[chunk])).numpy()
        finite[chunk] = _finite_steps(J[chunk])
    return _Made(J.reshape(B, T, n, n), finite.reshape(B, T))


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
    _check_trajectory(traj)
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

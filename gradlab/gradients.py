"""The gradient of a loss with respect to every state, split into what came directly and what came back through time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from gradlab.jacobian import NotFiniteError, check_connected
from gradlab.step import StepFunction
from gradlab.trajectory import Trajectory, as_trajectory
from gradlab.validation import Array

_NONE = -(2.0**40)  # the binary exponent of a gradient that is exactly zero
_LN2 = float(np.log(2.0))


@dataclass(frozen=True, eq=False)
class StateGradients:
    """∂L/∂h_t for every t, each array [B, T+1, n] with index t = 0 … T.

    The norms are carried in log scale and stay right where the arrays themselves underflow to 0 or overflow.

    Attributes:
        total: ∂L/∂h_t, everything that h_t changes.
        direct: the partial derivative of the loss with respect to its own argument h_t, later states held fixed.
        recurrent: total − direct = (∂h_{t+1}/∂h_t)ᵀ ∂L/∂h_{t+1}, what came back through time; 0 at t = T.
        log_total_norm: ln‖total‖ [B, T+1], −∞ where it is exactly zero.
        log_direct_norm: ln‖direct‖ [B, T+1].
        log_recurrent_norm: ln‖recurrent‖ [B, T+1].
        loss: L as the loss function returned it, [B] or scalar.
    """

    total: Array
    direct: Array
    recurrent: Array
    log_total_norm: Array
    log_direct_norm: Array
    log_recurrent_norm: Array
    loss: Array


def state_gradients(
    cell: Any,
    inputs: ArrayLike | None,
    loss: Callable[[tf.Tensor], tf.Tensor],
    *,
    initial_state: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> StateGradients:
    """Return ∂L/∂h_t for every t by stepping the cell backwards.

    g_T = ∂L/∂h_T (direct), g_t = ∂L/∂h_t (direct) + J_{t+1}ᵀ g_{t+1}. The gradient with respect to a Keras layer's
    *output tensor* is a different thing: it leaves out the path through the recurrence inside the layer, and is
    exactly 0 for every t < T when the loss reads the last output only.

    Args:
        cell: anything that `as_step` takes, or a `Trajectory` (then `inputs` is not needed: pass None).
        inputs: x_1 … x_T [B, T, d].
        loss: maps states [B, T+1, n], a float64 tensor, to the loss, [B] or scalar. It sees the full carried state;
            masked steps repeat the state, so ``states[:, -1]`` is the last one that counts.
        initial_state: h_0, see `rollout`.
        mask: [B, T], see `rollout`.

    Returns:
        `StateGradients`.

    Raises:
        ValueError: the loss does not depend on the states, is not finite, or has a wrong shape; a step that
            TensorFlow cannot differentiate.
        TypeError: the loss is not callable.

    Source:
        Werbos 1990, backpropagation through time; the scaling by powers of two is ours.

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(4, activation="linear", recurrent_initializer="identity", recurrent_gain=0.5)
        >>> g = state_gradients(cell, np.zeros((1, 3, 2)), lambda states: states[:, -1, 0])
        >>> g.total[0, :, 0]
        array([0.125, 0.25 , 0.5  , 1.   ])
    """
    traj = as_trajectory(cell, inputs, initial_state, mask)
    value, direct = _direct_gradient(traj, loss)
    B, T, _ = traj.inputs.shape
    taken = np.ones((B, T), bool) if traj.mask is None else traj.mask
    backward = traj.step.function.graph(_backward_graph)
    total, recurrent, exponent, log_recurrent = (
        out.numpy()
        for out in backward(
            traj.step.weights,
            tf.constant(traj.states.swapaxes(0, 1)),
            tf.constant(traj.inputs.swapaxes(0, 1)),
            tf.constant(taken.T),
            tf.constant(direct.swapaxes(0, 1)),
        )
    )
    if not np.isfinite(total).all() or not np.isfinite(recurrent).all():
        raise NotFiniteError(
            f"the derivative of {traj.step.description} is not finite along this trajectory;"
            " gl.step_jacobians(traj) names the step"
        )
    scale = np.clip(exponent, -5000, 5000).astype(np.int64)
    with np.errstate(over="ignore", under="ignore"):  # the log norms carry what does not fit
        total_array, recurrent_array = (np.ldexp(one, scale[..., None]).swapaxes(0, 1) for one in (total, recurrent))
    return StateGradients(
        total=total_array,
        direct=direct,
        recurrent=recurrent_array,
        log_total_norm=(log_norm(total) + exponent * _LN2).T,
        log_direct_norm=log_norm(direct),
        log_recurrent_norm=log_recurrent.T,
        loss=value,
    )


def log_norm(vectors: Array) -> Array:
    """Return ln‖v‖ over the last axis, −∞ for zero vectors, free of underflow in the squares."""
    largest = np.abs(vectors).max(axis=-1)
    scaled = vectors / np.where(largest == 0.0, 1.0, largest)[..., None]
    with np.errstate(divide="ignore"):
        return np.log(largest) + np.log(np.where(largest == 0.0, 1.0, np.linalg.norm(scaled, axis=-1)))


def _direct_gradient(traj: Trajectory, loss: Callable[[tf.Tensor], tf.Tensor]) -> tuple[Array, Array]:
    """Return (L, ∂L/∂h_t with later states held fixed [B, T+1, n])."""
    if not callable(loss):
        raise TypeError(f"loss must be a function of states [batch, time + 1, n], got {type(loss).__name__}")
    states = tf.constant(traj.states)
    with tf.GradientTape() as tape:
        tape.watch(states)
        value = tf.convert_to_tensor(loss(states))
        if value.shape.rank not in (0, 1) or (value.shape.rank == 1 and value.shape[0] != states.shape[0]):
            raise ValueError(
                f"loss must return a scalar or one value per sequence [batch] = ({states.shape[0]},),"
                f" got shape {tuple(value.shape)}; reduce over time and units inside it"
            )
        summed = tf.reduce_sum(value)
    direct = tape.gradient(summed, states)
    if direct is None:
        raise ValueError(
            "the loss does not depend on the states; compute it from its argument [batch, time + 1, n] with"
            " TensorFlow operations"
        )
    direct_array = tf.convert_to_tensor(direct).numpy()
    if not np.isfinite(value.numpy()).all() or not np.isfinite(direct_array).all():
        raise NotFiniteError("the loss or its derivative is NaN or infinite at these states; check its logs and roots")
    return value.numpy(), direct_array


def _backward_graph(step: StepFunction) -> Any:
    """Return the traced backward loop.

    It carries the total gradient as g·2^e with one integer e per sequence, so that nothing is lost to underflow or
    overflow at any length.
    """

    def exponent_of(largest: tf.Tensor) -> tf.Tensor:
        safe = tf.where(largest > 0.0, largest, tf.ones_like(largest))
        bits = tf.floor(tf.math.log(safe) / _LN2)
        return tf.where(largest > 0.0, bits, tf.fill(tf.shape(bits), tf.constant(_NONE, bits.dtype)))

    def scaled(g: tf.Tensor, exponent: tf.Tensor) -> tf.Tensor:
        # g·2^exponent in two halves, each of which float64 holds; below 2^-1000 relative to its partner a term is far
        # under the rounding of the sum
        half = tf.floor(tf.clip_by_value(exponent, -1500.0, 1500.0) / 2.0)
        rest = tf.clip_by_value(exponent, -1500.0, 1500.0) - half
        two = tf.constant(2.0, exponent.dtype)
        return g * tf.pow(two, half)[:, None] * tf.pow(two, rest)[:, None]

    def log_norm_of(g: tf.Tensor) -> tf.Tensor:
        largest = tf.reduce_max(tf.abs(g), axis=-1)
        safe = tf.where(largest > 0.0, largest, tf.ones_like(largest))
        norm = tf.norm(g / safe[:, None], axis=-1)
        return tf.where(largest > 0.0, tf.math.log(safe) + tf.math.log(norm), -np.inf * tf.ones_like(largest))

    @tf.function(reduce_retracing=True)
    def backward(
        weights: Any, states: tf.Tensor, inputs: tf.Tensor, mask: tf.Tensor, direct: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        T = tf.shape(inputs)[0]

        def array(element: tf.Tensor) -> tf.TensorArray:
            return tf.TensorArray(element.dtype, size=T + 1, element_shape=element.shape)

        e = exponent_of(tf.reduce_max(tf.abs(direct[T]), axis=-1))
        g = scaled(direct[T], tf.where(e > _NONE, -e, tf.zeros_like(e)))
        nothing = -np.inf * tf.ones_like(e)
        kept = (
            array(g).write(T, g),
            array(g).write(T, tf.zeros_like(g)),
            array(e).write(T, e),
            array(e).write(T, nothing),
        )

        def body(t: tf.Tensor, g: tf.Tensor, e: tf.Tensor, kept: Any) -> tuple[Any, ...]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                before = states[t]
                tape.watch(before)
                after = step(weights, before, inputs[t])
            back = tape.gradient(after, before, output_gradients=g)
            check_connected(back)
            back = tf.ensure_shape(tf.where(mask[t][:, None], back, g), g.shape)
            log_recurrent = log_norm_of(back) + e * _LN2
            local = exponent_of(tf.reduce_max(tf.abs(back), axis=-1))
            e_back = tf.where(local > _NONE, local + e, local)
            e_direct = exponent_of(tf.reduce_max(tf.abs(direct[t]), axis=-1))
            e_new = tf.maximum(e_back, e_direct)
            recurrent = scaled(back, tf.where(local > _NONE, e - e_new, tf.zeros_like(e)))
            g = recurrent + scaled(direct[t], tf.where(e_direct > _NONE, -e_new, tf.zeros_like(e)))
            total, back_array, exponents, norms = kept
            kept = (
                total.write(t, g),
                back_array.write(t, recurrent),
                exponents.write(t, e_new),
                norms.write(t, log_recurrent),
            )
            return t - 1, g, e_new, kept

        _, _, _, kept = tf.while_loop(lambda t, *_: t >= 0, body, (T - 1, g, e, kept))
        return tuple(one.stack() for one in kept)

    return backward

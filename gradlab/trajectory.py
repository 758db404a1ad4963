"""From a cell and inputs to a trajectory of full carried states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from gradlab.step import Step, StepFunction, as_step
from gradlab.validation import Array, finite, real_array


class LeftFiniteNumbers(ValueError):
    """A state that became NaN or infinite on the way: the network exploded."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run of a recurrent network.

    Attributes:
        inputs: x_1 … x_T [B, T, d], in the order in which the cell read them (a layer with ``go_backwards`` reads from
            the end, and its inputs stand reversed here).
        states: h_0 … h_T [B, T+1, n], the full carried state; ``step.parts`` says where h, c and each layer lie.
        step: the `Step` that made it, with the weights of that moment.
        mask: [B, T], False where a step was left out and the state carried over; None if every step counts.
    """

    inputs: Array
    states: Array
    step: Step
    mask: NDArray[np.bool_] | None = None

    @property
    def lag(self) -> NDArray[np.int64]:
        """Number of steps that count between t and T, [B, T+1]."""
        B, T = self.inputs.shape[:2]
        taken = np.ones((B, T), np.int64) if self.mask is None else self.mask.astype(np.int64)
        after = np.cumsum(taken[:, ::-1], axis=1)[:, ::-1]
        return np.concatenate([after, np.zeros((B, 1), np.int64)], axis=1)

    def part(self, name: str) -> Array:
        """Return one part of the states, [B, T+1, size], by the name that ``step.parts`` gives it.

        Raises:
            KeyError: no such part.
        """
        for part in self.step.parts:
            if part.name == name:
                return self.states[..., part.start : part.stop]
        raise KeyError(f"the state has the parts {[part.name for part in self.step.parts]}, got {name!r}")


def rollout(
    cell: Any,
    inputs: ArrayLike,
    initial_state: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Trajectory:
    """Run a cell over inputs in float64 and keep every full carried state.

    h_t = step(h_{t−1}, x_t), or h_t = h_{t−1} where the mask is False (as Keras does).

    Args:
        cell: anything that `as_step` takes.
        inputs: x_1 … x_T [B, T, d], floating point.
        initial_state: h_0 [B, n], or [n] for every sequence alike, or a list of its parts as Keras orders them
            (LSTM: [h, c]); if None, what the cell itself starts from: zeros, unless its get_initial_state says
            otherwise.
        mask: [B, T], True where a step counts.

    Returns:
        The `Trajectory`.

    Raises:
        TypeError: integer or non-numeric inputs, something that does not recur.
        ValueError: a wrong shape, an empty axis, NaN or infinity in the inputs, a state that leaves the finite numbers
            (names the batch entry and the step), a stateful layer without `initial_state`.

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(4, seed=0)
        >>> rollout(cell, np.zeros((2, 7, 3))).states.shape
        (2, 8, 4)
    """
    if isinstance(cell, Trajectory):
        raise TypeError(
            "cell must be something that recurs, got a Trajectory, which has run already;"
            " pass traj.step to run its cell over other inputs"
        )
    x = _checked_inputs(inputs)
    B, T, d = x.shape
    initial = None if initial_state is None else _joined(initial_state)
    size = initial.shape[-1] if initial is not None and initial.ndim and not hasattr(cell, "state_size") else None
    step = as_step(cell, state_size=size, input_size=d)
    if step.stateful and initial is None:
        raise ValueError(
            "a stateful layer starts from wherever its last call ended, which is no definite h_0; pass"
            " initial_state= (zeros for a fresh start), or a layer with stateful=False"
        )
    h0 = _checked_initial_state(step.initial_state if initial is None else initial, B, step.state_size)
    keep = None if mask is None else _checked_mask(mask, B, T)
    if step.go_backwards:
        x, keep = x[:, ::-1].copy(), None if keep is None else keep[:, ::-1].copy()
    flags = np.ones((B, T), bool) if keep is None else keep
    run = step.function.graph(_rollout_graph)
    tail = run(step.weights, tf.constant(h0), tf.constant(x.swapaxes(0, 1)), tf.constant(flags.T)).numpy()
    states = np.concatenate([h0[:, None], tail.swapaxes(0, 1)], axis=1)
    _check_explosion(states)
    return Trajectory(inputs=x, states=states, step=step, mask=keep)


def as_trajectory(
    cell: Any, inputs: ArrayLike | None, initial_state: ArrayLike | None = None, mask: ArrayLike | None = None
) -> Trajectory:
    """Return a `Trajectory` as it is, and the rollout of anything else.

    Raises:
        TypeError: no inputs for a cell, or inputs, initial state or mask beside a trajectory, which has its own.
    """
    if not isinstance(cell, Trajectory):
        if inputs is None:
            raise TypeError("inputs must be [batch, time, features], got None; only a Trajectory comes with its own")
        return rollout(cell, inputs, initial_state, mask)
    for name, value in (("inputs", inputs), ("initial_state", initial_state), ("mask", mask)):
        if value is not None:
            raise TypeError(f"a Trajectory has its own {name}, got another beside it; pass {name}=None")
    return cell


def _rollout_graph(step: StepFunction) -> Any:
    """Return the traced loop (weights, h_0 [B, n], x [T, B, d], mask [T, B]) → h_1 … h_T [T, B, n]."""

    @tf.function(reduce_retracing=True)
    def run(weights: Any, initial: tf.Tensor, inputs: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        T = tf.shape(inputs)[0]
        kept = tf.TensorArray(initial.dtype, size=T, element_shape=initial.shape)

        def body(t: tf.Tensor, state: tf.Tensor, kept: tf.TensorArray) -> tuple[Any, ...]:
            state = tf.where(mask[t][:, None], step(weights, state, inputs[t]), state)
            state = tf.ensure_shape(state, initial.shape)  # a callable may lose sight of its batch size
            return t + 1, state, kept.write(t, state)

        return tf.while_loop(lambda t, *_: t < T, body, (0, initial, kept))[2].stack()

    return run


def _checked_inputs(inputs: ArrayLike) -> Array:
    """Return inputs as finite float64 [B, T, d]."""
    array = _rectangular("inputs", inputs, "; pad short sequences with zeros and pass mask=")
    if array.dtype.kind in "iub":
        raise TypeError(
            f"inputs must be floating-point features [batch, time, features], got dtype {array.dtype};"
            " convert them with inputs.astype('float64'), or pass token ids through an embedding first"
        )
    if array.ndim != 3:
        hint = "; add a batch axis with inputs[None]" if array.ndim == 2 else ""
        raise ValueError(f"inputs must be [batch, time, features], got shape {array.shape}{hint}")
    if 0 in array.shape:
        raise ValueError(f"inputs must have at least one sequence, one step and one feature, got shape {array.shape}")
    # a copy: what the caller does to the array later is not part of the run
    array = real_array("inputs", array).copy()
    good = np.isfinite(array)
    if not good.all():
        b, s, i = (int(k) for k in np.unravel_index(int(np.argmin(good)), array.shape))
        raise ValueError(
            f"inputs must be finite, got {array[b, s, i]} at batch {b}, step {s + 1} (array index {s}), feature {i}"
            f" ({int((~good).sum())} of {array.size} entries); remove or rescale it"
        )
    return array


def _rectangular(name: str, value: Any, hint: str = "") -> NDArray[Any]:
    """Return `value` as an array, or say that its rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be one array, got parts of different lengths{hint} ({error})") from error


def _joined(initial_state: Any) -> Array:
    """Return h_0 as one array; a list of parts is joined along the state."""
    flat = [np.asarray(part) for part in tf.nest.flatten(initial_state)]
    if isinstance(initial_state, list | tuple) and any(part.ndim for part in flat):
        shapes = {part.shape[:-1] if part.ndim else None for part in flat}
        if len(shapes) != 1:
            raise ValueError(
                f"the parts of initial_state must share their batch size, got shapes {[p.shape for p in flat]}"
            )
        return real_array("initial_state", np.concatenate(flat, axis=-1))
    return real_array("initial_state", _rectangular("initial_state", initial_state))


def _checked_initial_state(initial: Array | None, B: int, n: int) -> Array:
    """Return h_0 as finite float64 [B, n]."""
    if initial is None:
        return np.zeros((B, n))
    if initial.shape not in ((n,), (B, n)):
        raise ValueError(
            f"initial_state must be [batch, n] = {(B, n)}, or [n] = {(n,)}, the full carried state"
            f" (LSTM: h and c; a stack: all layers), got shape {initial.shape}"
        )
    return finite("initial_state", np.broadcast_to(initial, (B, n)).copy(), ("batch", "unit"))


def _checked_mask(mask: ArrayLike, B: int, T: int) -> NDArray[np.bool_]:
    """Return the mask as bool [B, T] with at least one step that counts in each sequence."""
    array = _rectangular("mask", mask)
    if array.dtype.kind != "b" and not set(np.unique(array).tolist()) <= {0, 1}:
        raise TypeError(f"mask must be boolean [batch, time], True where a step counts, got dtype {array.dtype}")
    if array.shape != (B, T):
        raise ValueError(f"mask must be [batch, time] = {(B, T)}, got shape {array.shape}")
    flags: NDArray[np.bool_] = array.astype(bool)
    counts = np.count_nonzero(flags, axis=1)
    if counts.min() == 0:
        b = int(np.argmin(counts))
        raise ValueError(f"every sequence needs a step that counts, got none at batch {b}; leave that sequence out")
    return flags


def _check_explosion(states: Array) -> None:
    """Raise where a trajectory left the finite numbers, naming the first step."""
    good = np.all(np.isfinite(states), axis=2)
    if good.all():
        return
    steps = np.where(good.all(axis=1), states.shape[1], np.argmin(good, axis=1))
    b = int(np.argmin(steps))
    t = int(steps[b])
    before = float(np.abs(states[b, t - 1]).max()) if t else float("nan")
    raise LeftFiniteNumbers(
        f"the trajectory left the finite numbers at batch {b}, step {t} of {states.shape[1] - 1}"
        f" (largest |h| one step before: {before:.3g}); shorten the sequence, lower the recurrent gain,"
        " or use a bounded activation"
    )

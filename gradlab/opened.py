"""A Keras model run in float64 with the states of its recurrent layers in reach, for the time of a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from gradlab.step import Step


class ProbeError(ValueError):
    """What is wrong with a probe, in words that need no more explanation."""


class Opened(NamedTuple):
    """One call of a recurrent layer, stepped in the open: tensors with time first.

    Attributes:
        name: of the layer, with a number behind it where it is called again.
        layer: itself.
        step: its step.
        weights: of the step, read from the layer's variables.
        inputs: x_1 … x_T [T, B, d] in reading order.
        states: h_0 … h_T [T+1, B, n].
        mask: [T, B], True where a step is taken.
        epsilon: the zeros added to the states, by which ∂L/∂h_t is had.
        read: the copy of the states of which the outputs are made, by which the direct part is had.
        returned: the copy of the last state that the layer returns beside its outputs, which is the rest of that part.
    """

    name: str
    layer: Any
    step: Step
    weights: tuple[tf.Tensor, ...]
    inputs: tf.Tensor
    states: tf.Tensor
    mask: tf.Tensor
    epsilon: tf.Tensor
    read: tf.Tensor
    returned: tf.Tensor


@contextlib.contextmanager
def opened(
    model: Any, recurrent: list[Any], steps: dict[int, Step], tape: tf.GradientTape, into: list[Opened]
) -> Iterator[None]:
    """Let a model compute in float64 and step its recurrent layers where their states can be reached.

    For the time of a trace only: layers get their own `call` and precision back, whatever is raised, and no variable of
    the model is changed by what runs inside.

    Args:
        model: the model, to be called inside, in a graph.
        recurrent: its layers to be opened.
        steps: the step of each, by ``id(layer)``.
        tape: records what runs inside.
        into: takes what is found, a layer at a time.
    """
    graph = tf.compat.v1.get_default_graph()

    def capture(found: Opened) -> None:
        if tf.compat.v1.get_default_graph() is not graph:
            raise ProbeError(
                f"layer {found.name} is called inside of a loop or a mapped function (TimeDistributed?), where its"
                " states cannot be reached; leave it out with layers=[…]"
            )
        taken, name, count = {one.name for one in into}, found.name, 2
        while name in taken:  # a layer that is shared, or two of the same name
            name, count = f"{found.name}:{count}", count + 1
        into.append(found._replace(name=name))

    with contextlib.ExitStack() as stack:
        stack.enter_context(in_float64(list(model._flatten_layers())))
        for layer in recurrent:
            stack.enter_context(_replaced(layer, "call", _stepped(layer, steps[id(layer)], tape, capture)))
        for layer in model._flatten_layers():
            for name in ("_can_attempt_fused_lstm", "_can_attempt_fused_gru"):  # both halves in one kernel
                if isinstance(layer, keras.layers.Bidirectional) and hasattr(layer, name):
                    stack.enter_context(_replaced(layer, name, lambda *_args, **_kwargs: False))
        stack.enter_context(keras.StatelessScope(collect_losses=True))
        yield


@contextlib.contextmanager
def _replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object an attribute of its own, and take it away again; past Keras, which would keep track of it."""
    missing = object()
    before = thing.__dict__.get(name, missing)
    object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        if before is missing:
            object.__delattr__(thing, name)
        else:
            object.__setattr__(thing, name, before)


@contextlib.contextmanager
def in_float64(things: list[Any]) -> Iterator[None]:
    """Set the precision in which layers and losses compute; variables stay as they are and are cast when read."""
    policy = keras.DTypePolicy("mixed_float16")  # Keras casts variables only where their precision is another …
    policy._compute_dtype = "float64"  # … and has no name for this mixture
    with contextlib.ExitStack() as stack:
        for one in things:
            for name, value in (("_dtype_policy", policy), ("_dtype", "float64")):
                if name in one.__dict__:
                    stack.enter_context(_replaced(one, name, value))
        yield


@contextlib.contextmanager
def losses_in_float64(model: Any) -> Iterator[None]:
    """Set the precision of the compiled losses, which otherwise round the outputs to float32."""
    compiled = model._compile_loss
    parts = [getattr(one, "loss", one) for one in getattr(compiled, "_flat_losses", None) or []]
    with in_float64([one for one in (compiled, *parts) if isinstance(one, keras.losses.Loss)]):
        yield


def _stepped(layer: Any, step: Step, tape: tf.GradientTape, capture: Callable[[Opened], None]) -> Callable[..., Any]:
    """Return a `call` for a recurrent layer that gives the same outputs and shows every state."""

    def call(sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
        given, built = tf.convert_to_tensor(sequences), (layer.get_build_config() or {}).get("input_shape")
        if given.shape.rank != 3 or (built and built[-1] not in (None, given.shape[2])):
            raise ProbeError(
                f"layer {layer.name} takes [batch, time, {built[-1] if built else 'features'}], got shape"
                f" {tuple(given.shape)}; pass inputs as training would use them"
            )
        x = tf.transpose(tf.cast(given, tf.float64), (1, 0, 2))  # [T, B, d]
        T, B = (size if size is not None else tf.shape(x)[i] for i, size in enumerate(x.shape[:2]))
        taken = _mask_of(mask, T, B)
        if layer.go_backwards:
            x, taken = x[::-1], taken[::-1]
        if initial_state is None:
            initial_state = layer.states if layer.stateful else layer.get_initial_state(batch_size=B)
        parts = [tf.cast(tf.convert_to_tensor(one), tf.float64) for one in keras.tree.flatten(initial_state)]
        initial = tf.broadcast_to(tf.concat(parts, axis=-1), (B, step.state_size))
        epsilon = tf.zeros((T + 1, B, step.state_size), tf.float64)
        tape.watch(epsilon)
        weights = _weights(layer.cell, step)
        states = _states(step, weights, initial, x, taken, epsilon)
        # what the rest of the model sees; the recurrence itself does not pass through it
        read, returned = tf.identity(states), tf.identity(states[-1])
        capture(Opened(layer.name, layer, step, weights, x, states, taken, epsilon, read, returned))
        output = _outputs(layer, step, x, read)
        # Keras repeats the last output where a step is left out, and gives zeros before the first, or on request
        shown = taken if layer.zero_output_for_mask else tf.cumsum(tf.cast(taken, tf.int32), axis=0) > 0
        output = tf.where(shown[:, :, None], output, tf.zeros_like(output))
        output = tf.transpose(output, (1, 0, 2)) if layer.return_sequences else output[-1]
        if not layer.return_state:
            return output
        sizes = [int(one.shape[-1]) for one in parts]
        last = keras.tree.pack_sequence_as(list(layer.state_size), tf.split(returned, sizes, axis=-1))
        return output, *last

    return call


def _mask_of(mask: Any, T: Any, B: Any) -> tf.Tensor:
    """Return the mask as bool [T, B], all True where there is none."""
    if mask is None:
        return tf.ones((T, B), tf.bool)
    flags = tf.cast(tf.convert_to_tensor(keras.tree.flatten(mask)[0]), tf.bool)
    return tf.transpose(tf.squeeze(flags, -1) if flags.shape.rank == 3 else flags)


def _weights(cell: Any, step: Step) -> tuple[tf.Tensor, ...]:
    """Return the weights that a step takes, read from the cell's variables whenever the graph runs."""
    if not step.weights:
        return ()
    values = [tf.convert_to_tensor(one.value) for one in cell.weights]
    return tuple(tf.cast(one, like.dtype) for one, like in zip(values, step.weights, strict=True))


def _states(
    step: Step, weights: Any, initial: tf.Tensor, x: tf.Tensor, taken: tf.Tensor, epsilon: tf.Tensor
) -> tf.Tensor:
    """Return h_0 … h_T [T+1, B, n], ε added to each."""
    T = tf.shape(x)[0]

    def array(values: tf.Tensor) -> tf.TensorArray:  # its gradient is written once a step, where that of x[t] is O(T)
        return tf.TensorArray(values.dtype, size=T, element_shape=values.shape[1:]).unstack(values)

    xs, flags, shifts = array(x), array(taken), array(epsilon[1:])
    start = initial + epsilon[0]
    kept = tf.TensorArray(tf.float64, size=T, element_shape=start.shape)

    def body(t: tf.Tensor, state: tf.Tensor, kept: tf.TensorArray) -> tuple[Any, ...]:
        after = step.function(weights, state, xs.read(t))
        after = tf.ensure_shape(tf.where(flags.read(t)[:, None], after, state) + shifts.read(t), start.shape)
        return t + 1, after, kept.write(t, after)

    _, _, kept = tf.while_loop(lambda t, *_: t < T, body, (0, start, kept), maximum_iterations=T)
    return tf.concat([start[None], kept.stack()], axis=0)


def _outputs(layer: Any, step: Step, x: tf.Tensor, read: tf.Tensor) -> tf.Tensor:
    """Return the layer's outputs [T, B, ·] as functions of the states [T+1, B, n]."""
    cell = layer.cell
    last = cell.cells[-1] if isinstance(cell, keras.layers.StackedRNNCells) else cell
    if (
        step.recurrent_matrices and type(last).__name__ in _STATE_FIRST
    ):  # the output is h, first among the last's states
        size = sum(int(one) for one in keras.tree.flatten(last.state_size))
        begin = step.state_size - size
        return read[1:, :, begin : begin + last.units]
    sizes = [int(one) for one in keras.tree.flatten(cell.state_size)]
    flat = tf.reshape(read[:-1], (-1, step.state_size))
    before = keras.tree.pack_sequence_as(layer.state_size, tf.split(flat, sizes, axis=-1))
    output, after = cell(tf.reshape(x, (-1, x.shape[2])), list(before))
    for one, start in zip(keras.tree.flatten(after), np.cumsum([0, *sizes]), strict=False):
        if one is output:  # a state itself
            return read[1:, :, start : start + int(one.shape[-1])]
    return tf.reshape(tf.cast(output, tf.float64), (*tf.unstack(tf.shape(x)[:2]), output.shape[-1]))


_STATE_FIRST = ("VanillaRNNCell", "SimpleRNNCell", "LSTMCell", "GRUCell")

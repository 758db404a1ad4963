"""One adapter: whatever recurs, as a float64 step over its full carried state.

`as_step` takes gradlab's own cell, any Keras cell, recurrent layer or stack of cells, one direction of a
`Bidirectional`, or a plain callable, and returns a `Step`: the pure function (weights, h_{t−1}, x_t) → h_t, a
snapshot of the weights in float64, and where each part of the state lies.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab import activations
from gradlab.cells import VanillaRNNCell
from gradlab.twin import (
    KNOWN_CELLS,
    StepFunction,
    as_lists,
    build,
    check_repeatable,
    function_of,
    function_of_callable,
    weights_of,
)
from gradlab.validation import Array, finite, positive_integer

_WHAT_SERVES = (
    "a gradlab.VanillaRNNCell, a Keras cell, a Keras recurrent layer, a list of cells,"
    " or a callable step(state, input) -> state wrapped by gl.as_step(step, state_size=n)"
)


@dataclass(frozen=True)
class StatePart:
    """A named piece of the carried state: ``states[..., start:stop]``."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class ElementwiseRecurrence:
    """The form h_t = φ(W h_{t−1} + U x_t + b), for which the slopes φ'(a_t) and the whole chain of bounds exist.

    Attributes:
        recurrent_matrix: W [n, n].
        input_matrix: U [n, d].
        bias: b [n].
        activation: φ, a TensorFlow function acting on each entry.
        activation_name: its name, or None for a callable.
        slope_supremum: γ = sup φ', or None where it is not known.
    """

    recurrent_matrix: Array
    input_matrix: Array
    bias: Array
    activation: Callable[[tf.Tensor], tf.Tensor]
    activation_name: str | None
    slope_supremum: float | None


@dataclass(frozen=True, eq=False)
class Step:
    """A float64 step over the full carried state.

    Attributes:
        function: the step as a `StepFunction`.
        weights: its weights, a snapshot in float64; each in its own dtype where `dtype` is another.
        state_size: n, the length of the carried state (LSTM: h and c; a stack: all layers).
        input_size: d, or None for a callable, which says nothing about it.
        parts: where each part of the state lies.
        recurrent_matrices: W of each gate by name ("W" for a simple RNN; "i", "f", "c", "o" for an LSTM; "z", "r",
            "h" for a GRU; "layer2.f" in a stack); empty where gradlab does not know the cell.
        recurrence: set where the whole step is φ(W h + U x + b).
        go_backwards: whether the layer reads its sequence from the end.
        stateful: whether the layer keeps its state from call to call.
        initial_state: h_0 [n] that a cell brings by its own ``get_initial_state``, a snapshot; None for zeros.
        dtype: the precision that the step is computed in.
        description: what it is, in a few words.
        cell: what it was made of; kept alive so that the function stays valid.
    """

    function: StepFunction
    weights: tuple[tf.Tensor, ...]
    state_size: int
    input_size: int | None
    parts: tuple[StatePart, ...]
    recurrent_matrices: Mapping[str, Array] = field(default_factory=dict)
    recurrence: ElementwiseRecurrence | None = None
    go_backwards: bool = False
    stateful: bool = False
    initial_state: Array | None = None
    dtype: str = "float64"
    description: str = "step"
    cell: Any = None

    def __call__(self, state: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Return h_t [B, n] from h_{t−1} [B, n] and x_t [B, d]."""
        return self.function(self.weights, state, inputs)


def as_step(cell: Any, *, state_size: int | None = None, input_size: int | None = None) -> Step:
    """Return the step over the full carried state of a cell, a recurrent layer, a stack of cells or a callable.

    The weights are copied in float64 at the moment of the call; training the cell afterwards changes nothing here.
    Python values that a stranger's cell, an activation or a callable reads (numbers, arrays, lists) are read when its
    graph is traced, and each call of `as_step` looks whether the cell still does what that graph does. TensorFlow
    variables that an activation or a callable captures, or that a cell other than a Keras layer holds, are not copied:
    a step reads them anew each time, so change none while it is in use.

    A cell without weights is built first, in place, so that it and its step agree. tanh and logistic activations of
    Keras's cells are differentiated from the pre-activation (see `gradlab.activations`).

    Args:
        cell: a `VanillaRNNCell`, any Keras cell, a recurrent Keras layer (one direction of a `Bidirectional` is
            ``layer.forward_layer`` or ``layer.backward_layer``), a list of cells, a callable
            ``step(state [B, n], input [B, d]) -> state [B, n]`` of TensorFlow operations, or a `Step`, returned as is.
        state_size: n; needed for a callable, and only there.
        input_size: d; needed for a cell that is not built.

    Returns:
        The `Step`.

    Raises:
        TypeError: something that does not recur.
        ValueError: an unbuilt cell without `input_size`, weights that are not finite, a state that is not a vector, a
            random step (dropout or noise), whose Jacobians would be those of another draw.

    Warns:
        UserWarning: no float64 version of the cell could be made; says what is lost.

    Example:
        >>> import keras
        >>> step = as_step(keras.layers.LSTMCell(2), input_size=3)
        >>> [(part.name, part.start, part.stop) for part in step.parts]
        [('h', 0, 2), ('c', 2, 4)]
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"gradlab needs Keras on TensorFlow, got backend {keras.backend.backend()!r};"
            " set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
        )
    if isinstance(cell, type):
        raise TypeError(f"cell must be {_WHAT_SERVES}; got the class {cell.__name__}, make an instance of it")
    if isinstance(cell, Step):
        _check_input_size(cell.description, cell.input_size, input_size)
        if cell.input_size is None and input_size is not None:  # a callable that could not be tried before
            check_repeatable(cell, cell.state_size, input_size)
        return cell
    if isinstance(cell, keras.layers.Bidirectional):
        raise TypeError(
            "a Bidirectional layer carries two states, one each way; pass layer.forward_layer or layer.backward_layer"
        )
    if isinstance(cell, keras.Model):
        recurrent = [layer.name for layer in cell.layers if isinstance(layer, keras.layers.RNN)]
        raise TypeError(f"cell must be one recurrent layer, got a whole model; pass one of its layers: {recurrent}")
    if isinstance(cell, keras.layers.RNN):
        return _step_of_cell(cell.cell, input_size, go_backwards=cell.go_backwards, stateful=cell.stateful)
    if isinstance(cell, list | tuple):
        layers = any(isinstance(one, keras.layers.RNN) for one in cell)
        if not cell or layers or not all(hasattr(one, "state_size") for one in cell):
            hint = "; pass the cell of each layer, [layer.cell, …]" if layers else ""
            raise TypeError(
                "a list of cells must hold at least one Keras cell and nothing else, got"
                f" {[type(one).__name__ for one in cell]}{hint}"
            )
        cell = cell[0] if len(cell) == 1 else keras.layers.StackedRNNCells(list(cell))
    if isinstance(cell, keras.layers.Layer) and not hasattr(cell, "state_size"):
        raise TypeError(f"cell must recur, got the layer {type(cell).__name__}; expected {_WHAT_SERVES}")
    if hasattr(cell, "state_size"):
        return _step_of_cell(cell, input_size)
    if not callable(cell):
        raise TypeError(f"cell must be {_WHAT_SERVES}; got {_shown(cell)}")
    return _step_of_callable(cell, state_size, input_size)


def _shown(value: Any) -> str:
    """Return what came, for a message: a word or a number itself, of anything larger the type alone."""
    value_itself = f"{value!r} of" if value is None or isinstance(value, str | int | float) else "an object of"
    return f"{value_itself} type {type(value).__name__}"


# --- cells -----------------------------------------------------------------------------------------------------------


def _step_of_cell(cell: Any, input_size: int | None, *, go_backwards: bool = False, stateful: bool = False) -> Step:
    """Return the step of an object with `state_size` and call(inputs, states) -> (output, states)."""
    sizes = keras.tree.flatten(cell.state_size)
    if not sizes or not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
        raise ValueError(
            f"the carried state must consist of vectors, got state_size {cell.state_size} of {type(cell).__name__};"
            " wrap a convolutional cell in a callable that reshapes a flat state"
        )
    if not isinstance(cell, keras.layers.Layer):
        return _step_of_plain_cell(cell, input_size, go_backwards, stateful)
    built_for = _input_size_of(cell)
    if built_for is None and input_size is None:
        raise ValueError(
            f"{type(cell).__name__} has no weights yet; pass input_size=features, or call cell.build((None, features))"
        )
    _check_input_size(type(cell).__name__, built_for, input_size)
    built_for = int(built_for or input_size or 0)
    build(cell, built_for)
    for weight in cell.weights:
        finite(f"the weight {weight.path!r}", np.asarray(keras.ops.convert_to_numpy(weight), np.float64))
    function, dtype = function_of(cell, built_for)
    matrices: dict[str, Array] = {}
    _collect_recurrent_matrices(cell, "", matrices)
    return Step(
        function=function,
        weights=weights_of(cell, dtype),
        state_size=int(sum(sizes)),
        input_size=built_for,
        parts=_parts(cell),
        recurrent_matrices=matrices,
        recurrence=_recurrence(cell),
        go_backwards=go_backwards,
        stateful=stateful,
        initial_state=_initial_state_of(cell),
        dtype=dtype,
        description=_describe(cell),
        cell=cell,
    )


def _check_input_size(name: str, built_for: int | None, input_size: int | None) -> None:
    """Raise where the inputs have another number of features than the cell was built for."""
    if built_for is not None and input_size is not None and input_size != built_for:
        raise ValueError(
            f"inputs have {input_size} features, but {name} was built for {built_for};"
            " pass inputs [batch, time, features] as the cell saw them in training"
        )


def _initial_state_of(cell: Any) -> Array | None:
    """Return h_0 [n] of a cell that brings its own, as Keras's layers ask for it; None where it is zero."""
    if type(cell) in KNOWN_CELLS or not hasattr(cell, "get_initial_state"):
        return None
    signature = inspect.signature(cell.get_initial_state)
    for arguments, named in (((), {"batch_size": 1}), ((1,), {})):
        try:
            signature.bind(*arguments, **named)
        except TypeError:
            continue
        parts = keras.tree.flatten(cell.get_initial_state(*arguments, **named))
        break
    else:
        raise TypeError(
            f"{type(cell).__name__}.get_initial_state must take batch_size, as a Keras RNN passes it, got the signature"
            f" {signature}; give it that argument, or remove the method to start from zeros"
        )
    state = np.concatenate([np.asarray(keras.ops.convert_to_numpy(part), np.float64)[0] for part in parts])
    return finite("the initial state that the cell brings", state, ("unit",)) if state.any() else None


def _input_size_of(cell: keras.layers.Layer) -> int | None:
    """Return d of a built cell, None of one that is not built."""
    first = cell.cells[0] if isinstance(cell, keras.layers.StackedRNNCells) else cell
    if not first.built:
        return None
    if isinstance(first, KNOWN_CELLS):
        return int(first.kernel.shape[0])
    shape = (first.get_build_config() or {}).get("input_shape")
    return int(shape[-1]) if shape and shape[-1] else None


# --- callables -------------------------------------------------------------------------------------------------------


def _step_of_plain_cell(cell: Any, input_size: int | None, go_backwards: bool, stateful: bool) -> Step:
    """Return the step of a cell that is no Keras layer: it is called in float64 with the weights that it holds."""
    if not callable(getattr(cell, "call", None)) and not callable(cell):
        raise TypeError(f"a cell needs call(inputs, states) -> (output, states), got {type(cell).__name__} without one")
    call = cell.call if hasattr(cell, "call") else cell
    sizes = [int(size) for size in keras.tree.flatten(cell.state_size)]

    def step(state: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        states = keras.tree.pack_sequence_as(as_lists(cell.state_size), tf.split(state, sizes, axis=-1))
        _, new_states = call(inputs, states)
        return tf.concat(keras.tree.flatten(new_states), axis=-1)

    function, dtype = function_of_callable(step, sum(sizes), input_size)
    return Step(
        function=function,
        weights=(),
        state_size=sum(sizes),
        input_size=input_size,
        parts=_parts(cell),
        go_backwards=go_backwards,
        stateful=stateful,
        initial_state=_initial_state_of(cell),
        dtype=dtype,
        description=_describe(cell),
        cell=cell,
    )


def _step_of_callable(step: Callable[..., Any], state_size: int | None, input_size: int | None) -> Step:
    """Return the step of ``step(state, input) -> state``."""
    if state_size is None:
        raise ValueError(
            "a callable says nothing about its state; pass gl.as_step(step, state_size=n), or an initial_state [B, n]"
        )
    n = positive_integer("state_size", state_size)
    function, dtype = function_of_callable(step, n, input_size)
    return Step(
        function=function,
        weights=(),
        state_size=n,
        input_size=input_size,
        parts=(StatePart("state", 0, n),),
        dtype=dtype,
        description=getattr(step, "__name__", type(step).__name__),
        cell=step,
    )


# --- what is known about a cell --------------------------------------------------------------------------------------


def _parts(cell: Any) -> tuple[StatePart, ...]:
    """Return where each part of the flat state lies, named h, c, layer1.h, …."""
    parts: list[StatePart] = []

    def add(one: Any, prefix: str) -> None:
        sizes = keras.tree.flatten(one.state_size)
        plain = ["h"] if len(sizes) == 1 else [f"state{i + 1}" for i in range(len(sizes))]
        names = ["h", "c"] if isinstance(one, keras.layers.LSTMCell) else plain
        for name, size in zip(names, sizes, strict=True):
            start = parts[-1].stop if parts else 0
            parts.append(StatePart(prefix + name, start, start + int(size)))

    if isinstance(cell, keras.layers.StackedRNNCells):
        for i, one in enumerate(cell.cells):
            add(one, f"layer{i + 1}.")
    else:
        add(cell, "")
    return tuple(parts)


_GATES = {keras.layers.LSTMCell: ("i", "f", "c", "o"), keras.layers.GRUCell: ("z", "r", "h")}


def _collect_recurrent_matrices(cell: Any, prefix: str, into: dict[str, Array]) -> None:
    """Put W of each gate, as it acts on h_{t−1}, into a dictionary."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        for i, one in enumerate(cell.cells):
            _collect_recurrent_matrices(one, f"{prefix}layer{i + 1}.", into)
    elif isinstance(cell, KNOWN_CELLS):
        W = np.asarray(keras.ops.convert_to_numpy(cell.recurrent_kernel), np.float64).T
        gates = next((names for kind, names in _GATES.items() if isinstance(cell, kind)), ("W",))
        for name, block in zip(gates, np.split(W, len(gates)), strict=True):
            into[prefix + name] = block


def _recurrence(cell: Any) -> ElementwiseRecurrence | None:
    """Return W, U, b and φ of a simple RNN, None for every other cell, leaky and residual ones too: J ≠ diag φ'·W."""
    if type(cell) not in (VanillaRNNCell, keras.layers.SimpleRNNCell) or getattr(cell, "update", None) is not None:
        return None
    name = activations.name_of(cell.activation)
    kernel, recurrent = (
        np.asarray(keras.ops.convert_to_numpy(w), np.float64) for w in (cell.kernel, cell.recurrent_kernel)
    )
    bias = np.zeros(cell.units) if cell.bias is None else np.asarray(keras.ops.convert_to_numpy(cell.bias), np.float64)
    return ElementwiseRecurrence(
        recurrent_matrix=recurrent.T,
        input_matrix=kernel.T,
        bias=bias,
        activation=activations.accurate(cell.activation),
        activation_name=name,
        slope_supremum=None if name is None else activations.SLOPE_SUPREMUM[name],
    )


def _describe(cell: Any) -> str:
    """Return the cell in a few words."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        return " + ".join(_describe(one) for one in cell.cells)
    activation = getattr(cell, "activation", None)
    name = activations.name_of(activation) or getattr(activation, "__name__", "")
    units = getattr(cell, "units", "")
    words = [str(word) for word in (units, name) if word]
    if type(cell) is VanillaRNNCell:
        words += [f"{word}={getattr(cell, word):g}" for word in ("leak", "residual") if getattr(cell, word) is not None]
    return f"{type(cell).__name__}({', '.join(words)})"

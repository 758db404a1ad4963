"""The float64 twin of a Keras cell, as a pure function of its weights.

Analysis runs in float64 whatever the cell was trained in: a cell of the same configuration is made in float64, and the
weights are handed to it as an argument.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab import activations
from gradlab.cells import VanillaRNNCell

KNOWN_CELLS = (VanillaRNNCell, keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)


class StepFunction:
    """The step of one architecture, (weights, state [N, n], input [N, d]) → state [N, n], and its traced graphs.

    Weights are an argument and not a captured variable, so that one traced graph serves every trained version of a
    cell, and a trajectory keeps the weights that it was made with.
    """

    def __init__(self, function: Callable[..., tf.Tensor]) -> None:
        self.function = function
        self._graphs: dict[Any, Any] = {}

    def __call__(self, weights: Any, state: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Return the next state, in the dtype of `state` whatever precision the function itself works in."""
        return tf.cast(self.function(weights, state, inputs), state.dtype)

    def graph(self, build: Callable[..., Any], *options: Any) -> Any:
        """Return ``build(self, *options)``, made once and kept: an eager trace per call would cost 0.2 s each."""
        key = (build, options)
        if key not in self._graphs:
            self._graphs[key] = build(self, *options)
        return self._graphs[key]


def as_constant(weight: Any, dtype: str) -> tf.Tensor:
    """Return a weight's value now; floating ones in `dtype`."""
    value = keras.ops.convert_to_numpy(weight)
    floating = value.dtype.kind not in "iub"
    return tf.constant(value.astype(dtype) if floating else value)


# One entry per architecture (known cells) or per cell object (anything else). Both hold little, and neither keeps a
# user's cell alive.
_by_architecture: dict[Any, StepFunction] = {}
_by_cell: weakref.WeakKeyDictionary[Any, tuple[StepFunction, str, Any]] = weakref.WeakKeyDictionary()

_FUNCTIONS = ("activation", "recurrent_activation")
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def function_of(cell: keras.layers.Layer, input_size: int) -> tuple[StepFunction, str]:
    """Return (the cell's step as a pure function of its weights, the dtype that it computes in)."""
    architecture = _architecture(cell)
    if architecture is not None:
        key = (architecture, input_size)
        if key not in _by_architecture:
            _by_architecture[key] = _pure_function(_float64_twin(cell, input_size), cell.state_size, "float64")
        return _by_architecture[key], "float64"
    settings = _settings(cell)
    if cell not in _by_cell or _by_cell[cell][2] != settings:
        try:
            twin = _float64_twin(cell, input_size)
            function = _pure_function(twin, cell.state_size, "float64")
            _check_twin(cell, function, input_size)
            _by_cell[cell] = function, "float64", settings
        except Exception as error:  # a stranger's constructor or call may raise anything
            warnings.warn(
                f"no float64 version of {type(cell).__name__} could be made ({error}); it is analysed in"
                f" {cell.compute_dtype}: states and Jacobians carry its rounding, and what underflows there is lost",
                stacklevel=4,
            )
            # the closure must not keep the cell alive, or its entry here would never go; the Step does
            reference = weakref.ref(cell)
            _by_cell[cell] = (
                _pure_function(reference, cell.state_size, cell.compute_dtype),
                str(cell.compute_dtype),
                settings,
            )
    return _by_cell[cell][:2]


def build(cell: keras.layers.Layer, input_size: int) -> None:
    """Make every weight of a cell, those of layers inside a stranger's cell too, which come at its first call."""
    if not cell.built and type(cell).build is not keras.layers.Layer.build:
        cell.build((None, input_size))
        cell.built = True
    if _architecture(cell) is None:

        def zeros(size: int) -> tf.Tensor:
            return tf.zeros((1, size), cell.compute_dtype)

        cell(zeros(input_size), keras.tree.map_structure(zeros, as_lists(cell.state_size)))


def _architecture(cell: Any) -> Any:
    """Return a hashable description of the computation of a known cell with known activations, None for any other.

    Names, seeds, dtypes and everything that only sets initial values do not change what is computed from given weights.
    A stranger's activation may have weights or a precision of its own, and an entry here is never let go.
    """
    if type(cell) is keras.layers.StackedRNNCells:
        layers = tuple(_architecture(one) for one in cell.cells)
        return None if None in layers else layers
    if type(cell) not in KNOWN_CELLS:
        return None
    fields = ("units", "use_bias", "reset_after", "implementation")
    functions = tuple(getattr(cell, name) for name in _FUNCTIONS if hasattr(cell, name))
    if not all(activations.name_of(one) or _is_from_keras(one) for one in functions):
        return None
    return (type(cell), *(getattr(cell, name, None) for name in fields), *functions)


def _is_from_keras(function: Any) -> bool:
    """Return whether an activation is one of the functions of `keras.activations`."""
    name = getattr(function, "__name__", None)
    return name is not None and getattr(keras.activations, name, None) is function


def _settings(cell: Any) -> Any:
    """Return the plain values that a cell holds as attributes: to change one is to change its step."""
    members = cell.cells if isinstance(cell, keras.layers.StackedRNNCells) else [cell]
    plain = bool | int | float | str | np.generic | None
    return [
        {
            name: value
            for name, value in vars(one).items()
            if not name.startswith("_") and (isinstance(value, plain) or name in _FUNCTIONS)
        }
        for one in members
    ]


def _float64_twin(cell: Any, input_size: int) -> Any:
    """Return a cell of the same configuration that computes in float64, its activations accurate when saturated."""
    if type(cell) is keras.layers.StackedRNNCells:
        twin = keras.layers.StackedRNNCells([_unbuilt_twin(one) for one in cell.cells], dtype="float64")
        members = twin.cells
    else:
        twin = _unbuilt_twin(cell)
        members = [twin]
    build(twin, input_size)
    for member in members:
        for name in _FUNCTIONS:
            if activations.name_of(getattr(member, name, None)):
                setattr(member, name, activations.accurate(getattr(member, name)))
    shapes, expected = ([tuple(w.shape) for w in one.weights] for one in (twin, cell))
    if shapes != expected:
        raise ValueError(f"its configuration gives weights of shapes {shapes} and the cell has {expected}")
    return twin


def _unbuilt_twin(cell: Any) -> Any:
    """Return the cell anew from its configuration, every dtype in it float64."""

    def in_float64(config: Any) -> Any:
        if isinstance(config, dict):
            return {key: "float64" if key == "dtype" else in_float64(value) for key, value in config.items()}
        return [in_float64(value) for value in config] if isinstance(config, list | tuple) else config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns that a lambda will not load; none is loaded here
        config = in_float64(cell.get_config())
    if type(cell) in KNOWN_CELLS:  # the functions themselves: a lambda does not survive serialisation
        functions = {name: getattr(cell, name) for name in _FUNCTIONS if name in config}
        config |= {name: one for name, one in functions.items() if not isinstance(one, keras.layers.Layer)}
    twin = type(cell).from_config(config)
    for layer in twin._flatten_layers():  # a layer made inside a stranger's constructor took the global dtype
        layer.dtype_policy = keras.DTypePolicy("float64")
    return twin


def _pure_function(cell: Any, state_size: Any, dtype: str) -> StepFunction:
    """Return the step of a built Keras cell (or a weak reference to one) as a function of its weights."""
    sizes = [int(size) for size in keras.tree.flatten(state_size)]

    def function(weights: Any, state: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        target: Any = cell() if isinstance(cell, weakref.ref) else cell
        states = keras.tree.pack_sequence_as(as_lists(state_size), tf.split(tf.cast(state, dtype), sizes, axis=-1))
        with keras.StatelessScope(state_mapping=list(zip(target.weights, weights, strict=True))):
            _, new_states = target(tf.cast(inputs, dtype), states)
        return tf.concat(keras.tree.flatten(new_states), axis=-1)

    return StepFunction(function)


def as_lists(state_size: Any) -> list[Any]:
    """Return the state's structure as Keras hands it to a cell: always a list, tuples as lists."""
    if not isinstance(state_size, list | tuple):
        return [state_size]
    return [as_lists(one) if isinstance(one, list | tuple) else one for one in state_size]


def _check_twin(cell: Any, function: StepFunction, input_size: int) -> None:
    """Raise if the float64 twin does not do what the cell does: a configuration may leave something out."""
    rng = np.random.default_rng(0)
    n = int(sum(keras.tree.flatten(cell.state_size)))
    state, inputs = 0.5 * rng.standard_normal((2, n)), 0.5 * rng.standard_normal((2, input_size))
    weights = [as_constant(weight, "float64") for weight in cell.weights]
    ours = function.function(weights, tf.constant(state), tf.constant(inputs))
    if ours.dtype != tf.float64:
        raise ValueError(f"its step returns {ours.dtype.name} though it is asked for float64")
    own_weights = [tf.convert_to_tensor(weight) for weight in cell.weights]
    own = _pure_function(cell, cell.state_size, cell.compute_dtype).function(
        own_weights, tf.constant(state), tf.constant(inputs)
    )
    # a step is a few sums over at most n + d rounded products; 100 covers a dozen operations in a row
    allowance = 100.0 * (n + input_size) * max(_EPSILON[cell.compute_dtype], _EPSILON[own.dtype.name])
    own_state = tf.cast(own, tf.float64).numpy()
    difference = float(np.abs(ours.numpy() - own_state).max())
    if not difference <= allowance * max(1.0, float(np.abs(own_state).max())):
        raise ValueError(
            f"its configuration gives a cell whose step differs by {difference:.1e} from the original's"
        )

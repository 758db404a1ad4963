"""The float64 twin of a Keras cell, as a pure function of its weights; and a callable as such a function.

Analysis runs in float64 whatever the cell was trained in: a cell of the same configuration is made in float64, and the
weights are handed to it as an argument. Code that gradlab does not know (a stranger's cell, activation or callable) is
traced once, so that its run and its Jacobians see the same Python values; each time its step is asked for again, that
trace is compared with what the code does now.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from gradlab import activations
from gradlab.cells import VanillaRNNCell
from gradlab.validation import Array

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


class _Made(NamedTuple):
    """What is kept for a cell of unknown code: its step to analyse, that step's dtype, and its own step as traced."""

    function: StepFunction
    dtype: str
    own: StepFunction


# One entry per architecture (known cells) or per cell object (anything else). Both hold little, and neither keeps a
# user's cell alive.
_by_architecture: dict[Any, StepFunction] = {}
_by_cell: weakref.WeakKeyDictionary[Any, _Made] = weakref.WeakKeyDictionary()

_FUNCTIONS = ("activation", "recurrent_activation")
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# a copy of a cell computes by the same operations in the same order; a traced graph may fuse some of them
_COPY_ULPS, _TRACE_ULPS = 4.0, 16.0


def weights_of(cell: Any, dtype: str) -> tuple[tf.Tensor, ...]:
    """Return a cell's weights as they are now: for float64 floating ones in float64, or else each in its own dtype."""
    values = (keras.ops.convert_to_numpy(weight) for weight in cell.weights)
    wide = dtype == "float64"
    return tuple(tf.constant(v.astype(dtype) if wide and v.dtype.kind not in "iub" else v) for v in values)


def function_of(cell: keras.layers.Layer, input_size: int) -> tuple[StepFunction, str]:
    """Return (the cell's step as a pure function of its weights, the dtype that it computes in)."""
    architecture = _architecture(cell)
    if architecture is not None:
        key = (architecture, input_size)
        if key not in _by_architecture:
            twin = _float64_twin(cell, input_size)
            _by_architecture[key] = StepFunction(_pure_function(twin, cell.state_size, "float64"))
        return _by_architecture[key], "float64"
    n = int(sum(keras.tree.flatten(cell.state_size)))
    probe = _probe(n, input_size)
    own_weights = weights_of(cell, "own")
    now, failure = _tried(cell, probe)
    made = _by_cell.get(cell)
    if made is None or now is None or not _is_current(made.own, own_weights, probe, now, _epsilon(cell)):
        # the function must not keep the cell alive, or its entry here would never go; the Step does
        function = _pure_function(weakref.ref(cell), cell.state_size, cell.compute_dtype)
        own = _traced_if_possible(function, own_weights, n, input_size)
        try:
            if now is None:
                raise ValueError(f"on normal numbers it fails: {failure}") from failure
            analysed, dtype = _checked_twin(cell, input_size, probe, now), "float64"
        except Exception as error:  # a stranger's constructor or call may raise anything
            warnings.warn(
                f"no float64 version of {type(cell).__name__} could be made ({error}); it is analysed in"
                f" {cell.compute_dtype}: states and Jacobians carry its rounding, and what underflows there is lost",
                stacklevel=4,
            )
            analysed, dtype = own, str(cell.compute_dtype)
        made = _by_cell[cell] = _Made(analysed, dtype, own)
    return made.function, made.dtype


def build(cell: keras.layers.Layer, input_size: int) -> None:
    """Make every weight of a cell, those of layers inside a stranger's cell too, which come at its first call."""
    if not cell.built and type(cell).build is not keras.layers.Layer.build:
        cell.build((None, input_size))
        cell.built = True
    # a call is not free of effects: noise that a cell draws would go on
    if _architecture(cell) is None and not all(layer.built for layer in cell._flatten_layers()):

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
    fields = ("units", "use_bias", "reset_after", "implementation", "leak", "residual")
    functions = tuple(getattr(cell, name) for name in _FUNCTIONS if hasattr(cell, name))
    if not all(activations.name_of(one) or _is_from_keras(one) for one in functions):
        return None
    return (type(cell), *(getattr(cell, name, None) for name in fields), *map(activations.accurate, functions))


def _is_from_keras(function: Any) -> bool:
    """Return whether an activation is one of the functions of `keras.activations`."""
    name = getattr(function, "__name__", None)
    return name is not None and getattr(keras.activations, name, None) is function


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


def _unbuilt_twin(cell: Any, dtype: str | None = "float64") -> Any:
    """Return the cell anew from its configuration, every dtype in it as given, or as it is in the cell if None."""

    def in_dtype(config: Any) -> Any:
        if isinstance(config, dict):
            return {key: dtype if key == "dtype" else in_dtype(value) for key, value in config.items()}
        return [in_dtype(value) for value in config] if isinstance(config, list | tuple) else config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns that a lambda will not load; none is loaded here
        config = cell.get_config() if dtype is None else in_dtype(cell.get_config())
    if type(cell) in KNOWN_CELLS:  # the functions themselves: a lambda does not survive serialisation
        functions = {name: getattr(cell, name) for name in _FUNCTIONS if name in config}
        config |= {name: one for name, one in functions.items() if not isinstance(one, keras.layers.Layer)}
    twin = type(cell).from_config(config)
    # a layer made inside a stranger's constructor took the global dtype, which may have been another then
    for layer, original in zip(twin._flatten_layers(), cell._flatten_layers(), strict=False):
        layer.dtype_policy = original.dtype_policy if dtype is None else keras.DTypePolicy(dtype)
    return twin


def _pure_function(cell: Any, state_size: Any, dtype: str, *, weights_given: bool = True) -> Callable[..., tf.Tensor]:
    """Return the step of a built Keras cell (or a weak reference to one) as a function of its weights."""
    sizes = [int(size) for size in keras.tree.flatten(state_size)]

    def function(weights: Any, state: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        target: Any = cell() if isinstance(cell, weakref.ref) else cell
        states = keras.tree.pack_sequence_as(as_lists(state_size), tf.split(tf.cast(state, dtype), sizes, axis=-1))
        if not weights_given:
            _, new_states = target(tf.cast(inputs, dtype), states)
        else:
            with keras.StatelessScope(state_mapping=list(zip(target.weights, weights, strict=True))):
                _, new_states = target(tf.cast(inputs, dtype), states)
        return tf.concat(keras.tree.flatten(new_states), axis=-1)

    return function


def as_lists(state_size: Any) -> list[Any]:
    """Return the state's structure as Keras hands it to a cell: always a list, tuples as lists."""
    if not isinstance(state_size, list | tuple):
        return [state_size]
    return [as_lists(one) if isinstance(one, list | tuple) else one for one in state_size]


# --- what unknown code does, and whether it still does ----------------------------------------------------------------


def _probe(n: int, input_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return states [N, n] and inputs [N, d] to try a step on: enough rows for a seldom dropout to strike."""
    rng = np.random.default_rng(0)
    rows = max(16, 4096 // n)
    return tf.constant(0.5 * rng.standard_normal((rows, n))), tf.constant(0.5 * rng.standard_normal((rows, input_size)))


def _epsilon(cell: keras.layers.Layer) -> float:
    """Return the relative spacing of numbers in the coarsest precision that a layer of the cell computes in."""
    return max(_EPSILON.get(str(layer.compute_dtype), 0.0) for layer in cell._flatten_layers())


def _tried(cell: Any, probe: Any) -> tuple[tf.Tensor | None, Exception | None]:
    """Return (what a cell now gives on the probe, None), or (None, why it fails there).

    Raises:
        ValueError: the cell is random.
    """
    step = _pure_function(cell, cell.state_size, cell.compute_dtype, weights_given=False)
    try:
        with keras.StatelessScope():  # a generator of noise goes on from draw to draw in here, and not in the cell
            first, second = (step((), *probe) for _ in range(2))
    except Exception as error:  # a stranger's call may raise anything: it may expect other numbers
        return None, error
    _check_repeated(first, second)
    return first, None


def check_repeatable(step: Callable[[tf.Tensor, tf.Tensor], Any], n: int, input_size: int) -> None:
    """Raise ValueError if a step (state, input) → state is random; pass over one that fails on made-up numbers."""
    probe = _probe(n, input_size)
    try:
        first, second = (tf.convert_to_tensor(step(*probe)) for _ in range(2))
    except Exception:  # a stranger's function may raise anything
        return
    _check_repeated(first, second)


def _check_repeated(first: tf.Tensor, second: tf.Tensor) -> None:
    """Raise where the same call gave two results."""
    difference = _distance(first, second)
    if not difference <= _COPY_ULPS * _EPSILON.get(first.dtype.name, 0.0):
        raise ValueError(
            "the step is random, or remembers its calls: on the same state and input its two results differ by"
            f" {difference:.1e}, so that no Jacobian belongs to the states of a run; call it with training=False or fix"
            " its noise"
        )


def _distance(ours: tf.Tensor, theirs: tf.Tensor) -> float:
    """Return max |ours − theirs| / max(1, max |theirs|); NaN and infinity in the same places are no difference."""
    a, b = (tf.cast(one, tf.float64).numpy() for one in (ours, theirs))
    if a.shape != b.shape:
        return float("inf")
    size = np.abs(b[np.isfinite(b)]).max(initial=1.0)
    with np.errstate(invalid="ignore"):
        gaps: Array = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(gaps.max() / size)


def _is_current(own: StepFunction, weights: Any, probe: Any, now: tf.Tensor, epsilon: float) -> bool:
    """Return whether a step as it was traced still does what its cell does now."""
    try:
        return _distance(own.function(weights, *probe), now) <= _TRACE_ULPS * epsilon
    except Exception:  # weights of other shapes, say
        return False


def _checked_twin(cell: Any, input_size: int, probe: Any, now: tf.Tensor) -> StepFunction:
    """Return the step of the cell's float64 twin.

    Raises:
        ValueError: it does not do what the cell does: a configuration may leave something out.
    """
    # a copy in the cell's own precision says so to a few units in the last place, however coarse those are; the
    # rounding of float16, or of wide sums, would hide the difference to the twin
    if type(cell) is keras.layers.StackedRNNCells:
        copy = keras.layers.StackedRNNCells([_unbuilt_twin(one, None) for one in cell.cells], dtype=cell.dtype_policy)
    else:
        copy = _unbuilt_twin(cell, None)
    build(copy, input_size)
    copied = _pure_function(copy, cell.state_size, cell.compute_dtype)(weights_of(cell, "own"), *probe)
    _check_same(copied, now, _COPY_ULPS * _epsilon(cell))
    function = _pure_function(_float64_twin(cell, input_size), cell.state_size, "float64")
    weights = weights_of(cell, "float64")
    ours = function(weights, *probe)
    if ours.dtype != tf.float64:
        raise ValueError(f"its step returns {ours.dtype.name} though it is asked for float64")
    # a step is a few sums over at most n + d rounded products; 100 covers a dozen operations in a row
    n = int(sum(keras.tree.flatten(cell.state_size)))
    rounding = max(_epsilon(cell), _EPSILON[now.dtype.name])
    _check_same(ours, now, 100.0 * (n + input_size) * rounding)
    return _traced_if_possible(function, weights, n, input_size)


def _check_same(ours: tf.Tensor, theirs: tf.Tensor, allowance: float) -> None:
    """Raise where a copy of a cell does something else than the cell."""
    difference = _distance(ours, theirs)
    if not difference <= allowance:
        raise ValueError(f"its configuration gives a cell whose step differs by {difference:.1e} from the original's")


def _traced(function: Callable[..., tf.Tensor], weights: Any, n: int, input_size: int | None) -> StepFunction:
    """Return the step traced now, once and for every batch size: the Python values that it reads are read here.

    Every graph made of it holds this trace, so that a run and its Jacobians, traced later, cannot see other values.
    """
    kinds = tuple(tf.TensorSpec(weight.shape, weight.dtype) for weight in weights)
    state, inputs = (tf.TensorSpec([None, size], tf.float64) for size in (n, input_size))
    return StepFunction(tf.function(function).get_concrete_function(kinds, state, inputs))


def _traced_if_possible(function: Callable[..., tf.Tensor], weights: Any, n: int, input_size: int) -> StepFunction:
    """Return the step traced, or as it is if it needs to know the batch size or breaks in a graph."""
    try:
        return _traced(function, weights, n, input_size)
    except Exception:  # a stranger's function may raise anything
        return StepFunction(function)


# --- callables -------------------------------------------------------------------------------------------------------


def function_of_callable(step: Callable[..., Any], n: int, input_size: int | None) -> tuple[StepFunction, str]:
    """Return (the callable as a `StepFunction`, its dtype): float64 where it can, float32 with a warning where not."""
    parameters = inspect.signature(step).parameters.values()
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) < 2 and not any(
        p.kind is p.VAR_POSITIONAL for p in parameters
    ):
        raise TypeError(f"a callable step takes (state, input), got one with parameters {list(parameters)}")

    def function_in(dtype: str) -> Callable[..., tf.Tensor]:
        def function(weights: Any, state: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
            new_state = tf.convert_to_tensor(step(tf.cast(state, dtype), tf.cast(inputs, dtype)))
            if new_state.dtype.name != dtype:
                raise ValueError(f"it returns {new_state.dtype.name} from {dtype}")
            return tf.ensure_shape(new_state, [None, n])

        return function

    dtype = "float64"
    try:
        made = _traced(function_in(dtype), (), n, input_size)
    except Exception as error:  # a stranger's function may raise anything
        dtype = "float32"
        try:
            made = _traced(function_in(dtype), (), n, input_size)
        except Exception:
            raise ValueError(
                "the callable must map (state [B, n], input [B, d]) to a state [B, n] with TensorFlow operations on"
                f" float64 tensors, here n = {n} and d = {input_size}; it failed with: {error}"
            ) from error
        warnings.warn(
            f"the callable does not take float64 ({str(error).splitlines()[0]}); it is analysed in float32: states and"
            " Jacobians carry its rounding, and what underflows there is lost. Make its weights float64",
            stacklevel=4,
        )
    if input_size is not None:
        check_repeatable(lambda state, inputs: function_in(dtype)((), state, inputs), n, input_size)
    return made, dtype

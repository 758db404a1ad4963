"""A cell as its author wrote it, in its own precision: its step, what a call leaves behind, and its saved copy."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab.twin import as_lists, build
from gradlab.validation import Array

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class NoWeightsError(ValueError):
    """A cell whose weights cannot be made, so that there is nothing to look at."""


@dataclass(frozen=True, eq=False)
class Original:
    """A cell as its author wrote it.

    Attributes:
        cell: the Keras cell, another object with a `state_size`, or the callable.
        sizes: the sizes of the parts of its state.
        dtype: the precision that its state is handed to it in.
        eps: the spacing of numbers at 1 in the coarsest precision that a layer of it computes in.
    """

    cell: Any
    sizes: tuple[int, ...]
    dtype: str
    eps: float

    @property
    def is_layer(self) -> bool:
        """Whether Keras knows its weights and how to save it."""
        return isinstance(self.cell, keras.layers.Layer)

    def parts(self, state: Array, inputs: Array) -> list[tf.Tensor]:
        """Return the parts of h_t from h_{t−1} [N, n] and x_t [N, d], as the cell itself returns them."""
        h, x = (tf.constant(one, self.dtype) for one in (state, inputs))
        if not hasattr(self.cell, "state_size"):
            return [tf.convert_to_tensor(self.cell(h, x))]
        states = keras.tree.pack_sequence_as(as_lists(self.cell.state_size), tf.split(h, self.sizes, axis=-1))
        call = self.cell if self.is_layer else getattr(self.cell, "call", self.cell)
        _, new_states = call(x, states)
        return [tf.convert_to_tensor(one) for one in keras.tree.flatten(new_states)]

    def __call__(self, state: Array, inputs: Array) -> Array:
        """Return h_t [N, n] as a float64 array."""
        joined = tf.concat(self.parts(state, inputs), axis=-1)
        return tf.cast(joined, tf.float64).numpy()

    def rounded(self, array: Array) -> Array:
        """Return the numbers that the cell gets to see of a float64 array."""
        return tf.cast(tf.constant(array, self.dtype), tf.float64).numpy()


def original(cell: Any, input_size: int, state_size: int | None) -> Original:
    """Return a cell, the cell of a layer, or a list of cells as its author wrote it; one without weights is built.

    Raises:
        TypeError: nothing that recurs.
        NoWeightsError: initial weights that Keras cannot draw in the cell's precision.
    """
    if isinstance(cell, keras.layers.RNN):
        cell = cell.cell
    if isinstance(cell, list | tuple):
        cell = cell[0] if len(cell) == 1 else keras.layers.StackedRNNCells(list(cell))
    layer = isinstance(cell, keras.layers.Layer)
    is_cell = hasattr(cell, "state_size")
    if isinstance(cell, type) or not callable(getattr(cell, "call", cell)) or (layer and not is_cell):
        raise TypeError(f"{type(cell).__name__} does not recur")
    sizes = tuple(int(size) for size in keras.tree.flatten(getattr(cell, "state_size", state_size)))
    if not layer:
        return _of_no_layer(cell, sizes, input_size)
    _make_weights(cell, input_size)
    eps = max(EPSILON.get(str(one.compute_dtype), 0.0) for one in cell._flatten_layers())
    return Original(cell, sizes, str(cell.compute_dtype), eps)


def _make_weights(cell: Any, input_size: int) -> None:
    """Build a cell; say so where its precision is what Keras cannot draw initial weights in."""
    try:
        build(cell, input_size)
    except Exception as error:  # an initializer may raise anything
        if cell.variable_dtype in ("float64", "float32"):
            raise
        raise NoWeightsError(
            f"Keras cannot make the initial weights of this {type(cell).__name__} in {cell.variable_dtype}:"
            f" {str(error).strip().splitlines()[0]}; choose other initializers (the orthogonal one of recurrent kernels"
            " needs a QR, which TensorFlow does not have in bfloat16), or dtype='mixed_bfloat16', which keeps its"
            " weights in float32"
        ) from error


def _of_no_layer(cell: Any, sizes: tuple[int, ...], input_size: int) -> Original:
    """Return a callable, or a cell that is no layer, in the precision that its weights let it take: float64 if any."""
    for dtype in ("float64", "float32"):
        own = Original(cell, sizes, dtype, EPSILON[dtype])
        try:
            own.parts(np.zeros((2, sum(sizes))), np.zeros((2, input_size)))
        except Exception:  # a stranger's function may raise anything; what float64 raises, the check of it says
            continue
        return own
    return Original(cell, sizes, "float64", EPSILON["float64"])


# --- what a call leaves behind ---------------------------------------------------------------------------------------


def repeated(own: Original, state: Array, inputs: Array) -> tuple[Array, Array, list[str]]:
    """Return h_t twice, another call between, and the names of what these calls changed in the cell.

    Weights that Keras holds are changed in a scope only, and are afterwards as they were.
    """
    with keras.StatelessScope():
        own(state, inputs)  # what the very first call sets is no memory
        before = _holdings(own.cell)
        first = own(state, inputs)
        own(state[::-1], inputs)
        again = own(state, inputs)
        after = _holdings(own.cell)
    changed = [name for name, value in after.items() if name not in before or not _same(before[name], value)]
    return first, again, changed


def _holdings(cell: Any) -> dict[str, Any]:
    """Return what a cell and its layers, or a function's closure, hold, by name; what can change in place is copied."""
    if inspect.isfunction(cell):
        read = inspect.getclosurevars(cell)
        return {name: _copied(value) for name, value in {**read.nonlocals, **read.globals}.items()}
    layer = isinstance(cell, keras.layers.Layer)
    held = {weight.path: keras.ops.convert_to_numpy(weight) for weight in cell.weights} if layer else {}
    for owner in cell._flatten_layers() if layer else [getattr(cell, "__self__", cell)]:
        prefix = f"{owner.name}." if layer else ""
        held |= {prefix + name: _copied(value) for name, value in getattr(owner, "__dict__", {}).items()}
    return held


def _copied(value: Any) -> Any:
    """Return a copy of an array, a variable, a list or a dictionary, and anything else as it is."""
    if isinstance(value, tf.Variable):
        return value.numpy()
    if isinstance(value, np.ndarray):
        return value.copy()
    return list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value


def _same(one: Any, other: Any) -> bool:
    """Return whether two holdings are the same array, or hold the very same objects."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if type(one) is not type(other) or not isinstance(one, list | dict):
        return one is other
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
    return len(one) == len(other) and all(map(lambda a, b: a is b, one, other))


# --- the saved copy --------------------------------------------------------------------------------------------------


def saved_and_loaded(own: Original, input_size: int) -> Original:
    """Return the cell as Keras reads it from the file of a model with the layer ``keras.layers.RNN(cell)``.

    Classes that are not registered with Keras are handed to the loader, as a user would.
    """
    cell = own.cell
    inputs = keras.Input((None, input_size), dtype=own.dtype)
    model = keras.Model(inputs, keras.layers.RNN(cell, dtype=cell.dtype_policy)(inputs))
    classes: dict[str, Callable[..., Any]] = {type(one).__name__: type(one) for one in cell._flatten_layers()}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "cell.keras")
        model.save(path)
        loaded = keras.saving.load_model(path, custom_objects=classes, compile=False, safe_mode=False)
    return original(loaded.layers[-1].cell, input_size, None)


def built_by_a_call(own: Original, input_size: int) -> list[str]:
    """Return the names of the layers inside a cell that get their weights at its first call, and not by its `build`.

    Keras makes a loaded cell from its configuration and calls `build`, never the cell: for such layers a file holds
    weights, and there are none to read them into.
    """
    cell = own.cell
    fresh = type(cell).from_config(cell.get_config())
    if type(cell).build is not keras.layers.Layer.build:
        fresh.build((None, input_size))
    pairs = zip(fresh._flatten_layers(), cell._flatten_layers(), strict=True)
    return [ours.name for new, ours in pairs if new is not fresh and ours.weights and not new.built]

"""The batch of a probe: arrays as tensors, and what does not fit the model or its loss, said in words."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab.opened import ProbeError


def tensors(name: str, value: Any) -> Any:
    """Return an array, or a structure of arrays, as tensors; a nested list of numbers is one array.

    Args:
        name: of the argument.
        value: its value.

    Raises:
        ValueError: NaN or infinity, entries that are no real numbers, rows of different lengths, no arrays at all.
    """
    if _is_list(value) and all(np.isscalar(one) for one in keras.tree.flatten(value)):
        return _tensor(name, value)
    return keras.tree.map_structure(lambda one: _tensor(name, one), value, none_is_leaf=True)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _tensor(name: str, value: Any) -> tf.Tensor:
    """Return one array as a tensor, or raise."""
    if value is None or (hasattr(value, "__iter__") and not hasattr(value, "__array__") and not _is_list(value)):
        raise ValueError(f"{name} must be an array, got {value!r}; take the arrays of one batch out of it")
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.array(None)
    if _is_list(value) and array.dtype.kind == "O":
        raise ValueError(f"{name} must be one array, got parts of different lengths; pad them and pass a mask")
    if array.dtype.kind in "OcMm":
        what = type(value).__name__ if array.ndim == 0 else f"dtype {array.dtype}"
        raise ValueError(f"{name} must be an array of real numbers, got {what}; take the numbers out of it")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"{name} must be finite, got {array[place]} at index {place} ({int((~np.isfinite(array)).sum())} of"
            f" {array.size} entries); remove or replace it"
        )
    return tf.constant(array)


def check_batch(inputs: Any, targets: Any, weight: Any) -> None:
    """Raise unless all parts have the same number of sequences, at least one, and none is empty."""
    parts = [one for one in keras.tree.flatten([inputs, targets, weight]) if one is not None]
    sizes = [one.shape[0] if one.shape.rank else 0 for one in parts]
    if not sizes or len(set(sizes)) != 1 or sizes[0] == 0:
        raise ValueError(
            f"probe_inputs, probe_targets and sample_weight must be of one batch, got {sizes} sequences; the batch axis"
            " comes first"
        )
    for one in parts:
        if 0 in one.shape:
            raise ValueError(f"the probe batch must have at least one step and feature, got shape {tuple(one.shape)}")


def check_kinds(model: Any, inputs: Any, targets: Any) -> None:
    """Raise where numbers would be rounded to the integers that the model takes, and where text meets numbers."""
    given, asked = keras.tree.flatten(inputs), _asked(model)
    for one, like in zip(given, asked if len(asked) == len(given) else [None] * len(given), strict=True):
        if one.dtype == tf.string and (like is None or like.dtype != "string"):
            raise ValueError("probe_inputs must be numbers, got text; encode it as training does")
        if like is not None and "int" in str(like.dtype) and one.dtype.is_floating and _fraction(one) is not None:
            raise ValueError(
                f"probe_inputs must be integers ({like.dtype}), got {_fraction(one)}; pass tokens, not features"
            )
    if any(one.dtype == tf.string for one in keras.tree.flatten(targets) if one is not None):
        raise ValueError("probe_targets must be numbers, got text; encode the labels as training does")


def check_targets(loss: Any, targets: Any, outputs: Any) -> None:
    """Raise where one array of targets does not fit one array of outputs, as far as the loss is one of Keras's.

    Args:
        loss: what the model is compiled with, or a loss of Keras's; of anything else nothing is known.
        targets: a tensor, or a structure of them.
        outputs: of the model.

    Raises:
        ProbeError: labels that are no classes, or targets of another shape than the loss compares the outputs with.
    """
    if not tf.is_tensor(targets) or not tf.is_tensor(outputs) or not isinstance(loss, str | keras.losses.Loss):
        return
    kind = keras.losses.get(loss)
    name = getattr(getattr(kind, "fn", kind), "__name__", "")
    given, shown = tuple(targets.shape), tuple(outputs.shape)
    if name == "sparse_categorical_crossentropy":
        if given not in (shown[:-1], (*shown[:-1], 1)):
            raise ProbeError(
                f"probe_targets must be labels of shape {shown[:-1]} for {name} of outputs {shown}, got shape {given};"
                " pass integers 0, 1, …, not one-hot vectors, as many as the model gives answers"
            )
        _check_labels(targets, shown[-1], getattr(kind, "_fn_kwargs", {}).get("ignore_class"))
    elif name == "categorical_crossentropy":
        if given != shown:
            raise ProbeError(
                f"probe_targets must be one-hot vectors of shape {shown} for {name}, got shape {given};"
                f" keras.utils.to_categorical(labels, {shown[-1]}) makes them"
            )
    elif name in _ELEMENTWISE:
        # Keras broadcasts; where that makes more of the outputs than there is, nobody has meant it
        plain, like = (one[:-1] if one[-1:] == (1,) else one for one in (given, shown))
        if len(plain) > len(like) or (len(plain) == len(like) and any(np.greater(plain, like))):
            raise ProbeError(f"probe_targets must be of shape {shown}, as the outputs of the model, got shape {given}")


_ELEMENTWISE = ("mean_squared_error", "mean_absolute_error", "huber", "log_cosh", "binary_crossentropy")


def _check_labels(labels: tf.Tensor, classes: int, ignored: int | None) -> None:
    """Raise unless labels are integers 0 … classes − 1, or the class that the loss ignores."""
    values = labels.numpy()
    wrong = (values != np.floor(values)) | (values < 0) | (values >= classes)
    if ignored is not None:
        wrong &= values != ignored
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ProbeError(
            f"probe_targets must be labels 0 … {classes - 1}, for the model has {classes} outputs, got {values[place]}"
            f" at index {place}; number the classes from 0, or give the model more outputs"
        )


def misfit(model: Any, inputs: Any, targets: Any, weight: Any, error: Exception) -> str:
    """Return in words why a model could not be run on a batch.

    Args:
        model: the model.
        inputs: tensors.
        targets: tensors, or None.
        weight: of the sequences, or None.
        error: what came of the attempt.
    """
    given, asked = keras.tree.flatten(inputs), _asked(model)
    if asked and len(given) != len(asked):
        names = ", ".join(f"{one.name} {tuple(one.shape)}" for one in asked)
        return (
            f"probe_inputs must be the {len(asked)} input{'s' * (len(asked) > 1)} of the model ({names}), got"
            f" {len(given)} of shapes {[tuple(one.shape) for one in given]}; targets go into probe_targets"
        )
    for one, like in zip(given, asked, strict=False):
        got, expected = tuple(one.shape), tuple(like.shape)
        if len(got) != len(expected) or any(b not in (None, a) for a, b in zip(got, expected, strict=True)):
            form = ", ".join("any" if size is None else str(size) for size in expected[1:])
            which = "" if len(asked) == 1 else f" for its input {like.name}"
            hint = (
                "; add the features' axis with inputs[..., None]" if got == expected[:-1] and expected[-1] == 1 else ""
            )
            hint = hint or "; pass inputs as training would use them"
            return f"probe_inputs must be [batch, {form}]{which}, as the model was built, got shape {got}{hint}"
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Embedding):
            high = max((int(np.max(one.numpy())) for one in given if one.dtype.is_integer), default=0)
            if high >= layer.input_dim:
                return (
                    f"probe_inputs must be tokens 0 … {layer.input_dim - 1}, which layer {layer.name} knows, got"
                    f" {high}; encode them as training does"
                )
    if targets is None:
        return "the loss could not be computed without probe_targets; pass what the model's outputs are compared with"
    shapes = {
        name: keras.tree.map_structure(lambda one: tuple(one.shape), value)
        for name, value in (("inputs", inputs), ("targets", targets), ("sample_weight", weight))
        if value is not None
    }
    return (
        f"the model cannot be run on the probe batch of shapes {shapes}: {in_short(error)}; pass inputs, targets and"
        " loss as training would use them"
    )


def _asked(model: Any) -> list[Any]:
    """Return the inputs that a model was built for, none if it does not say."""
    return keras.tree.flatten(getattr(getattr(model, "inner", model), "inputs", None) or [])


def _fraction(values: tf.Tensor) -> float | None:
    """Return the first entry that is no integer."""
    array = values.numpy()
    wrong = array != np.floor(array)
    return float(array[wrong][0]) if wrong.any() else None


def in_short(error: Exception) -> str:
    """Return what an error of Keras or TensorFlow says, without arguments, stacks and colours."""
    text = str(error).split("Arguments received")[0].replace("\x1b[1m", "").replace("\x1b[0m", "")
    text = re.sub(r"Exception encountered when calling \S+\s", "", text)
    if isinstance(error, tf.errors.OpError):  # the stack comes first, then what is wrong, then nodes
        text = "\n".join(
            line
            for line in text.splitlines()
            if line.strip() and not line.startswith((" ", "\t", "Detected at", "Stack"))
        ).split("[[")[0]
    return " ".join(text.split())[:400] or type(error).__name__

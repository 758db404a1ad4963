"""The gradients of a whole model's loss with respect to every state of its recurrent layers, on one fixed batch.

The model is traced once with its recurrent layers stepped in the open. To the state of every step a zero is added,
h_t = step(h_{t−1}, x_t) + ε_t, so that the derivative of the loss with respect to ε_t is the total gradient ∂L/∂h_t,
through later steps and through whatever else the model holds. What lies above a layer reads a copy of its states, and
the derivative with respect to that copy is the direct part. Everything is computed in float64; weights are read anew at
each call, so that one trace serves the whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradlab.opened import Opened, ProbeError, in_float64, losses_in_float64, opened
from gradlab.probe_batch import check_batch, check_kinds, check_targets, in_short, misfit, tensors
from gradlab.step import as_step
from gradlab.trajectory import Trajectory
from gradlab.validation import Array

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class LayerGradients:
    """∂L/∂h_t of one recurrent layer inside a model, arrays [B, T+1, n] with index t = 0 … T in reading order.

    Attributes:
        name: of the layer.
        trajectory: the layer's run: its inputs, its full carried states and its step.
        total: ∂L/∂h_t, everything that h_t changes.
        direct: what reaches h_t without passing through h_{t+1}: from the outputs of the layer and the states that it
            returns. Where a mask leaves a step out, h_t is h_{t−1} carried on.
        output: the part of it that comes from the outputs, without the returned states.
    """

    name: str
    trajectory: Trajectory
    total: Array
    direct: Array
    output: Array

    def __repr__(self) -> str:
        """Return the layer and the shape, without the numbers."""
        return f"LayerGradients({self.name!r}, {self.trajectory.step.description}, shape {self.total.shape})"

    @property
    def recurrent(self) -> Array:
        """What came back through time, total − direct = J_{t+1}ᵀ ∂L/∂h_{t+1}; 0 at t = T."""
        return self.total - self.direct


class ProbeResult(NamedTuple):
    """What one call of a `Probe` gives.

    Attributes:
        loss: L, the mean over the batch as the model's loss reduces it.
        layers: gradients by layer, in the order in which the model calls them; empty where something is not finite.
        weight_gradients: ∂L/∂w by path, as training would see it before clipping; of weights of the same path the
            second is "path:2", and so on.
        finite: whether loss, states, gradients and weights are finite.
        not_finite: what is not, in words; "" if all is.
    """

    loss: float
    layers: dict[str, LayerGradients]
    weight_gradients: dict[str, NDArray[Any]]
    finite: bool
    not_finite: str


class Probe:
    """Total and direct gradients of a model's loss at every state of its recurrent layers, on a fixed batch.

    Works for Sequential, functional and subclassed models: stacked, bidirectional and masked layers, layers that start
    from other layers' states, whatever comes before and after. Dropout is off. The model is not changed and no random
    number is drawn. A stateful layer starts from its present states. Layers that use cuDNN are stepped like any other.

    Args:
        model: a built Keras model.
        inputs: what the model takes, an array or a structure of arrays, batch first.
        targets: what the loss compares with; None if it needs none.
        loss: ``loss(targets, outputs)``, a scalar or one value per sequence (then the mean counts); None: what the
            model was compiled with, and what its layers add (regularisation of weights); not the penalties of a
            `gradlab.fixes.RegularizedModel`, which count in training alone.
        sample_weight: weights of the sequences, for the compiled loss.
        layers: names of the recurrent layers to look at; None for all.

    Raises:
        TypeError: not a Keras model, a loss that is no function.
        ValueError: no recurrent layer, an unknown layer, a model that is not built or not compiled, inputs or targets
            that are NaN, that differ in length, or that the model or its loss cannot take (shapes, features, labels;
            some of it is found at the first call); a loss that does not depend on the states.

    Example:
        >>> model = keras.Sequential([keras.Input((9, 2)), keras.layers.GRU(4, name="gru"), keras.layers.Dense(1)])
        >>> probe = Probe(model, np.ones((3, 9, 2)), np.zeros((3, 1)), loss=keras.losses.MeanSquaredError())
        >>> probe().layers["gru"].total.shape
        (3, 10, 4)
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: Any,
        targets: Any = None,
        *,
        loss: Loss | None = None,
        sample_weight: Any = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.recurrent = recurrent_layers(model, layers)
        if loss is None and (not getattr(model, "compiled", False) or getattr(model, "_compile_loss", None) is None):
            raise ValueError(
                "the model is not compiled with a loss; call model.compile(optimizer, loss) first, or pass"
                " loss=function(targets, outputs)"
            )
        self._loss = loss
        self._inputs = tensors("probe_inputs", inputs)
        self._targets, self._weight = (
            None if value is None else tensors(name, value)
            for name, value in (("probe_targets", targets), ("sample_weight", sample_weight))
        )
        check_batch(self._inputs, self._targets, self._weight)
        check_kinds(model, self._inputs, self._targets)
        if loss is not None and not callable(loss):
            raise TypeError(
                f"loss must be a function of targets and outputs, got {loss!r}; keras.losses.get finds them"
            )
        if not model.built:
            raise ValueError("the model has no weights yet; call model(inputs) once, or give it a keras.Input")
        # made here, since weights cannot be looked at inside of a graph, nor a cell's own precision once it is changed
        self._steps = {id(layer): as_step(layer) for layer in self.recurrent}
        self._called: dict[str, Any] = {}
        self._paths: list[str] = []
        self._function: Any = None  # the graph, once it is traced

    @property
    def layer_names(self) -> list[str]:
        """The layers in the order in which the model calls them; known after the first call."""
        return list(self._called)

    def __call__(self) -> ProbeResult:
        """Return loss and gradients with the weights as they are now."""
        raw = self._run()
        gradients = dict(zip(self._paths, (one.numpy() for one in raw["weights"]), strict=True))
        loss = float(raw["loss"])
        bad = "" if np.isfinite(loss) else f"the loss is {loss}"
        layers, values = {}, []
        for name, one in zip(self._called, raw["layers"], strict=True):
            parts = {key: tensor.numpy() for key, tensor in one.items()}
            values.append(parts)
            for key, word in (("states", "states"), ("total", "gradient")):
                if not bad and not np.isfinite(parts[key]).all():
                    bad = f"the {word} of layer {name} are not finite"
        if not bad and not all(np.isfinite(one.numpy()).all() for one in self.model.variables if _is_float(one)):
            bad = "a weight is not finite"
        if not bad:
            for (name, layer), parts in zip(self._called.items(), values, strict=True):
                layers[name] = _gradients(name, layer, parts)
        return ProbeResult(loss, layers, gradients, not bad, bad)

    def _run(self) -> dict[str, Any]:
        """Run the graph; the first time, trace it, and say in our words what does not fit."""
        if self._function is not None:
            return dict(self._function())
        try:
            # one graph, for there are no arguments; TensorFlow takes several probes for one that is traced in vain
            traced = tf.function(self._graph, autograph=False).get_concrete_function()
            raw = dict(traced())
        except ProbeError as error:
            raise ProbeError(in_short(error)) from None  # Keras puts its own words around it
        except Exception as error:  # a model may raise anything on inputs that it was not made for
            raise ValueError(misfit(self.model, self._inputs, self._targets, self._weight, error)) from error
        self._function = traced
        return raw

    def _graph(self) -> dict[str, Any]:
        """Return loss, weight gradients and what belongs to each layer, as tensors."""
        variables = list(self.model.trainable_variables)
        captured: list[Opened] = []
        with tf.GradientTape() as tape, opened(self.model, self.recurrent, self._steps, tape, captured):
            outputs = self.model(self._inputs, training=False)
            value = self._value(outputs)
        if not captured:
            raise ProbeError(f"the model calls none of its recurrent layers {[one.name for one in self.recurrent]}")
        n = len(captured)
        sources = [getattr(one, name) for name in ("epsilon", "read", "returned") for one in captured]
        found = tape.gradient(value, sources + [one.value for one in variables])
        if all(one is None for one in found[:n]):
            raise ProbeError(
                "the loss does not depend on the states of any recurrent layer; compute it from the model's outputs"
                " with TensorFlow or Keras operations"
            )
        kept = []
        for i, one in enumerate(captured):
            total, output, last = (
                tf.zeros_like(source) if gradient is None else gradient
                for source, gradient in zip(sources[i : 3 * n : n], found[i : 3 * n : n], strict=True)
            )
            direct = tf.concat([output[:-1], output[-1:] + last[None]], axis=0)
            parts = {"inputs": one.inputs, "states": one.states, "mask": one.mask}
            kept.append(parts | {"total": total, "direct": direct, "output": output})
        weights = [
            tf.zeros(one.shape) if g is None else tf.convert_to_tensor(g)
            for one, g in zip(variables, found[3 * n :], strict=True)
        ]
        self._called = {one.name: one.layer for one in captured}
        self._paths = numbered([one.path for one in variables], ":")
        return {"loss": value, "weights": weights, "layers": kept}

    def _value(self, outputs: Any) -> tf.Tensor:
        """Return the loss, a scalar in float64."""
        check_targets(self.model.loss if self._loss is None else self._loss, self._targets, outputs)
        if self._loss is None:
            given = {"x": self._inputs, "y": self._targets, "y_pred": outputs, "sample_weight": self._weight}
            if not getattr(self.model._compile_loss, "built", True):  # Keras makes its loss objects at the first call
                self.model.compute_loss(**given, training=False)
            with losses_in_float64(self.model):
                value = self.model.compute_loss(**given, training=False)
        else:
            with in_float64([self._loss] if isinstance(self._loss, keras.losses.Loss) else []):
                value = self._loss(self._targets, outputs)
        value = tf.cast(tf.convert_to_tensor(value), tf.float64)
        if value.shape.rank not in (0, 1):
            raise ProbeError(
                f"loss must return a scalar or one value per sequence, got shape {tuple(value.shape)};"
                " reduce over time and units inside it"
            )
        return tf.reduce_mean(value)


def layer_gradients(
    model: keras.Model,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Loss | None = None,
    sample_weight: Any = None,
    layers: Sequence[str] | None = None,
) -> dict[str, LayerGradients]:
    """Return total and direct ∂L/∂h_t of every recurrent layer inside a model, for one batch.

    Args:
        model: a built Keras model, see `Probe`.
        inputs: what it takes, batch first.
        targets: what the loss compares with.
        loss: ``loss(targets, outputs)``; None: what the model was compiled with.
        sample_weight: for the compiled loss.
        layers: names of the layers wanted; None for all.

    Returns:
        `LayerGradients` by the name of the layer, in the order in which the model calls them.

    Raises:
        TypeError, ValueError: as `Probe`; something is not finite.

    Example:
        >>> model = keras.Sequential([keras.Input((9, 2)), keras.layers.LSTM(4, name="lstm"), keras.layers.Dense(1)])
        >>> found = layer_gradients(model, np.ones((3, 9, 2)), np.zeros((3, 1)), loss=keras.losses.MeanSquaredError())
        >>> found["lstm"].total.shape    # h and c
        (3, 10, 8)
    """
    result = Probe(model, inputs, targets, loss=loss, sample_weight=sample_weight, layers=layers)()
    if not result.finite:
        raise ValueError(f"there are no gradients: {result.not_finite}; look at the weights and the inputs")
    return result.layers


def recurrent_layers(model: Any, names: Sequence[str] | None = None) -> list[Any]:
    """Return the recurrent layers inside a model, at any depth, both halves of a `Bidirectional` among them.

    Raises:
        TypeError: not a Keras model.
        ValueError: there are none, or none of a given name.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"model must be a keras.Model, got {type(model).__name__}; for one cell or layer there is gl.analyze"
        )
    found = [one for one in model._flatten_layers() if isinstance(one, keras.layers.RNN)]
    if not found:
        raise ValueError(
            f"the model has no recurrent layer; gradlab looks for keras.layers.RNN and its kinds (LSTM, GRU, SimpleRNN)"
            f" and found {sorted({type(one).__name__ for one in model._flatten_layers(include_self=False)})}"
        )
    if names is None:
        return found
    known = [one.name for one in found]
    for name in [names] if isinstance(names, str) else names:
        if name not in known:
            raise ValueError(f"layers must name recurrent layers of the model, {known}, got {name!r}")
    return [one for one in found if one.name in names]


def numbered(names: list[str], separator: str) -> list[str]:
    """Return names that differ: of the same ones the second is "name", separator, "2", and so on."""
    found: list[str] = []
    for plain in names:
        name, count = plain, 2
        while name in found:
            name, count = f"{plain}{separator}{count}", count + 1
        found.append(name)
    return found


def _is_float(variable: Any) -> bool:
    """Return whether a variable holds floating-point numbers."""
    return str(variable.dtype).startswith(("float", "bfloat"))


def _gradients(name: str, layer: Any, parts: dict[str, Array]) -> LayerGradients:
    """Return what the graph gave of a layer as arrays, batch first."""
    inputs, states, *gradients = (np.ascontiguousarray(parts[key].swapaxes(0, 1)) for key in _TIME_FIRST)
    mask = parts["mask"].T
    step = as_step(layer, input_size=inputs.shape[2])
    trajectory = Trajectory(inputs, states, step, None if mask.all() else np.ascontiguousarray(mask))
    return LayerGradients(name, trajectory, *gradients)


_TIME_FIRST = ("inputs", "states", "total", "direct", "output")

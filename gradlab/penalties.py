"""Penalties to train with that Keras lacks, on how gradients travel through recurrent layers, and their model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab.opened import Opened, losses_in_float64, opened
from gradlab.probe import numbered, recurrent_layers
from gradlab.step import as_step
from gradlab.validation import positive_integer, positive_number

_TINY = 1e-300  # below any norm that is not zero; keeps the slope of a root or a logarithm finite there


@keras.saving.register_keras_serializable(package="gradlab")
class NormPreservation:
    """Ω: punish steps that change the norm of the gradient that passes through them.

    Ω = Σ_t (‖J_tᵀ g_t‖/‖g_t‖ − 1)², g_t = ∂L/∂h_t, mean over the batch. As in the paper only the immediate derivative
    counts: states and g_t are constants, and weights enter through J_t = ∂h_t/∂h_{t−1} alone. A step without gradient,
    and one that a mask leaves out, costs nothing.

    Args:
        weight: what Ω is multiplied by in the loss; the authors took 4 in the paper, their code has 2.

    Raises:
        ValueError: a weight that is not positive and finite.

    Source:
        Pascanu, Mikolov & Bengio 2013, section 3.3; their state is the pre-activation, here it is h.

    Example:
        >>> NormPreservation(2.0).weight
        2.0
    """

    def __init__(self, weight: float = 2.0) -> None:
        self.weight = positive_number("weight", weight)

    def __call__(self, layer: Opened, total: tf.Tensor) -> tf.Tensor:
        """Return Ω of one layer from its run and ∂L/∂h_t [T+1, B, n]."""
        n = layer.step.state_size
        before, x, u = (
            tf.reshape(tf.stop_gradient(one), (-1, size))
            for one, size in ((layer.states[:-1], n), (layer.inputs, layer.inputs.shape[2]), (total[1:], n))
        )
        largest = tf.reduce_max(tf.abs(u), axis=-1, keepdims=True)
        alive = largest[:, 0] > 0.0
        u = u / tf.where(largest > 0.0, largest, tf.ones_like(largest))  # no square of it underflows
        u = u / tf.maximum(tf.norm(u, axis=-1, keepdims=True), _TINY)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(before)
            after = layer.step.function(layer.weights, before, x)
        back = tape.gradient(after, before, output_gradients=u)
        ratio = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(back), axis=-1), _TINY))
        counts = alive & tf.reshape(layer.mask, (-1,))
        each = tf.where(counts, tf.square(ratio - 1.0), tf.zeros_like(ratio))
        return tf.reduce_sum(each) / tf.cast(tf.shape(layer.states)[1], tf.float64)

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make it again."""
        return {"weight": self.weight}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NormPreservation:
        """Return the penalty that `get_config` describes."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="gradlab")
class Flossing:
    """Gradient flossing: pull the largest Lyapunov exponents towards zero.

    L = (1/k) Σ_i (λ_i − λ*)², λ_i = (1/T) Σ_t ln|R_ii(t)|, J_t Q_{t−1} = Q_t R_t, mean over the batch, i = 1 … k. The
    derivative goes through the QR decompositions and through the states on which the J_t hang. A step that takes one of
    the k directions to zero (units of a ReLU that are off) has no logarithm and no slope: it is left out of that
    sequence's sums, as if a mask did it, and T counts the others.

    Args:
        weight: what the penalty is multiplied by in the loss.
        k: how many exponents, at most n.
        target: λ* in nats per step.
        sequences: of how many sequences of each batch, the first ones; None for all.
        seed: of the frame Q_0.

    Raises:
        ValueError: a number out of range.
        TypeError: counts that are not integers.

    Source:
        Engelken 2023, Gradient flossing (NeurIPS), who flosses before training and now and then in between.

    Example:
        >>> Flossing(k=4).k
        4
    """

    def __init__(
        self, weight: float = 1.0, k: int = 1, *, target: float = 0.0, sequences: int | None = None, seed: int = 0
    ) -> None:
        self.weight, self.k = positive_number("weight", weight), positive_integer("k", k)
        if not np.isfinite(target):
            raise ValueError(f"target must be finite, got {target}")
        self.target, self.seed = float(target), int(seed)
        self.sequences = None if sequences is None else positive_integer("sequences", sequences)

    def __call__(self, layer: Opened, total: tf.Tensor) -> tf.Tensor:
        """Return the penalty of one layer from its run; the gradient is not needed."""
        exponents = self.exponents(layer)
        return tf.reduce_mean(tf.square(exponents - self.target))

    def exponents(self, layer: Opened) -> tf.Tensor:
        """Return λ_1 … λ_k of each sequence [B, k], differentiable in the weights."""
        n, k = layer.step.state_size, self.k
        if k > n:
            raise ValueError(f"k must be at most the {n} entries of the state of layer {layer.name}, got {k}")
        b = slice(None, self.sequences)
        states, inputs, mask = layer.states[:-1, b], layer.inputs[:, b], layer.mask[:, b]
        T, B = tf.shape(inputs)[0], tf.shape(inputs)[1]
        frame, _ = np.linalg.qr(np.random.default_rng(self.seed).standard_normal((n, k)))
        Q = tf.tile(tf.constant(frame)[None], (B, 1, 1))

        def array(values: tf.Tensor) -> tf.TensorArray:
            return tf.TensorArray(values.dtype, size=T, element_shape=values.shape[1:]).unstack(values)

        hs, xs, flags = array(states), array(inputs), array(mask)

        def repeated(values: tf.Tensor) -> tf.Tensor:  # [B, ·] → [B·k, ·]: one copy for each column
            return tf.repeat(values, k, axis=0)

        def body(t: tf.Tensor, Q: tf.Tensor, sums: tf.Tensor, count: tf.Tensor) -> tuple[Any, ...]:
            before, x = repeated(hs.read(t)), repeated(xs.read(t))
            columns = tf.reshape(tf.transpose(Q, (0, 2, 1)), (-1, n))
            with tf.GradientTape(watch_accessed_variables=False) as outer:
                u = tf.zeros_like(before)
                outer.watch(u)
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(before)
                    after = layer.step.function(layer.weights, before, x)
                pulled = inner.gradient(after, before, output_gradients=u)  # Jᵀu, linear in u
            pushed = outer.gradient(pulled, u, output_gradients=columns)  # so that this is J·column
            C = tf.transpose(tf.reshape(pushed, (-1, k, n)), (0, 2, 1))
            taken = (flags.read(t) & _full_rank(C))[:, None]
            # the slope of QR divides by R: what is not taken must not enter it, or its NaN comes back times zero
            new, R = tf.linalg.qr(tf.where(taken[:, :, None], C, tf.stop_gradient(Q)))
            growth = tf.math.log(tf.abs(tf.linalg.diag_part(R)))
            Q = tf.ensure_shape(tf.where(taken[:, :, None], new, Q), (None, n, k))
            sums = sums + tf.where(taken, growth, tf.zeros_like(growth))
            return t + 1, Q, sums, count + tf.cast(taken, tf.float64)

        start = (0, tf.ensure_shape(Q, (None, n, k)), tf.zeros_like(Q[:, 0, :]), tf.zeros_like(Q[:, 0, :1]))
        _, _, sums, count = tf.while_loop(lambda t, *_: t < T, body, start)
        return sums / tf.maximum(count, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make it again."""
        return {name: getattr(self, name) for name in ("weight", "k", "target", "sequences", "seed")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Flossing:
        """Return the penalty that `get_config` describes."""
        return cls(**config)


def _full_rank(C: tf.Tensor) -> tf.Tensor:
    """Return which of [B, n, k] have k independent columns, to rounding [B]."""
    C = tf.stop_gradient(C)
    pivots = tf.abs(tf.linalg.diag_part(tf.linalg.qr(C)[1]))
    allowance = C.shape[1] * np.finfo(np.float64).eps * tf.norm(C, axis=1)
    return tf.reduce_all(pivots > tf.maximum(allowance, _TINY), axis=1)


@keras.saving.register_keras_serializable(package="gradlab")
class RegularizedModel(keras.Model):
    """A model that is trained with penalties on how gradients travel through its recurrent layers.

    loss = what it is compiled with + Σ weight·penalty over layers and penalties, in training only. The penalties are
    computed in float64 from a second run of the model with dropout off; the first is Keras's own. Compile and fit it
    like any model; the weights are those of the model it was made of, which can be used and saved by itself. Saved as a
    whole it goes on where it was (``keras.models.load_model`` after ``import gradlab.fixes``).

    Each penalty, summed over the layers and without its weight, is in the logs of a training beside the loss: the mean
    over the sequences of the epoch, as ``norm_preservation_penalty``, ``flossing_penalty`` or, after the name of a
    class or function of your own, ``<name>_penalty``; a second of the same name ends in ``_2``.

    Args:
        model: a built Keras model.
        penalties: `NormPreservation`, `Flossing`, or functions (`gradlab.opened.Opened`, ∂L/∂h_t [T+1, B, n]) → scalar
            with an attribute ``weight``.
        layers: names of the recurrent layers that they act on; None for all.
        **kwargs: `name` and the like.

    Raises:
        TypeError: not a Keras model, or penalties that are no list.
        ValueError: no recurrent layer, a model that is not built, no penalties.

    Example:
        >>> x, y = np.ones((8, 5, 2)), np.zeros((8, 1))
        >>> plain = keras.Sequential([keras.Input((5, 2)), keras.layers.SimpleRNN(3), keras.layers.Dense(1)])
        >>> model = RegularizedModel(plain, [NormPreservation(2.0)])
        >>> model.compile(keras.optimizers.SGD(0.01, clipnorm=1.0), "mse")
        >>> sorted(model.fit(x, y, verbose=0).history)
        ['loss', 'norm_preservation_penalty']
    """

    def __init__(
        self, model: keras.Model, penalties: Sequence[Any], *, layers: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        found = recurrent_layers(model, layers)
        if not model.built:
            raise ValueError("the model has no weights yet; call model(inputs) once, or give it a keras.Input")
        if callable(penalties):
            raise TypeError(f"penalties must be a list, got {penalties!r}; put brackets around it")
        if not penalties or not all(callable(one) and hasattr(one, "weight") for one in penalties):
            raise ValueError(
                f"penalties must hold at least one, each a callable with a weight, got {list(penalties)!r};"
                " gl.fixes.NormPreservation(2.0) is one"
            )
        self.inner = model
        self._layers_given = None if layers is None else [one.name for one in found]
        self._penalties = list(penalties)
        self._recurrent = [id(one) for one in found]
        self._steps = {id(one): as_step(one) for one in found}
        # float64, as the penalties are; Keras finds them here, and resets them each epoch
        self._means = [keras.metrics.Mean(name, dtype="float64") for name in _names(self._penalties)]
        self.supports_jit = False  # loops of unknown length, and derivatives of derivatives
        self.built = True

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Return what the model inside returns."""
        return self.inner(inputs, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the compiled loss, and in training the penalties on top."""
        loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if not training:
            return loss
        total, each = self._evaluated(x, y, sample_weight)
        size = tf.shape(keras.tree.flatten(x)[0])[0]  # the weight with which Keras averages the loss over batches
        for mean, value in zip(self._means, each, strict=True):
            mean.update_state(tf.stop_gradient(value), sample_weight=size)
        extra = tf.cast(total, loss.dtype)
        return _after(loss + extra, extra)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take Keras's training step, and return the means of the penalties beside its metrics."""
        return super().train_step(data) | {one.name: one.result() for one in self._means}

    def get_metrics_result(self) -> dict[str, Any]:
        """Return Keras's metrics without the means of the penalties: in evaluation there are none."""
        names = {one.name for one in self._means}
        return {name: value for name, value in super().get_metrics_result().items() if name not in names}

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make it again: the network inside and the penalties, without weights.

        Raises:
            TypeError: a penalty of your own that Keras could not make again.
        """
        return super().get_config() | {
            "model": keras.saving.serialize_keras_object(self.inner),
            "penalties": [_config(one) for one in self._penalties],
            "layers": self._layers_given,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> RegularizedModel:
        """Return the model that `get_config` describes."""
        made = keras.saving.deserialize_keras_object(
            {name: config[name] for name in ("model", "penalties")}, custom_objects=custom_objects
        )
        return cls(**(config | made))

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Do nothing: the network inside comes with its weights."""

    def penalty(self, x: Any, y: Any, sample_weight: Any = None) -> tf.Tensor:
        """Return Σ weight·penalty on a batch, in float64, differentiable in the weights."""
        return self._evaluated(x, y, sample_weight)[0]

    def _evaluated(self, x: Any, y: Any, sample_weight: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return Σ weight·penalty, and each penalty summed over the layers."""
        recurrent = [one for one in self.inner._flatten_layers() if id(one) in self._recurrent]
        captured: list[Opened] = []
        with tf.GradientTape() as tape, opened(self.inner, recurrent, self._steps, tape, captured):
            outputs = self.inner(x, training=False)
            given = {"x": x, "y": y, "y_pred": outputs, "sample_weight": sample_weight, "training": False}
            if not getattr(self._compile_loss, "built", True):  # Keras makes its loss objects at the first call
                super().compute_loss(**given)
            with losses_in_float64(self):
                value = super().compute_loss(**given)
        gradients = tape.gradient(value, [one.epsilon for one in captured])
        parts, each = [tf.zeros((), tf.float64)], [[tf.zeros((), tf.float64)] for _ in self._penalties]
        for layer, gradient in zip(captured, gradients, strict=True):
            total = tf.zeros_like(layer.states) if gradient is None else gradient
            for one, values in zip(self._penalties, each, strict=True):
                values.append(one(layer, total))
                parts.append(one.weight * values[-1])
        return tf.add_n(parts), [tf.add_n(values) for values in each]


def _names(penalties: Sequence[Any]) -> list[str]:
    """Return names of penalties in the logs: of a class or function FooBar "foo_bar_penalty", then "…_penalty_2"."""
    plain = [getattr(one, "__name__", type(one).__name__).strip("_<>") for one in penalties]
    words = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().removesuffix("_penalty") for name in plain]
    return numbered([f"{name}_penalty" for name in words], "_")


def _config(penalty: Any) -> Any:
    """Return what Keras makes a penalty of again, or raise where it could not."""
    of_a_module = getattr(penalty, "__qualname__", "<") == getattr(penalty, "__name__", None) != "<lambda>"
    if not of_a_module and not (hasattr(penalty, "get_config") and hasattr(type(penalty), "from_config")):
        raise TypeError(
            f"a penalty that is saved must be a function of a module, or an object with get_config and from_config, got"
            f" {penalty!r}; give it these (and its class keras.saving.register_keras_serializable()), or save the"
            " weights with model.save_weights(path), or the network alone with model.inner.save(path)"
        )
    return keras.saving.serialize_keras_object(penalty)


@tf.custom_gradient
def _after(loss: tf.Tensor, extra: tf.Tensor) -> Any:
    """Return the loss; its gradient waits for the penalty, and is NaN where that is NaN.

    A training step assigns to a weight as soon as its gradient is known, and the penalty reads the weights a second
    time. TensorFlow orders the two by a control edge. Its graph optimiser (2.21, dependency optimisation) drops that
    edge, as there is a longer way through the IdentityN by which Keras's optimisers take all gradients, and then cuts
    the IdentityN in pieces; now and then the readout was read after its update. A gradient that is computed from the
    penalty cannot be known before the penalty has read what it needs.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.where(tf.math.is_nan(extra), extra, upstream), None

    return tf.identity(loss), gradient

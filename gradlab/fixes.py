"""Remedies against vanishing and exploding gradients that Keras lacks: penalties to train with, and initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab.cells import RecurrentInitializer
from gradlab.opened import Opened, losses_in_float64, opened
from gradlab.predictions.memory import chrono_biases
from gradlab.probe import recurrent_layers
from gradlab.step import as_step
from gradlab.validation import Array, positive_integer, positive_number

__all__ = ["BlockInitializer", "ChronoInitializer", "Flossing", "NormPreservation", "RegularizedModel"]

_TINY = 1e-300  # below any norm that is not zero; keeps the slope of a root or a logarithm finite there


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


def _full_rank(C: tf.Tensor) -> tf.Tensor:
    """Return which of [B, n, k] have k independent columns, to rounding [B]."""
    C = tf.stop_gradient(C)
    pivots = tf.abs(tf.linalg.diag_part(tf.linalg.qr(C)[1]))
    allowance = C.shape[1] * np.finfo(np.float64).eps * tf.norm(C, axis=1)
    return tf.reduce_all(pivots > tf.maximum(allowance, _TINY), axis=1)


class RegularizedModel(keras.Model):
    """A model that is trained with penalties on how gradients travel through its recurrent layers.

    loss = what it is compiled with + Σ weight·penalty over layers and penalties, in training only. The penalties are
    computed in float64 from a second run of the model with dropout off; the first is Keras's own. Compile and fit it
    like any model; the weights are those of the model it was made of, which can be used and saved by itself.

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
        ['loss']
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
        self._penalties = list(penalties)
        self._recurrent = [id(one) for one in found]
        self._steps = {id(one): as_step(one) for one in found}
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
        extra = tf.cast(self.penalty(x, y, sample_weight), loss.dtype)
        return _after(loss + extra, extra)

    def penalty(self, x: Any, y: Any, sample_weight: Any = None) -> tf.Tensor:
        """Return Σ weight·penalty on a batch, in float64, differentiable in the weights."""
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
        parts = [tf.zeros((), tf.float64)]
        for layer, gradient in zip(captured, gradients, strict=True):
            total = tf.zeros_like(layer.states) if gradient is None else gradient
            parts += [one.weight * one(layer, total) for one in self._penalties]
        return tf.add_n(parts)


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


@keras.saving.register_keras_serializable(package="gradlab")
class ChronoInitializer(keras.initializers.Initializer):
    """Biases with which gates remember for times spread up to a wanted one.

    LSTM: b_f = ln U[1, T_max − 1], b_i = −b_f, else 0, in Keras's order i, f, c, o. GRU: b_z = ln U[1, T_max − 1] (in
    Keras z is what is kept), else 0; of its two biases the one beside the inputs. A unit then forgets over 1 + e^b
    steps. It makes the whole bias: an LSTM needs ``unit_forget_bias=False``, or Keras fills the forget gate with 1 and
    asks for the rest in two pieces.

    Args:
        longest: T_max, the longest dependency in steps, more than 2.
        cell: "lstm" or "gru".
        seed: an integer.

    Raises:
        ValueError: an unknown cell, or a number out of range.

    Source:
        Tallec & Ollivier 2018.

    Example:
        >>> layer = keras.layers.LSTM(8, bias_initializer=ChronoInitializer(100), unit_forget_bias=False)
        >>> layer.build((None, None, 2))
        >>> i, f, c, o = np.split(np.asarray(layer.cell.bias), 4)
        >>> bool((i == -f).all()), bool((c == 0).all())
        (True, True)
    """

    def __init__(self, longest: float, cell: str = "lstm", seed: int = 0) -> None:
        if cell not in ("lstm", "gru"):
            raise ValueError(f'cell must be "lstm" or "gru", got {cell!r}')
        chrono_biases(1, longest, seed=seed)  # says what is wrong with them
        self.longest, self.cell, self.seed = longest, cell, seed
        self._last: tuple[int, ...] | None = None  # the shape asked for before

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        """Return the bias, [4n] of an LSTM, [3n] or [2, 3n] of a GRU."""
        blocks = 4 if self.cell == "lstm" else 3
        expected = 1 if self.cell == "lstm" else (1, 2)
        wrong = len(shape) != 1 if expected == 1 else len(shape) not in (1, 2)
        if wrong or shape[-1] % blocks:
            hint = "; give the layer unit_forget_bias=False" if self.cell == "lstm" else ""
            hint = '; say cell="gru" for a GRU' if self.cell == "lstm" and len(shape) == 2 else hint
            raise ValueError(f"the bias of a {self.cell} has {blocks}n entries, got shape {tuple(shape)}{hint}")
        last, self._last = self._last, tuple(shape)
        if self.cell == "lstm" and last is not None and shape[0] == 2 * last[0]:
            raise ValueError(
                f"biases of {last[0]} and then {shape[0]} entries are asked for, as by Keras where it fills the forget"
                " gate itself; give the layer unit_forget_bias=False, and every layer an initializer of its own"
            )
        drawn = chrono_biases(shape[-1] // blocks, self.longest, seed=self.seed)
        bias = gate_bias(self.cell, tuple(shape), drawn.forget, drawn.input)
        return tf.convert_to_tensor(bias, dtype=tf.as_dtype(dtype or keras.config.floatx()))

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make it again."""
        return {"longest": self.longest, "cell": self.cell, "seed": self.seed}


def gate_bias(cell: str, shape: tuple[int, ...], forget: Any, input_gate: Any = 0.0) -> Array:
    """Return the bias of an LSTM or a GRU that is zero but for the gates that keep the state, as Keras lays it out.

    An LSTM has its gates in the order i, f, c, o [4n]; a GRU z, r, h, [3n] or [2, 3n], of which z keeps the state, and
    the first row goes with the inputs.

    Args:
        cell: "lstm" or "gru".
        shape: of the bias.
        forget: of the forget gate (LSTM) or the update gate (GRU), a number or [n].
        input_gate: of the input gate, which a GRU has not.

    Example:
        >>> gate_bias("lstm", (8,), 1.0)
        array([0., 0., 1., 1., 0., 0., 0., 0.])
    """
    bias: Array = np.zeros(shape)
    first = bias[0] if bias.ndim == 2 else bias
    n = shape[-1] // (4 if cell == "lstm" else 3)
    if cell == "lstm":
        first[:n], first[n : 2 * n] = input_gate, forget
    else:
        first[:n] = forget
    return bias


@keras.saving.register_keras_serializable(package="gradlab")
class BlockInitializer(keras.initializers.Initializer):
    """The recurrent kernel of a simple or gated layer, every gate's matrix of a size of its own.

    Keras draws the kernels [n, m·n] of gates as one matrix: "orthogonal" then gives none of the m matrices orthogonal
    columns, and there is no gain. Here each is drawn by itself, by a name and a gain that
    `gradlab.cells.RecurrentInitializer` knows: for "orthogonal", "glorot", "gaussian", "identity" g sets all singular
    values, or the variance g²/n.

    Args:
        kind: "orthogonal", "glorot" (or "xavier"), "gaussian", "identity".
        gain: g, one for all gates or one for each, in Keras's order (LSTM i, f, c, o; GRU z, r, h).
        seed: an integer.

    Raises:
        ValueError: an unknown name, a gain that is not positive and finite; when called, a shape that is not [n, m·n]
            or another number of gates.

    Source:
        Saxe, McClelland & Ganguli 2014 (orthogonal); Le, Jaitly & Hinton 2015 (identity).

    Example:
        >>> W = np.asarray(BlockInitializer("orthogonal", gain=[1.0, 1.0, 0.5], seed=0)((4, 12)))
        >>> [round(float(np.linalg.norm(block, 2)), 6) for block in np.split(W, 3, axis=1)]
        [1.0, 1.0, 0.5]
    """

    def __init__(self, kind: str = "orthogonal", gain: float | Sequence[float] = 1.0, seed: int = 0) -> None:
        gains = [float(gain)] if isinstance(gain, int | float) else [float(one) for one in gain]
        if not gains:
            raise ValueError("gain must be one number or one for each gate, got none")
        for one in gains:
            RecurrentInitializer(kind, one)  # says what is wrong with them
        self.kind, self.gain, self.seed = kind, gains[0] if isinstance(gain, int | float) else gains, int(seed)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        """Return the kernel [n, m·n]."""
        if len(shape) != 2 or shape[0] < 1 or shape[1] % shape[0]:
            raise ValueError(f"a recurrent kernel is [n, m·n] for m gates, got shape {tuple(shape)}")
        blocks = shape[1] // shape[0]
        gains = self.gain if isinstance(self.gain, list) else [self.gain] * blocks
        if len(gains) != blocks:
            raise ValueError(f"gain must be one number or one for each of the {blocks} gates, got {len(gains)}")
        seeds = (int(one) for one in np.random.SeedSequence(self.seed).generate_state(blocks) >> 1)
        parts = [
            RecurrentInitializer(self.kind, g, seed=s)((shape[0], shape[0]), dtype)
            for g, s in zip(gains, seeds, strict=True)
        ]
        return tf.concat(parts, axis=1)

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make it again."""
        return {"kind": self.kind, "gain": self.gain, "seed": self.seed}

"""The simple recurrent network from scratch, as a Keras-compatible cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab import activations
from gradlab.spectrum import spectral_radius as radius_of
from gradlab.validation import Array, positive_integer, positive_number, update_rates

_INITIALIZERS = {
    "orthogonal": "orthogonal",
    "glorot": "glorot",
    "xavier": "glorot",
    "identity": "identity",
    "gaussian": "gaussian",
}


@keras.saving.register_keras_serializable(package="gradlab")
class RecurrentInitializer(keras.initializers.Initializer):
    """A recurrent matrix drawn by name and brought to a chosen size.

    - ``"orthogonal"``: g·Q, Q Haar-distributed: every singular value is g (Saxe, McClelland & Ganguli 2014).
    - ``"glorot"`` or ``"xavier"``: g·U[−√(3/n), √(3/n)] (Glorot & Bengio 2010): variance g²/n.
    - ``"gaussian"``: N(0, g²/n): spectral radius → g, largest singular value → 2g as n → ∞.
    - ``"identity"``: g·I (Le, Jaitly & Hinton 2015).

    Args:
        name: one of the above.
        gain: g, a positive number.
        spectral_radius: if given, the matrix is rescaled so that ρ(W) has exactly this value; excludes `gain`.
        seed: an integer for the same matrix every time, None for a new one.

    Raises:
        ValueError: unknown name, a gain or radius that is not positive and finite, or both given, a negative seed.
        TypeError: a seed that is no integer.
    """

    def __init__(
        self,
        name: str = "orthogonal",
        gain: float | None = None,
        spectral_radius: float | None = None,
        seed: int | None = None,
    ) -> None:
        if name not in _INITIALIZERS:
            raise ValueError(
                f"recurrent_initializer must be one of {sorted(_INITIALIZERS)} or a Keras initializer, got {name!r}"
            )
        if gain is not None and spectral_radius is not None:
            raise ValueError(
                f"recurrent_gain={gain} and spectral_radius={spectral_radius} both set the size of W; give one of them"
            )
        for label, value in (("recurrent_gain", gain), ("spectral_radius", spectral_radius)):
            if value is not None:
                positive_number(label, value)
        self.name, self.gain, self.spectral_radius, self.seed = name, gain, spectral_radius, _checked_seed(seed)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        """Return the matrix [n, n]."""
        shape = tuple(int(size) for size in shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"a recurrent matrix is square [n, n], got shape {shape}")
        rng, n = np.random.default_rng(self.seed), shape[0]
        kind = _INITIALIZERS[self.name]
        if kind == "orthogonal":
            Q, R = np.linalg.qr(rng.standard_normal(shape))
            W = Q * np.sign(np.diagonal(R))  # the signs make Q Haar-distributed
        elif kind == "glorot":
            W = rng.uniform(-1.0, 1.0, shape) * np.sqrt(3.0 / n)
        elif kind == "gaussian":
            W = rng.standard_normal(shape) / np.sqrt(n)
        else:
            W = np.eye(n)
        if self.spectral_radius is not None:
            W = W * (self.spectral_radius / radius_of(W))
        elif self.gain is not None:
            W = W * self.gain
        return tf.convert_to_tensor(W, dtype=tf.as_dtype(dtype or keras.config.floatx()))

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make the initializer again."""
        return {
            "name": self.name,
            "gain": self.gain,
            "spectral_radius": self.spectral_radius,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="gradlab")
class VanillaRNNCell(keras.layers.Layer):
    """The simple recurrent network, h_t = φ(W h_{t−1} + U x_t + b), from matrix products and an activation.

    With a_t = W h_{t−1} + U x_t + b and D_t = diag φ'(a_t):

    - plain: h_t = φ(a_t), J_t = D_t W;
    - ``leak``: h_t = (1 − α) h_{t−1} + α φ(a_t), J_t = (1 − α) I + α D_t W;
    - ``residual``: h_t = h_{t−1} + α φ(a_t), J_t = I + α D_t W.

    The links of the chain of bounds that hold for J_t = D_t W alone, k ln(γσ_1(W)), the slopes and mean field, are not
    there for the latter two (`Step.recurrence` is None), nor does ρ(W) say by itself how fast their gradient decays.

    It is a Keras-compatible cell: ``keras.layers.RNN(cell)`` makes a layer of it, which trains, saves and loads
    with a model. Its derivative stays accurate when units saturate (see `gradlab.activations`).

    Args:
        units: n, the number of hidden units.
        activation: "tanh", "relu", "sigmoid", "linear", or a callable that acts on each entry by itself. TensorFlow's
            and Keras's own functions of these names become gradlab's. Python values that any other callable reads
            are read when its graph is traced (see `as_step`).
        use_bias: whether b is there.
        kernel_initializer: for U, any Keras initializer or its name.
        recurrent_initializer: for W: "orthogonal", "glorot" (or "xavier"), "identity", "gaussian", or any Keras
            initializer object.
        bias_initializer: for b, any Keras initializer or its name.
        recurrent_gain: the size of W, see `RecurrentInitializer`; 1 if neither it nor `spectral_radius` is given.
        spectral_radius: rescale W to this spectral radius instead.
        seed: makes the weights the same every time.
        leak: α in (0, 1] of the leaky update, a step of length α = dt/τ of τ ḣ = −h + φ(a); None: not leaky.
        residual: α > 0 of the residual update; None: not residual.
        **kwargs: `name`, `dtype` and the like, as for every Keras layer.

    Raises:
        ValueError: zero units, an unknown activation or initializer, a gain and a radius at once, a negative seed, a
            leak or residual out of range, or both.
        TypeError: units or a seed that are not integers.

    Source:
        Elman 1990; Jaeger, Lukoševičius, Popovici & Siewert 2007 for the leaky update; He, Zhang, Ren & Sun 2016 for
        the residual one, of layers.

    Example:
        >>> import numpy as np
        >>> cell = VanillaRNNCell(3, activation="tanh", spectral_radius=0.9, seed=0)
        >>> cell.build((None, 2))
        >>> [tuple(w.shape) for w in cell.weights]
        [(2, 3), (3, 3), (3,)]
        >>> round(float(abs(np.linalg.eigvals(cell.recurrent_matrix)).max()), 6)
        0.9
    """

    def __init__(
        self,
        units: int,
        activation: str | Callable[[tf.Tensor], tf.Tensor] = "tanh",
        *,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        recurrent_gain: float | None = None,
        spectral_radius: float | None = None,
        seed: int | None = None,
        leak: float | None = None,
        residual: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.leak, self.residual = update_rates(leak, residual)
        self.units = positive_integer("units", units)
        self.state_size = self.output_size = self.units
        self.activation = _activation(activation)
        self.use_bias = bool(use_bias)
        self.seed = seed = _checked_seed(seed)
        # one seed gives U and W streams of their own
        kernel_seed, recurrent_seed = (
            (None, None) if seed is None else map(int, np.random.SeedSequence(seed).generate_state(2) >> 1)
        )
        self.kernel_initializer = _initializer(kernel_initializer, kernel_seed)
        self.recurrent_initializer = _recurrent_initializer(
            recurrent_initializer, recurrent_gain, spectral_radius, recurrent_seed
        )
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make U [d, n] and W [n, n], both stored transposed as Keras does, and b [n]."""
        features = input_shape[-1]
        self.kernel = self.add_weight(shape=(features, self.units), initializer=self.kernel_initializer, name="kernel")
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, self.units), initializer=self.recurrent_initializer, name="recurrent_kernel"
        )
        self.bias = (
            self.add_weight(shape=(self.units,), initializer=self.bias_initializer, name="bias")
            if self.use_bias
            else None
        )

    def call(self, inputs: tf.Tensor, states: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return (h_t, [h_t]) from x_t [B, d] and [h_{t−1}] [B, n]."""
        previous = states[0] if isinstance(states, list | tuple) else states
        a = tf.matmul(previous, self.recurrent_kernel) + tf.matmul(inputs, self.kernel)
        if self.bias is not None:
            a = a + self.bias
        h = self.activation(a)
        if self.update is not None:
            kept, added = self.update
            h = kept * previous + added * h
        return h, [h]

    @property
    def update(self) -> tuple[float, float] | None:
        """(κ, α) of h_t = κ h_{t−1} + α φ(a_t), None for the plain h_t = φ(a_t)."""
        if self.leak is not None:
            return 1.0 - self.leak, self.leak
        return None if self.residual is None else (1.0, self.residual)

    def get_initial_state(self, batch_size: int | None = None) -> list[tf.Tensor]:
        """Return [h_0], zeros [B, n]."""
        if batch_size is None:
            raise ValueError("get_initial_state needs the number of sequences, got None; pass batch_size=B")
        return [tf.zeros((batch_size, self.units), dtype=self.compute_dtype)]

    @property
    def recurrent_matrix(self) -> Array:
        """W [n, n] as it acts, a_t = W h_{t−1} + …: the transpose of `recurrent_kernel`."""
        if not self.built:
            raise ValueError("the cell has no weights yet; call cell.build((None, features)) first")
        return np.asarray(keras.ops.convert_to_numpy(self.recurrent_kernel), np.float64).T

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make the cell again (without its weights)."""
        name = activations.name_of(self.activation)
        return {
            **super().get_config(),
            "units": self.units,
            "activation": name or keras.saving.serialize_keras_object(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "recurrent_initializer": keras.initializers.serialize(self.recurrent_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "seed": self.seed,
            "leak": self.leak,
            "residual": self.residual,
        }


def _checked_seed(seed: Any) -> int | None:
    """Return a seed as an int ≥ 0, or None."""
    if seed is None:
        return None
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer or None, got {seed!r} of type {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return int(seed)


def _activation(activation: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the activation as a function."""
    if isinstance(activation, dict):  # from a saved model
        activation = keras.saving.deserialize_keras_object(activation)
    if isinstance(activation, str):
        if activation not in activations.BY_NAME:
            raise ValueError(
                f"activation must be one of {sorted(activations.BY_NAME)} or a callable, got {activation!r}"
            )
        return activations.BY_NAME[activation]
    if not callable(activation):
        raise TypeError(f"activation must be a name {sorted(activations.BY_NAME)} or a callable, got {activation!r}")
    return activations.accurate(activation)


def _initializer(initializer: Any, seed: int | None) -> keras.initializers.Initializer:
    """Return a Keras initializer; one given by name gets the seed."""
    if isinstance(initializer, str) and seed is not None:
        made = keras.initializers.get(initializer)
        config = made.get_config()
        return type(made).from_config({**config, "seed": seed}) if "seed" in config else made
    return keras.initializers.get(initializer)


def _recurrent_initializer(
    initializer: Any, gain: float | None, radius: float | None, seed: int | None
) -> keras.initializers.Initializer:
    """Return the initializer of W; a gain or a radius goes with a name only."""
    if isinstance(initializer, str):
        return RecurrentInitializer(initializer, gain, radius, seed)
    if gain is not None or radius is not None:
        raise ValueError(
            "recurrent_gain and spectral_radius go with an initializer by name, got the object"
            f" {initializer!r}; set the size in that object, or name one of {sorted(_INITIALIZERS)}"
        )
    return keras.initializers.get(initializer)

"""Activations whose derivative stays accurate when units saturate.

TensorFlow differentiates tanh and the logistic function from their *output*: 1 − tanh²(a) has a relative
error of 1e-8 at a = 10 and is exactly 0 at a = 19.5, where the truth is 4.6e-17. Small singular values of long
products are made of just these numbers, so here the derivative is taken from the *pre-activation*:
sech²(a) = 4 e^{−2|a|} / (1 + e^{−2|a|})², right to a few units in the last place until it underflows at a ≈ 354.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


@tf.custom_gradient
def tanh(a: tf.Tensor) -> Any:
    """Return the hyperbolic tangent, its derivative sech²(a) computed from `a`."""

    def derivative(upstream: tf.Tensor) -> tf.Tensor:
        decay = tf.exp(-2.0 * tf.abs(a))
        return upstream * (4.0 * decay / tf.square(1.0 + decay))

    return tf.tanh(a), derivative


@tf.custom_gradient
def sigmoid(a: tf.Tensor) -> Any:
    """Return the logistic function 1 / (1 + e^{−a}), its derivative e^{−|a|} / (1 + e^{−|a|})² computed from `a`."""

    def derivative(upstream: tf.Tensor) -> tf.Tensor:
        decay = tf.exp(-tf.abs(a))
        return upstream * (decay / tf.square(1.0 + decay))

    return tf.sigmoid(a), derivative


def relu(a: tf.Tensor) -> tf.Tensor:
    """Return max(a, 0); the derivative at 0 is taken as 0."""
    return tf.nn.relu(a)


def linear(a: tf.Tensor) -> tf.Tensor:
    """Return `a`."""
    return tf.identity(a)


BY_NAME: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "tanh": tanh,
    "relu": relu,
    "sigmoid": sigmoid,
    "linear": linear,
}

# γ = sup φ', the constant of the chain of bounds
SLOPE_SUPREMUM = {"tanh": 1.0, "relu": 1.0, "sigmoid": 0.25, "linear": 1.0}


# the same functions under every name that TensorFlow and Keras have for them
_ALIASES = {
    "tanh": (tanh, keras.activations.tanh, keras.ops.tanh, tf.tanh, tf.nn.tanh, tf.math.tanh),
    "relu": (relu, keras.activations.relu, keras.ops.relu, tf.nn.relu),
    "sigmoid": (sigmoid, keras.activations.sigmoid, keras.ops.sigmoid, tf.sigmoid, tf.nn.sigmoid, tf.math.sigmoid),
    "linear": (linear, keras.activations.linear, tf.identity),
}


def name_of(activation: Any) -> str | None:
    """Return the name under which gradlab knows an activation, or None.

    It knows its own, those of TensorFlow and Keras that compute the same, and a `keras.layers.Activation` of these.
    """
    if type(activation) is keras.layers.Activation:
        activation = activation.activation
    for name, functions in _ALIASES.items():
        if any(activation is one for one in functions):
            return name
    return None


def accurate(activation: Any) -> Any:
    """Return gradlab's accurate version of a TensorFlow or Keras activation; anything unknown comes back unchanged."""
    name = name_of(activation)
    return activation if name is None else BY_NAME[name]


def slopes(activation: Callable[[tf.Tensor], tf.Tensor], a: tf.Tensor) -> tf.Tensor:
    """Return φ'(a), elementwise, shape as `a`."""
    with tf.GradientTape() as tape:
        tape.watch(a)
        value = activation(a)
    slope = tape.gradient(value, a)
    return tf.zeros_like(a) if slope is None else slope

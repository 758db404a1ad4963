"""Cells with a fault each, for `check_cell` to find: in the gradient, across the batch, in the state, in a file."""

from __future__ import annotations

import keras
import tensorflow as tf
from cell_cases import LeakyCell


class Faulty(LeakyCell):
    """A right cell but for what a subclass does."""

    def __init__(self, units, leak=1.0, **kwargs):
        super().__init__(units, leak, **kwargs)


def tanh_with(slope):
    """Return tanh with a derivative of its own."""

    @tf.custom_gradient
    def tanh(a):
        y = tf.tanh(a)
        return y, lambda upstream: slope(upstream, y)

    return tanh


class WrongGradient(Faulty):
    tanh = staticmethod(tanh_with(lambda upstream, y: 0.999999 * upstream * (1.0 - y * y)))

    def call(self, inputs, states):
        h = self.tanh(tf.matmul(states[0], self.recurrent_kernel) + tf.matmul(inputs, self.kernel))
        return h, [h]


class OutputSlope(WrongGradient):
    """The derivative of the logistic function, by a slip."""

    tanh = staticmethod(tanh_with(lambda upstream, y: upstream * y * (1.0 - y)))


class NoGradient(WrongGradient):
    tanh = staticmethod(tanh_with(lambda upstream, y: tf.zeros_like(upstream)))


class WrongRelu(WrongGradient):
    @staticmethod
    @tf.custom_gradient
    def tanh(a):
        return tf.nn.relu(a), lambda upstream: upstream * tf.where(a > 0, tf.ones_like(a), 0.01 * tf.ones_like(a))


class StoppedPath(Faulty):
    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = 0.5 * h + 0.5 * tf.stop_gradient(h)
        return h, [h]


class ClippedGradient(WrongGradient):
    tanh = staticmethod(tanh_with(lambda upstream, y: tf.clip_by_norm(upstream, 1.5, axes=[1]) * (1.0 - y * y)))


class BatchMean(Faulty):
    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = h - 1e-6 * tf.reduce_mean(h, axis=0, keepdims=True)
        return h, [h]


class BatchNormed(Faulty):
    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.norm = keras.layers.BatchNormalization()

    def build(self, input_shape):
        super().build(input_shape)
        self.norm.build((None, self.units))

    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = self.norm(h, training=True)
        return h, [h]


class GradientOfTheBatch(WrongGradient):
    """The values are right, and the gradient is the batch's mean."""

    tanh = staticmethod(
        tanh_with(
            lambda upstream, y: tf.zeros_like(y) + tf.reduce_mean(upstream * (1.0 - y * y), axis=0, keepdims=True)
        )
    )


class RowIndex(Faulty):
    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = h * (1.0 - 0.01 * tf.cast(tf.range(tf.shape(h)[0]), h.dtype)[:, None])
        return h, [h]


class TwoParts(Faulty):
    """A state [h, c]; what of it is returned is left to a subclass."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.state_size = [units, units]

    def call(self, inputs, states):
        h, c = states
        c = 0.5 * c + super().call(inputs, [h])[0]
        h = tf.tanh(c)
        return h, self.returned(states, h, c)

    def returned(self, states, h, c):
        return [h, c]


class ReturnsOnlyH(TwoParts):
    def returned(self, states, h, c):
        return [h]


class KeepsTheOldC(TwoParts):
    def returned(self, states, h, c):
        return [h, states[1]]


class NeverReadsC(TwoParts):
    def call(self, inputs, states):
        return super().call(inputs, [states[0], tf.zeros_like(states[1])])


class HiddenWeight(Faulty):
    def build(self, input_shape):
        super().build(input_shape)
        self.c = self.add_weight(shape=(self.units,), initializer="zeros", trainable=False, name="memory")

    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = h + self.c
        self.c.assign(tf.reduce_mean(h, axis=0))
        return h, [h]


class HiddenAttribute(Faulty):
    memory = 0.0

    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = h + 0.1 * self.memory
        self.memory = h
        return h, [h]


class Noisy(Faulty):
    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = h + 1e-4 * tf.random.normal(tf.shape(h), dtype=h.dtype)
        return h, [h]


class DropsUnits(Faulty):
    """A dropout that is never switched off, with Keras's generator."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.drop = keras.layers.Dropout(0.01, seed=1)

    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        h = self.drop(h, training=True)
        return h, [h]


class LosesItsKernel(Faulty):
    def save_own_variables(self, store):
        store["0"] = keras.ops.convert_to_numpy(self.recurrent_kernel)

    def load_own_variables(self, store):
        self.recurrent_kernel.assign(store["0"])


class Unsaveable(Faulty):
    def get_config(self):
        raise NotImplementedError("no configuration")


class GradientOfFloat32(WrongGradient):
    """Its gradient raises in float64, in which a float32 cell is analysed too."""

    tanh = staticmethod(tanh_with(lambda upstream, y: upstream * tf.constant(1.0, tf.float32)))

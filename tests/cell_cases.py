"""Cells of every kind that gradlab steps: small, and with random weights that leave no bias and no gate at zero."""

from __future__ import annotations

import dataclasses
from functools import cache

import keras
import numpy as np
import tensorflow as tf

from gradlab.cells import VanillaRNNCell
from gradlab.step import as_step
from gradlab.trajectory import rollout

UNITS, FEATURES, BATCH, STEPS = 3, 2, 2, 5
MASK = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)  # not the same when read from the end
EPS = float(np.finfo(np.float64).eps)


@keras.saving.register_keras_serializable(package="gradlab_tests")
def softened(a):
    return tf.nn.softplus(a) - 0.5


@keras.saving.register_keras_serializable(package="gradlab_tests")
class LeakyCell(keras.layers.Layer):
    """A stranger's cell with a setting beside its weights."""

    def __init__(self, units, leak=0.4, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.leak = leak

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, self.units), name="recurrent_kernel")

    def call(self, inputs, states):
        a = keras.ops.matmul(states[0], self.recurrent_kernel) + keras.ops.matmul(inputs, self.kernel)
        h = (1.0 - self.leak) * states[0] + self.leak * keras.ops.tanh(a)
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units, "leak": self.leak}


class UnregisteredCell(LeakyCell):
    pass


class ForgetfulCell(LeakyCell):
    """Its configuration leaves the leak out, so that a cell made of it is another cell."""

    def get_config(self):
        config = super().get_config()
        del config["leak"]
        return config


class DenseCell(keras.layers.Layer):
    """A layer inside a cell without `build`: its weights come at the first call, in the global dtype."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.dense = keras.layers.Dense(units, activation="tanh")

    def call(self, inputs, states):
        h = self.dense(keras.ops.concatenate([inputs, states[0]], axis=-1))
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class PlainCell:
    """No Keras layer: a state of two parts and weights of its own, in float64."""

    state_size = (2, 3)
    output_size = 3

    def __init__(self):
        rng = np.random.default_rng(5)
        self.W, self.V, self.U = (tf.constant(rng.standard_normal(shape)) for shape in ((2, 3), (3, 2), (2, 3)))

    def call(self, inputs, states):
        slow, fast = states
        slow = slow + 0.1 * tf.tanh(tf.matmul(fast, self.V))
        fast = tf.tanh(tf.matmul(slow, self.W) + tf.matmul(inputs, self.U))
        return fast, [slow, fast]


_ROTATION = np.linalg.qr(np.random.default_rng(6).standard_normal((UNITS, UNITS)))[0]


def rotating(state, inputs):
    """A callable step."""
    drive = tf.concat([inputs, tf.sin(inputs[:, :1])], axis=-1)
    return tf.tanh(tf.matmul(state, tf.constant(_ROTATION)) + drive) * tf.cos(state)


def _stack(dtype):
    members = [
        VanillaRNNCell(2, dtype=dtype),
        keras.layers.LSTMCell(2, dtype=dtype),
        keras.layers.GRUCell(1, dtype=dtype),
    ]
    return keras.layers.StackedRNNCells(members, dtype=dtype)


def _half(which, dtype):
    layer = keras.layers.Bidirectional(keras.layers.LSTM(2, return_sequences=True, dtype=dtype), dtype=dtype)
    layer.build((None, None, FEATURES))
    return getattr(layer, which)


# name → maker of a fresh one in a given dtype
CELLS = {
    "vanilla tanh": lambda dtype: VanillaRNNCell(UNITS, dtype=dtype),
    "vanilla sigmoid": lambda dtype: VanillaRNNCell(UNITS, "sigmoid", use_bias=False, dtype=dtype),
    "vanilla linear": lambda dtype: VanillaRNNCell(UNITS, "linear", dtype=dtype),
    "vanilla relu": lambda dtype: VanillaRNNCell(UNITS, "relu", dtype=dtype),
    "vanilla callable": lambda dtype: VanillaRNNCell(UNITS, softened, dtype=dtype),
    "simple": lambda dtype: keras.layers.SimpleRNNCell(UNITS, dtype=dtype),
    "lstm": lambda dtype: keras.layers.LSTMCell(UNITS, dtype=dtype),
    "gru": lambda dtype: keras.layers.GRUCell(UNITS, dtype=dtype),
    "gru reset before": lambda dtype: keras.layers.GRUCell(UNITS, reset_after=False, dtype=dtype),
    "gru unusual": lambda dtype: keras.layers.GRUCell(
        UNITS, activation="softplus", recurrent_activation="sigmoid", use_bias=False, dtype=dtype
    ),
    "stack": _stack,
    "custom": lambda dtype: LeakyCell(UNITS, dtype=dtype),
    "custom unregistered": lambda dtype: UnregisteredCell(UNITS, leak=0.7, dtype=dtype),
    "custom with a layer": lambda dtype: DenseCell(UNITS, dtype=dtype),
}
LAYERS = {
    "SimpleRNN": lambda dtype: keras.layers.SimpleRNN(UNITS, return_sequences=True, dtype=dtype),
    "LSTM": lambda dtype: keras.layers.LSTM(UNITS, return_sequences=True, dtype=dtype),
    "GRU": lambda dtype: keras.layers.GRU(UNITS, return_sequences=True, dtype=dtype),
    "GRU reset before": lambda dtype: keras.layers.GRU(UNITS, reset_after=False, return_sequences=True, dtype=dtype),
    "LSTM backwards": lambda dtype: keras.layers.LSTM(UNITS, go_backwards=True, return_sequences=True, dtype=dtype),
    "RNN of vanilla": lambda dtype: keras.layers.RNN(
        VanillaRNNCell(UNITS, dtype=dtype), return_sequences=True, dtype=dtype
    ),
    "RNN of custom": lambda dtype: keras.layers.RNN(LeakyCell(UNITS, dtype=dtype), return_sequences=True, dtype=dtype),
    "RNN of stack": lambda dtype: keras.layers.RNN(_stack(dtype), return_sequences=True, dtype=dtype),
    "forward half": lambda dtype: _half("forward_layer", dtype),
    "backward half": lambda dtype: _half("backward_layer", dtype),
}
OTHERS = {
    "list": lambda dtype: [VanillaRNNCell(UNITS, dtype=dtype), keras.layers.GRUCell(2, dtype=dtype)],
    "plain": lambda dtype: PlainCell(),
    "callable": lambda dtype: rotating,
}
KINDS = {**CELLS, **LAYERS, **OTHERS}
# one of each architecture: layers step exactly as their cells do
STEPPED = [*CELLS, "list", "plain", "callable"]


def ready(name, dtype="float32", seed=0, scale=0.8):
    """Return a cell of this kind, built, with random weights."""
    cell = KINDS[name](dtype)
    as_step(cell, input_size=FEATURES, state_size=UNITS)
    rng = np.random.default_rng(seed)
    for one in cell if isinstance(cell, list) else [cell]:
        if hasattr(one, "get_weights"):
            one.set_weights([scale * rng.standard_normal(w.shape) for w in one.get_weights()])
    return cell


@cache
def step_of(name):
    """Return a step of this kind, made once."""
    return as_step(ready(name), input_size=FEATURES, state_size=UNITS)


def random_trajectory(name, seed, scale=0.8, *, mask=None, batch=BATCH, steps=STEPS):
    """Return a rollout of this kind with random weights, inputs and h_0, without tracing anything anew."""
    rng = np.random.default_rng(seed)
    step = step_of(name)
    weights = tuple(tf.constant(scale * rng.standard_normal(w.shape)) for w in step.weights)
    step = dataclasses.replace(step, weights=weights, recurrence=None, recurrent_matrices={})
    inputs = rng.standard_normal((batch, steps, FEATURES))
    return rollout(step, inputs, 0.5 * rng.standard_normal((batch, step.state_size)), mask)


def step_rounding(traj, eps=EPS):
    """Return a bound on the rounding of one entry of one step, in absolute terms.

    A pre-activation is a sum of n + d + 1 products, each at most `largest` in size; every activation in `KINDS` has
    Lipschitz constant 1 or less, and a gated step combines its values, of size at most `largest`, in under 20 more
    operations. A stack of L layers repeats this, which 3 covers.
    """
    n, d = traj.step.state_size, traj.inputs.shape[2]
    weight = max([1.0, *(float(np.abs(w).max()) for w in traj.step.weights)])
    largest = max(1.0, weight * max(1.0, float(np.abs(traj.states).max()), float(np.abs(traj.inputs).max())))
    return 3 * eps * (n + d + 1 + 20) * (n + d + 1) * largest


def jacobian_rounding(traj, eps=EPS):
    """Return a bound on the rounding of one entry of J_t: slopes and gates err as the step does, times a weight."""
    weight = max([1.0, *(float(np.abs(w).max()) for w in traj.step.weights)])
    return traj.step.state_size * weight * step_rounding(traj, eps)


def product_rounding(traj, J):
    """Return a bound on the rounding of ∂h_T/∂h_t in norm, [B, T] at t = 0 … T−1.

    Each factor errs by at most n·δ in Frobenius norm, each product of n×n matrices by n·eps relative to the norms:
    Π ‖J_s‖ (1 + n·eps + n·δ/‖J_s‖) − Π ‖J_s‖.
    """
    n = J.shape[-1]
    norms = np.maximum(np.linalg.norm(J, axis=(2, 3)), 1e-300)
    growth = np.log1p(n * EPS + n * jacobian_rounding(traj) / norms)
    backwards = np.flip(np.cumsum(np.flip(np.stack([np.log(norms), growth]), 2), 2), 2)
    return np.exp(backwards[0]) * np.expm1(backwards[1])


def state_rounding(traj, J, eps=EPS):
    """Return a bound on the rounding gathered in each state, in norm [B, T + 1]: the Jacobians carry it on."""
    error = np.zeros(traj.states.shape[:2])
    stretch = np.linalg.norm(J, 2, axis=(2, 3))
    for t in range(J.shape[1]):
        error[:, t + 1] = stretch[:, t] * error[:, t] + J.shape[-1] * step_rounding(traj, eps)
    return error

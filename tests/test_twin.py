from __future__ import annotations

import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import FEATURES, STEPS, UNITS, DenseCell, ForgetfulCell, LeakyCell, PlainCell, ready, step_rounding

import gradlab as gl
from gradlab import gradients, jacobian, trajectory, twin
from gradlab.cells import VanillaRNNCell
from gradlab.step import as_step
from gradlab.trajectory import rollout

RNG = np.random.default_rng(41)
INPUTS = RNG.standard_normal((2, STEPS, FEATURES))


def test_a_configuration_that_leaves_something_out_is_noticed():
    cell = ForgetfulCell(UNITS, leak=0.9)
    with pytest.warns(UserWarning, match=r"no float64 version of ForgetfulCell .* differs by .* analysed in float32"):
        step = as_step(cell, input_size=FEATURES)
    assert step.dtype == "float32"
    traj = rollout(step, INPUTS)
    own = keras.layers.RNN(cell, return_sequences=True)(INPUTS.astype(np.float32)).numpy()
    # the same operations in the same precision, the order of their sums apart
    assert np.abs(traj.states[:, 1:] - own).max() <= 10 * STEPS * 2.0**-23
    assert np.isfinite(gl.step_jacobians(traj)).all()


def test_the_default_leak_hides_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert as_step(ForgetfulCell(UNITS), input_size=FEATURES).dtype == "float64"


@pytest.mark.parametrize("kind", [LeakyCell, ForgetfulCell])
@pytest.mark.filterwarnings("ignore:no float64 version")
def test_a_changed_setting_is_a_changed_step(kind):
    cell = kind(UNITS, leak=0.7)
    before = rollout(cell, INPUTS, np.ones(UNITS))
    cell.leak = 0.1
    after = rollout(cell, INPUTS, np.ones(UNITS))
    h, x = tf.constant(before.states[:, 0], tf.float32), tf.constant(INPUTS[:, 0], tf.float32)
    assert np.allclose(after.states[:, 1], cell(x, [h])[0], rtol=0.0, atol=20 * 2.0**-23)
    assert not np.allclose(after.states[:, 1], before.states[:, 1], rtol=0.0, atol=1e-3)


class Scaling(keras.layers.Layer):
    scale = 0.5

    def call(self, a):
        return self.scale * a


class HoldingCell(LeakyCell):
    """Holds its leak in places of every kind, and its configuration mentions none of them."""

    def __init__(self, units, **kwargs):
        super().__init__(units, leak=1.0, **kwargs)
        self.options = {"leak": 0.5}
        self._private = 0.5
        self.inner = Scaling()
        self.array = np.full(units, 0.5)
        self.part = type("Part", (), {"leak": 0.5})()

    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        leak = self.options["leak"] + self._private + self.inner.scale + self.array.astype("float32") + self.part.leak
        h = keras.ops.cast(self.inner(h), h.dtype) * keras.ops.cast(leak, h.dtype)
        return h, [h]

    def get_config(self):
        config = super().get_config()
        del config["leak"]
        return config


@pytest.mark.parametrize(
    "change",
    [
        lambda cell: cell.options.__setitem__("leak", 0.9),
        lambda cell: setattr(cell, "_private", 0.9),
        lambda cell: setattr(cell.inner, "scale", 0.9),
        lambda cell: setattr(cell, "array", np.full(UNITS, 0.9)),
        lambda cell: cell.array.__setitem__(1, 0.9),
        lambda cell: setattr(cell.part, "leak", 0.9),
    ],
    ids=["dict", "private", "sublayer", "replaced array", "array in place", "object"],
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.filterwarnings("ignore:no float64 version", "ignore:some rows of")
def test_a_value_changed_anywhere_is_a_changed_step(change, dtype):
    cell = HoldingCell(UNITS, dtype=dtype)
    start = np.ones(UNITS)
    before = rollout(cell, INPUTS, start)
    gl.step_jacobians(before)
    assert rollout(cell, INPUTS, start).step.function is before.step.function
    change(cell)
    after = rollout(cell, INPUTS, start)
    h, x = (tf.constant(one, cell.compute_dtype) for one in (before.states[:, 0], INPUTS[:, 0]))
    expected = tf.cast(cell(x, [h])[0], tf.float64)
    eps = twin._EPSILON[cell.compute_dtype]
    assert np.abs(after.states[:, 1] - expected).max() <= 20 * eps
    assert not np.allclose(after.states, before.states, rtol=0.0, atol=1e-2)
    assert not np.allclose(gl.step_jacobians(after), gl.step_jacobians(before), rtol=0.0, atol=1e-2)


@pytest.mark.parametrize("kind", [VanillaRNNCell, keras.layers.GRUCell])
def test_a_value_that_an_activation_reads_is_read_once_for_a_run_and_its_jacobians(kind):
    slope = [1.0]
    cell = kind(UNITS, activation=lambda a: slope[0] * a)
    first = rollout(cell, INPUTS, np.ones(UNITS))
    slope[0] = 0.25
    second = rollout(cell, INPUTS, np.ones(UNITS))
    assert not np.allclose(first.states[:, 1], second.states[:, 1], rtol=0.0, atol=1e-3)
    # the graph of these Jacobians is traced only now, and still belongs to the states of the first run
    J = gl.step_jacobians(first, method="autodiff")
    slope[0] = 1.0
    again = rollout(cell, INPUTS, np.ones(UNITS))
    assert np.array_equal(again.states, first.states)
    assert np.array_equal(gl.step_jacobians(again, method="autodiff"), J)
    assert not np.allclose(gl.step_jacobians(second, method="autodiff"), J, rtol=0.0, atol=1e-3)


def test_a_value_that_a_callable_reads_is_read_when_its_step_is_made():
    slope = [1.0]
    step = as_step(lambda h, x: slope[0] * h, state_size=2, input_size=FEATURES)
    slope[0] = 0.5
    assert np.array_equal(gl.step_jacobians(rollout(step, INPUTS, np.ones(2)))[0, 0], np.eye(2))


def test_a_variable_that_an_activation_captures_is_live():
    slope = tf.Variable(1.0, dtype=tf.float64)
    cell = VanillaRNNCell(UNITS, lambda a: slope * a, dtype="float64")
    step = as_step(cell, input_size=FEATURES)
    before = rollout(step, INPUTS).states
    slope.assign(0.5)
    assert np.array_equal(rollout(step, INPUTS).states[:, 1], 0.5 * before[:, 1])
    assert as_step(cell).function is step.function


@pytest.mark.parametrize(
    ("dtype", "units", "leak"),
    [
        ("mixed_float16", 4, 0.1),
        ("mixed_bfloat16", 4, 0.1),
        ("float16", 4, 0.1),
        ("float32", 200, 0.399),
        ("float64", 200, 0.4 + 1e-11),
    ],
)
def test_what_a_configuration_leaves_out_is_noticed_in_every_precision_and_width(dtype, units, leak):
    with pytest.warns(UserWarning, match=r"no float64 version of ForgetfulCell .* differs by"):
        step = as_step(ForgetfulCell(units, leak=leak, dtype=dtype), input_size=FEATURES)
    assert step.dtype == keras.DTypePolicy(dtype).compute_dtype


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", [LeakyCell, DenseCell])
@pytest.mark.parametrize("units", [3, 200])
def test_a_faithful_configuration_is_analysed_in_float64_and_kept(kind, dtype, units):
    cell = kind(units, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step = as_step(cell, input_size=FEATURES)
    assert step.dtype == "float64"
    cell.set_weights([RNG.standard_normal(w.shape) for w in cell.get_weights()])
    assert as_step(cell).function is step.function


def test_a_cell_that_needs_to_know_its_batch_size_is_stepped_all_the_same():
    class Fixed(LeakyCell):
        def call(self, inputs, states):
            h, _ = super().call(inputs, [states[0] + np.zeros((inputs.shape[0], 1), "float32")])
            return h, [h]

    assert rollout(Fixed(UNITS, dtype="float32"), INPUTS).states.shape == (2, STEPS + 1, UNITS)


def test_layers_inside_a_cell_and_inside_an_activation_are_stepped_in_float64():
    cell = DenseCell(UNITS)
    step = as_step(cell, input_size=FEATURES)
    assert [tuple(w.shape) for w in step.weights] == [(FEATURES + UNITS, UNITS), (UNITS,)]
    K, b = (w.astype(np.float64) for w in cell.get_weights())
    traj = rollout(step, INPUTS)
    expected = np.tanh(np.concatenate([INPUTS[:, 0], traj.states[:, 0]], axis=1) @ K + b)
    assert np.abs(traj.states[:, 1] - expected).max() <= 2 * step_rounding(traj)

    prelu = keras.layers.SimpleRNNCell(UNITS, activation=keras.layers.PReLU(alpha_initializer="ones"))
    step = as_step(prelu, input_size=FEATURES)
    assert len(step.weights) == 4
    traj = rollout(step, INPUTS)
    U, W, b, _ = (w.astype(np.float64) for w in prelu.get_weights())
    expected = INPUTS[:, 2] @ U + traj.states[:, 2] @ W + b  # slope one on either side
    assert np.abs(traj.states[:, 3] - expected).max() <= 2 * step_rounding(traj)


def test_half_precision_is_analysed_in_float64():
    cell = keras.layers.GRUCell(UNITS, dtype="mixed_float16")
    step = as_step(cell, input_size=FEATURES)
    assert {w.dtype for w in step.weights} == {tf.float64}
    full = keras.layers.GRUCell(UNITS, dtype="float64")
    full.build((None, FEATURES))
    full.set_weights(cell.get_weights())
    assert np.array_equal(rollout(cell, INPUTS).states, rollout(full, INPUTS).states)


def test_a_float32_callable_is_analysed_in_float32_with_a_warning():
    W = tf.constant(RNG.standard_normal((UNITS, UNITS)), tf.float32)
    for step in (lambda h, x: tf.tanh(tf.matmul(h, W)), lambda h, x: tf.cast(tf.tanh(h), tf.float32)):
        with pytest.warns(UserWarning, match="does not take float64 .* analysed in float32"):
            made = as_step(step, state_size=UNITS, input_size=FEATURES)
        assert made.dtype == "float32"
        states = rollout(made, INPUTS, np.full(UNITS, 0.3)).states
        assert np.array_equal(states[:, 1:], states[:, 1:].astype(np.float32))


# --- snapshots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla tanh", "lstm", "RNN of stack", "custom", "forgetful"])
def test_training_changes_no_step_that_was_made_before(name):
    if name == "forgetful":
        cell = ForgetfulCell(UNITS, leak=0.9)
        with pytest.warns(UserWarning, match="no float64 version"):
            step = as_step(cell, input_size=FEATURES)
    else:
        cell = ready(name)
        step = as_step(cell)
    traj = rollout(step, INPUTS)
    J = gl.step_jacobians(traj)
    weights = cell.get_weights()
    cell.set_weights([w + 1.0 for w in weights])
    assert np.array_equal(rollout(step, INPUTS).states, traj.states)
    assert np.array_equal(gl.step_jacobians(traj), J)
    new = as_step(cell)
    assert all(np.array_equal(w + 1, theirs) for w, theirs in zip(weights, new.weights, strict=True))
    assert not np.allclose(rollout(cell, INPUTS).states, traj.states)
    assert not np.allclose(gl.step_jacobians(rollout(cell, INPUTS)), J)


# --- graphs and memory -----------------------------------------------------------------------------------------------


def traces(step):
    """Return how many graphs there are for this architecture."""
    builders = [
        (trajectory._rollout_graph,),
        (jacobian._jacobian_graph, False),
        (gradients._backward_graph,),
    ]
    return [step.function.graph(*builder).experimental_get_tracing_count() for builder in builders]


def use(cell, batch, steps):
    traj = rollout(cell, RNG.standard_normal((batch, steps, FEATURES)))
    gl.step_jacobians(traj, method="autodiff")
    gl.state_gradients(traj, None, lambda states: tf.reduce_sum(states, axis=[1, 2]))
    return traj.step


FIRST, LATER = [(2, 6), (2, 7), (3, 7)], [(4, 3), (1, 12), (7, 2), (2, 6)]


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: VanillaRNNCell(5, recurrent_initializer=["glorot", "gaussian"][seed % 2], seed=seed),
        lambda seed: keras.layers.LSTM(4, dropout=0.1 * seed, dtype=["float32", "float64"][seed % 2]),
        lambda seed: [keras.layers.GRUCell(1), VanillaRNNCell(2, recurrent_gain=0.5 + seed)],
    ],
    ids=["vanilla", "lstm", "list"],
)
def test_one_architecture_is_traced_once_whatever_its_weights_and_lengths(make):
    for seed, shape in enumerate(FIRST):  # a new shape may relax the signature, first in T, then in B
        step = use(make(seed), *shape)
    known, count = len(twin._by_architecture), traces(step)
    assert 0 < min(count) <= max(count) <= len(FIRST)
    for seed, shape in enumerate(LATER):
        assert use(make(seed), *shape).function is step.function
    assert traces(step) == count
    assert len(twin._by_architecture) == known


def test_a_custom_cell_is_traced_once_while_it_is_trained():
    cell = LeakyCell(4)
    for shape in FIRST:
        step = use(cell, *shape)
    count = traces(step)
    for shape in LATER:
        cell.set_weights([0.9 * w for w in cell.get_weights()])
        assert use(cell, *shape).function is step.function
    assert traces(step) == count


@pytest.mark.parametrize(
    "make",
    [
        lambda: VanillaRNNCell(UNITS),
        lambda: VanillaRNNCell(UNITS, activation=lambda a: tf.tanh(a)),
        lambda: keras.layers.LSTMCell(UNITS),
        lambda: keras.layers.GRU(UNITS),
        lambda: LeakyCell(UNITS),
        lambda: ForgetfulCell(UNITS, leak=0.9),
        lambda: keras.layers.StackedRNNCells([LeakyCell(2), keras.layers.LSTMCell(2)]),
        PlainCell,
    ],
    ids=["vanilla", "lambda", "lstm", "layer", "custom", "forgetful", "stack", "plain"],
)
@pytest.mark.filterwarnings("ignore:no float64 version")
def test_nothing_keeps_a_cell_alive(make):
    gc.collect()
    known = len(twin._by_architecture), len(twin._by_cell)
    cell = make()
    reference = weakref.ref(cell)
    step = rollout(cell, INPUTS).step
    if isinstance(cell, LeakyCell):
        use(cell, 2, 4)
    held = step.cell if not isinstance(cell, keras.layers.RNN) else cell
    del cell
    assert reference() is held  # a step keeps its cell, or its function would be gone
    del step, held
    gc.collect()
    assert reference() is None
    assert len(twin._by_cell) == known[1]
    assert len(twin._by_architecture) <= known[0] + 1

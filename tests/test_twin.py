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

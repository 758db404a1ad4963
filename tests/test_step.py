from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import (
    CELLS,
    EPS,
    FEATURES,
    KINDS,
    LAYERS,
    MASK,
    STEPS,
    UNITS,
    LeakyCell,
    PlainCell,
    ready,
    rotating,
    step_rounding,
)

from gradlab.cells import VanillaRNNCell
from gradlab.step import Step, as_step
from gradlab.trajectory import rollout

RNG = np.random.default_rng(41)
INPUTS = RNG.standard_normal((2, STEPS, FEATURES))

PARTS = {
    "vanilla tanh": [("h", 3)],
    "simple": [("h", 3)],
    "lstm": [("h", 3), ("c", 3)],
    "gru": [("h", 3)],
    "stack": [("layer1.h", 2), ("layer2.h", 2), ("layer2.c", 2), ("layer3.h", 1)],
    "list": [("layer1.h", 3), ("layer2.h", 2)],
    "custom": [("h", 3)],
    "RNN of stack": [("layer1.h", 2), ("layer2.h", 2), ("layer2.c", 2), ("layer3.h", 1)],
    "backward half": [("h", 2), ("c", 2)],
    "plain": [("state1", 2), ("state2", 3)],
    "callable": [("state", 3)],
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_follow_one_another(name):
    step = as_step(ready(name), input_size=FEATURES, state_size=UNITS)
    assert [(part.name, part.stop - part.start) for part in step.parts] == PARTS[name]
    assert [part.start for part in step.parts[1:]] == [part.stop for part in step.parts[:-1]]
    assert (step.parts[0].start, step.parts[-1].stop) == (0, step.state_size)


@pytest.mark.parametrize("name", KINDS)
def test_an_unbuilt_cell_is_built_in_place(name):
    cell = KINDS[name]("float32")
    step = as_step(cell, input_size=FEATURES, state_size=UNITS)
    assert step.dtype == "float64"
    new = step(tf.ones((4, step.state_size), tf.float64), tf.ones((4, FEATURES), tf.float64))
    assert new.shape == (4, step.state_size)
    assert new.dtype == tf.float64
    assert as_step(step) is step
    if hasattr(cell, "get_weights"):
        weights = cell.get_weights()
        assert len(weights) == len(step.weights) > 0
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(step.weights, weights, strict=True))


@pytest.mark.parametrize("name", [*CELLS, "LSTM", "RNN of stack"])
def test_an_unbuilt_cell_needs_to_know_its_features(name):
    with pytest.raises(ValueError, match="has no weights yet; pass input_size=features"):
        as_step(KINDS[name]("float32"))
    assert as_step(ready(name)).input_size == FEATURES


# --- which matrix is which -------------------------------------------------------------------------------------------


def logistic(a):
    return 1.0 / (1.0 + np.exp(-a))


def simple_step(W, U, b, h, x):
    return np.tanh(W["W"] @ h + U[0] @ x + b[0])


def lstm_step(W, U, b, state, x):
    h, c = np.split(state, 2)
    i, f, g, o = (W[gate] @ h + U[k] @ x + b[k] for k, gate in enumerate("ifco"))
    c = logistic(f) * c + logistic(i) * np.tanh(g)
    return np.concatenate([logistic(o) * np.tanh(c), c])


def gru_step(W, U, b, h, x):
    """The GRU of Cho et al. 2014: the reset gate acts before the product."""
    z, r = (logistic(W[gate] @ h + U[k] @ x + b[k]) for k, gate in enumerate("zr"))
    return z * h + (1.0 - z) * np.tanh(W["h"] @ (r * h) + U[2] @ x + b[2])


def gru_after_step(W, U, b, h, x):
    """The GRU of Keras and cuDNN: the reset gate acts after the product, on a bias of its own."""
    inner, outer = np.split(b, 2)
    z, r = (logistic(W[gate] @ h + U[k] @ x + inner[k] + outer[k]) for k, gate in enumerate("zr"))
    return z * h + (1.0 - z) * np.tanh(r * (W["h"] @ h + outer[2]) + U[2] @ x + inner[2])


@pytest.mark.parametrize(
    ("name", "formula", "gates"),
    [
        ("vanilla tanh", simple_step, "W"),
        ("simple", simple_step, "W"),
        ("SimpleRNN", simple_step, "W"),
        ("lstm", lstm_step, "ifco"),
        ("LSTM", lstm_step, "ifco"),
        ("gru", gru_after_step, "zrh"),
        ("gru reset before", gru_step, "zrh"),
    ],
)
def test_recurrent_matrices_act_as_documented(name, formula, gates):
    cell = ready(name)
    step = as_step(cell)
    W = step.recurrent_matrices
    assert "".join(W) == gates
    assert all(matrix.dtype == np.float64 for matrix in W.values())
    kernel, _, bias = (np.asarray(w, np.float64) for w in cell.get_weights())
    U = np.split(kernel.T, len(gates))
    b = bias.reshape(-1, UNITS)
    traj = rollout(step, INPUTS)
    for t in range(STEPS):
        expected = [formula(W, U, b, h, x) for h, x in zip(traj.states[:, t], INPUTS[:, t], strict=True)]
        assert np.abs(traj.states[:, t + 1] - expected).max() <= 2 * step_rounding(traj)


def test_recurrent_matrices_of_a_stack_name_their_layer():
    cell = ready("stack")
    W = as_step(cell).recurrent_matrices
    names = ["layer1.W", *(f"layer2.{gate}" for gate in "ifco"), *(f"layer3.{gate}" for gate in "zrh")]
    assert list(W) == names
    assert np.array_equal(W["layer1.W"], cell.cells[0].recurrent_matrix)
    assert np.array_equal(W["layer2.f"], cell.cells[1].get_weights()[1].T[2:4])
    assert dict(as_step(ready("custom")).recurrent_matrices) == {}


@pytest.mark.parametrize("name", ["vanilla tanh", "vanilla sigmoid", "vanilla callable", "simple"])
def test_the_elementwise_form_is_the_step(name):
    step = as_step(ready(name))
    form = step.recurrence
    h, x = RNG.standard_normal((4, UNITS)), RNG.standard_normal((4, FEATURES))
    a = h @ form.recurrent_matrix.T + x @ form.input_matrix.T + form.bias
    expected = form.activation(tf.constant(a)).numpy()
    traj = rollout(step, x[:, None], h)
    assert np.abs(traj.states[:, 1] - expected).max() <= 2 * step_rounding(traj)
    supremum = {"tanh": 1.0, "sigmoid": 0.25, None: None}
    assert form.slope_supremum == supremum[form.activation_name]
    assert as_step(ready("lstm")).recurrence is None


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        (keras.layers.Dense(3), "cell must recur, got the layer Dense"),
        (keras.layers.TimeDistributed(keras.layers.Dense(3)), "cell must recur, got the layer TimeDistributed"),
        ("lstm", "got 'lstm' of type str"),
        (None, "got None of type NoneType"),
        (np.eye(3), "of type ndarray"),
        (keras.layers.LSTMCell, "got the class LSTMCell, make an instance of it"),
        (PlainCell, "got the class PlainCell, make an instance of it"),
        (keras.layers.Bidirectional(keras.layers.LSTM(3)), r"pass layer.forward_layer or layer.backward_layer"),
        (
            keras.Sequential([keras.layers.Input((5, 2)), keras.layers.GRU(3, name="mine")]),
            r"got a whole model; pass one of its layers: \['mine'\]",
        ),
        ([], "a list of cells must hold at least one Keras cell"),
        ([keras.layers.LSTMCell(2), "gru"], "a list of cells must hold at least one Keras cell and nothing else"),
        ([keras.layers.LSTM(2), keras.layers.LSTM(2)], r"pass the cell of each layer, \[layer.cell, …\]"),
        (lambda state: state, r"a callable step takes \(state, input\)"),
    ],
)
def test_what_does_not_recur_is_a_type_error(cell, match):
    with pytest.raises(TypeError, match=match):
        as_step(cell, state_size=3, input_size=2)


@pytest.mark.parametrize("layer", [keras.layers.ConvLSTM1D(3, 2), keras.layers.ConvLSTM2D(3, (2, 2))])
def test_a_convolutional_state_is_no_vector(layer):
    with pytest.raises(ValueError, match="the carried state must consist of vectors, got state_size"):
        as_step(layer, input_size=4)


def test_a_built_cell_takes_no_other_features():
    for cell in (ready("lstm"), as_step(ready("lstm"))):
        with pytest.raises(ValueError, match=r"inputs have 5 features, but LSTMCell.* was built for 2"):
            as_step(cell, input_size=5)


@pytest.mark.parametrize("name", ["vanilla tanh", "LSTM", "custom"])
def test_weights_that_are_not_finite_are_named(name):
    cell = ready(name)
    cell.set_weights([*cell.get_weights()[:1], np.full_like(cell.get_weights()[1], np.inf), *cell.get_weights()[2:]])
    with pytest.raises(ValueError, match=r"the weight '.*recurrent_kernel' must be finite, got inf"):
        as_step(cell)


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (lambda h, x: h[:, :2], "must map .* to a state"),
        (lambda h, x: np.tanh(np.asarray(h)), "it failed with"),
        (lambda h, x: None, "it failed with"),
        (lambda h, x: tf.cast(h, tf.float16), "it returns float16 from float64"),
    ],
)
def test_a_callable_that_is_no_step_is_a_value_error(step, match):
    with pytest.raises(ValueError, match=match):
        as_step(step, state_size=3, input_size=2)


@pytest.mark.parametrize(("size", "error"), [(None, ValueError), (0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_callable_needs_a_state_size(size, error):
    with pytest.raises(error, match="state"):
        as_step(rotating, state_size=size, input_size=2)


def test_a_callable_may_be_any_kind_of_function():
    class Stepper:
        def __call__(self, state, inputs):
            return rotating(state, inputs)

        def method(self, state, inputs):
            return rotating(state, inputs)

    expected = rollout(rotating, INPUTS, np.ones(UNITS)).states
    for step in (Stepper(), Stepper().method, tf.function(rotating), lambda *both: rotating(*both)):
        assert np.abs(rollout(step, INPUTS, np.ones(UNITS)).states - expected).max() <= 20 * STEPS * EPS


# --- randomness ------------------------------------------------------------------------------------------------------


def noisy_tf(state, inputs):
    return state + 0.1 * tf.random.normal(tf.shape(state), dtype=state.dtype)


def noisy_numpy(state, inputs):
    return state + np.random.default_rng().standard_normal()


def seldom_noisy(state, inputs):
    return tf.nn.dropout(state, 0.01)


def fixed_noise(state, inputs):
    return state + tf.random.stateless_normal([1, 3], [1, 2], dtype=state.dtype)


@pytest.mark.parametrize("step", [noisy_tf, noisy_numpy, seldom_noisy])
def test_a_random_callable_is_refused(step):
    with pytest.raises(ValueError, match=r"the step is random, .* call it with training=False or fix its noise"):
        as_step(step, state_size=3, input_size=2)


def test_a_random_callable_whose_features_come_later_is_refused_then():
    step = as_step(noisy_tf, state_size=3)
    with pytest.raises(ValueError, match="the step is random"):
        rollout(step, INPUTS)
    assert rollout(as_step(fixed_noise, state_size=3), INPUTS).states.shape == (2, STEPS + 1, 3)


class NoisyCell(LeakyCell):
    """Draws from a generator of its own, once it is told to."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.generator = keras.random.SeedGenerator(3)
        self.noise = 0.0

    def call(self, inputs, states):
        h, _ = super().call(inputs, states)
        if self.noise:
            h = h + self.noise * keras.random.normal(keras.ops.shape(h), dtype=h.dtype, seed=self.generator)
        return h, [h]


def test_a_random_cell_is_refused_and_its_generator_left_alone():
    cell = NoisyCell(UNITS)
    as_step(cell, input_size=FEATURES)
    cell.noise = 0.01
    before = cell.generator.state.numpy()
    with pytest.raises(ValueError, match="the step is random"):
        as_step(cell)
    assert np.array_equal(cell.generator.state.numpy(), before)
    cell.noise = 0.0
    assert as_step(cell).dtype == "float64"


def test_a_random_activation_and_a_dropout_that_is_always_on_are_refused():
    cell = VanillaRNNCell(UNITS, lambda a: tf.tanh(a) + tf.random.normal(tf.shape(a), dtype=a.dtype))
    with pytest.raises(ValueError, match="the step is random"):
        as_step(cell, input_size=FEATURES)
    dropout = keras.layers.Dropout(0.1)
    with pytest.raises(ValueError, match="the step is random"):
        as_step(keras.layers.GRUCell(UNITS, activation=lambda a: dropout(a, training=True)), input_size=FEATURES)
    with_dropout = keras.layers.GRUCell(UNITS, activation=lambda a: tf.tanh(a), dropout=0.5, recurrent_dropout=0.5)
    assert as_step(with_dropout, input_size=FEATURES).dtype == "float64"  # off unless in training


def test_a_cell_that_fails_on_made_up_numbers_is_analysed_as_it_is():
    class Picky(LeakyCell):
        def call(self, inputs, states):
            tf.debugging.assert_non_negative(inputs)
            return super().call(inputs, states)

    with pytest.warns(UserWarning, match=r"(?s)no float64 version of Picky .*on normal numbers it fails"):
        traj = rollout(Picky(UNITS), np.abs(INPUTS))
    assert traj.step.dtype == "float32"


def test_layers_say_which_way_they_read():
    assert [name for name in LAYERS if as_step(ready(name)).go_backwards] == ["LSTM backwards", "backward half"]
    assert as_step(keras.layers.GRU(UNITS, stateful=True), input_size=2).stateful


def test_a_step_is_frozen():
    step = as_step(ready("gru"))
    assert isinstance(step, Step)
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.weights = ()


def test_masked_layers_and_plain_cells_share_one_rollout():
    cell = PlainCell()
    traj = rollout(cell, INPUTS, mask=MASK)
    slow, fast = traj.part("state1"), traj.part("state2")
    expected = np.tanh(slow[:, 1] @ cell.W.numpy() + INPUTS[:, 0] @ cell.U.numpy())
    taken = MASK[:, 0]
    assert np.abs(fast[taken, 1] - expected[taken]).max() <= 2 * step_rounding(traj)
    assert not fast[~taken, 1].any()

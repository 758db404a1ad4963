from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import (
    BATCH,
    CELLS,
    FEATURES,
    LAYERS,
    MASK,
    STEPPED,
    STEPS,
    UNITS,
    LeakyCell,
    random_trajectory,
    ready,
    state_rounding,
    step_of,
    step_rounding,
)

from gradlab.cells import VanillaRNNCell
from gradlab.jacobian import step_jacobians
from gradlab.step import as_step
from gradlab.trajectory import Trajectory, as_trajectory, rollout

RNG = np.random.default_rng(31)
INPUTS = RNG.standard_normal((BATCH, STEPS, FEATURES)).astype(np.float32)  # the same in either precision


def output_of(traj):
    """Return the part of the states that a Keras layer gives out, h_1 … h_T of the last layer."""
    return traj.part([part.name for part in traj.step.parts if part.name.endswith("h")][-1])[:, 1:]


@pytest.mark.parametrize("mask", [None, MASK], ids=["every step", "masked"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", LAYERS)
def test_stepping_the_cell_gives_what_the_layer_gives(name, dtype, mask):
    layer = ready(name, dtype)
    traj = rollout(layer, INPUTS, mask=mask)
    outputs = layer(tf.constant(INPUTS, dtype), mask=None if mask is None else tf.constant(mask)).numpy()
    allowance = 2 * state_rounding(traj, step_jacobians(traj), {"float64": 2.0**-52, "float32": 2.0**-23}[dtype])
    assert allowance.max() < {"float64": 1e-9, "float32": 0.2}[dtype]  # or there would be no test
    expected = output_of(traj)
    if mask is not None and layer.zero_output_for_mask:  # as in a Bidirectional; the states go on all the same
        expected = expected * traj.mask[..., None]
    assert (np.linalg.norm(outputs - expected, axis=-1) <= allowance[:, 1:]).all()
    assert traj.step.dtype == "float64"


def test_go_backwards_reads_from_the_end():
    forwards, backwards = ready("LSTM", "float64"), ready("LSTM backwards", "float64")
    backwards.set_weights(forwards.get_weights())
    traj = rollout(backwards, INPUTS, mask=MASK)
    assert np.array_equal(traj.inputs, INPUTS[:, ::-1])
    assert np.array_equal(traj.mask, MASK[:, ::-1])
    assert np.array_equal(traj.states, rollout(forwards, INPUTS[:, ::-1], mask=MASK[:, ::-1]).states)
    assert not np.allclose(traj.states, rollout(forwards, INPUTS, mask=MASK).states)


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("mask", [None, MASK], ids=["every step", "masked"])
def test_the_traced_loop_is_the_eager_step_repeated(name, mask):
    traj = random_trajectory(name, seed=32, mask=mask)
    for t in range(STEPS):
        before = traj.states[:, t]
        expected = traj.step(tf.constant(before), tf.constant(traj.inputs[:, t])).numpy()
        if mask is not None:
            assert np.array_equal(traj.states[~mask[:, t], t + 1], before[~mask[:, t]])
            expected[~mask[:, t]] = before[~mask[:, t]]
        assert np.abs(traj.states[:, t + 1] - expected).max() <= 2 * step_rounding(traj)


def test_lag_counts_the_steps_that_were_taken():
    assert random_trajectory("simple", 0).lag.tolist() == [[5, 4, 3, 2, 1, 0]] * 2
    assert random_trajectory("simple", 0, mask=MASK).lag.tolist() == [[3, 2, 1, 1, 0, 0], [4, 4, 3, 2, 1, 0]]


def test_parts_are_slices_of_the_states():
    traj = random_trajectory("stack", 0)
    assert np.array_equal(traj.part("layer2.c"), traj.states[..., 4:6])
    with pytest.raises(KeyError, match=r"has the parts \['layer1.h', 'layer2.h', 'layer2.c', 'layer3.h'\], got 'c'"):
        traj.part("c")


# --- initial states --------------------------------------------------------------------------------------------------


def test_every_form_of_initial_state_is_the_same_state():
    h, c = RNG.standard_normal((2, BATCH, UNITS))
    full = np.concatenate([h, c], axis=-1)
    layer = ready("LSTM", "float64")
    expected = layer(tf.constant(INPUTS, tf.float64), initial_state=[tf.constant(h), tf.constant(c)]).numpy()
    for form in (full, full.tolist(), [h, c], (h, c), [tf.constant(h), c.astype(np.float64)], tf.constant(full)):
        traj = rollout(layer, INPUTS, form)
        assert np.array_equal(traj.states[:, 0], full)
        assert (
            np.linalg.norm(output_of(traj) - expected, axis=-1) <= 2 * state_rounding(traj, step_jacobians(traj))[:, 1:]
        ).all()
    for form in (full[0], full[0].tolist(), [h[0], c[0]]):
        assert np.array_equal(rollout(layer, INPUTS, form).states[:, 0], np.stack([full[0], full[0]]))


def test_parts_of_a_stack_may_be_nested_as_keras_nests_them():
    first, h, c, last = (np.full((BATCH, size), value) for size, value in ((2, 1.0), (2, 2.0), (2, 3.0), (1, 4.0)))
    traj = rollout(step_of("stack"), INPUTS, [first, [h, c], last])
    assert traj.states[0, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0]


@keras.saving.register_keras_serializable(package="gradlab_tests")
class LearnedStart(LeakyCell):
    """A cell with a first state of its own."""

    def build(self, input_shape):
        super().build(input_shape)
        self.start = self.add_weight(shape=(self.units,), name="start", initializer="ones")

    def get_initial_state(self, batch_size=None):
        return [keras.ops.tile(self.start[None], (batch_size, 1))]


def test_a_cell_may_bring_its_own_initial_state():
    layer = keras.layers.RNN(LearnedStart(UNITS, dtype="float64"), return_sequences=True, dtype="float64")
    traj = rollout(layer, INPUTS)
    assert np.array_equal(traj.states[:, 0], np.ones((BATCH, UNITS)))
    expected = layer(tf.constant(INPUTS, tf.float64)).numpy()
    assert np.abs(output_of(traj) - expected).max() <= 2 * state_rounding(traj, step_jacobians(traj)).max()
    layer.cell.start.assign(np.full(UNITS, 0.5))
    assert np.array_equal(rollout(traj.step, INPUTS).states, traj.states)  # a snapshot, as the weights are
    assert np.array_equal(rollout(layer, INPUTS).states[:, 0], np.full((BATCH, UNITS), 0.5))
    assert not rollout(layer, INPUTS, np.zeros(UNITS)).states[:, 0].any()


@pytest.mark.parametrize(
    "start",
    [
        lambda cell, batch: [tf.ones((batch, UNITS))],
        lambda cell, *sizes, **others: [tf.ones((*sizes, *others.values(), UNITS))],
        lambda cell, inputs=None, batch_size=None, dtype=None: [tf.ones((batch_size, UNITS))],
    ],
)
def test_an_initial_state_is_asked_for_as_its_signature_takes_it(start):
    cell = type("Starting", (LeakyCell,), {"get_initial_state": start})(UNITS)
    assert np.array_equal(rollout(cell, INPUTS).states[:, 0], np.ones((BATCH, UNITS)))


def test_an_initial_state_that_takes_no_batch_size_says_so():
    cell = type("Starting", (LeakyCell,), {"get_initial_state": lambda cell: [tf.ones((1, UNITS))]})(UNITS)
    with pytest.raises(TypeError, match=r"Starting.get_initial_state must take batch_size, .* got the signature \(\)"):
        rollout(cell, INPUTS)


def test_a_stateful_layer_needs_an_initial_state():
    layer = keras.layers.GRU(UNITS, stateful=True)
    with pytest.raises(ValueError, match="stateful layer starts from wherever its last call ended"):
        rollout(layer, INPUTS)
    assert rollout(layer, INPUTS, np.zeros(UNITS)).states.shape == (BATCH, STEPS + 1, UNITS)


def test_a_callable_takes_its_size_from_the_initial_state():
    traj = rollout(lambda state, inputs: 0.5 * state, INPUTS, np.ones(4))
    assert traj.states[0, -1].tolist() == [0.5**STEPS] * 4


# --- what is refused -------------------------------------------------------------------------------------------------


def spoilt(place, value):
    inputs = INPUTS.copy()
    inputs[place] = value
    return inputs


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        (spoilt((1, 3, 0), np.nan), ValueError, r"batch 1, step 4 \(array index 3\), feature 0 \(1 of 20 entries\)"),
        (spoilt((0, 2, 1), np.inf), ValueError, r"got inf at batch 0, step 3 \(array index 2\), feature 1"),
        (INPUTS[0], ValueError, r"got shape \(5, 2\); add a batch axis with inputs\[None\]"),
        (INPUTS[None], ValueError, r"must be \[batch, time, features\], got shape \(1, 2, 5, 2\)$"),
        (INPUTS[:, :0], ValueError, r"at least one sequence, one step and one feature, got shape \(2, 0, 2\)"),
        (INPUTS[:0], ValueError, r"got shape \(0, 5, 2\)"),
        ([[[0.0]] * 3, [[0.0]] * 2], ValueError, "inputs must be one array, got parts of different lengths; pad short"),
        (np.ones((2, 5, 2), int), TypeError, r"got dtype int64; convert .* or pass token ids through an embedding"),
        (np.ones((2, 5, 2), bool), TypeError, "got dtype bool"),
        (INPUTS + 0j, TypeError, "got dtype complex64"),
        (INPUTS[..., :1], ValueError, "inputs have 1 features, but .* was built for 2"),
    ],
)
@pytest.mark.parametrize("made", ["cell", "step"])
def test_bad_inputs_are_named(inputs, error, match, made):
    with pytest.raises(error, match=match):
        rollout(ready("gru") if made == "cell" else step_of("gru"), inputs)


@pytest.mark.parametrize(
    ("initial", "error", "match"),
    [
        (np.zeros(4), ValueError, r"must be \[batch, n\] = \(2, 6\), or \[n\] = \(6,\), .* got shape \(4,\)"),
        (np.zeros((3, 6)), ValueError, r"got shape \(3, 6\)"),
        (0.0, ValueError, r"got shape \(\)"),
        ([np.zeros((2, 3))], ValueError, r"got shape \(2, 3\)"),
        ([np.zeros((2, 3)), np.zeros(3)], ValueError, "parts of initial_state must share their batch size"),
        ([np.zeros((2, 5)), 0.0], ValueError, "parts of initial_state must share their batch size"),
        ([0.0, 0.0, 0.0, 0.0, 0.0, np.nan], ValueError, "initial_state must be finite, got nan at batch 0, unit 5"),
        ([[0.0], [0.0, 0.0]], ValueError, "initial_state must be one array, got parts of different lengths"),
        (["a"] * 6, TypeError, "initial_state must hold real numbers"),
    ],
)
def test_bad_initial_states_are_named(initial, error, match):
    with pytest.raises(error, match=match):
        rollout(step_of("lstm"), INPUTS, initial)


def test_a_callable_without_a_state_size_says_so():
    for initial in (None, 0.0):
        with pytest.raises(ValueError, match="a callable says nothing about its state"):
            rollout(lambda state, inputs: state, INPUTS, initial)


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (MASK[0], ValueError, r"mask must be \[batch, time\] = \(2, 5\), got shape \(5,\)"),
        (MASK[:, :4], ValueError, r"got shape \(2, 4\)"),
        ([[True] * 5, [True] * 4], ValueError, "mask must be one array, got parts of different lengths"),
        (MASK[..., None], ValueError, r"got shape \(2, 5, 1\)"),
        (np.array([MASK[0], [False] * STEPS]), ValueError, "needs a step that counts, got none at batch 1"),
        (2.5 * MASK, TypeError, r"mask must be boolean \[batch, time\], .* got dtype float64"),
        (np.full((2, 5), "yes"), TypeError, "mask must be boolean"),
        (np.full((2, 5), np.nan), TypeError, "mask must be boolean"),
    ],
)
def test_bad_masks_are_named(mask, error, match):
    with pytest.raises(error, match=match):
        rollout(step_of("lstm"), INPUTS, mask=mask)


def test_a_mask_of_zeros_and_ones_is_a_mask():
    expected = rollout(step_of("gru"), INPUTS, mask=MASK)
    for mask in (MASK.astype(int), MASK.astype(float), MASK.tolist(), tf.constant(MASK)):
        assert np.array_equal(rollout(step_of("gru"), INPUTS, mask=mask).states, expected.states)


def test_an_exploding_trajectory_names_the_step():
    cell = VanillaRNNCell(
        2, "linear", recurrent_initializer="identity", recurrent_gain=10.0, use_bias=False, dtype="float64"
    )
    initial = np.array([[0.0, 1e-20], [1.0, 0.0]])
    # 10^308 is the last power of ten below 1.8e308
    with pytest.raises(ValueError, match=r"batch 1, step 309 of 400 \(largest \|h\| one step before: 1e\+308\)"):
        rollout(cell, np.zeros((2, 400, 1)), initial)
    assert rollout(cell, np.zeros((2, 308, 1)), initial).states[1, -1, 0] == pytest.approx(1e308, rel=1e-13)


def test_a_trajectory_stands_for_itself():
    traj = random_trajectory("gru", 0)
    assert as_trajectory(traj, None) is traj
    for given in ({"inputs": INPUTS}, {"initial_state": np.zeros(3)}, {"mask": MASK}):
        with pytest.raises(TypeError, match=f"a Trajectory has its own {next(iter(given))}"):
            as_trajectory(traj, **{"inputs": None, **given})
    with pytest.raises(TypeError, match="got None; only a Trajectory comes with its own"):
        as_trajectory(ready("gru"), None)
    assert isinstance(as_trajectory(ready("gru"), INPUTS), Trajectory)
    with pytest.raises(TypeError, match=r"got a Trajectory, which has run already; pass traj\.step"):
        rollout(traj, INPUTS)
    for cell in (traj, [traj], traj.states):
        with pytest.raises(TypeError) as caught:
            as_step(cell, state_size=3)
        assert type(cell).__name__ in str(caught.value) or "['Trajectory']" in str(caught.value)
        assert "array(" not in str(caught.value)


def test_a_step_carries_over_everything_that_its_layer_said():
    step = as_step(ready("LSTM backwards", "float64"))
    assert np.array_equal(rollout(step, INPUTS).inputs, INPUTS[:, ::-1])


def test_inputs_and_states_are_copies():
    inputs = INPUTS.astype(np.float64)
    initial = np.zeros(UNITS)
    traj = rollout(step_of("gru"), inputs, initial)
    before = traj.states.copy(), traj.inputs.copy()
    inputs[:], initial[:] = 7.0, 7.0
    assert np.array_equal(traj.states, before[0])
    assert np.array_equal(traj.inputs, before[1])


def test_every_cell_runs_from_zeros_by_default():
    for name in CELLS:
        assert not rollout(step_of(name), INPUTS).states[:, 0].any()

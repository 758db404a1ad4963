"""The formulas are the derivative that TensorFlow takes, for every cell that has one, and for no other."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache, partial

import keras
import mpmath
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import BATCH, EPS, FEATURES, MASK, STEPS, UNITS, jacobian_rounding, random_trajectory, ready
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradlab import closed_form as module
from gradlab import jacobian
from gradlab.cells import VanillaRNNCell
from gradlab.closed_form import ACTIVATIONS, closed_form
from gradlab.jacobian import step_jacobians
from gradlab.step import as_step
from gradlab.trajectory import rollout

PHI = ("tanh", "relu", "sigmoid", "linear")
# activation, recurrent activation, use_bias: each value of each in a mixture, to keep the number of traced graphs down
GATED = [("tanh", "sigmoid", True), ("tanh", "sigmoid", False), ("relu", "tanh", True), ("linear", "relu", False)]


def makers():
    """Yield (name, maker) of every kind of cell that has a formula."""
    for kind, phi in itertools.product((VanillaRNNCell, keras.layers.SimpleRNNCell), PHI):
        for bias in (True, False) if phi == "tanh" else (kind is VanillaRNNCell,):
            yield f"{kind.__name__} {phi} bias={bias}", partial(kind, UNITS, activation=phi, use_bias=bias)
    for update, phi in itertools.product(({"leak": 0.3}, {"residual": 0.7}), ("tanh", "relu")):
        yield f"VanillaRNNCell {phi} {update}", partial(VanillaRNNCell, UNITS, phi, **update)
    for phi, gate, bias in GATED:
        options = {"activation": phi, "recurrent_activation": gate, "use_bias": bias}
        yield f"LSTM {phi} {gate} bias={bias}", partial(keras.layers.LSTMCell, UNITS, **options)
        for after in (True, False):
            maker = partial(keras.layers.GRUCell, UNITS, reset_after=after, **options)
            yield f"GRU {phi} {gate} bias={bias} after={after}", maker


MAKERS = dict(makers())


@cache
def step(name):
    return as_step(MAKERS[name](), input_size=FEATURES)


def random_run(name, seed, scale, mask=None):
    """Return a trajectory with random weights, inputs and h_0; traced once for each architecture."""
    rng = np.random.default_rng(seed)
    weights = tuple(tf.constant(scale * rng.standard_normal(w.shape)) for w in step(name).weights)
    one = dataclasses.replace(step(name), weights=weights, recurrence=None, recurrent_matrices={})
    initial = 0.5 * rng.standard_normal((BATCH, one.state_size))
    return rollout(one, rng.standard_normal((BATCH, STEPS, FEATURES)), initial, mask)


def distance_from_kinks(name, traj):
    """Return the least |argument of a relu| on the way; ∞ where there is none."""
    if "relu" not in name:
        return np.inf
    phi = ACTIVATIONS["relu"]
    seen = []

    def recording(a):
        seen.append(np.abs(a).min())
        return phi.value(a)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.ACTIVATIONS, "relu", phi._replace(value=recording))
        n = traj.step.state_size
        before, inputs = traj.states[:, :-1].reshape(-1, n), traj.inputs.reshape(-1, FEATURES)
        closed_form(traj.step)(before, inputs, np.empty((len(before), n, n)))
    return min(seen)


def rounding(traj):
    """Twice the bound of one entry's rounding, for two ways to it.

    `jacobian_rounding` holds for values up to 1; with relu and linear a state multiplies slopes, gates and
    pre-activations in a row, and the derivatives with them: no more than three such factors meet in one entry.
    """
    weight = max([1.0, *(float(np.abs(w).max()) for w in traj.step.weights)])
    size = max(1.0, float(np.abs(traj.states).max()))
    factor = size * weight * (UNITS + FEATURES + 1)
    return 2 * jacobian_rounding(traj) * factor * factor  # not factor ** 2, which raises where a run explodes


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=12)  # each holds BATCH · STEPS steps
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 0.5, 1.0, 1.5]), masked=st.booleans())
def test_a_formula_is_what_autodiff_gives(name, seed, scale, masked):
    traj = random_run(name, seed, scale, MASK if masked else None)
    assume(distance_from_kinks(name, traj) > rounding(traj))  # at a kink two roundings may fall on either side
    ours, theirs = (step_jacobians(traj, method=method) for method in ("closed_form", "autodiff"))
    assert ours.shape == theirs.shape == (BATCH, STEPS, traj.step.state_size, traj.step.state_size)
    assert np.abs(ours - theirs).max() <= rounding(traj)
    if masked:
        assert np.array_equal(ours[~MASK], np.broadcast_to(np.eye(traj.step.state_size), ours[~MASK].shape))
    assert np.array_equal(step_jacobians(traj), ours)  # what "auto" takes


@pytest.mark.parametrize("name", ["vanilla tanh", "lstm", "gru", "gru reset before"])
def test_one_unit_one_step_and_one_sequence(name):
    traj = random_trajectory(name, 3, batch=1, steps=1)
    error = np.abs(step_jacobians(traj, method="closed_form") - step_jacobians(traj, method="autodiff"))
    assert error.max() <= 2 * jacobian_rounding(traj)


@pytest.mark.parametrize("name", ["vanilla tanh", "lstm", "gru", "gru reset before"])
@pytest.mark.parametrize("method", ["closed_form", "autodiff"])
def test_chunks_do_not_touch_each_other(monkeypatch, name, method):
    traj = random_trajectory(name, 1, mask=MASK)
    whole = step_jacobians(traj, method=method)
    for name_of_limit in ("_CACHE_ENTRIES", "_CHUNK_ENTRIES"):
        monkeypatch.setattr(jacobian, name_of_limit, 3 * traj.step.state_size**2)
    assert np.abs(step_jacobians(traj, method=method) - whole).max() <= 2 * jacobian_rounding(traj)


# --- far out, where outputs have lost what pre-activations still know -------------------------------------------------


@pytest.mark.parametrize("name", PHI)
def test_slopes_and_complements_are_accurate_everywhere(name):
    phi = ACTIVATIONS[name]
    a = np.array([0.0, 1e-300, 1e-9, 0.5, 3.0, 19.5, 40.0, 120.0, 300.0])
    a = np.concatenate([a, -a])
    functions = {
        "tanh": (mpmath.tanh, lambda x: mpmath.sech(x) ** 2),
        "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), lambda x: mpmath.exp(-x) / (1 + mpmath.exp(-x)) ** 2),
        "relu": (lambda x: x if x > 0 else mpmath.mpf(0), lambda x: mpmath.mpf(1 if x > 0 else 0)),
        "linear": (lambda x: x, lambda x: mpmath.mpf(1)),
    }
    value, slope = functions[name]
    with mpmath.workdps(400):  # tanh(300) differs from 1 in digit 260
        exact = [[float(f(mpmath.mpf(x))) for x in a] for f in (value, slope, lambda x: 1 - value(x))]
    for ours, truth in zip((phi.value(a), phi.slope(a), phi.complement(a)), exact, strict=True):
        # an exponential to 2 eps, squared at most, and four more roundings; exact zeros are exact
        np.testing.assert_allclose(ours, truth, rtol=8 * EPS, atol=0.0)


def test_an_update_gate_that_is_shut_keeps_its_digits():
    """z = logistic(40): 1 − z rounds to 0 and is 4e-18; the recurrence has nothing else that moves slowly."""
    cell = keras.layers.GRUCell(1, dtype="float64")
    cell.build((None, 1))
    # h̃ = tanh(2 h), r = logistic(40) = 1 to the last digit, the bias on z is 40
    cell.set_weights([np.zeros((1, 3)), np.array([[0.0, 0.0, 2.0]]), np.array([[40.0, 40.0, 0.0], np.zeros(3)])])
    formula = closed_form(as_step(cell))
    room = np.empty((1, 1, 1))
    formula(np.array([[0.25]]), np.zeros((1, 1)), room)
    assert room[0, 0, 0] == 1.0  # z + (1 − z) · 2 sech²(0.5): the sum rounds, its parts do not
    assert ACTIVATIONS["sigmoid"].complement(np.array(40.0)) == pytest.approx(np.exp(-40.0), rel=8 * EPS)


# --- where there is none ---------------------------------------------------------------------------------------------


class Doubled(keras.layers.SimpleRNNCell):
    """A subclass that computes something else."""

    def call(self, sequence, states, training=False):
        h, _ = super().call(sequence, states, training=training)
        return 2.0 * h, [2.0 * h]


@pytest.mark.parametrize("name", ["vanilla callable", "gru unusual", "stack", "custom", "list", "plain", "callable"])
def test_what_has_no_formula_goes_the_general_route(name):
    traj = random_trajectory(name, 4)
    assert closed_form(traj.step) is None
    assert np.array_equal(step_jacobians(traj), step_jacobians(traj, method="autodiff"))
    with pytest.raises(ValueError, match=r"method='closed_form' needs a VanillaRNNCell, .* use method='auto'"):
        step_jacobians(traj, method="closed_form")


def test_a_subclass_has_no_formula():
    traj = rollout(Doubled(UNITS), np.ones((1, 2, FEATURES)))
    assert closed_form(traj.step) is None
    a = traj.inputs[0, 1] @ traj.step.weights[0].numpy() + traj.states[0, 1] @ traj.step.weights[1].numpy()
    expected = 2.0 * (1.0 - np.tanh(a) ** 2)[:, None] * traj.step.weights[1].numpy().T
    assert np.abs(step_jacobians(traj)[0, 1] - expected).max() <= 2 * jacobian_rounding(traj)


def test_a_cell_whose_settings_changed_after_the_run_is_differentiated_as_it_was():
    cell = ready("vanilla tanh")
    traj = rollout(cell, np.random.default_rng(0).standard_normal((1, 4, FEATURES)))
    before = step_jacobians(traj, method="autodiff")
    cell.activation = keras.activations.sigmoid
    assert np.array_equal(step_jacobians(traj), before)
    with pytest.raises(ValueError, match="with other settings by now"):
        step_jacobians(traj, method="closed_form")


def test_compiling_asks_for_autodiff():
    traj = random_trajectory("vanilla tanh", 5)
    compiled = step_jacobians(traj, jit_compile=True)
    assert np.abs(compiled - step_jacobians(traj, method="autodiff")).max() <= 2 * jacobian_rounding(traj)
    with pytest.raises(ValueError, match=r"jit_compile=True is for autodiff, got it with method='closed_form'; leave"):
        step_jacobians(traj, method="closed_form", jit_compile=True)
    with pytest.raises(ValueError, match=r"method must be 'auto', 'autodiff' or 'closed_form', got 'fast'"):
        step_jacobians(traj, method="fast")


def test_an_overflow_names_its_place():
    cell = keras.layers.LSTMCell(1, activation="linear", dtype="float64")
    cell.build((None, 1))
    # c_1 = g = 1e200 fits; ∂h_2/∂h_1 holds c_1 · f' · W_f = 1e200 · 0.1 · 1e200, which does not
    cell.set_weights([np.array([[0.0, 0.0, 1e200, 0.0]]), np.array([[0.0, 1e200, 0.0, 0.0]]), np.zeros(4)])
    traj = rollout(cell, np.array([[[2.0], [0.0]]]), initial_state=[0.0, 0.0])
    stopped = dataclasses.replace(traj, states=np.array([[[0.0, 0.0], [0.0, 1e200], [0.0, 1e200]]]))
    assert closed_form(stopped.step) is not None
    with pytest.raises(ValueError, match=r"the derivative of LSTMCell.* is not finite at batch 0, step 2, though"):
        step_jacobians(stopped)

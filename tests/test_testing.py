"""`check_cell` passes what is right, and finds each planted fault by the check that is named for it."""

from __future__ import annotations

import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import FEATURES, KINDS, UNITS, DenseCell, ForgetfulCell, ready
from faulty_cells import (
    BatchMean,
    BatchNormed,
    ClippedGradient,
    DropsUnits,
    Faulty,
    GradientOfFloat32,
    GradientOfTheBatch,
    HiddenAttribute,
    HiddenWeight,
    KeepsTheOldC,
    LosesItsKernel,
    NeverReadsC,
    NoGradient,
    Noisy,
    OutputSlope,
    ReturnsOnlyH,
    RowIndex,
    StoppedPath,
    TwoParts,
    Unsaveable,
    WrongGradient,
    WrongRelu,
)

import gradlab as gl
from gradlab import checks
from gradlab.cells import VanillaRNNCell
from gradlab.testing import CHECKS, check_cell

W = np.random.default_rng(7).standard_normal((UNITS, UNITS))


def report_of(cell, *, features=FEATURES, **options):
    return check_cell(cell, features, raise_on_failure=False, **options)


# --- what is right passes --------------------------------------------------------------------------------------------

# why a check may be skipped: dead units have no determinant, and what is no layer has no twin and no file
NO_LAYER = {"float64 twin", "save and load"}
MAY_BE_SKIPPED = {"vanilla relu": {"determinant"}, "plain": NO_LAYER | {"determinant"}, "callable": NO_LAYER}
UNBUILT = ["vanilla tanh", "vanilla relu", "simple", "lstm", "gru", "stack", "list", "custom", "LSTM", "RNN of vanilla"]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "custom with a layer"])
def test_every_kind_of_cell_with_random_weights_passes(name):
    report = report_of(ready(name, "float32"), state_size=UNITS)
    assert not report.failed, str(report)
    assert set(report.skipped) <= MAY_BE_SKIPPED.get(name, set())
    assert all(check.hint for check in report.checks if check.passed is None)
    assert report["step Jacobian"].allowed < 1e-8  # or it would be no check


@pytest.mark.parametrize("name", UNBUILT)
def test_a_cell_without_weights_is_built_and_passes(name):
    cell = KINDS[name]("float64")
    report = check_cell(cell, FEATURES)
    assert report.passed
    assert set(report.skipped) <= {"determinant"}
    assert isinstance(cell, list) or cell.weights


@pytest.mark.parametrize("scale", [0.01, 30.0])
@pytest.mark.parametrize("name", ["vanilla tanh", "lstm", "gru", "stack"])
def test_small_weights_and_saturated_units_give_no_false_alarm(name, scale):
    for seed in range(2):
        report = report_of(ready(name, "float64", seed=seed, scale=scale), seed=seed)
        assert not report.failed, str(report)
        assert set(report.skipped) <= {"determinant"}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_coarse_precision_gives_no_false_alarm(policy):
    report = report_of(keras.layers.GRUCell(UNITS, dtype=policy))
    assert report.passed
    assert not report.skipped


def test_kinks_of_relu_give_no_false_alarm():
    """Without biases a dead lower layer leaves the upper one exactly at its kink."""
    hints = []
    for seed in range(5):
        cell = [VanillaRNNCell(2, "relu", seed=seed), VanillaRNNCell(3, "relu", seed=seed + 1)]
        report = report_of(cell, seed=seed)
        assert not report.failed, str(report)
        assert report["step Jacobian"].passed
        hints.append(report["step Jacobian"].hint)
    assert any("of 18 points, at a kink, left out" in hint for hint in hints)  # the case did come up
    assert "" in hints


def test_a_run_that_lies_at_kinks_throughout_is_reported_as_not_looked_at():
    cell = keras.layers.SimpleRNNCell(UNITS, "relu")
    report = report_of(cell, inputs=np.zeros((2, 4, FEATURES)), initial_state=np.zeros(UNITS))
    assert "step Jacobian" in report.skipped
    assert "kink" in report["step Jacobian"].hint


def test_layers_are_stepped_in_the_order_and_state_that_the_check_chooses():
    for layer in (keras.layers.LSTM(UNITS, stateful=True), keras.layers.GRU(UNITS, go_backwards=True)):
        assert not report_of(layer).failed


def test_a_step_is_checked_and_says_what_of_the_cell_it_cannot_tell():
    report = report_of(gl.as_step(ready("lstm")))
    assert not report.failed
    assert set(report.skipped) == NO_LAYER
    assert "a Step was given" in report["save and load"].hint


# --- planted faults --------------------------------------------------------------------------------------------------


FAULTS = [
    (WrongGradient, "step Jacobian"),
    (OutputSlope, "step Jacobian"),
    (NoGradient, "step Jacobian"),
    (WrongRelu, "step Jacobian"),
    (StoppedPath, "step Jacobian"),
    (ClippedGradient, "dot test"),
    (BatchMean, "batch independence"),
    (BatchNormed, "batch independence"),
    (GradientOfTheBatch, "batch independence"),
    (RowIndex, "batch independence"),
    (ReturnsOnlyH, "state shape"),
    (KeepsTheOldC, "state parts"),
    (NeverReadsC, "state parts"),
    (HiddenWeight, "hidden state"),
    (HiddenAttribute, "hidden state"),
    (Noisy, "repeatable step"),
    (DropsUnits, "repeatable step"),
    (LosesItsKernel, "save and load"),
    (Unsaveable, "save and load"),
]
# what a wrong derivative makes wrong besides
FOLLOWS = {
    "step Jacobian": {"dot test", "state gradients"},
    "dot test": {"step Jacobian", "state gradients", "chain rule"},
    "save and load": {"float64 twin"},
}


def test_a_gradient_that_raises_fails_one_check_and_leaves_out_what_needs_it():
    report = report_of(GradientOfFloat32(UNITS))
    assert report.failed == ("step Jacobian",)
    assert "it raised" in report["step Jacobian"].hint
    assert report.skipped == ("dot test", "chain rule", "determinant", "state gradients", "masked step")
    assert "there are no step Jacobians" in report["chain rule"].hint


@pytest.mark.parametrize("kind", [Faulty, TwoParts])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_cells_to_be_spoilt_pass_as_they_are(kind, dtype):
    assert not report_of(kind(UNITS, dtype=dtype)).failed


@pytest.mark.parametrize(("kind", "check"), FAULTS, ids=[kind.__name__ for kind, _ in FAULTS])
def test_a_planted_fault_is_found_by_its_check(kind, check):
    report = report_of(kind(UNITS))
    assert check in report.failed, str(report)
    assert set(report.failed) <= {check} | FOLLOWS.get(check, set()), str(report)
    assert not report[check].measured <= report[check].allowed
    assert report[check].hint


def test_a_setting_that_the_configuration_leaves_out_is_found_in_the_twin_and_in_the_saved_copy():
    report = report_of(ForgetfulCell(UNITS, leak=0.9))
    assert report.failed == ("float64 twin", "save and load")
    assert "differs by" in report["float64 twin"].hint


@keras.saving.register_keras_serializable(package="gradlab_tests")
class BuildsItsLayer(DenseCell):
    def build(self, input_shape):
        self.dense.build((None, input_shape[-1] + self.units))


def test_a_layer_that_keras_cannot_load_is_told_from_a_fault():
    """An inner layer without weights until the first call: Keras itself saves it and cannot load it."""
    cell = ready("custom with a layer")
    report = report_of(cell)
    assert report.passed
    assert report.skipped == ("save and load",)
    assert f"{cell.dense.name} inside it gets weights at the first call only" in report["save and load"].hint
    inputs = keras.Input((None, FEATURES))
    model = keras.Model(inputs, keras.layers.RNN(cell)(inputs))
    with pytest.raises(ValueError, match="was never built"):
        loaded_by_keras(model)
    assert report_of(BuildsItsLayer(UNITS))["save and load"].passed


def loaded_by_keras(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        return keras.saving.load_model(f"{folder}/model.keras", custom_objects={"DenseCell": DenseCell})


def test_a_precision_without_initial_weights_is_named():
    """TensorFlow has no QR in bfloat16, which an orthogonal initializer takes; other initializers serve."""
    with pytest.raises(ValueError, match=r"initial weights of this LSTMCell in bfloat16.*mixed_bfloat16"):
        check_cell(keras.layers.LSTMCell(UNITS, dtype="bfloat16"), FEATURES)
    cell = keras.layers.LSTMCell(UNITS, dtype="bfloat16", recurrent_initializer="glorot_uniform")
    assert check_cell(cell, FEATURES).passed


@pytest.mark.parametrize("seed", [33, 48])
def test_a_gate_that_rounds_to_one_is_no_forgotten_state(seed):
    """The update gate of the one unit on top keeps it to the last bit; its slope of 1e-40 is in J all the same."""
    report = report_of(ready("stack", "float64", seed=seed, scale=20.0), seed=seed)
    assert report.passed, str(report)


def counting(memory):
    def step(state, inputs):
        memory.assign(memory + 1.0)
        return tf.tanh(tf.matmul(state, W) + inputs[:, :1] + 1e-3 * memory)

    return step


def listing(memory):
    def step(state, inputs):
        memory.append(len(memory))
        return tf.tanh(tf.matmul(state, W) + inputs[:, :1] + 1e-3 * len(memory))

    return step


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, state, inputs):
        self.calls += 1
        return tf.tanh(tf.matmul(state, W) + inputs[:, :1] + 1e-3 * self.calls)


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (counting(tf.Variable(0.0, dtype=tf.float64)), "memory"),
        (listing([]), "memory"),
        (Counting(), "calls"),
        (Counting().__call__, "calls"),
    ],
    ids=["variable", "list", "object", "method"],
)
def test_the_memory_of_a_callable_is_found_and_named(step, name):
    report = report_of(step, state_size=UNITS)
    assert report.failed == ("hidden state",)
    assert f"a call changes {name}," in report["hidden state"].hint
    assert set(report.skipped) == set(CHECKS) - {"state shape", "hidden state"}


@pytest.mark.parametrize(
    ("step", "check"),
    [
        (lambda h, x: tf.tanh(tf.matmul(h, W) + tf.random.normal(tf.shape(h), dtype=h.dtype)), "repeatable step"),
        (lambda h, x: tf.tanh(tf.matmul(h - tf.reduce_mean(h, axis=0), W)), "batch independence"),
        (lambda h, x: tf.tanh(tf.matmul(h, W))[:, :2], "state shape"),
        (lambda h, x: tf.tanh(x[:, :1] + 0.0 * h), "state parts"),
        (lambda h, x: OutputSlope.tanh(tf.matmul(h, W)), "step Jacobian"),
    ],
    ids=["noise", "batch", "shape", "forgets", "gradient"],
)
def test_the_faults_of_a_callable_are_found(step, check):
    assert check in report_of(step, state_size=UNITS).failed


def test_a_callable_of_float32_weights_fails_for_its_precision_alone():
    narrow = tf.constant(W, tf.float32)
    report = report_of(lambda h, x: tf.tanh(tf.matmul(h, narrow) + x[:, :1]), state_size=UNITS)
    assert report.failed == ("float64 twin",)
    assert "Make its weights float64" in report["float64 twin"].hint


# --- checks of gradlab's own part: no cell can fail them, a wrong number can -----------------------------------------


def spoilt_product(monkeypatch):
    true = checks.Subject.jacobians
    monkeypatch.setattr(checks.Subject, "jacobians", lambda s, traj: (1.0 + 1e-9) * true(s, traj))


def spoilt_determinant(monkeypatch):
    true = np.linalg.slogdet
    monkeypatch.setattr(checks.np.linalg, "slogdet", lambda J: (1.0, true(J)[1] + 1e-9))


def spoilt_gradients(monkeypatch):
    true = checks.state_gradients

    def direct_only(*arguments):
        g = true(*arguments)
        return type(g)(**{**g.__dict__, "total": g.direct})

    monkeypatch.setattr(checks, "state_gradients", direct_only)


def spoilt_mask(monkeypatch):
    true = checks.rollout
    monkeypatch.setattr(checks, "rollout", lambda step, x, h, mask=None: true(step, x, h))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (spoilt_product, "chain rule"),
        (spoilt_determinant, "determinant"),
        (spoilt_gradients, "state gradients"),
        (spoilt_mask, "masked step"),
    ],
)
def test_a_wrong_number_of_ours_fails_its_check(monkeypatch, spoil, check):
    spoil(monkeypatch)
    assert check in report_of(ready("lstm")).failed

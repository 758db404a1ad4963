"""`check_cell` passes what is right, and finds each planted fault by the check that is named for it."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from cell_cases import FEATURES, KINDS, UNITS, ForgetfulCell, LeakyCell, ready, rotating

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


class GradientOfFloat32(WrongGradient):
    """Its gradient raises in float64, in which a float32 cell is analysed too."""

    tanh = staticmethod(tanh_with(lambda upstream, y: upstream * tf.constant(1.0, tf.float32)))


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


def test_a_layer_that_keras_cannot_load_is_found():
    """Its inner layer has no weights until the first call, so that there is nothing to load them into."""
    report = report_of(ready("custom with a layer"))
    assert report.failed == ("save and load",)
    assert "never built" in report["save and load"].hint


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


# --- the report ------------------------------------------------------------------------------------------------------


def test_a_failure_is_an_assertion_error_with_the_table():
    with pytest.raises(AssertionError, match=r"(?s)Noisy.*repeatable step .*FAILED +noise or dropout"):
        check_cell(Noisy(UNITS), FEATURES)
    report = report_of(Noisy(UNITS))
    with pytest.raises(AssertionError, match="1 of 13 checks failed, 11 skipped"):
        report.raise_if_failed()
    assert not report.passed
    assert "needs a cell that passes: repeatable step" in report["dot test"].hint
    check_cell(ready("lstm"), FEATURES).raise_if_failed()


def test_the_table_has_a_line_for_each_check():
    report = report_of(rotating, state_size=UNITS)
    assert tuple(check.name for check in report.checks) == CHECKS
    lines = str(report).splitlines()
    assert lines[0] == "rotating: 0 of 13 checks failed, 2 skipped"
    assert lines[1].split() == ["check", "measured", "allowed", "outcome", "hint"]
    for check in report.checks:
        (line,) = (line for line in lines if line.startswith(check.name + " "))
        assert {None: "skipped", True: "passed", False: "FAILED"}[check.passed] in line
    assert all(len(line) <= 120 for line in lines)
    with pytest.raises(KeyError, match="the checks are"):
        report["determinants"]


def test_a_check_may_be_left_out():
    report = check_cell(NeverReadsC(UNITS), FEATURES, skip=("state parts",))
    assert report["state parts"].passed is None
    assert report["state parts"].hint == "left out by the caller"
    with pytest.raises(ValueError, match=r"skip must name checks of .* got \['state part'\]"):
        check_cell(NeverReadsC(UNITS), FEATURES, skip=("state part",))


def test_the_seed_decides_every_number_and_global_generators_are_left_alone():
    def draws():
        return random.random(), np.random.rand(), tf.random.normal(()).numpy(), keras.random.normal(()).numpy()  # noqa: NPY002

    cells = {name: ready(name) for name in ("lstm", "custom")}

    def drawn_after(action):
        keras.utils.set_random_seed(11)
        action()
        return draws()

    try:
        expected = drawn_after(lambda: None)
        for cell in cells.values():
            before = [w.copy() for w in cell.get_weights()]
            reports = []
            assert drawn_after(lambda cell=cell, reports=reports: reports.append(report_of(cell, seed=5))) == expected
            assert report_of(cell, seed=5) == reports[0]
            assert report_of(cell, seed=6) != reports[0]
            assert all(map(np.array_equal, before, cell.get_weights()))
        assert keras.config.floatx() == "float32"
    finally:
        keras.utils.set_random_seed(int(np.random.SeedSequence().generate_state(1)[0]))


@pytest.mark.parametrize(
    ("cell", "options", "error", "message"),
    [
        (VanillaRNNCell, {}, TypeError, "got the class VanillaRNNCell"),
        (keras.layers.Dense(3), {}, TypeError, "cell must recur"),
        (None, {}, TypeError, "got None"),
        (rotating, {}, ValueError, "a callable says nothing about its state"),
        (VanillaRNNCell(3), {"features": 0}, ValueError, "input_dim must be at least 1"),
        (VanillaRNNCell(3), {"batch": 1}, ValueError, "at least two sequences"),
        (VanillaRNNCell(3), {"inputs": np.zeros((2, 4, 5))}, ValueError, r"inputs must be \[batch, time, 2\]"),
        (ready("lstm"), {"features": 5}, ValueError, "was built for 2"),
        (lambda h, x: tf.exp(1e3 * h), {"state_size": 2}, ValueError, "left the finite numbers"),
    ],
    ids=["class", "dense", "none", "callable", "dim", "batch", "inputs", "built", "explodes"],
)
def test_what_cannot_be_checked_is_an_error(cell, options, error, message):
    with pytest.raises(error, match=message):
        report_of(cell, **options)

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradlab as gl
from gradlab.probe import Probe, recurrent_layers

L = keras.layers
B, T, D = 4, 9, 3


class Leaky(L.Layer):
    """A stranger's cell whose output is not its state: y = 2h_{t−1} + x, h_t = 0.9h_{t−1} + 0.1 tanh(Wh + Ux)."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, self.units), name="recurrent_kernel")

    def call(self, inputs, states):
        h = states[0]
        drive = keras.ops.matmul(inputs, self.kernel)
        new = 0.9 * h + 0.1 * keras.ops.tanh(keras.ops.matmul(h, self.recurrent_kernel) + drive)
        return 2.0 * h + drive, [new]


class Own(keras.Model):
    """A subclassed model with an encoder whose last state starts a decoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = L.GRU(4, return_state=True, name="encoder"), L.GRU(4, name="decoder")
        self.readout = L.Dense(2)

    def call(self, inputs, training=None):
        _, state = self.encoder(inputs)
        return self.readout(self.decoder(inputs[:, :5], initial_state=[state]))


def stacked_functional():
    x = keras.Input((T, D))
    h = L.LSTM(4, return_sequences=True, dropout=0.3, recurrent_dropout=0.2)(x)
    h = L.LayerNormalization()(h)
    h = L.SimpleRNN(3, return_sequences=True, go_backwards=True)(h)
    return keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(h)))


MODELS = {
    "simple": lambda: keras.Sequential([keras.Input((T, D)), L.SimpleRNN(4), L.Dense(2)]),
    "from scratch": lambda: keras.Sequential([keras.Input((T, D)), L.RNN(gl.VanillaRNNCell(4)), L.Dense(2)]),
    "functional": stacked_functional,
    "masked bidirectional": lambda: keras.Sequential(
        [
            keras.Input((T, D)),
            L.Masking(),
            L.Bidirectional(L.LSTM(3, return_sequences=True)),
            L.Bidirectional(L.GRU(3), merge_mode="sum"),
            L.Dense(2),
        ]
    ),
    "stack of cells": lambda: keras.Sequential(
        [
            keras.Input((T, D)),
            L.Masking(),
            L.RNN([L.LSTMCell(3), L.GRUCell(2)], return_sequences=True),
            L.Flatten(),
            L.Dense(2),
        ]
    ),
    "a stranger's cell": lambda: keras.Sequential(
        [keras.Input((T, D)), L.RNN(Leaky(4), return_sequences=True), L.Flatten(), L.Dense(2)]
    ),
    "fused": lambda: keras.Sequential([keras.Input((T, D)), L.GRU(4, use_cudnn=True), L.Dense(2)]),
    "subclassed": Own,
}


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, T, D)).astype(np.float32)
    x[0, 6:] = 0.0  # left out where a model masks
    x[1, :2] = 0.0
    return x, rng.standard_normal((B, 2)).astype(np.float32)


@pytest.fixture(params=MODELS, scope="module")
def found(request):
    keras.utils.set_random_seed(1)
    model = MODELS[request.param]()
    model.compile("sgd", "mse")
    x, y = batch()
    if not model.built:
        model(x)
    policies = [one.dtype_policy.name for one in model._flatten_layers()]
    result = Probe(model, x, y)()
    assert [one.dtype_policy.name for one in model._flatten_layers()] == policies
    assert not any("call" in vars(one) for one in model._flatten_layers())
    return request.param, model, x, y, result


def test_the_loss_and_the_weight_gradients_are_the_model_s_own(found):
    kind, model, x, y, result = found
    if kind == "fused":
        pytest.skip("the fused kernel needs a GPU; its probe is compared with the plain layer below")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=False) - y))
    expected = tape.gradient(loss, [one.value for one in model.trainable_variables])
    # sums of at most a few hundred float32 products of order one
    assert result.loss == pytest.approx(float(loss), rel=1e-5)
    for one, path in zip(expected, result.weight_gradients, strict=True):
        np.testing.assert_allclose(
            result.weight_gradients[path], one.numpy(), rtol=0, atol=2e-6 * max(1, np.abs(one).max())
        )


def test_what_comes_back_is_the_step_jacobian_s_doing(found):
    """total_t = direct_t + J_{t+1}ᵀ total_{t+1}, with J from another route."""
    _, _, _, _, result = found
    assert result.finite
    assert result.layers
    for one in result.layers.values():
        J = gl.step_jacobians(one.trajectory)
        back = np.einsum("btij,bti->btj", J, one.total[:, 1:])
        # float64 on both sides, a few dozen operations
        np.testing.assert_allclose(one.recurrent[:, :-1], back, rtol=0, atol=1e-13 * np.abs(one.total).max())
        np.testing.assert_array_equal(one.recurrent[:, -1], 0.0)
        assert np.abs(one.total).max() > 0


def test_the_gradient_is_the_slope_of_the_loss_along_a_perturbed_start():
    """∂L/∂h_0 by central differences of the layer's initial state, in float64."""
    keras.utils.set_random_seed(2)
    layer, readout = L.LSTM(3, return_sequences=True, dtype="float64"), L.Dense(1, dtype="float64")
    x = keras.Input((T, D), dtype="float64")
    model = keras.Model(x, readout(layer(x)))
    inputs = batch()[0].astype(np.float64)
    loss = lambda _, y: tf.reduce_mean(y**2)  # noqa: E731
    (found,) = Probe(model, inputs, np.zeros(B), loss=loss)().layers.values()

    def value(state):
        return float(loss(None, readout(layer(inputs, initial_state=[state[:, :3], state[:, 3:]]))))

    step = 1e-5  # h³ and ε/h both below 1e-10
    for b, i in ((0, 0), (1, 4), (3, 5)):
        up, down = np.zeros((B, 6)), np.zeros((B, 6))
        up[b, i], down[b, i] = step, -step
        slope = (value(up) - value(down)) / (2 * step)
        assert found.total[b, 0, i] == pytest.approx(slope, abs=1e-10)


def test_a_fused_layer_gives_what_the_plain_one_does():
    x, y = batch()
    results = []
    for fused in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((T, D)), L.GRU(4, use_cudnn=fused), L.Dense(2)])
        results.append(next(iter(Probe(model, x, y, loss=keras.losses.MeanSquaredError())().layers.values())))
    np.testing.assert_array_equal(results[0].total, results[1].total)


def test_a_shared_layer_counts_twice():
    x = keras.Input((T, D))
    layer = L.SimpleRNN(D, return_sequences=True, name="shared")
    model = keras.Model(x, L.Dense(2)(layer(layer(x))[:, -1]))
    result = Probe(model, *batch(), loss=keras.losses.MeanSquaredError())()
    assert list(result.layers) == ["shared", "shared:2"]


def test_weights_of_the_same_path_are_numbered():
    model = keras.Sequential([keras.Input((T, D)), L.SimpleRNN(2), L.Dense(2), L.Dense(2)])
    for one, other in zip(model.layers[2].weights, model.layers[1].weights, strict=True):
        one._path = other._path
    weights = Probe(model, *batch(), loss=keras.losses.MeanSquaredError())().weight_gradients
    paths = [one.path for one in model.layers[1].weights]
    assert list(weights)[3:] == [*paths, *(f"{path}:2" for path in paths)]


def test_an_embedding_may_come_first():
    model = keras.Sequential(
        [keras.Input((T,), dtype="int32"), L.Embedding(6, 3, mask_zero=True), L.LSTM(4), L.Dense(1)]
    )
    tokens = np.array([[1, 2, 3, 4, 5, 1, 0, 0, 0], [5] * 9, [1, 1, 1, 0, 0, 0, 0, 0, 0]])
    (one,) = Probe(model, tokens, np.zeros((3, 1)), loss=keras.losses.MeanSquaredError())().layers.values()
    np.testing.assert_array_equal(one.trajectory.lag[:, 0], [6, 9, 3])
    np.testing.assert_array_equal(one.total[2, 3], one.total[2, 9])  # masked steps carry the gradient along


def test_the_weights_are_read_anew():
    model = MODELS["simple"]()
    probe = Probe(model, *batch(), loss=keras.losses.MeanSquaredError())
    before = probe().loss
    model.set_weights([2.0 * one for one in model.get_weights()])
    assert probe().loss != before
    assert probe().loss == Probe(model, *batch(), loss=keras.losses.MeanSquaredError())().loss


def test_a_model_that_is_not_finite_says_so():
    model = MODELS["simple"]()
    probe = Probe(model, *batch(), loss=keras.losses.MeanSquaredError())
    model.set_weights([np.full_like(one, np.nan) for one in model.get_weights()])
    result = probe()
    assert not result.finite
    assert result.layers == {}
    assert "nan" in result.not_finite


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, x, y: Probe(keras.Sequential([keras.Input((3,)), L.Dense(1)]), x, y),
            ValueError,
            "no recurrent layer",
        ),
        (lambda m, x, y: Probe(m.layers[0], x, y), TypeError, "must be a keras.Model, got SimpleRNN"),
        (lambda m, x, y: Probe(m, x, y), ValueError, "not compiled with a loss"),
        (lambda m, x, y: Probe(m, x, y[:2], loss="mse"), ValueError, r"of one batch, got \[4, 2\] sequences"),
        (
            lambda m, x, y: Probe(m, x * np.nan, y, loss=sum),
            ValueError,
            r"probe_inputs must be finite, got nan at index",
        ),
        (lambda m, x, y: Probe(m, x, y / 0, loss=sum), ValueError, r"probe_targets must be finite, got -?inf at index"),
        (lambda m, x, y: Probe(m, x, y, loss=sum, layers=["lstm"]), ValueError, "layers must name recurrent layers"),
        (lambda m, x, y: Probe(m, x[:, :, :2], y, loss=lambda a, b: b)(), ValueError, r"got shape \(4, 9, 2\)"),
        (
            lambda m, x, y: Probe(m, x, y, loss=lambda a, b: tf.reduce_mean(a))(),
            ValueError,
            "does not depend on the states",
        ),
        (lambda m, x, y: Probe(m, x, y, loss=lambda a, b: b)(), ValueError, "a scalar or one value per sequence"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(MODELS["simple"](), *batch())


def classifier(steps=False, loss="sparse_categorical_crossentropy"):
    layers = [L.LSTM(4, return_sequences=steps, name="lstm"), L.Dense(5, activation="softmax")]
    model = keras.Sequential([keras.Input((T, 3)), *layers])
    model.compile("adam", loss)
    return model


def regression():
    model = keras.Sequential([keras.Input((T, 3)), L.LSTM(4, name="lstm"), L.Dense(1)])
    model.compile("adam", "mse")
    return model


def reader():
    model = keras.Sequential([keras.Input((T,), dtype="int32"), L.Embedding(6, 3, name="words"), L.GRU(4), L.Dense(1)])
    model.compile("adam", "mse")
    return model


def masked():
    x, mask = keras.Input((T, 3), name="sequence"), keras.Input((T,), dtype="bool", name="mask")
    model = keras.Model([x, mask], L.Dense(1)(L.LSTM(4)(x, mask=mask)))
    model.compile("adam", "mse")
    return model


WRONG_X, WRONG_Y, LABELS = np.ones((B, T, 3)), np.zeros((B, 1)), np.arange(B)


@pytest.mark.parametrize(
    ("make", "x", "y", "message"),
    [
        (regression, WRONG_X[:, :, 0], WRONG_Y, r"must be \[batch, 9, 3\], as the model was built, got shape \(4, 9\)"),
        (regression, WRONG_X[:, :, :2], WRONG_Y, r"^layer lstm takes \[batch, time, 3\], got shape \(4, 9, 2\); pass"),
        (regression, (WRONG_X, WRONG_Y), None, r"1 input of the model .*, got 2 of .*; targets go into probe_targets"),
        (regression, None, WRONG_Y, "probe_inputs must be an array, got None"),
        (regression, tf.data.Dataset.range(3), WRONG_Y, "must be an array, got <_RangeDataset .*; take the arrays of"),
        (regression, [[1.0, 2.0], [1.0]], WRONG_Y, "one array, got parts of different lengths; pad them"),
        (regression, WRONG_X + 1j, WRONG_Y, "an array of real numbers, got dtype complex128"),
        (regression, WRONG_X.astype(str), WRONG_Y, "probe_inputs must be numbers, got text"),
        (regression, WRONG_X[:, :0], WRONG_Y, r"at least one step and feature, got shape \(4, 0, 3\)"),
        (regression, WRONG_X, None, "could not be computed without probe_targets"),
        (regression, WRONG_X, np.zeros((B, 3)), r"must be of shape \(4, 1\), as the outputs .*, got shape \(4, 3\)"),
        (regression, WRONG_X, np.zeros((B, T, 1)), r"must be of shape \(4, 1\), .* got shape \(4, 9, 1\)"),
        (classifier, WRONG_X, LABELS + 2, r"labels 0 … 4, .* 5 outputs, got 5 at index \(3,\); number the classes"),
        (classifier, WRONG_X, LABELS - 1, r"labels 0 … 4, .* got -1 at index \(0,\)"),
        (classifier, WRONG_X, LABELS + 0.5, r"labels 0 … 4, .* got 0.5 at index \(0,\)"),
        (classifier, WRONG_X, list("abcd"), "probe_targets must be numbers, got text"),
        (classifier, WRONG_X, np.eye(5)[LABELS], r"labels of shape \(4,\) for sparse_.*, got shape \(4, 5\); pass"),
        (lambda: classifier(True), WRONG_X, LABELS, r"labels of shape \(4, 9\) .*, got shape \(4,\)"),
        (
            lambda: classifier(loss="categorical_crossentropy"), WRONG_X, LABELS,
            r"one-hot vectors of shape \(4, 5\) for cat.*, got shape \(4,\); keras.utils.to_categorical\(labels, 5\)",
        ),
        (reader, np.full((B, T), 9), WRONG_Y, "tokens 0 … 5, which layer words knows, got 9"),
        (reader, np.full((B, T), 1.5), WRONG_Y, r"must be integers \(int32\), got 1.5; pass tokens"),
        (masked, WRONG_X, WRONG_Y, r"2 inputs of the model \(sequence \(None, 9, 3\), mask .*, got 1 of shapes"),
        (masked, [WRONG_X, np.ones((B, T - 1), bool)], WRONG_Y, r"\[batch, 9\] for its input mask, .* got shape"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_named(make, x, y, message):
    with pytest.raises(ValueError, match=message):
        Probe(make(), x, y)()


def test_what_keras_takes_is_taken():
    keras.utils.set_random_seed(0)
    model = regression()
    expected = Probe(model, WRONG_X, WRONG_Y)().loss
    for x, y in ((WRONG_X.tolist(), WRONG_Y.tolist()), (WRONG_X, WRONG_Y[:, 0]), (WRONG_X, WRONG_Y.astype(int))):
        assert Probe(model, x, y)().loss == expected
    assert np.isfinite(Probe(model, WRONG_X[:, :4], WRONG_Y)().loss)  # fewer steps
    some = classifier(True, keras.losses.SparseCategoricalCrossentropy(ignore_class=-1))
    steps = np.tile(LABELS[:, None], (1, T))
    steps[:, :3] = -1
    assert np.isfinite(Probe(some, WRONG_X, steps)().loss)
    with pytest.raises(TypeError, match="loss must be a function of targets and outputs, got 'mse'"):
        Probe(model, WRONG_X, WRONG_Y, loss="mse")


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="no weights yet"):
        Probe(Own(), *batch(), loss=keras.losses.MeanSquaredError())
    assert len(recurrent_layers(Own())) == 2

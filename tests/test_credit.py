from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradlab as gl

L = keras.layers
B, T, D, N = 3, 5, 2, 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, T, D))
MASK = np.ones((B, T), bool)
MASK[0, 4:] = False
MASK[1, 2] = False
CELLS = {
    "tanh": lambda: gl.VanillaRNNCell(N, recurrent_gain=1.3, seed=1, dtype="float64"),
    "lstm": lambda: L.LSTMCell(N, dtype="float64"),
    "gru": lambda: L.GRUCell(N, dtype="float64"),
}


def cell_of(kind):
    keras.utils.set_random_seed(1)
    cell = CELLS[kind]()
    cell.build((None, D))
    return cell


def last(states):
    return tf.reduce_sum(tf.sin(states[:, -1]), axis=-1)


def everywhere(states):
    return tf.reduce_sum(tf.sin(states[:, 1:]) * tf.range(1.0, T + 1, dtype=tf.float64)[:, None], axis=[1, 2])


def truncated(cell, mask, reads, k):
    """∂L/∂W by a tape through the unrolled loop, for each s the state stopped before the last k + 1 real steps."""
    total = np.zeros(cell.recurrent_kernel.shape)
    for b in range(B):
        real = np.flatnonzero(mask[b])
        for s, weight in reads.items():
            used = real[real < s]  # array index of the steps up to time s
            stop = len(used) - (k + 1)
            with tf.GradientTape() as tape:
                h = [tf.zeros((1, size), tf.float64) for size in keras.tree.flatten(cell.state_size)]
                for i, step in enumerate(used):
                    if i == stop:
                        h = [tf.stop_gradient(one) for one in h]
                    _, h = cell(tf.constant(X[b : b + 1, step]), h)
                value = weight * tf.reduce_sum(tf.sin(tf.concat(h, axis=-1)))
            found = tape.gradient(value, cell.recurrent_kernel.value)
            total += 0.0 if found is None else found.numpy()
    return total.ravel()


@pytest.mark.parametrize(
    ("kind", "loss", "masked"),
    [
        ("tanh", last, False),
        ("tanh", everywhere, False),
        ("tanh", everywhere, True),
        ("lstm", last, True),
        ("gru", everywhere, False),
    ],
)
def test_truncation_is_explicit_truncation(kind, loss, masked):
    cell, mask = cell_of(kind), MASK if masked else np.ones((B, T), bool)
    ds = gl.credit_by_lag(cell, X, loss, mask=mask if masked else None)
    reads = {T: 1.0} if loss is last else {s: float(s) for s in range(1, T + 1)}
    C = [truncated(cell, mask, reads, k) for k in range(T)]
    G, parts = C[-1], np.diff(np.array([np.zeros_like(C[0]), *C]), axis=0)
    size = np.linalg.norm(G)
    # sums of a few hundred products in float64
    np.testing.assert_allclose(ds.truncation_bias, [np.linalg.norm(c - G) / size for c in C], rtol=0, atol=1e-13)
    np.testing.assert_allclose(ds.truncation_cosine, [c @ G / np.linalg.norm(c) / size for c in C], rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.exp(ds.credit_log_norm), np.linalg.norm(parts, axis=1), rtol=0, atol=1e-13 * size)
    np.testing.assert_allclose(ds.credit_share, parts @ G / size**2, rtol=0, atol=1e-13)
    np.testing.assert_allclose(float(np.exp(ds.log_weight_gradient)), size, rtol=1e-13)
    assert float(ds.credit_cumulative[-1]) == pytest.approx(1.0, abs=1e-13)
    short = np.flatnonzero(np.cumsum(parts @ G) < 0.9 * size**2)
    assert int(ds.credit_horizon) == (short[-1] + 1 if len(short) else 0)


@pytest.mark.parametrize(("gain", "steps"), [(0.5, 600), (3.0, 400)])
def test_small_and_large_contributions_are_neither_lost_nor_infinite(gain, steps):
    """One linear unit, a loss at T alone: G_k = g^k h_{T−k−1}, far beyond the range of a square in float64."""
    cell = gl.VanillaRNNCell(
        1, "linear", recurrent_initializer="identity", recurrent_gain=gain, kernel_initializer="ones"
    )
    ds = gl.credit_by_lag(cell, np.ones((1, steps, 1)), lambda states: states[:, -1, 0])
    k = np.arange(steps - 1)
    before = (gain ** (steps - 1.0 - k) - 1.0) / (gain - 1.0)  # h_t = (g^t − 1)/(g − 1)
    expected = k * np.log(gain) + np.log(before)
    # t sums and k products, each rounded once
    np.testing.assert_allclose(ds.credit_log_norm[:-1], expected, rtol=0, atol=2 * steps * 2.0**-53 + 1e-13 * 4)
    total = np.log(np.sum(np.exp(expected - expected.max()))) + expected.max()
    assert float(ds.log_weight_gradient) == pytest.approx(total, rel=0, abs=1e-12)
    shares = np.exp(expected - total)
    np.testing.assert_allclose(ds.credit_share[:-1], shares, rtol=1e-11, atol=1e-300)
    assert np.isfinite(ds.credit_horizon)
    np.testing.assert_allclose(ds.truncation_bias[:50], 1.0 - np.cumsum(shares)[:50], rtol=0, atol=1e-12)


def test_a_layer_in_a_model_gives_the_same_as_its_cell():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((T, D), dtype="float64"), L.GRU(N, name="gru", dtype="float64")])
    found = gl.layer_gradients(model, X, loss=lambda _, y: tf.reduce_sum(tf.sin(y)))["gru"]
    ours = gl.credit_by_lag(found)
    expected = gl.credit_by_lag(model.get_layer("gru"), X, last)
    np.testing.assert_allclose(ours.credit_log_norm, expected.credit_log_norm, rtol=0, atol=1e-12)
    with pytest.raises(TypeError, match="pass them alone"):
        gl.credit_by_lag(found, X)


def test_what_is_not_one_layer_is_named():
    model = keras.Sequential([keras.Input((T, D), dtype="float64"), L.GRU(N, name="gru", dtype="float64")])
    found = gl.layer_gradients(model, X, loss=lambda _, y: tf.reduce_sum(tf.sin(y)))
    assert len(repr(found["gru"])) < 100
    with pytest.raises(TypeError, match=r"got those of \['gru'\]; pass found\['gru'\]"):
        gl.credit_by_lag(found)
    with pytest.raises(TypeError, match=r"got a model; pass gl\.layer_gradients"):
        gl.credit_by_lag(model)


def test_a_stack_takes_all_its_kernels_together():
    stack = [L.LSTMCell(2), L.GRUCell(2)]
    ds = gl.credit_by_lag(stack, X, last)
    assert float(ds.credit_cumulative[-1]) == pytest.approx(1.0, abs=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"weight must name a weight of .*'recurrent_kernel'.*got 'W'"):
        gl.credit_by_lag(cell_of("tanh"), X, last, weight="W")
    with pytest.raises(TypeError, match="loss must be a function"):
        gl.credit_by_lag(cell_of("tanh"), X)
    with pytest.raises(ValueError, match="must name a weight"):
        gl.credit_by_lag(gl.as_step(lambda h, x: 0.5 * h, state_size=2, input_size=D), X, last)


def test_a_gradient_that_is_zero_has_no_horizon():
    cell = cell_of("tanh")
    cell.kernel.assign(np.zeros((D, N)))  # h = 0 for ever: W is never used
    ds = gl.credit_by_lag(cell, X, last)
    assert np.isnan(ds.credit_horizon)
    assert np.isneginf(ds.credit_log_norm).all()


# --- what the gradient of an output leaves out ------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [False, True])
def test_the_tape_of_an_output_is_the_direct_part(sequences):
    keras.utils.set_random_seed(0)
    x = keras.Input((T, D), dtype="float64")
    lower = L.LSTM(N, return_sequences=True, name="lower", dtype="float64")
    upper = L.SimpleRNN(N, return_sequences=True, name="upper", dtype="float64")
    readout = L.Dense(1, dtype="float64")
    h = lower(x)
    g = upper(h)
    model = keras.Model(x, readout(g if sequences else g[:, -1]))
    with tf.GradientTape() as tape:
        outputs = lower(tf.constant(X))
        tape.watch(outputs)
        above = upper(outputs)
        value = tf.reduce_mean(readout(above if sequences else above[:, -1]) ** 2)
    expected = tape.gradient(value, outputs).numpy()
    targets = np.zeros((B, T, 1) if sequences else (B, 1))
    with pytest.warns(UserWarning, match="leaves out what comes back through time"):
        ds = gl.gradient_left_out(model, X, targets, loss=lambda _, y: tf.reduce_mean(y**2))
    tape_norms = np.linalg.norm(expected.swapaxes(0, 1).reshape(T, -1), axis=1)
    np.testing.assert_allclose(np.exp(ds.log_output_gradient_norm.sel(layer="lower")), tape_norms, rtol=1e-10)
    total = gl.layer_gradients(model, X, targets, loss=lambda _, y: tf.reduce_mean(y**2))["lower"].total[:, 1:, :N]
    missing = np.linalg.norm((total - expected).swapaxes(0, 1).reshape(T, -1), axis=1)
    whole = np.linalg.norm(total.swapaxes(0, 1).reshape(T, -1), axis=1)
    np.testing.assert_allclose(ds.left_out.sel(layer="lower"), missing / whole, rtol=0, atol=1e-9)
    overall = np.linalg.norm(total - expected) / np.linalg.norm(total)
    assert float(ds.left_out_overall.sel(layer="lower")) == pytest.approx(overall, abs=1e-9)
    if not sequences:
        np.testing.assert_array_equal(ds.left_out.sel(layer="upper"), [1.0] * (T - 1) + [0.0])


def test_nothing_is_said_where_nothing_is_left_out():
    layer = L.SimpleRNN(N, return_sequences=True, recurrent_initializer="zeros")
    model = keras.Sequential([keras.Input((T, D)), layer])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ds = gl.gradient_left_out(model, X, np.ones((B, T, N)), loss=keras.losses.MeanSquaredError())
    assert float(ds.left_out_overall[0]) == 0.0


def test_an_encoder_whose_outputs_nobody_reads_leaves_out_everything():
    """Of h and c alone: tape.gradient(loss, output) is None, and the direct part is at the last step."""
    x = keras.Input((T, D), dtype="float64")
    _, h, c = L.LSTM(N, return_state=True, name="encoder", dtype="float64")(x)
    model = keras.Model(x, L.Dense(1, dtype="float64")(L.Concatenate(dtype="float64")([h, c])))

    def loss(_, y):
        return tf.reduce_mean(y**2)

    with pytest.warns(UserWarning, match=f"leaves out 100% of the norm and is exactly zero at {T} of {T} steps"):
        ds = gl.gradient_left_out(model, X, np.zeros((B, 1)), loss=loss)
    assert np.isneginf(ds.log_output_gradient_norm).all()
    np.testing.assert_array_equal(ds.left_out, 1.0)
    found = gl.layer_gradients(model, X, np.zeros((B, 1)), loss=loss)["encoder"]
    assert not found.output.any()
    assert not found.direct[:, :-1].any()
    np.testing.assert_allclose(found.direct[:, -1], found.total[:, -1], rtol=1e-14)

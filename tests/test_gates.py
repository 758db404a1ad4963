"""The recurrent blocks of gated cells: Keras's order is checked against the step itself."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import gradlab as gl
from gradlab.gates import gate_spectra

N = 3
LSTM = ("input", "forget", "candidate", "output")
GRU = ("update", "reset", "candidate")
FLOAT32 = float(np.finfo(np.float32).eps)


def filled(cell, blocks):
    """Build a cell for 2 features whose recurrent kernel holds these blocks [n, n], as they act, side by side."""
    cell.build((None, 2))
    kernel = np.concatenate([block.T for block in blocks], axis=1)
    cell.recurrent_kernel.assign(kernel)
    return cell


def marked(count):
    """Return matrices whose spectral radius tells which one it is: 1, 2, … times a rotation about the diagonal."""
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    return [(i + 1) * Q for i in range(count)]


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: keras.layers.LSTMCell(N), LSTM),
        (lambda: keras.layers.GRUCell(N), GRU),
        (lambda: keras.layers.GRUCell(N, reset_after=False), GRU),
        (lambda: keras.layers.SimpleRNNCell(N), ("recurrent",)),
        (lambda: gl.VanillaRNNCell(N), ("recurrent",)),
    ],
)
def test_blocks_lie_in_keras_s_order(make, names):
    spectra = gate_spectra(filled(make(), marked(len(names))))
    assert tuple(spectra) == names
    for i, name in enumerate(names):
        assert spectra[name].spectral_radius == pytest.approx(i + 1, rel=10 * N * FLOAT32)
        assert spectra[name].henrici_departure < 10 * N * FLOAT32 * (i + 1)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def test_the_names_are_those_of_the_lstm_s_equations():
    """h, c from the gates as named: c = σ(forget)·c + σ(input)·tanh(candidate), h = σ(output)·tanh(c)."""
    blocks = dict(zip(LSTM, 0.3 * np.random.default_rng(1).standard_normal((4, N, N)), strict=True))
    cell = filled(keras.layers.LSTMCell(N, unit_forget_bias=False), blocks.values())
    h, c = np.random.default_rng(2).standard_normal((2, N))
    gate = {name: W @ h for name, W in blocks.items()}
    c_new = sigmoid(gate["forget"]) * c + sigmoid(gate["input"]) * np.tanh(gate["candidate"])
    h_new = sigmoid(gate["output"]) * np.tanh(c_new)
    state = gl.rollout(cell, np.zeros((1, 1, 2)), initial_state=np.concatenate([h, c])[None]).states[0, -1]
    np.testing.assert_allclose(state, np.concatenate([h_new, c_new]), rtol=0, atol=1e-6)  # weights in float32
    spectra = gate_spectra(cell)
    for name, W in blocks.items():
        assert spectra[name].sigma_max == pytest.approx(np.linalg.norm(W, 2), rel=10 * N * FLOAT32)


def test_the_names_are_those_of_the_gru_s_equations():
    """h = z·h + (1 − z)·tanh(r·(W_c h)) with z the update and r the reset gate."""
    blocks = dict(zip(GRU, 0.5 * np.random.default_rng(1).standard_normal((3, N, N)), strict=True))
    cell = filled(keras.layers.GRUCell(N), blocks.values())
    h = np.random.default_rng(2).standard_normal(N)
    z, r = sigmoid(blocks["update"] @ h), sigmoid(blocks["reset"] @ h)
    expected = z * h + (1 - z) * np.tanh(r * (blocks["candidate"] @ h))
    state = gl.rollout(cell, np.zeros((1, 1, 2)), initial_state=h[None]).states[0, -1]
    np.testing.assert_allclose(state, expected, rtol=0, atol=1e-6)
    spectra = gate_spectra(cell)
    for name, W in blocks.items():
        assert spectra[name].sigma_max == pytest.approx(np.linalg.norm(W, 2), rel=10 * N * FLOAT32)


def test_a_stack_names_its_layers_and_a_layer_is_its_cell():
    stack = [keras.layers.LSTMCell(2), keras.layers.SimpleRNNCell(3)]
    assert list(gate_spectra(stack, input_size=2)) == [f"layer1.{name}" for name in LSTM] + ["layer2.recurrent"]
    layer = keras.layers.GRU(2)
    assert tuple(gate_spectra(layer, input_size=4)) == GRU


def test_orthogonal_weights_of_float32_have_no_transient():
    """ρ is 1 + 1e-8 there, which the precision that the weights are stored in takes for 1."""
    cell = gl.VanillaRNNCell(8, seed=0)
    (w,) = gate_spectra(cell, input_size=2).values()
    assert (w.transient_peak, w.transient_peak_upper) == (1, 1)


def test_a_cell_without_known_blocks_is_explained():
    step = gl.as_step(lambda h, x: 0.5 * h, state_size=2)
    with pytest.raises(ValueError, match=r"must be an LSTM, GRU or simple recurrent cell.*pass each matrix"):
        gate_spectra(step)
    with pytest.raises(ValueError, match="input_size"):
        gate_spectra(keras.layers.LSTMCell(2))

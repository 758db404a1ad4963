"""Steps of gated cells under the matrices that dominate them, on whatever trajectory."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import gradlab as gl
from gradlab.bounds import dominance_certificate, gru_dominating_matrix, lstm_dominating_matrix

UNITS, FEATURES, STEPS = 3, 2, 12
KINDS = {
    "lstm": lambda: keras.layers.LSTMCell(UNITS),
    "gru": lambda: keras.layers.GRUCell(UNITS),
    "gru, reset before": lambda: keras.layers.GRUCell(UNITS, reset_after=False),
}


def dominated(kind, seed, scale):
    """Return J [1, T, n, n] of a run of a random cell within its suprema, and the matrix that dominates it."""
    rng = np.random.default_rng(seed)
    cell = KINDS[kind]()
    cell.build((None, FEATURES))
    cell.set_weights([scale * rng.standard_normal(w.shape).astype(np.float32) for w in cell.get_weights()])
    U, R, b = (np.asarray(w, np.float64) for w in cell.get_weights())
    x = rng.uniform(-1, 1, (1, STEPS, FEATURES))
    gates = R.shape[1] // UNITS
    W = np.moveaxis(R.reshape(UNITS, gates, UNITS), 0, 2)
    outer, inner = (b[0], b[1]) if b.ndim == 2 else (b, np.zeros_like(b))
    # the suprema that the docstring gives, over the box of inputs |x| ≤ 1
    reach = np.abs(U).sum(axis=0).reshape(gates, UNITS) + np.abs(W).sum(axis=2)
    centre = (outer + inner).reshape(gates, UNITS)
    high, low = expit(centre + reach), expit(centre - reach)
    if kind == "lstm":
        M = lstm_dominating_matrix(W, high[1], input_supremum=high[0], output_supremum=high[3])
        start = np.concatenate([rng.uniform(-1, 1, UNITS), rng.uniform(-1, 1, UNITS) * high[0] / (1 - high[1])])
    else:
        after = kind == "gru"
        M = gru_dominating_matrix(
            W,
            high[0],
            update_infimum=low[0],
            reset_supremum=high[1],
            reset_after=after,
            recurrent_bias=inner[2 * UNITS :],
        )
        start = rng.uniform(-1, 1, UNITS)
    return gl.step_jacobians(gl.rollout(cell, x, initial_state=start[None])), M


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
def test_no_entry_of_a_step_is_above_its_bound(kind, seed, scale):
    J, M = dominated(kind, seed, scale)
    lags = np.arange(STEPS, 0, -1)
    bound = dominance_certificate(M, lags, slope_supremum=1.0, J=J).log_bound  # checks |J| ≤ M, entry by entry
    ln_s = gl.log_singular_values(J)[0, :, 0]
    assert (ln_s <= bound + 1e-12 * np.maximum(1.0, np.abs(bound))).all()  # rounding of ln σ and of the sums of logs


def test_small_weights_are_certified_and_their_gradients_vanish():
    J, M = dominated("lstm", 0, 0.1)
    certificate = dominance_certificate(M, [1, 400], slope_supremum=1.0, J=J)
    assert certificate.certified
    assert certificate.log_bound[1] < -40
    J, M = dominated("lstm", 0, 3.0)
    assert not dominance_certificate(M, [1], slope_supremum=1.0, J=J).certified


def test_the_bound_is_attained_where_only_the_highway_is_open():
    f = np.array([0.5, 0.25])
    assert np.array_equal(gru_dominating_matrix(np.zeros((3, 2, 2)), f), np.diag(f))
    M = lstm_dominating_matrix(np.zeros((4, 2, 2)), f, output_supremum=0.5)
    assert np.array_equal(M, np.block([[np.zeros((2, 2)), np.diag(0.5 * f)], [np.zeros((2, 2)), np.diag(f)]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lstm_dominating_matrix(np.zeros((3, 2, 2)), 0.5), r"\[4, n, n\]"),
        (lambda: lstm_dominating_matrix(np.zeros((4, 2, 2)), 1.0), "below 1"),
        (lambda: lstm_dominating_matrix(np.zeros((4, 2, 2)), 0.5, input_supremum=1.5), "input_supremum must be"),
        (lambda: gru_dominating_matrix(np.zeros((3, 2, 2)), [0.5] * 3), "update_supremum must be"),
        (lambda: gru_dominating_matrix(np.zeros((3, 2, 2)), 0.5, update_infimum=0.6), "must not exceed"),
        (lambda: gru_dominating_matrix(np.zeros((3, 2, 2)), 0.5, recurrent_bias=[1.0]), "recurrent_bias must be"),
        (lambda: gru_dominating_matrix(np.full((3, 2, 2), np.nan), 0.5), "finite"),
    ],
)
def test_what_cannot_be_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()

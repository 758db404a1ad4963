"""The decay budget of every kind of cell under losses of every kind: its terms sum to what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from cell_cases import BATCH, EPS, MASK, STEPPED, STEPS, random_trajectory, ready
from hypothesis import given, settings
from hypothesis import strategies as st

import gradlab as gl
from gradlab.analysis import analyze

LOSSES = {
    "last state": lambda h: tf.reduce_sum(h[:, -1], axis=-1),
    "every state": lambda h: tf.reduce_sum(tf.sin(h), axis=(1, 2)),
    "mean over sequences": lambda h: tf.reduce_mean(tf.exp(0.1 * h[:, -1]) + h[:, 2] ** 2),
    "product of two times": lambda h: tf.reduce_sum(h[:, 1] * h[:, -1] + 0.5 * h[:, -1], axis=-1),
    "huge": lambda h: 1e200 * tf.reduce_sum(h[:, -1] - h[:, 3], axis=-1),
    "tiny": lambda h: 1e-200 * tf.reduce_sum(h[:, -1] + h[:, 0], axis=-1),
}


def unaccounted(ds):
    """Return (|Σ terms − measured|, what additions of logarithms of this size may cost), where both are numbers."""
    terms = [ds[name].values for name in json.loads(ds.attrs["budget_terms"])]
    measured = ds["budget_measured"].values
    known = np.isfinite(measured) & np.isfinite(terms).all(axis=0)
    sizes = [np.abs(one[known]).max(initial=1.0) for one in (*terms, measured, ds["log_gradient_norm"].values)]
    # each term is the difference of two sums of logarithms, and seven terms are added: 2·7 roundings, and those of the
    # sums from which neighbours are taken are the same in both
    return np.abs(sum(terms) - measured)[known], 20 * EPS * sum(sizes), known


# the plain cell's Jacobian is singular by its form, and its least values are rounding; the account needs σ_1 alone
@pytest.mark.filterwarnings("ignore:a step Jacobian is singular:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:some singular values are uncertain:RuntimeWarning")
@pytest.mark.parametrize("name", STEPPED)
@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.3, 0.8, 1.5]),
    loss=st.sampled_from(list(LOSSES)),
    masked=st.booleans(),
)
def test_the_account_adds_up(name, seed, scale, loss, masked):
    traj = random_trajectory(name, seed, scale, mask=MASK if masked else None)
    ds = analyze(traj, None, LOSSES[loss])
    error, allowance, known = unaccounted(ds)
    assert (error <= allowance).all()
    # wherever there is a gradient on both ends there is an account, and at T it is empty
    gradient = np.isfinite(ds["log_gradient_norm"].values)
    spectrum = np.isfinite(ds["log_singular_values"].values[..., 0])
    terminal = np.isfinite(ds["budget_direction"].values)
    assert (known == (gradient & gradient[:, -1:] & spectrum & terminal)).all()
    assert (ds["budget_measured"].values[:, -1] == 0.0).all()
    if loss == "last state":
        assert (np.abs(ds["budget_other_times"].values[known]) <= 1e-9).all()  # two routes to one gradient


@pytest.mark.parametrize("name", ["vanilla tanh", "simple"])
def test_with_a_recurrent_matrix_the_account_starts_at_its_promise(name):
    rng = np.random.default_rng(7)
    ds = analyze(ready(name, "float64"), rng.standard_normal((BATCH, STEPS, 2)), LOSSES["every state"])
    assert json.loads(ds.attrs["budget_terms"])[0] == "budget_promise"
    error, allowance, known = unaccounted(ds)
    assert known.all()
    assert (error <= allowance).all()


def test_without_a_gradient_at_the_end_there_is_no_account_and_none_is_made_up():
    traj = random_trajectory("lstm", 0)
    ds = analyze(traj, None, lambda h: tf.reduce_sum(h[:, 3] ** 2, axis=-1))
    assert (ds["budget_measured"].values[:, :4] == np.inf).all()
    assert not np.isfinite(ds["budget_direction"].values[:, :-1]).any()
    assert np.isfinite(gl.state_gradients(traj, None, lambda h: tf.reduce_sum(h[:, 3] ** 2)).total).all()

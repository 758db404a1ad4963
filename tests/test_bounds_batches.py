"""Sequences in a batch do not touch each other, masked steps are not there, and one sequence needs no batch axis."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gradlab import bounds
from gradlab.links import real_steps

B, T, N = 4, 7, 3
EPS = np.finfo(float).eps
rng = np.random.default_rng(11)
W = rng.standard_normal((N, N))
Q = np.linalg.qr(rng.standard_normal((N, N)))[0]
PHI = rng.uniform(0.1, 1.0, (B, T, N))
# 160 decades from sequence to sequence: what is scaled by a common factor is lost
SCALES = 10.0 ** np.array([-80.0, 0.0, 40.0, 80.0])
FREE = SCALES[:, None, None, None] * rng.standard_normal((B, T, N, N))
PLAIN = PHI[..., None] * W
GRADIENTS = SCALES[:, None, None] * rng.standard_normal((B, T + 1, N))
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0]], bool)


def penalty(J, gradients, **more):
    return bounds.norm_preservation_penalty(J, gradients, **more)[..., None]  # one number, not one for each t


# function of (what has a time axis, mask), what has one
CASES = {
    "chain": (
        lambda J, phi, **m: bounds.chain(J, recurrent_matrix=W, slopes=phi, slope_supremum=1.0, **m),
        (PLAIN, PHI),
    ),
    "chain of anything": (bounds.chain, (FREE,)),
    "lower end": (lambda J, phi, **m: bounds.lower_end(J, recurrent_matrix=W, slopes=phi, **m), (PLAIN, PHI)),
    "lower end of anything": (bounds.lower_end, (FREE,)),
    "1-norm": (lambda J, **m: bounds.induced_norm_bound(J, 1, **m), (FREE,)),
    "∞-norm": (lambda J, **m: bounds.induced_norm_bound(J, np.inf, **m), (FREE,)),
    "determinant": (bounds.log_determinant, (FREE,)),
    "determinant from slopes": (lambda phi, **m: bounds.log_determinant_from_slopes(W, phi, **m), (PHI,)),
    "leading sums": (bounds.leading_sums, (FREE,)),
    "eigenvalues": (bounds.eigenvalue_sums, (FREE,)),
    "latching": (lambda J, mask=None: bounds.latching_certificate(J, mask), (0.3 * PLAIN,)),
    "gates": (bounds.gate_path, (PHI,)),
    "orthogonal": (lambda phi, **m: bounds.orthogonal_bound(Q, phi, **m), (PHI,)),
    "penalty": (penalty, (FREE / SCALES[:, None, None, None], GRADIENTS)),
}


def parts(found):
    """The arrays of a result, by name."""
    return vars(found) if dataclasses.is_dataclass(found) else {"result": found}


def alike(one, other, context):
    for name, value in parts(one).items():
        if value is None:
            assert parts(other)[name] is None, (context, name)
            continue
        # the same operations for each sequence; BLAS may add up in another order for another batch
        expected = np.asarray(parts(other)[name], float)
        got = np.asarray(value, float)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12, err_msg=f"{context} {name}")


def taken(found, index):
    """One sequence of a result with a batch axis."""
    chosen = {name: None if value is None else value[index] for name, value in parts(found).items()}
    return dataclasses.replace(found, **chosen) if dataclasses.is_dataclass(found) else chosen["result"]


@pytest.mark.parametrize("name", CASES)
def test_a_sequence_in_a_batch_is_as_by_itself(name):
    function, arrays = CASES[name]
    with np.errstate(all="raise"):
        whole, masked = function(*arrays), function(*arrays, mask=MASK)
        for b in range(B):
            alike(function(*(one[b] for one in arrays)), taken(whole, b), name)
            alike(function(*(one[b] for one in arrays), mask=MASK[b]), taken(masked, b), name)
            alike(function(*(one[b : b + 1] for one in arrays)), taken(whole, slice(b, b + 1)), name)


@pytest.mark.parametrize("name", CASES)
def test_a_masked_step_is_not_there(name):
    function, arrays = CASES[name]
    masked = function(*arrays, mask=MASK)
    for b in range(B - 1):
        kept = MASK[b]
        # gradients have one more time than steps: what belongs to a step is at its end
        short = [one[b][np.r_[True, kept]] if one.shape[1] == T + 1 else one[b][kept] for one in arrays]
        expected = function(*short)
        for field, value in parts(taken(masked, b)).items():
            wanted = parts(expected)[field]
            if value is None or np.ndim(value) == 0:
                continue
            if np.shape(value)[0] != T:
                np.testing.assert_allclose(value, wanted, rtol=1e-12)
                continue
            np.testing.assert_allclose(value[kept], wanted, rtol=1e-12, atol=1e-12, err_msg=f"{name} {field}")
        last = np.flatnonzero(kept)[-1]
        if last < T - 1:
            for field, value in parts(taken(masked, b)).items():
                if value is not None and np.shape(value)[:1] == (T,):
                    np.testing.assert_array_equal(value[last + 1 :], np.zeros_like(value[last + 1 :]), err_msg=field)


def test_a_sequence_without_steps_says_nothing():
    empty = bounds.latching_certificate(0.3 * PLAIN, MASK)
    assert empty.eta[3] == 1.0
    assert not empty.certified[3]
    assert bounds.norm_preservation_penalty(PLAIN, np.ones((B, T + 1, N)), mask=MASK)[3] == 0.0
    assert (bounds.chain(PLAIN, mask=MASK).lags[3] == 0).all()


def test_links_that_take_both_are_left_out_without_one_of_them():
    for given in ({"recurrent_matrix": W}, {"slopes": PHI}, {"slope_supremum": 1.0}):
        assert bounds.chain(PLAIN, **given).slopes is None
        assert bounds.chain(PLAIN, **given).promise is None
        if "slope_supremum" not in given:
            assert bounds.lower_end(PLAIN, **given).slopes is None


def test_splits_are_taken_along_the_last_axis():
    early, late = -np.sort(-rng.standard_normal((2, 3, N)), axis=-1)
    whole = bounds.leading_sums_at_split(early, late)
    for b in range(3):
        np.testing.assert_allclose(whole[b], bounds.leading_sums_at_split(early[b], late[b]), rtol=8 * EPS)
        np.testing.assert_allclose(whole[b], np.cumsum(early[b]) + np.cumsum(late[b]), rtol=8 * EPS)
    for which, name in ((0, "early"), (1, "late")):
        halves = [early.copy(), late.copy()]
        halves[which][2, -2:] = [0.0, 1.0]
        with pytest.raises(ValueError, match=rf"^{name} must descend"):
            bounds.leading_sums_at_split(*halves)


def test_gradients_of_all_sizes_are_clipped_each_by_itself():
    g = np.array([[3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0], [0.3, 0.4], [0.6, 0.8]])
    with np.errstate(all="raise", under="ignore"):
        clipped = bounds.clip_gradient(g, 0.5)
    unit = np.array([0.3, 0.4])
    np.testing.assert_allclose(clipped, [g[0], unit, [0.0, 0.0], unit, unit], rtol=8 * EPS)
    np.testing.assert_array_equal(clipped[[0, 2]], g[[0, 2]])
    assert bounds.clip_gradient(np.zeros((2, 0)), 1.0).shape == (2, 0)


def test_the_penalty_of_gradients_of_all_sizes():
    """Ω knows the direction of a gradient alone; a zero one has none."""
    J = np.repeat(np.diag([2.0, 0.5])[None], 2, axis=0)[None].repeat(3, axis=0)
    g = np.zeros((3, 3, 2))
    g[:, :, 0] = np.array([1e-300, 1.0, 1e300])[:, None]
    with np.errstate(all="raise"):
        np.testing.assert_allclose(bounds.norm_preservation_penalty(J, g), 2.0, rtol=8 * EPS)
        g[1, 1] = 0.0
        assert np.isnan(bounds.norm_preservation_penalty(J, g)).tolist() == [False, True, False]
        g[1, 1], g[1, 0] = 1.0, 0.0  # that at t = 0 does not count
        assert np.isfinite(bounds.norm_preservation_penalty(J, g)).all()
    single = bounds.norm_preservation_penalty(J[0], g[2])
    assert np.shape(single) == ()
    for wrong in (g[2], g[:, 1:], g[..., :1]):
        with pytest.raises(ValueError, match="gradients must be"):
            bounds.norm_preservation_penalty(J, wrong)


def test_the_logistic_bound_at_any_width():
    found = bounds.logistic_entry_bound(3, 0.5, [0, 2])
    np.testing.assert_allclose(found.log_bound, np.log(3) + np.array([0, 2]) * np.log(3 * 0.5 / 4), rtol=8 * EPS)
    assert found.certified
    assert not bounds.logistic_entry_bound(3, 4 / 3, 1).certified
    assert bounds.logistic_entry_bound(3, 4 / 3 * (1 - 1e-12), 1).certified


@pytest.mark.parametrize("shape", [(3,), (2, 0), (2, 3, 4, 5)])
def test_a_sandwich_takes_values_over_time(shape):
    with pytest.raises(ValueError, match=r"log_singular_values must be \[batch, time, n\]"):
        bounds.gradient_sandwich(np.zeros(shape), 0.0)


def test_masks_are_told_from_other_shapes():
    assert real_steps(None, (2, 3)).all()
    with pytest.raises(ValueError, match="one entry a step"):
        real_steps(np.ones((3, 2), bool), (2, 3))

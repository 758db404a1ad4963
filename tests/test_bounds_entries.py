from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.bounds import (
    LOCAL_FACTOR_ARGMAX,
    LOCAL_FACTOR_PEAK,
    dominance_certificate,
    dominating_entries,
    entry_bound,
    local_factor,
    logistic_entry_bound,
)
from tests.reference import exact_log_entries
from tests.rounding import EPS, allowance, exact, jacobians
from tests.strategies import networks, recurrent_matrices

quick = settings(deadline=None, max_examples=120)
SUPREMA = st.sampled_from([0.25, 1.0])


def tolerance(J, *arrays):
    """The rounding of J = fl(φ'W) and of k factors, each of n products and additions of one sign, in logarithms."""
    return 4 * allowance(J, *[x[np.isfinite(x)] for x in arrays if np.isfinite(x).any()] or [np.ones(1)])


# --- Hochreiter (A6) ---------------------------------------------------------------------------------------------


@quick
@given(networks(), SUPREMA)
def test_no_entry_crosses_the_row_sums(net, gamma):
    W, phi = net
    J = jacobians(W, gamma * phi)
    truth = np.array([exact_log_entries(J[t:]).max() for t in range(len(J))])
    bound = entry_bound(W, np.arange(len(J), 0, -1), slope_supremum=gamma, J=J)
    assert (truth <= bound.log_bound + tolerance(J, truth, bound.log_bound)).all()
    assert bound.certified == (gamma * np.abs(W).sum(axis=1).max() < 1 - 4 * len(W) * EPS)


@quick
@given(networks())
def test_no_entry_of_a_logistic_network_crosses_its_largest_weight(net):
    W, phi = net
    J = jacobians(W, phi / 4)
    lags = np.arange(len(J), 0, -1)
    truth = np.array([exact_log_entries(J[t:]).max() for t in range(len(J))])
    by_weight = logistic_entry_bound(len(W), np.abs(W).max(), lags)
    by_rows = entry_bound(W, lags, slope_supremum=0.25)
    tol = tolerance(J, truth, by_weight.log_bound)
    assert (truth <= by_weight.log_bound + tol).all()
    assert (by_rows.log_bound <= by_weight.log_bound + tol).all()
    assert by_rows.certified or not by_weight.certified


def test_entry_bounds_are_attained():
    """One unit; and n equal weights at the supremum, up to the factor n that the theorem gives away."""
    lags = np.array([[0, 1], [5, 100]])
    one = entry_bound([[-0.75]], lags, slope_supremum=0.25)
    np.testing.assert_allclose(one.log_bound, lags * np.log(0.1875), rtol=4 * EPS)
    W = np.full((4, 4), 0.5)
    J = np.repeat(W[None] / 4, 7, axis=0)
    found = logistic_entry_bound(4, 0.5, 7)
    assert found.log_bound == pytest.approx(exact_log_entries(J).max() + 2 * np.log(4), rel=8 * EPS)
    assert found.log_bound == pytest.approx(entry_bound(W, 7, slope_supremum=0.25).log_bound, rel=8 * EPS)


@pytest.mark.parametrize(("weight", "certified"), [(0.999, True), (1.0, False), (1.001, False), (0.0, True)])
def test_logistic_certificate_ends_at_four_over_n(weight, certified):
    found = logistic_entry_bound(4, weight, [0, 10])
    assert found.certified is certified
    assert found.log_bound[0] == np.log(4)
    assert entry_bound(np.full((4, 4), weight), 1, slope_supremum=0.25).certified is certified


def test_peak_of_the_local_factor():
    """The maximum of |φ'(w) w| is where w tanh(w/2) = 1; both numbers again with 30 digits."""
    with mp.workdps(30):
        w = mp.findroot(lambda x: x * mp.tanh(x / 2) - 1, 1.5)
        peak = w / (4 * mp.cosh(w / 2) ** 2)
        assert float(abs(w - LOCAL_FACTOR_ARGMAX)) < 5.1e-15  # half a unit of the last digit given
        assert float(abs(peak - LOCAL_FACTOR_PEAK)) < 5.1e-16
    assert local_factor(LOCAL_FACTOR_ARGMAX) == pytest.approx(LOCAL_FACTOR_PEAK, rel=8 * EPS)


@quick
@given(st.floats(-1e3, 1e3, allow_subnormal=False), st.floats(1e-3, 1.0, allow_subnormal=False))
def test_local_factor_stays_below_its_peak(w, y):
    assert local_factor(w, y) <= LOCAL_FACTOR_PEAK / y * (1 + 8 * EPS)
    for mirrored in (local_factor(-w, y), local_factor(w, -y)):
        assert mirrored == pytest.approx(local_factor(w, y), rel=8 * EPS, abs=0)
    assert local_factor(w, 0) == abs(w) / 4  # the derivative of the logistic function at 0


# --- Dominance (A8) ----------------------------------------------------------------------------------------------


@quick
@given(networks(), SUPREMA)
def test_no_entry_crosses_the_powers_of_the_absolute_weights(net, gamma):
    W, phi = net
    J = jacobians(W, gamma * phi)
    lags = np.arange(len(J), 0, -1)
    entries = np.array([exact_log_entries(J[t:]) for t in range(len(J))])
    bound = dominating_entries(W, lags, slope_supremum=gamma, J=J)
    tol = tolerance(J, entries, bound)
    assert (entries <= bound + tol).all()
    certificate = dominance_certificate(W, lags, slope_supremum=gamma, J=J)
    assert (exact(J)[:, 0] <= certificate.log_bound + tol).all()


@quick
@given(st.sampled_from([1, 2, 3, 4]).flatmap(recurrent_matrices), st.sampled_from([1, 2, 7]), SUPREMA)
def test_dominance_is_attained_by_weights_of_one_sign(W, k, gamma):
    W = np.abs(W)
    J = np.repeat(gamma * W[None], k, axis=0)
    entries, bound = exact_log_entries(J), dominating_entries(W, k, slope_supremum=gamma)
    np.testing.assert_array_equal(np.isneginf(bound), np.isneginf(entries))
    live = np.isfinite(bound)
    np.testing.assert_allclose(bound[live], entries[live], atol=tolerance(J, bound))
    certificate = dominance_certificate(W, k, slope_supremum=gamma)
    assert (certificate.log_bound == -np.inf) == (not live.any())
    if live.any():
        assert certificate.log_bound == pytest.approx(exact(J)[0, 0], abs=tolerance(J, bound))


@quick
@given(st.sampled_from([1, 2, 3, 4]).flatmap(recurrent_matrices), SUPREMA)
def test_the_upper_value_is_above_the_radius(W, gamma):
    """(A^k)_ii ≤ ρ(A)^k for A ≥ 0 is a lower bound of the radius that needs no eigenvalue."""
    lags = np.arange(1, 13)
    loops = dominating_entries(W, lags, slope_supremum=gamma)[:, np.arange(len(W)), np.arange(len(W))].max(axis=1)
    certificate = dominance_certificate(W, 0, slope_supremum=gamma)
    # a logarithm over k carries the error of k factors over k
    assert np.exp(loops / lags).max() <= certificate.upper * (1 + 40 * len(W) * EPS)
    assert certificate.certified == (certificate.upper < 1)
    if certificate.certified:
        assert dominance_certificate(W, 0, slope_supremum=gamma / 2).certified


@pytest.mark.parametrize(("corner", "certified"), [(1.0, False), (0.999, True)])
def test_the_certificate_is_sharp(corner, certified):
    """A cycle of three weights whose product is `corner`: ρ = corner^{1/3}, whatever the single weights."""
    W = np.zeros((3, 3))
    W[0, 1], W[1, 2], W[2, 0] = 8.0, -0.5, 0.25 * corner
    found = dominance_certificate(W, [3, 3000], slope_supremum=1.0)
    assert found.certified is certified
    assert found.spectral_radius == pytest.approx(corner ** (1 / 3), rel=100 * EPS)
    assert found.upper == pytest.approx(found.spectral_radius, rel=1e-6)
    # the third power is corner times the identity
    np.testing.assert_allclose(found.log_bound, np.array([1, 1000]) * np.log(corner), atol=3000 * 40 * EPS)


def test_dominance_certifies_where_the_norm_does_not():
    """A Jordan block of norm 9 whose defective eigenvalue LAPACK may miss by √ε: still certified, and it vanishes."""
    W = [[0.5, -9.0], [0.0, 0.5]]
    found = dominance_certificate(W, np.arange(200), slope_supremum=1.0)
    assert found.certified
    assert found.log_bound[0] == 0
    assert found.log_bound.max() > np.log(9)
    assert found.log_bound[-1] == pytest.approx(199 * np.log(0.5) + np.log(199 * 18), abs=1e-4)  # 1/(18·199)²
    # the spectral radius does not: contracting |W| is sufficient, ρ(W) < 1 is not
    rotation = 0.9 * np.array([[0.6, -0.8], [0.8, 0.6]])
    assert not dominance_certificate(rotation, 1, slope_supremum=1.0).certified


def test_entries_far_apart_do_not_underflow():
    """diag(1e-3, 2) coupled: entries of W^500 lie 1650 decades apart in one row, all of them known."""
    W = np.array([[1e-3, 1.0], [0.0, 2.0]])
    found = dominating_entries(W, [500, 0, 500], slope_supremum=1.0)
    expected = [[500 * np.log(1e-3), 500 * np.log(2) - np.log(2 - 1e-3)], [-np.inf, 500 * np.log(2)]]
    np.testing.assert_allclose(found[0], expected, rtol=500 * 8 * EPS)
    np.testing.assert_array_equal(found[2], found[0])
    np.testing.assert_array_equal(found[1], [[0, -np.inf], [-np.inf, 0]])
    assert dominating_entries(W, np.zeros((2, 3), int), slope_supremum=1.0).shape == (2, 3, 2, 2)


# --- Bad inputs --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    for function in (entry_bound, dominating_entries, dominance_certificate):
        with pytest.raises(ValueError, match="recurrent_matrix must be a square matrix"):
            function(np.ones((2, 3)), 1, slope_supremum=1.0)
        with pytest.raises(ValueError, match="slope_supremum must be positive"):
            function(np.eye(2), 1, slope_supremum=0.0)
        with pytest.raises(TypeError, match="lags must be integers"):
            function(np.eye(2), 1.0, slope_supremum=1.0)
        with pytest.raises(ValueError, match="lags must not be negative, got -1"):
            function(np.eye(2), [2, -1], slope_supremum=1.0)
        J = np.full((2, 3, 2, 2), 0.5)
        J[1, 2, 0, 1] = 0.75
        with pytest.raises(ValueError, match=r"at batch 1, step 3, entry \(0, 1\) it is 0\.75, above 0\.5"):
            function(np.full((2, 2), -2.0), 1, slope_supremum=0.25, J=J)
        with pytest.raises(ValueError, match="of the size of W"):
            function(np.eye(3), 1, slope_supremum=1.0, J=J)
    with pytest.raises(ValueError, match="n must be at least 1"):
        logistic_entry_bound(0, 1.0, 1)
    with pytest.raises(ValueError, match="largest_weight must be a single number"):
        logistic_entry_bound(2, -1.0, 1)
    with pytest.raises(ValueError, match="w must be finite"):
        local_factor(np.nan)

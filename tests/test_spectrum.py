from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from gradlab.spectrum import recurrent_spectrum, spectral_radius
from tests.strategies import KINDS, SIZES, recurrent_matrices

EPS = np.finfo(np.float64).eps
INFLATION = 1 / np.cos(np.pi / 64)  # what the grid of 33 angles may add to the numerical radius
quick = settings(deadline=None, max_examples=40)


def matrices(kinds=KINDS):
    return SIZES.flatmap(lambda n: recurrent_matrices(n, kinds=kinds))


def shift(n, size=1.0):
    return np.diag(np.full(n - 1, size), 1)


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def jordan_power_norm(value, k):
    """‖[[λ, 1], [0, λ]]^k‖ = s1 with f = 2a² + b², s1² = (f + √(f² − 4a⁴))/2, a = λ^k, b = kλ^{k−1}."""
    a, b = value**k, k * value ** (k - 1)
    f = 2 * a * a + b * b
    return math.sqrt((f + math.sqrt(f * f - 4 * a**4)) / 2)


# --- Closed forms ------------------------------------------------------------------------------------------------


def test_normal_matrix_has_no_departure_and_no_transient():
    """Eigenvalues 0.9, −0.5 and 0.8 e^{±i}: every norm is a modulus."""
    W = np.zeros((4, 4))
    W[0, 0], W[1, 1], W[2:, 2:] = 0.9, -0.5, 0.8 * rotation(1.0)
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    w = recurrent_spectrum(Q @ W @ Q.T)
    tol = 20 * 4 * EPS  # two products and a factorisation of a 4×4 matrix of norm below 1
    assert w.spectral_radius == pytest.approx(0.9, abs=tol)
    assert w.numerical_radius == pytest.approx(0.9, abs=tol)
    assert w.henrici_departure <= tol
    assert (w.transient_peak, w.transient_peak_upper) == (1, 1)
    assert w.kreiss_lower_bound == 1  # (|z| − 1)/dist(z, spectrum) < 1, with supremum 1 at infinity
    np.testing.assert_allclose(np.abs(w.eigenvalues), [0.9, 0.8, 0.8, 0.5], atol=tol)
    np.testing.assert_allclose(w.singular_values, [0.9, 0.8, 0.8, 0.5], atol=tol)
    assert (w.sigma_max, w.sigma_min) == (w.singular_values[0], w.singular_values[-1])


def test_numerical_radius_between_two_grid_angles():
    """Eigenvalues 0.9 e^{±iπ/64}: the grid sees 0.9 cos(π/64), the refinement 0.9."""
    w = recurrent_spectrum(0.9 * rotation(np.pi / 64))
    assert w.numerical_radius == pytest.approx(0.9, rel=1e-12)
    assert 0.9 <= w.numerical_radius_upper <= 0.9 * INFLATION


@pytest.mark.parametrize("value", [0.5, 0.95, -0.95])
def test_jordan_block(value):
    """[[λ, 1], [0, λ]]: w = |λ| + ½, ‖N‖ = 1, ‖W^k‖ known, the resolvent on the real axis known."""
    w = recurrent_spectrum([[value, 1.0], [0.0, value]])
    assert w.spectral_radius == abs(value)
    assert w.numerical_radius == pytest.approx(abs(value) + 0.5, rel=1e-12)  # flat maximum, known to ε in value
    assert w.numerical_radius <= w.numerical_radius_upper <= w.numerical_radius * INFLATION * (1 + 1e-12)
    assert w.henrici_departure == pytest.approx(1, rel=8 * EPS)
    peak = max(jordan_power_norm(abs(value), k) for k in range(1, 400))
    # up to k = 20 powers are multiplied out, n ε each
    assert w.transient_peak == pytest.approx(max(peak, 1), rel=20 * 2 * EPS * 4)
    assert w.transient_peak_upper == w.transient_peak

    def minus_ratio(s):  # (r − 1)‖(rI − W)^{-1}‖ with entries 1/d, 1/d², d = r − |λ|
        d = 1 + math.exp(s) - abs(value)
        f = 2 / d**2 + 1 / d**4
        return -math.exp(s) * math.sqrt((f + math.sqrt(f * f - 4 / d**4)) / 2)

    kreiss = -minimize_scalar(minus_ratio, bounds=(-15, 5), method="bounded", options={"xatol": 1e-10}).fun
    assert w.kreiss_lower_bound <= max(kreiss, 1) * (1 + 1e-12)
    assert w.kreiss_lower_bound == pytest.approx(max(kreiss, 1), rel=1e-6)  # as far as the search goes


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_shift_matrix(n):
    """The nilpotent shift: ρ = 0, σ = 1, …, 1, 0, w = cos(π/(n+1)); 3 times it peaks at 3^{n−1}."""
    w = recurrent_spectrum(shift(n))
    assert (w.spectral_radius, w.sigma_max, w.sigma_min) == (0, 1, 0)
    assert w.numerical_radius == pytest.approx(math.cos(math.pi / (n + 1)), rel=1e-12)
    # every angle is the best one, so the grid's maximum is w, and the enclosure exactly the inflation
    assert w.numerical_radius_upper == pytest.approx(w.numerical_radius * INFLATION, rel=1e-12)
    assert w.henrici_departure == pytest.approx(math.sqrt(n - 1), rel=8 * EPS)
    assert recurrent_spectrum(shift(n, 3.0)).transient_peak == 3.0 ** (n - 1)


def test_departure_does_not_cancel():
    """√(‖W‖_F² − Σ|λ|²) would return 0 or 1e-8 here."""
    W = np.diag([1.0, 0.5]) + 1e-12 * np.array([[0, 1], [0, 0]])
    assert recurrent_spectrum(W).henrici_departure == pytest.approx(1e-12, rel=1e-3, abs=0)


# --- The edge ρ = 1, and beyond ----------------------------------------------------------------------------------


def test_beyond_one_everything_that_sums_up_powers_is_infinite():
    w = recurrent_spectrum(1.01 * rotation(0.3))
    assert w.spectral_radius == pytest.approx(1.01, rel=8 * EPS)
    assert (w.kreiss_lower_bound, w.transient_peak, w.transient_peak_upper) == (np.inf,) * 3


def test_orthogonal_has_no_transient_whatever_the_rounding():
    for seed in range(20):
        Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((12, 12)))[0]
        w = recurrent_spectrum(Q)
        assert (w.transient_peak, w.transient_peak_upper) == (1, 1)
        assert w.kreiss_lower_bound == pytest.approx(1, abs=1e-6)  # (|z|−1)/σn near the circle, ε/1e-8


def test_jordan_block_on_the_unit_circle_grows_for_ever():
    w = recurrent_spectrum([[1.0, 1e-3], [0.0, 1.0]])
    assert (w.transient_peak, w.transient_peak_upper) == (np.inf, np.inf)
    assert w.kreiss_lower_bound > 1e3


def test_oblique_eigenvector_at_one_is_bracketed():
    """W^k → the projector [[1, 6], [0, 0]], of norm √37, from below: attained only in the limit."""
    w = recurrent_spectrum([[1.0, 3.0], [0.0, 0.5]])
    assert w.transient_peak == pytest.approx(math.sqrt(37), rel=1e-12)
    assert w.transient_peak_upper == np.inf
    assert 1 < w.kreiss_lower_bound <= math.sqrt(37) * (1 + 1e-12)


def test_slow_decay_is_settled_by_doubling():
    """λ = 1 − 1e-6: the peak 1/(e·1e-6) lies at k = 10^6, past the powers taken one by one."""
    w = recurrent_spectrum([[1 - 1e-6, 1.0], [0.0, 1 - 1e-6]])
    true = 1 / (math.e * 1e-6)
    assert true / 2 < w.transient_peak <= true * (1 + 1e-5)  # a power of two times 1000 lies within 2 of the peak
    assert true <= w.transient_peak_upper < np.inf


# --- Properties --------------------------------------------------------------------------------------------------


@quick
@given(matrices(), st.integers(0, 99))
def test_radii_are_ordered(W, seed):
    """ρ ≤ w ≤ σ1 ≤ 2w, and no quotient x*Wx leaves the enclosure of w."""
    w, n = recurrent_spectrum(W), len(W)
    tol = 20 * n * EPS * w.sigma_max
    # an eigenvalue of multiplicity m is known to ε^{1/m}
    assert w.spectral_radius <= w.numerical_radius_upper + tol + 2 * w.sigma_max * EPS ** (1 / n)
    assert w.numerical_radius <= w.sigma_max + tol
    assert w.sigma_max <= 2 * w.numerical_radius_upper + tol
    assert w.numerical_radius <= w.numerical_radius_upper <= w.numerical_radius * INFLATION + tol
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, n)) + 1j * rng.standard_normal((200, n))
    quotients = np.abs(np.einsum("ai,ij,aj->a", x.conj(), W, x)) / (np.abs(x) ** 2).sum(axis=1)
    assert quotients.max() <= w.numerical_radius_upper + tol


@quick
@given(matrices())
def test_departure_is_what_the_eigenvalues_leave(W):
    w, n = recurrent_spectrum(W), len(W)
    squared = (W**2).sum() - (np.abs(w.eigenvalues) ** 2).sum()
    # eigenvalues to 2σ1 ε^{1/n}, squared and summed
    assert w.henrici_departure**2 == pytest.approx(squared, abs=n * 8 * w.sigma_max**2 * EPS ** (1 / n) + 1e-300)


@quick
@given(matrices())
def test_powers_keep_to_their_bounds(W):
    """ρ < 1 made by scaling: ‖W^k‖ ≤ 2w^k, ≤ the peak for all k; K ≤ the peak; K no less than any one quotient."""
    n = len(W)
    W = W * (0.9 / max(spectral_radius(W), 0.3))
    w = recurrent_spectrum(W)
    power = np.eye(n)
    for k in range(120):
        size = np.linalg.norm(power, 2)
        tol = 1 + (k + 1) * 8 * n * EPS
        assert size <= 2 * w.numerical_radius_upper**k * tol + (k + 1) * n * EPS * w.sigma_max**k
        assert size <= w.transient_peak_upper * tol
        power = power @ W
    assert w.transient_peak <= w.transient_peak_upper
    assert 1 <= w.kreiss_lower_bound <= w.transient_peak_upper * (1 + 1e-10)
    assert w.transient_peak <= np.e * n * w.kreiss_lower_bound * 1.001  # the search comes within 1e-3 of K


@quick
@given(matrices())
def test_kreiss_search_beats_random_search(W):
    W = W * (0.9 / max(spectral_radius(W), 0.3))
    rng = np.random.default_rng(0)
    z = (1 + np.exp(rng.uniform(-8, 3, 400))) * np.exp(1j * rng.uniform(0, np.pi, 400))
    sigma = np.linalg.svd(z[:, None, None] * np.eye(len(W)) - W, compute_uv=False)[:, -1]
    assert recurrent_spectrum(W).kreiss_lower_bound >= 0.999 * ((np.abs(z) - 1) / sigma).max()


@quick
@given(matrices(), st.integers(0, 99))
def test_orthogonal_similarity_and_transposition_change_nothing(W, seed):
    n = len(W)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    W = W / max(np.linalg.norm(W, 2), 1e-3)  # norm 1 or 0: no transient, and tolerances need no scale
    one = recurrent_spectrum(W)
    for other in (recurrent_spectrum(W.T), recurrent_spectrum(Q @ W @ Q.T)):
        assert other.sigma_max == pytest.approx(one.sigma_max, abs=20 * n * EPS)
        assert other.sigma_min == pytest.approx(one.sigma_min, abs=20 * n * EPS)
        # attained by a search over angles that stops at 1e-9: second order in it
        assert other.numerical_radius == pytest.approx(one.numerical_radius, abs=1e-12)
        # quadratic in the eigenvalues' ε^{1/n}, under a square root
        assert other.henrici_departure**2 == pytest.approx(one.henrici_departure**2, abs=8 * n * EPS ** (1 / n))


# --- Scales and bad inputs ---------------------------------------------------------------------------------------


def test_tiny_matrix_keeps_its_departure():
    w = recurrent_spectrum(1e-200 * shift(4))
    assert w.henrici_departure == pytest.approx(math.sqrt(3) * 1e-200, rel=8 * EPS, abs=0)
    assert w.numerical_radius == pytest.approx(math.cos(math.pi / 5) * 1e-200, rel=1e-12, abs=0)


def test_zero_and_single_entry():
    zero, one = recurrent_spectrum(np.zeros((3, 3))), recurrent_spectrum([[-0.5]])
    assert (zero.spectral_radius, zero.numerical_radius_upper, zero.henrici_departure) == (0, 0, 0)
    assert (zero.transient_peak, zero.kreiss_lower_bound) == (1, 1)
    assert (one.spectral_radius, one.numerical_radius, one.sigma_min, one.eigenvalues[0]) == (0.5, 0.5, 0.5, -0.5)


def test_overflowing_transient_is_infinite_not_wrong():
    assert recurrent_spectrum(shift(12, 1e30)).transient_peak == np.inf  # 1e330


@pytest.mark.parametrize("function", [spectral_radius, recurrent_spectrum])
def test_bad_matrices_are_refused(function):
    with pytest.raises(ValueError, match=r"W must be a square matrix \[n, n\], got shape \(2, 3\)"):
        function(np.ones((2, 3)))
    with pytest.raises(ValueError, match="W must be finite"):
        function([[np.nan]])
    with pytest.raises(TypeError, match="real numbers"):
        function([[1j]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_orthogonal_matrix_has_no_transient_whatever_it_was_stored_in(dtype):
    for seed in range(5):
        Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((32, 32)))[0].astype(dtype).astype(np.float64)
        w = recurrent_spectrum(Q, precision=float(np.finfo(dtype).eps))
        assert w.transient_peak == 1.0
        assert 1.0 <= w.kreiss_lower_bound < 1 + 1e-3


# --- Eigenvectors ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=12)
@given(SIZES, st.integers(0, 999))
def test_a_normal_matrix_has_orthonormal_eigenvectors(n, seed):
    """Symmetric, orthogonal and multiples of one, also with equal eigenvalues, of which LAPACK's vectors lean."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for W in (Q, 0.5 * Q, Q @ np.diag(rng.integers(-1, 2, n)) @ Q.T, np.eye(n), np.zeros((n, n))):
        w = recurrent_spectrum(W)
        assert w.eigenvector_condition == 1
        assert w.henrici_departure <= 10 * n * EPS * np.linalg.norm(W)


@quick
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.01, 10))
def test_eigenvector_condition_of_two_eigenvectors_is_that_of_their_angle(a, b, c):
    """[[a, c], [0, b]]: unit eigenvectors (1, 0) and (c, b − a)/‖·‖ with angle θ, tan θ = |b − a|/c: κ = cot θ/2."""
    condition = recurrent_spectrum([[a, c], [0.0, b]]).eigenvector_condition
    tangent = abs(b - a) / c
    if tangent < 1e-3:
        assert condition > 1e3
    else:
        half = math.atan(tangent) / 2
        # the eigenvectors are known to ε times the condition of the eigenvalues, κ itself, and a − b to ε
        assert condition == pytest.approx(1 / math.tan(half), rel=64 * EPS / math.tan(half) ** 2)


def test_a_jordan_block_has_no_basis_of_eigenvectors():
    for n in (2, 3, 6):
        assert recurrent_spectrum(0.5 * np.eye(n) + shift(n)).eigenvector_condition == np.inf


@quick
@given(matrices())
def test_eigenvectors_bound_the_powers(W):
    """‖W^k‖ ≤ κ(V) ρ^k, to the accuracy that eigenvectors of condition κ have."""
    w, n = recurrent_spectrum(W), len(W)
    assert w.eigenvector_condition >= 1 - 8 * n * EPS
    if w.eigenvector_condition < 1e5:
        for k in (1, 2, 5):
            limit = w.eigenvector_condition * w.spectral_radius**k
            rounding = k * 64 * n * EPS * w.eigenvector_condition**2 * w.sigma_max**k
            assert np.linalg.norm(np.linalg.matrix_power(W, k), 2) <= limit + rounding


@quick
@given(st.floats(-0.9, 0.9), st.floats(0.1, 20))
def test_transient_peak_of_two_units(value, coupling):
    """[[λ, c], [0, λ]]: ‖W^k‖ = largest singular value of [[λ^k, kλ^{k−1}c], [0, λ^k]], known for each k."""
    peak = 1.0
    for k in range(1, 300):
        a, b = value**k, k * value ** (k - 1) * coupling
        peak = max(peak, (math.hypot(2 * a, b) + abs(b)) / 2)
    w = recurrent_spectrum([[value, coupling], [0.0, value]])
    assert w.transient_peak == pytest.approx(peak, rel=300 * 4 * EPS)
    assert w.transient_peak_upper == w.transient_peak
    assert w.kreiss_lower_bound <= peak * (1 + 1e-12)

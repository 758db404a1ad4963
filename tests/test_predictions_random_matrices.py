from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import polygamma

from gradlab.lyapunov import lyapunov_exponents
from gradlab.predictions import (
    gated_disc,
    ginibre_exponents,
    ginibre_limit,
    ginibre_product_moments,
)
from tests.cases import ginibre

EPS = np.finfo(np.float64).eps
quick = settings(deadline=None, max_examples=100)


def growths(n, T, seed):
    """ln|R_ii| of each step [T, n], by QR of a frame: independent of the library."""
    rng = np.random.default_rng(seed)
    Q, out = np.eye(n), np.empty((T, n))
    for t in range(T):
        Q, R = np.linalg.qr(rng.standard_normal((n, n)) / np.sqrt(n) @ Q)
        out[t] = np.log(np.abs(np.diag(R)))
    return out


# --- Ginibre products: exponents (B2) ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "exponents"),
    [
        (2, [-0.288607832450766, -0.981755013010712]),
        (4, [-0.135181422730739, -0.328328603290684, -0.635181422730739, -1.32832860329068]),
    ],
)
def test_known_exponents(n, exponents):
    np.testing.assert_allclose(ginibre_exponents(n).exponents, exponents, atol=5.1e-15)  # the digits given


@quick
@given(st.integers(1, 200), st.floats(1e-3, 1e3))
def test_exponents_again_with_thirty_digits(n, scale):
    found = ginibre_exponents(n, scale)
    with mp.workdps(30):
        for i in {1, (n + 1) // 2, n}:
            half = mp.mpf(n - i + 1) / 2
            exponent = (mp.log(2 * mp.mpf(scale) ** 2 / n) + mp.digamma(half)) / 2
            assert found.exponents[i - 1] == pytest.approx(float(exponent), rel=8 * EPS, abs=16 * EPS)
            assert found.step_variance[i - 1] == pytest.approx(float(mp.polygamma(1, half) / 4), rel=16 * EPS)
    assert (np.diff(found.exponents) < 0).all()
    assert (np.diff(found.step_variance) > 0).all()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_exponents_and_their_variance_are_what_products_have(n):
    """T steps; 4 standard errors. ln χ² has the fourth cumulant ψ'''(m/2), which the variance's own error needs."""
    T = 20000
    found, sample = ginibre_exponents(n), growths(n, T, n)
    assert (np.abs(sample.mean(axis=0) - found.exponents) <= 4 * np.sqrt(found.step_variance / T)).all()
    fourth = polygamma(3, np.arange(n, 0, -1) / 2) / 16
    error = np.sqrt((fourth + 2 * found.step_variance**2) / T)
    assert (np.abs(sample.var(axis=0, ddof=1) - found.step_variance) <= 4 * error).all()
    # steps are independent: so are their logarithms
    correlation = [np.corrcoef(sample[1:, i], sample[:-1, i])[0, 1] for i in range(n)]
    assert np.abs(correlation).max() <= 4 / math.sqrt(T)


def test_exponents_are_what_the_library_measures():
    n, T, scale = 6, 6000, 1.7
    found = ginibre_exponents(n, scale)
    measured = lyapunov_exponents(scale * ginibre(n, T, 5)).exponents
    assert (np.abs(measured - found.exponents) <= 4 * np.sqrt(found.step_variance / T)).all()


@quick
@given(st.integers(1, 300), st.floats(0.1, 10))
def test_limit_is_as_near_as_it_says(n, scale):
    x = (np.arange(n) + 0.5) / n
    gap = np.abs(ginibre_limit(x, scale) - ginibre_exponents(n, scale).exponents)
    assert (gap <= 1 / (4 * n * (1 - x)) + 16 * EPS).all()


# --- Ginibre products: moments (B5) ------------------------------------------------------------------------------


@pytest.mark.parametrize(("L", "edge"), [(1, 4.0), (2, 27 / 4), (3, 256 / 27), (5, 6**6 / 5**5)])
def test_limits_of_the_moments(L, edge):
    limit = ginibre_product_moments(L)
    assert (limit.first, limit.second, limit.first_standard_deviation) == (1, L + 1, 0)
    assert limit.sigma_max_squared == pytest.approx(edge, rel=4 * (L + 1) * EPS)
    near = ginibre_product_moments(L, 10**8)
    assert near.second == pytest.approx(L + 1, abs=2e-8 * L**2)
    assert near.first_standard_deviation == pytest.approx(math.sqrt(L * (L + 1)) * 1e-8, rel=1e-6)


def test_edge_of_many_factors_does_not_overflow():
    assert ginibre_product_moments(10**6).sigma_max_squared == pytest.approx(math.e * (10**6 + 0.5), rel=1e-9)


@pytest.mark.parametrize("L", [1, 2, 5])
def test_moments_of_one_unit(L):
    """P is a product of L normal variables: E P⁴ = 3^L, and so is the mean square of P²."""
    found = ginibre_product_moments(L, 1)
    assert found.second == pytest.approx(3**L, rel=8 * L * EPS)
    assert found.first_standard_deviation == pytest.approx(math.sqrt(3**L - 1), rel=8 * L * EPS)


@pytest.mark.parametrize(("L", "n"), [(1, 5), (3, 30), (6, 20)])
def test_moments_are_what_products_have(L, n):
    """Exact means at finite n, against 4 standard errors of 3000 products."""
    rng, draws = np.random.default_rng(L), 3000
    P = np.broadcast_to(np.eye(n), (draws, n, n))
    for _ in range(L):
        P = rng.standard_normal((draws, n, n)) / np.sqrt(n) @ P
    gram = P @ P.swapaxes(1, 2)
    first, second = np.trace(gram, axis1=1, axis2=2) / n, (gram**2).sum(axis=(1, 2)) / n
    found = ginibre_product_moments(L, n)
    for sample, expected in ((first, found.first), (second, found.second)):
        assert abs(sample.mean() - expected) <= 4 * sample.std(ddof=1) / math.sqrt(draws)
    squares = (first - 1) ** 2
    assert abs(squares.mean() - found.first_standard_deviation**2) <= 4 * squares.std(ddof=1) / math.sqrt(draws)


def test_largest_value_of_a_product_at_its_edge():
    """n = 400, L = 2: the edge of the spectrum fluctuates by n^{−2/3} of itself, times a few."""
    n = 400
    P = np.linalg.multi_dot(ginibre(n, 2, 0))
    edge = ginibre_product_moments(2, n).sigma_max_squared
    assert np.linalg.norm(P, 2) ** 2 == pytest.approx(edge, rel=5 * n ** (-2 / 3))


# --- Behind a gate (B6) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [0.0, 0.5, 0.95])
def test_eigenvalues_of_a_gated_step_fill_the_disc(z):
    """n = 400 with slopes of a tanh layer: the farthest eigenvalue to 4 of the standard deviations given."""
    n, gain, rng = 400, 1.5, np.random.default_rng(3)
    slopes = 1 / np.cosh(rng.standard_normal(n)) ** 2
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    disc = gated_disc(z, gain, mean_square_slope=float((slopes**2).mean()))
    distance = np.abs(np.linalg.eigvals(z * np.eye(n) + (1 - z) * slopes[:, None] * W) - disc.centre)
    assert disc.centre == z
    # slopes that differ leave fewer units to average over: (Σφ'²)²/Σφ'⁴ of them
    effective = (slopes**2).sum() ** 2 / (slopes**4).sum()
    assert distance.max() / disc.radius == pytest.approx(1 + 0.5 / math.sqrt(effective), abs=1.2 / math.sqrt(effective))
    # uniform in area: (distance/radius)² has the mean ½ where all slopes are equal, less where they are not
    assert np.mean(distance < disc.radius * 1.05) > 0.98


def test_gate_closed_and_open():
    assert gated_disc(1.0, 3.0) == (1.0, 0.0)
    assert gated_disc(0.0, 3.0, mean_square_slope=0.25) == (0.0, 1.5)


# --- Bad inputs --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="n must be at least 1"):
        ginibre_exponents(0)
    with pytest.raises(ValueError, match="scale must be positive"):
        ginibre_exponents(3, 0.0)
    with pytest.raises(ValueError, match=r"position must lie in \[0, 1\)"):
        ginibre_limit([0.5, 1.0])
    with pytest.raises(ValueError, match="factors must be at least 1"):
        ginibre_product_moments(0)
    with pytest.raises(TypeError, match="n must be a positive integer"):
        ginibre_product_moments(2, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"update must lie in \[0, 1\]"):
        gated_disc(1.5, 1.0)
    with pytest.raises(ValueError, match="mean_square_slope must be"):
        gated_disc(0.5, 1.0, mean_square_slope=-1.0)

from __future__ import annotations

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma, polygamma

from gradlab.lyapunov import lyapunov_exponents
from gradlab.products import log_singular_values


def ginibre_exponents(n: int) -> np.ndarray:
    """Newman 1986: fresh iid N(0, 1/n) matrices, λ_i = ½[ln(2/n) + ψ((n − i + 1)/2)]."""
    return 0.5 * (np.log(2 / n) + digamma((n - np.arange(n)) / 2))


def test_ginibre_formula_is_the_published_one() -> None:
    expected = [-0.135181422730739, -0.328328603290684, -0.635181422730739, -1.32832860329068]
    np.testing.assert_allclose(ginibre_exponents(4), expected, rtol=1e-14)


def test_ginibre_within_its_own_standard_error() -> None:
    J = np.stack([cases.ginibre(4, 4000, seed) for seed in range(8)])
    result = lyapunov_exponents(J, discard=100)
    mean, error = result.exponents.mean(axis=0), np.sqrt((result.standard_error**2).sum(axis=0)) / 8
    # 4 standard errors, 4 exponents: 1 seed in 4000 would fail
    assert (np.abs(mean - ginibre_exponents(4)) < 4 * error).all()


def test_standard_error_is_calibrated() -> None:
    n, N = 4, 4000
    J = np.stack([cases.ginibre(n, N, seed) for seed in range(8)])
    error = np.sqrt((lyapunov_exponents(J).standard_error ** 2).mean(axis=0))
    expected = np.sqrt(0.25 * polygamma(1, (n - np.arange(n)) / 2) / N)  # Newman 1986: steps are independent
    # 8 · 62 degrees of freedom: the relative error of a standard deviation is 1/√(2·496) = 3.2 %; 4 of them
    np.testing.assert_allclose(error, expected, rtol=0.13)


def test_correlated_growth_widens_the_error() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(10_100)
    moving = np.convolve(noise, np.ones(20), "valid")[:10_000]  # correlated over 20 steps; blocks have 100
    error = lyapunov_exponents(np.exp(moving)[:, None, None]).standard_error
    # var of the mean is (Σ_j w_j)²/N = 400/N; blocks of 100 keep 1 − 20/(3·100) of it; 99 blocks: 7 % for one σ
    np.testing.assert_allclose(error, np.sqrt(400 / 10_000), rtol=0.3)


def test_symmetric_weights() -> None:
    eigenvalues = np.array([1.2, -0.7, 0.4, 0.1])
    T = 300
    result = lyapunov_exponents(cases.symmetric(eigenvalues, T, 0), discard=200)
    # the frame has turned into the eigenvectors up to (0.7/1.2)^200 = 1e-47 and to rounding
    np.testing.assert_allclose(result.exponents, np.log(np.abs(eigenvalues)), atol=1e-12)
    assert (result.standard_error < 1e-12).all()


@pytest.mark.parametrize("transpose", [False, True])
def test_structured_weights_do_not_trap_the_frame(transpose: bool) -> None:
    J = np.repeat(cases.ascending_triangle(6, 1, 0), 2000, axis=0)
    J = J.swapaxes(1, 2) if transpose else J
    for k in (1, 6):
        result = lyapunov_exponents(J, k, discard=1000)
        # neighbours on the diagonal are 0.2 apart: what is left of the frame's turning is (1.0/1.2)^1000
        np.testing.assert_allclose(result.exponents, np.log(np.linspace(1.2, 0.2, 6))[:k], atol=1e-10)


def test_sum_is_the_mean_log_determinant() -> None:
    J = np.stack([cases.tanh_net(10, 100, 1.5, seed) for seed in range(3)])
    total = np.linalg.slogdet(J)[1].mean(axis=1)
    # |det| of a step by QR and by LU differ by about n·κ·2^-53
    np.testing.assert_allclose(lyapunov_exponents(J).exponents.sum(axis=1), total, atol=1e-11)


def test_saturated_units_are_not_noise() -> None:
    J = cases.tanh_net(8, 60, 12.0, 0, noise=3.0)
    exponents = lyapunov_exponents(J).exponents
    ln_det = np.log(np.abs(J).max(axis=2)).sum(axis=1) + np.linalg.slogdet(J / np.abs(J).max(axis=2, keepdims=True))[1]
    np.testing.assert_allclose(exponents.sum(), ln_det.mean(), rtol=1e-12)


def test_exponents_tend_to_singular_value_rates_and_are_not_them() -> None:
    J = cases.ginibre(5, 3000, 0)
    rates = log_singular_values(J)[0] / len(J)
    exponents = lyapunov_exponents(J).exponents
    assert np.abs(exponents - rates).max() < 20 / len(J)  # bias O(1/T)
    short = np.abs(lyapunov_exponents(J[:10]).exponents * 10 - log_singular_values(J[:10])[0])
    assert short.max() > 0.1  # nats: the sums of ln|R_ii| over 10 steps are no singular values


# --- Exact zeros -------------------------------------------------------------------------------------------------


def test_dead_units_give_exact_minus_infinity() -> None:
    J = cases.relu_net(12, 80, 1.3, 0, bias=1.0)
    most = (J == 0).all(axis=-1).sum(axis=-1).max()
    for discard in (0, 79):
        result = lyapunov_exponents(J, discard=discard)
        assert np.isneginf(result.exponents).sum() == most
    assert np.isnan(lyapunov_exponents(J).standard_error[-most:]).all()
    assert np.isfinite(lyapunov_exponents(J, k=12 - most).exponents).all()


def test_low_rank_weights_are_announced() -> None:
    rng = np.random.default_rng(0)
    J = rng.uniform(0.1, 1, (50, 6, 1)) * np.outer(rng.standard_normal(6), rng.standard_normal(6))
    with pytest.warns(RuntimeWarning, match="singular to working precision"):
        exponents = lyapunov_exponents(J).exponents
    assert np.isfinite(exponents[0])
    assert np.isneginf(exponents[1:]).all()


# --- Shapes and inputs -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 3]), st.sampled_from([1, 2, 7, 30]), st.sampled_from([1, 2, 5]), st.data())
def test_shapes_and_consistency(B: int, T: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    discard = data.draw(st.integers(0, T - 1))
    J = np.random.default_rng(B * T * n).standard_normal((B, T, n, n))
    result = lyapunov_exponents(J, k, discard)
    assert result.exponents.shape == result.standard_error.shape == (B, k)
    assert result.history.shape == (B, T - discard, k)
    np.testing.assert_array_equal(np.sort(result.history[:, -1], axis=1)[:, ::-1], result.exponents)
    enough = (T - discard) // int(np.ceil(np.sqrt(T - discard))) >= 4
    assert np.isfinite(result.standard_error).all() == enough
    again = lyapunov_exponents(J, k, discard)
    np.testing.assert_array_equal(again.history, result.history)
    one = lyapunov_exponents(J[0], k, discard)
    assert one.exponents.shape == (k,)
    assert one.history.shape == (T - discard, k)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([-2.0, 0.125, 1e-150, 1e150]))
def test_scaling_shifts_every_exponent(c: float) -> None:
    J = cases.ginibre(4, 50, 0)
    shifted = lyapunov_exponents(J).exponents + np.log(abs(c))
    np.testing.assert_allclose(lyapunov_exponents(c * J).exponents, shifted, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"k": 4}, ValueError, "k must be at most the number of states n = 3, got 4"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 1.5}, TypeError, "k must be a positive integer"),
        ({"discard": 5}, ValueError, "discard must be less than the 5 steps of J, got 5"),
        ({"discard": -1}, ValueError, "discard"),
        ({"discard": 2.0}, TypeError, "discard"),
        ({"discard": False}, TypeError, "discard"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        lyapunov_exponents(np.ones((2, 5, 3, 3)), **arguments)


def test_bad_jacobians() -> None:
    with pytest.raises(ValueError, match="batch 0, step 2"):
        lyapunov_exponents(np.array([[[1.0]], [[np.nan]]]))
    with pytest.raises(ValueError, match="got shape"):
        lyapunov_exponents(np.ones((3, 3)))


def test_a_direction_that_dies_while_discarded_is_replaced() -> None:
    # a ReLU network at rest: the first Jacobian is zero, and what follows is a network like any other
    J = np.repeat(np.diag([0.5, 2.0])[None], 400, axis=0)
    J[0] = 0.0
    assert np.isneginf(lyapunov_exponents(J).exponents).all()
    # the fresh frame turns to the leading direction like 4^-s; its mean over N = 390 steps keeps O(1/N) of that
    np.testing.assert_allclose(lyapunov_exponents(J, discard=10).exponents, np.log([2.0, 0.5]), atol=5 / 390)

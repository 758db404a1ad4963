from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import kstest

from gradlab.lyapunov import lyapunov_exponents
from gradlab.predictions import (
    chrono_biases,
    diagonal_log_singular_values,
    gate_memory,
    jacobian_growth,
    leaky_mean_exponent,
    mirrored_exponents,
    sensitivity_moments,
    stable_eigenvalues,
)
from tests import cases
from tests.reference import exact_log_singular_values

EPS = np.finfo(np.float64).eps
quick = settings(deadline=None, max_examples=100)


# --- Gates (B6) --------------------------------------------------------------------------------------------------


def test_known_memory():
    found = gate_memory(1.0)
    assert found.decay == pytest.approx(3.19221928452974, rel=1e-14)  # the digits given
    assert found.leak == pytest.approx(3.71828182845905, rel=1e-14)


@quick
@given(st.floats(-30, 30))
def test_memory_is_what_a_constant_gate_keeps(bias):
    """f^k summed over k, and f^decay = 1/e."""
    f = 1 / (1 + math.exp(-bias))
    found = gate_memory(bias)
    assert found.leak * (1 / (1 + math.exp(bias))) == pytest.approx(1, rel=8 * EPS)  # 1 − f without cancelling
    if bias < 5:
        assert sum(f**k for k in range(6000)) == pytest.approx(float(found.leak), rel=1e-12)
        assert f ** float(found.decay) == pytest.approx(math.exp(-1), rel=1e-12)
    assert found.leak - 1 <= found.decay * (1 + 8 * EPS)
    assert found.decay <= found.leak * (1 + 8 * EPS)


def test_memory_at_the_ends():
    far = gate_memory([800.0, -800.0, 20.0])
    assert far.leak[0] == far.decay[0] == np.inf
    assert (far.leak[1], far.decay[1]) == (1, pytest.approx(1 / 800))
    assert far.leak[2] - far.decay[2] == pytest.approx(0.5, abs=1e-6)  # half a step


def test_chrono_memories_are_uniform():
    """Kolmogorov and Smirnov at 1e-3, for the seed that is fixed here."""
    biases = chrono_biases(2000, 500.0, seed=7)
    memory = gate_memory(biases.forget).leak
    assert kstest((memory - 2) / 498, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(biases.input, -biases.forget)
    np.testing.assert_array_equal(chrono_biases(2000, 500.0, seed=7).forget, biases.forget)
    for bad in (2.0, np.inf, [3.0, 4.0]):
        with pytest.raises(ValueError, match="longest must be"):
            chrono_biases(3, bad, seed=0)
    with pytest.raises(ValueError, match="bias must be finite"):
        gate_memory(np.inf)


# --- Growth (B7) -------------------------------------------------------------------------------------------------


def log_norms(J):
    """ln‖J_T ··· J_{t+1}‖₂ at every lag, by a product that is scaled as it goes."""
    product, scale, out = np.eye(J.shape[-1]), 0.0, []
    for step in J[::-1]:
        product = product @ step
        size = np.linalg.norm(product, 2)
        product, scale = product / size, scale + np.log(size)
        out.append(scale)
    return np.array(out)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_jacobians_of_a_chaotic_network_diverge_at_the_exponent(seed):
    J = cases.tanh_net(40, 1700, 3.0, seed, noise=0.0)[200:]
    lyapunov, lags = lyapunov_exponents(J, k=1), np.arange(1, 1501)
    growth = jacobian_growth(lyapunov.exponents[0], lyapunov.standard_error[0], lags, steps=1500)
    assert growth.diverges
    assert not growth.bounded
    truth = log_norms(J)
    # O(1) bias: a norm against a frame that is not aligned, at both ends, about ½ ln n each
    assert (np.abs(truth - growth.log_norm) <= 4 * growth.standard_error + np.log(40))[[10, 50, 200, 700, 1499]].all()
    slope = np.polyfit(lags, truth, 1)[0]
    # least squares through a random walk has 6/5 of the variance of its end over N²
    assert slope == pytest.approx(lyapunov.exponents[0], abs=4 * math.sqrt(1.2) * lyapunov.standard_error[0] + 0.005)


def test_a_stable_fixed_point_bounds_the_jacobians():
    """g = 0.8 without input: J settles on W, whose powers fall; the exponent is ln ρ."""
    J = cases.tanh_net(40, 900, 0.8, 0, noise=0.0)[300:]
    lyapunov = lyapunov_exponents(J, k=1, discard=50)
    growth = jacobian_growth(lyapunov.exponents[0], lyapunov.standard_error[0], [600], steps=550)
    assert growth.bounded
    assert not growth.diverges
    assert log_norms(J)[-1] < -20
    assert growth.log_norm[0] == pytest.approx(log_norms(J)[-1], abs=4 * growth.standard_error[0] + np.log(40))


def test_a_sign_within_its_error_is_not_settled():
    growth = jacobian_growth([0.01, -0.01, 0.0], [0.01, 0.01, 0.0], np.ones((2, 2), int), steps=10)
    assert not (growth.diverges | growth.bounded).any()
    assert growth.log_norm.shape == growth.standard_error.shape == (3, 2, 2)
    with pytest.raises(ValueError, match="one shape"):
        jacobian_growth([0.1], 0.1, 1, steps=1)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        jacobian_growth(0.1, -1.0, 1, steps=1)


def test_the_standard_error_is_that_of_a_random_walk():
    """One unit with independent slopes: ln|P| is a sum of k terms, and its spread over runs is known."""
    rng, runs, k = np.random.default_rng(0), 400, 50
    steps = rng.normal(-0.1, 0.3, (runs, k))
    growth = jacobian_growth(-0.1, 0.3 / math.sqrt(900), [k], steps=900)
    sums = steps.sum(axis=1)
    assert growth.standard_error[0] == pytest.approx(0.3 * math.sqrt(k))
    assert sums.mean() == pytest.approx(growth.log_norm[0], abs=4 * growth.standard_error[0] / math.sqrt(runs))
    assert sums.std() == pytest.approx(growth.standard_error[0], rel=4 / math.sqrt(2 * runs))


# --- Diagonal recurrences (B8) -----------------------------------------------------------------------------------

moduli = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 2.0, allow_subnormal=False)), min_size=1, max_size=4)


@quick
@given(moduli, st.sampled_from([1, 2, 9]))
def test_diagonal_values_are_exact(values, k):
    eigenvalues = np.array(values) * np.resize([1, -1], len(values))
    truth = exact_log_singular_values(np.repeat(np.diag(eigenvalues)[None], k, axis=0))
    np.testing.assert_allclose(diagonal_log_singular_values(eigenvalues, k), truth, rtol=8 * EPS, atol=k * 4 * EPS)


def test_complex_units_count_twice_as_real_ones():
    lam = stable_eigenvalues(-1.0, 0.7)
    J = np.repeat(np.array([[lam.real, -lam.imag], [lam.imag, lam.real]])[None], 30, axis=0)
    np.testing.assert_allclose(exact_log_singular_values(J), diagonal_log_singular_values([lam] * 2, 30), rtol=60 * EPS)


@quick
@given(st.floats(-30, 6), st.floats(-10, 10))
def test_stable_eigenvalues_stay_inside(nu, theta):
    lam = stable_eigenvalues(nu, theta)
    assert abs(lam) < 1
    assert math.log(abs(lam)) == pytest.approx(-math.exp(nu), rel=8 * EPS, abs=4 * EPS)
    assert math.cos(np.angle(lam) - theta) == pytest.approx(1, abs=1e-12)


def test_diagonal_shapes():
    assert diagonal_log_singular_values(np.ones((5, 3)), [[1, 2]]).shape == (5, 1, 2, 3)
    found = diagonal_log_singular_values([0.0, 2j], [0, 3])
    assert found.tolist() == [[0, 0], [pytest.approx(3 * math.log(2)), -np.inf]]
    with pytest.raises(ValueError, match="got a scalar"):
        diagonal_log_singular_values(0.5, 1)
    with pytest.raises(TypeError, match="real or complex"):
        diagonal_log_singular_values(["a"], 1)


@quick
@given(st.floats(-0.97, 0.97, allow_subnormal=False))
def test_sensitivity_moments_are_their_sums(lam):
    """h and ∂h/∂λ are white noise filtered by λ^j and jλ^{j−1}: moments and long-run variances as plain sums."""
    j = np.arange(4000)
    filters = lam ** j.astype(float), np.concatenate([[0.0], j[1:] * lam ** (j[1:] - 1.0)])
    found = sensitivity_moments(lam)
    sums = ((found.state, found.state_variance), (found.sensitivity, found.sensitivity_variance))
    for kernel, (moment, long_run) in zip(filters, sums, strict=True):
        covariance = np.correlate(kernel, kernel, "full")
        assert moment == pytest.approx(covariance[len(kernel) - 1], rel=1e-11)
        assert long_run == pytest.approx(2 * (covariance**2).sum(), rel=1e-11)


@pytest.mark.parametrize("lam", [0.5, -0.8, 0.95])
def test_sensitivity_moments_and_errors_are_what_noise_gives(lam):
    """64 runs of 20000 steps: means to 4 standard errors, and the standard error itself from the runs' spread."""
    runs, N, start = 64, 20000, 1000
    x = np.random.default_rng(1).standard_normal((runs, N + start))
    h = lfilter([1.0], [1.0, -lam], x)
    g = lfilter([0.0, 1.0], [1.0, -lam], h)  # ∂h_t/∂λ = h_{t−1} + λ ∂h_{t−1}/∂λ
    found = sensitivity_moments(lam)
    for series, moment, error in zip((h, g), (found.state, found.sensitivity), found.standard_errors(N), strict=True):
        means = (series[:, start:] ** 2).mean(axis=1)
        assert means.mean() == pytest.approx(moment, abs=4 * error / math.sqrt(runs))
        # a chi variable of 63 degrees of freedom: 4 standard deviations, and correlation time over N
        assert means.std(ddof=1) == pytest.approx(error, rel=4 / math.sqrt(2 * (runs - 1)) + 0.01)


def test_known_sensitivity_and_its_refusal():
    assert sensitivity_moments(0.95).sensitivity == pytest.approx(2052.63069168, rel=5e-12)  # the digits given
    with pytest.raises(ValueError, match=r"eigenvalue must lie in .*, got -1\.0"):
        sensitivity_moments([0.5, -1.0])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        sensitivity_moments(0.5).standard_errors(0)


# --- Continuous time (B9) ----------------------------------------------------------------------------------------


def leaky_steps(n, T, dt, gain, seed, settle):
    """J of h ← (1 − dt) h + dt W tanh(h), after `settle` steps."""
    rng = np.random.default_rng(seed)
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    h, J = rng.standard_normal(n), np.empty((T, n, n))
    for t in range(-settle, T):
        if t >= 0:
            J[t] = (1 - dt) * np.eye(n) + dt * W / np.cosh(h) ** 2
        h = (1 - dt) * h + dt * W @ np.tanh(h)
    return J


@pytest.mark.parametrize(("dt", "gain"), [(0.05, 3.0), (0.1, 1.5), (0.3, 0.5)])
def test_mean_exponent_of_leaky_networks(dt, gain):
    n, networks = 50, 12
    means = [np.linalg.slogdet(leaky_steps(n, 60, dt, gain, s, 200))[1].mean() / (n * dt) for s in range(networks)]
    found = leaky_mean_exponent(dt, n, gain)
    second_order = dt * gain**2 / n  # left out by the formula
    assert np.abs(np.array(means) - found.rate).max() <= 4 * found.standard_deviation + second_order
    assert np.mean(means) == pytest.approx(
        found.rate, abs=4 * found.standard_deviation / math.sqrt(networks) + second_order
    )


def test_mean_exponent_of_a_pure_leak():
    assert leaky_mean_exponent(0.2, 5, 0.0) == (pytest.approx(math.log(0.8) / 0.2, rel=4 * EPS), 0.0)
    assert leaky_mean_exponent(1e-9, 5, 1.0).rate == pytest.approx(-1, rel=1e-8)
    for dt in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match="dt must lie in"):
            leaky_mean_exponent(dt, 5, 1.0)


def test_spectrum_of_a_leaky_network_is_nearly_its_mirror_image():
    n, dt = 60, 0.05
    found = lyapunov_exponents(leaky_steps(n, 2000, dt, 3.0, 0, 500), discard=400).exponents / dt
    gap = np.abs(mirrored_exponents(found) - found)
    assert np.ptp(found) > 1
    assert gap.max() < 0.2 * np.ptp(found)


@quick
@given(st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=1, max_size=6))
def test_mirror_twice_changes_nothing(values):
    exponents = -np.sort(-np.array(values))
    mirrored = mirrored_exponents(exponents)
    assert (np.diff(mirrored) <= 0).all()
    assert mirrored.mean() == pytest.approx(exponents.mean(), abs=100 * EPS)
    np.testing.assert_allclose(mirrored_exponents(mirrored), exponents, atol=200 * EPS)


def test_mirror_refuses_an_ascending_spectrum():
    for bad in ([0.0, 1.0], 1.0):
        with pytest.raises(ValueError, match="descend along the last axis"):
            mirrored_exponents(bad)

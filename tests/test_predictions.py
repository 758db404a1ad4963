from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.predictions import circular_law, mean_field, mean_field_path
from gradlab.spectrum import spectral_radius

EPS = np.finfo(np.float64).eps
PRINTED = 5.1e-11  # half a unit of the tenth decimal, in which the theory's numbers are given


def gaussian_mean(f, q):
    """∫Dz f(√q z) by adaptive quadrature at 30 digits, with breakpoints where tanh and Gauss bend."""
    with mp.workdps(30):
        root = mp.sqrt(mp.mpf(q))
        breaks = [0, 1, 2, 4, 8, 40] + [x / max(1, root) for x in (0.5, 1, 2, 4, 8, 16, 32)]
        density = lambda z: mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi)  # noqa: E731
        return 2 * mp.quad(lambda z: f(root * z) * density(z), sorted(set(breaks)))


@pytest.mark.parametrize(
    ("gain", "q", "chi", "rate"),
    [
        (1.25, 0.3264640765, 1.0481946467, 0.0235346501),
        (1.5, 0.7933540426, 1.1393232250, 0.0652172119),
        (3.0, 6.3053914788, 1.8598551908, 0.3102493151),
    ],
)
def test_known_fixed_points(gain, q, chi, rate):
    m = mean_field(gain)
    assert m.q == pytest.approx(q, abs=PRINTED)
    assert m.chi == pytest.approx(chi, abs=PRINTED)
    assert m.rate == pytest.approx(rate, abs=PRINTED)
    assert m.time_scale == math.inf


@pytest.mark.parametrize(("gain", "noise", "chi"), [(1.0, 0.09, 0.7002581466), (1.5, 1.0, 0.7530300849)])
def test_known_growth_under_noise(gain, noise, chi):
    for m in (mean_field(gain, input_variance=noise), mean_field(gain, bias_variance=noise)):
        assert m.chi == pytest.approx(chi, abs=PRINTED)
        assert m.time_scale == pytest.approx(-1 / math.log(chi), rel=1e-9)  # 1e-10 in χ over |ln χ| ≈ 0.3


@pytest.mark.parametrize("gain", [0.3, 1.001, 1.2, 2.0, 6.0, 12.0, 200.0])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 4.0, 1e6])
def test_fixed_point_solves_its_equation(gain, noise):
    """Both integrals again by another quadrature; near the edge a small residual is not enough, so the root, too."""
    m = mean_field(gain, input_variance=noise)
    if noise == 0 and gain < 1:
        assert (m.q, m.chi) == (0, gain * gain)
        return
    image = gain**2 * gaussian_mean(lambda a: mp.tanh(a) ** 2, m.q) + noise
    slope = 1 - gain**2 * gaussian_mean(lambda a: mp.sech(a) ** 4 - 2 * mp.tanh(a) ** 2 * mp.sech(a) ** 2, m.q)
    # distance to the root by Newton; 1e-12: ε over the cancellation 2q that is left at the edge (q = 1e-3)
    assert float(abs((image - m.q) / slope)) <= 1e-12 * m.q
    chi = gain**2 * gaussian_mean(lambda a: mp.sech(a) ** 4, m.q)
    assert m.chi == pytest.approx(float(chi), rel=1e-13)
    assert m.rate == pytest.approx(float(mp.log(chi)) / 2, abs=1e-13)


def test_below_the_edge_the_network_is_linear():
    for gain in (0.0, 0.5, 0.9, 1.0):
        m = mean_field(gain)
        assert (m.q, m.chi) == (0, gain * gain)
    assert mean_field(0.9).time_scale == pytest.approx(-1 / (2 * math.log(0.9)), rel=8 * EPS)
    assert (mean_field(1.0).rate, mean_field(1.0).time_scale) == (0, math.inf)
    assert (mean_field(0.0).rate, mean_field(0.0).time_scale) == (-math.inf, 0)


@pytest.mark.parametrize("excess", [1e-3, 1e-6, 1e-9, 1e-12])
def test_root_is_sharp_just_above_the_edge(excess):
    """q = δ − (…)δ² with δ = g² − 1 over 2g²: from 1 = g²(1 − 2q + 17q²/3), to second order."""
    g = 1 + excess
    d = (g - 1) * (g + 1) / g**2
    expected = d / 2 + 17 / 24 * d * d  # 2q − 17q²/3 = d
    m = mean_field(g)
    assert m.q == pytest.approx(expected, rel=5 * d * d + 1e-14, abs=0)
    # χ1 = 1 + 4q²/3 + …: perturbations of a chaotic state grow, at second order
    assert m.chi - 1 == pytest.approx(4 / 3 * m.q**2, rel=20 * d, abs=4 * EPS)


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 50), st.floats(0, 50))
def test_fixed_point_lies_where_it_must(gain, noise):
    m = mean_field(gain, input_variance=noise)
    assert noise <= m.q <= gain * gain + noise
    assert 0 <= m.chi <= gain * gain * (1 + 8 * EPS)
    # more input saturates more
    assert mean_field(gain, input_variance=noise + 0.1).chi <= m.chi * (1 + 1e-10) + 1e-300


# --- Along a course of inputs ------------------------------------------------------------------------------------


def test_path_settles_on_the_fixed_point():
    path = mean_field_path(1.5, np.full((2, 300), [[0.0], [1.0]]), initial_variance=1.0, bias_variance=0.2)
    for b, noise in enumerate((0.0, 1.0)):
        m = mean_field(1.5, input_variance=noise, bias_variance=0.2)
        assert path.q[b, -1] == pytest.approx(m.q, rel=1e-12)
        assert path.chi[b, -1] == pytest.approx(m.chi, rel=1e-12)
    np.testing.assert_allclose(path.rate, 0.5 * np.log(path.chi).mean(axis=1), rtol=8 * EPS)
    assert path.q.shape == path.chi.shape == (2, 300)


def test_path_takes_one_step_at_a_time():
    """h_0 = 0 makes q_1 the input alone; then one application of the map, by the other quadrature."""
    path = mean_field_path(2.0, [0.5, 0.0, 3.0])
    assert path.q[0] == 0.5
    for t, noise in ((1, 0.0), (2, 3.0)):
        image = 4 * gaussian_mean(lambda a: mp.tanh(a) ** 2, path.q[t - 1]) + noise
        assert path.q[t] == pytest.approx(float(image), rel=1e-14)
    assert path.chi[0] == pytest.approx(float(4 * gaussian_mean(lambda a: mp.sech(a) ** 4, 0.5)), rel=1e-14)
    assert path.rate.shape == ()


def test_path_is_what_networks_do_on_average():
    """60 networks of 300 units under an input that comes and goes: variance and squared growth at every step.

    Means over networks against their own standard error, plus 1/n for what a finite network adds.
    """
    rng = np.random.default_rng(8)
    n, networks, gain = 300, 60, 1.4
    s = np.array([1.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.5, 0.0])
    path = mean_field_path(gain, s)
    q, growth = np.empty((networks, len(s))), np.empty((networks, len(s)))
    for r in range(networks):
        W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
        h, v = np.zeros(n), rng.standard_normal(n)
        for t, variance in enumerate(s):
            a = W @ h + np.sqrt(variance) * rng.standard_normal(n)
            h, before = np.tanh(a), v @ v
            v = (W @ v) / np.cosh(a) ** 2
            q[r, t], growth[r, t] = (a * a).mean(), v @ v / before
    for sample, expected in ((q, path.q), (growth, path.chi)):
        error = sample.std(axis=0, ddof=1) / np.sqrt(networks)
        # 16 comparisons: 4 standard errors leave a chance of 1e-3 over all
        assert (np.abs(sample.mean(axis=0) - expected) <= 4 * error + expected / n).all()


def test_rate_is_the_lyapunov_exponent_of_a_large_network():
    """g = 1.5, n = 400: theory gives 0.0652, and simulations there 0.055 ± 0.001; finite size takes about 0.01."""
    rng = np.random.default_rng(4)
    n, T, discard = 400, 1500, 200
    W = 1.5 * rng.standard_normal((n, n)) / np.sqrt(n)
    h, v, total = rng.standard_normal(n), rng.standard_normal(n), 0.0
    for t in range(T + discard):
        a = W @ h
        h, v = np.tanh(a), (W @ v) / np.cosh(a) ** 2
        size = np.linalg.norm(v)
        v /= size
        total += np.log(size) if t >= discard else 0.0
    assert mean_field(1.5).rate - 0.02 < total / T < mean_field(1.5).rate


def test_circular_law_at_finite_size():
    """One matrix of 400: the mean shift and four standard deviations that the docstring gives."""
    n, gain = 400, 0.7
    W = gain * np.random.default_rng(2).standard_normal((n, n)) / np.sqrt(n)
    law = circular_law(gain)
    assert law == (0.7, 1.4)
    assert np.linalg.norm(W, 2) / gain == pytest.approx(2 - n ** (-2 / 3), abs=4 * 0.6 * n ** (-2 / 3))
    assert spectral_radius(W) / gain == pytest.approx(1 + 0.5 / np.sqrt(n), abs=4 * 0.3 / np.sqrt(n))


# --- Bad inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan, [1.0, 2.0]])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="gain must be a single number"):
        mean_field(bad)
    with pytest.raises(ValueError, match="input_variance must be"):
        mean_field(1.0, input_variance=bad)
    with pytest.raises(ValueError, match="gain must be"):
        circular_law(bad)
    with pytest.raises(ValueError, match="initial_variance must be"):
        mean_field_path(1.0, [1.0], initial_variance=bad)


def test_bad_paths_are_refused():
    with pytest.raises(ValueError, match=r"input_variances must be .* got shape \(0,\)"):
        mean_field_path(1.0, [])
    with pytest.raises(ValueError, match=r"least value -1\.0"):
        mean_field_path(1.0, [1.0, -1.0])
    with pytest.raises(ValueError, match="finite"):
        mean_field_path(1.0, [np.nan])
    with pytest.raises(TypeError, match="real numbers"):
        mean_field("1.5")  # type: ignore[arg-type]

"""Whether a sequence was long enough: false alarms as seldom as promised, alarms where they are due, exact cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal

import gradlab as gl
from gradlab.convergence import FALSE_ALARMS, OUTCOMES, check_convergence, decay_convergence, exponent_convergence
from tests.cases import tanh_net

EPS = np.finfo(float).eps


def correlated(shape, phi, seed):
    """AR(1) increments of unit variance, stationary from the start: correlation time (1 + φ)/(1 − φ)."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(shape)
    noise[..., 1:] *= math.sqrt(1 - phi * phi)
    return signal.lfilter([1.0], [1.0, -phi], noise, axis=-1)


# --- How often it is wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [20, 64, 400])
def test_false_alarms_are_as_seldom_as_promised(steps):
    """Independent increments: 2000 calls of 3 series each, any alarm among them counted; 4 binomial errors."""
    series = 2.0 * np.random.default_rng(0).standard_normal((6000, steps)) - 0.3
    found = check_convergence(series, comparisons=3).outcome.reshape(2000, 3)
    rate = (found != "long enough").any(axis=1).mean()
    assert rate <= FALSE_ALARMS + 4 * math.sqrt(FALSE_ALARMS / 2000)


def test_short_correlations_give_few_false_alarms_and_long_ones_are_found():
    """Blocks of 32 of 1024 steps: a correlation time of 3 leaves them independent, one of 400 does not."""
    short = check_convergence(correlated((500, 1024), 0.5, 1), comparisons=1)
    assert (short.outcome != "long enough").mean() <= 0.03 + 4 * math.sqrt(0.03 / 500)  # they still share a 1/32
    long = check_convergence(correlated((100, 1024), 0.995, 2), comparisons=1)
    assert (long.outcome != "long enough").mean() > 0.9
    assert set(long.outcome) <= {"drifting", "correlated", "long enough"}


def test_a_drift_of_the_size_of_the_noise_is_found():
    rng = np.random.default_rng(3)
    # from half to half 1 of noise 1: 10 standard errors at N = 400
    found = check_convergence(rng.standard_normal((50, 400)) + np.linspace(-1, 1, 400), comparisons=1)
    assert (found.outcome == "drifting").mean() > 0.95
    assert found.drift.mean() == pytest.approx(1.0, abs=4 * 0.1 / math.sqrt(50) + 1 / 400)


# --- The numbers -------------------------------------------------------------------------------------------------


def test_the_numbers_are_what_they_say():
    """16 steps in 4 blocks of 4, by hand."""
    means = np.array([1.0, 3.0, 2.0, 6.0])
    x = np.repeat(means, 4) + np.tile([0.5, -0.5, 1.0, -1.0], 4)
    found = check_convergence(x)
    assert (found.steps, found.rate, found.drift) == (16, 3.0, 2.0)
    assert found.standard_error == pytest.approx(means.std(ddof=1) / 2, rel=8 * EPS)
    # the two halves have variances 2 and 8, of two means each
    assert found.drift_error == pytest.approx(math.sqrt(2 / 2 + 8 / 2), rel=8 * EPS)
    assert found.correlation_time == pytest.approx(4 * means.var(ddof=1) / x.var(ddof=1), rel=8 * EPS)
    assert found.outcome == "long enough"  # 2 degrees of freedom prove nothing


def test_correlation_time_and_error_are_those_of_the_process():
    """AR(1) with φ = ½: 3 steps, and the standard error that follows; means over 200 runs of 4096 steps."""
    found = check_convergence(correlated((200, 4096), 0.5, 4), comparisons=1)
    # from blocks of 64: short by 2 Σ j ρ_j/64 = 4/64, and the variance of 64 block means is known to √(2/63)
    assert found.correlation_time.mean() == pytest.approx(3 - 4 / 64, abs=4 * 3 * math.sqrt(2 / 63 / 200))
    assert found.rate.std() == pytest.approx(math.sqrt(3 / 4096), rel=4 / math.sqrt(400) + 0.02)
    assert found.standard_error.mean() == pytest.approx(math.sqrt(3 / 4096), rel=0.05)


@pytest.mark.parametrize(("steps", "enough"), [(1, False), (15, False), (16, True), (19, False), (20, True)])
def test_four_blocks_are_the_least(steps, enough):
    found = check_convergence(np.full(steps, -0.1))
    assert found.outcome == ("long enough" if enough else "too few steps")
    assert found.converged is enough
    assert found.rate == pytest.approx(-0.1, rel=8 * EPS)
    assert np.isnan(found.standard_error) == (not enough)


def test_what_bends_by_less_than_a_nat_is_long_enough():
    """A transient that decays: significant beside a noise of zero, and below the O(1)/N that no sequence can better."""
    transient = np.exp(-np.arange(400) / 60.0)  # adds up to 60
    for size, straight in ((0.01, True), (0.5, False)):
        increments = -0.5 + size * transient
        found = check_convergence(increments)
        bend = np.abs(np.cumsum(increments - found.rate)).max()
        assert (bend < 1.0) == straight == (found.outcome == "long enough")
        assert abs(found.drift) > 3 * found.drift_error


def test_verdicts_are_readable():
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((4, 400))
    assert check_convergence(noise).verdict == "long enough at 400 steps: all 4"
    noise[1] += np.linspace(-2, 2, 400)
    found = check_convergence(noise)
    assert found.verdict.startswith("too short at 400 steps: 1 of 4 drift, +")
    assert "standard errors" in found.verdict
    assert not found.converged
    assert found.long_enough.tolist() == [1, 0, 1, 1]
    waves = check_convergence(3 * np.sin(np.arange(400) / 30.0))
    assert waves.outcome == "correlated"
    assert "1 of 1 are correlated over 20.2 steps or more" in waves.verdict  # the blocks of 20 that it is measured by
    assert "have no standard error" in check_convergence(noise[:, :10]).verdict
    assert set(OUTCOMES) >= {str(one) for one in found.outcome}


# --- Exponents and decay -----------------------------------------------------------------------------------------


def test_the_increments_are_those_of_the_exponents():
    J = np.stack([tanh_net(5, 300, 1.5, seed) for seed in range(3)])
    found = gl.lyapunov_exponents(J, discard=30)
    checked = exponent_convergence(found)
    # a running mean times its length: N additions
    np.testing.assert_allclose(checked.rate, found.exponents, atol=300 * 8 * EPS)
    assert (checked.steps == 270).all()
    one = exponent_convergence(gl.lyapunov_exponents(J[0], discard=30), comparisons=15)
    np.testing.assert_allclose(one.rate, gl.lyapunov_exponents(J[0], discard=30).exponents, atol=300 * 8 * EPS)
    assert one.outcome.shape == (5,)
    # blocks of the same length, but the circular bootstrap has them start at every step: alike, not equal
    ratio = checked.standard_error / found.standard_error
    assert 0.5 < np.median(ratio) < 2


def test_an_exponent_that_died_needs_no_length():
    J = np.random.default_rng(6).standard_normal((400, 3, 3))
    J[200] = J[200][:, :1] * np.array([1.0, 2.0, 0.0])  # one direction is left
    with pytest.warns(RuntimeWarning, match="singular to working precision"):
        checked = exponent_convergence(gl.lyapunov_exponents(J))
    assert checked.outcome.tolist()[1:] == ["dead", "dead"]
    assert checked.rate[1] == -np.inf
    assert np.isnan(checked.long_enough[1:]).all()
    assert checked.converged
    assert checked.verdict == "long enough at 400 steps: 1 of 3, and a rate of −∞ 2 of 3"
    assert check_convergence(np.full((2, 50), -np.inf)).verdict == "rates of −∞ at 50 steps: all 2"


def test_a_network_that_settles_late_is_found_out():
    """It explodes for 100 steps and vanishes for 100: the mean of the two is neither."""
    rng = np.random.default_rng(7)
    steps = np.linalg.qr(rng.standard_normal((200, 3, 3)))[0] * np.repeat([1.3, 0.6], 100)[:, None, None]
    assert (exponent_convergence(gl.lyapunov_exponents(steps)).outcome == "drifting").all()


def test_the_decay_is_checked_over_the_lags_that_are_fitted():
    rng = np.random.default_rng(8)
    log_norms = np.cumsum(rng.standard_normal((2, 201)), axis=1)
    checked, fit = decay_convergence(log_norms), gl.fit_decay(log_norms)
    assert (checked.steps == fit.last_lag - fit.first_lag).all()
    expected = (log_norms[:, 0] - log_norms[:, 180]) / 180
    np.testing.assert_allclose(checked.rate, expected, atol=200 * 8 * EPS)
    assert decay_convergence(log_norms, skip=0).steps.tolist() == [200, 200]
    # a zero gradient ends the fit, and a gap in the lags is shared out
    log_norms[0, :150] = -np.inf
    assert decay_convergence(log_norms).steps.tolist() == [30, 180]
    gap = decay_convergence([-30.0, -10.0, 0.0], lags=[30, 10, 0], skip=0)
    assert (gap.steps, gap.rate, gap.outcome) == (30, -1.0, "long enough")
    assert decay_convergence([-np.inf, -1.0], skip=0).outcome == "too few steps"


def test_analyze_warns_and_carries_the_verdict():
    cell = gl.VanillaRNNCell(4, recurrent_gain=0.9, seed=0)
    x = np.random.default_rng(9).standard_normal((8, 60, 2))
    with pytest.warns(RuntimeWarning, match=r"decay rate too short at 10 steps: 8 of 8 have no standard error.*; Lyap"):
        short = gl.analyze(cell, x[:, :12])
    assert (short["decay_long_enough"] == 0).all()
    whole = gl.analyze(cell, x)
    checked = decay_convergence(whole["log_gradient_norm"].values)
    np.testing.assert_array_equal(whole["decay_long_enough"], checked.long_enough)
    np.testing.assert_array_equal(whole["decay_drift"], checked.drift)
    assert whole["lyapunov_correlation_time"].shape == (8, 4)


# --- Bad inputs --------------------------------------------------------------------------------------------------


def test_what_is_no_series_is_refused():
    with pytest.raises(ValueError, match=r"at least one step, got \(0,\)"):
        check_convergence([])
    with pytest.raises(ValueError, match="must be"):
        check_convergence(np.zeros((2, 2, 2, 2)))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite or −∞"):
            check_convergence([0.0, bad])
    with pytest.raises(ValueError, match="comparisons must be at least 1"):
        check_convergence(np.zeros(20), comparisons=0)
    with pytest.raises(TypeError, match="skip must be an integer"):
        decay_convergence(np.zeros(20), skip=1.5)

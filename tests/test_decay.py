from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.bounds import chain
from gradlab.decay import decay_budget, fit_decay
from tests.reference import exact_log_singular_values
from tests.strategies import networks

EPS = np.finfo(np.float64).eps


def back(values):
    """A curve given over the lag, as an array over t."""
    return np.asarray(values)[..., ::-1]


def random_walk(rng, sequences, T, drift=-0.3, correlation=0.0):
    """ln norms over the lag, increments AR(1) with the given correlation and unit variance."""
    noise = rng.standard_normal((sequences, T + 100))
    increments = np.empty_like(noise)
    increments[:, 0] = noise[:, 0]
    for i in range(1, T + 100):
        increments[:, i] = correlation * increments[:, i - 1] + np.sqrt(1 - correlation**2) * noise[:, i]
    return np.concatenate([np.zeros((sequences, 1)), np.cumsum(increments[:, 100:] + drift, axis=1)], axis=1)


# --- The line ----------------------------------------------------------------------------------------------------


def test_exact_exponential():
    lag = np.arange(101)
    fit = fit_decay(back(2.0 - 0.25 * lag))
    # 91 points up to 25 in size; the slope's weights sum to about 4/T
    assert float(fit.rate) == pytest.approx(-0.25, abs=25 * EPS)
    assert float(fit.intercept) == pytest.approx(2.0, abs=200 * EPS)
    assert float(fit.standard_error) <= 25 * EPS
    assert float(fit.half_life) == pytest.approx(np.log(2) / 0.25, rel=1e-13)
    assert float(fit.doubling_time) == np.inf
    assert (int(fit.first_lag), int(fit.last_lag)) == (10, 100)
    assert fit.reason == "lags 10 to 100: the first 10 left out while the gradient aligns"


def test_growth_and_constancy():
    fit = fit_decay(np.stack([back(0.5 * np.arange(21)), np.zeros(21)]))
    np.testing.assert_allclose(fit.doubling_time, [2 * np.log(2), np.inf], rtol=1e-13)
    np.testing.assert_array_equal(fit.half_life, [np.inf, np.inf])
    np.testing.assert_array_equal(fit.standard_error[1], 0)


def test_slope_and_intercept_are_those_of_polyfit():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((5, 41)).cumsum(axis=1)
    fit = fit_decay(back(y), skip=3)
    slope, intercept = np.polyfit(np.arange(3, 41), y[:, 3:].T, 1)
    np.testing.assert_allclose(fit.rate, slope, atol=1e-13)  # polyfit's own SVD: 1e2 ε
    np.testing.assert_allclose(fit.intercept, intercept, atol=1e-12)


def test_standard_error_by_its_definition():
    """The double sum written out, with the weights as derivatives of the slope by each increment."""
    y = random_walk(np.random.default_rng(1), 1, 30)[0]
    x = np.arange(3, 31)
    y = y[3:]
    m = len(x) - 1
    slope = lambda values: np.polyfit(x, values, 1)[0]  # noqa: E731
    weights = [slope((np.arange(m + 1) > i).astype(float)) for i in range(m)]
    e = np.diff(y) - (y[-1] - y[0]) / m
    L = 6  # ⌈√27⌉
    variance = 0.0
    for i in range(m):
        for j in range(m):
            variance += max(0, 1 - abs(i - j) / (L + 1)) * weights[i] * weights[j] * e[i] * e[j]
    expected = np.sqrt(variance / (1 - (L + 1) / m))
    fit = fit_decay(back(np.concatenate([[0.0] * 3, y])))
    assert float(fit.standard_error) == pytest.approx(expected, rel=1e-11)


@settings(deadline=None, max_examples=80)
@given(st.integers(3, 60), st.floats(-50, 50), st.floats(-5, 5), st.integers(0, 99))
def test_a_line_added_is_found_again(T, offset, slope, seed):
    """fit(y + a + b k) = fit(y) + (b, a), with the standard error unchanged."""
    y = np.random.default_rng(seed).standard_normal(T + 1).cumsum()
    one, other = fit_decay(back(y)), fit_decay(back(y + offset + slope * np.arange(T + 1)))
    tol = 40 * EPS * (50 + 5 * T + np.abs(y).max())
    assert float(other.rate) == pytest.approx(float(one.rate) + slope, abs=tol)
    assert float(other.intercept) == pytest.approx(float(one.intercept) + offset, abs=tol * T)
    assert float(other.standard_error) == pytest.approx(float(one.standard_error), abs=tol * T)


# --- The range ---------------------------------------------------------------------------------------------------


def test_alignment_at_the_first_lags_is_left_out():
    lag = np.arange(51)
    y = -0.1 * lag
    y[:5] = [3, 2.5, 2, 1, 0]
    assert float(fit_decay(back(y)).rate) == pytest.approx(-0.1, abs=20 * EPS)
    assert float(fit_decay(back(y), skip=0).rate) < -0.11
    assert fit_decay(back(y), skip=7).reason == "lags 7 to 50: the first 7 left out as asked"


def test_fit_ends_before_the_gradient_is_exactly_zero():
    y = -0.5 * np.arange(41.0)
    y[30:] = -np.inf
    fit = fit_decay(back(y))
    assert float(fit.rate) == pytest.approx(-0.5, abs=20 * EPS)
    assert (int(fit.first_lag), int(fit.last_lag)) == (4, 29)
    assert fit.reason.endswith("stopped before lag 30 where the gradient is exactly zero")


def test_masked_steps_do_not_change_the_fit():
    """Padding inserted anywhere repeats a lag and a norm, and nothing else."""
    rng = np.random.default_rng(2)
    y = back(random_walk(rng, 1, 25)[0])
    times = np.sort(np.concatenate([np.arange(26), [0, 0, 7, 12, 12, 25]]))
    padded = fit_decay(y[times], lags=25 - times)
    plain = fit_decay(y)
    assert (padded.rate, padded.standard_error, padded.intercept) == (plain.rate, plain.standard_error, plain.intercept)
    assert padded.reason == plain.reason


def test_a_repeated_lag_takes_the_gradient_with_all_losses():
    """At t = 1 and 2 the state is the same; what arrives at t = 1 holds the loss on both."""
    norms = np.array([-4.0, -3.0, -9.0, -1.0, 0.0])
    fit = fit_decay(norms, lags=[3, 2, 2, 1, 0], skip=0)
    assert float(fit.rate) == pytest.approx(np.polyfit([0, 1, 2, 3], [0, -1, -3, -4], 1)[0], abs=1e-14)


def test_lags_may_have_gaps():
    """An exact line on uneven lags leaves no fluctuation, whatever the gaps."""
    lags = np.array([40, 31, 30, 18, 9, 5, 1, 0])
    fit = fit_decay(1.0 - 0.4 * lags, lags=lags)
    assert float(fit.rate) == pytest.approx(-0.4, abs=20 * EPS)
    assert float(fit.standard_error) <= 20 * EPS
    assert (int(fit.first_lag), int(fit.last_lag)) == (5, 40)


def test_sequences_of_different_lengths():
    y = np.stack([back(-0.2 * np.arange(31)), np.full(31, 0.0)])
    y[1, :11], y[1, 11:] = back(-0.7 * np.arange(11)), 0.0
    lags = np.stack([np.arange(31)[::-1], np.maximum(10 - np.arange(31), 0)])
    fit = fit_decay(y, lags=lags)
    np.testing.assert_allclose(fit.rate, [-0.2, -0.7], atol=30 * EPS)
    assert fit.first_lag.tolist() == [3, 1]
    assert fit.last_lag.tolist() == [30, 10]


@pytest.mark.parametrize(
    ("norms", "usable"), [([0.0], 0), ([-1.0, 0.0], 1), ([-2.0, -1.0, 0.0], 2), ([-np.inf] * 9 + [0.0], 0)]
)
def test_too_short_is_no_number(norms, usable):
    fit = fit_decay(norms, skip=None if len(norms) > 1 else 1)
    assert np.isnan([fit.rate, fit.standard_error, fit.intercept, fit.half_life, fit.doubling_time]).all()
    assert fit.reason.startswith(f"no fit: {usable} usable lags of the 3 it takes")


# --- The standard error against simulations ----------------------------------------------------------------------


@pytest.mark.parametrize(("T", "correlation", "coverage"), [(100, 0.0, 0.93), (500, 0.0, 0.94), (500, 0.5, 0.93)])
def test_coverage_on_random_walks(T, correlation, coverage):
    """±1.96 standard errors cover the drift as often as the docstring says; 1000 walks, 4 binomial errors."""
    fit = fit_decay(back(random_walk(np.random.default_rng(5), 1000, T, correlation=correlation)), skip=0)
    covered = (np.abs(fit.rate + 0.3) < 1.96 * fit.standard_error).mean()
    assert covered == pytest.approx(coverage, abs=4 * np.sqrt(coverage * (1 - coverage) / 1000))
    if correlation == 0:  # right on average, too: the root mean square is known to 1/√2000 of itself on each side
        actual, claimed = fit.rate.std(), np.sqrt((fit.standard_error**2).mean())
        assert claimed == pytest.approx(actual, rel=4 * np.sqrt(1 / 2000 + 1 / 1000))


def test_ordinary_least_squares_errors_would_be_far_too_small():
    """What the increments are for: the usual formula covers a random walk's drift a quarter of the time."""
    y = random_walk(np.random.default_rng(6), 500, 200)
    x = np.arange(201) - 100.0
    slope = y @ x / (x @ x)
    residual = y - y.mean(axis=1, keepdims=True) - slope[:, None] * x
    usual = np.sqrt((residual**2).sum(axis=1) / 199 / (x @ x))
    ours = fit_decay(back(y), skip=0)
    assert (np.abs(slope + 0.3) < 1.96 * usual).mean() < 0.35
    assert (np.abs(ours.rate + 0.3) < 1.96 * ours.standard_error).mean() > 0.9


def test_noise_about_a_line_is_covered_too():
    rng = np.random.default_rng(7)
    fit = fit_decay(back(-0.3 * np.arange(101) + rng.standard_normal((1000, 101))), skip=0)
    assert (np.abs(fit.rate + 0.3) < 1.96 * fit.standard_error).all()
    assert 5 < np.median(fit.standard_error) / fit.rate.std() < 30  # conservative, as the docstring says


# --- The budget --------------------------------------------------------------------------------------------------


def account(W, phi, seed, **kwargs):
    """A plain network's budget, and the quantities it was made of; the loss at T only."""
    J = phi[:, :, None] * W
    T = len(J)
    g = np.random.default_rng(seed).standard_normal(len(W))
    log_g = np.empty(T + 1)
    with np.errstate(divide="ignore"):
        log_g[T] = np.log(np.linalg.norm(g))
        for t in range(T - 1, -1, -1):
            g = J[t].T @ g
            log_g[t] = np.log(np.linalg.norm(g))
    ln_s = np.array([exact_log_singular_values(J[t:]) for t in range(T)])
    links = chain(J, recurrent_matrix=W, slopes=phi, slope_supremum=1.0)
    budget = decay_budget(
        ln_s, links.log_step_norms, log_g, slopes=phi, sigma_max=np.linalg.norm(W, 2), slope_supremum=1.0, **kwargs
    )
    return budget, ln_s, links, log_g


@settings(deadline=None, max_examples=100)
@given(networks(), st.integers(0, 99))
def test_terms_sum_to_what_was_measured_and_only_lose(net, seed):
    W, phi = net
    budget, ln_s, links, log_g = account(W, phi, seed)
    terms = budget.terms
    assert list(terms) == ["promise", "saturation", "within_step", "between_steps", "direction", "other_times"]
    # where P is exactly zero by cancellation, what arrives in float64 is rounding alone, and there is no account of it
    finite = np.isfinite(log_g[:-1]) & np.isfinite(ln_s[:, 0])
    # ten additions of logarithms, none larger than the largest
    size = max(np.abs(x[np.isfinite(x)]).max(initial=1.0) for x in (*terms.values(), ln_s[:, 0], log_g))
    assert (np.abs(budget.residual[finite]) <= 20 * EPS * size).all()
    assert (np.abs(sum(terms.values()) - (log_g[:-1] - log_g[-1]))[finite] <= 20 * EPS * size).all()
    rounding = len(phi) * (10 * len(W) + 4 * size) * EPS
    for name in ("saturation", "within_step", "between_steps"):
        values = terms[name]
        assert (values[~np.isnan(values)] <= rounding).all(), name
    # a gradient that nearly cancels is known to ε of the product of the norms, which only makes it larger
    loss = links.step_norms[finite] - ln_s[finite, 0]
    assert (terms["direction"][finite] <= rounding + 8 * len(phi) * len(W) * EPS * np.exp(np.minimum(loss, 40))).all()
    np.testing.assert_array_equal(terms["other_times"], 0)


def test_each_term_names_its_cause():
    """Four networks of two units and two steps, each with one reason for its decay."""
    ones = np.ones((2, 2))
    e0, ln2 = 1.0, np.log(2)

    def terms(steps, slopes, sigma_max, gradient):
        J = np.asarray(steps, dtype=float)
        products = np.array([J[1] @ J[0], J[1]])
        norms = [np.linalg.norm(p.T @ gradient) for p in products] + [np.linalg.norm(gradient)]
        budget = decay_budget(
            np.log(np.linalg.norm(products, 2, axis=(1, 2))),
            np.log(np.linalg.norm(J, 2, axis=(1, 2))),
            np.log(norms),
            slopes=slopes,
            sigma_max=sigma_max,
            slope_supremum=e0,
        )
        return {name: value[0] for name, value in budget.terms.items() if abs(value[0]) > 8 * EPS}

    half = 0.5 * np.eye(2)
    swap = np.diag([1.0, 0.5]), np.diag([0.5, 1.0])
    assert terms([half, half], ones, 0.5, [1, 0]) == pytest.approx({"promise": -2 * ln2})
    assert terms([half, half], 0.5 * ones, 1.0, [1, 0]) == pytest.approx({"saturation": -2 * ln2})
    # W = diag(1, ½), slopes (½, 1): the steep unit is the one W drives least
    assert terms([half, half], [[0.5, 1], [0.5, 1]], 1.0, [1, 0]) == pytest.approx({"within_step": -2 * ln2})
    assert terms(swap, ones, 1.0, [1, 0]) == pytest.approx({"between_steps": -ln2})
    flat = np.diag([1.0, 0.25])
    assert terms([flat, flat], ones, 1.0, [0, 1]) == pytest.approx({"direction": -4 * ln2})


def test_losses_at_other_times_have_their_term():
    """Two units, J = ½: a loss of gradient (0, 1) at t = 1 beside (1, 0) at T = 2."""
    total = np.log([np.hypot(0.25, 0.5), np.hypot(0.5, 1.0), 1.0])
    terminal = np.log([0.25, 0.5, 1.0])
    budget = decay_budget(np.log([0.25, 0.5]), np.log([0.5, 0.5]), total, log_terminal_gradient=terminal)
    np.testing.assert_allclose(budget.other_times, 0.5 * np.log(5), rtol=8 * EPS)
    np.testing.assert_allclose(budget.direction, 0, atol=8 * EPS)
    np.testing.assert_allclose(budget.residual, 0, atol=8 * EPS)
    with pytest.raises(ValueError, match="must equal log_gradient_norms at T"):
        decay_budget(np.log([0.25, 0.5]), np.log([0.5, 0.5]), total, log_terminal_gradient=terminal - 1)


def test_without_a_recurrent_matrix_the_account_starts_at_the_step_norms():
    rng = np.random.default_rng(3)
    steps, sigma, total = rng.standard_normal((2, 5)), rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 6))
    budget = decay_budget(sigma, steps, total)
    assert (budget.promise, budget.saturation, budget.within_step) == (None, None, None)
    assert list(budget.terms) == ["step_norms", "between_steps", "direction", "other_times"]
    np.testing.assert_allclose(budget.step_norms, steps[:, ::-1].cumsum(axis=1)[:, ::-1], rtol=8 * EPS)
    np.testing.assert_allclose(budget.residual, 0, atol=20 * EPS * 5)
    np.testing.assert_array_equal(budget.measured, total[:, :-1] - total[:, -1:])
    np.testing.assert_array_equal(budget.per_step["measured"], budget.measured / np.arange(5, 0, -1))
    one = decay_budget(sigma[0], steps[0], total[0])
    for name, term in one.terms.items():
        np.testing.assert_array_equal(term, budget.terms[name][0])


def test_masked_steps_spend_nothing():
    rng = np.random.default_rng(4)
    W, phi = rng.standard_normal((3, 3)), rng.uniform(0.2, 1, (4, 3))
    plain, ln_s, links, log_g = account(W, phi, 0)
    times = np.array([0, 0, 1, 2, 3, 4, 4])  # states; steps 0→0 and 4→4 are padding
    real = np.array([False, True, True, True, True, False])
    wide_phi = np.ones((6, 3))
    wide_phi[real] = phi
    wide_norms = np.full(6, 7.0)  # what a masked step holds must not matter
    wide_norms[real] = links.log_step_norms
    wide_s = np.concatenate([ln_s, np.zeros((1, 3))])[times[:-1]]
    sigma_max = np.linalg.norm(W, 2)
    padded = decay_budget(
        wide_s, wide_norms, log_g[times], slopes=wide_phi, sigma_max=sigma_max, slope_supremum=1.0, mask=real
    )
    assert padded.lags.tolist() == [4, 4, 3, 2, 1, 0]
    for name, term in plain.terms.items():
        np.testing.assert_array_equal(padded.terms[name], np.append(term, 0.0)[times[:-1]], err_msg=name)
    assert np.isfinite(padded.per_step["measured"]).all()


def test_a_zero_gradient_is_charged_to_its_first_cause(recwarn):
    """A step of dead units: within the step; everything after it is NaN, and steps later in time are untouched."""
    W, phi = np.eye(2), np.ones((3, 2))
    phi[1] = 0
    budget, *_ = account(W, phi, 0)
    assert budget.promise.tolist() == [0, 0, 0]
    assert budget.saturation.tolist() == [-np.inf, -np.inf, 0]
    assert np.isnan(budget.within_step).tolist() == [True, True, False]
    assert np.isnan(budget.residual).tolist() == [True, True, False]
    assert budget.measured.tolist() == [-np.inf, -np.inf, 0]
    # one unit dead, and the gradient with nothing in the other: charged to the direction
    lost = decay_budget([0.0, 0.0], [0.0, 0.0], [-np.inf, 0.0, 0.0])
    assert lost.direction.tolist() == [-np.inf, 0]
    assert not recwarn.list


# --- Bad inputs --------------------------------------------------------------------------------------------------


def test_bad_curves_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        fit_decay([0.0, np.nan, 1.0])
    with pytest.raises(ValueError, match="overflowed"):
        fit_decay([0.0, np.inf, 1.0])
    with pytest.raises(ValueError, match=r"got shape \(2, 2, 2\)"):
        fit_decay(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="must not increase"):
        fit_decay(np.zeros(4), lags=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="lags must have the shape"):
        fit_decay(np.zeros(4), lags=[2, 1, 0])
    with pytest.raises(TypeError, match="lags must be integers"):
        fit_decay(np.zeros(3), lags=[2.0, 1.0, 0.0])
    with pytest.raises(TypeError, match="skip must be an integer"):
        fit_decay(np.zeros(4), skip=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="skip must not be negative"):
        fit_decay(np.zeros(4), skip=-1)


def test_bad_accounts_are_refused():
    steps, total = np.zeros((2, 3)), np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"log_gradient_norms must have shape \(2, 4\)"):
        decay_budget(steps, steps, steps)
    with pytest.raises(ValueError, match=r"log_singular_values must have shape \(2, 3\) or \(2, 3, 'n'\)"):
        decay_budget(np.zeros((2, 2)), steps, total)
    with pytest.raises(ValueError, match="given together or not at all, got sigma_max"):
        decay_budget(steps, steps, total, sigma_max=1.0)
    with pytest.raises(ValueError, match="above slope_supremum"):
        decay_budget(steps, steps, total, slopes=np.ones((2, 3, 1)), sigma_max=1.0, slope_supremum=0.25)
    with pytest.raises(ValueError, match="NaN"):
        decay_budget(np.full((2, 3), np.nan), steps, total)
    with pytest.raises(ValueError, match=r"mask must be \[batch, time\]"):
        decay_budget(steps, steps, total, mask=np.ones((2, 4), dtype=bool))

"""What of a fit and of an account is easily off by one: the ends of the range, its words, short sums, whole batches."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab.decay import checked_norms, decay_budget, fit_decay, usable_lags

EPS = np.finfo(np.float64).eps


def newey_west(y, x):
    """The standard error of the slope of y on x, sum by sum as the docstring has it."""
    c = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    gaps, m = np.diff(x), len(y) - 1
    weights = np.array([c[i + 1 :].sum() for i in range(m)])
    e = weights * (np.diff(y) - gaps * (y[-1] - y[0]) / gaps.sum())
    L = min(int(np.ceil(np.sqrt(m))), (m - 1) // 2)
    total = 0.0
    for i in range(m):
        for j in range(m):
            total += max(0.0, 1 - abs(i - j) / (L + 1)) * e[i] * e[j]
    return np.sqrt(max(total, 0.0) / (1 - (L + 1) / m))


@pytest.mark.parametrize("m", [3, 4, 5, 6, 8, 9, 30])
def test_the_standard_error_of_few_increments(m):
    """At m = 3, 5 and 6 the number of lags is ⌊(m − 1)/2⌋, at 30 it is ⌈√m⌉."""
    walk = np.cumsum(np.random.default_rng(m).standard_normal(m + 1))
    fit = fit_decay(walk[::-1], skip=0)
    assert float(fit.standard_error) == pytest.approx(newey_west(walk, np.arange(m + 1.0)), rel=1e-11)


def test_the_standard_error_over_lags_with_gaps():
    lags = np.array([0, 1, 2, 7, 8, 20, 21, 22, 30])
    walk = np.cumsum(np.random.default_rng(2).standard_normal(len(lags)))
    fit = fit_decay(walk[::-1], lags=lags[::-1], skip=0)
    assert float(fit.standard_error) == pytest.approx(newey_west(walk, lags.astype(float)), rel=1e-11)
    assert float(fit.rate) == pytest.approx(np.polyfit(lags, walk, 1)[0], rel=1e-11)


def test_the_standard_error_of_two_increments_is_that_of_none_correlated():
    fit = fit_decay([-3.0, -1.0, 0.0], skip=0)
    # weights ½, ½; deviations ±½ of increments −1, −2; 1 − 1/2 for the mean
    assert float(fit.standard_error) == pytest.approx(np.sqrt(2 * 0.25**2 / 0.5), rel=8 * EPS)


def test_a_batch_is_its_sequences_side_by_side():
    log_norms = np.random.default_rng(0).standard_normal((3, 30))
    log_norms[1, :28] = -np.inf
    whole = fit_decay(log_norms)
    assert isinstance(whole.reason, tuple)
    for name in ("first_lag", "last_lag"):
        assert getattr(whole, name).dtype == np.int64
    for b in range(3):
        one = fit_decay(log_norms[b])
        assert isinstance(one.reason, str)
        assert whole.reason[b] == one.reason
        for name in ("rate", "standard_error", "intercept", "first_lag", "last_lag", "half_life", "doubling_time"):
            np.testing.assert_array_equal(getattr(whole, name)[b], getattr(one, name))
    assert whole.last_lag.tolist() == [29, -1, 29]


@pytest.mark.parametrize(
    ("log_norms", "skip", "ends", "reason"),
    [
        ([-2.0, -1.0, 0.0], 0, (0, 2), "lags 0 to 2: none left out"),
        ([-2.0, -1.0, 0.0], 1, (1, 2), "no fit: 2 usable lags of the 3 it takes; the first 1 left out as asked"),
        ([-2.0, -1.0, 0.0], 3, (-1, -1), "no fit: 0 usable lags of the 3 it takes; the first 3 left out as asked"),
        ([0.0], None, (0, 0), "no fit: 1 usable lags of the 3 it takes; none left out"),
        (
            [-np.inf, -2.0, -1.0, 0.0], 0, (0, 2),
            "lags 0 to 2: none left out, stopped before lag 3 where the gradient is exactly zero",
        ),
    ],
)  # fmt: skip
def test_the_range_and_its_reason(log_norms, skip, ends, reason):
    fit = fit_decay(log_norms, skip=skip)
    assert (int(fit.first_lag), int(fit.last_lag)) == ends
    assert fit.reason == reason


def test_usable_lags_are_what_is_fitted():
    norms, lags, skip = checked_norms([-5.0, -4.0, -3.0, -2.0, 0.0], None, None)
    x, y, why = usable_lags(norms, lags[0], skip)
    assert x.tolist() == [1, 2, 3, 4]
    assert y.tolist() == [-2.0, -3.0, -4.0, -5.0]
    assert why == "the first 1 left out while the gradient aligns"
    assert checked_norms(np.zeros((2, 3)), [2, 1, 0], 1)[1].tolist() == [[2, 1, 0], [2, 1, 0]]


@pytest.mark.parametrize("rate", [0.0, 5e-324, -5e-324])
def test_half_lives_of_next_to_nothing(rate):
    fit = fit_decay(np.zeros(4))
    with np.errstate(all="raise"):
        changed = type(fit)(**{**vars(fit), "rate": np.asarray(rate)})
        assert changed.half_life == np.inf
        assert changed.doubling_time == np.inf


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (2, 3, 4)])
def test_curves_and_accounts_need_a_step(shape):
    with pytest.raises(ValueError, match=r"log_norms must be \[time \+ 1\]"):
        fit_decay(np.zeros(shape))
    with pytest.raises(ValueError, match=r"log_step_norms must be \[batch, time\] or \[time\], got shape"):
        decay_budget(np.zeros(shape), np.zeros(shape), np.zeros(shape))


def test_lags_are_not_negative_and_go_down_in_every_sequence():
    says = "lags must not be negative and must not increase with t; lag = steps from t to the end T"
    for lags in ([1, 0, -1], [0, 1, 0], [[2, 1, 0], [1, 2, 0]]):
        with pytest.raises(ValueError, match=f"^{says}$"):
            fit_decay(np.zeros(np.shape(lags)), lags=lags)
    assert fit_decay(np.zeros((2, 4)), lags=np.array([3, 2, 1, 0], np.uint8)).last_lag.tolist() == [3, 3]
    with pytest.raises(ValueError, match="lags must have the shape"):
        fit_decay(np.zeros((3, 4)), lags=np.zeros(3, int))


STEPS, TOTAL, SLOPES = np.full((2, 3), -1.0), np.zeros((2, 4)), np.full((2, 3, 2), 0.5)


@pytest.mark.parametrize(
    "spoilt", [{"sigma_max": -1.0}, {"sigma_max": [1.0]}, {"slope_supremum": 0.0}, {"slope_supremum": [1.0]}]
)
def test_what_is_no_norm_and_no_supremum_is_refused(spoilt):
    given = {"slopes": SLOPES, "sigma_max": 1.0, "slope_supremum": 1.0} | spoilt
    with pytest.raises(ValueError, match="sigma_max must be ≥ 0 and slope_supremum > 0, got"):
        decay_budget(STEPS, STEPS, TOTAL, **given)


def test_slopes_are_held_against_their_supremum_and_named_where_bad():
    given = {"sigma_max": 2.0, "slope_supremum": 0.5}
    assert decay_budget(STEPS, STEPS, TOTAL, slopes=SLOPES, **given).saturation is not None
    for slope in (0.51, -0.75):
        slopes = SLOPES.copy()
        slopes[1, 2, 0] = slope
        with pytest.raises(ValueError, match=r"slopes reach 0\.(51|75), above slope_supremum = 0\.5"):
            decay_budget(STEPS, STEPS, TOTAL, slopes=slopes, **given)


def test_a_slope_that_is_not_finite_is_named_with_its_place():
    slopes = SLOPES.copy()
    slopes[1, 2, 0] = -np.inf
    with pytest.raises(ValueError, match=r"^slopes must be finite, got inf at batch 1, time 2, index 0"):
        decay_budget(STEPS, STEPS, TOTAL, slopes=slopes, sigma_max=1.0, slope_supremum=1.0)


def test_what_is_missing_and_what_is_given_is_named():
    for given in (["slopes"], ["slopes", "slope_supremum"], ["sigma_max", "slope_supremum"]):
        values = {"slopes": SLOPES, "sigma_max": 1.0, "slope_supremum": 1.0}
        with pytest.raises(ValueError, match=f"not at all, got {', '.join(given)}$"):
            decay_budget(STEPS, STEPS, TOTAL, **{name: values[name] for name in given})


def test_ends_that_differ_are_told_apart():
    with pytest.raises(ValueError, match=r"got \[0\.0, 0\.0\] and \[0\.0, 0\.5\]"):
        decay_budget(STEPS, STEPS, TOTAL + np.array([[0.0], [0.5]]), log_terminal_gradient=TOTAL)
    both = np.full((2, 4), 3.0)  # equal, and far from zero
    assert decay_budget(STEPS, STEPS, both, log_terminal_gradient=both + 1e-9).measured.tolist() == [[0.0] * 3] * 2
    dead = np.full((2, 4), -np.inf)
    assert np.isnan(decay_budget(STEPS, STEPS, dead, log_terminal_gradient=dead).measured).all()


def test_steps_that_break_the_bound_are_found_unless_masked():
    given = {"slopes": SLOPES, "sigma_max": 0.5, "slope_supremum": 1.0}  # at most ln ¼ a step
    with pytest.raises(ValueError, match="at batch 0, step 1, "):
        decay_budget(STEPS, STEPS, TOTAL, **given)
    norms = np.where(np.arange(3) == 1, -1.0, -2.0) * np.ones((2, 1))
    mask = np.array([[True, False, True]] * 2)
    assert decay_budget(STEPS, norms, TOTAL, **given, mask=mask).lags.tolist() == [[2, 1, 1]] * 2
    with pytest.raises(ValueError, match="at batch 0, step 2, "):
        decay_budget(STEPS, norms, TOTAL, **given)

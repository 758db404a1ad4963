"""What `log_singular_values` knows and says of its own errors: estimates, warnings, −∞ that may be something."""

from __future__ import annotations

import warnings

import cases
import numpy as np
import pytest
import reference
from numpy.typing import NDArray
from reference import distance

from gradlab import products
from gradlab.products import log_singular_values, swept_log_singular_values
from gradlab.streaming import StepReader

Array = NDArray[np.float64]

PROMISE = 1e-10  # as in test_products.py


def sparse_and_saturated(seed: int) -> Array:
    """Half of W is zero and the slopes of 2^-60 come and go: twice the digits of float64 are not enough."""
    rng = np.random.default_rng([seed, 9])
    n, T = int(rng.integers(2, 9)), int(rng.integers(5, 60))
    few = [1, 0.5, 2.0**-20, 2.0**-60]
    slopes = rng.choice(few, (T, n)) if seed % 2 == 0 else 10.0 ** rng.uniform(-18, 0, (T, n))
    return (rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.5) + 2 * np.eye(n)) * slopes[:, None, :]


@pytest.mark.parametrize("n", [64, 128])
def test_errors_are_known_of_large_networks_too(n: int) -> None:
    """Two answers by different ways, as ball arithmetic takes too long: P and Pᵀ, and their sum is ln|det|."""
    J = cases.tanh_net(n, 150, 1.5, 0)
    there, error = log_singular_values(J, times=[0], return_error=True)
    back, error_back = log_singular_values(np.ascontiguousarray(J[::-1].swapaxes(1, 2)), times=[0], return_error=True)
    assert (np.abs(there - back) <= 30 * (error + error_back)).all()
    assert max(error.max(), error_back.max()) < 1e-12
    # the determinants of float64 have the condition of a step each
    rounding = n * 2.0**-52 * np.linalg.cond(J).sum()
    assert abs(there.sum() - np.linalg.slogdet(J)[1].sum()) < error.sum() + rounding


@pytest.mark.parametrize(("gain", "seed"), [(0.1, 0), (0.3, 1)])
def test_networks_that_do_not_touch_have_their_own_values(gain: float, seed: int) -> None:
    """Zeros of J are zeros of the product, whatever is straightened on the way."""
    n, T = 12, 160
    parts = [
        np.concatenate([cases.tanh_net(n, T // 2, g, s + seed) for g, s in order])
        for order in (((1.5, 0), (gain, 10)), ((gain, 20), (1.5, 30)))
    ]
    J = np.zeros((T, 2 * n, 2 * n))
    J[:, :n, :n], J[:, n:, n:] = parts
    order = np.random.default_rng(seed).permutation(2 * n)
    ln_s, error = log_singular_values(J[:, order][:, :, order], times=[0], return_error=True)
    alone = [log_singular_values(part, times=[0], return_error=True) for part in parts]
    apart = np.sort(np.concatenate([values[0] for values, _ in alone]))[::-1]
    assert np.abs(ln_s[0] - apart).max() <= 30 * max(error.max(), *(of_part.max() for _, of_part in alone))
    assert error.max() < PROMISE / 30


def test_what_leans_across_more_than_float64_holds_is_not_lost() -> None:
    """Scales that part by 2^2400 and meet again; the lower triangle keeps a zero in the product all the while."""
    apart, shear = np.diag([2.0**-300, 2.0**300]), np.array([[1.0, 0.0], [1.0, 1.0]])
    J = np.stack([apart] * 4 + [np.eye(2)] * 2 + [np.linalg.inv(apart)] * 2 + [shear] * 19)
    exact = reference.exact_log_singular_values(J, 20000)
    ln_s, error = log_singular_values(J, times=[0], return_error=True)
    assert np.abs(ln_s[0] - exact).max() <= 30 * error.max() < 1e-11


@pytest.mark.filterwarnings("ignore:a step Jacobian is singular")
@pytest.mark.parametrize("seed", [2, 3, 5, 8, 12])
def test_no_wrong_number_leaves_in_silence(seed: int) -> None:
    J = sparse_and_saturated(seed)
    exact = reference.exact_log_singular_values(J, 20000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ln_s, error = log_singular_values(J, times=[0], return_error=True)
    wrong = np.abs(np.subtract(ln_s[0], exact, out=np.zeros(len(exact)), where=ln_s[0] != exact))
    silent = not any("uncertain" in str(one.message) for one in caught)
    assert (wrong <= 30 * error[0] + PROMISE).all() or not silent
    assert wrong.max() < 1e-5 or caught


def test_a_pivot_that_cancels_to_zero_is_announced() -> None:
    rng = np.random.default_rng(2)
    W = rng.standard_normal((2, 1)) @ rng.standard_normal((1, 2))  # rank 1, but for the rounding of its entries
    with pytest.warns(RuntimeWarning, match="singular to working precision"):
        ln_s, error = log_singular_values(np.stack([W, W]), return_error=True)
    assert np.isneginf(ln_s[0, 1])
    assert np.isinf(error[0, 1])


@pytest.mark.parametrize("rows", [[[5e-324, 0], [1, 1e-310]], [[1e-200, 1], [1, 1e200]], [[5e-324, 0], [1, 5e-324]]])
def test_what_does_not_fit_one_row_is_announced(rows: list[list[float]]) -> None:
    with pytest.warns(RuntimeWarning):
        _, error = log_singular_values(np.array([rows]), return_error=True)
    assert not (error < 1).all()


def test_units_that_shut_past_what_float64_holds_are_announced() -> None:
    """Two uncoupled units shut by turns after they were mixed: the coupling falls below 2^-1074 on the way."""
    mixed = np.array([[[1.0, 1.0], [1.0, -1.0]]])
    for shut, steps in ((0.1, 400), (2.0**-1000, 2)):
        J = np.concatenate(
            [np.repeat(np.diag([shut, 1.0])[None], steps, 0), np.repeat(np.diag([1.0, shut])[None], steps, 0), mixed]
        )
        with pytest.warns(RuntimeWarning, match="uncertain|singular to working precision"):
            ln_s, error = log_singular_values(J, times=[0], return_error=True)
        wrong = np.abs(ln_s[0] - (0.5 * np.log(2) + steps * np.log(shut)))
        assert (wrong <= 30 * error[0]).all()


def test_a_value_below_noise_keeps_its_place() -> None:
    J = np.zeros((1, 3, 3))
    J[0, :2, :2] = np.outer([1.0, 0.3], [0.1, 0.7])  # rank 1 but for rounding, which is far above 1e-100
    J[0, 2, 2] = 1e-100
    with pytest.warns(RuntimeWarning, match="singular to working precision"):
        ln_s, error = log_singular_values(J, return_error=True)
    assert ln_s[0, 1] == pytest.approx(-100 * np.log(10), abs=1e-12)
    assert error[0, 1] < 1e-12
    assert np.isneginf(ln_s[0, 2])
    assert np.isinf(error[0, 2])


def turned_jordan() -> Array:
    """Ill-conditioned by itself: the last digits of its entries decide the fourth of some ln σ."""
    turn = cases.random_orthogonal(10, np.random.default_rng(0))  # a triangle as it stands is no difficulty for LU
    return turn @ cases.jordan(0.95, 10, 200) @ turn.T


def test_one_sweep_knows_its_error() -> None:
    J = sparse_and_saturated(47)  # five of seven values are right to the last digit, two to the second
    found = products._at_times(StepReader.of(J), np.array([0]))
    wrong = np.abs(found.ln_s[0, 0] - reference.exact_log_singular_values(J, 20000))
    assert wrong.max() > 1e-3
    # one draw of rounding: a magnitude; what ln σ cannot resolve says nothing
    rounding = 8 * 2.0**-52 * np.abs(found.ln_s[0, 0])
    ratio = np.maximum(found.error[0, 0], rounding) / np.maximum(wrong, rounding)
    assert (ratio > 1 / 30).all()
    assert (ratio < 30).all()


def test_ill_conditioned_product_is_right_as_it_is_given() -> None:
    J = turned_jordan()
    ln_s, error = log_singular_values(J, times=[0], return_error=True)
    wrong = np.abs(ln_s[0] - reference.exact_log_singular_values(J, 4000))
    assert wrong.max() < 1e-12  # |ln σ| is 60: rounding it takes 7e-15
    assert (wrong < 30 * error[0]).all()


def test_values_that_the_last_digits_decide_are_announced() -> None:
    J = cases.lstm(4, 30, 20, 2)  # saturated gates: entries of 1e-20 beside 1, and cancellation between them
    exact = reference.exact_log_singular_values(J)
    with pytest.warns(RuntimeWarning, match="last digits of the step Jacobians decide"):
        ln_s, error = log_singular_values(J, return_error=True)
    assert distance(ln_s[0], exact) < 1e-12  # |ln σ| up to 623: rounding it takes 1e-13
    assert error[0].max() < 1e-12


def test_one_sequence_in_doubt_leaves_the_others_alone() -> None:
    good = cases.tanh_net(7, 40, 1.0, 0)
    doubtful = sparse_and_saturated(47)[:40]
    assert len(doubtful) == len(good)
    alone, error_alone = log_singular_values(good, return_error=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        both, error = log_singular_values(np.stack([good, doubtful]), return_error=True)
    np.testing.assert_array_equal(both[0], alone)
    np.testing.assert_array_equal(error[0], error_alone)


def test_one_sweep_alone_gives_the_same_where_there_is_no_doubt() -> None:
    J = np.stack([cases.tanh_net(6, 23, 2.0, seed) for seed in range(2)])
    np.testing.assert_array_equal(swept_log_singular_values(J), log_singular_values(J))
    np.testing.assert_array_equal(swept_log_singular_values(J, [20, 3, 20]), log_singular_values(J, times=[20, 3, 20]))
    np.testing.assert_array_equal(swept_log_singular_values(J[0], [5]), log_singular_values(J[0], times=[5]))
    J = turned_jordan()  # here there is: right as J is given, and nothing is said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ln_s = swept_log_singular_values(J, [0])[0]
    assert np.abs(ln_s - reference.exact_log_singular_values(J, 4000)).max() < 1e-12
    with pytest.raises(ValueError, match="times must lie in"):
        swept_log_singular_values(J, [200])


def test_rounding_and_distance_of_logarithms() -> None:
    ln_s = np.array([-np.inf, -1000.0, 0.5, 3.0])
    np.testing.assert_array_equal(products.rounding(ln_s), np.array([0.0, 1000.0, 1.0, 3.0]) * 2.0**-52)
    other = np.array([-np.inf, -1001.0, 0.5, -np.inf])
    np.testing.assert_array_equal(products._apart(ln_s, other), [0.0, 1.0 + 1000 * 2.0**-52, 2.0**-52, np.inf])

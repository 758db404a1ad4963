from __future__ import annotations

import cases
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from reference import distance

from gradlab.products import log_singular_values

Array = NDArray[np.float64]

# What the docstring promises for a product that is not ill-conditioned by itself, with room for the rounding of
# ln σ itself: the largest |ln σ| here is 5e3, and 5e3 · 2^-53 = 6e-13.
PROMISE = 1e-10

# Sums of T·n logarithms, each right to about n·κ(Ĵ)·2^-53: 1e4 terms of 1e-13 at most in these cases.
DETERMINANT = 1e-9


# --- Against formulae --------------------------------------------------------------------------------------------

JORDAN = {  # theory: s1² = (f + √(f² − 4a⁴))/2 with a = λ^T, b = T λ^(T−1), f = 2a² + b²; s2 = a²/s1; T = 1000
    0.95: (-44.3342449116820676, -58.2523438634189993),
    0.9: (-98.347399053187322, -112.373632262465280),
    1.0: (np.arcsinh(500.0), -np.arcsinh(500.0)),
}


@pytest.mark.parametrize("eigenvalue", JORDAN)
def test_jordan_block(eigenvalue: float) -> None:
    ln_s = log_singular_values(cases.jordan(eigenvalue, 2, 1000))
    assert distance(ln_s[0], np.array(JORDAN[eigenvalue])) < 1e-11  # 1000 steps of a few roundings each


def test_diagonal() -> None:
    d = np.array([[1.5, -2.0, 1e-5, 0.3], [1.2, 0.1, 3.0, 1e-9]])
    J = np.stack([np.diag(d[s % 2]) for s in range(300)])
    expected = np.cumsum(np.log(np.abs([d[s % 2] for s in range(300)]))[::-1], axis=0)[::-1]
    assert distance(log_singular_values(J), -np.sort(-expected, axis=1)) < 1e-11  # |ln σ| up to 5e3


def test_symmetric_with_distinct_values() -> None:
    eigenvalues, T = np.array([1.1, -0.8, 0.5, -0.1]), 200
    ln_s = log_singular_values(cases.symmetric(eigenvalues, T, 0))
    k = np.arange(T, 0, -1)[:, None]
    # rounding W to float64 moves ln|λ_i| by 2^-53·max|λ|/|λ_i|, up to 11 times 1e-16, once per step
    assert distance(ln_s, k * np.log(np.abs(eigenvalues))) < T * 1e-14


def test_orthogonal_keeps_every_direction() -> None:
    ln_s = log_singular_values(cases.orthogonal(24, 300, 1))
    assert np.abs(ln_s).max() < 300 * 1e-14  # the matrix is orthogonal to n·2^-53 only, and that adds up


def test_permutations_exactly() -> None:
    assert np.abs(log_singular_values(cases.permutations(7, 30, 0))).max() == 0


def test_one_unit_is_a_sum_of_logarithms() -> None:
    J = np.random.default_rng(0).standard_normal((50, 1, 1)) * 1e-30
    expected = np.cumsum(np.log(np.abs(J[::-1, 0, 0])))[::-1, None]
    assert distance(log_singular_values(J), expected) < 1e-11


def test_symplectic_values_come_in_pairs() -> None:
    ln_s = log_singular_values(cases.symplectic(12, 200, 0))
    assert np.abs(ln_s + ln_s[:, ::-1]).max() < 1e-11


# --- Against ball arithmetic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.PRODUCTS)
def test_ball_arithmetic(name: str) -> None:
    J = cases.PRODUCTS[name]()
    ln_s, error = log_singular_values(J, return_error=True)
    assert error.max() < 10 * PROMISE
    for t in (0, len(J) // 2, len(J) - 2):
        exact = reference.exact_log_singular_values(J[t:])
        assert distance(ln_s[t], exact) < PROMISE


@pytest.mark.parametrize("seed", range(8))
def test_short_products_of_wild_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = 10.0 ** rng.uniform(-60, 60, (6, 5, 1)), 10.0 ** rng.uniform(-60, 60, (6, 1, 5))
    J = rows * rng.standard_normal((6, 5, 5)) * columns
    assert distance(log_singular_values(J)[0], reference.exact_log_singular_values(J)) < PROMISE


def test_saturation_past_what_one_bracket_holds() -> None:
    rng = np.random.default_rng(0)
    J = rng.standard_normal((10, 6, 6)) * 10.0 ** rng.uniform(-285, 285, (10, 6, 1))
    assert distance(log_singular_values(J)[0], reference.exact_log_singular_values(J)) < PROMISE


def test_repeated_values_with_gaps() -> None:  # where LAPACK without vectors may be off by 1e13, relatively
    sizes, T = np.array([1.0, 1e-1, 1e-2, 1e-3]), 30
    ln_s = log_singular_values(cases.symmetric(np.repeat(sizes, 4), T, 0))
    expected = np.arange(T, 0, -1)[:, None] * np.repeat(np.log(sizes), 4)
    # rounding W to float64 moves it by up to 16·2^-53, and the smallest ln|λ| by 1e3 times that, once per step
    assert distance(ln_s, expected) < T * 16 * 2.0**-53 * 1e3


def test_formed_product_where_it_is_enough() -> None:
    J = cases.gru(16, 4, 1.0, 0)
    # the formed product has an error of n·2^-53·‖P‖, and σ_n/σ_1 is 1e-3 here
    assert distance(log_singular_values(J), reference.formed_log_singular_values(J)) < 1e-11


@pytest.mark.parametrize("gain", [0.8, 1.5, 8.0])
def test_determinant_identity_at_every_lag(gain: float) -> None:
    J = np.stack([cases.tanh_net(32, 150, gain, seed) for seed in range(3)])
    ln_det = np.linalg.slogdet(J / np.abs(J).max(axis=-1, keepdims=True))[1] + np.log(np.abs(J).max(axis=-1)).sum(-1)
    assert distance(log_singular_values(J).sum(axis=-1), np.cumsum(ln_det[:, ::-1], axis=1)[:, ::-1]) < DETERMINANT


# --- Exact zeros -------------------------------------------------------------------------------------------------


def test_dead_units_are_counted() -> None:
    J = np.stack([cases.relu_net(20, 60, 1.3, seed, bias=1.0) for seed in range(3)])
    dead = (J == 0).all(axis=-1).sum(axis=-1)
    most = np.maximum.accumulate(dead[:, ::-1], axis=1)[:, ::-1]
    ln_s, error = log_singular_values(J, return_error=True)
    np.testing.assert_array_equal(np.isneginf(ln_s).sum(axis=-1), most)
    assert error.max() < PROMISE  # −∞ both times, or near


def test_zero_step_kills_every_earlier_lag() -> None:
    J = cases.ginibre(5, 20, 0)
    J[7] = 0
    ln_s = log_singular_values(J)
    assert np.isneginf(ln_s[:8]).all()
    assert np.isfinite(ln_s[8:]).all()


def test_nilpotent() -> None:
    ln_s = log_singular_values(np.repeat(np.eye(5, k=-1)[None], 6, axis=0))
    for lag in range(1, 7):
        alive = max(0, 5 - lag)
        np.testing.assert_array_equal(ln_s[6 - lag], [0.0] * alive + [-np.inf] * (5 - alive))


def test_zero_pivot_with_something_behind_it() -> None:
    J = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    for matrix in (J, J.T):
        assert distance(log_singular_values(matrix[None])[0], np.array([0.5 * np.log(2), 0.0, -np.inf])) < 1e-15


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_weights_give_zeros_and_a_warning(rank: int) -> None:
    rng = np.random.default_rng(rank)
    left, right = rng.standard_normal((8, rank)), rng.standard_normal((rank, 8))
    slopes = rng.uniform(0.1, 1, (40, 8))
    with pytest.warns(RuntimeWarning, match="singular to working precision") as said:
        ln_s = log_singular_values(slopes[:, :, None] * (left @ right))
    assert len(said) == 1  # what is not zero is neither uncertain nor decided by last digits
    core = right @ (slopes[:, :, None] * left)  # P = D_T L · core ··· core · R has the rank of its factors
    inner = log_singular_values(core[:-1])
    assert (np.isneginf(ln_s).sum(axis=1) == 8 - rank).all()
    expected = inner[0].sum() + _log_volume(slopes[-1][:, None] * left) + _log_volume(right.T)
    assert abs(ln_s[0, :rank].sum() - expected) < PROMISE


def _log_volume(M: Array) -> float:
    """ln √det(MᵀM)."""
    return float(np.log(np.linalg.svd(M, compute_uv=False)).sum())


def test_repeated_column_is_not_noise() -> None:
    J = cases.ginibre(6, 20, 1)
    J[:, :, 1] = J[:, :, 0]
    with pytest.warns(RuntimeWarning, match="singular to working precision"):
        ln_s = log_singular_values(J)
    assert (np.isneginf(ln_s).sum(axis=1) == 1).all()


# --- Invariances -------------------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(1, 1), (1, 3), (4, 2), (7, 3), (12, 4)])
# dyadic entries, so that scaling, transposing and inserting identities are exact; not too near singular
ENTRIES = st.integers(-64, 64).map(lambda i: i / 16)


@st.composite
def stacks(draw: st.DrawFn) -> Array:
    """Step Jacobians 4·I + something: well conditioned enough for a tolerance that does not depend on the draw."""
    T, n = draw(SHAPES)
    J = draw(arrays(np.float64, (T, n, n), elements=ENTRIES)) / (4 * n)
    slopes = draw(arrays(np.float64, (T, n), elements=st.sampled_from([1.0, 0.5, 2.0**-20, 2.0**-60])))
    return slopes[:, :, None] * (2 * np.eye(n) + J)  # ‖J‖ ≤ 1: κ of the unscaled step is at most 3


# κ(Ĵ) ≤ 3n and at most 12 steps of a few n·2^-53 each
INVARIANCE = 1e-11
checked = settings(deadline=None, max_examples=40)


@checked
@given(stacks())
def test_reversal_with_transposition(J: Array) -> None:
    backward = J[::-1].swapaxes(1, 2)
    assert distance(log_singular_values(J)[0], log_singular_values(backward)[0]) < INVARIANCE


@checked
@given(stacks(), st.sampled_from([-1.0, 3.0, 1e-200, 1e200]))
def test_scaling_shifts_by_lags(J: Array, c: float) -> None:
    k = np.arange(len(J), 0, -1)[:, None]
    expected = log_singular_values(J) + k * np.log(abs(c))
    assert distance(log_singular_values(c * J), expected) < INVARIANCE


@checked
@given(stacks(), st.integers(0, 2**32 - 1))
def test_orthogonal_factors_at_the_ends(J: Array, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = J.shape[-1]
    ends = [cases.random_orthogonal(n, rng)[None], J, cases.random_orthogonal(n, rng)[None]]
    turned = log_singular_values(np.concatenate(ends))
    expected = log_singular_values(J)
    assert distance(turned[0], expected[0]) < INVARIANCE
    assert distance(turned[1:-1], expected) < INVARIANCE
    assert np.abs(turned[-1]).max() < 1e-14


@checked
@given(stacks(), st.data())
def test_masked_steps_are_invisible(J: Array, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(J)))
    count = data.draw(st.integers(1, 3))
    padded = np.insert(J, [at] * count, np.eye(J.shape[-1]), axis=0)
    ln_s = log_singular_values(padded)
    expected = log_singular_values(J)
    assert distance(ln_s[:at], expected[:at]) < INVARIANCE
    assert distance(ln_s[at + count :], expected[at:]) < INVARIANCE


@checked
@given(stacks())
def test_descending_with_a_small_error_estimate(J: Array) -> None:
    ln_s, error = log_singular_values(J, return_error=True)
    assert ln_s.shape == J.shape[:2]
    assert (ln_s[:, :-1] >= ln_s[:, 1:]).all()
    assert (error < INVARIANCE).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("transposed", [False, True])
def test_scales_that_cross_and_cross_again(seed: int, transposed: bool) -> None:
    """Units shut and opened by turns: one sweep in float64 loses up to all digits of a well-conditioned product."""
    rng = np.random.default_rng(seed)
    T, n = 12, 4
    M = rng.uniform(-1, 1, (T, n, n)) / (4 * n) * rng.choice([0, 1e-3, 1], (T, n, n))
    J = rng.choice([1, 0.5, 2.0**-20, 2.0**-60], (T, n))[:, :, None] * (2 * np.eye(n) + M)
    if transposed:
        J = J[::-1].swapaxes(1, 2)
    ln_s, error = log_singular_values(J, return_error=True)
    wrong = np.abs(ln_s - np.array([reference.exact_log_singular_values(J[t:], 2400) for t in range(T)]))
    assert wrong.max() < PROMISE
    assert (wrong <= 30 * error + PROMISE / 10).all()

from __future__ import annotations

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma, polygamma

from gradlab.attractor import entropy_rate, kaplan_yorke_dimension
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


# --- Strides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in cases.PRODUCTS if name != "tanh gain 12"])
def test_the_stride_chosen_keeps_the_exponents(name: str) -> None:
    J = cases.PRODUCTS[name]()
    exact, chosen = (lyapunov_exponents(J, stride=stride) for stride in (1, None))
    # a block moves ln R_ii by at most ε·2^24 = 4e-9 times the norm of a few roundings, an exponent by no more
    np.testing.assert_allclose(chosen.exponents, exact.exponents, rtol=0, atol=1e-8)
    assert chosen.history.shape == exact.history.shape


@pytest.mark.parametrize("stride", [1, None])
def test_saturated_units_are_right_at_any_stride(stride: int | None) -> None:
    J = cases.tanh_net(12, 100, 12.0, 3, noise=3.0)
    total = np.linalg.slogdet(J / np.abs(J).max(axis=2, keepdims=True))[1] + np.log(np.abs(J).max(axis=2)).sum(axis=1)
    # Σ λ_i = mean ln|det J|, which LU gives row by row: rounding of n values up to 60 in size, and ε·κ of the rows
    np.testing.assert_allclose(lyapunov_exponents(J, stride=stride).exponents.sum(), total.mean(), rtol=1e-11)


@pytest.mark.filterwarnings("ignore:directions grow apart:RuntimeWarning")
@pytest.mark.parametrize("stride", [1, 3, 8, None])
def test_dead_units_are_found_at_any_stride(stride: int | None) -> None:
    J = cases.relu_net(12, 200, 1.4, 0)
    dead = (~J.any(axis=2)).sum(axis=1).max()
    exponents = lyapunov_exponents(J, stride=stride).exponents
    assert np.isneginf(exponents).sum() == dead
    alive = np.isfinite(exponents)
    exact = lyapunov_exponents(J, stride=1).exponents
    np.testing.assert_allclose(exponents[alive], exact[alive], atol=1e-3 if stride == 8 else 1e-8)


def test_a_stride_that_is_too_long_says_so() -> None:
    J = cases.ginibre(8, 200, 0)
    with pytest.warns(RuntimeWarning, match="leave stride out"):
        lyapunov_exponents(J, stride=40)
    short = lyapunov_exponents(J, stride=2).exponents
    np.testing.assert_allclose(short, lyapunov_exponents(J, stride=1).exponents, atol=1e-8)


def test_steps_too_large_for_a_block_fall_back_to_single_ones() -> None:
    J = 1e200 * cases.ginibre(4, 30, 0)  # two of them overflow
    shifted = lyapunov_exponents(cases.ginibre(4, 30, 0), stride=1).exponents + 200 * np.log(10)
    np.testing.assert_allclose(lyapunov_exponents(J).exponents, shifted, rtol=1e-13)


@pytest.mark.parametrize("sizes", [(100,), (50, 50), (1, 2, 97), (30, 70)])
def test_chunks_give_what_the_whole_gives(sizes: tuple[int, ...]) -> None:
    J = np.stack([cases.tanh_net(6, 100, 1.5, seed) for seed in range(3)])
    whole = lyapunov_exponents(J, 4, 10)
    parts = np.split(J, np.cumsum(sizes)[:-1], axis=1)
    streamed = lyapunov_exponents(iter(parts), 4, 10)
    # blocks end where chunks do, so that the strides differ: 1e-8, as above
    np.testing.assert_allclose(streamed.exponents, whole.exponents, atol=1e-8)
    assert streamed.history.shape == whole.history.shape


def test_bad_chunks() -> None:
    with pytest.raises(ValueError, match="empty iterator"):
        lyapunov_exponents(iter([]))
    with pytest.raises(ValueError, match=r"same batch and n, got shape \(1, 4, 2, 2\) after \(1, 4, 3, 3\)"):
        lyapunov_exponents(iter([np.ones((4, 3, 3)) + np.eye(3), np.ones((4, 2, 2)) + np.eye(2)]))
    with pytest.raises(ValueError, match="discard must be less than the 8 steps of J, got 8"):
        lyapunov_exponents(iter([cases.ginibre(3, 4, 0), cases.ginibre(3, 4, 1)]), discard=8)


# --- Pooling, dimension, entropy ---------------------------------------------------------------------------------


def test_both_pooled_errors_are_the_exact_one() -> None:
    n, N, B = 3, 400, 60
    J = np.random.default_rng(0).standard_normal((B, N, n, n)) / np.sqrt(n)
    pooled = lyapunov_exponents(J, discard=20).pooled()
    expected = np.sqrt(0.25 * polygamma(1, (n - np.arange(n)) / 2) / (B * (N - 20)))  # Newman 1986
    # over time: 60·29 degrees of freedom, 1.7 %, and 3 % for steps that share a QR; between sequences: 59, 9 %; 4 σ
    np.testing.assert_allclose(pooled.standard_error_time, expected, rtol=0.1)
    np.testing.assert_allclose(pooled.standard_error_batch, expected, rtol=0.37)
    assert (np.abs(pooled.exponents - ginibre_exponents(n)) < 4 * expected).all()


def test_sequences_of_their_own_show_in_the_error_over_the_batch() -> None:
    J = np.array([0.5, 1.0, 2.0])[:, None, None, None] * cases.ginibre(2, 300, 0)
    pooled = lyapunov_exponents(J).pooled()
    assert (pooled.standard_error_batch > 3 * pooled.standard_error_time).all()
    # the offsets −ln 2, 0, ln 2 have the standard deviation ln 2; the random frames differ, by O(1)/300
    np.testing.assert_allclose(pooled.standard_error_batch, np.log(2) / np.sqrt(3), rtol=0.02)
    assert np.isnan(lyapunov_exponents(J[:1]).pooled().standard_error_batch).all()
    with pytest.raises(ValueError, match=r"J must be \[batch, time, n, n\]"):
        lyapunov_exponents(J[0]).pooled()


@pytest.mark.parametrize(
    ("exponents", "n", "dimension", "entropy"),
    [
        ([0.906, 0.0, -14.572], None, 2 + 0.906 / 14.572, 0.906),  # Lorenz
        ([0.419, -1.623], None, 1 + 0.419 / 1.623, 0.419),  # Hénon
        ([-0.1, -0.2], None, 0.0, 0.0),  # a fixed point
        ([0.0, -1.0], None, 1.0, 0.0),  # a cycle
        ([0.3, 0.1], None, 2.0, 0.4),  # everything grows
        ([0.3, -0.3], None, 2.0, 0.3),  # volume is kept
        ([0.3, -np.inf], None, 1.0, 0.3),  # a dead unit
        ([-np.inf, -np.inf], None, 0.0, 0.0),
        ([0.3, 0.1], 5, np.nan, np.nan),  # not enough of them
        ([0.3, -0.1], 5, np.nan, 0.3),
        ([0.3, -0.4], 5, 1.75, 0.3),
    ],
)
def test_dimension_and_entropy(exponents: list[float], n: int | None, dimension: float, entropy: float) -> None:
    np.testing.assert_allclose(kaplan_yorke_dimension(exponents, n), dimension, rtol=1e-13)
    np.testing.assert_allclose(entropy_rate(exponents, n), entropy, rtol=1e-13)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=1, max_size=6))
def test_dimension_is_where_the_interpolated_sum_crosses_zero(values: list[float]) -> None:
    exponents = np.sort(values)[::-1]
    dimension = float(kaplan_yorke_dimension(exponents))
    assert 0 <= dimension <= len(values)
    sums = np.concatenate([[0.0], np.cumsum(exponents)])
    if 0 < dimension < len(values):
        # the slope of the sum is at most 3, and so is the rounding of D multiplied; slopes near 0 are ruled out below
        if np.abs(exponents).min() > 1e-3:
            np.testing.assert_allclose(np.interp(dimension, np.arange(len(sums)), sums), 0.0, atol=1e-12)
    elif dimension:
        assert sums[-1] >= 0
    assert float(entropy_rate(exponents)) == pytest.approx(max(sums), rel=1e-14)


def test_properties_of_a_result() -> None:
    J = np.stack([cases.tanh_net(8, 300, 2.0, seed) for seed in range(2)])
    every, few = lyapunov_exponents(J), lyapunov_exponents(J, 2)
    assert every.state_size == few.state_size == 8
    np.testing.assert_array_equal(every.kaplan_yorke_dimension, kaplan_yorke_dimension(every.exponents))
    np.testing.assert_array_equal(every.entropy_rate, entropy_rate(every.exponents))
    assert np.isnan(lyapunov_exponents(2.0 * np.eye(3)[None].repeat(9, 0), 2).kaplan_yorke_dimension)
    assert lyapunov_exponents(J[0]).kaplan_yorke_dimension.shape == ()
    assert (few.entropy_rate <= every.entropy_rate + 1e-9).all() or np.isnan(few.entropy_rate).any()


@pytest.mark.parametrize(
    ("exponents", "n", "says"),
    [
        ([0.1, 0.2], None, "descend"),
        ([], None, "k ≥ 1"),
        (0.5, None, "k ≥ 1"),
        ([np.nan], None, "finite"),
        ([np.inf], None, "finite"),
        ([0.2, 0.1], 1, "at most state_size = 1"),
    ],
)
def test_bad_exponents(exponents: list[float], n: int | None, says: str) -> None:
    for function in (kaplan_yorke_dimension, entropy_rate):
        with pytest.raises(ValueError, match=says):
            function(exponents, n)


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
        ({"stride": 0}, ValueError, "stride must be at least 1"),
        ({"stride": 2.5}, TypeError, "stride must be a positive integer"),
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


@pytest.mark.parametrize("stride", [None, 1, 4])
def test_a_step_in_which_everything_dies_within_a_block(stride: int | None) -> None:
    J = np.random.default_rng(0).standard_normal((200, 6, 6))
    J[5:14] = 0.0  # before and after what is discarded, where the frame is filled up again and a block is long
    assert np.isneginf(lyapunov_exponents(J, discard=10, stride=stride).exponents).all()
    assert np.isfinite(lyapunov_exponents(J, discard=14, stride=stride).exponents).all()


def test_exponents_that_rounding_has_changed_are_announced() -> None:
    # graded by columns: a dense frame mixes the columns, and what is 1e-30 of the others is gone
    J = np.random.default_rng(0).standard_normal((50, 4, 4)) * 10.0 ** np.array([0, -4, -8, -12])
    with pytest.warns(RuntimeWarning, match=r"miss the mean of ln\|det J\|"):
        lyapunov_exponents(J)

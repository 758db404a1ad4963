from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.bounds import chain, eigenvalue_sums, induced_norm_bound, leading_sums, leading_sums_at_split
from tests import cases
from tests.reference import bits_needed, exact_log_entries, exact_log_singular_values
from tests.rounding import EPS, allowance, exact, jacobians, lower_allowance
from tests.strategies import networks

quick = settings(deadline=None, max_examples=120)


# --- Other induced norms (A1) ------------------------------------------------------------------------------------


@quick
@given(networks(), st.sampled_from([1, 2, np.inf]))
def test_no_induced_norm_is_crossed(net, order):
    J = jacobians(*net)
    entries = [exact_log_entries(J[t:]) for t in range(len(J))]
    if order == 2:
        truth = exact(J)[:, 0]
    else:
        with np.errstate(divide="ignore"):
            truth = np.array([np.log(np.exp(L).sum(axis=0 if order == 1 else 1).max()) for L in entries])
    bound = induced_norm_bound(J, order)
    assert (truth <= bound + allowance(J, bound, truth)).all()


def test_induced_norms_are_attained_and_batched():
    """Non-negative matrices with equal row sums: the vector of ones is stretched by all of it."""
    J = np.array([[[0.5, 1.0], [1.25, 0.25]], [[2.0, 0.0], [1.0, 1.0]]])
    np.testing.assert_allclose(np.exp(induced_norm_bound(J, np.inf)), [3, 2], rtol=8 * EPS)
    np.testing.assert_allclose(np.exp(induced_norm_bound(J.swapaxes(1, 2), 1)), [3, 2], rtol=8 * EPS)
    both = induced_norm_bound(np.stack([J, 2 * J]), np.inf, mask=[[True, False], [True, True]])
    np.testing.assert_allclose(np.exp(both), [[1.5, 1], [12, 4]], rtol=8 * EPS)
    np.testing.assert_array_equal(induced_norm_bound(J, 2), chain(J).step_norms)
    with pytest.raises(ValueError, match="order must be 1, 2 or infinity"):
        induced_norm_bound(J, 3)


# --- Horn (A4) ---------------------------------------------------------------------------------------------------


@quick
@given(networks(dead=False), st.booleans(), st.integers(0, 99))
def test_leading_sums_are_not_crossed_and_end_in_equality(net, kill, seed):
    W, phi = net
    if kill:
        rng = np.random.default_rng(seed)
        phi[rng.integers(len(phi)), rng.integers(len(W))] = 0
    J = jacobians(W, phi)
    truth, bound = np.cumsum(exact(J), axis=1), leading_sums(J)
    tol = len(W) * lower_allowance(W, J, bound, truth)
    assert not np.isnan(bound).any()
    assert (truth <= bound + tol).all()
    dead = np.array([(phi[t:] == 0).any() for t in range(len(phi))])
    np.testing.assert_array_equal(np.isneginf(bound[:, -1]), dead)
    np.testing.assert_array_equal(np.isneginf(truth[:, -1]), dead)
    np.testing.assert_allclose(bound[~dead, -1], truth[~dead, -1], atol=tol, rtol=0)


def test_leading_sums_are_attained_when_the_steps_share_their_singular_vectors():
    J = cases.symmetric(np.array([2.0, -1.0, 0.5, 1e-3]), 7, 0)
    expected = np.arange(7, 0, -1)[:, None] * np.cumsum(np.log([2, 1, 0.5, 1e-3]))
    # entries of V diag(λ) Vᵀ are off by ε of the largest, which the smallest value feels 2000 times
    np.testing.assert_allclose(leading_sums(J), expected, atol=7 * 40 * 2000 * EPS)
    np.testing.assert_array_equal(leading_sums(J)[:, 0], chain(J).step_norms)


def test_leading_sums_count_the_dead_units():
    J = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    J[0, 1, [0, 2]] = 0  # two rows
    J[1, 2, :, 3] = 0  # one column
    J[1, 0, 0] *= 1e-200
    dead = np.isneginf(leading_sums(J))
    assert dead[0].tolist() == [[False, False, True, True]] * 2 + [[False] * 4]
    assert dead[1].tolist() == [[False, False, False, True]] * 3
    masked = leading_sums(J, mask=[[True, False, True], [True] * 3])
    assert np.isfinite(masked[0]).all()
    np.testing.assert_allclose(masked[0, 0], leading_sums(J[0, [0, 2]])[0], rtol=8 * EPS)


def test_leading_sums_of_a_saturated_step():
    """Slopes over 60 orders times an orthogonal matrix: every value is wanted to its own accuracy."""
    Q = cases.random_orthogonal(5, np.random.default_rng(1))
    expected = -np.array([0, 15, 30, 45, 60]) * np.log(10)
    found = leading_sums((10.0 ** -np.array([45.0, 0, 60, 15, 30]))[None, :, None] * Q)
    np.testing.assert_allclose(found[0], np.cumsum(expected), atol=5 * (5 * 5 + 2 * 140) * EPS)


@quick
@given(networks(), st.integers(0, 3))
def test_sums_are_subadditive_over_a_split(net, split):
    J = jacobians(*net)
    s = min(split, len(J))
    identity = np.zeros(J.shape[-1])
    bits = bits_needed(J)  # for the halves, too: what counts as an exact zero depends on it
    early = exact_log_singular_values(J[:s], bits) if s else identity
    late = exact_log_singular_values(J[s:], bits) if s < len(J) else identity
    truth, bound = np.cumsum(exact_log_singular_values(J, bits)), leading_sums_at_split(early, late)
    live = np.isfinite(bound)
    # the oracle's values are right to ε of themselves, and n of them are added
    tol = 8 * J.shape[-1] * EPS * (1 + np.abs(np.where(live, early + late, 0)).max())
    tol += 8 * EPS * np.abs(np.where(live, bound, 0)).max()
    assert (truth <= bound + tol).all()
    if live[-1]:
        assert truth[-1] == pytest.approx(bound[-1], abs=tol)
    if s in (0, len(J)):
        np.testing.assert_allclose(bound[live], truth[live], atol=tol)


def test_split_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        leading_sums_at_split([1.0, 0.0], [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="late must descend"):
        leading_sums_at_split([1.0, 0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="early must be finite"):
        leading_sums_at_split([np.nan, 0.0], [0.0, 0.0])


# --- Weyl (A5) ---------------------------------------------------------------------------------------------------


def moved(J, ln_sigma):
    """How far ln σ_i can be moved by the rounding of a formed product and of LAPACK's eigenvalues on it [T, n].

    Both are the exact answer for P + E with ‖E‖ ≤ nε(k Π‖J_s‖_F + 10‖P‖_F), which moves σ_i by no more than ‖E‖.
    """
    n, k = J.shape[-1], np.arange(len(J), 0, -1)
    frobenius = np.cumprod(np.linalg.norm(J, axis=(1, 2))[::-1])[::-1]
    E = n * EPS * (k * frobenius + 10 * np.sqrt(n) * np.exp(ln_sigma[:, 0]))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # 0/0: a zero matrix has no rounding
        return np.nan_to_num(np.log1p(E[:, None] / np.exp(ln_sigma)), nan=0.0, posinf=np.inf)


@quick
@given(networks())
def test_eigenvalue_sums_are_not_crossed(net):
    W, phi = net
    J = jacobians(W, phi)
    truth = exact(J)
    sums = eigenvalue_sums(J).sums
    shift = np.cumsum(moved(J, truth), axis=1)
    known = ~np.isnan(sums)
    size = 1 + np.abs(np.where(np.isfinite(truth), truth, 0)).max()
    limit = np.cumsum(np.maximum(truth, -1e300), axis=1) + shift + 8 * len(W) * EPS * size
    assert (sums[known] <= limit[known]).all()


@pytest.mark.parametrize("seed", range(20))
def test_eigenvalue_sums_end_in_the_determinant(seed):
    J = np.random.default_rng(seed).standard_normal((4, 3, 3))
    truth, found = exact(J), eigenvalue_sums(J)
    shift = moved(J, truth).sum(axis=1)
    np.testing.assert_array_less(np.abs(found.sums[:, -1] - truth.sum(axis=1)), 2 * shift + 100 * EPS)
    assert (found.sums[:, :-1] <= np.cumsum(truth, axis=1)[:, :-1] + 2 * shift[:, None] + 100 * EPS).all()


def test_eigenvalue_sums_are_attained_by_normal_products():
    eigenvalues = np.array([1.5, -1.0, 0.75, 0.5])
    found = eigenvalue_sums(cases.symmetric(eigenvalues, 12, 3))
    lags = np.arange(12, 0, -1)[:, None]
    expected = lags * np.log(np.abs(eigenvalues))
    # λ_4/λ_1 = 3^-12 at the first lag: that many more roundings of ‖P‖
    tol = 12 * 4 * 10 * EPS * 3.0**12
    np.testing.assert_allclose(found.log_moduli, expected, atol=tol)
    np.testing.assert_allclose(found.sums, np.cumsum(expected, axis=1), atol=4 * tol)


def test_eigenvalues_that_rounding_made_are_left_out():
    """Smallest eigenvalues of a long product are noise of the size of ε‖P‖, far above the smallest singular values."""
    J = np.stack([cases.tanh_net(8, 40, 1.0, seed) for seed in range(4)])
    found, violations = eigenvalue_sums(J), 0
    for b in range(len(J)):
        truth = np.cumsum(exact_log_singular_values(J[b]))
        known = ~np.isnan(found.sums[b, 0])
        assert 1 <= known.sum() < 8
        # each value is at least 1000 times what rounding does to P, so right to a thousandth unless it is defective
        assert (found.sums[b, 0][known] <= truth[known] + 8e-3).all()
        naive = np.cumsum(np.log(np.sort(np.abs(np.linalg.eigvals(np.linalg.multi_dot(J[b][::-1])))))[::-1])
        violations += bool((naive > truth + 1).any())
    assert violations  # what the threshold is for


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_eigenvalue_sums_at_any_scale(scale):
    J = np.random.default_rng(1).standard_normal((2, 5, 3, 3))
    plain, scaled = eigenvalue_sums(J), eigenvalue_sums(scale * J, mask=[[True] * 5, [True, True, False, True, True]])
    k = np.arange(5, 0, -1)[:, None]
    # scaling is no power of two: one more rounding for each entry, in eigenvalues well separated
    np.testing.assert_allclose(scaled.log_moduli[0] - k * np.log(scale), plain.log_moduli[0], atol=1e-11)
    kept = eigenvalue_sums(J[1, [0, 1, 3, 4]]).log_moduli[0]
    np.testing.assert_allclose(scaled.log_moduli[1, 0] - 4 * np.log(scale), kept, atol=1e-11)


def test_eigenvalues_of_a_dead_network_are_not_known(recwarn):
    found = eigenvalue_sums(np.zeros((2, 3, 3)))
    assert np.isnan(found.sums).all()
    assert not recwarn.list


def test_eigenvalues_of_steps_that_cancel_are_left_out():
    """Two steps of norm 1 whose product has norm 1e-9: rounding is 1e-7 of it, far above 1e-10, and makes λ_2."""
    violations = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        U, V, X = (cases.random_orthogonal(2, rng) for _ in range(3))
        J = np.stack([np.outer(U[:, 0], V[0]), X @ np.diag([1e-9, 1.0]) @ U.T])  # P = J_2 J_1
        truth, sums = np.cumsum(exact_log_singular_values(J)), eigenvalue_sums(J).sums[0]
        # 1000 roundings of 1e-7 may hide λ_1, too, where V and X leave it small
        assert np.isnan(sums[0]) or sums[0] <= truth[0] + 1e-3
        assert np.isnan(sums[1])
        naive = np.log(np.abs(np.linalg.eigvals(J[1] @ J[0]))).sum()
        violations += bool(naive > truth[1] + 1)
    assert violations

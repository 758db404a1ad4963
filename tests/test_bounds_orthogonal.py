from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.bounds import chain, orthogonal_bound, soft_orthogonality
from tests import cases
from tests.rounding import EPS, allowance, exact, jacobians
from tests.strategies import SIZES, STEPS, slopes

quick = settings(deadline=None, max_examples=120)


@st.composite
def orthogonal_networks(draw):
    n, T = draw(SIZES), draw(STEPS)
    Q = cases.random_orthogonal(n, np.random.default_rng(draw(st.integers(0, 99))))
    return Q, draw(slopes((T, n)))


@quick
@given(orthogonal_networks())
def test_only_the_slopes_shrink_an_orthogonal_network(net):
    Q, phi = net
    J = jacobians(Q, phi)
    truth, bound = exact(J)[:, 0], orthogonal_bound(Q, phi)
    assert (truth <= bound + allowance(J, truth, bound)).all()
    assert (bound <= 0).all()  # |φ'| ≤ 1
    np.testing.assert_allclose(bound, chain(J, recurrent_matrix=Q, slopes=phi).slopes, atol=allowance(J, bound))


@quick
@given(orthogonal_networks())
def test_equal_slopes_attain_it(net):
    Q, phi = net
    phi = np.repeat(phi[:, :1], len(Q), axis=1)
    J = jacobians(Q, phi)
    truth, bound = exact(J), orthogonal_bound(Q, phi)
    live = np.isfinite(bound)
    np.testing.assert_array_equal(np.isneginf(truth).all(axis=1), ~live)
    np.testing.assert_allclose(truth[live], np.repeat(bound[live, None], len(Q), axis=1), atol=allowance(J, bound))


def test_batches_and_masks_of_an_orthogonal_network():
    Q = cases.random_orthogonal(3, np.random.default_rng(0))
    phi = np.random.default_rng(1).uniform(0.1, 1, (2, 4, 3))
    found = orthogonal_bound(Q, -phi, mask=[[True, False, True, True], [True] * 4])
    largest = np.log(phi.max(axis=2))
    largest[0, 1] = 0
    np.testing.assert_allclose(found, largest[:, ::-1].cumsum(axis=1)[:, ::-1], rtol=8 * EPS)


def test_a_matrix_that_is_not_orthogonal_is_refused():
    for W in (np.diag([1.0, 1 - 1e-6]), 1.5 * np.eye(2)):
        with pytest.raises(ValueError, match="recurrent_matrix must be orthogonal"):
            orthogonal_bound(W, np.ones((3, 2)))
    with pytest.raises(ValueError, match="one slope for each row"):
        orthogonal_bound(np.eye(2), np.ones((3, 4)))


@quick
@given(SIZES, st.integers(0, 99), st.floats(0, 1.5), st.sampled_from([0, 1, 2, 9]))
def test_powers_stay_in_the_soft_interval(n, seed, margin, k):
    rng = np.random.default_rng(seed)
    U, V = cases.random_orthogonal(n, rng), cases.random_orthogonal(n, rng)
    W = (U * (1 + margin * rng.uniform(-1, 1, n))) @ V
    soft = soft_orthogonality(W, k)
    assert soft.margin <= margin + 10 * n * EPS
    sigma = np.linalg.svd(np.linalg.matrix_power(W, k), compute_uv=False)
    tol = (k + 1) * 10 * n * EPS * (1 + margin) ** k  # of the power, absolute
    assert (np.exp(soft.lower) - tol <= sigma).all()
    assert (sigma <= np.exp(soft.upper) + tol).all()


@pytest.mark.parametrize("m", [-1.0, -0.25, 0.0, 0.5, 2.0])
def test_a_multiple_of_an_orthogonal_matrix_attains_an_end(m):
    W = (1 + m) * cases.random_orthogonal(4, np.random.default_rng(0))
    soft = soft_orthogonality(W, [0, 1, 20])
    assert soft.margin == pytest.approx(abs(m), abs=40 * EPS)
    expected = np.array([0.0, 1.0, 20.0]) * np.log1p(m) if m > -1 else np.array([0, -np.inf, -np.inf])
    if m == -1:
        assert soft.lower.tolist() == expected.tolist()
    elif m < 0:
        np.testing.assert_allclose(soft.lower, expected, atol=20 * 40 * EPS / (1 + m))
    else:
        np.testing.assert_allclose(soft.upper, expected, atol=20 * 40 * EPS)
    assert m < 1 or soft.lower[1:].tolist() == [-np.inf, -np.inf]

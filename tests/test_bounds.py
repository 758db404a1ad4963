from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradlab.bounds import (
    chain,
    gradient_sandwich,
    latching_certificate,
    latching_threshold,
    log_determinant,
    log_determinant_from_slopes,
    lower_end,
)
from tests.rounding import allowance, exact, jacobians, lower_allowance
from tests.strategies import networks

EPS = np.finfo(np.float64).eps
quick = settings(deadline=None, max_examples=150)


@pytest.fixture
def net():
    rng = np.random.default_rng(3)
    W = 1.3 * rng.standard_normal((5, 5)) / np.sqrt(5)
    phi = 1 / np.cosh(rng.standard_normal((2, 6, 5))) ** 2
    return W, phi, jacobians(W, phi)


# --- The chain (A1) ----------------------------------------------------------------------------------------------


def test_chain_is_tight_link_by_link_for_one_unit():
    w, phi = 1.7, np.array([[0.5], [0.25], [1.0]])
    links = chain(jacobians(np.array([[w]]), phi), recurrent_matrix=[[w]], slopes=phi, slope_supremum=1.0)
    steps = np.log(w * phi[:, 0])
    tol = 6 * EPS  # three terms below 2 in size
    np.testing.assert_allclose(links.log_step_norms, steps, atol=tol)
    np.testing.assert_allclose(links.step_norms, [steps.sum(), steps[1:].sum(), steps[2]], atol=tol)
    np.testing.assert_allclose(links.slopes, links.step_norms, atol=tol)
    np.testing.assert_allclose(links.promise, np.log(w) * np.array([3, 2, 1]), atol=tol)
    assert links.lags.tolist() == [3, 2, 1]


def test_orthogonal_steps_keep_the_norm():
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 6, 6)))[0]
    np.testing.assert_allclose(chain(Q).step_norms, 0, atol=40 * 10 * 6 * EPS)


@quick
@given(networks())
def test_no_link_of_the_chain_is_crossed(net):
    W, phi = net
    J = jacobians(W, phi)
    truth = exact(J)[:, 0]
    links = chain(J, recurrent_matrix=W, slopes=phi, slope_supremum=1.0)
    tol = allowance(J, links.step_norms, links.slopes, links.promise)
    assert links.slopes is not None
    assert links.promise is not None
    for tighter, looser in pairwise([truth, links.step_norms, links.slopes, links.promise]):
        assert not np.isnan(looser).any()
        assert (tighter <= looser + tol).all()


def test_spectral_radius_would_not_do():
    """ρ(W) = 0.5 < 1, and yet the product grows at first: the chain, not ρ, bounds it."""
    J = np.array([[[0.5, 9.0], [0.0, 0.5]]] * 3)
    truth = exact(J)[:, 0]
    assert (truth > 0).all()
    assert (truth <= chain(J).step_norms + allowance(J, truth)).all()


def test_batch_equals_one_by_one(net):
    W, phi, J = net
    both = chain(J, recurrent_matrix=W, slopes=phi, slope_supremum=1.0)
    for b in range(2):
        one = chain(J[b], recurrent_matrix=W, slopes=phi[b], slope_supremum=1.0)
        for name in ("step_norms", "slopes", "promise", "log_step_norms", "lags"):
            np.testing.assert_array_equal(getattr(both, name)[b], getattr(one, name))


def test_links_that_cannot_be_had_are_none(net):
    W, phi, J = net
    assert chain(J).slopes is None
    assert chain(J).promise is None
    assert chain(J, recurrent_matrix=W, slopes=phi).promise is None
    assert chain(J, recurrent_matrix=W, slope_supremum=1.0).slopes is None
    assert lower_end(J).slopes is None


@pytest.mark.parametrize("padding", ["front", "back", "middle"])
def test_masked_steps_are_the_identity(net, padding):
    W, phi, J = net
    T = J.shape[1]
    real = {"front": np.arange(T) >= 2, "back": np.arange(T) < 4, "middle": np.arange(T) % 2 == 0}[padding]
    mask = np.stack([real, np.ones(T, dtype=bool)])
    kept = np.flatnonzero(real)
    masked = chain(J, recurrent_matrix=W, slopes=phi, slope_supremum=1.0, mask=mask)
    short = chain(J[0, kept], recurrent_matrix=W, slopes=phi[0, kept], slope_supremum=1.0)
    for t in range(T):
        left = int(real[t:].sum())
        assert masked.lags[0, t] == left
        for name in ("step_norms", "slopes", "promise"):
            # the same terms in the same order, zeros between them: equal to the last bit
            assert getattr(masked, name)[0, t] == (getattr(short, name)[-left] if left else 0.0)
    low, low_short = lower_end(J, recurrent_matrix=W, slopes=phi, mask=mask), lower_end(J[0, kept])
    assert low.step_values[0, kept[0]] == low_short.step_values[0]
    assert log_determinant(J, mask=mask)[0, kept[0]] == log_determinant(J[0, kept])[0]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scale_only_adds_to_the_logarithms(net, scale):
    """J → cJ shifts every link by k ln c; the exponent is taken out before anything is squared."""
    _, _, J = net
    lags = np.arange(6, 0, -1)
    for bound in (lambda J: chain(J).step_norms, lambda J: lower_end(J).step_values):
        # the shift itself is ~2800 and carries ε of that per addition
        np.testing.assert_allclose(bound(scale * J) - lags * np.log(scale), bound(J), atol=6 * 2800 * 4 * EPS)
    # a determinant shifts n times as far
    np.testing.assert_allclose(
        log_determinant(scale * J) - 5 * lags * np.log(scale), log_determinant(J), atol=6 * 14000 * 4 * EPS
    )


def test_zero_jacobians_give_minus_infinity_without_a_warning(recwarn):
    J = np.ones((2, 4, 3, 3))
    J[:, 1] = 0
    links = chain(J, recurrent_matrix=np.ones((3, 3)), slopes=J[..., 0], slope_supremum=1.0)
    for link in (links.step_norms, links.slopes):
        assert np.isneginf(link[:, :2]).all()
        np.testing.assert_allclose(link[:, 2:], [np.log(3) * np.array([2, 1])] * 2, rtol=60 * EPS)
    nothing = chain(0 * J, recurrent_matrix=np.zeros((3, 3)), slopes=J[..., 0], slope_supremum=1.0)
    assert np.isneginf(nothing.slopes).all()
    assert np.isneginf(nothing.promise).all()
    assert np.isneginf(lower_end(J).step_values[:, :2]).all()
    assert np.isneginf(log_determinant(J)[:, :2]).all()
    ended = chain(0 * J, recurrent_matrix=np.zeros((3, 3)), slope_supremum=1.0, mask=[[True] * 3 + [False]] * 2)
    assert ended.promise[:, 3].tolist() == [0, 0]  # no step is left: the empty product
    assert not recwarn.list


def test_norms_that_overflow_have_a_logarithm():
    J = np.full((1, 2, 9, 9), 1.5e308)
    one = np.log(9) + np.log(1.5e308)
    np.testing.assert_allclose(chain(J).step_norms, [[2 * one, one]], rtol=20 * EPS)
    assert np.isneginf(lower_end(J).step_values).all()


def test_a_column_of_zeros_is_exactly_singular():
    """A dead unit of a network in its pre-activations, J = W diag(φ'): no rounding may stand in for 0."""
    rng = np.random.default_rng(0)
    J = rng.standard_normal((20, 5, 4, 4)) * 10.0 ** rng.integers(-20, 1, (20, 5, 4, 1))
    J[:, 3, :, 1] = 0
    dead = np.isneginf(lower_end(J).step_values)
    assert dead[:, :4].all()
    assert not dead[:, 4].any()


# --- The lower end (A2) and the determinant (A3) -----------------------------------------------------------------


@quick
@given(networks(dead=False))
def test_the_lower_end_is_not_crossed(net):
    W, phi = net
    J = jacobians(W, phi)
    truth = exact(J)[:, -1]
    low = lower_end(J, recurrent_matrix=W, slopes=phi)
    tol = lower_allowance(W, J, low.step_values, low.slopes)
    assert (truth >= low.step_values - tol).all()
    assert (low.step_values >= low.slopes - tol).all()


def test_smallest_values_survive_saturation():
    """σn of diag(φ') Q is wanted to its own accuracy when φ' spans 60 orders; LAPACK alone returns noise."""
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    J = (10.0 ** np.array([0, -15, -30, -45, -60]))[:, None] * Q
    # the rows are orthogonal up to nε, so the singular values are the slopes
    np.testing.assert_allclose(lower_end(J[None]).step_values, -60 * np.log(10), atol=60 * 5 * EPS + 140 * EPS)


@quick
@given(networks())
def test_singular_values_sum_to_the_determinant(net):
    W, phi = net
    J = jacobians(W, phi)
    total = exact(J).sum(axis=-1)
    from_J, from_slopes = log_determinant(J), log_determinant_from_slopes(W, phi)
    dead = np.array([(phi[t:] == 0).any() for t in range(len(J))])
    assert np.isneginf([total[dead], from_J[dead], from_slopes[dead]]).all()
    if dead.all():
        return
    total, from_J, from_slopes = total[~dead], from_J[~dead], from_slopes[~dead]
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    assume((norms > 0).all())  # a W that is singular by rounding alone has a determinant of any size
    condition = np.linalg.cond(W / norms)
    assume(condition < 1e8)
    tol = allowance(J, total, from_J) * (1 + len(W) * condition)
    np.testing.assert_allclose(from_J, total, atol=tol, rtol=0)
    np.testing.assert_allclose(from_slopes, total, atol=tol, rtol=0)


def test_determinant_of_a_dead_unit_is_zero(net):
    W, phi, _ = net
    phi = phi.copy()
    phi[0, 2, 4] = 0
    dead = np.isneginf(log_determinant(jacobians(W, phi)))
    assert dead[0].tolist() == [True, True, True, False, False, False]
    assert not dead[1].any()
    np.testing.assert_array_equal(np.isneginf(log_determinant_from_slopes(W, phi)), dead)
    np.testing.assert_array_equal(np.isneginf(lower_end(jacobians(W, phi)).step_values), dead)


# --- The gradient (A10) ------------------------------------------------------------------------------------------


@quick
@given(networks(), st.integers(0, 99))
def test_gradient_stays_in_its_interval(net, seed):
    W, phi = net
    J = jacobians(W, phi)
    g = np.random.default_rng(seed).standard_normal(len(W))
    lower, upper = gradient_sandwich(exact(J), np.log(np.linalg.norm(g)))
    vector, sizes = g, []
    for step in J[::-1]:
        vector = step.T @ vector
        sizes.append(np.linalg.norm(vector))
    sizes = np.array(sizes[::-1])
    # T products, each off by nε of |J|ᵀ|g|: an absolute error relative to the product of the steps' norms
    slack = 4 * len(J) * len(W) * EPS * np.exp(chain(np.abs(J)).step_norms) * np.linalg.norm(g)
    for bound, sign in ((lower, -1), (upper, 1)):
        logarithm = 2 * EPS * np.abs(np.where(np.isfinite(bound), bound, 0.0))  # what a logarithm's rounding costs
        assert (sign * (np.exp(bound) - sizes) >= -slack - logarithm * sizes).all()


def test_sandwich_is_attained_along_singular_vectors():
    lower, upper = gradient_sandwich(np.log([[[4.0, 0.25]]]), np.log([3.0]))
    np.testing.assert_allclose(np.exp([lower[0, 0], upper[0, 0]]), [0.75, 12], rtol=8 * EPS)


def test_sandwich_of_a_zero_gradient_is_minus_infinity():
    lower, upper = gradient_sandwich([[1.0, -np.inf]], -np.inf)
    assert np.isneginf([lower, upper]).all()


# --- Latching (A7) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "threshold"),
    [(1.25, 0.0778051693153440), (1.5, 0.207546455322030), (2, 0.532839975353552), (3, 1.30327390800259)],
)
def test_latching_thresholds_published_here(w, threshold):
    # 15 printed digits
    assert latching_threshold(w) == pytest.approx(threshold, rel=2e-15, abs=1e-15)


@pytest.mark.parametrize("w", [1.3, 2.0])
def test_threshold_is_where_the_sign_is_lost(w):
    """Started on the attractor and pushed steadily: just below u* the sign stays, just above it goes."""
    u = float(latching_threshold(w))

    def ends_at(push):
        a = 3.0 * w
        for _ in range(20000):  # just above u* the passage takes about π/√(1e-4) steps
            a = w * np.tanh(a) - push
        return a

    assert ends_at(u - 1e-4) > 0 > ends_at(u + 1e-4)


def test_threshold_is_smooth_where_its_two_formulas_meet():
    """Against s³ Σ 2(j+1)/(2j+3) s^{2j} with 60 terms, on both sides of s = 0.2 and down to w = 1 + 1e-12."""
    s = np.array([1e-6, 1e-3, 0.1, 0.199, 0.201, 0.3])
    series = s**3 * sum(2 * (j + 1) / (2 * j + 3) * s ** (2 * j) for j in range(60))
    w = 1 / (1 - s * s)
    recovered = np.sqrt((w - 1) / w)  # rounding of w, not of the function: ε/s² in s²
    np.testing.assert_allclose(latching_threshold(w), series * (recovered / s) ** 3, rtol=4 * EPS / 0.2**2)


def test_contracting_steps_are_certified_and_the_bound_holds():
    rng = np.random.default_rng(5)
    J = rng.standard_normal((3, 8, 4, 4))
    largest = np.linalg.norm(J, ord=2, axis=(-2, -1)).max(axis=1)
    J *= (np.array([0.9, 1.0, 1.1]) / largest)[:, None, None, None]
    c = latching_certificate(J)
    np.testing.assert_allclose(c.eta, [0.9, 1.0, 1.1], rtol=10 * 4 * EPS)
    assert c.certified.tolist() == [True, False, False]
    truth = np.array([exact(j)[:, 0] for j in J])
    assert (truth <= c.log_bound + allowance(J, c.log_bound, truth)).all()
    np.testing.assert_allclose(np.exp(c.log_bound[:, 0]), c.eta**8, rtol=8 * 10 * 4 * EPS)


def test_orthogonal_steps_are_not_certified_by_rounding():
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 1, 3, 3)))[0]
    assert (np.linalg.norm(Q, 2, axis=(-2, -1)) < 1).any()  # as LAPACK has it
    assert not latching_certificate(Q).certified.any()


def test_mask_leaves_the_expanding_step_out():
    J = np.array([0.5, 2.0, 0.5]).reshape(3, 1, 1)
    c = latching_certificate(J, mask=[True, False, True])
    assert (float(c.eta), bool(c.certified)) == (0.5, True)
    np.testing.assert_allclose(c.log_bound, np.log([0.25, 0.5, 0.5]), rtol=4 * EPS)
    nothing = latching_certificate(J, mask=[False] * 3)
    assert (float(nothing.eta), bool(nothing.certified)) == (1.0, False)
    assert nothing.log_bound.tolist() == [0, 0, 0]


# --- Bad inputs --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named(net):
    W, phi, J = net
    with pytest.raises(ValueError, match=r"recurrent_matrix must be \[5, 5\]"):
        chain(J, recurrent_matrix=np.eye(4))
    with pytest.raises(ValueError, match=r"slopes must be .*\(2, 6, 5\).* got shape \(6, 5\)"):
        chain(J, recurrent_matrix=W, slopes=phi[0])
    with pytest.raises(ValueError, match=r"above slope_supremum = 0\.25"):
        chain(J, recurrent_matrix=W, slopes=phi, slope_supremum=0.25)
    with pytest.raises(ValueError, match="slope_supremum must be positive"):
        chain(J, recurrent_matrix=W, slope_supremum=0.0)
    with pytest.raises(ValueError, match=r"mask must be .*\(2, 6\)"):
        chain(J, mask=np.ones((2, 5), dtype=bool))
    with pytest.raises(TypeError, match="True or False"):
        chain(J, mask=np.full((2, 6), 0.5))
    with pytest.raises(ValueError, match="slopes must be finite"):
        lower_end(J, recurrent_matrix=W, slopes=np.full_like(phi, np.nan))
    with pytest.raises(ValueError, match="slopes must be"):
        log_determinant_from_slopes(W, phi[..., :4])
    with pytest.raises(ValueError, match="step Jacobians"):
        latching_certificate(W)
    with pytest.raises(ValueError, match=r"got shapes \(2, 3, 4\) and \(3,\)"):
        gradient_sandwich(np.zeros((2, 3, 4)), np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        gradient_sandwich(np.full((3, 4), np.nan), 0.0)
    with pytest.raises(ValueError, match="greater than 1, got 1"):
        latching_threshold([2.0, 1.0])


def test_a_matrix_that_is_not_the_one_of_j_is_refused():
    J = np.repeat(2 * np.eye(2)[None], 3, axis=0)
    with pytest.raises(ValueError, match=r"do not belong to J: at batch 0, step 1"):
        chain(J, recurrent_matrix=np.eye(2), slopes=np.ones((3, 2)), slope_supremum=1.0)
    with pytest.raises(ValueError, match="do not belong to J"):
        chain(J, recurrent_matrix=np.eye(2), slope_supremum=1.0)


def test_determinants_do_not_feel_the_scale_of_a_row():
    J = np.random.default_rng(0).standard_normal((1, 4, 4, 4))
    shift = 4 * -1000 * np.log(2) * np.arange(4, 0, -1)
    # entries near 2^-1000 are normal numbers: scaling back by a power of two is exact
    np.testing.assert_allclose(log_determinant(np.ldexp(J, -1000)), log_determinant(J) + shift, rtol=20 * EPS)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from gradlab.bounds import (
    henrici_power_bound,
    kreiss_bounds,
    numerical_radius_power_bound,
    spectral_radius_power_bound,
    stein_power_bound,
)
from gradlab.bounds.powers import _kreiss_upper
from gradlab.spectrum import numerical_radius, recurrent_spectrum, spectral_radius
from tests import cases
from tests.rounding import EPS
from tests.strategies import recurrent_matrices

quick = settings(deadline=None, max_examples=80)
LAGS = np.arange(41)
INFLATION = 1 / np.cos(np.pi / 64)  # of the numerical radius, from its grid of angles
matrices = st.sampled_from([1, 2, 3, 4]).flatmap(recurrent_matrices)
UPPER = [
    numerical_radius_power_bound,
    henrici_power_bound,
    lambda W, lags: stein_power_bound(W, lags).log_bound,
]


def power_norms(W, lags=LAGS):
    """‖W^k‖₂ for k = 0, 1, …"""
    norms, power = [], np.eye(len(W))
    for _ in lags:
        norms.append(np.linalg.norm(power, 2))
        power = power @ W
    return np.array(norms)


def slack(W, lags=LAGS):
    """What rounding does to ‖W^k‖, to a power of a matrix near W: (k+1)·10nε·σ1^k, absolute."""
    return (lags + 1) * 10 * len(W) * EPS * np.linalg.norm(W, 2) ** lags


@quick
@given(matrices)
def test_powers_keep_to_their_bounds(W):
    truth, tol = power_norms(W), slack(W)
    assert (np.exp(spectral_radius_power_bound(W, LAGS)) <= truth * (1 + 1e-12) + tol).all()
    for bound in UPPER:
        with np.errstate(over="ignore"):
            limit = np.exp(bound(W, LAGS))
        assert not np.isnan(limit).any()
        assert (truth <= limit * (1 + 1e-12) + tol).all()  # a logarithm of 500 carries 500ε


@quick
@given(matrices, st.floats(0.05, 0.97))
def test_contracting_matrices_have_a_stein_metric(W, radius):
    """ρ made `radius`: certified, exact at k = 0 up to √κ, and falling with every step."""
    found = spectral_radius(W)
    W = W * (radius / found) if found > 1e-2 else W
    if spectral_radius(W) >= 0.98 or np.linalg.norm(W, 2) > 1e3:
        return
    bound = stein_power_bound(W, LAGS)
    assert bound.certified
    assert bound.condition >= 1
    assert bound.log_bound[0] == pytest.approx(0.5 * np.log(bound.condition), abs=1e-15)
    assert (np.diff(bound.log_bound) < 0).all()
    truth = power_norms(W)
    assert (truth <= np.exp(bound.log_bound) * (1 + 1e-12) + slack(W)).all()
    assert truth.max() <= np.sqrt(bound.condition) * (1 + 1e-12)


# --- Where they are attained -------------------------------------------------------------------------------------


def test_normal_matrices_attain_the_spectral_radius_and_henrici():
    W = cases.symmetric(np.array([0.9, -0.9, 0.5, 0.1]), 1, 0)[0]
    expected = LAGS * np.log(0.9)
    np.testing.assert_allclose(spectral_radius_power_bound(W, LAGS), expected, atol=40 * 10 * 4 * EPS)
    # the triangle of the Schur form holds rounding of nε‖W‖, counted with every C(k, j)
    np.testing.assert_allclose(henrici_power_bound(W, LAGS), expected, atol=40 * 20 * 4 * EPS)
    Q = 0.75 * cases.random_orthogonal(5, np.random.default_rng(0))
    np.testing.assert_allclose(stein_power_bound(Q, LAGS).log_bound, LAGS * np.log(0.75), atol=41 * 100 * 5 * EPS)


def test_henrici_is_attained_by_a_shift_and_by_a_block_of_two():
    """The shift: 1, 1, 1, 1, 0. Two units that feed forward: ‖[[0, c], [0, 0]]^k‖ = 1, c, 0."""
    shift = np.eye(4, k=1)
    assert henrici_power_bound(shift, np.arange(6)).tolist() == [0, 0, 0, 0, -np.inf, -np.inf]
    found = henrici_power_bound([[0.0, 7.0], [0.0, 0.0]], [0, 1, 2])
    np.testing.assert_allclose(np.exp(found), [1, 7, 0], rtol=8 * EPS)
    # a triangular block: ρ^k + kρ^{k−1}c
    block = henrici_power_bound([[0.5, 3.0], [0.0, 0.5]], LAGS)
    np.testing.assert_allclose(block, np.log(0.5**LAGS + LAGS * 3 * 0.5 ** (LAGS - 1.0)), atol=200 * EPS)


def test_the_numerical_radius_is_attained_up_to_its_inflation():
    bound = np.exp(numerical_radius_power_bound([[0.0, 2.0], [0.0, 0.0]], [0, 1]))
    assert bound[0] == pytest.approx(2)
    assert 2 <= bound[1] <= 2 * INFLATION * (1 + 40 * EPS)
    lower, upper = numerical_radius([[0.0, 2.0], [0.0, 0.0]])
    assert (lower, upper) == (pytest.approx(1), pytest.approx(INFLATION, rel=0.002))
    assert (lower, upper) == tuple(
        getattr(recurrent_spectrum([[0.0, 2.0], [0.0, 0.0]]), f"numerical_radius{end}") for end in ("", "_upper")
    )


def test_powers_of_zero():
    for bound in (spectral_radius_power_bound, *UPPER[:2]):
        found = bound(np.zeros((2, 2)), [[0, 1], [5, 0]])
        assert np.isneginf(found[[0, 1], [1, 0]]).all()
        assert np.isfinite(found[[0, 1], [0, 1]]).all()
    assert stein_power_bound(np.zeros((2, 2)), 3).log_bound < 3 / 2 * np.log(100 * EPS)


@pytest.mark.parametrize("W", [np.eye(2), [[1.0, 1.0], [0.0, 1.0]], [[1.5]], [[1 - 1e-16, 50.0], [0.0, 1 - 1e-16]]])
def test_stein_certifies_nothing_at_the_unit_circle(W):
    found = stein_power_bound(W, [0, 1])
    assert not found.certified
    assert found.condition == np.inf
    assert found.log_bound.tolist() == [np.inf, np.inf]


# --- Kreiss ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([1, 2, 3]).flatmap(recurrent_matrices), st.floats(0.2, 0.95))
def test_kreiss_interval_holds_the_constant_and_the_transient(W, radius):
    found = spectral_radius(W)
    W = W * (radius / found) if found > 0.1 else W / (1 + np.linalg.norm(W, 2))
    bounds = kreiss_bounds(W)
    rng = np.random.default_rng(0)
    z = (1 + np.exp(rng.uniform(-8, 4, 400))) * np.exp(1j * rng.uniform(0, np.pi, 400))
    sigma = np.linalg.svd(z[:, None, None] * np.eye(len(W)) - W, compute_uv=False)[:, -1]
    assert ((np.abs(z) - 1) / sigma).max() <= bounds.constant_upper * (1 + 1e-9)
    assert 1 <= bounds.constant_lower <= bounds.constant_upper
    peak = power_norms(W, np.arange(400)).max()
    assert bounds.constant_upper <= max(1.1 * bounds.constant_lower, peak) * (1 + 1e-9)
    assert bounds.transient_lower <= peak * (1 + 1e-9)  # 0.95^400 is over before
    assert peak <= bounds.transient_upper * (1 + 1e-9)
    assert bounds.transient_upper == pytest.approx(np.e * len(W) * bounds.constant_upper)


@pytest.mark.parametrize("c", [3.0, 10.0, 1e4])
def test_kreiss_constant_of_two_units_that_feed_forward(c):
    """(zI − W)^{-1} = [[1, c/z], [0, 1]]/z has the norm (s + √(s² + 4))/(2|z|) with s = c/|z|."""

    def quotient(log_d):
        r = 1 + np.exp(log_d)
        return (r - 1) / (2 * r) * (c / r + np.sqrt((c / r) ** 2 + 4))

    truth = -minimize_scalar(lambda x: -quotient(x), bounds=(-10, 20), method="bounded", options={"xatol": 1e-10}).fun
    bounds = kreiss_bounds([[0.0, c], [0.0, 0.0]])
    assert bounds.constant_lower == pytest.approx(truth, rel=1e-3)
    assert bounds.constant_lower <= truth * (1 + 1e-9)
    # K = 2500 would take too many cells: there the transient, c, bounds it
    assert truth <= bounds.constant_upper <= (1.1 * truth if c < 100 else c) * (1 + 1e-9)


@pytest.mark.parametrize("evaluations", [1, 10, 100, 1000, 100_000])
def test_cells_never_promise_too_little(evaluations):
    """The search for the upper value alone, told nothing of the constant, K = 2.6, and stopped at any point."""
    upper = _kreiss_upper(np.array([[0.0, 10.0], [0.0, 0.0]]), 10.0, 1.0, 0.1, evaluations)
    assert upper >= 2.6 * (1 - 1e-9)
    assert upper <= 1.1 * 2.6 * (1 + 1e-9) or evaluations < 100_000


def test_kreiss_without_a_transient():
    one = kreiss_bounds(cases.random_orthogonal(6, np.random.default_rng(0)))
    assert (one.constant_lower, one.constant_upper) == (1, 1)
    for W in (np.diag([1.5, 0.0]), [[1.0, 1.0], [0.0, 1.0]]):
        assert kreiss_bounds(W).constant_upper == np.inf
    assert kreiss_bounds(np.diag([1.5, 0.0])).constant_lower == np.inf


def test_kreiss_interval_is_only_wider_when_it_stops_early():
    W = 0.9 * np.array([[0.0, 6.0], [-0.2, 0.3]])
    full, early = kreiss_bounds(W), kreiss_bounds(W, evaluations=30)
    assert early.constant_lower == full.constant_lower
    assert early.constant_upper >= full.constant_upper


# --- Bad inputs --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    for bound in (spectral_radius_power_bound, *UPPER):
        with pytest.raises(ValueError, match="W must be a square matrix"):
            bound(np.ones((2, 3)), 1)
        with pytest.raises(TypeError, match="lags must be integers"):
            bound(np.eye(2), 0.5)
        with pytest.raises(ValueError, match="lags must not be negative"):
            bound(np.eye(2), -1)
    with pytest.raises(ValueError, match="W must be finite"):
        kreiss_bounds([[np.inf]])
    with pytest.raises(ValueError, match="precision and evaluations must be positive"):
        kreiss_bounds([[2.0]], precision=0.0)
    with pytest.raises(ValueError, match="W must be a square matrix"):
        numerical_radius(np.ones(3))

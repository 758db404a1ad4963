"""Properties that every network has, whatever its cell: rigorous bounds along runs of real cells, and exact cases."""

from __future__ import annotations

import numpy as np
import pytest
from cell_cases import BATCH, STEPS, random_trajectory
from hypothesis import assume, given, settings

import gradlab as gl
from gradlab import bounds
from tests import cases
from tests.rounding import EPS, allowance, exact
from tests.strategies import cell_runs


@settings(deadline=None, max_examples=60)
@given(cell_runs(BATCH, STEPS))
def test_no_bound_of_a_real_cell_is_crossed(run):
    """The Jacobians as they are, rounded: bounds are of their exact product, by ball arithmetic, under the mask."""
    J, mask = gl.step_jacobians(random_trajectory(**run)), run["mask"]
    links, latched = bounds.chain(J, mask=mask), bounds.latching_certificate(J, mask)
    column_sums = bounds.induced_norm_bound(J, 1, mask=mask)
    n = J.shape[-1]
    for b in range(len(J)):
        kept = np.flatnonzero(mask[b])
        assert (links.lags[b] == [mask[b, t:].sum() for t in range(J.shape[1])]).all()
        truth = exact(J[b, kept])[:, 0]
        step_norms, latching = links.step_norms[b, kept], latched.log_bound[b, kept]
        tol = allowance(J[b], truth, step_norms, latching, column_sums[b])
        assert (truth <= step_norms + tol).all()
        assert (step_norms <= latching + tol).all()
        assert (truth <= column_sums[b, kept] + 0.5 * np.log(n) + tol).all()
        g = np.linspace(-1.0, 1.0, n) + 0.1
        came, size = np.array([g]), []
        for t in kept[::-1]:
            came = came @ J[b, t]
            size.append(np.log(max(np.linalg.norm(came), 1e-300)) - np.log(np.linalg.norm(g)))
        # n products in every entry of every step, relative to the norms
        assert (np.array(size[::-1]) <= np.maximum(step_norms, np.log(1e-300)) + tol + len(kept) * n * n * EPS).all()


@settings(deadline=None, max_examples=60)
@given(cell_runs(BATCH, STEPS))
def test_sums_of_a_real_cell_are_not_crossed(run):
    """Horn for every m, and the determinant at m = n, where a step's own values are known well enough."""
    J = gl.step_jacobians(random_trajectory(**run))
    n = J.shape[-1]
    for steps in [one[taken] for one, taken in zip(J, run["mask"], strict=True)]:
        norms = np.linalg.norm(steps, axis=-1, keepdims=True)
        assume((norms > 0).all())
        condition = np.linalg.cond(steps / norms).max()
        assume(condition < 1e6)
        values = exact(steps)
        truth, bound = np.cumsum(values, axis=1), bounds.leading_sums(steps)
        # a value of a step is off by 10nε times the condition of the step with its rows scaled to one (Jacobi), or by
        # 10⁴ where LAPACK's are taken; n values are added over T steps
        tol = n * allowance(steps, truth, bound) + len(steps) * n * 10 * n * EPS * max(n * condition, 1e4)
        assert (truth <= bound + tol).all()
        np.testing.assert_allclose(bound[:, -1], truth[:, -1], atol=tol)
        np.testing.assert_allclose(bounds.log_determinant(steps), truth[:, -1], atol=tol)


# --- Exact cases (theory, C) -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "slope"), [(1.5, 0.394313025498602497), (2.0, 0.166372087751674327), (3.0, 0.0305128460478683121)]
)
def test_a_latched_unit_forgets_at_the_slope_of_its_fixed_point(w, slope):
    """h = tanh(w h): every bound of ∂h_T/∂h_t is slope^k there, since one unit leaves no room."""
    h = 1.0
    for _ in range(200):
        h = np.tanh(w * h)
    T = 50
    phi = np.full((T, 1), 1 / np.cosh(w * h) ** 2)
    J = w * phi[:, :, None]
    expected = np.arange(T, 0, -1) * np.log(slope)
    # the slope is 1 − h², to 4ε of 1, and h is near 1: 1/slope of it in the logarithm
    tol = T * 8 * EPS / slope + T * (10 + 2 * T * abs(np.log(slope))) * EPS
    links = bounds.chain(J, recurrent_matrix=[[w]], slopes=phi, slope_supremum=1.0)
    found = [links.step_norms, links.slopes, bounds.lower_end(J).step_values, bounds.log_determinant(J)]
    found += [bounds.latching_certificate(J).log_bound, bounds.leading_sums(J)[:, 0]]
    for values in found:
        np.testing.assert_allclose(values, expected, atol=tol, rtol=0)
    assert bounds.latching_certificate(J).certified
    assert bounds.latching_threshold(w) > 0


@pytest.mark.parametrize(
    ("eigenvalue", "expected"),
    [
        (0.95, (-44.3342449116820676, -58.2523438634189993)),
        (0.9, (-98.347399053187322, -112.373632262465280)),
        (1.0, (np.arcsinh(500), -np.arcsinh(500))),
    ],
)
def test_a_jordan_block_after_a_thousand_steps_keeps_to_its_bounds(eigenvalue, expected):
    """σ_1 and σ_2 of [[λ, 1], [0, λ]]^1000 by formula, against each statement that speaks of them."""
    T, W = 1000, eigenvalue * np.eye(2) + np.eye(2, k=1)
    J = cases.jordan(eigenvalue, 2, T)
    first, second = expected
    tol = T * 30 * EPS * (1 + abs(first) + abs(second))
    sums = bounds.leading_sums(J)[0]
    assert first <= sums[0] + tol
    assert first + second == pytest.approx(sums[1], abs=tol)
    assert first + second == pytest.approx(float(bounds.log_determinant(J)[0]), abs=tol)
    assert bounds.lower_end(J).step_values[0] - tol <= second
    # the eigenvalue is as LAPACK has it for a defective matrix: exact for one in its Schur form
    assert bounds.spectral_radius_power_bound(W, T) <= first + tol
    for upper in (bounds.henrici_power_bound, bounds.numerical_radius_power_bound):
        assert first <= upper(W, T) + tol
    assert bounds.dominance_certificate(W, T, slope_supremum=1.0).log_bound == pytest.approx(first, abs=tol)
    # Henrici's sum is that of the entries' sizes: above σ_1 by less than ln 2
    assert bounds.henrici_power_bound(W, T) - first < np.log(2)

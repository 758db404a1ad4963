from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradlab.bounds import clip_gradient, norm_preservation_penalty
from tests import cases
from tests.rounding import EPS, jacobians
from tests.strategies import entries, networks

quick = settings(deadline=None, max_examples=120)
gradients = arrays(np.float64, st.sampled_from([(1,), (3,), (2, 4)]), elements=entries(10.0))


# --- Clipping (A13) ----------------------------------------------------------------------------------------------


@quick
@given(gradients, st.sampled_from([1e-3, 0.5, 1.0, 20.0]))
def test_clipping_bounds_the_norm_keeps_the_direction_and_is_idempotent(g, threshold):
    clipped = clip_gradient(g, threshold)
    n = g.shape[-1]
    before, after = np.linalg.norm(g, axis=-1), np.linalg.norm(clipped, axis=-1)
    assert (after <= threshold * (1 + 4 * n * EPS)).all()  # n squares, a root, a quotient, a product
    small = before <= threshold * (1 - 4 * n * EPS)
    np.testing.assert_array_equal(clipped[small], g[small])
    scale = np.minimum(1, threshold / np.maximum(before, 1e-300))[..., None]
    np.testing.assert_allclose(clipped, scale * g, rtol=8 * n * EPS)
    np.testing.assert_allclose(clip_gradient(clipped, threshold), clipped, rtol=8 * n * EPS)


def test_clipping_attains_the_threshold_and_never_overflows():
    assert np.linalg.norm(clip_gradient([3.0, 4.0], 2.0)) == pytest.approx(2, rel=4 * EPS)
    np.testing.assert_allclose(clip_gradient([3e300, 4e300], 1.0), [0.6, 0.8], rtol=4 * EPS)
    np.testing.assert_allclose(clip_gradient([1.5e308, 1.5e308], 1.0), [0.5**0.5] * 2, rtol=4 * EPS)
    np.testing.assert_allclose(clip_gradient([3e-200, 4e-200], 1e-200), [6e-201, 8e-201], rtol=4 * EPS)
    assert clip_gradient(np.zeros((2, 3)), 1.0).tolist() == [[0] * 3] * 2


def test_bad_clipping_is_refused():
    for threshold in (0.0, -1.0, np.inf, np.nan, [1.0, 2.0]):
        with pytest.raises(ValueError, match="threshold must be a single number"):
            clip_gradient([1.0], threshold)
    with pytest.raises(ValueError, match="got a scalar"):
        clip_gradient(1.0, 1.0)
    with pytest.raises(ValueError, match="gradient must be finite"):
        clip_gradient([np.inf], 1.0)


# --- Ω (A13) -----------------------------------------------------------------------------------------------------


def naive(J, g):
    return sum((np.linalg.norm(g[s + 1] @ J[s]) / np.linalg.norm(g[s + 1]) - 1) ** 2 for s in range(len(J)))


@quick
@given(networks(), st.integers(0, 99))
def test_penalty_is_its_definition_and_never_negative(net, seed):
    J = jacobians(*net)
    g = np.random.default_rng(seed).standard_normal((len(J) + 1, J.shape[-1]))
    found = norm_preservation_penalty(J, g)
    assert found >= 0
    size = 1 + np.abs(J).sum()
    assert found == pytest.approx(naive(J, g), rel=1e-12, abs=20 * J.size * EPS * size**2)
    scaled = norm_preservation_penalty(J, g * 10.0 ** np.arange(-150, 150, 60)[: len(g), None])
    assert scaled == pytest.approx(found, rel=1e-12, abs=20 * J.size * EPS * size**2)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_an_orthogonal_linear_network_costs_nothing(n):
    rng = np.random.default_rng(n)
    J = np.stack([cases.orthogonal(n, 30, seed) for seed in range(3)])
    found = norm_preservation_penalty(J, rng.standard_normal((3, 31, n)))
    assert (found <= 30 * (20 * n * EPS) ** 2).all()  # each ratio is 1 to 20nε
    np.testing.assert_allclose(norm_preservation_penalty(1.5 * J, rng.standard_normal((3, 31, n))), 30 / 4, rtol=1e-12)


def test_penalty_of_masked_steps_and_of_zero_gradients(recwarn):
    rng = np.random.default_rng(0)
    J, g = rng.standard_normal((2, 4, 3, 3)), rng.standard_normal((2, 5, 3))
    g[1, 2] = 0
    g[0, 0] = 0  # ∂L/∂h_0 is not asked for its direction
    found = norm_preservation_penalty(J, g)
    assert found[0] == pytest.approx(naive(J[0], g[0]))
    assert np.isnan(found[1])
    masked = norm_preservation_penalty(J, g, mask=[[True, True, False, True], [True, False, True, True]])
    assert masked[0] == pytest.approx(naive(J[0, [0, 1, 3]], g[0, [0, 1, 2, 4]]))
    assert np.isfinite(masked[1])
    assert not recwarn.list
    with pytest.raises(ValueError, match=r"gradients must be .* \(2, 5, 3\) like J, got shape \(2, 4, 3\)"):
        norm_preservation_penalty(J, g[:, 1:])

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.differences import directional_derivatives, rounding

EPS = 2.0**-52
seeds = st.integers(0, 2**32 - 1)


def derivatives(function, points, directions, seed=0, eps=EPS):
    return directional_derivatives(lambda h, _: function(h), points, directions, eps, np.random.default_rng(seed))


SMOOTH = {
    "linear": (lambda h, W: h @ W.T, lambda h, W: np.broadcast_to(W, (len(h), *W.shape))),
    "tanh": (lambda h, W: np.tanh(h @ W.T), lambda h, W: W / np.cosh(h @ W.T)[..., None] ** 2),
    "product": (lambda h, W: (h @ W.T) ** 3, lambda h, W: 3 * (h @ W.T)[..., None] ** 2 * W),
}


@pytest.mark.parametrize("name", SMOOTH)
@given(seed=seeds, scale=st.sampled_from([0.1, 1.0, 10.0]), n=st.sampled_from([1, 3]))
def test_the_bound_holds_and_is_small_where_the_function_is_smooth(name, seed, scale, n):
    function, jacobian = SMOOTH[name]
    rng = np.random.default_rng(seed)
    W, points, v = scale * rng.standard_normal((n, n)), rng.standard_normal((5, n)), rng.standard_normal((2, n))
    found = derivatives(lambda h: function(h, W), points, v, seed)
    expected = np.einsum("nij,kj->nki", jacobian(points, W), v)
    assert found.value.shape == (5, 2, n)
    assert (np.abs(found.value - expected).max(axis=(1, 2)) <= found.error).all()
    # rounding of the values over the spacing that truncation asks for, which is shorter the larger the weights
    size = max(1.0, np.abs(function(points, W)).max()) * max(1.0, scale * n) ** 3
    assert found.error.max() <= 1e-8 * size


@given(seed=seeds, exponent=st.floats(-19.0, 0.0), n=st.sampled_from([1, 4]))
def test_no_slope_beside_a_kink_is_called_wrong(seed, exponent, n):
    """ReLUs mixed by a readout, each with its kink at a distance of its own; some at the point itself."""
    rng = np.random.default_rng(seed)
    W, V = rng.standard_normal((2, n, n))
    points = rng.standard_normal((1, n))
    distance = rng.choice([-1.0, 1.0], n) * 2.0**exponent * rng.choice([0.0, 1.0, 3.0], n)
    offset = distance - points @ W.T  # the pre-activations at the point are the distances, to rounding
    found = derivatives(lambda h: np.maximum(h @ W.T + offset, 0.0) @ V.T, points, np.eye(n), seed)
    slope = (points @ W.T + offset > 0.0)[0]  # of relu, 0 at its kink
    expected = V @ (slope[:, None] * W)
    wrong = np.abs(found.value[0].T - expected).max()
    # one kink is bounded; the jumps of several at one spot may cancel in the bound, which still says to leave it out
    assert wrong <= found.error[0] or (n > 1 and found.error[0] > 0.01 * wrong)


@given(seed=seeds)
def test_a_point_away_from_the_kink_is_resolved(seed):
    h = np.random.default_rng(seed).uniform(2.0**-12, 1.0, (6, 1))
    found = derivatives(lambda h: np.maximum(h, 0.0), h, np.eye(1), seed)
    assert (np.abs(found.value[:, 0, 0] - 1.0) <= found.error).all()
    assert found.error.max() < 1e-9


def test_at_the_kink_the_bound_holds_both_slopes_and_says_so():
    found = derivatives(np.abs, np.zeros((1, 1)), np.eye(1))
    assert found.value[0, 0, 0] == 0.0
    assert 1.0 <= found.error[0] < 1.001


@pytest.mark.parametrize(("dtype", "eps"), [(np.float64, 2.0**-52), (np.float32, 2.0**-23)])
def test_rounding_is_seen_in_the_values(dtype, eps):
    """tanh of a sum with cancellation: the sum errs by about an ulp of its largest term, 100."""

    def function(h):
        h = h.astype(dtype)
        return np.tanh(dtype(100.0) * h - dtype(99.0) * h).astype(np.float64)

    points = np.linspace(0.5, 0.9, 20)[:, None]
    noise = rounding(lambda h, _: function(h), points, eps, np.random.default_rng(0))
    exact = np.tanh(points.astype(dtype).astype(np.float64))
    assert (np.abs(function(points) - exact)[:, 0] <= noise + 30 * eps).all()
    assert np.median(noise) > 5 * eps
    assert noise.max() < 1000 * eps


def test_a_function_that_is_not_finite_nearby_bounds_nothing():
    with np.errstate(invalid="ignore"):
        found = derivatives(lambda h: np.sqrt(h), np.array([[-1.0], [0.5], [2.0**-17]]), np.eye(1))
    assert found.error[0] == np.inf
    assert found.error[1] < 1e-8
    assert np.abs(found.value[1, 0, 0] - 0.5 / np.sqrt(0.5)) <= found.error[1]
    assert found.error[2] > 1e-3  # a step of half the distance to the singularity is the best there is

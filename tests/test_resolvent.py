from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.resolvent import numerical_range, smallest_singular_values
from gradlab.spectrum import recurrent_spectrum
from tests.strategies import SIZES, recurrent_matrices

EPS = np.finfo(np.float64).eps
quick = settings(deadline=None, max_examples=40)
matrices = SIZES.flatmap(recurrent_matrices)


def direct(W, z):
    return np.linalg.svd(z[..., None, None] * np.eye(len(W)) - W, compute_uv=False)[..., -1]


@quick
@given(matrices, st.integers(0, 99))
def test_agrees_with_the_singular_value_decomposition(W, seed):
    rng = np.random.default_rng(seed)
    z = 3 * (rng.standard_normal((3, 5)) + 1j * rng.standard_normal((3, 5)))
    # backward errors of the Schur form and of the solves, nε(‖W‖ + |z|) each; the Ritz values, by their docstring
    atol = 40 * len(W) * EPS * (np.linalg.norm(W, 2) + np.abs(z).max())
    found = smallest_singular_values(W, z)
    assert found.shape == z.shape
    np.testing.assert_allclose(found, direct(W, z), rtol=1e-3, atol=atol)


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "triangular"])
def test_the_iteration_converges_where_it_stops_short_of_n(n, kind):
    rng = np.random.default_rng(n)
    W = rng.standard_normal((n, n)) / np.sqrt(n)
    W = {"gaussian": W, "orthogonal": np.linalg.qr(W)[0], "triangular": np.triu(3 * W)}[kind]
    x = np.linspace(-1.6, 1.6, 18)
    z = x[None, :] + 1j * np.linspace(0, 1.6, 9)[:, None]
    reference = direct(W, z)
    found = smallest_singular_values(W, z)
    good = reference > 1e3 * n * EPS * np.linalg.norm(W, 2)  # below, rounding decides
    assert good.mean() > 0.5
    np.testing.assert_allclose(found[good], reference[good], rtol=1e-3)


@quick
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6), st.floats(-3, 3), st.floats(-3, 3))
def test_of_a_normal_matrix_it_is_the_distance_to_the_spectrum(eigenvalues, x, y):
    z = complex(x, y)
    distance = min(abs(z - value) for value in eigenvalues)
    found = float(smallest_singular_values(np.diag(eigenvalues), z))
    assert found == pytest.approx(distance, rel=1e-3, abs=1e-13)


def test_jordan_block():
    """σ_min([[d, −1], [0, d]]) = (√(1 + 4|d|²) − 1)/2."""
    d = np.array([0.1, 0.5 + 0.5j, 3.0])
    found = smallest_singular_values([[0.5, 1.0], [0.0, 0.5]], 0.5 + d)
    np.testing.assert_allclose(found, (np.sqrt(1 + 4 * np.abs(d) ** 2) - 1) / 2, rtol=1e-12)


def test_an_eigenvalue_and_the_zero_matrix():
    assert smallest_singular_values([[0.5, 1.0], [0.0, 0.25]], [0.5, 0.25]).tolist() == [0, 0]
    np.testing.assert_allclose(smallest_singular_values(np.zeros((3, 3)), [0.0, 2j]), [0, 2], rtol=1e-12)


@quick
@given(matrices)
def test_the_numerical_range_reaches_the_numerical_radius_and_holds_the_eigenvalues(W):
    boundary, w = numerical_range(W), recurrent_spectrum(W)
    tol = 40 * len(W) * EPS * max(w.sigma_max, 1.0)
    assert np.abs(boundary).max() <= w.numerical_radius_upper + tol
    # a support line at 180 angles: the farthest point found lies in a direction at most π/360 off
    assert np.abs(boundary).max() >= w.numerical_radius * np.cos(np.pi / 360) - tol
    reach = 2 * w.sigma_max * EPS ** (1 / len(W)) + tol  # what eigenvalues of a defective block are off by
    for theta in np.linspace(0, 2 * np.pi, 16):
        turn = np.exp(-1j * theta)
        gap = w.sigma_max * (1 - np.cos(np.pi / 360))
        assert (turn * w.eigenvalues).real.max() <= (turn * boundary).real.max() + gap + reach


def test_shift_matrix_has_a_disc_for_its_numerical_range():
    np.testing.assert_allclose(np.abs(numerical_range(np.eye(5, k=1))), np.cos(np.pi / 6), rtol=1e-12)


def test_bad_arguments_are_explained():
    with pytest.raises(TypeError, match="points must be real or complex"):
        smallest_singular_values(np.eye(2), ["a"])
    with pytest.raises(ValueError, match="points must be finite, got 1"):
        smallest_singular_values(np.eye(2), [0.0, np.nan])
    with pytest.raises(ValueError, match="angles must be at least 2"):
        numerical_range(np.eye(2), 1)

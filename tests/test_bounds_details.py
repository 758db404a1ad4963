"""Exact cases and independent routes for what random networks seldom reach: the ends of certificates and searches."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab import bounds, predictions
from gradlab.bounds.powers import _kreiss_upper, _smallest_shifted
from tests import cases

EPS = np.finfo(float).eps


# --- Dominance ---------------------------------------------------------------------------------------------------


def test_dominance_at_any_shape_of_lags():
    W = np.array([[0.5, -2.0, 0.0], [0.0, 0.25, 1.0], [0.0, 0.0, 0.0]])
    lags = np.array([[3, 0], [1, 2]])
    found = bounds.dominance_certificate(W, lags, slope_supremum=0.5)
    for place in np.ndindex(2, 2):
        power = np.linalg.matrix_power(0.5 * np.abs(W), lags[place])
        assert found.log_bound[place] == pytest.approx(np.log(np.linalg.norm(power, 2)), abs=40 * EPS)
        entries = np.exp(bounds.dominating_entries(W, lags, slope_supremum=0.5)[place])
        np.testing.assert_allclose(entries, power, rtol=40 * EPS)
    none = bounds.dominance_certificate(np.eye(2, k=1), [0, 1, 2, 5], slope_supremum=3.0)
    np.testing.assert_allclose(none.log_bound, [0, np.log(3), -np.inf, -np.inf], rtol=8 * EPS)


def test_a_chain_of_strong_connections_is_certified_by_its_resolvent():
    """ρ = ½, but ones and Perron vector see a gain of 10⁵: only (I − A)⁻¹·1 shrinks in every entry."""
    W = 0.5 * np.eye(3) + 1e5 * np.eye(3, k=1)
    assert bounds.dominance_certificate(W, 1, slope_supremum=1.0).certified
    assert not bounds.dominance_certificate(W + 0.5 * np.eye(3), 1, slope_supremum=1.0).certified


@pytest.mark.parametrize("sizes", [[1.0, 1e3, 1e-3, 7.0], [1e-2, 1.0, 1e2, 10.0]])
def test_the_upper_value_is_sharp_however_the_units_are_scaled(sizes):
    """D⁻¹SD has the radius of S, and row sums of all sizes; the largest eigenvalue comes first, last and in between."""
    rng = np.random.default_rng(0)
    for shift in range(4):
        S = np.roll(np.roll(rng.uniform(0.1, 1.0, (4, 4)) + np.diag([9.0, 0, 0, 0]), shift, axis=0), shift, axis=1)
        radius = np.abs(np.linalg.eigvals(S)).max()
        D = np.array(sizes)
        found = bounds.dominance_certificate(S * D / D[:, None], 0, slope_supremum=0.5)
        # the Perron vector is moved by 1e-8 of its largest entry, in each of W and its transpose
        assert radius / 2 * (1 - 1e-12) <= found.upper <= radius / 2 * (1 + 1e-2)
        assert found.spectral_radius == pytest.approx(radius / 2, rel=1e-9)


# --- Orthogonality -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("excess", "taken"), [(12, True), (20, False), (-12, True), (-20, False)])
def test_orthogonal_to_rounding_and_no_further(excess, taken):
    """16nε, at n = 4; the singular values of a multiple of the identity are exact."""
    W, phi = np.eye(4) * (1 + excess * 4 * EPS), np.full((2, 4), 0.5)
    if taken:
        np.testing.assert_allclose(bounds.orthogonal_bound(W, phi), [2 * np.log(0.5), np.log(0.5)], rtol=8 * EPS)
    else:
        with pytest.raises(ValueError, match=r"orthogonal.*; use soft_orthogonality or chain for this matrix$"):
            bounds.orthogonal_bound(W, phi)


# --- Powers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.3, 1.0, np.pi / 2, 2.5])
def test_henrici_takes_complex_eigenvalues_for_what_they_are(angle):
    """A rotation is normal: its Schur form is diagonal over the complex numbers, and over no others."""
    c, s, lags = np.cos(angle), np.sin(angle), np.arange(30)
    rotation = 0.9 * np.array([[c, -s], [s, c]])
    expected = lags * np.log(0.9)
    np.testing.assert_allclose(bounds.henrici_power_bound(rotation, lags), expected, atol=30 * 40 * EPS)
    np.testing.assert_allclose(bounds.spectral_radius_power_bound(rotation, lags), expected, atol=30 * 40 * EPS)


def kreiss_quotients(W, angles):
    """(|z| − 1)/σ_min(zI − W) on a fine grid, one z at a time."""
    found = []
    for d in np.geomspace(1e-3, 30, 120):
        for angle in angles:
            z = (1 + d) * np.exp(1j * angle)
            found.append(d / np.linalg.svd(z * np.eye(len(W)) - W)[1][-1])
    return max(found)


KREISS = {
    "at 1": np.array([[0.9, 4.0], [0.0, 0.9]]),
    "at −1": -np.array([[0.9, 4.0], [0.0, 0.9]]),
    "at ±i": np.kron(np.eye(2), [[0.0, -0.9], [0.9, 0.0]]) + 3.0 * np.eye(4, k=2),
    "at 1 rad": np.array([[np.cos(1), -8 * np.sin(1)], [np.sin(1) / 8, np.cos(1)]]) * 0.95,
}


@pytest.mark.parametrize("name", KREISS)
def test_kreiss_finds_the_constant_wherever_it_is_attained(name):
    """The search alone, told nothing of the constant: no less than a fine grid sees, and within its precision of it."""
    W = KREISS[name]
    seen = kreiss_quotients(W, np.linspace(0, np.pi, 241))
    upper = _kreiss_upper(W, np.linalg.norm(W, 2), 1.0, 0.05, 400_000)
    # the grid is 2.6 % apart in |z| − 1 and 0.013 in angle
    assert seen <= upper <= 1.05 * 1.03 * seen
    both = bounds.kreiss_bounds(W, precision=0.05)
    assert seen <= both.constant_upper * (1 + 1e-9)
    assert both.constant_lower <= upper


@pytest.mark.parametrize("precision", [0.3, 1.0, 3.0])
def test_a_coarse_search_still_promises_enough(precision):
    """Cells are as large as the precision lets them be, and none may hold more than it says: 40 random matrices."""
    rng = np.random.default_rng(4)
    for _ in range(40):
        W = rng.standard_normal((2, 2)) + np.array([[0.0, rng.uniform(0, 12)], [0.0, 0.0]])
        W *= rng.uniform(0.3, 0.97) / np.abs(np.linalg.eigvals(W)).max()
        z = (1 + np.geomspace(1e-3, 30, 60))[:, None] * np.exp(1j * np.linspace(0, np.pi, 61))
        sigma = np.linalg.svd(z[..., None, None] * np.eye(2) - W, compute_uv=False)[..., -1]
        upper = _kreiss_upper(W, np.linalg.norm(W, 2), 1.0, precision, 20_000)
        assert ((np.abs(z) - 1) / sigma).max() <= upper * (1 + 1e-12)


def test_shifted_matrices_one_by_one(monkeypatch):
    rng = np.random.default_rng(1)
    W, z = rng.standard_normal((3, 3)), rng.standard_normal(7) + 1j * rng.standard_normal(7)
    expected = [np.linalg.svd(one * np.eye(3) - W)[1][-1] for one in z]
    for chunk in (1, 20, 1 << 18):
        monkeypatch.setattr("gradlab.bounds.powers.CHUNK", chunk)
        np.testing.assert_allclose(_smallest_shifted(W, z), expected, atol=40 * EPS * np.abs(z).max())


def test_a_search_of_no_steps_is_refused():
    for wrong in ({"evaluations": 0}, {"evaluations": -1}, {"precision": -0.1}, {"precision": np.nan}):
        with pytest.raises(ValueError, match="precision and evaluations must be positive"):
            bounds.kreiss_bounds([[0.0, 3.0], [0.0, 0.0]], **wrong)


# --- Predictions -------------------------------------------------------------------------------------------------


def test_chrono_memories_fill_their_range():
    """10⁴ uniform draws on [2, 50]: the extremes are 48/10⁴ from the ends in the mean, and seldom 12 times that."""
    biases = predictions.chrono_biases(10_000, 50.0, seed=3)
    memory = predictions.gate_memory(biases.forget).leak
    assert memory.shape == biases.input.shape == (10_000,)
    assert 2 <= memory.min() < 2 + 12 * 48e-4
    assert 50 - 12 * 48e-4 < memory.max() <= 50
    assert memory.mean() == pytest.approx(26, abs=4 * 48 / np.sqrt(12 * 10_000))
    assert predictions.gate_memory(predictions.chrono_biases(9, 2.5, seed=0).forget).leak.max() <= 2.5


def test_defaults_and_ends():
    assert predictions.ginibre_limit(0.0) == 0.0
    np.testing.assert_allclose(predictions.ginibre_limit([0.0, 0.5], 2.0), [np.log(2), np.log(2) / 2], rtol=8 * EPS)
    assert predictions.gated_disc(0.25, 2.0) == (0.25, 1.5)
    assert predictions.gated_disc(0.25, 2.0, mean_square_slope=0.25) == (0.25, 0.75)
    assert predictions.gated_disc(1.0, 2.0).radius == 0.0
    assert predictions.leaky_mean_exponent(0.5, 100, 2.0).standard_deviation == 0.04
    with np.errstate(all="raise", under="ignore"):
        assert predictions.mean_field_path(0.0, [1.0, 1.0]).rate == -np.inf
        assert np.abs(predictions.stable_eigenvalues([800.0], [1.0])) == 0.0


def test_spectra_are_mirrored_each_by_itself():
    spectra = -np.sort(-np.random.default_rng(2).standard_normal((3, 5)), axis=-1)
    whole = predictions.mirrored_exponents(spectra)
    for one, mirrored in zip(spectra, whole, strict=True):
        np.testing.assert_allclose(mirrored, 2 * one.mean() - one[::-1], atol=16 * EPS)
    with pytest.raises(ValueError, match="descend along the last axis"):
        predictions.mirrored_exponents([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0]])


# --- Exact cases that bounds and predictions share ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["symmetric", "orthogonal"])
def test_linear_normal_networks_attain_everything(kind):
    """ln σ_i = k ln|λ_i|: Horn, Weyl, the chain, the lower end and the powers all say the same."""
    T, n = 6, 4
    eigenvalues = np.array([1.1, -0.9, 0.9, 0.3])
    J = cases.symmetric(eigenvalues, T, 5) if kind == "symmetric" else cases.orthogonal(n, T, 5)
    log_moduli = np.log(-np.sort(-np.abs(eigenvalues))) if kind == "symmetric" else np.zeros(n)
    k = np.arange(T, 0, -1)
    sums = k[:, None] * np.cumsum(log_moduli)
    tol = 1e3 * T * n * EPS
    np.testing.assert_allclose(bounds.leading_sums(J), sums, atol=tol)
    np.testing.assert_allclose(bounds.eigenvalue_sums(J).sums, sums, atol=tol)
    links = bounds.chain(J, recurrent_matrix=J[0], slopes=np.ones((T, n)), slope_supremum=1.0)
    for link in (links.step_norms, links.slopes, links.promise, bounds.spectral_radius_power_bound(J[0], k)):
        np.testing.assert_allclose(link, k * log_moduli[0], atol=tol)
    lower = bounds.lower_end(J, recurrent_matrix=J[0], slopes=np.ones((T, n)))
    for link in (lower.step_values, lower.slopes):
        np.testing.assert_allclose(link, k * log_moduli[-1], atol=tol)
    np.testing.assert_allclose(bounds.log_determinant(J), sums[:, -1], atol=tol)
    if kind == "symmetric":
        expected = k[:, None] * log_moduli
        np.testing.assert_allclose(predictions.diagonal_log_singular_values(eigenvalues, k), expected, rtol=8 * EPS)


# --- Suprema -----------------------------------------------------------------------------------------------------


def test_slopes_are_held_against_a_supremum_of_any_size():
    W, phi = np.eye(2), np.full((3, 2), 0.2)
    assert bounds.chain(phi[..., None] * W, recurrent_matrix=W, slopes=phi, slope_supremum=0.25).promise is not None
    with pytest.raises(ValueError, match=r"slopes reach 0\.4, above slope_supremum = 0\.25"):
        bounds.chain(2 * phi[..., None] * W, recurrent_matrix=W, slopes=2 * phi, slope_supremum=0.25)
    for wrong in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="slope_supremum must be positive and finite"):
            bounds.entry_bound(W, 1, slope_supremum=wrong)
    with pytest.raises(ValueError, match="gain must have a square that float64 holds"):
        predictions.mean_field(1e200)

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradlab as gl
from gradlab.predictions import gated_disc, gated_edge

N, DRAWS = 300, 8


def rightmost(J):
    return float(np.linalg.eigvals(J).real.max())


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 1.0), st.floats(0.0, 4.0), st.floats(0.1, 1.0))
def test_one_gate_for_all_units_gives_the_disc(z, gain, slope):
    disc = gated_disc(z, gain, mean_square_slope=slope**2)
    n = 3
    edge = gated_edge(np.full(n, z), np.full((1, n), (1 - z) * slope), np.ones((1, n)), [gain])
    assert edge == pytest.approx(disc.centre + disc.radius, rel=1e-12, abs=1e-11)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.1, 3.0), min_size=1, max_size=4))
def test_matrices_behind_the_same_diagonals_add_up_in_squares(gains):
    """Σ_k g_k W_k of independent Ginibre matrices is one of gain (Σ g_k²)^½."""
    rng = np.random.default_rng(0)
    keep, into, reads = rng.uniform(0, 1, 5), rng.uniform(0, 1, 5), rng.uniform(0, 1, 5)
    several = gated_edge(keep, np.tile(into, (len(gains), 1)), np.tile(reads, (len(gains), 1)), gains)
    one = gated_edge(keep, into[None], reads[None], [np.linalg.norm(gains)])
    assert several == pytest.approx(one, rel=1e-10)


def test_what_is_kept_is_the_least_that_the_spectrum_reaches():
    assert gated_edge([0.2, 0.9], [[0.0, 0.0]], [[1.0, 1.0]], [5.0]) == 0.9
    assert gated_edge([0.2, 0.9], [[1.0, 1.0]], [[1.0, 1.0]], [0.0]) == 0.9


@pytest.mark.parametrize("m", [1, 2])
def test_eigenvalues_of_random_steps_end_at_the_edge(m):
    """Independent matrices, the setting of the theory. The tolerance is that of the circular law at this n."""
    rng = np.random.default_rng(m)
    f = rng.uniform(0.2, 0.8, N)
    keep = np.zeros((N, m, m))
    keep[:, -1, -1] = f
    if m == 2:
        keep[:, 0, 1] = 0.5 * f  # as an LSTM's c goes into h
    into, reads, gains = rng.uniform(0.1, 0.6, (3, N, m)), rng.uniform(0.5, 1.0, (3, N, m)), [0.5, 1.0, 2.0]
    edge = gated_edge(keep, into, reads, gains)
    found = []
    for _ in range(DRAWS):
        J = np.einsum("iab,ij->iajb", keep, np.eye(N))
        for B, C, g in zip(into, reads, gains, strict=True):
            J += np.einsum("ia,ij,jb->iajb", B, rng.normal(0, g / np.sqrt(N), (N, N)), C)
        found.append(rightmost(J.reshape(N * m, N * m)))
    # the largest real part lies below the largest distance, which exceeds the radius by 0.5/√n of it; deviation 0.3/√n
    scale = (edge - f.mean()) / np.sqrt(N)
    assert abs(np.mean(found) - edge) < (0.5 + 4 * 0.3 / np.sqrt(DRAWS)) * scale + 2 * scale / np.sqrt(N)


@pytest.mark.parametrize("cell", [keras.layers.GRUCell, keras.layers.LSTMCell])
def test_edges_of_a_network_at_its_initialisation(cell):
    keras.utils.set_random_seed(0)
    made = cell(N, recurrent_initializer=keras.initializers.RandomNormal(stddev=3 / np.sqrt(N)))
    size = N if cell is keras.layers.GRUCell else 2 * N
    start = np.random.default_rng(0).uniform(-1, 1, (1, size))
    traj = gl.rollout(made, np.zeros((1, 1, 2)), initial_state=start)  # one step: the state does not know the matrices
    edge = gl.gate_paths(traj).spectral_edges()[0, 0]
    J = gl.step_jacobians(traj)[0, 0]
    found = rightmost(J)
    assert abs(found - edge) < 4 * 0.5 / np.sqrt(N) * (edge - np.trace(J) / size)
    assert abs(edge - 1.0) > 0.05  # not by standing still


def test_masked_steps_are_the_identity():
    traj = gl.rollout(keras.layers.GRUCell(4), np.ones((1, 3, 2)), mask=np.array([[True, False, True]]))
    edges = gl.gate_paths(traj).spectral_edges()
    assert edges.shape == (1, 3)
    assert edges[0, 1] == 1.0


def test_what_cannot_be_is_an_error():
    one = np.ones((1, 2))
    with pytest.raises(ValueError, match=r"got shapes \(2,\), \(1, 3\)"):
        gated_edge([0.5, 0.5], np.ones((1, 3)), np.ones((1, 3)), [1.0])
    with pytest.raises(ValueError, match="gains must not be negative"):
        gated_edge([0.5, 0.5], one, one, [-1.0])
    turn = np.tile([[0.0, 1.0], [-1.0, 0.0]], (2, 1, 1))
    with pytest.raises(ValueError, match="real eigenvalues"):
        gated_edge(turn, np.ones((1, 2, 2)), np.ones((1, 2, 2)), [1.0])
    traj = gl.rollout(keras.layers.GRUCell(3, reset_after=False), np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="reset_after=False"):
        gl.gate_paths(traj).spectral_edges()

"""The networks of `bounds_vs_truth.py`: how the recurrent matrix of each class is made, and what is measured of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import gradlab as gl
from gradlab.analysis import random_direction_loss
from gradlab.spectrum import RecurrentSpectrum

Array = NDArray[np.float64]
FEATURES = 4  # of the white input
SETTLE = 100  # steps before the first that counts, so that the state is that of the running network


@dataclass(frozen=True)
class Kind:
    """A class of networks.

    Attributes:
        activation: "linear" or "tanh".
        matrix: draws W [n, n]; None for a network that is trained.
        drive: variance of what the white input adds to a pre-activation; None for a network that is trained.
        gain: g where W_ij are iid N(0, g²/n), None for every other W.
        trained: the gain from which a network is trained on the digits, pixel by pixel (64 steps), with what else
            `gradlab.Experiment` has by default; None for one that is not.
    """

    activation: str
    matrix: Callable[[np.random.Generator, int], Array] | None
    drive: float | None
    gain: float | None = None
    trained: float | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """One network and its gradient.

    Attributes:
        kind: its class.
        W: recurrent matrix [n, n].
        spectrum: what `recurrent_spectrum` says of it.
        J: step Jacobians [B, T, n, n].
        slopes: φ' [B, T, n].
        drop: ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖ at t = 0 … T−1 [B, T].
        rate: its fitted slope over the lag [B], nats per step.
        log_singular_values: ln σ_i(∂h_T/∂h_t) [B, T, n].
        exponent: λ1 along the same sequences [B].
        held_out: λ1 along as many others [B].
    """

    kind: Kind
    W: Array
    spectrum: RecurrentSpectrum
    J: Array
    slopes: Array
    drop: Array
    rate: Array
    log_singular_values: Array
    exponent: Array
    held_out: Array

    @property
    def lags(self) -> NDArray[np.int64]:
        """The lags k = T − t [T]."""
        return np.arange(self.J.shape[1], 0, -1)

    @property
    def linear(self) -> bool:
        """Whether J_t = W."""
        return self.kind.activation == "linear"


def orthogonal(rng: np.random.Generator, n: int) -> Array:
    """Return a Haar-distributed orthogonal matrix."""
    Q, R = np.linalg.qr(rng.standard_normal((n, n)))
    return np.asarray(Q * np.sign(np.diagonal(R)))


def gaussian(gain: float) -> Callable[[np.random.Generator, int], Array]:
    """Return a drawer of iid N(0, g²/n) entries."""
    return lambda rng, n: gain / np.sqrt(n) * rng.standard_normal((n, n))


def normal(rng: np.random.Generator, n: int) -> Array:
    """Return Q·diag(r_j R(θ_j))·Qᵀ: normal, with eigenvalues uniform in the disc of 0.95, one of them on its edge."""
    W, radii = np.zeros((n, n)), 0.95 * np.sqrt(rng.uniform(size=(n + 1) // 2))
    radii[0] = 0.95
    for j, (r, angle) in enumerate(zip(radii, rng.uniform(0, np.pi, len(radii)), strict=True)):
        c, s = r * np.cos(angle), r * np.sin(angle)
        if 2 * j + 2 <= n:
            W[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [[c, -s], [s, c]]
        else:
            W[-1, -1] = r
    Q = orthogonal(rng, n)
    return Q @ W @ Q.T


def non_normal(rng: np.random.Generator, n: int) -> Array:
    """Return Q(Λ + N)Qᵀ: real eigenvalues uniform in ±0.9, one at the edge, N strictly upper of N(0, 1.5²/n)."""
    eigenvalues = rng.uniform(-0.9, 0.9, n)
    eigenvalues[0] = 0.9
    Q = orthogonal(rng, n)
    return Q @ (np.diag(eigenvalues) + np.triu(gaussian(1.5)(rng, n), 1)) @ Q.T


KINDS = {
    "linear, normal": Kind("linear", normal, 1.0),
    "linear, random": Kind("linear", gaussian(0.8), 1.0, gain=0.8),
    "linear, non-normal": Kind("linear", non_normal, 1.0),
    "linear, orthogonal": Kind("linear", orthogonal, 1.0),
    "linear, trained": Kind("linear", None, None, trained=0.8),
    "tanh, normal": Kind("tanh", normal, 0.1),
    "tanh, random": Kind("tanh", gaussian(1.0), 0.1, gain=1.0),
    "tanh, non-normal": Kind("tanh", non_normal, 0.1),
    "tanh, orthogonal": Kind("tanh", orthogonal, 0.1),
    "tanh, saturated": Kind("tanh", gaussian(1.5), 9.0, gain=1.5),
    "tanh, chaotic": Kind("tanh", gaussian(2.5), 0.01, gain=2.5),
    "tanh, trained": Kind("tanh", None, None, trained=1.0),
}


def measured(name: str, replicate: int, *, units: int, steps: int, sequences: int, epochs: int, seed: int) -> Measured:
    """Return one network of a class with everything that the statements are set beside.

    Args:
        name: of the class, in `KINDS`.
        replicate: its number; with the name and the seed it gives the network a stream of random numbers of its own.
        units: n.
        steps: T of the networks that are not trained; the digits have 64.
        sequences: B.
        epochs: of training.
        seed: of the benchmark.
    """
    kind = KINDS[name]
    rng = np.random.default_rng([seed, replicate, *name.encode()])
    if kind.matrix is None or kind.drive is None:
        return _measured_trained(kind, units, sequences, epochs, int(rng.integers(2**31)))
    W = kind.matrix(rng, units)
    U = np.sqrt(kind.drive / FEATURES) * rng.standard_normal((units, FEATURES))
    runs = []
    for _ in range(2):
        x = rng.standard_normal((sequences, SETTLE + steps, FEATURES))
        cell = _analysed(kind.activation, units, FEATURES, W, U, np.zeros(units))
        start = None if kind.activation == "linear" else gl.rollout(cell, x[:, :SETTLE]).states[:, -1]
        runs.append(gl.rollout(cell, x[:, SETTLE:], initial_state=start))
    return _measure(kind, W, *runs, random_direction_loss(sequences, units, int(rng.integers(2**31))))


def _measure(
    kind: Kind, W: Array, same: gl.Trajectory, other: gl.Trajectory, loss: Callable[[tf.Tensor], tf.Tensor]
) -> Measured:
    """Return what is measured along two batches of sequences of one network, for a loss at T."""
    J, slopes = gl.step_jacobians(same), gl.activation_slopes(same)
    assert slopes is not None
    log_norms = gl.state_gradients(same, None, loss).log_total_norm
    leave = J.shape[1] // 10
    return Measured(
        kind=kind,
        W=W,
        spectrum=gl.recurrent_spectrum(W),
        J=J,
        slopes=slopes,
        drop=log_norms[:, :-1] - log_norms[:, -1:],
        rate=np.asarray(gl.fit_decay(log_norms).rate),
        log_singular_values=gl.log_singular_values(J),
        exponent=gl.lyapunov_exponents(J, 1, discard=leave).exponents[:, 0],
        held_out=gl.lyapunov_exponents(gl.step_jacobians(other), 1, discard=leave).exponents[:, 0],
    )


@lru_cache(maxsize=8)
def _cell(activation: str, units: int, features: int) -> gl.VanillaRNNCell:
    cell = gl.VanillaRNNCell(units, activation, dtype="float64")
    cell.build((None, features))
    return cell


def _analysed(activation: str, units: int, features: int, W: Array, U: Array, b: Array) -> gl.VanillaRNNCell:
    """Return the float64 cell of an activation with these weights; there is one, so that its graph is traced once."""
    cell = _cell(activation, units, features)
    cell.set_weights([U.T, W.T, b])
    return cell


# --- training --------------------------------------------------------------------------------------------------------


def _measured_trained(kind: Kind, units: int, sequences: int, epochs: int, seed: int) -> Measured:
    """Train on the digits, then measure the gradient of the cross-entropy on test sequences."""
    assert kind.trained is not None
    experiment = gl.Experiment(kind.activation, gain=kind.trained, units=units, epochs=epochs, seed=seed)
    network = gl.trained(experiment)
    x, y = network.task.test_inputs, network.task.test_targets
    assert y is not None
    runs = gl.rollout(network.layer, x[:sequences]), gl.rollout(network.layer, x[sequences : 2 * sequences])
    W = np.asarray(network.layer.get_weights()[1], np.float64).T
    return _measure(kind, W, *runs, network.loss(y[:sequences]))

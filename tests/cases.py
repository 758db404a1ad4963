"""Step Jacobians [T, n, n] of the networks and matrices that tests are run on, in NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Random = np.random.Generator


def logistic(a: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * a))


def logistic_slope(a: Array) -> Array:
    return 0.25 / np.cosh(0.5 * a) ** 2


def tanh_slope(a: Array) -> Array:
    """sech², from the pre-activation: 1 − tanh² would cancel where the unit saturates."""
    return 1 / np.cosh(a) ** 2


# --- Networks ----------------------------------------------------------------------------------------------------


def tanh_net(n: int, T: int, gain: float, seed: int, *, noise: float = 0.3) -> Array:
    """h = tanh(W h + noise), J = diag(sech² a) W; gain 12 saturates most units."""
    rng = np.random.default_rng(seed)
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    h, J = rng.standard_normal(n), np.empty((T, n, n))
    for t in range(T):
        a = W @ h + noise * rng.standard_normal(n)
        h, J[t] = np.tanh(a), tanh_slope(a)[:, None] * W
    return J


def preactivation_net(n: int, T: int, gain: float, seed: int, *, noise: float = 0.3) -> Array:
    """a = W tanh(a) + noise, J = W diag(sech² a): the grading sits on the columns."""
    rng = np.random.default_rng(seed)
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    a, J = rng.standard_normal(n), np.empty((T, n, n))
    for t in range(T):
        J[t] = W * tanh_slope(a)[None, :]
        a = W @ np.tanh(a) + noise * rng.standard_normal(n)
    return J


def relu_net(n: int, T: int, gain: float, seed: int, *, bias: float = 0.5) -> Array:
    """h = relu(W h + bias + noise): each dead unit is a zero row."""
    rng = np.random.default_rng(seed)
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    h, J = rng.standard_normal(n), np.empty((T, n, n))
    for t in range(T):
        a = W @ h + bias + 0.5 * rng.standard_normal(n)
        h, J[t] = np.maximum(a, 0), (a > 0)[:, None] * W
    return J


def leaky_net(n: int, T: int, seed: int, *, gain: float = 1.5, rate: float = 0.1) -> Array:
    """A leaky Euler step h ← (1 − rate) h + rate·tanh(W h): near the identity."""
    rng = np.random.default_rng(seed)
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    h, J = rng.standard_normal(n), np.empty((T, n, n))
    for t in range(T):
        a = W @ h + 0.3 * rng.standard_normal(n)
        J[t] = (1 - rate) * np.eye(n) + rate * tanh_slope(a)[:, None] * W
        h = (1 - rate) * h + rate * np.tanh(a)
    return J


def lstm(units: int, T: int, gain: float, seed: int, *, forget_bias: float = 1.0) -> Array:
    """The full Jacobian of [h, c], n = 2·units: i, f, o gates, c = f c + i g, h = o tanh c."""
    rng = np.random.default_rng(seed)
    Wi, Wf, Wg, Wo = gain * rng.standard_normal((4, units, units)) / np.sqrt(units)
    h, c, J = rng.standard_normal(units), rng.standard_normal(units), np.empty((T, 2 * units, 2 * units))
    for t in range(T):
        x = rng.standard_normal((4, units))
        ai, af, ag, ao = Wi @ h + x[0], Wf @ h + x[1] + forget_bias, Wg @ h + x[2], Wo @ h + x[3]
        i, f, g, o = logistic(ai), logistic(af), np.tanh(ag), logistic(ao)
        dc_dh = (
            (g * logistic_slope(ai))[:, None] * Wi
            + (c * logistic_slope(af))[:, None] * Wf
            + (i * tanh_slope(ag))[:, None] * Wg
        )
        c = f * c + i * g
        through_c = o * tanh_slope(c)
        dh_dh = (np.tanh(c) * logistic_slope(ao))[:, None] * Wo + through_c[:, None] * dc_dh
        h = o * np.tanh(c)
        J[t] = np.block([[dh_dh, np.diag(through_c * f)], [dc_dh, np.diag(f)]])
    return J


def gru(n: int, T: int, gain: float, seed: int) -> Array:
    """h ← z h + (1 − z) tanh(r·(Wg h)), the reset gate applied after the product (Keras, reset_after=True)."""
    rng = np.random.default_rng(seed)
    Wz, Wr, Wg = gain * rng.standard_normal((3, n, n)) / np.sqrt(n)
    h, J = rng.standard_normal(n), np.empty((T, n, n))
    for t in range(T):
        x = rng.standard_normal((3, n))
        az, ar, inner = Wz @ h + x[0], Wr @ h + x[1], Wg @ h
        z, r = logistic(az), logistic(ar)
        ag = r * inner + x[2]
        g = np.tanh(ag)
        dg = tanh_slope(ag)[:, None] * ((inner * logistic_slope(ar))[:, None] * Wr + r[:, None] * Wg)
        J[t] = np.diag(z) + ((h - g) * logistic_slope(az))[:, None] * Wz + (1 - z)[:, None] * dg
        h = z * h + (1 - z) * g
    return J


# --- Matrices ----------------------------------------------------------------------------------------------------


def random_orthogonal(n: int, rng: Random) -> Array:
    Q, R = np.linalg.qr(rng.standard_normal((n, n)))
    return Q * np.sign(np.diag(R))


def ginibre(n: int, T: int, seed: int) -> Array:
    """Fresh iid N(0, 1/n) entries at every step."""
    return np.random.default_rng(seed).standard_normal((T, n, n)) / np.sqrt(n)


def orthogonal(n: int, T: int, seed: int) -> Array:
    """One orthogonal matrix throughout: every σ is 1 at every lag, to the rounding of the matrix itself."""
    return np.repeat(random_orthogonal(n, np.random.default_rng(seed))[None], T, axis=0)


def symmetric(eigenvalues: Array, T: int, seed: int) -> Array:
    """V diag(λ) Vᵀ throughout; σ_i = |λ_i|^k, repeated where |λ| is."""
    V = random_orthogonal(len(eigenvalues), np.random.default_rng(seed))
    return np.repeat((V * eigenvalues @ V.T)[None], T, axis=0)


def symplectic(n: int, T: int, seed: int, *, step: float = 0.3) -> Array:
    """Leapfrog steps of a kicked chain, [[I, step I], [−step K, I − step² K]]: ln σ come in pairs ±s."""
    rng = np.random.default_rng(seed)
    half = n // 2
    eye, J = np.eye(half), np.empty((T, 2 * half, 2 * half))
    for t in range(T):
        K = rng.standard_normal((half, half))
        K = (K + K.T) / np.sqrt(half)
        J[t] = np.block([[eye, step * eye], [-step * K, eye - step**2 * K]])
    return J


def jordan(eigenvalue: float, n: int, T: int) -> Array:
    """One Jordan block throughout: ill-conditioned by itself."""
    return np.repeat((eigenvalue * np.eye(n) + np.eye(n, k=1))[None], T, axis=0)


def ascending_triangle(n: int, T: int, seed: int) -> Array:
    """Upper triangles whose diagonal ascends: a QR sweep without column ordering finds the values in reverse."""
    rng = np.random.default_rng(seed)
    diagonal = np.linspace(0.2, 1.2, n)
    return np.triu(rng.standard_normal((T, n, n)), 1) * 0.5 + np.diag(diagonal)


def permutations(n: int, T: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.stack([np.eye(n)[rng.permutation(n)] for _ in range(T)])


# The menu that accuracy is measured on against ball arithmetic: every factor fits a different difficulty.
PRODUCTS: dict[str, Callable[[], Array]] = {
    "tanh gain 1": lambda: tanh_net(12, 60, 1.0, 0),
    "tanh gain 1.5": lambda: tanh_net(12, 100, 1.5, 1),
    "tanh gain 5": lambda: tanh_net(12, 80, 5.0, 2),
    "tanh gain 12": lambda: tanh_net(12, 80, 12.0, 3, noise=3.0),
    "pre-activations gain 5": lambda: preactivation_net(10, 60, 5.0, 4),
    "relu": lambda: relu_net(10, 40, 1.4, 5, bias=1.0),
    "leaky": lambda: leaky_net(10, 100, 6),
    "lstm gain 1": lambda: lstm(6, 60, 1.0, 7),
    "lstm gain 8": lambda: lstm(6, 40, 8.0, 8),
    "gru gain 1": lambda: gru(10, 60, 1.0, 9),
    "gru gain 8": lambda: gru(10, 40, 8.0, 10),
    "ginibre": lambda: ginibre(10, 100, 11),
    "orthogonal": lambda: orthogonal(10, 60, 12),
    "symmetric, repeated": lambda: symmetric(np.array([1.1, -1.1, 0.9, 0.9, 0.9, 0.3, -0.3, 1e-3]), 40, 13),
    "symplectic": lambda: symplectic(10, 60, 14),
    "ascending triangle": lambda: ascending_triangle(8, 60, 15),
    "permutations": lambda: permutations(6, 20, 16),
}

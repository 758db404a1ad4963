"""The resolvent of a matrix over the complex plane: how near to singular zI − W is, and the numerical range."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from gradlab.blas import one_blas_thread
from gradlab.validation import Array, square_matrix

Plane = NDArray[np.complex128]
STEPS = 30  # of Lanczos at most
SETTLED = 1e-8  # relative change of the largest Ritz value at which the iteration stops
CHUNK = 1 << 16  # complex numbers in one block of vectors, which should stay in the cache


def smallest_singular_values(W: ArrayLike, points: ArrayLike) -> Array:
    """Return σ_min(zI − W) = 1/‖(zI − W)^{-1}‖₂ at points of the complex plane.

    The ε-pseudospectrum is where it is at most ε: all eigenvalues of all W + E with ‖E‖ ≤ ε. For a normal W it is the
    distance to the nearest eigenvalue; far below that distance, W is far from normal there.

    One Schur form, W = QTQ*, serves all points; at each, Lanczos on (zI − T)^{-1}(zI − T)^{-*} by triangular solves,
    O(n²) a step instead of O(n³) for singular values. Started from one random vector, the Ritz values rise to
    1/σ_min², so that what is returned is σ_min or a little more: within 1e-3 in the tests, mostly within 1e-8.

    Args:
        W: recurrent matrix [n, n].
        points: z, real or complex, of any shape.

    Returns:
        σ_min ≥ 0, the shape of the points; 0 at an eigenvalue. Values below about nε‖W‖ are rounding.

    Raises:
        ValueError: W is not a finite square matrix, or a point that is not finite.
        TypeError: W does not hold real numbers, or the points are not numbers.

    Source:
        Trefethen 1999, Computation of pseudospectra (the Schur form with inverse Lanczos).

    Example:
        >>> smallest_singular_values([[0.5, 0.0], [0.0, -0.5]], [0.5 + 1j, 2.0]).round(9)
        array([1. , 1.5])
    """
    matrix, z = square_matrix("W", W), np.asarray(points)
    if z.dtype.kind not in "fiuc":
        raise TypeError(f"points must be real or complex numbers, got dtype {z.dtype}")
    if not np.isfinite(z).all():
        raise ValueError(f"points must be finite, got {int((~np.isfinite(z)).sum())} that are not")
    with one_blas_thread(), np.errstate(all="ignore"):  # an eigenvalue divides by zero: the answer is 0
        triangle = np.ascontiguousarray(scipy.linalg.schur(matrix, output="complex")[0])
        size = max(1, CHUNK // len(matrix))
        flat = z.astype(np.complex128).ravel()
        parts = [_lanczos(triangle, flat[i : i + size]) for i in range(0, len(flat), size)]
    return np.concatenate(parts).reshape(z.shape) if parts else np.zeros(z.shape)


def numerical_range(W: ArrayLike, angles: int = 181) -> Plane:
    """Return points of the boundary of the numerical range, {x*Wx : ‖x‖ = 1}, a convex set around the eigenvalues.

    The support line of W at angle θ touches it at x*Wx, x the leading eigenvector of the Hermitian part of e^{−iθ}W.
    For a normal W it is the convex hull of the eigenvalues; where it leaves the unit disc, ‖W^k‖ may grow at first.

    Args:
        W: recurrent matrix [n, n].
        angles: of the upper half, 0 to π; W is real, so the lower half mirrors it.

    Returns:
        Points x*Wx [2·angles − 1], counter-clockwise, the last one the first. Each lies in the range, so the polygon
        is inside it.

    Raises:
        ValueError: W is not a finite square matrix, or fewer than 2 angles.
        TypeError: W does not hold real numbers.

    Source:
        Johnson 1978.

    Example:
        >>> boundary = numerical_range([[0.0, 2.0], [0.0, 0.0]])    # the unit disc
        >>> bool(abs(abs(boundary) - 1).max() < 1e-12)
        True
    """
    matrix = square_matrix("W", W)
    if angles < 2:
        raise ValueError(f"angles must be at least 2, got {angles}")
    symmetric, skew = (matrix + matrix.T) / 2, (matrix - matrix.T) / 2
    upper = np.empty(angles, np.complex128)
    with one_blas_thread():
        for i, theta in enumerate(np.linspace(0, np.pi, angles)):
            x = np.linalg.eigh(np.cos(theta) * symmetric - 1j * np.sin(theta) * skew)[1][:, -1]
            upper[i] = x.conj() @ matrix @ x
    return np.concatenate([upper, upper[-2::-1].conj()])


def _lanczos(T: Plane, z: Plane) -> Array:
    """Return 1/√(largest Ritz value of (zI − T)^{-1}(zI − T)^{-*}) for each z [Z]; vectors are columns [n, Z]."""
    n = len(T)
    pivots = z - np.diag(T)[:, None]  # [n, Z]
    rng = np.random.default_rng(0)
    q = np.repeat((rng.standard_normal(n) + 1j * rng.standard_normal(n))[:, None], len(z), axis=1)
    q /= np.linalg.norm(q, axis=0)
    before, beta = np.zeros_like(q), np.zeros(len(z))
    tridiagonal = np.zeros((len(z), min(STEPS, n + 1), min(STEPS, n + 1)))
    largest = np.zeros(len(z))
    for k in range(min(STEPS, n + 1)):
        v = _solve_upper(T, pivots, _solve_adjoint(T, pivots, q)) - beta * before
        alpha = (q.conj() * v).sum(axis=0).real
        v -= alpha * q
        tridiagonal[:, k, k] = alpha
        found = _largest_eigenvalue(tridiagonal[:, : k + 1, : k + 1])
        settled = ~(np.abs(found - largest) > SETTLED * found)
        largest = found
        if settled.all() or k + 1 == tridiagonal.shape[1]:
            break
        beta = np.linalg.norm(v, axis=0)
        before, q = q, v / np.where(beta > 0, beta, 1.0)
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = beta
    # overflow or division by zero: z is an eigenvalue to rounding
    return np.where(np.isfinite(largest) & (largest > 0), 1 / np.sqrt(largest), 0.0)


def _largest_eigenvalue(tridiagonal: Array) -> Array:
    """Return the largest eigenvalue of each symmetric matrix [Z, k, k], ∞ where its entries are not finite."""
    good = np.isfinite(tridiagonal).all(axis=(1, 2))
    out = np.full(len(tridiagonal), np.inf)
    out[good] = np.linalg.eigvalsh(tridiagonal[good])[:, -1]
    return out


def _solve_upper(T: Plane, pivots: Plane, rhs: Plane) -> Plane:
    """Return (zI − T)^{-1} b for each column, T upper triangular."""
    x = np.empty_like(rhs)
    for j in range(len(T) - 1, -1, -1):
        x[j] = (rhs[j] + T[j, j + 1 :] @ x[j + 1 :]) / pivots[j]
    return x


def _solve_adjoint(T: Plane, pivots: Plane, rhs: Plane) -> Plane:
    """Return (zI − T)^{-*} b for each column, T upper triangular."""
    x, adjoint = np.empty_like(rhs), T.conj().T.copy()
    for j in range(len(T)):
        x[j] = (rhs[j] + adjoint[j, :j] @ x[:j]) / pivots[j].conj()
    return x

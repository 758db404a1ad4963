"""What a single step contributes to a product: the logarithms of its norm, smallest singular value and determinant."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dgejsv

from gradlab.kernels.determinants import log_determinants
from gradlab.validation import Array

LAPACK_FROM = 160  # units: from there on its blocked LU is faster than our own, which takes a third of the time at 64
LN2 = float(np.log(2.0))


def real_steps(mask: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the mask as booleans [B, T], all True for None; [T] serves for one sequence."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    array = np.asarray(mask)
    if array.dtype.kind not in "biu" or not np.isin(array, (0, 1)).all():
        raise TypeError(f"mask must hold True or False, got dtype {array.dtype}; compare it with the padding first")
    if array.ndim == 1 and shape[0] == 1:
        array = array[None]
    if array.shape != tuple(shape):
        raise ValueError(f"mask must be [batch, time] = {tuple(shape)}, got shape {array.shape}; one entry a step")
    return array.astype(bool)


def sum_from_end(steps: Array) -> Array:
    """Return Σ_{s ≥ t} of an array [B, T] over its last axis; −∞ stays −∞."""
    return np.cumsum(steps[..., ::-1], axis=-1)[..., ::-1]


def log_norms(matrices: Array, order: float = 2) -> Array:
    """Return ln‖A‖ over the leading axes, for entries of any scale; the norm is induced by p = 1, 2 or ∞."""
    scaled, exponent = _scaled(matrices)
    norms: Array = np.linalg.norm(scaled, ord=order, axis=(-2, -1)).astype(np.float64)
    return log_zero(norms) + LN2 * exponent


def _scaled(matrices: Array) -> tuple[Array, Array]:
    """Return the matrices with their largest entry in [½, 1), and the exponents of two taken out (exact)."""
    exponent = np.frexp(np.abs(matrices).max(axis=(-2, -1)))[1]
    return np.ldexp(matrices, -exponent[..., None, None]), exponent.astype(np.float64)


def log_smallest(J: Array) -> Array:
    """Return ln σn of each matrix [B, T]."""
    scaled, exponent = _scaled(J)
    sigma = np.linalg.svd(scaled, compute_uv=False)
    smallest = sigma[..., -1].astype(np.float64)
    # LAPACK's error is about ε σ1 for every value: a small one is computed again, relative to its own size
    for b, s in zip(*np.nonzero(smallest < 1e-4 * sigma[..., 0]), strict=True):
        smallest[b, s] = _jacobi_smallest(scaled[b, s])
    return log_zero(smallest) + LN2 * exponent


def log_step_values(J: Array) -> Array:
    """Return ln σ_i of each matrix [B, T, n], descending; zero rows or columns give exact zeros, −∞."""
    scaled, exponent = _scaled(J)
    sigma = np.linalg.svd(scaled, compute_uv=False).astype(np.float64)
    for b, s in zip(*np.nonzero(sigma[..., -1] < 1e-4 * sigma[..., 0]), strict=True):
        sigma[b, s] = _jacobi_values(scaled[b, s])
    return log_zero(sigma) + LN2 * exponent[..., None]


def _jacobi_smallest(matrix: Array) -> float:
    """Return σn to a relative accuracy that does not depend on σ1."""
    if not (matrix.any(axis=0).all() and matrix.any(axis=1).all()):
        return 0.0  # a zero row or column: exactly singular
    return float(_jacobi_values(matrix)[-1])


def _jacobi_values(matrix: Array) -> Array:
    """Return σ_i [n], descending, each to a relative accuracy that does not depend on σ1."""
    values = np.zeros(len(matrix))
    live = matrix[matrix.any(axis=1)][:, matrix.any(axis=0)]
    if live.size == 0:
        return values
    # columns of the transpose carry the grading of diag(φ') W, which one-sided Jacobi does not feel
    tall = live.T if live.shape[0] <= live.shape[1] else live
    found, _, _, work, _, info = dgejsv(np.asfortranarray(tall), joba=0, jobu=3, jobv=3)
    if info != 0:
        raise scipy.linalg.LinAlgError(f"dgejsv did not converge (info {info})")
    values[: len(found)] = found * (work[0] / work[1])
    return values


def log_abs_determinants(J: Array) -> Array:
    """Return ln|det| over the leading axes, by LU of the row-scaled matrices: pivoting must not see the scale of a row.

    The scales are powers of two, so that taking them out costs no rounding.
    """
    n = J.shape[-1]
    if n > LAPACK_FROM:
        exponent = np.frexp(np.abs(J).max(axis=-1))[1]
        scaled = np.ldexp(J, -exponent[..., None])
        return np.linalg.slogdet(scaled)[1] + LN2 * exponent.sum(axis=-1)
    values = np.empty(J.shape[:-2])
    log_determinants(np.require(J, np.float64, ("C", "W")).reshape(-1, n, n), values.reshape(-1))
    return values


def check_step_bounds(norms: Array, limits: Array, n: int) -> None:
    """Raise where ln‖J_s‖ [B, T] is larger than W and the slopes allow: then they are not those of J."""
    # ln‖J‖, ln σ1(W) and ln φ' are right to about n roundings each, J = diag(φ')W to a few more
    size = np.where(np.isfinite(norms), np.abs(norms), 0.0)
    wrong = norms > limits + 64 * n * float(np.finfo(np.float64).eps) * (1 + size)
    if wrong.any():
        b, s = (int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise ValueError(
            f"W and the slopes do not belong to J: at batch {b}, step {s + 1}, ln‖J‖ = {norms[b, s]:.6g} is above"
            f" {limits[b, s]:.6g}, what they allow; J_t must be diag(φ'(a_t))·W, with W the transpose of a Keras"
            " recurrent_kernel and σ1(W) its largest singular value, not its spectral radius"
        )


def log_zero(values: Array) -> Array:
    """Return ln x, and −∞ for 0 without a warning."""
    with np.errstate(divide="ignore"):
        return np.log(values)


def times(lags: NDArray[np.int64], log_factor: ArrayLike) -> Array:
    """Return k·x, with 0·(−∞) = 0: no factor, no effect."""
    with np.errstate(invalid="ignore"):
        return np.where(lags == 0, 0.0, lags * np.asarray(log_factor))

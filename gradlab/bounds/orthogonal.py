"""Orthogonal recurrent matrices, exact and soft: only the slopes can shrink the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gradlab.blas import one_blas_thread
from gradlab.bounds.arguments import slopes_of, summed_back
from gradlab.links import log_zero, real_steps, times
from gradlab.validation import Array, lag_array, square_matrix

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class SoftOrthogonality:
    """The interval of all singular values of W^k for a nearly orthogonal W.

    Attributes:
        margin: m = max_i |σ_i(W) − 1|.
        lower: k ln(1 − m) ≤ ln σ_i(W^k), the shape of the lags; −∞ if m ≥ 1.
        upper: k ln(1 + m) ≥ ln σ_i(W^k), the shape of the lags.
    """

    margin: float
    lower: Array
    upper: Array


def orthogonal_bound(recurrent_matrix: ArrayLike, slopes: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Return the upper bound of ln σ1(P_t) that the slopes alone give if W is orthogonal.

    ‖P_t‖ ≤ Π_s max_i |φ'(a_{s,i})| for J_s = diag(φ'(a_s)) W with WᵀW = I: with tanh or ReLU never above 1. Attained
    where the slopes of a step are all the same.

    Args:
        recurrent_matrix: W as it acts [n, n], orthogonal to 16nε in its singular values.
        slopes: φ'(a_t) [B, T, n] or [T, n].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        [B, T] (or [T]) in nats; −∞ where all units of a step are dead.

    Raises:
        ValueError: a W that is not orthogonal (`soft_orthogonality` and `chain` hold for it), shapes that do not fit,
            or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Arjovsky, Shah & Bengio 2016.

    Example:
        >>> np.exp(orthogonal_bound([[0.0, 1.0], [-1.0, 0.0]], [[0.5, 0.1], [1.0, 0.25]]))
        array([0.5, 1. ])
    """
    matrix = square_matrix("recurrent_matrix", recurrent_matrix)
    phi, single = slopes_of(matrix, slopes)
    margin, limit = _margin(matrix), 16 * len(matrix) * EPS
    if margin > limit:
        raise ValueError(
            f"recurrent_matrix must be orthogonal, its singular values within {limit:.1e} of 1, got {margin:.1e};"
            " use soft_orthogonality or chain for this matrix"
        )
    real = real_steps(mask, phi.shape[:2])
    return summed_back(log_zero(phi.max(axis=-1)), real, single)


def soft_orthogonality(W: ArrayLike, lags: ArrayLike) -> SoftOrthogonality:
    """Return the interval of the singular values of W^k from the distance of W to an orthogonal matrix.

    If every σ_i(W) lies in [1 − m, 1 + m], every σ_i(W^k) lies in [(1 − m)^k, (1 + m)^k]. m is measured, so the
    interval holds for any W; it is of use for a small m.

    Args:
        W: recurrent matrix [n, n].
        lags: k ≥ 0, of any shape.

    Returns:
        A `SoftOrthogonality` in nats. One end is attained by a multiple of an orthogonal matrix.

    Raises:
        ValueError: W is not a finite square matrix, or a negative lag.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        Vorontsov et al. 2017.

    Example:
        >>> soft = soft_orthogonality([[0.0, 1.25], [0.75, 0.0]], [2])
        >>> soft.margin, np.exp(soft.lower), np.exp(soft.upper)
        (0.25, array([0.5625]), array([1.5625]))
    """
    matrix, k = square_matrix("W", W), lag_array(lags)
    m = _margin(matrix)
    lower = np.log1p(-m) if m < 1 else -np.inf
    return SoftOrthogonality(m, times(k, lower), times(k, np.log1p(m)))


def _margin(W: Array) -> float:
    """Return max_i |σ_i(W) − 1|."""
    with one_blas_thread():
        return float(np.abs(np.linalg.svd(W, compute_uv=False) - 1).max())

"""The product of all singular values of ∂h_T/∂h_t, exactly."""

from __future__ import annotations

from numpy.typing import ArrayLike

from gradlab.blas import one_blas_thread
from gradlab.bounds.arguments import slopes_of, summed_back
from gradlab.links import log_abs_determinants, log_zero, real_steps
from gradlab.validation import Array, square_matrix, step_jacobian_array


def log_determinant(J: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Return ln|det ∂h_T/∂h_t|, which the logarithms of all its singular values must sum to.

    Σ_i ln σ_i(P_t) = Σ_s ln|det J_s|: an identity, for any J.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        [B, T] (or [T]) in nats; −∞ where a step is singular.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Multiplicativity of the determinant.

    Example:
        >>> import numpy as np
        >>> log_determinant(np.array([np.diag([2.0, 4.0])] * 2)) / np.log(2)
        array([6., 3.])
    """
    steps, single = step_jacobian_array(J)
    real = real_steps(mask, steps.shape[:2])
    with one_blas_thread():
        return summed_back(log_abs_determinants(steps), real, single)


def log_determinant_from_slopes(
    recurrent_matrix: ArrayLike, slopes: ArrayLike, *, mask: ArrayLike | None = None
) -> Array:
    """Return ln|det ∂h_T/∂h_t| of a plain recurrent network from its slopes and its recurrent matrix.

    Σ_i ln σ_i(P_t) = Σ_s Σ_i ln|φ'(a_{s,i})| + k ln|det W|, for J_s = diag(φ'(a_s)) W.

    Args:
        recurrent_matrix: W as it acts [n, n].
        slopes: φ'(a_t) [B, T, n] or [T, n].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        [B, T] (or [T]) in nats; −∞ where a unit is dead or W singular.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Multiplicativity of the determinant.

    Example:
        >>> log_determinant_from_slopes([[1.0]], [[0.0], [1.0]])
        array([-inf,   0.])
    """
    matrix = square_matrix("recurrent_matrix", recurrent_matrix)
    phi, single = slopes_of(matrix, slopes)
    real = real_steps(mask, phi.shape[:2])
    with one_blas_thread():
        per_step = log_zero(phi).sum(axis=-1) + log_abs_determinants(matrix)
    return summed_back(per_step, real, single)

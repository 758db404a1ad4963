"""Sums of the leading log singular values of ∂h_T/∂h_t: what the steps allow, and what the eigenvalues demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gradlab.blas import one_blas_thread
from gradlab.bounds.arguments import logarithms
from gradlab.links import LN2, log_step_values, log_zero, real_steps
from gradlab.validation import Array, step_jacobian_array

EPS = float(np.finfo(np.float64).eps)
RESOLVED = 1e-10  # of ‖P‖: LAPACK's eigenvalues below it gave 4 false violations in 60 random products
MARGIN = 1e3  # times the rounding of the formed product, which may exceed RESOLVED where factors cancel


@dataclass(frozen=True, eq=False)
class EigenvalueSums:
    """Eigenvalues of ∂h_T/∂h_t as lower bounds of sums of log singular values; [B, T, n], or [T, n].

    Attributes:
        log_moduli: ln|λ_i(P_t)|, descending; NaN where rounding of the formed product may have made it.
        sums: Σ_{i≤m} ln|λ_i(P_t)| at index m − 1; NaN from the first value that is not resolved.
    """

    log_moduli: Array
    sums: Array


def leading_sums(J: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Return upper bounds of the sums of the leading log singular values of ∂h_T/∂h_t.

    Σ_{i≤m} ln σ_i(P_t) ≤ Σ_s Σ_{i≤m} ln σ_i(J_s) for every m, with equality at m = n; at m = 1 it is the first link
    of `chain`. The sum for m is the growth of the largest m-dimensional volume.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n]; any.
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        [B, T, n] (or [T, n]) in nats, m − 1 along the last axis. −∞ where a step has fewer than m nonzero rows or
        columns. Values of σ_i(J_s) far below σ1(J_s) come from a Jacobi method, accurate where a step is diag(φ') times
        a well-conditioned matrix, however saturated.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Horn 1950.

    Example:
        >>> import numpy as np
        >>> leading_sums(np.array([np.diag([4.0, 0.5]), np.diag([0.5, 8.0])])) / np.log(2)
        array([[5., 3.],
               [3., 2.]])
    """
    steps, single = step_jacobian_array(J)
    real = real_steps(mask, steps.shape[:2])
    with one_blas_thread():
        values = np.cumsum(log_step_values(steps), axis=-1)
    total = np.cumsum(np.where(real[..., None], values, 0.0)[:, ::-1], axis=1)[:, ::-1]
    return total[0] if single else total


def leading_sums_at_split(early: ArrayLike, late: ArrayLike) -> Array:
    """Return upper bounds of the leading sums of a product from those of its two halves.

    Σ_{i≤m} ln σ_i(P_{t→T}) ≤ Σ_{i≤m} ln σ_i(P_{s→T}) + Σ_{i≤m} ln σ_i(P_{t→s}) for t ≤ s ≤ T, P_{t→s} = ∂h_s/∂h_t:
    the sums are subadditive, with equality at m = n. Halves bound a product better than its single steps do.

    Args:
        early: ln σ_i(∂h_s/∂h_t), all n of them, descending [..., n].
        late: ln σ_i(∂h_T/∂h_s), the same shape.

    Returns:
        [..., n] in nats, m − 1 along the last axis.

    Raises:
        ValueError: shapes that differ, values that ascend, NaN or +∞.
        TypeError: entries that are not real numbers.

    Source:
        Horn 1950.

    Example:
        >>> leading_sums_at_split([1.0, -2.0], [0.5, -0.5])
        array([ 1.5, -1. ])
    """
    first, second = logarithms("early", early), logarithms("late", late)
    if first.shape != second.shape or first.ndim == 0:
        raise ValueError(f"early and late must both be [..., n], got shapes {first.shape} and {second.shape}")
    for name, values in (("early", first), ("late", second)):
        if (values[..., 1:] > values[..., :-1]).any():
            raise ValueError(f"{name} must descend along the last axis, as log_singular_values returns them")
    return np.cumsum(first, axis=-1) + np.cumsum(second, axis=-1)


def eigenvalue_sums(J: ArrayLike, *, mask: ArrayLike | None = None) -> EigenvalueSums:
    """Return lower bounds of the sums of the leading log singular values, from the eigenvalues of ∂h_T/∂h_t.

    Σ_{i≤m} ln|λ_i(P_t)| ≤ Σ_{i≤m} ln σ_i(P_t) for every m, with equality at m = n, and at every m if P_t is normal.

    P_t is formed, with its exponent taken out, and what rounding may have made is left out: eigenvalues below
    1e-10‖P_t‖_F, or below 1000 times what P_t changes if every entry of every J_s is changed by about √n roundings.
    Those that are given are eigenvalues of a matrix that close to P_t. Singular values do not need the product:
    `log_singular_values` has all of them.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n]; any.
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        An `EigenvalueSums` in nats.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Weyl 1949.

    Example:
        >>> import numpy as np
        >>> J = np.array([[[2.0, 5.0], [0.0, 1.0]]] * 3)
        >>> eigenvalue_sums(J).sums / np.log(2)
        array([[3., 3.],
               [2., 2.],
               [1., 1.]])
    """
    steps, single = step_jacobian_array(J)
    B, T, n, _ = steps.shape
    real = real_steps(mask, (B, T))
    moduli = np.full((B, T, n), np.nan)
    rng = np.random.default_rng(0)
    product = np.broadcast_to(np.eye(n), (2, B, n, n))  # as it is, and from entries that are off by some roundings
    exponent = np.zeros(B)
    with one_blas_thread(), np.errstate(divide="ignore"):
        for t in range(T - 1, -1, -1):
            power = np.frexp(np.abs(steps[:, t]).max(axis=(1, 2)))[1]
            step = np.ldexp(steps[:, t], -power[:, None, None])
            noisy = step * (1 + np.sqrt(n) * EPS * rng.standard_normal((n, n)))
            moved = product @ np.stack([step, noisy])
            shift = np.frexp(np.abs(moved[0]).max(axis=(1, 2)))[1]
            taken = real[:, t]
            product = np.where(taken[:, None, None], np.ldexp(moved, -shift[:, None, None]), product)
            exponent = exponent + np.where(taken, power + shift, 0)
            found = -np.sort(-np.abs(np.linalg.eigvals(product[0])), axis=1)
            size = np.linalg.norm(product[0], axis=(1, 2))
            rounding = np.linalg.norm(product[1] - product[0], axis=(1, 2))
            kept = found > np.maximum(RESOLVED * size, MARGIN * rounding)[:, None]
            moduli[:, t] = np.where(kept, log_zero(found) + LN2 * exponent[:, None], np.nan)
    sums = np.cumsum(moduli, axis=-1)
    return EigenvalueSums(moduli[0], sums[0]) if single else EigenvalueSums(moduli, sums)

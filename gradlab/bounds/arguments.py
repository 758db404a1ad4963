"""Checks of what the bounds take: matrices and slopes that fit each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.links import sum_from_end
from gradlab.validation import Array, finite, real_array, square_matrix, step_jacobian_array

EPS = float(np.finfo(np.float64).eps)


def recurrent_like(matrix: ArrayLike, n: int) -> Array:
    """Return W, checked to be of the size of the Jacobians."""
    W = square_matrix("recurrent_matrix", matrix)
    if len(W) != n:
        raise ValueError(
            f"recurrent_matrix must be [{n}, {n}] like the Jacobians, got shape {W.shape};"
            " this bound is for a plain recurrent layer, leave the matrix out for gated or stacked cells"
        )
    return W


def slopes_like(slopes: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return |φ'| [B, T, n], checked to be of the shape of the Jacobians."""
    phi = finite("slopes", real_array("slopes", slopes))
    if phi.ndim == 2 and shape[0] == 1:
        phi = phi[None]
    if phi.shape != tuple(shape):
        raise ValueError(f"slopes must be [batch, time, n] = {tuple(shape)} like the Jacobians, got shape {phi.shape}")
    return np.abs(phi)


def supremum_above(slope_supremum: float | None, slopes: ArrayLike | None) -> float | None:
    """Return γ, checked to be above all slopes, or None where it is not given."""
    if slope_supremum is None:
        return None
    gamma = positive_supremum(slope_supremum)
    if slopes is not None:
        largest = float(np.abs(real_array("slopes", slopes)).max(initial=0.0))
        if largest > gamma * (1 + 1e-12):
            raise ValueError(f"slopes reach {largest}, above slope_supremum = {gamma}; give the activation's supremum")
    return gamma


def logarithms(name: str, value: ArrayLike) -> Array:
    """Return logarithms, checked to be finite or −∞."""
    array = real_array(name, value)
    if np.isnan(array).any() or (array == np.inf).any():
        raise ValueError(f"{name} must be finite or −∞ (the logarithm of zero), got NaN or +∞")
    return array


def slopes_of(matrix: Array, slopes: ArrayLike) -> tuple[Array, bool]:
    """Return (|φ'| [B, T, n], whether it came as [T, n]), checked to have one slope for each row of the matrix."""
    phi = np.abs(finite("slopes", real_array("slopes", slopes)))
    if phi.ndim not in (2, 3) or phi.shape[-1] != len(matrix) or 0 in phi.shape:
        raise ValueError(
            f"slopes must be [batch, time, {len(matrix)}] or [time, {len(matrix)}], got shape {phi.shape};"
            " one slope for each row of the recurrent matrix"
        )
    return (phi[None], True) if phi.ndim == 2 else (phi, False)


def positive_supremum(slope_supremum: float) -> float:
    """Return γ, checked to be positive and finite."""
    gamma = real_array("slope_supremum", slope_supremum)
    if gamma.ndim != 0 or not 0 < gamma < np.inf:
        raise ValueError(f"slope_supremum must be positive and finite, got {slope_supremum}; it is 1 for tanh")
    return float(gamma)


def summed_back(per_step: Array, real: NDArray[np.bool_], single: bool) -> Array:
    """Return Σ_{s>t} of what each real step adds [B, T], without the batch axis where J came without one."""
    total = sum_from_end(np.where(real, per_step, 0.0))
    return total[0] if single else total


def check_dominated(J: ArrayLike | None, limit: Array) -> None:
    """Raise unless |J_s| ≤ γ|W| = `limit` [n, n], entry by entry, in every step; None: there is nothing to check."""
    if J is None:
        return
    steps, _ = step_jacobian_array(J)
    if steps.shape[2:] != limit.shape:
        raise ValueError(f"J must be step Jacobians of the size of W, {limit.shape}, got shape {steps.shape}")
    wrong = np.abs(steps) > limit * (1 + 64 * EPS)  # an entry of J is a product of two, γ|W| of two
    if wrong.any():
        b, s, i, j = (int(x) for x in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise ValueError(
            f"|J_s| must not exceed γ|W| in any entry: at batch {b}, step {s + 1}, entry ({i}, {j}) it is"
            f" {abs(steps[b, s, i, j]):.6g}, above {limit[i, j]:.6g}; this bound is for a plain recurrent layer,"
            " J_t = diag(φ'(a_t))·W with W the transpose of a Keras recurrent_kernel, or for steps that the given"
            " matrix dominates"
        )

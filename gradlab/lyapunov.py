"""Lyapunov exponents of a trajectory: the mean rates at which perturbations of the state grow or die."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gradlab.graded import ROUNDING, descending, one_blas_thread
from gradlab.validation import Array, positive_integer, step_jacobian_array


@dataclass(frozen=True)
class LyapunovExponents:
    """Lyapunov exponents in nats per step, descending, with their errors.

    Attributes:
        exponents: [B, k], mean of ln|R_ii| over the steps kept; −∞ for a direction that died.
        standard_error: [B, k], by batch means over time; NaN where there are too few steps, or the exponent is −∞.
        history: [B, T − discard, k], the running estimates; the last one is `exponents`, up to the order of i.

    Without a batch axis in J, none of the three has one.
    """

    exponents: Array
    standard_error: Array
    history: Array


def lyapunov_exponents(
    J: ArrayLike, k: int | None = None, discard: int = 0, *, seed: int = 0
) -> LyapunovExponents:
    """The k largest Lyapunov exponents along each sequence of step Jacobians.

        λ_i = (1/N) Σ_s ln|R_ii(s)|,   J_s Q_{s−1} = Q_s R(s),   N = T − discard

    The frame Q_0 is a random orthogonal one: a frame of unit vectors may be invariant under a structured W (diagonal,
    triangular, block) and would then return the exponents of the wrong directions, in the wrong order.

    These are averages that converge as N → ∞ with bias O(1/N) and fluctuation O(1/√N). The sums Σ ln|R_ii| are *not*
    the logarithms of the singular values of the product at any finite T: `log_singular_values` has those.

    The standard error is that of batch means: the N steps fall into ⌊N/b⌋ blocks of b = ⌈√N⌉ (those left over at
    the start are put aside), and SE = √(var(block means)/number of blocks). It allows for correlations over times
    shorter than b, and needs 4 blocks at least.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        k: how many exponents; all n by default.
        discard: steps left out at the start, while the frame turns towards the leading directions; a direction that
            dies there (a ReLU network that starts at rest) is replaced by a fresh one.
        seed: of the random frame.

    Returns:
        Exponents in nats per step [B, k] (or [k]), descending, their standard errors, and the running estimates. A
        direction that a singular step after `discard` sends to zero (a dead unit) has the exponent −∞.

    Raises:
        ValueError: wrong shape or not finite J, k > n, or nothing left after `discard`.
        TypeError: J is not real, or k or discard is not an integer.

    Warns:
        RuntimeWarning: a direction vanished in rounding and was taken for dead.

    Source:
        Benettin, Galgani, Giorgilli and Strelcyn 1980; Geist, Parlitz and Lauterborn 1990 (QR form).

    Example:
        >>> import numpy as np
        >>> J = np.repeat(np.diag([0.5, 2.0])[None], 400, axis=0)
        >>> lyapunov_exponents(J, discard=100).exponents / np.log(2)
        array([ 1., -1.])
    """
    array, single = step_jacobian_array(J)
    _, T, n, _ = array.shape
    k = n if k is None else positive_integer("k", k)
    if k > n:
        raise ValueError(f"k must be at most the number of states n = {n}, got {k}; leave it out for all of them")
    discard = _steps_discarded(discard, T)
    growth, rounded = _log_growth(array, k, discard, np.random.default_rng(seed))
    if rounded:
        warnings.warn(
            "a step Jacobian is singular to working precision though none of its rows is zero (a low-rank or repeated"
            " weight): the exponents of the directions that vanish in rounding are returned as −∞",
            RuntimeWarning,
            stacklevel=2,
        )
    growth = growth[:, discard:]
    history = np.cumsum(growth, axis=1) / np.arange(1, T - discard + 1)[:, None]
    order = np.argsort(-history[:, -1], axis=-1, kind="stable")  # directions that are not yet sorted out
    exponents = np.take_along_axis(history[:, -1], order, axis=-1)
    error = np.take_along_axis(_batch_means_error(growth), order, axis=-1)
    result = exponents, error, history
    return LyapunovExponents(*(a[0] for a in result)) if single else LyapunovExponents(*result)


def _steps_discarded(discard: Any, T: int) -> int:
    """Return `discard` as an int with at least one of the T steps left."""
    if discard != 0 or isinstance(discard, float | bool):
        discard = positive_integer("discard", discard)
    if discard >= T:
        raise ValueError(
            f"discard must be less than the {T} steps of J, got {discard}; pass fewer, or a longer sequence"
        )
    return int(discard)


def _log_growth(J: Array, k: int, discard: int, rng: np.random.Generator) -> tuple[Array, bool]:
    """(ln|R_ii| of every step [B, T, k], −∞ from the step that kills a direction; whether one vanished in rounding)."""
    B, T, n, _ = J.shape
    frame = np.linalg.qr(rng.standard_normal((B, n, k)))[0]
    growth, rounded = np.empty((B, T, k)), False
    each = np.arange(B)[:, None]
    with one_blas_thread():
        for s in range(T):
            if s == discard:
                frame = _refilled(frame, rng)
            moved = J[:, s] @ frame
            size = np.abs(moved).max(axis=2)
            rows = descending(size)  # Householder QR is then accurate row by row, and zero rows give exact zeros
            Q, R = np.linalg.qr(moved[each, rows])
            r = np.abs(R.diagonal(axis1=1, axis2=2))
            lost = r <= max(1.0, n / 32) * ROUNDING * size[each, rows[:, :k]]
            rounded |= bool((lost & (r > 0)).any()) and s >= discard
            frame = np.empty_like(Q)
            frame[each, rows] = np.where(lost[:, None, :], 0.0, Q)  # a dead direction stays dead
            growth[:, s] = np.log(r, out=np.full_like(r, -np.inf), where=~lost)
    return growth, rounded


def _refilled(frame: Array, rng: np.random.Generator) -> Array:
    """Put fresh directions, orthogonal to the living ones, in the place of dead ones; they come last."""
    dead = ~frame.any(axis=1)
    if not dead.any():
        return frame
    order = np.argsort(dead, axis=1, kind="stable")
    living = np.take_along_axis(frame, order[:, None, :], axis=2)
    fresh = rng.standard_normal(frame.shape)
    return np.linalg.qr(np.where(np.take_along_axis(dead, order, axis=1)[:, None, :], fresh, living))[0]


def _batch_means_error(growth: Array) -> Array:
    """Standard error [B, k] of the time averages of growth [B, N, k]."""
    B, N, k = growth.shape
    length = int(np.ceil(np.sqrt(N)))
    blocks = N // length
    if blocks < 4:
        return np.full((B, k), np.nan)
    alive = np.isfinite(growth.sum(axis=1))
    kept = np.where(alive[:, None], growth[:, N - blocks * length :], 0.0)
    means = kept.reshape(B, blocks, length, k).mean(axis=2)
    return np.where(alive, means.std(axis=1, ddof=1) / np.sqrt(blocks), np.nan)

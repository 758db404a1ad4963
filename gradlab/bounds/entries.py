"""The entries of ∂h_T/∂h_t, bounded by those of the recurrent matrix on every trajectory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp

from gradlab.blas import one_blas_thread
from gradlab.bounds.arguments import check_dominated, positive_supremum
from gradlab.links import log_norms, log_zero, times
from gradlab.validation import Array, finite, lag_array, positive_integer, real_array, square_matrix

EPS = float(np.finfo(np.float64).eps)
# the largest value of |φ'(w) w| for the logistic φ, and where it is: w tanh(w/2) = 1
LOCAL_FACTOR_PEAK = 0.223871602347151
LOCAL_FACTOR_ARGMAX = 1.54340463841821


@dataclass(frozen=True, eq=False)
class EntryBound:
    """An upper bound of every entry of ∂h_T/∂h_t, and whether it vanishes.

    Attributes:
        log_bound: ≥ ln|(P_t)_ij| for all i and j, the shape of the lags.
        certified: whether the bound falls with the lag, beyond rounding: then the gradient vanishes.
    """

    log_bound: Array
    certified: bool


@dataclass(frozen=True, eq=False)
class DominanceCertificate:
    """Whether the absolute weights alone make every gradient vanish.

    Attributes:
        spectral_radius: ρ(γ|W|), as LAPACK has it.
        upper: a number ρ(γ|W|) cannot exceed.
        certified: upper < 1: ∂h_T/∂h_t → 0 on every trajectory.
        log_bound: ln‖(γ|W|)^k‖₂ ≥ ln‖P_t‖₂, the shape of the lags; it holds whether or not certified.
    """

    spectral_radius: float
    upper: float
    certified: bool
    log_bound: Array


def entry_bound(
    recurrent_matrix: ArrayLike, lags: ArrayLike, *, slope_supremum: float, J: ArrayLike | None = None
) -> EntryBound:
    """Return an upper bound of every entry of ∂h_T/∂h_t from the row sums of |W|.

    |(P_t)_ij| ≤ n (γ‖W‖_∞)^k with ‖W‖_∞ = max_i Σ_j |W_ij|, for J_s = diag(φ'(a_s)) W (or W diag(φ'(a_s))) and
    |φ'| ≤ γ: along the trajectory the largest slope serves as γ as well.

    Args:
        recurrent_matrix: W as it acts [n, n].
        lags: k = T − t, of any shape.
        slope_supremum: γ = sup|φ'|: 1 for tanh and ReLU, ¼ for the logistic function.
        J: step Jacobians [B, T, n, n] or [T, n, n] to check the hypothesis on, |J_s| ≤ γ|W| in every entry; None: it is
            not checked, and the bound is for whatever network has such steps.

    Returns:
        An `EntryBound`, certified where γ‖W‖_∞ < 1 beyond rounding.

    Raises:
        ValueError: W not a finite square matrix, a negative lag, γ not positive, or a J that breaks the hypothesis.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        Hochreiter 1991; Hochreiter & Schmidhuber 1997.

    Example:
        >>> bound = entry_bound([[0.5, -1.5], [1.0, 0.0]], [0, 1, 2], slope_supremum=0.25)
        >>> bound.log_bound / np.log(2), bound.certified
        (array([ 1.,  0., -1.]), True)
    """
    W, k = square_matrix("recurrent_matrix", recurrent_matrix), lag_array(lags)
    gamma = positive_supremum(slope_supremum)
    check_dominated(J, gamma * np.abs(W))
    log_factor = float(np.log(gamma) + log_norms(W, np.inf))
    return EntryBound(np.log(len(W)) + times(k, log_factor), log_factor < -4 * len(W) * EPS)


def logistic_entry_bound(n: int, largest_weight: float, lags: ArrayLike) -> EntryBound:
    """Return an upper bound of every entry of ∂h_T/∂h_t of a logistic network from its largest weight.

    |(P_t)_ij| ≤ n (n w_max/4)^k with w_max = max|W_ij|: it vanishes where every |W_ij| < 4/n.

    Args:
        n: number of units.
        largest_weight: w_max ≥ 0.
        lags: k = T − t, of any shape.

    Returns:
        An `EntryBound`, certified where w_max < 4/n beyond rounding.

    Raises:
        ValueError: n < 1, w_max negative or not finite, or a negative lag.
        TypeError: n or lags that are not integers, or a weight that is not real.

    Source:
        Hochreiter 1991; Hochreiter & Schmidhuber 1997.

    Example:
        >>> bound = logistic_entry_bound(4, 0.5, [1, 2])
        >>> bound.log_bound / np.log(2), bound.certified
        (array([1., 0.]), True)
    """
    n, k = positive_integer("n", n), lag_array(lags)
    weight = finite("largest_weight", real_array("largest_weight", largest_weight))
    if weight.ndim != 0 or weight < 0:
        raise ValueError(f"largest_weight must be a single number max|W_ij| ≥ 0, got {largest_weight!r}")
    log_factor = float(log_zero(weight) + np.log(n / 4))
    return EntryBound(np.log(n) + times(k, log_factor), log_factor < -8 * EPS)


def local_factor(w: ArrayLike, output: ArrayLike = 1.0) -> Array:
    """Return the factor by which one logistic unit scales an error that passes once through its self-connection.

    |φ'(w y) w| with φ the logistic function and y the unit's earlier output. For |y| = 1 it never exceeds
    `LOCAL_FACTOR_PEAK` = 0.2239, which it has at w = ±`LOCAL_FACTOR_ARGMAX` = ±1.5434; in general, that over |y|: a
    large weight saturates the unit and does not help.

    Args:
        w: weight, of any shape.
        output: y, of a shape that broadcasts.

    Returns:
        The factor, of the common shape.

    Raises:
        ValueError: entries that are not finite, or shapes that do not broadcast.
        TypeError: entries that are not real numbers.

    Source:
        Hochreiter 1991; Hochreiter & Schmidhuber 1997.

    Example:
        >>> round(float(local_factor(LOCAL_FACTOR_ARGMAX)), 15) == LOCAL_FACTOR_PEAK
        True
    """
    weight, y = finite("w", real_array("w", w)), finite("output", real_array("output", output))
    a = weight * y
    return np.abs(weight) * expit(a) * expit(-a)


def dominating_entries(
    recurrent_matrix: ArrayLike, lags: ArrayLike, *, slope_supremum: float, J: ArrayLike | None = None
) -> Array:
    """Return upper bounds of |∂h_T/∂h_t|, entry by entry, that hold on every trajectory.

    |(P_t)_ij| ≤ ((γ|W|)^k)_ij, for J_s = diag(φ'(a_s)) W (or W diag(φ'(a_s))) and |φ'| ≤ γ. Attained where the slopes
    are at their supremum and no entry of W is negative.

    Args:
        recurrent_matrix: W as it acts [n, n].
        lags: k = T − t, of any shape.
        slope_supremum: γ = sup|φ'|.
        J: step Jacobians [B, T, n, n] or [T, n, n] to check the hypothesis on, |J_s| ≤ γ|W| in every entry; None: it is
            not checked, and the bound is for whatever network has such steps.

    Returns:
        Logarithms [*lags, n, n] in nats; −∞ where no path of k connections leads from j to i. They are summed as
        logarithms: no entry under- or overflows.

    Raises:
        ValueError: W not a finite square matrix, a negative lag, γ not positive, or a J that breaks the hypothesis.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        |AB| ≤ |A||B|, entry by entry.

    Example:
        >>> np.exp(dominating_entries([[0.5, -0.5], [0.0, 0.5]], 2, slope_supremum=1.0))
        array([[0.25, 0.5 ],
               [0.  , 0.25]])
    """
    W, k = square_matrix("recurrent_matrix", recurrent_matrix), lag_array(lags)
    gamma = positive_supremum(slope_supremum)
    check_dominated(J, gamma * np.abs(W))
    log_step = log_zero(np.abs(W)) + np.log(gamma)
    wanted, place = np.unique(k, return_inverse=True)
    out = np.empty((len(wanted), *W.shape))
    power, done = log_zero(np.eye(len(W))), 0
    for i, lag in enumerate(wanted):
        power = _log_product(_log_power(log_step, int(lag) - done), power)
        out[i], done = power, int(lag)
    return out[place.reshape(k.shape)]


def dominance_certificate(
    recurrent_matrix: ArrayLike, lags: ArrayLike, *, slope_supremum: float, J: ArrayLike | None = None
) -> DominanceCertificate:
    """Return whether the absolute weights make the gradient vanish on every trajectory.

    ‖P_t‖₂ ≤ ‖(γ|W|)^k‖₂, and ρ(γ|W|) < 1 makes that fall to 0: unlike ρ(W), ρ(γ|W|) certifies. It does so for some
    matrices of norm above 1/γ, where the chain promises nothing.

    ρ is not taken from LAPACK, whose eigenvalues of a defective matrix are off by ε^{1/n}: for A ≥ 0 and any x > 0,
    ρ(A) ≤ max_i (Ax)_i/x_i. The x that are tried are all ones, the Perron vector, and (I − A)^{-1}·1, which is positive
    and shrinks under A exactly if ρ(A) < 1; and all of them for Aᵀ.

    Args:
        recurrent_matrix: W as it acts [n, n].
        lags: k = T − t, of any shape.
        slope_supremum: γ = sup|φ'|, for J_s = diag(φ'(a_s)) W (or W diag(φ'(a_s))).
        J: step Jacobians [B, T, n, n] or [T, n, n] to check the hypothesis on, |J_s| ≤ γ|W| in every entry; None: it is
            not checked, and the bound is for whatever network has such steps.

    Returns:
        A `DominanceCertificate`.

    Raises:
        ValueError: W not a finite square matrix, a negative lag, γ not positive, or a J that breaks the hypothesis.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        |AB| ≤ |A||B|, entry by entry; the quotients are those of Collatz and Wielandt.

    Example:
        >>> c = dominance_certificate([[0.5, -9.0], [0.0, 0.5]], [1, 100], slope_supremum=1.0)
        >>> c.certified, (c.log_bound / np.log(2)).round(2)
        (True, array([  3.17, -89.19]))
    """
    W = square_matrix("recurrent_matrix", recurrent_matrix)
    A = np.abs(W) * positive_supremum(slope_supremum)
    entries = dominating_entries(W, lags, slope_supremum=slope_supremum, J=J)
    largest = entries.max(axis=(-2, -1))
    shift = np.where(np.isfinite(largest), largest, 0.0)
    with one_blas_thread():
        log_bound = log_norms(np.exp(entries - shift[..., None, None])) + shift
        radius = float(np.abs(np.linalg.eigvals(A)).max())
        upper = min(_collatz_upper(A), _collatz_upper(A.T))
    return DominanceCertificate(radius, max(upper, 0.0), upper < 1, log_bound)


def _collatz_upper(A: Array) -> float:
    """Return the least max_i (Ax)_i/x_i over a few x > 0, with room for its rounding."""
    n = len(A)
    values, vectors = np.linalg.eig(A)
    perron = np.abs(vectors[:, int(np.argmax(np.abs(values)))])
    trials = [np.ones(n), perron + 1e-8 * perron.max()]
    with contextlib.suppress(np.linalg.LinAlgError):  # ill-conditioned is no harm: any x > 0 that comes out will do
        trials.append(np.linalg.solve(np.eye(n) - A, np.ones(n)))
    quotients = [float((A @ x / x).max()) for x in trials if (x > 0).all() and np.isfinite(x).all()]
    return min(quotients) * (1 + 4 * n * EPS)


def _log_product(A: Array, B: Array) -> Array:
    """Return ln(e^A e^B)."""
    rows, columns = A.max(axis=1, keepdims=True), B.max(axis=0, keepdims=True)
    rows, columns = np.where(np.isfinite(rows), rows, 0.0), np.where(np.isfinite(columns), columns, 0.0)
    scaled = np.exp(A - rows) @ np.exp(B - columns)
    out = log_zero(scaled) + rows + columns
    # terms that underflow are below 1e-308, so a sum above 1e-290 does not miss them; the others are done again
    reached = np.isfinite(A).astype(float) @ np.isfinite(B) > 0
    for i, j in zip(*np.nonzero(reached & (scaled < 1e-290)), strict=True):
        out[i, j] = logsumexp(A[i] + B[:, j])
    return out


def _log_power(A: Array, exponent: int) -> Array:
    """Return ln((e^A)^exponent) by squaring."""
    power: NDArray[np.float64] = log_zero(np.eye(len(A)))
    while exponent:
        if exponent & 1:
            power = _log_product(A, power)
        exponent >>= 1
        if exponent:
            A = _log_product(A, A)
    return power

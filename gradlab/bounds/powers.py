"""Norms of powers of the recurrent matrix: how far a linear network grows before its spectral radius has its way.

W^k is ∂h_T/∂h_t of a linear network at lag k = T − t. The bounds are natural logarithms, of the shape of the lags.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy.special import gammaln, logsumexp

from gradlab.blas import one_blas_thread
from gradlab.links import LN2, log_norms, log_zero, times
from gradlab.spectrum import numerical_radius, recurrent_spectrum, spectral_radius
from gradlab.validation import Array, lag_array, square_matrix

EPS = float(np.finfo(np.float64).eps)
CHUNK = 1 << 18  # entries of shifted matrices that are decomposed together


@dataclass(frozen=True, eq=False)
class KreissBounds:
    """The Kreiss constant K and what it says of the transient sup_k ‖W^k‖₂.

    Attributes:
        constant_lower: a number K is at least.
        constant_upper: a number K cannot exceed; ∞ where ρ(W) < 1 does not hold.
        transient_lower: `constant_lower` ≤ sup_k ‖W^k‖₂.
        transient_upper: e n `constant_upper` ≥ sup_k ‖W^k‖₂.
    """

    constant_lower: float
    constant_upper: float
    transient_lower: float
    transient_upper: float


@dataclass(frozen=True, eq=False)
class SteinBound:
    """The exponential bound of ‖W^k‖₂ in the norm in which W contracts.

    Attributes:
        log_bound: ½ ln κ(X) + ½ k ln(1 − 1/λ_max(X)) ≥ ln‖W^k‖₂; +∞ where not certified.
        certified: whether X − WᵀXW is positive definite beyond rounding, which proves ρ(W) < 1.
        condition: κ(X) ≥ 1, the square of the largest transient that the bound allows; ∞ where not certified.
    """

    log_bound: Array
    certified: bool
    condition: float


def spectral_radius_power_bound(W: ArrayLike, lags: ArrayLike) -> Array:
    """Return the lower bound of ln‖W^k‖₂ that the spectral radius gives.

    k ln ρ(W) ≤ ln‖W^k‖, with equality for all k if W is normal. It is the only direction in which ρ bounds anything.

    Args:
        W: recurrent matrix [n, n].
        lags: k ≥ 0, of any shape.

    Returns:
        k ln ρ(W) in nats, the shape of the lags. The eigenvalues are those of a matrix within about nε‖W‖ of W.

    Raises:
        ValueError: W is not a finite square matrix, or a negative lag.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        ρ(W)^k = ρ(W^k), and no norm is below the spectral radius.

    Example:
        >>> spectral_radius_power_bound([[0.5, 9.0], [0.0, 0.5]], [0, 3]) / np.log(2)
        array([ 0., -3.])
    """
    return times(lag_array(lags), log_zero(np.asarray(spectral_radius(W))))


def numerical_radius_power_bound(W: ArrayLike, lags: ArrayLike) -> Array:
    """Return the upper bound of ln‖W^k‖₂ that the numerical radius gives.

    ‖W^k‖ ≤ 2 w(W)^k, w(W) = max |x*Wx| over unit x. w is found on a grid of angles and inflated by 1/cos(Δθ/2), so that
    the bound stays rigorous. Attained by [[0, 2], [0, 0]] at k = 1, where the inflation is 1.0012.

    Args:
        W: recurrent matrix [n, n].
        lags: k ≥ 0, of any shape.

    Returns:
        ln 2 + k ln w in nats, the shape of the lags.

    Raises:
        ValueError: W is not a finite square matrix, or a negative lag.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        The power inequality w(W^k) ≤ w(W)^k, and ‖A‖ ≤ 2 w(A).

    Example:
        >>> np.exp(numerical_radius_power_bound([[0.5, 0.0], [0.0, 0.5]], [1, 2]))
        array([1. , 0.5])
    """
    k = lag_array(lags)
    return LN2 + times(k, log_zero(np.asarray(numerical_radius(W)[1])))


def henrici_power_bound(W: ArrayLike, lags: ArrayLike) -> Array:
    """Return the upper bound of ln‖W^k‖₂ from the spectral radius and the departure from normality.

    ‖W^k‖ ≤ Σ_{j<n} C(k, j) ρ^{k−j} ‖N‖₂^j, W = Q(Λ + N)Q* the complex Schur form with N strictly upper triangular, so
    that N^n = 0; ‖N‖₂ ≤ √(‖W‖_F² − Σ|λ|²). Equality for normal W: N = 0.

    Args:
        W: recurrent matrix [n, n].
        lags: k ≥ 0, of any shape.

    Returns:
        The logarithm in nats, the shape of the lags; −∞ where W^k = 0 is certain. The Schur form is that of a matrix
        within about nε‖W‖ of W.

    Raises:
        ValueError: W is not a finite square matrix, or a negative lag.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        Henrici 1962 (the departure from normality).

    Example:
        >>> np.exp(henrici_power_bound([[0.5, 1.0], [0.0, 0.5]], [1, 2]))
        array([1.5 , 1.25])
    """
    matrix, k = square_matrix("W", W), lag_array(lags)
    n = len(matrix)
    with one_blas_thread():
        triangle = scipy.linalg.schur(matrix, output="complex")[0]
        departure = log_zero(np.asarray(scipy.linalg.svdvals(np.triu(triangle, 1))[0]))
    radius = log_zero(np.abs(np.diag(triangle)).max())
    j = np.arange(n)
    rest = np.maximum(k[..., None] - j, 0)
    terms = gammaln(k + 1.0)[..., None] - gammaln(j + 1.0) - gammaln(rest + 1.0) + times(rest, radius)
    return np.asarray(logsumexp(np.where(k[..., None] < j, -np.inf, terms + times(j, departure)), axis=-1))


def stein_power_bound(W: ArrayLike, lags: ArrayLike) -> SteinBound:
    """Return the exponential upper bound of ln‖W^k‖₂ in the metric of Stein's equation.

    With ρ(W) < 1, X = Σ_j (Wᵀ)^j W^j solves X − WᵀXW = I, and xᵀXx falls by 1 − 1/λ_max(X) at least with each step:
    ‖W^k‖ ≤ √κ(X) (1 − 1/λ_max(X))^{k/2}. Equality for a multiple of an orthogonal matrix.

    X is checked, not trusted: with δ = λ_min(X − WᵀXW), less its rounding, in the place of 1, the inequality holds for
    whatever X > 0 the solver returned.

    Args:
        W: recurrent matrix [n, n].
        lags: k ≥ 0, of any shape.

    Returns:
        A `SteinBound`; not certified, and +∞, where ρ(W) ≥ 1 or is so near to it that rounding decides.

    Raises:
        ValueError: W is not a finite square matrix, or a negative lag.
        TypeError: entries that are not real numbers, or lags that are not integers.

    Source:
        Lyapunov's second method for the linear recurrence, with Stein's equation.

    Example:
        >>> bound = stein_power_bound([[0.0, 0.5], [-0.5, 0.0]], [0, 1, 2])
        >>> np.exp(bound.log_bound).round(12), bound.certified
        (array([1.  , 0.5 , 0.25]), True)
    """
    matrix, k = square_matrix("W", W), lag_array(lags)
    n = len(matrix)
    nothing = SteinBound(np.full(k.shape, np.inf), False, float("inf"))
    with one_blas_thread():
        if spectral_radius(matrix) >= 1:
            return nothing
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)  # what comes of it is checked below
                X = scipy.linalg.solve_discrete_lyapunov(matrix.T, np.eye(n))
        except scipy.linalg.LinAlgError:
            return nothing
        X = (X + X.T) / 2
        if not np.isfinite(X).all():
            return nothing
        sizes = np.linalg.eigvalsh(X)
        decrease = np.linalg.eigvalsh(X - matrix.T @ X @ matrix)[0]
        norm = float(np.linalg.norm(matrix, 2))
    rounding = 4 * n * EPS * (1 + norm * norm) * sizes[-1]
    lowest, delta = float(sizes[0] - 4 * n * EPS * sizes[-1]), float(decrease - rounding)
    if lowest <= 0 or delta <= 0:
        return nothing
    condition = float(sizes[-1]) / lowest
    rate = float(np.log1p(-min(delta / sizes[-1], 1 - EPS)))
    return SteinBound(0.5 * np.log(condition) + times(k, 0.5 * rate), True, condition)


def kreiss_bounds(W: ArrayLike, *, precision: float = 0.1, evaluations: int = 50_000) -> KreissBounds:
    """Return an interval for the Kreiss constant, and one for the transient that follows from it.

    K(W) ≤ sup_k ‖W^k‖ ≤ e n K(W), K(W) = sup_{|z|>1} (|z| − 1)‖(zI − W)^{-1}‖. If σ1(W) ≤ 1 (to rounding), both are 1.

    The lower value is attained at some z (`recurrent_spectrum`). The upper one is proved: σ_min(zI − W) changes by no
    more than z does, so that its value at the centre of a cell bounds the quotient in all of the cell. Cells of the
    ring 1 < |z| ≤ 1 + c(σ1 − 1) are halved until none may exceed the largest quotient seen by more than `precision`;
    outside, (|z| − 1)/(|z| − σ1) ≤ c/(c − 1) serves. The number of cells grows with K/`precision`; where they are too
    many, the transient itself, K ≤ sup_k ‖W^k‖, bounds K. For a random matrix of 64 it takes some seconds.

    Args:
        W: recurrent matrix [n, n].
        precision: relative width of the interval at which the search stops, > 0.
        evaluations: singular value decompositions after which it stops in any case, with a wider interval.

    Returns:
        A `KreissBounds`; the upper values are ∞ if ρ(W) ≥ 1 (then K may be infinite, and is if ρ > 1).

    Raises:
        ValueError: W is not a finite square matrix, or `precision` or `evaluations` not positive.
        TypeError: entries that are not real numbers.

    Source:
        The Kreiss matrix theorem: Trefethen & Embree 2005, Spectra and Pseudospectra.

    Example:
        >>> bounds = kreiss_bounds([[0.5, 4.0], [0.0, 0.5]])
        >>> round(bounds.constant_lower, 6), bounds.constant_upper < 1.1001 * bounds.constant_lower
        (2.125, True)
        >>> bounds.transient_lower < 4.061553 < bounds.transient_upper    # what recurrent_spectrum finds
        True
    """
    matrix = square_matrix("W", W)
    if not precision > 0 or not evaluations > 0:
        raise ValueError(f"precision and evaluations must be positive, got {precision} and {evaluations}")
    n = len(matrix)
    norm = float(np.exp(log_norms(matrix)))
    if norm <= 1 + 4 * n * EPS:
        return KreissBounds(1.0, 1.0, 1.0, math.e * n)
    spectrum = recurrent_spectrum(matrix)
    lower, upper = spectrum.kreiss_lower_bound, float("inf")
    if spectrum.spectral_radius < 1:
        upper = spectrum.transient_peak_upper
        if upper > lower * (1 + precision):
            with one_blas_thread():
                upper = min(upper, _kreiss_upper(matrix, norm, lower, precision, int(evaluations)))
    return KreissBounds(lower, upper, lower, math.e * n * upper)


def _kreiss_upper(W: Array, norm: float, lower: float, precision: float, evaluations: int) -> float:
    """Return a number that (|z| − 1)/σ_min(zI − W) exceeds nowhere outside the unit circle."""
    n = len(W)
    c = 2 + 2 / precision
    far = c / (c - 1)  # < 1 + precision/2
    cells = np.array([[0.0, c * (norm - 1), 0.0, np.pi]])  # |z| − 1 and angle, from and to; W is real
    settled, best = far, max(lower, 1.0)
    while len(cells) and evaluations > 0:
        d, angle = cells[:, :2].mean(axis=1), cells[:, 2:].mean(axis=1)
        sigma, rounding = _smallest_shifted(W, (1 + d) * np.exp(1j * angle)), 4 * n * EPS * (1 + d + norm)
        best = max(best, float((d / (sigma + rounding)).max()))
        sigma -= rounding
        evaluations -= len(cells)
        reach = (cells[:, 1] - cells[:, 0]) / 2 + (1 + d) * (cells[:, 3] - cells[:, 2]) / 2
        with np.errstate(divide="ignore"):
            quotient = np.where(sigma > reach, cells[:, 1] / np.maximum(sigma - reach, 0.0), np.inf)
        done = quotient <= best * (1 + precision)
        settled = max(settled, float(quotient[done].max(initial=0.0)))
        cells, quotient, d = cells[~done], quotient[~done], d[~done]
        if evaluations <= 0 and len(cells):
            return max(settled, float(quotient.max()))
        radial = cells[:, 1] - cells[:, 0] >= (1 + d) * (cells[:, 3] - cells[:, 2])
        middle = np.where(radial, d, cells[:, 2:].mean(axis=1))
        first, second = cells.copy(), cells.copy()
        rows, column = np.arange(len(cells)), np.where(radial, 0, 2)
        first[rows, column + 1], second[rows, column] = middle, middle
        cells = np.concatenate([first, second])
    return max(settled, best)


def _smallest_shifted(W: Array, z: np.ndarray) -> Array:
    """Return σ_min(zI − W) for each z."""
    out, size = np.empty(len(z)), max(1, CHUNK // W.size)
    for i in range(0, len(z), size):
        shifted = z[i : i + size, None, None] * np.eye(len(W)) - W
        out[i : i + size] = np.linalg.svd(shifted, compute_uv=False)[:, -1]
    return out

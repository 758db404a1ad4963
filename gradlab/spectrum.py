"""What the recurrent matrix alone says: eigenvalues, singular values, and how far from normal it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import ztrtrs
from scipy.optimize import minimize, minimize_scalar

from gradlab.blas import one_blas_thread
from gradlab.validation import Array, square_matrix

EPS = float(np.finfo(np.float64).eps)
ANGLES = 33  # grid on [0, π] for the numerical radius: inflation 1/cos(π/64) = 1.0012
POWERS = 1000  # powers taken one by one before the transient is bracketed by doubling
LOG_DISTANCES = np.linspace(-18, 4, 23)  # ln(|z| − 1) where the Kreiss constant is sought: 1.5e-8 to 55
DOUBLINGS = 45  # 1000·2^45 steps: a radius of 1 − 1e-15 has shrunk by then


@dataclass(frozen=True, eq=False)
class RecurrentSpectrum:
    """Spectral quantities of one recurrent matrix W [n, n].

    Attributes:
        spectral_radius: ρ(W) = max|λ|.
        sigma_max: σ1(W) = ‖W‖₂.
        sigma_min: σn(W).
        numerical_radius: w(W) = max |x*Wx| over unit x; the largest value found, so never above w(W).
        numerical_radius_upper: a number w(W) cannot exceed.
        henrici_departure: ‖N‖_F = √(‖W‖_F² − Σ|λ|²), 0 exactly for a normal matrix.
        eigenvector_condition: κ(V) of unit eigenvectors V, so that ‖W^k‖ ≤ κ(V) ρ^k; 1 if normal, ∞ if defective.
        kreiss_lower_bound: a number the Kreiss constant is at least; ∞ if ρ > 1.
        transient_peak: sup_{k≥0} ‖W^k‖₂, the largest value found; 1 means no transient growth, ∞ if ρ > 1.
        transient_peak_upper: a number the supremum cannot exceed; equal to `transient_peak` where it was settled.
        eigenvalues: complex [n], |λ| descending.
        singular_values: [n], descending.
    """

    spectral_radius: float
    sigma_max: float
    sigma_min: float
    numerical_radius: float
    numerical_radius_upper: float
    henrici_departure: float
    kreiss_lower_bound: float
    transient_peak: float
    transient_peak_upper: float
    eigenvalues: NDArray[np.complex128]
    singular_values: Array
    eigenvector_condition: float


def spectral_radius(W: ArrayLike) -> float:
    """Return the spectral radius ρ(W) = max_i |λ_i(W)|.

    ρ governs ‖W^k‖^{1/k} as k → ∞. It certifies neither vanishing nor exploding gradients of a nonlinear
    network, nor anything at finite k when W is not normal.

    Args:
        W: recurrent matrix [n, n].

    Returns:
        ρ(W) ≥ 0. Eigenvalues of a defective block of size m are only known to about ε^{1/m}.

    Raises:
        ValueError: W is not a finite square matrix.
        TypeError: W does not hold real numbers.

    Example:
        >>> spectral_radius([[0.0, 100.0], [0.0, 0.0]])
        0.0
    """
    return float(np.abs(np.linalg.eigvals(square_matrix("W", W))).max())


def numerical_radius(W: ArrayLike) -> tuple[float, float]:
    """Return an interval that holds the numerical radius w(W) = max |x*Wx| over unit x.

    Args:
        W: recurrent matrix [n, n].

    Returns:
        (the largest value found, a number w(W) cannot exceed); see `recurrent_spectrum`.

    Raises:
        ValueError: W is not a finite square matrix.
        TypeError: W does not hold real numbers.

    Source:
        Johnson 1978 (numerical range from its support lines).

    Example:
        >>> lower, upper = numerical_radius([[0.0, 2.0], [0.0, 0.0]])
        >>> round(lower, 12), 1 <= upper < 1.002
        (1.0, True)
    """
    matrix = square_matrix("W", W)
    with one_blas_thread():
        return _numerical_radius(matrix)


def recurrent_spectrum(W: ArrayLike, *, precision: float = EPS) -> RecurrentSpectrum:
    """Return the spectral quantities of a recurrent matrix, non-normality included.

    For every k ≥ 0, ρ^k ≤ ‖W^k‖ ≤ 2 w(W)^k, and K(W) ≤ sup_k ‖W^k‖ ≤ e n K(W) with the Kreiss constant
    K(W) = sup_{|z|>1} (|z| − 1) ‖(zI − W)^{-1}‖.

    How each is computed, and what it certifies:

    - *Numerical radius*, w(W) = max_θ λ_max(Re e^{iθ}W), on a grid of [0, π] (W is real, so −θ adds nothing)
      and refined about the best angles. Every value is attained, so it is a lower bound. Some grid angle lies
      within Δθ/2 of the best, hence w ≤ (grid maximum)/cos(Δθ/2): `numerical_radius_upper`, with Δθ = π/32.
    - *Departure from normality*: the strict upper triangle of the complex Schur form. It equals
      √(‖W‖_F² − Σ|λ|²) and does not cancel: its error is of order n ε‖W‖_F, not √ε‖W‖_F.
    - *Eigenvectors*, W = VΛV^{-1} with columns of length 1, which makes κ(V) at most √n times the least possible (van
      der Sluis 1969). 1 where the departure is rounding, as the Schur vectors then serve; ∞ where V is singular to
      rounding. A defective block of size m that rounding has split shows κ of about ε^{−(m−1)/m}, not ∞.
    - *Kreiss constant*: any z outside the unit circle gives a lower bound. z is sought with the Schur form and
      the value at the best z is taken from a singular value decomposition, less its rounding (n ε‖zI − W‖).
    - *Transient*: powers are taken until some ‖W^m‖ ≤ 1. Then ‖W^{qm+r}‖ ≤ ‖W^r‖, so the maximum over k < m is
      the supremum. If 1000 powers do not get there, the exponent is doubled and the supremum bracketed by
      sup_{k<2m} ‖W^k‖ ≤ max(1, ‖W^m‖) sup_{k<m} ‖W^k‖. Without end, as with ρ = 1 and an oblique eigenvector,
      the upper value is ∞; powers that still grow in the end (a Jordan block at ρ = 1) give ∞ for both.

    A radius up to 10 n ε max(1, ‖W‖) above 1 counts as 1, ε being the `precision` in which W was stored: an
    orthogonal W in float32 has ρ ≈ 1 + 1e-8, and its powers would grow after 1e8 steps. Floating-point powers of a
    very non-normal W behave like those of a matrix n ε‖W‖ away from it.

    Args:
        W: recurrent matrix as it acts, a = W h (the transpose of a Keras `recurrent_kernel`) [n, n].
        precision: relative rounding of the entries, ``np.finfo(np.float32).eps`` for weights trained in float32.

    Returns:
        A `RecurrentSpectrum`.

    Raises:
        ValueError: W is not a finite square matrix.
        TypeError: W does not hold real numbers.

    Source:
        Trefethen & Embree 2005, Spectra and Pseudospectra (Kreiss matrix theorem, transients); Henrici 1962
        (departure from normality); Johnson 1978 (numerical range from its support lines); van der Sluis 1969 (scaling).

    Example:
        >>> w = recurrent_spectrum([[0.5, 4.0], [0.0, 0.5]])
        >>> w.spectral_radius, round(w.numerical_radius, 9), w.henrici_departure
        (0.5, 2.5, 4.0)
        >>> round(w.transient_peak, 6), w.transient_peak_upper == w.transient_peak
        (4.061553, True)
        >>> w = recurrent_spectrum([[0.5, 3.0], [0.0, 0.1]])    # eigenvectors at the angle θ, tan θ = 0.4/3
        >>> round(w.eigenvector_condition, 6)    # cot θ/2
        15.066373
    """
    matrix = square_matrix("W", W)
    n = len(matrix)
    with one_blas_thread():
        eigenvalues, vectors = np.linalg.eig(matrix)
        eigenvalues = eigenvalues.astype(np.complex128)[np.argsort(-np.abs(eigenvalues), kind="stable")]
        radius = float(np.abs(eigenvalues[0]))
        sigma: Array = np.linalg.svd(matrix, compute_uv=False).astype(np.float64)
        triangle = scipy.linalg.schur(matrix, output="complex")[0]
        departure = _frobenius(np.triu(triangle, 1))
        condition = _eigenvector_condition(vectors, departure <= 10 * n * EPS * _frobenius(matrix))
        w_lower, w_upper = _numerical_radius(matrix)
        rounding = 10 * n * max(precision, EPS)
        if radius > 1 + rounding * max(1.0, sigma[0]):
            kreiss = peak = peak_upper = float("inf")
        else:
            inside = max(1.0, radius)
            kreiss = _kreiss_lower_bound(matrix / inside, triangle / inside, eigenvalues / inside)
            peak, peak_upper = _transient_peak(matrix / inside, rounding)
    return RecurrentSpectrum(
        spectral_radius=radius,
        sigma_max=float(sigma[0]),
        sigma_min=float(sigma[-1]),
        numerical_radius=w_lower,
        numerical_radius_upper=w_upper,
        henrici_departure=departure,
        kreiss_lower_bound=kreiss,
        transient_peak=peak,
        transient_peak_upper=peak_upper,
        eigenvalues=eigenvalues,
        singular_values=sigma,
        eigenvector_condition=condition,
    )


def _eigenvector_condition(vectors: NDArray[Any], normal: bool) -> float:
    """Return κ of unit eigenvectors; LAPACK's own need not be orthogonal where a normal W has equal eigenvalues."""
    if normal:
        return 1.0
    sigma = np.linalg.svd(vectors, compute_uv=False)
    return float(sigma[0] / sigma[-1]) if sigma[-1] > len(vectors) * EPS * sigma[0] else float("inf")


def _frobenius(matrix: NDArray[Any]) -> float:
    """Return ‖A‖_F; the largest entry is taken out, so that squares of 1e-200 do not underflow."""
    largest = float(np.abs(matrix).max())
    return largest * float(np.linalg.norm(matrix / largest)) if largest > 0 else 0.0


def _numerical_radius(W: Array) -> tuple[float, float]:
    """Return (attained lower bound, rigorous upper bound) of the numerical radius."""
    symmetric, skew = (W + W.T) / 2, (W - W.T) / 2
    if not skew.any():  # normal: the numerical radius is the spectral radius
        radius = float(np.abs(np.linalg.eigvalsh(symmetric)).max())
        return radius, radius * (1 + len(W) * EPS)

    def support(theta: float) -> float:
        hermitian = np.cos(theta) * symmetric + 1j * np.sin(theta) * skew
        return float(np.linalg.eigvalsh(hermitian)[-1])

    angles = np.linspace(0, np.pi, ANGLES)
    step = angles[1]
    values = np.array([support(theta) for theta in angles])
    grid_best = float(values.max())
    # h is even about 0 and π, so reflection tells whether the ends are local maxima
    padded = np.pad(values, 1, mode="reflect")
    peaks = np.flatnonzero((values >= padded[:-2]) & (values >= padded[2:]))
    best = grid_best
    for i in peaks[np.argsort(-values[peaks])][:3]:
        bounds = (angles[i] - step, angles[i] + step)
        found = minimize_scalar(lambda theta: -support(theta), bounds=bounds, method="bounded", options={"xatol": 1e-9})
        best = max(best, -float(found.fun))
    upper = grid_best / np.cos(step / 2) * (1 + 4 * len(W) * EPS)
    return best, max(float(upper), best)


def _kreiss_lower_bound(W: Array, triangle: NDArray[Any], eigenvalues: NDArray[Any]) -> float:
    """Return (|z| − 1)/σ_min(zI − W) at the best z found, reduced by its rounding; at least 1."""
    n = len(W)
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((n, min(n, 4))))[0] + 0j

    def point(x: Array) -> complex:
        return complex((1 + np.exp(x[0])) * np.exp(1j * x[1]))

    def log_quotient(x: Array) -> float:
        if not LOG_DISTANCES[0] <= x[0] <= LOG_DISTANCES[-1]:
            return -float("inf")
        shifted = -triangle
        shifted[np.diag_indices(n)] += point(x)
        block = ztrtrs(shifted, start)[0]  # subspace iteration on the resolvent: any vector gives a lower bound
        for transpose in (2, 0):
            if not np.isfinite(block).all():
                return 800.0  # beyond float64, so larger than any other
            block = ztrtrs(shifted, np.linalg.qr(block)[0], trans=transpose)[0]
        return float(x[0] + np.log(np.linalg.norm(block, 2))) if np.isfinite(block).all() else 800.0

    near = np.abs(np.angle(eigenvalues[:16]))
    angles = np.unique(np.round([*near, *np.linspace(0, np.pi, 9)], 6))
    with np.errstate(all="ignore"):
        table = np.array([[log_quotient(np.array([d, a])) for a in angles] for d in LOG_DISTANCES])
        padded = np.pad(table, 1, constant_values=-np.inf)
        neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        peaks = np.argwhere(table >= np.maximum.reduce(neighbours))
        starts = [np.array([LOG_DISTANCES[d], angles[a]]) for d, a in peaks[np.argsort(-table[tuple(peaks.T)])][:3]]
        ends = [
            minimize(lambda x: -log_quotient(x), x, method="Nelder-Mead", options={"maxfev": 80, "xatol": 1e-6}).x
            for x in starts
        ]
    best = 1.0  # the limit |z| → ∞
    for x in [*starts, *ends]:
        z = point(x)
        shifted = z * np.eye(n) - W
        sigma = np.linalg.svd(shifted, compute_uv=False)
        best = max(best, float((abs(z) - 1 - 4 * EPS * abs(z)) / (sigma[-1] + n * EPS * sigma[0])))
    return best


def _transient_peak(W: Array, rounding: float) -> tuple[float, float]:
    """Return (largest ‖W^k‖ found, upper bound of the supremum) over k ≥ 0, for ρ(W) ≤ 1."""
    power, peak = W, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(1, POWERS + 1):
            size = float(np.linalg.norm(power))  # ‖·‖₂ ≤ ‖·‖_F, and it costs no SVD
            if not np.isfinite(size):
                return float("inf"), float("inf")
            if size > peak:
                size = float(np.linalg.norm(power, 2))
                peak = max(peak, size)
            if size <= 1 + k * rounding:  # each of the k factors carries its rounding
                return _settled(peak, k * rounding)
            if k < POWERS:
                power = power @ W
        peak_upper, growth = peak, 1.0
        for _ in range(DOUBLINGS):
            peak_upper *= max(1.0, size)
            power = power @ power
            if not np.isfinite(power).all():
                return float("inf"), float("inf")
            before, size = size, float(np.linalg.norm(power, 2))
            peak, growth = max(peak, size), size / before
            if size <= 1:
                return peak, max(peak, peak_upper)
    if growth > 1.5:  # a Jordan block of size 2 on the unit circle doubles
        return float("inf"), float("inf")
    return peak, float("inf")


def _settled(peak: float, rounding: float) -> tuple[float, float]:
    """Count growth below rounding as none: an orthogonal W has a transient peak of exactly 1."""
    peak = 1.0 if peak <= 1 + rounding else peak
    return peak, peak

"""Linear diagonal recurrences: singular values that never surprise, and gradients that grow all the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.links import log_zero, times
from gradlab.validation import Array, finite, lag_array, positive_integer, real_array


@dataclass(frozen=True, eq=False)
class SensitivityMoments:
    """Stationary second moments of h_t = λ h_{t−1} + x_t under white noise of unit variance, the shape of λ.

    Attributes:
        state: E h² = 1/(1 − λ²).
        sensitivity: E (∂h/∂λ)² = (1 + λ²)/(1 − λ²)³.
        state_variance: long-run variance of h²: N times the variance of its mean over N steps, for Gaussian x.
        sensitivity_variance: the same for (∂h/∂λ)².
    """

    state: Array
    sensitivity: Array
    state_variance: Array
    sensitivity_variance: Array

    def standard_errors(self, steps: int) -> tuple[Array, Array]:
        """Return the standard errors of the means of h² and (∂h/∂λ)² over a stationary run of Gaussian noise.

        √(long-run variance/N), for N well above the correlation time 1/(1 − λ).

        Args:
            steps: N, the length of the run.

        Raises:
            ValueError: N < 1.
            TypeError: N is not an integer.
        """
        N = positive_integer("steps", steps)
        return np.sqrt(self.state_variance / N), np.sqrt(self.sensitivity_variance / N)


def diagonal_log_singular_values(eigenvalues: ArrayLike, lags: ArrayLike) -> Array:
    """Return the singular values of ∂h_T/∂h_t of a linear diagonal recurrence.

    ln σ_i = k ln|λ_i|, exactly, for h_t = λ ∘ h_{t−1} + B x_t. As real and imaginary parts, a complex unit is a
    rotation times |λ|: each of its values then counts twice.

    Args:
        eigenvalues: λ_i, real or complex [..., n].
        lags: k = T − t, of any shape.

    Returns:
        [..., *lags, n] in nats, descending; −∞ for λ = 0 at k > 0.

    Raises:
        ValueError: eigenvalues that are not finite or have no axis, or a negative lag.
        TypeError: eigenvalues that are not numbers, or lags that are not integers.

    Source:
        Orvieto et al. 2023.

    Example:
        >>> diagonal_log_singular_values([0.5j, -1.0], [0, 2]) / np.log(2)
        array([[ 0.,  0.],
               [ 0., -2.]])
    """
    values = np.asarray(eigenvalues)
    if values.dtype.kind not in "fiuc":
        raise TypeError(f"eigenvalues must be real or complex numbers, got dtype {values.dtype}")
    if values.ndim == 0:
        raise ValueError("eigenvalues must be [..., n], got a scalar; put it in a list")
    log_moduli = -np.sort(-log_zero(finite("eigenvalues", np.abs(values).astype(np.float64))), axis=-1)
    k = lag_array(lags)
    shape = log_moduli.shape[:-1] + (1,) * k.ndim + log_moduli.shape[-1:]
    return times(k[..., None], log_moduli.reshape(shape))


def stable_eigenvalues(nu: ArrayLike, theta: ArrayLike) -> NDArray[np.complex128]:
    """Return the eigenvalues of the stable exponential parametrisation.

    λ = exp(−e^ν + iθ), so that |λ| = exp(−e^ν) < 1 whatever the parameters: no singular value of ∂h_T/∂h_t can grow.

    Args:
        nu: ν of any shape.
        theta: θ of a shape that broadcasts.

    Returns:
        λ of the common shape. |λ| rounds to 1 for ν below −37, and to 0 for ν above 6.6.

    Raises:
        ValueError: parameters that are not finite.
        TypeError: parameters that are not real.

    Source:
        Orvieto et al. 2023.

    Example:
        >>> np.abs(stable_eigenvalues([np.log(np.log(2))], [1.0])).round(12)
        array([0.5])
    """
    v, angle = finite("nu", real_array("nu", nu)), finite("theta", real_array("theta", theta))
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(-np.exp(v)) * np.exp(1j * angle), dtype=np.complex128)


def sensitivity_moments(eigenvalue: ArrayLike) -> SensitivityMoments:
    """Return how large the state and its derivative by the recurrent weight become under white noise.

    h_t = λ h_{t−1} + x_t, E x² = 1: E h² = 1/(1 − λ²) and E(∂h/∂λ)² = (1 + λ²)/(1 − λ²)³. As λ → 1 the derivative
    explodes although no Jacobian exceeds 1: memory itself makes the loss sensitive.

    The long-run variances, from which standard errors of time averages follow, are 2 Σ_k r_k² over all lags with the
    autocovariances r_k = λ^|k|/(1 − λ²) of h and λ^|k| (S_2 + |k| S_1) of ∂h/∂λ, S_2 = (1 + λ²)/(1 − λ²)³ and
    S_1 = 1/(1 − λ²)²; they suppose Gaussian x.

    Args:
        eigenvalue: λ in (−1, 1), of any shape.

    Returns:
        A `SensitivityMoments`.

    Raises:
        ValueError: |λ| ≥ 1, where nothing is stationary.
        TypeError: λ is not real.

    Source:
        Zucchet & Orvieto 2024; the variances are gradlab's.

    Example:
        >>> round(float(sensitivity_moments(0.95).sensitivity), 8)
        2052.63069168
    """
    lam = finite("eigenvalue", real_array("eigenvalue", eigenvalue))
    if (np.abs(lam) >= 1).any():
        raise ValueError(
            f"eigenvalue must lie in (−1, 1), got {lam.flat[np.abs(lam).argmax()]}: the state would diverge"
        )
    q = lam * lam
    p = (1 - lam) * (1 + lam)
    s1, s2 = 1 / p**2, (1 + q) / p**3
    # Σ_k r_k² = S_2² + 2 Σ_{k≥1} q^k (S_2 + k S_1)², by Σ q^k = q/p, Σ k q^k = q/p², Σ k² q^k = q(1 + q)/p³
    cross = s2**2 * q / p + 2 * s1 * s2 * q / p**2 + s1**2 * q * (1 + q) / p**3
    return SensitivityMoments(1 / p, s2, 2 * (1 + q) / p**3, 2 * (s2**2 + 2 * cross))

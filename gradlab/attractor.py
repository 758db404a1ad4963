"""What the Lyapunov exponents say of an attractor: its dimension and its rate of entropy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gradlab.validation import Array, finite, positive_integer, real_array


def kaplan_yorke_dimension(exponents: ArrayLike, state_size: int | None = None) -> Array:
    """Kaplan–Yorke (Lyapunov) dimension of an attractor.

        D = j + (λ_1 + … + λ_j)/|λ_{j+1}|,   j = the largest with λ_1 + … + λ_j ≥ 0

    0 where λ_1 < 0 (a fixed point), n where the sum of all n is not negative (no contraction of volume).

    Args:
        exponents: [..., k], descending, in any one unit; −∞ is allowed.
        state_size: n; the exponents given are all of them by default.

    Returns:
        Dimension [...], between 0 and n; NaN where the sum of the k < n exponents given is not yet negative.

    Raises:
        ValueError: no exponents, NaN, +∞, not descending, or more than n.

    Source:
        Kaplan and Yorke 1979; Frederickson, Kaplan, Yorke and Yorke 1983.

    Example:
        >>> kaplan_yorke_dimension([0.9, 0.0, -14.5])
        array(2.06206897)
    """
    values, n = _spectrum(exponents, state_size)
    k = values.shape[-1]
    sums = np.cumsum(values, axis=-1)
    j = np.count_nonzero(sums >= 0, axis=-1)  # sums of a descending sequence cross 0 downwards once
    inside = np.minimum(j, k - 1)[..., None]
    below = np.take_along_axis(values, inside, axis=-1)[..., 0]
    above = np.where(j > 0, np.take_along_axis(sums, np.maximum(j - 1, 0)[..., None], axis=-1)[..., 0], 0.0)
    part = np.divide(above, np.abs(below), out=np.zeros_like(above), where=(j > 0) & (j < k))
    return np.where(j < k, j + part, float(n) if k == n else np.nan)


def entropy_rate(exponents: ArrayLike, state_size: int | None = None) -> Array:
    """Sum of the positive Lyapunov exponents.

        h = Σ_{λ_i > 0} λ_i

    By Pesin's formula it is the Kolmogorov–Sinai entropy rate where the invariant measure is smooth along the unstable
    directions; by Ruelle's inequality it is never less. 0 where no exponent is positive.

    Args:
        exponents: [..., k], descending; −∞ is allowed.
        state_size: n; the exponents given are all of them by default.

    Returns:
        Entropy rate [...], in the unit of the exponents (nats per step); NaN where all k < n given are positive.

    Raises:
        ValueError: no exponents, NaN, +∞, not descending, or more than n.

    Source:
        Pesin 1977; Ruelle 1978; Eckmann and Ruelle 1985.

    Example:
        >>> entropy_rate([0.5, 0.25, -1.0])
        array(0.75)
    """
    values, n = _spectrum(exponents, state_size)
    total = np.maximum(values, 0.0).sum(axis=-1)
    return np.where((values[..., -1] > 0) & (values.shape[-1] < n), np.nan, total)


def _spectrum(exponents: ArrayLike, state_size: int | None) -> tuple[Array, int]:
    """Return (exponents [..., k], n), checked."""
    values = real_array("exponents", exponents)
    if values.ndim == 0 or 0 in values.shape:
        raise ValueError(f"exponents must be [..., k] with k ≥ 1, got shape {values.shape}")
    finite("exponents (but for −∞)", np.where(np.isneginf(values), 0.0, values))
    if (values[..., 1:] > values[..., :-1]).any():
        raise ValueError("exponents must descend along the last axis; sort them with np.sort(exponents)[..., ::-1]")
    k = values.shape[-1]
    n = k if state_size is None else positive_integer("state_size", state_size)
    if k > n:
        raise ValueError(f"there are at most state_size = {n} exponents, got {k}")
    return values, n

"""Continuous-time networks in Euler steps: the mean of their Lyapunov exponents, and the symmetry about it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gradlab.predictions.arguments import non_negative
from gradlab.validation import Array, finite, positive_integer, real_array


class LeakyMean(NamedTuple):
    """Mean of all n Lyapunov exponents of a leaky network, and how far one network strays from it.

    Attributes:
        rate: ln(1 − dt)/dt per unit of time; → −1 as dt → 0.
        standard_deviation: between networks, at most g/(n(1 − dt)) per unit of time.
    """

    rate: float
    standard_deviation: float


def leaky_mean_exponent(dt: float, n: int, gain: float) -> LeakyMean:
    """Return the mean of the Lyapunov exponents of a leaky network.

    h ← (1 − dt) h + dt (W φ(h) + input), so J = (1 − dt) I + dt W diag(φ') (or diag(φ') W inside), W_ij ~ N(0, g²/n):
    (1/n) Σ_i λ_i = mean of ln|det J|/(n dt) ≈ ln(1 − dt)/dt, whatever the gain: chaos redistributes the exponents.

    To first order in dt/(1 − dt), ln|det J| adds dt/(1 − dt) Σ_i φ'_i W_ii, of zero mean and of variance below g²
    (|φ'| ≤ 1): hence the standard deviation. What is left out is of order dt g²/n for the mean, from the second order.

    Args:
        dt: step, in (0, 1), in units of the time constant.
        n: number of units.
        gain: g ≥ 0.

    Returns:
        (rate, standard_deviation) in nats per unit of time (an exponent per step is dt times that).

    Raises:
        ValueError: dt outside of (0, 1), n < 1, or a gain negative or infinite.
        TypeError: arguments of the wrong type.

    Source:
        Sompolinsky, Crisanti & Sommers 1988 for the network; Engelken, Wolf & Abbott 2023 for its spectrum.

    Example:
        >>> leaky_mean_exponent(0.5, 100, 2.0)
        LeakyMean(rate=-1.3862943611198906, standard_deviation=0.04)
    """
    step, size = non_negative("dt", dt), positive_integer("n", n)
    if not 0 < step < 1:
        raise ValueError(f"dt must lie in (0, 1), got {dt!r}; it is the step over the time constant of the units")
    return LeakyMean(float(np.log1p(-step) / step), float(non_negative("gain", gain) / (size * (1 - step))))


def mirrored_exponents(exponents: ArrayLike) -> Array:
    """Return the spectrum of Lyapunov exponents reflected about its mean, which the symmetry says is the spectrum.

    λ_i ≈ 2 λ̄ − λ_{n+1−i}: the spectrum of a large continuous-time random network is nearly symmetric about its mean,
    and extensive, λ_i a function of i/n. Nearly: theory gives no size for the difference, so show both.

    Args:
        exponents: all n of them, descending [..., n], per step or per unit of time.

    Returns:
        2 λ̄ − λ_{n+1−i} [..., n], descending; its mean is theirs, and applied twice it returns them (to rounding).

    Raises:
        ValueError: exponents that are not finite, have no axis, or ascend.
        TypeError: exponents that are not real.

    Source:
        Engelken, Wolf & Abbott 2023.

    Example:
        >>> mirrored_exponents([0.5, -1.0, -2.5])
        array([ 0.5, -1. , -2.5])
    """
    values = finite("exponents", real_array("exponents", exponents))
    if values.ndim == 0 or (values[..., 1:] > values[..., :-1]).any():
        raise ValueError(f"exponents must be [..., n] and descend along the last axis, got shape {values.shape}")
    return 2 * values.mean(axis=-1, keepdims=True) - values[..., ::-1]

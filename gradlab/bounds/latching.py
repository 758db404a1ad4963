"""Latching: when a state is kept whatever the input, and the gradient vanishes for that very reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.bounds.ends import chain
from gradlab.links import real_steps, times
from gradlab.validation import Array, finite, real_array

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class LatchingCertificate:
    """Whether every step of a sequence contracts, and what that implies.

    Attributes:
        eta: η = max_s ‖J_s‖₂, [B] or a scalar; 1 where the mask leaves no step.
        certified: η < 1 beyond rounding, [B] or a scalar.
        log_bound: k ln η ≥ ln‖P_t‖, [B, T] or [T]; it holds whether or not η < 1.
    """

    eta: Array
    certified: NDArray[np.bool_]
    log_bound: Array


def latching_certificate(J: ArrayLike, mask: ArrayLike | None = None) -> LatchingCertificate:
    """Return whether every step contracts, which latches the state and makes the gradient vanish.

    η = max_s ‖J_s‖₂ along the trajectory. If η < 1, then ‖P_t‖ ≤ η^k: information once stored is robust to
    noise, and for the same reason its gradient vanishes.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        A `LatchingCertificate`. Its `certified` wants η < 1 − 4nε, so that an orthogonal J is not certified by
        rounding.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Bengio, Simard & Frasconi 1994.

    Example:
        >>> import numpy as np
        >>> c = latching_certificate(0.5 * np.ones((4, 1, 1)))
        >>> bool(c.certified), float(c.eta), c.log_bound / np.log(2)
        (True, 0.5, array([-4., -3., -2., -1.]))
    """
    links = chain(J, mask=mask)
    norms, lags = np.atleast_2d(links.log_step_norms), np.atleast_2d(links.lags)
    real = real_steps(mask, norms.shape)
    log_eta = np.where(real.any(axis=1), np.where(real, norms, -np.inf).max(axis=1), 0.0)
    bound = times(lags, log_eta[:, None])
    certified = log_eta < -4 * np.shape(J)[-1] * EPS
    if np.ndim(J) == 3:
        return LatchingCertificate(np.exp(log_eta[0]), certified[0], bound[0])
    return LatchingCertificate(np.exp(log_eta), certified, bound)


def latching_threshold(w: ArrayLike) -> Array:
    """Return the largest input under which a single tanh unit keeps its sign for ever.

    For a_t = w tanh(a_{t−1}) + u_t with w > 1, the sign of a is kept while |u_t| < u*,
    u* = w√(1 − 1/w) − artanh √(1 − 1/w): the distance from the diagonal to the map at its points of slope one.

    Args:
        w: self-connection, > 1, of any shape.

    Returns:
        u* of the same shape.

    Raises:
        ValueError: w ≤ 1, where the unit has one attractor and latches nothing, or w not finite.
        TypeError: w is not real.

    Source:
        Bengio, Simard & Frasconi 1994.

    Example:
        >>> round(float(latching_threshold(2.0)), 12)
        0.532839975354
    """
    weight = finite("w", real_array("w", w))
    if not (weight > 1).all():
        raise ValueError(f"w must be greater than 1, got {weight.min()}; a weaker unit cannot latch")
    s = np.sqrt((weight - 1) / weight)
    # near w = 1 both terms are s and cancel: u* = Σ_j s^{2j+3} 2(j+1)/(2j+3), 12 terms reach 0.2^24 = 2e-17
    series = s**3 * np.polynomial.polynomial.polyval(s * s, [2 * (j + 1) / (2 * j + 3) for j in range(12)])
    return np.where(s < 0.2, series, weight * s - np.log((1 + s) * np.sqrt(weight)))  # artanh, for s → 1 too

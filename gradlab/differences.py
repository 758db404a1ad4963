"""Directional derivatives by central differences, with a bound on their error that knows rounding and kinks.

The values of the function alone say how far the result can be trusted: several spacings show the truncation, third
differences over a few units in the last place show the rounding, and second differences show a kink (relu) in reach.
NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradlab.validation import Array

Integers = NDArray[np.int64]
# maps points [M, n] and the index of the base point of each [M] to values [M, m]
Function = Callable[[Array, Integers], Array]

_SPACINGS = 2.0 ** -np.arange(3, 18)
_WINDOW = 10  # values that show the rounding: seven third differences
_ULPS = 8.0  # and the spacing between them


class Derivative(NamedTuple):
    """What `directional_derivatives` returns.

    Attributes:
        value: ∂f/∂v at each point, [N, K, m].
        error: a bound on the error of every entry at a point, [N]; where several kinks are in reach, no bound but of
            the size of the jump in slope, so that a point with a large error is one to leave out.
    """

    value: Array
    error: Array


def directional_derivatives(
    function: Function, points: Array, directions: Array, eps: float, rng: np.random.Generator
) -> Derivative:
    """Return the derivatives of `function` along directions, and a bound on their error.

    D(δ) = (f(h + δv) − f(h − δv)) / 2δ at δ, δ/2, δ/4 is extrapolated to R(δ) = (4 D(δ/2) − D(δ)) / 3. The bound on
    the error of R(δ/2) has three terms, each the largest over the entries of a point, since one may agree by chance:

    - truncation: |R(δ/2) − R(δ)|, sixteen times the error of a smooth function;
    - rounding: 3/2 of that of a value (see `rounding`) over δ/4;
    - kinks: half the jump of the slope within reach. K(δ) = (f(h + δv) − 2 f(h) + f(h − δv)) / δ goes to that jump,
      and to 0 as δ f'' where f is smooth, so that 2 K(δ/2) − K(δ) is the jump to O(δ³). At a kink itself, where all
      D(δ) agree on the mean of two slopes, this is what keeps either slope from being called wrong.

    Of 13 spacings from 2^−3 down, each point takes the one with the smallest bound: one that is near a kink finds a δ
    that does not reach it.

    Args:
        function: f, see `Function`.
        points: [N, n].
        directions: v [K, n].
        eps: the spacing of numbers at 1 in the precision of `function`.
        rng: draws the direction in which rounding is looked at.

    Returns:
        `Derivative`; its error is ∞ where f is not finite around the point.

    Source:
        Ridders 1982 (extrapolation that chooses its own step); Moré and Wild 2011 (noise from difference tables).

    Example:
        >>> points, rng = np.array([[0.3], [0.0]]), np.random.default_rng(0)
        >>> found = directional_derivatives(lambda h, _: np.maximum(h, 0.0), points, np.eye(1), 2.0**-52, rng)
        >>> found.error[0] < 1e-9, found.error[1] > 0.4  # smooth, and at the kink
        (np.True_, np.True_)
    """
    (N, n), K, L = points.shape, len(directions), len(_SPACINGS)
    shifts = np.multiply.outer(np.stack([_SPACINGS, -_SPACINGS]), directions)  # [2, L, K, n]
    shifted = points[:, None, None, None] + shifts
    with np.errstate(all="ignore"):  # what is not finite becomes an infinite error
        values = function(shifted.reshape(-1, n), np.repeat(np.arange(N), 2 * L * K)).reshape(N, 2, L, K, -1)
        here = function(points, np.arange(N))[:, None, None]
        delta = _SPACINGS[:, None, None]
        D = (values[:, 0] - values[:, 1]) / (2.0 * delta)  # [N, L, K, m]
        bend = (values[:, 0] - 2.0 * here + values[:, 1]) / delta
        R = (4.0 * D[:, 1:] - D[:, :-1]) / 3.0
        jump = np.abs(2.0 * bend[:, 1:] - bend[:, :-1])
        spread = np.abs(R[:, 1:] - R[:, :-1]) + 0.5 * np.maximum(jump[:, 1:], jump[:, :-1])
        error = spread.max(axis=(2, 3)) + 1.5 * rounding(function, points, eps, rng)[:, None] / _SPACINGS[2:]
    error = np.where(np.isfinite(error), error, np.inf)
    best = np.argmin(error, axis=1)
    every = np.arange(N)
    return Derivative(R[every, best + 1], error[every, best])


def rounding(function: Function, points: Array, eps: float, rng: np.random.Generator) -> Array:
    """Return the size of the rounding in a value of `function` near each point, [N].

    Over a few units in the last place a smooth function is a straight line, and third differences leave nothing but
    the rounding: for independent errors of size σ they have size √20 σ. The largest of seven per entry is taken, and
    an ulp of the value added.

    Args:
        function: see `Function`.
        points: [N, n].
        eps: the spacing of numbers at 1 in the precision of `function`.
        rng: draws the direction.

    Returns:
        [N], NaN where f is not finite.
    """
    N, n = points.shape
    spacing = _ULPS * eps * np.maximum(1.0, np.abs(points).max(axis=1))
    steps = np.arange(_WINDOW)[:, None] * (spacing[:, None] * rng.standard_normal((N, n)))[:, None]
    values = function((points[:, None] + steps).reshape(-1, n), np.repeat(np.arange(N), _WINDOW))
    values = values.reshape(N, _WINDOW, -1)
    third = np.diff(values, n=3, axis=1)
    noise: Array = np.abs(third).max(axis=(1, 2)) + eps * np.abs(values).max(axis=(1, 2))
    return noise

"""Triangles in the scale of d: what is left of them once the scales are taken out."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.kernels.compiling import compiled
from gradlab.kernels.rows import add_row, power_of_two
from gradlab.scales import ZERO_EXPONENT

COMPILED_WITH = "eaa4ae768bac0c05"

NEGLIGIBLE = 2.0**-64  # entries of a unit triangle, which is rounded to 2^-53


@compiled
def quotient(x, y, exponent):
    """x/y · 2^exponent, with nothing lost on the way; 0 for y = 0."""
    if x == 0.0 or y == 0.0:
        return 0.0
    fraction, shift = math.frexp(x)
    divisor, down = math.frexp(y)
    return math.ldexp(fraction / divisor, max(min(exponent + shift - down, 1000), -1100))


@compiled
def in_scale(Xt, mantissa, exponent, pivots, out):
    """Put (diag(pivot·d)⁻¹ · X · diag(d))ᵀ into `out`, zero above the diagonal and where a scale is."""
    n = len(pivots)
    inverse = np.zeros(n)
    for k in range(n):
        if 1e-90 < abs(pivots[k] * mantissa[k]) < 1e90:
            inverse[k] = 1.0 / (pivots[k] * mantissa[k])
    for j in range(n):
        for k in range(out.shape[1]):
            out[j, k] = 0.0
        for k in range(j + 1):
            x, e = Xt[j, k] * mantissa[j], exponent[j] - exponent[k]
            if inverse[k] != 0.0 and abs(x) < 1e90 and e < 400:  # the rule; below 2^-1022 it is zero
                out[j, k] = x * inverse[k] * power_of_two(e)
            else:
                out[j, k] = quotient(x, pivots[k] * mantissa[k], e)


@compiled
def apply_triangle(Ut, Y):
    """Y ← U·Y for a unit upper triangle U."""
    for k in range(len(Y)):
        for j in range(k + 1, len(Y)):
            if abs(Ut[j, k]) > NEGLIGIBLE:
                add_row(Y, k, Ut[j, k], Y, j, 0, len(Y))


@compiled
def rescale(mantissa, exponent, factors):
    """Multiply d by the factors."""
    for k in range(len(mantissa)):
        fraction, shift = math.frexp(mantissa[k] * factors[k])
        mantissa[k] = fraction
        exponent[k] = exponent[k] + shift if fraction != 0.0 else ZERO_EXPONENT

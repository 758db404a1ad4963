"""Triangles in the scale of d: what is left of them once the scales are taken out."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.kernels.compiling import compiled
from gradlab.kernels.rows import add_combinations, power_of_two, transpose
from gradlab.scales import ZERO_EXPONENT

COMPILED_WITH = "11c78f0b05195cd8"

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
    irregular = False
    for k in range(n):
        if 1e-90 < abs(pivots[k] * mantissa[k]) < 1e90:
            inverse[k] = 1.0 / (pivots[k] * mantissa[k])
        else:
            irregular = True
    for j in range(n):
        outside = irregular
        for k in range(j + 1):  # the rule, without a branch; below 2^-1022 it is zero
            x, e = Xt[j, k] * mantissa[j], exponent[j] - exponent[k]
            outside |= (not abs(x) < 1e90) | (e >= 400)
            out[j, k] = x * inverse[k] * power_of_two(e)
        if outside:
            for k in range(j + 1):
                x, e = Xt[j, k] * mantissa[j], exponent[j] - exponent[k]
                if inverse[k] == 0.0 or not abs(x) < 1e90 or e >= 400:
                    out[j, k] = quotient(x, pivots[k] * mantissa[k], e)
        for k in range(j + 1, out.shape[1]):
            out[j, k] = 0.0


@compiled
def apply_triangle(Ut, Y, U):
    """Y ← U·Y for a unit upper triangle U, its transpose given; all have whole blocks of rows. U is room."""
    n = len(Ut)
    weights = np.zeros((4, n))
    transpose(Ut, n, U)
    for k in range(0, n, 4):
        stop = k + 1
        for r in range(4):
            for j in range(k + 1, n):
                weights[r, j] = 0.0
                if k + r < j and abs(U[k + r, j]) > NEGLIGIBLE:
                    weights[r, j] = U[k + r, j]
                    stop = max(stop, j + 1)
        add_combinations(Y, k, weights, Y, k + 1, stop, n, 0)


@compiled
def rescale(mantissa, exponent, factors):
    """Multiply d by the factors."""
    for k in range(len(mantissa)):
        fraction, shift = math.frexp(mantissa[k] * factors[k])
        mantissa[k] = fraction
        exponent[k] = exponent[k] + shift if fraction != 0.0 else ZERO_EXPONENT

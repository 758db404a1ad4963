"""Triangles in the scale of d: what is left of them once the scales are taken out."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.rows import add_combinations, aligned, power_of_two, transpose
from gradlab.registers import greatest, larger, load, magnitude, powers_of_two, spread, store, where_greater
from gradlab.scales import ZERO_EXPONENT

COMPILED_WITH = "380ef511f3f2f6a4"

LARGE = 2.0**400  # beyond, products of scales may leave float64
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
    n, width = len(pivots), out.shape[1]
    inverse, exponents = aligned((1, width)), np.zeros(width, np.int64)
    irregular = False
    for k in range(n):
        exponents[k] = exponent[k]
        if 1e-90 < abs(pivots[k] * mantissa[k]) < 1e90:
            inverse[0, k] = 1.0 / (pivots[k] * mantissa[k])
        else:
            irregular = True
    for j in range(n):
        size, power = spread(0.0), spread(0.0)
        whole = j // WIDTH * WIDTH
        for k in range(0, whole, WIDTH):  # the rule; below 2^-1022 it is zero
            x, p = spread(mantissa[j]) * load(Xt, j, k), powers_of_two(exponent[j], exponents, k)
            size, power = larger(size, x), larger(power, p)
            store(out, j, k, x * load(inverse, 0, k) * p)
        outside = irregular or not greatest(size) < 1e90 or greatest(power) >= LARGE
        for k in range(whole, j + 1):
            x, e = Xt[j, k] * mantissa[j], exponent[j] - exponent[k]
            outside |= (not abs(x) < 1e90) | (e >= 400)
            out[j, k] = x * inverse[0, k] * power_of_two(e)
        if outside:
            for k in range(j + 1):
                x, e = Xt[j, k] * mantissa[j], exponent[j] - exponent[k]
                if inverse[0, k] == 0.0 or not abs(x) < 1e90 or e >= 400:
                    out[j, k] = quotient(x, pivots[k] * mantissa[k], e)
        for k in range(j + 1, width):
            out[j, k] = 0.0


@compiled
def apply_triangle(Ut, Y, U):
    """Y ← U·Y for a unit upper triangle U, its transpose given; all have whole blocks of rows. U is room."""
    n = len(Ut)
    none = spread(0.0)
    transpose(Ut, n, U)
    for k in range(0, n, 4):
        stop = k + 1
        for r in range(4):
            U[k + r, k + r] = 0.0  # Y itself is there
            for j in range(k // WIDTH * WIDTH, n, WIDTH):
                x = load(U, k + r, j)
                x = where_greater(magnitude(x), spread(NEGLIGIBLE), x, none)
                store(U, k + r, j, x)
                if greatest(magnitude(x)) > 0.0:
                    stop = max(stop, min(j + WIDTH, n))
        add_combinations(Y, k, U, k, Y, k + 1, stop, n, False)


@compiled
def rescale(mantissa, exponent, factors):
    """Multiply d by the factors."""
    for k in range(len(mantissa)):
        fraction, shift = math.frexp(mantissa[k] * factors[k])
        mantissa[k] = fraction
        exponent[k] = exponent[k] + shift if fraction != 0.0 else ZERO_EXPONENT

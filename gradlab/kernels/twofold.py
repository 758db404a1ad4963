"""Products in twice the digits of float64."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled, inlined
from gradlab.kernels.rows import power_of_two
from gradlab.registers import fma, load, magnitude, spread, store

COMPILED_WITH = "380ef511f3f2f6a4"

ANCHOR = 2.0 + 2.0**-20  # times a sum of sizes, which is itself rounded: twice what it is is not quite enough


@inlined
def add_product(high, low, a, x, x_low):
    """(high, low) + a · (x + x_low): the product and the sum of high parts without rounding, what is left in `low`."""
    product = a * x
    rest = fma(a, x_low, fma(a, x, spread(0.0) - product))
    both = high + product
    part = both - high
    return both, low + (((high - (both - part)) + (product - part)) + rest)


@compiled
def add_anchored(anchored, low, other_low, a, x, x_low):
    """Add a · (x + x_low) to `anchored` + `low` + `other_low`.

    `anchored` is a sum on top of an anchor, ANCHOR times the sum of all sizes: no step halves or doubles it, and in the
    end it is more than half of the anchor. So the difference of two of its values is exact (Sterbenz), and what a step
    loses is known at the price of one operation.
    """
    after = fma(a, x, anchored)
    return after, low + fma(a, x, anchored - after), fma(a, x_low, other_low)


@compiled
def store_twofold(C_high, C_low, i, j, high, low):
    """Store high + low as two numbers that do not overlap, and return the first."""
    both = high + low
    part = both - high
    store(C_high, i, j, both)
    store(C_low, i, j, (high - (both - part)) + (low - part))
    return both


@compiled
def multiply(step, F, C_high, C_low, C_size):
    """C_high + C_low = stepᵀ · C for the triangle C[rows] of F, in twice the digits; all have whole blocks of rows.

    C_size = |step|ᵀ · |C|, to which its rounding is relative; times n/16 for more than 16 terms, as what is lost
    in each adds up, and is rounded as it does.
    """
    n, zero = len(F.rows), spread(0.0)
    more = spread(max(1.0, n / 16))
    columns, sizes = np.zeros((4, n)), np.zeros((4, n))
    for i in range(0, n, 4):  # four rows at a time
        for k in range(n):
            for r in range(4):
                columns[r, k] = step[F.rows[k], i + r] if i + r < n else 0.0
                sizes[r, k] = abs(columns[r, k])
        for j in range(0, n, WIDTH):
            size_a = size_b = size_c = size_d = zero
            for k in range(j, n):  # a row of the triangle is zero beyond its diagonal
                x = magnitude(load(F.high, k, j))
                size_a = fma(spread(sizes[0, k]), x, size_a)
                size_b = fma(spread(sizes[1, k]), x, size_b)
                size_c = fma(spread(sizes[2, k]), x, size_c)
                size_d = fma(spread(sizes[3, k]), x, size_d)
            store(C_size, i, j, more * size_a)
            store(C_size, i + 1, j, more * size_b)
            store(C_size, i + 2, j, more * size_c)
            store(C_size, i + 3, j, more * size_d)
            a = anchor_a = spread(ANCHOR) * size_a
            b = anchor_b = spread(ANCHOR) * size_b
            c = anchor_c = spread(ANCHOR) * size_c
            d = anchor_d = spread(ANCHOR) * size_d
            a_low = b_low = c_low = d_low = a_rest = b_rest = c_rest = d_rest = zero
            for k in range(j, n):
                x, x_low = load(F.high, k, j), load(F.low, k, j)
                a, a_low, a_rest = add_anchored(a, a_low, a_rest, spread(columns[0, k]), x, x_low)
                b, b_low, b_rest = add_anchored(b, b_low, b_rest, spread(columns[1, k]), x, x_low)
                c, c_low, c_rest = add_anchored(c, c_low, c_rest, spread(columns[2, k]), x, x_low)
                d, d_low, d_rest = add_anchored(d, d_low, d_rest, spread(columns[3, k]), x, x_low)
            store_twofold(C_high, C_low, i, j, a - anchor_a, a_low + a_rest)
            store_twofold(C_high, C_low, i + 1, j, b - anchor_b, b_low + b_rest)
            store_twofold(C_high, C_low, i + 2, j, c - anchor_c, c_low + c_rest)
            store_twofold(C_high, C_low, i + 3, j, d - anchor_d, d_low + d_rest)


@compiled
def scale_rows(F, exponents, C_high, C_low, C_size):
    """C_high + C_low = diag(2^exponents) · C, rows in their own order; there is no rounding, C_size = 0."""
    for k in range(len(exponents)):
        i = F.rows[k]
        factor = power_of_two(exponents[i])
        C_high[i] = factor * F.high[k]
        C_low[i] = factor * F.low[k]
        C_size[i] = 0.0

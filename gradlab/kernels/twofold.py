"""Products and eliminations in twice the digits of float64."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import UNIT, WIDTH
from gradlab.kernels.compiling import compiled, inlined
from gradlab.kernels.rows import add_row, aligned, exchange, largest_below, power_of_two
from gradlab.registers import bits_of, fma, greatest, larger, load, spread, store, total, where_greater

COMPILED_WITH = "11c78f0b05195cd8"

SINGULAR = 32 * 2.0**-53  # a pivot this far below what it was reduced from hangs on the last digits of J …
LOST = 32 * UNIT  # … and here it has no right digit left
ANCHOR = 2.0 + 2.0**-20  # times a sum of sizes, which is itself rounded: twice what it is is not quite enough
HELD = 2.0**-400  # a scaled size relative to another one that is right though some are rounded to zero
LEFT, SCALE, REDUCED, NOISE, TILT = range(5)  # for each column: its largest entry left, d, Σ|R|, Σ C_size, Σ|R/diag R|
UNDERFLOWS = 2.0**-500  # an entry of L or of a step: what next changes it, by 2^-451 at most, may make it zero


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
    """Store high + low as two numbers that do not overlap."""
    both = high + low
    part = both - high
    store(C_high, i, j, both)
    store(C_low, i, j, (high - (both - part)) + (low - part))


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
                x = larger(load(F.high, k, j), zero)
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


@inlined
def subtract_multiple(C_high, C_low, i, factors, pivot, start, stop, columnwise):
    """C[i] −= factors[:, i] · pivot in the columns start … stop, for rows i and i + 1; LEFT has the largest |C|.

    High and low are not brought back to one rounding: that can wait until they are used.
    """
    a, a_low = spread(-factors[0, i]), spread(-factors[1, i])
    b, b_low = spread(-factors[0, i + 1]), spread(-factors[1, i + 1])
    for j in range(start, stop, WIDTH):
        x, x_low = load(pivot, 0, j), load(pivot, 1, j)
        high, low = add_product(load(C_high, i, j), fma(a_low, x, load(C_low, i, j)), a, x, x_low)
        store(C_high, i, j, high)
        store(C_low, i, j, low)
        size = larger(load(columnwise, LEFT, j), high)
        high, low = add_product(load(C_high, i + 1, j), fma(b_low, x, load(C_low, i + 1, j)), b, x, x_low)
        store(C_high, i + 1, j, high)
        store(C_low, i + 1, j, low)
        store(columnwise, LEFT, j, larger(size, high))


@compiled
def scale_rows(F, exponents, C_high, C_low, C_size):
    """C_high + C_low = diag(2^exponents) · C, rows in their own order; there is no rounding, C_size = 0."""
    for k in range(len(exponents)):
        i = F.rows[k]
        factor = power_of_two(exponents[i])
        C_high[i] = factor * F.high[k]
        C_low[i] = factor * F.low[k]
        C_size[i] = 0.0


@compiled
def exchange_columns(C_high, C_low, C_size, F, columns, columnwise, a, b):
    """Exchange two columns of C and what belongs to them."""
    for i in range(len(columns)):
        C_high[i, a], C_high[i, b] = C_high[i, b], C_high[i, a]
        C_low[i, a], C_low[i, b] = C_low[i, b], C_low[i, a]
        C_size[i, a], C_size[i, b] = C_size[i, b], C_size[i, a]
    for i in range(len(columnwise)):
        columnwise[i, a], columnwise[i, b] = columnwise[i, b], columnwise[i, a]
    F.mantissa[a], F.mantissa[b] = F.mantissa[b], F.mantissa[a]
    F.exponent[a], F.exponent[b] = F.exponent[b], F.exponent[a]
    columns[a], columns[b] = columns[b], columns[a]


@inlined
def pivot_column(F, columnwise, k, rank):
    """The column from k on whose largest entry times d is largest; −1 where all that is left is zero.

    SCALE has d as plain numbers, relative to a column that once was the largest, as long as these hold it.
    """
    for j in range(k // WIDTH * WIDTH, k):
        columnwise[SCALE, j] = 0.0  # done
    best = spread(0.0)
    for j in range(k // WIDTH * WIDTH, rank, WIDTH):
        best = larger(best, load(columnwise, LEFT, j) * load(columnwise, SCALE, j))
    size = greatest(best)
    if size > HELD:
        for j in range(k, rank):
            if columnwise[LEFT, j] * columnwise[SCALE, j] == size:
                return j
    greatest_key, column = -np.inf, -1
    for j in range(k, rank):
        size = columnwise[LEFT, j] * abs(F.mantissa[j])
        key = F.exponent[j] + bits_of(size) * 2.0**-52  # log2 but for a bend between powers of two
        if size > 0.0 and key > greatest_key:
            greatest_key, column = key, j
    if column >= 0:
        top = F.exponent[column] + math.frexp(columnwise[LEFT, column])[1]
        for j in range(columnwise.shape[1]):
            inside = k <= j < rank
            columnwise[SCALE, j] = abs(F.mantissa[j]) * power_of_two(F.exponent[j] - top) if inside else 0.0
    return column


@inlined
def check_pivot(C_high, C_size, F, columnwise, k):
    """Whether pivot k has a right digit; if it hangs on the last digits of J, or has none, F.flags[0] is set.

    Both depend on what it was reduced from, for which there is a bound that is soon had: no entry of L exceeds 1 by
    more than rounding, but for those of pivots that are nothing else.
    """
    size, of_row = abs(C_high[k, k]), spread(0.0)
    for j in range(0, k, WIDTH):
        of_row = larger(of_row, load(C_size, k, j))
    reduced_from = 2.0 * (size + columnwise[REDUCED, k])
    noise = 2.0 * (C_size[k, k] + columnwise[NOISE, k] + greatest(of_row) * columnwise[TILT, k])
    if size > SINGULAR * reduced_from and size > LOST * (reduced_from + noise):
        return True
    reduced_from, noise = size, C_size[k, k]
    for i in range(k):
        reduced_from += abs(C_high[k, i] * C_high[i, k])
        noise += abs(C_high[k, i]) * C_size[i, k] + C_size[k, i] * abs(C_high[i, k] / C_high[i, i])
    lost = size <= LOST * (reduced_from + noise)
    if lost or size <= SINGULAR * reduced_from:
        F.flags[0] = True
    return not lost


@inlined
def factors_of(C_high, C_low, k, n, factors):
    """Put column k of L into `factors` [2, padded] and in its place, from row k + 1 on; whether one may underflow."""
    inverse = 1.0 / C_high[k, k]
    inverse_low = inverse * (fma(-C_high[k, k], inverse, 1.0) - C_low[k, k] * inverse)
    for i in range(k + 1):
        factors[0, i] = factors[1, i] = 0.0
    for i in range(k + 1, n):
        factors[0, i], factors[1, i] = C_high[i, k], C_low[i, k]
    small = False
    for i in range((k + 1) // WIDTH * WIDTH, n, WIDTH):
        entry = load(factors, 0, i)
        factor = entry * spread(inverse)
        rest = fma(entry, spread(inverse), spread(0.0) - factor)
        rest = rest + fma(entry, spread(inverse_low), load(factors, 1, i) * spread(inverse))
        high = factor + rest
        store(factors, 0, i, high)
        store(factors, 1, i, rest - (high - factor))
        low = where_greater(spread(UNDERFLOWS), larger(high, high), spread(1.0), spread(0.0))
        small |= total(where_greater(larger(entry, entry), spread(0.0), low, spread(0.0))) > 0.0
    for i in range(k + 1, n):
        C_high[i, k], C_low[i, k] = factors[0, i], factors[1, i]
    return small


@compiled
def eliminate(C_high, C_low, C_size, F, columns):
    """C[rows][:, columns] = L · R, in the place of C, by complete pivoting on C · diag(d); the scales d go along.

    The pivot is the largest entry of the column whose scaled size is largest, so that no entry of L, nor of R in scale,
    exceeds 1. Elimination, unlike reflections, leaves a row as small as it was: a saturated unit is not drowned.

    Args:
        C_high: [whole blocks of rows, padded], zero from row n on.
        C_low: the same.
        C_size: the same, what the rounding of C is relative to.
        F: gives d, and takes the new order of d and of the rows.
        columns: takes the order of the columns.

    Returns:
        the rank: columns from there on are zero, exactly or (F.flags[1]) as far as rounding lets one see.
    """
    n, width = len(columns), C_high.shape[1]
    columnwise, pivot, factors = aligned((TILT + 1, width)), aligned((2, width)), aligned((2, width + WIDTH))
    for j in range(n):
        F.rows[j] = columns[j] = j
        if F.mantissa[j] == 0.0:  # counts for nothing: must not decide the order of rows, nor feed noise into zeros
            for m in range(n):  # but for the noise that columns which count have of it
                pivot[0, m] = abs(F.turned[m, j])
            for i in range(n):
                add_row(C_size, i, abs(C_high[i, j]), pivot, 0, 0, n)
                C_high[i, j] = C_low[i, j] = 0.0
    for j in range(n):
        if F.mantissa[j] == 0.0:
            for i in range(n):
                C_size[i, j] = 0.0
    for j in range(0, n, WIDTH):
        size = spread(0.0)
        for i in range(n):
            size = larger(size, load(C_high, i, j))
        store(columnwise, LEFT, j, size)
    rank, k = n, 0
    while k < rank:
        column = pivot_column(F, columnwise, k, rank)
        if column < 0:  # all that is left is zero: made of zeros, or of what cancels to the last digit
            for i in range(k, n):
                for m in range(k):
                    for j in range(k, rank):
                        if C_high[i, m] * C_high[m, j] != 0.0:
                            F.flags[:] = True
                for j in range(k, rank):
                    if C_size[i, j] != 0.0:
                        F.flags[:] = True
            rank = k
            break
        if column != k:
            exchange_columns(C_high, C_low, C_size, F, columns, columnwise, k, column)
        row = largest_below(C_high, k, n)
        if row != k:
            exchange(C_high, k, row)
            exchange(C_low, k, row)
            exchange(C_size, k, row)
            F.rows[k], F.rows[row] = F.rows[row], F.rows[k]
        for j in range(k // WIDTH * WIDTH, rank, WIDTH):
            high, low = load(C_high, k, j), load(C_low, k, j)
            both = high + low
            store(C_high, k, j, both)
            store(C_low, k, j, low - (both - high))
        if not check_pivot(C_high, C_size, F, columnwise, k):
            # no right digit: it is the zero that it cannot be told from
            F.flags[1] = True
            rank -= 1
            for i in range(k, n):
                C_high[i, k] = C_low[i, k] = 0.0
            if rank != k:
                exchange_columns(C_high, C_low, C_size, F, columns, columnwise, k, rank)
            columnwise[SCALE, rank] = 0.0
            continue
        start, inverse = (k + 1) // WIDTH * WIDTH, spread(abs(1.0 / C_high[k, k]))
        for j in range(start, rank, WIDTH):
            x = load(C_high, k, j)
            store(pivot, 0, j, x)
            store(pivot, 1, j, load(C_low, k, j))
            size = larger(x, x)
            store(columnwise, LEFT, j, spread(0.0))
            store(columnwise, REDUCED, j, load(columnwise, REDUCED, j) + size)
            store(columnwise, NOISE, j, load(columnwise, NOISE, j) + load(C_size, k, j))
            store(columnwise, TILT, j, fma(inverse, size, load(columnwise, TILT, j)))
        for j in range(start, k + 1):
            pivot[0, j] = pivot[1, j] = 0.0  # whole registers are overwritten, L must not be
        if factors_of(C_high, C_low, k, n, factors):
            F.flags[0] = True  # it may be missed when the row opens again
        for i in range(k + 1, n, 2):
            subtract_multiple(C_high, C_low, i, factors, pivot, start, rank, columnwise)
        k += 1
    for i in range(rank, n):
        for j in range(rank, n):
            C_high[i, j] = C_low[i, j] = 0.0
    return rank

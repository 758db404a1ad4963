"""Elimination in twice the digits of float64: L·R of a graded matrix, by panels of eight columns."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradlab.graded import UNIT, WIDTH
from gradlab.kernels.compiling import compiled, inlined
from gradlab.kernels.reducing import LEFT, NOISE, TILT, reduce_panel, reduce_rest
from gradlab.kernels.rows import add_row, aligned, exchange, largest_below
from gradlab.registers import (
    bits_of,
    fma,
    greatest,
    larger,
    load,
    magnitude,
    spread,
    store,
    total,
    where_greater,
)
from gradlab.scales import Integers
from gradlab.validation import Array

COMPILED_WITH = "ef522eee742d0bcb"

SINGULAR = 32 * 2.0**-53  # a pivot this far below what it was reduced from hangs on the last digits of J …
LOST = 32 * UNIT  # … and here it has no right digit left
LEAST = 2.0**-1022  # a pivot below may have no inverse
LOOK_AGAIN = 1.0  # bits by which a pivot may fall short of the largest entry elsewhere, as it was before the panel
UNDERFLOWS = 2.0**-500  # an entry of L or of a step: what next changes it, by 2^-451 at most, may make it zero


class Elimination(NamedTuple):
    """C [whole blocks of rows, padded] on its way to L·R, which takes its place, and what is known of it."""

    high: Array
    low: Array
    size: Array  # what the rounding of C is relative to
    grown: Array  # |L|·|R| so far: what the rounding of L·R is relative to
    columns: Integers  # [n] which of C stands there
    columnwise: Array  # [3, padded] see above
    keys: Array  # [n] log2 of the largest entry left, times d, but for a bend between powers of two; −∞ for zeros


@inlined
def exchange_entries(A, a, b, n):
    """Exchange two columns of A in n rows."""
    for i in range(n):
        A[i, a], A[i, b] = A[i, b], A[i, a]


@compiled
def exchange_columns(of, F, a, b):
    """Exchange two columns of C and what belongs to them."""
    n = len(of.columns)
    exchange_entries(of.high, a, b, n)
    exchange_entries(of.low, a, b, n)
    exchange_entries(of.size, a, b, n)
    exchange_entries(of.grown, a, b, n)
    exchange_entries(of.columnwise, a, b, len(of.columnwise))
    F.mantissa[a], F.mantissa[b] = F.mantissa[b], F.mantissa[a]
    F.exponent[a], F.exponent[b] = F.exponent[b], F.exponent[a]
    of.columns[a], of.columns[b] = of.columns[b], of.columns[a]
    of.keys[a], of.keys[b] = of.keys[b], of.keys[a]


@inlined
def exchange_rows(of, F, a, b):
    """Exchange two rows of C and of L."""
    exchange(of.high, a, b)
    exchange(of.low, a, b)
    exchange(of.size, a, b)
    exchange(of.grown, a, b)
    F.rows[a], F.rows[b] = F.rows[b], F.rows[a]


@inlined
def find_keys(of, F, start, stop):
    """Find the keys of these columns."""
    for j in range(start, stop):
        size = of.columnwise[LEFT, j] * abs(F.mantissa[j])
        of.keys[j] = F.exponent[j] + bits_of(size) * 2.0**-52 if size > 0.0 else -np.inf


@inlined
def place_of_largest(keys, start, stop):
    """The first of the largest."""
    place = start
    for j in range(start + 1, stop):
        if keys[j] > keys[place]:
            place = j
    return place


@inlined
def check_pivot(of, F, k):
    """Whether pivot k has a right digit; if it hangs on the last digits of J, or has none, F.flags[0] is set.

    Both depend on what it was reduced from. For the noise in that there is a bound that is soon had: no entry of L
    exceeds 1 by more than rounding, but for those of pivots that are nothing else.
    """
    size, of_row = abs(of.high[k, k]), spread(0.0)
    for j in range(0, k, WIDTH):
        of_row = larger(of_row, load(of.size, k, j))
    reduced_from = size + of.grown[k, k]
    noise = 2.0 * (of.size[k, k] + of.columnwise[NOISE, k] + greatest(of_row) * of.columnwise[TILT, k])
    if size > SINGULAR * reduced_from and size > LOST * (reduced_from + noise) and size >= LEAST:
        return True
    noise = of.size[k, k]
    for i in range(k):
        noise += abs(of.high[k, i]) * of.size[i, k] + of.size[k, i] * abs(of.high[i, k] / of.high[i, i])
    lost = size <= LOST * (reduced_from + noise) or size < LEAST
    if lost or size <= SINGULAR * reduced_from:
        F.flags[0] = True
    return not lost


@inlined
def factors_of(C_high, C_low, C_grown, k, n, factors):
    """Put column k of L into `factors` [2, padded] and in its place, from row k + 1 on; whether one may underflow."""
    inverse = 1.0 / C_high[k, k]
    inverse_low = inverse * (fma(-C_high[k, k], inverse, 1.0) - C_low[k, k] * inverse)
    for i in range(k + 1):
        factors[0, i] = factors[1, i] = 0.0
    for i in range(k + 1, n):
        factors[0, i], factors[1, i] = C_high[i, k], C_low[i, k]
        C_grown[i, k] += abs(C_high[i, k])
    small = False
    for i in range((k + 1) // WIDTH * WIDTH, n, WIDTH):
        entry = load(factors, 0, i)
        factor = entry * spread(inverse)
        rest = fma(entry, spread(inverse), spread(0.0) - factor)
        rest = rest + fma(entry, spread(inverse_low), load(factors, 1, i) * spread(inverse))
        high = factor + rest
        store(factors, 0, i, high)
        store(factors, 1, i, rest - (high - factor))
        low = where_greater(spread(UNDERFLOWS), magnitude(high), spread(1.0), spread(0.0))
        small |= total(where_greater(magnitude(entry), spread(0.0), low, spread(0.0))) > 0.0
    for i in range(k + 1, n):
        C_high[i, k], C_low[i, k] = factors[0, i], factors[1, i]
    return small


@inlined
def begin(of, F):
    """Empty the columns that count for nothing, and find the largest entry of each."""
    n, turned = len(of.columns), aligned((1, of.high.shape[1]))
    for j in range(n):
        F.rows[j] = of.columns[j] = j
        if F.mantissa[j] == 0.0:  # it must not decide the order of rows, nor feed noise into zeros
            for m in range(n):  # but for the noise that columns which count have of it
                turned[0, m] = abs(F.turned[m, j])
            for i in range(n):
                add_row(of.size, i, abs(of.high[i, j]), turned, 0, 0, n)
                of.high[i, j] = of.low[i, j] = 0.0
    for j in range(n):
        if F.mantissa[j] == 0.0:
            for i in range(n):
                of.size[i, j] = 0.0
    for j in range(0, n, WIDTH):
        size = spread(0.0)
        for i in range(n):
            size = larger(size, load(of.high, i, j))
            store(of.grown, i, j, spread(0.0))
        store(of.columnwise, LEFT, j, size)


@inlined
def choose_panel(of, F, start, stop, rank):
    """Bring the largest columns, in scale, into a panel, in order; and give the key of the largest that is left out."""
    find_keys(of, F, start, rank)
    for j in range(start, stop):
        column = place_of_largest(of.keys, j, rank)
        if column != j:
            exchange_columns(of, F, j, column)
    return of.keys[place_of_largest(of.keys, stop, rank)] if stop < rank else -np.inf


@inlined
def eliminate_panel(of, F, start, stop, elsewhere, factors, pivot):
    """Eliminate the columns of a panel one by one as long as they are good for it, looking at no others.

    They are while their largest entry, in scale, is not much smaller than `elsewhere`, what was left of the others when
    the panel was chosen, and has a right digit.

    Returns:
        where to go on; `start` if even the first has no right digit.
    """
    n = len(of.columns)
    for k in range(start, stop):
        if k > start:
            find_keys(of, F, k, stop)
            column = place_of_largest(of.keys, k, stop)
            if of.keys[k] >= of.keys[column] - LOOK_AGAIN:
                column = k
            if not of.keys[column] > elsewhere - LOOK_AGAIN:  # −∞ is not, either
                return k
            if column != k:
                exchange_columns(of, F, k, column)
        row = largest_below(of.high, k, n)
        if row != k:
            exchange_rows(of, F, k, row)
        if not check_pivot(of, F, k):
            return k
        of.grown[k, k] += abs(of.high[k, k])
        if factors_of(of.high, of.low, of.grown, k, n, factors):
            F.flags[0] = True  # it may be missed when the row opens again
        if k + 1 < stop:
            reduce_panel(of.high, of.low, of.size, of.grown, k, n, factors, pivot, of.columnwise)
    return stop


@compiled
def eliminate(C_high, C_low, C_size, C_grown, F, columns):
    """C[rows][:, columns] = L · R, in the place of C, by pivoting on C · diag(d); the scales d go along.

    The pivot is the largest entry of its column, so that no entry of L exceeds 1. Its column is the one whose scaled
    size is largest, or was when it was last looked at: eight columns are chosen at a time, and only they are kept up to
    date, as long as none of their pivots falls below half of what the others were. So the rest is reduced by all eight
    at once, in sums on top of an anchor. Entries of R in scale rarely exceed 4, and never 2^8: the others may double
    with each pivot. Elimination, unlike reflections, leaves a row as small as it was: a saturated unit is not
    drowned.

    Args:
        C_high: [whole blocks of rows, padded], zero from row n on.
        C_low: the same.
        C_size: the same, what the rounding of C is relative to; in the order of L·R, afterwards.
        C_grown: takes |L| · |R|, what the rounding of L·R is relative to.
        F: gives d, and takes the new order of d and of the rows.
        columns: takes the order of the columns.

    Returns:
        the rank: columns from there on are zero, exactly or (F.flags[1]) as far as rounding lets one see.
    """
    n, width = len(columns), C_high.shape[1]
    pivot, factors, of_four = aligned((2, WIDTH)), aligned((2, width + WIDTH)), aligned((12, WIDTH))
    of = Elimination(C_high, C_low, C_size, C_grown, columns, aligned((TILT + 1, width)), np.empty(n))
    begin(of, F)
    rank, k = n, 0
    while k < rank:
        right = (k // WIDTH + 1) * WIDTH
        stop = min(right, rank)
        elsewhere = choose_panel(of, F, k, stop, rank)
        if of.keys[k] == -np.inf:  # all that is left is zero: made of zeros, or of what cancels to the last digit
            for i in range(k, n):
                for j in range(k, rank):
                    if C_size[i, j] != 0.0 or C_grown[i, j] != 0.0:
                        F.flags[:] = True
            rank = k
            break
        after = eliminate_panel(of, F, k, stop, elsewhere, factors, pivot)
        if after == k:  # no right digit: it is the zero that it cannot be told from
            F.flags[1] = True
            rank -= 1
            for i in range(k, n):
                C_high[i, k] = C_low[i, k] = 0.0
            of.columnwise[LEFT, k] = 0.0
            if rank != k:
                exchange_columns(of, F, k, rank)
        elif right < rank:
            reduce_rest(C_high, C_low, C_size, C_grown, k, after, right, rank, n, of_four, of.columnwise)
        k = after
    for i in range(rank, n):
        for j in range(rank, n):
            C_high[i, j] = C_low[i, j] = 0.0
    return rank

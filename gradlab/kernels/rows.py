"""Rows of a matrix, by whole registers, and powers of two."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab import graded
from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.registers import fma, from_bits, greatest, larger, load, magnitude, spread, store, total, where_greater
from gradlab.row_blocks import transpose_block

COMPILED_WITH = "084bdef1cdc149b6"

aligned = compiled(graded.aligned)
blocks = compiled(graded.blocks)


@compiled
def power_of_two(exponent: int) -> float:
    """2^exponent, 0 below the normal range and 2^500 at most: too large to be of use, and times a zero still zero."""
    return from_bits(min(max(exponent + 1023, 0), 1523) << 52)


@compiled
def scaled(x: float, exponent: int) -> float:
    """Return x · 2^exponent for any exponent, subnormal x included."""
    half = exponent // 2
    return math.ldexp(math.ldexp(x, half), exponent - half)


@compiled
def scale_row(A, i, B, k, exponent):
    """B[k] = A[i] · 2^exponent, for any exponent."""
    if abs(exponent) < 500:
        factor = spread(power_of_two(exponent))
        for j in range(0, A.shape[1], WIDTH):
            store(B, k, j, factor * load(A, i, j))
    else:
        for j in range(A.shape[1]):
            B[k, j] = scaled(A[i, j], exponent)


@compiled
def smallest_entry(A, i):
    """The smallest |entry| of row i of a matrix of whole registers that is not zero, ∞ where all are."""
    size, none = spread(np.inf), spread(np.inf)
    for j in range(0, A.shape[1], WIDTH):
        x = magnitude(load(A, i, j))
        x = where_greater(x, spread(0.0), x, none)
        size = where_greater(size, x, x, size)
    return -greatest(spread(0.0) - size)


@compiled
def largest(A, i):
    """The largest |entry| of row i of a matrix of whole registers; NaN does not count."""
    size = spread(0.0)
    for j in range(0, A.shape[1], WIDTH):
        size = larger(size, load(A, i, j))
    return greatest(size)


@compiled
def largest_below(A, k, n):
    """The row of the largest |entry| of column k among the rows k … n − 1."""
    row, size = k, 0.0
    for i in range(k, n):
        if abs(A[i, k]) > size:
            row, size = i, abs(A[i, k])
    return row


@compiled
def exchange(A, a, b):
    """Exchange two rows of A."""
    for j in range(0, A.shape[1], WIDTH):
        x = load(A, a, j)
        store(A, a, j, load(A, b, j))
        store(A, b, j, x)


@compiled
def copy_row(A, i, B, k):
    """B[k] = A[i], by whole registers of A."""
    for j in range(0, A.shape[1], WIDTH):
        store(B, k, j, load(A, i, j))


@compiled
def add_row(A, i, factor, B, k, start, stop):
    """A[i] += factor · B[k] in the columns start … stop, by whole registers."""
    f = spread(factor)
    for j in range(start, stop, WIDTH):
        store(A, i, j, fma(f, load(B, k, j), load(A, i, j)))


@compiled
def add_combination(M, row, weights, which, A, first, last, start, stop):
    """M[row] += Σ weights[which, m] · A[m] over first ≤ m < last, in the columns start … stop, by whole registers."""
    j = start
    while j + 3 * WIDTH < stop:
        a, b = load(M, row, j), load(M, row, j + WIDTH)
        c, d = load(M, row, j + 2 * WIDTH), load(M, row, j + 3 * WIDTH)
        for m in range(first, last):
            w = spread(weights[which, m])
            a = fma(w, load(A, m, j), a)
            b = fma(w, load(A, m, j + WIDTH), b)
            c = fma(w, load(A, m, j + 2 * WIDTH), c)
            d = fma(w, load(A, m, j + 3 * WIDTH), d)
        store(M, row, j, a)
        store(M, row, j + WIDTH, b)
        store(M, row, j + 2 * WIDTH, c)
        store(M, row, j + 3 * WIDTH, d)
        j += 4 * WIDTH
    while j < stop:
        a, b = load(M, row, j), spread(0.0)
        for m in range(first, last - 1, 2):
            a = fma(spread(weights[which, m]), load(A, m, j), a)
            b = fma(spread(weights[which, m + 1]), load(A, m + 1, j), b)
        if first < last and (last - first) % 2 == 1:
            a = fma(spread(weights[which, last - 1]), load(A, last - 1, j), a)
        store(M, row, j, a + b)
        j += WIDTH


@compiled
def add_combinations(M, row, weights, at, A, first, last, stop, lower):
    """M[row + r] += Σ weights[at + r, m] · A[m] over first ≤ m < last, r = 0 … 3, by whole registers of `stop` columns.

    M may be A: rows are read before they are written. All four are written, whatever they are good for. Of a lower
    triangle A the registers that are zero are passed over.
    """
    for j in range(0, stop, 2 * WIDTH):
        start = max(first, j) if lower else first
        if start >= last:
            continue
        a, b, c, d = load(M, row, j), load(M, row + 1, j), load(M, row + 2, j), load(M, row + 3, j)
        if j + WIDTH >= stop:
            for m in range(start, last):
                x = load(A, m, j)
                a = fma(spread(weights[at, m]), x, a)
                b = fma(spread(weights[at + 1, m]), x, b)
                c = fma(spread(weights[at + 2, m]), x, c)
                d = fma(spread(weights[at + 3, m]), x, d)
        else:
            k = j + WIDTH
            e, f, g, h = load(M, row, k), load(M, row + 1, k), load(M, row + 2, k), load(M, row + 3, k)
            for m in range(start, last):
                x, y = load(A, m, j), load(A, m, k)
                w = spread(weights[at, m])
                a, e = fma(w, x, a), fma(w, y, e)
                w = spread(weights[at + 1, m])
                b, f = fma(w, x, b), fma(w, y, f)
                w = spread(weights[at + 2, m])
                c, g = fma(w, x, c), fma(w, y, g)
                w = spread(weights[at + 3, m])
                d, h = fma(w, x, d), fma(w, y, h)
            store(M, row, k, e)
            store(M, row + 1, k, f)
            store(M, row + 2, k, g)
            store(M, row + 3, k, h)
        store(M, row, j, a)
        store(M, row + 1, j, b)
        store(M, row + 2, j, c)
        store(M, row + 3, j, d)


@compiled
def transpose(A, n, At):
    """At[:n, :n] = A[:n, :n]ᵀ, by whole blocks: both have rows for these, and what stands beyond in A gets into At."""
    for i in range(0, n, WIDTH):
        for j in range(0, n, WIDTH):
            transpose_block(A, i, j, At, j, i)


@compiled
def dot(A, i, j, start, stop):
    """The product of rows i and j of A in the columns start … stop, by whole registers."""
    even, odd = spread(0.0), spread(0.0)
    k = start
    while k + WIDTH < stop:
        even = fma(load(A, i, k), load(A, j, k), even)
        odd = fma(load(A, i, k + WIDTH), load(A, j, k + WIDTH), odd)
        k += 2 * WIDTH
    if k < stop:
        even = fma(load(A, i, k), load(A, j, k), even)
    return total(even + odd)

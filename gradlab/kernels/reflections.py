"""QR by Householder's reflections."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled, inlined
from gradlab.kernels.rows import add_combination, add_row, aligned, dot, largest, transpose
from gradlab.registers import fma, load, spread, store

COMPILED_WITH = "380ef511f3f2f6a4"

TINY, HUGE = 2.0**-40, 2.0**40  # squares of columns that need not be brought to size 1


@inlined
def reflector(A, k, V, place, square):
    """Make column k of A, which stands in V[place] from row k on, into v of H = I + scale·v·vᵀ.

    H makes the column zero below its diagonal; A[k, k] becomes that of H·A. v is as long as the column is, unless
    that is far from 1: products with other columns must not leave float64. `square` was V[place] · V[place].

    Returns:
        scale, 0.0 for a column of zeros; then v is zero.
    """
    top, unit = V[place, k], 1.0
    if not TINY < square < HUGE:
        size = largest(V, place)
        if size == 0.0:
            A[k, k] = top
            return 0.0
        unit = math.ldexp(1.0, min(-math.frexp(size)[1], 1023))
        for i in range(k, len(A)):
            V[place, i] *= unit
        square, top = dot(V, place, place, k // WIDTH * WIDTH, len(A)), top * unit
    beta = -math.copysign(math.sqrt(square), top)
    lead = top - beta
    V[place, k] = lead
    A[k, k] = beta / unit
    return 1.0 / (lead * beta)


@compiled
def combine(A, V, place, along, scale, first, start, stop):
    """along[place] = scale · Σ V[place, i] · A[i] over the rows from `first` on, in the columns start … stop."""
    for j in range(start, stop, WIDTH):
        store(along, place, j, spread(0.0))
    add_combination(along, place, V, place, A, first, len(A), start, stop)
    for j in range(start, stop, WIDTH):
        store(along, place, j, spread(scale) * load(along, place, j))


@compiled
def reflect(A, V, now, along, after, scale, first, start, stop):
    """A[i] += V[now, i] · along[now] from row `first` on, and what `combine` would do next, for V[after], on the way.

    Both in the columns start … stop, by whole registers. So each is read and written once for a reflection.
    """
    for j in range(start, stop, 2 * WIDTH):
        x, a, b = load(along, now, j), spread(0.0), spread(0.0)
        if j + WIDTH < stop:
            k = j + WIDTH
            y = load(along, now, k)
            for i in range(first, len(A)):
                v, w = spread(V[now, i]), spread(V[after, i])
                r, s = fma(v, x, load(A, i, j)), fma(v, y, load(A, i, k))
                store(A, i, j, r)
                store(A, i, k, s)
                a, b = fma(w, r, a), fma(w, s, b)
            store(along, after, k, spread(scale) * b)
        else:
            for i in range(first, len(A)):
                r = fma(spread(V[now, i]), x, load(A, i, j))
                store(A, i, j, r)
                a = fma(spread(V[after, i]), r, a)
        store(along, after, j, spread(scale) * a)


@compiled
def reflect_twice(A, V, now, along, after, scales, first, start, stop):
    """What `reflect` does, for two reflections that are one after the other, and the next two.

    A[i] += V[now[0], i] · along[now[0]] + V[now[1], i] · along[now[1]], and what `combine` would do with the two rows
    of V in `after`.
    """
    p, q, r, s = now[0], now[1], after[0], after[1]
    for j in range(start, stop, 2 * WIDTH):
        x, y, a, b = load(along, p, j), load(along, q, j), spread(0.0), spread(0.0)
        if j + WIDTH < stop:
            k = j + WIDTH
            z, w, c, d = load(along, p, k), load(along, q, k), spread(0.0), spread(0.0)
            for i in range(first, len(A)):
                one, other = spread(V[p, i]), spread(V[q, i])
                left = fma(other, y, fma(one, x, load(A, i, j)))
                right = fma(other, w, fma(one, z, load(A, i, k)))
                store(A, i, j, left)
                store(A, i, k, right)
                one, other = spread(V[r, i]), spread(V[s, i])
                a, b = fma(one, left, a), fma(other, left, b)
                c, d = fma(one, right, c), fma(other, right, d)
            store(along, r, k, spread(scales[r]) * c)
            store(along, s, k, spread(scales[s]) * d)
        else:
            for i in range(first, len(A)):
                left = fma(spread(V[q, i]), y, fma(spread(V[p, i]), x, load(A, i, j)))
                store(A, i, j, left)
                a, b = fma(spread(V[r, i]), left, a), fma(spread(V[s, i]), left, b)
        store(along, r, j, spread(scales[r]) * a)
        store(along, s, j, spread(scales[s]) * b)


@inlined
def reflectors(A, k, K, V, scales):
    """Reflections k and k + 1 of columns that stand in their rows of V, reflected by all before."""
    n, now, after = len(A), k % len(V), (k + 1) % len(V)
    start = k // WIDTH * WIDTH
    square = dot(V, now, now, start, n)
    scales[now] = reflector(A, k, V, now, square)
    if k + 1 < K:
        step = scales[now] * dot(V, now, after, start, n)
        add_row(V, after, step, V, now, start, n)
        A[k, k + 1] = V[after, k]
        V[after, k] = 0.0
        square = dot(V, after, after, start, n)
        scales[after] = reflector(A, k + 1, V, after, square)


@compiled
def triangularise(A, K, V, along, scales):
    """Make the first K columns of A [n, padded] R of A = Q·R, on and above the diagonal; what is below means nothing.

    Two reflections are made at a time, and applied in one pass that also prepares the next two; it is the memory that
    takes time. They are put into the rows of V and into `scales`; `along` is room for as many rows of A. Where there
    are four rows alone, only the last four reflections are kept.
    """
    n, rows = len(A), len(V)
    for k in range(min(2, K)):
        for i in range(n):
            V[k, i] = A[i, k]
    reflectors(A, 0, K, V, scales)
    for k in range(min(2, K)):
        combine(A, V, k, along, scales[k], 0, 0, K)
    for k in range(0, K - 2, 2):
        p, q, start = k % rows, (k + 1) % rows, k // WIDTH * WIDTH
        add_row(along, q, scales[q] * dot(V, p, q, start, n), along, p, start, K)
        for j in range(start, k + 2):
            along[p, j] = along[q, j] = 0.0  # whole registers are overwritten, what is done must not be
        for j in range(k + 2, min(k + 4, K)):
            place = j % rows
            for i in range(k):
                V[place, i] = 0.0
            for i in range(k, n):
                V[place, i] = A[i, j]
            add_row(V, place, along[p, j], V, p, start, n)
            add_row(V, place, along[q, j], V, q, start, n)
            A[k, j], A[k + 1, j] = V[place, k], V[place, k + 1]
            V[place, k] = V[place, k + 1] = 0.0
            along[p, j] = along[q, j] = 0.0
        reflectors(A, k + 2, K, V, scales)
        if k + 4 < K:
            now, after = (p, q), ((k + 2) % rows, (k + 3) % rows)
            reflect_twice(A, V, now, along, after, scales, k, (k + 4) // WIDTH * WIDTH, K)


@compiled
def triangle_of(A):
    """R of A = Q·R [n, padded] on and above the diagonal of A, by reflections; what is below means nothing."""
    room = aligned((2, 4, A.shape[1]))
    triangularise(A, len(A), room[0], room[1], np.zeros(4))


@compiled
def upper_transposed(A, Rt, pivots):
    """Rᵀ and its diagonal, for R on and above the diagonal of A."""
    n = len(A)
    transpose(A, n, Rt)
    for j in range(n):
        pivots[j] = Rt[j, j]
        for k in range(j + 1, Rt.shape[1]):
            Rt[j, k] = 0.0

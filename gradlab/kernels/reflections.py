"""QR by Householder's reflections."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.rows import add_combination, aligned, dot, largest
from gradlab.registers import fma, load, spread, store

COMPILED_WITH = "11c78f0b05195cd8"


@compiled
def reflector(A, k, V, place):
    """Put v of H = I + scale·v·vᵀ, which makes column k of A zero below its diagonal, into V[place].

    v is zero up to row k and 1 there; A[k, k] is already that of H·A, and what stands below it means nothing any more.

    Returns:
        scale, 0.0 where there is nothing to do; then v is zero.
    """
    n, first = len(A), k // WIDTH * WIDTH
    for i in range(k + 1):
        V[place, i] = 0.0
    for i in range(k + 1, n):
        V[place, i] = A[i, k]
    below, top, unit = dot(V, place, place, first, n), A[k, k], 1.0
    if not (below > 0.0 and 1e-250 < below + top * top < 1e250):  # squares must not leave float64
        size = largest(V, place)
        if size == 0.0:
            return 0.0
        unit = 1.0 / max(size, abs(top), 1e-300)
        for i in range(k + 1, n):
            V[place, i] *= unit
        below, top = dot(V, place, place, first, n), top * unit
    beta = -math.copysign(math.sqrt(top * top + below), top)
    lead = top - beta
    inverse = spread(1.0 / lead)
    for i in range(first, n, WIDTH):
        store(V, place, i, inverse * load(V, place, i))
    V[place, k] = 1.0
    A[k, k] = beta / unit
    return lead / beta


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
def triangularise(A, K, V, along, scales):
    """Make the first K columns of A [n, padded] R of A = Q·R, on and above the diagonal; what is below means nothing.

    The reflections are put into the rows of V and into `scales`; `along` is room for as many rows of A. Where there are
    two rows alone, only the last two reflections are kept.
    """
    n, rows = len(A), len(V)
    count = min(K, n - 1)
    for k in range(count):
        now = k % rows
        if k == 0:
            scales[now] = reflector(A, 0, V, now)
            combine(A, V, now, along, scales[now], 0, 0, K)
        for j in range(k // WIDTH * WIDTH, k + 1):
            along[now, j] = 0.0  # whole registers are overwritten, what is done must not be
        if k + 1 == K:
            return
        after = (k + 1) % rows
        step = along[now, k + 1]
        for i in range(k, n):
            A[i, k + 1] += V[now, i] * step
        along[now, k + 1] = 0.0
        scales[after] = reflector(A, k + 1, V, after) if k + 1 < count else 0.0
        reflect(A, V, now, along, after, scales[after], k, (k + 1) // WIDTH * WIDTH, K)


@compiled
def triangle_of(A):
    """R of A = Q·R [n, padded] on and above the diagonal of A, by reflections; what is below means nothing."""
    room = aligned((2, 2, A.shape[1]))
    triangularise(A, len(A), room[0], room[1], np.zeros(2))

"""QR by Householder's reflections."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.rows import add_combination, add_row, aligned
from gradlab.registers import load, spread, store

COMPILED_WITH = "eaa4ae768bac0c05"


@compiled
def reflect(A, k, V, place, along, stop):
    """Make column k of A zero below its diagonal by H = I + scale·v·vᵀ, on whole registers of the columns up to `stop`.

    What stands below the diagonal afterwards means nothing. `along` is room, [1, padded].

    Returns:
        scale, 0.0 where there was nothing to do; v goes to V[place], from k on.
    """
    n = len(A)
    size = 0.0
    for i in range(k + 1, n):
        size = max(size, abs(A[i, k]))
    if size == 0.0:
        return 0.0
    size, below = max(size, abs(A[k, k])), 0.0
    unit = 1.0 if 1e-140 < size < 1e140 else 1.0 / max(size, 1e-300)  # squares must not leave float64
    for i in range(k + 1, n):
        V[place, i] = A[i, k] * unit
        below += V[place, i] * V[place, i]
    top = A[k, k] * unit
    beta = -math.copysign(math.sqrt(top * top + below), top)
    first = top - beta
    V[place, k] = 1.0
    for i in range(k + 1, n):
        V[place, i] /= first
    start = (k + 1) // WIDTH * WIDTH
    combine(along, V, place, A, k, start, stop, first / beta)
    for j in range(start, k + 1):
        along[0, j] = 0.0
    for i in range(k, n):
        add_row(A, i, V[place, i], along, 0, start, stop)
    A[k, k] = beta / unit
    return first / beta


@compiled
def combine(along, V, place, A, k, start, stop, scale):
    """Put into `along` scale · Σ V[place, i] · A[i] over the rows from k on, in the columns start … stop."""
    for j in range(start, stop, WIDTH):
        store(along, 0, j, spread(0.0))
    add_combination(along, 0, V, place, A, k, len(A), start, stop)
    for j in range(start, stop, WIDTH):
        store(along, 0, j, spread(scale) * load(along, 0, j))


@compiled
def triangle_of(A):
    """R of A = Q·R [n, padded] on and above the diagonal of A, by reflections; what is below means nothing."""
    along, v = aligned((1, A.shape[1])), np.zeros((1, len(A)))
    for k in range(len(A) - 1):
        reflect(A, k, v, 0, along, len(A))


@compiled
def orthonormal(C, Q, r):
    """Q and r = |diag R| of each C = Q·R [B, n, k] by reflections."""
    B, n, K = C.shape
    width = -(-K // WIDTH) * WIDTH
    A, H, V = aligned((n, width)), aligned((n, width)), np.zeros((K, n))
    along, scales = aligned((1, width)), np.zeros(K)
    for b in range(B):
        for i in range(n):
            for k in range(K):
                A[i, k] = C[b, i, k]
                H[i, k] = 1.0 if i == k else 0.0
        for k in range(K):
            scales[k] = reflect(A, k, V, k, along, K)
            r[b, k] = abs(A[k, k])
        for k in range(K - 1, -1, -1):
            if scales[k] != 0.0:
                start = k // WIDTH * WIDTH
                combine(along, V, k, H, k, start, K, scales[k])
                for i in range(k, n):
                    add_row(H, i, V[k, i], along, 0, start, K)
        for i in range(n):
            for k in range(K):
                Q[b, i, k] = H[i, k]

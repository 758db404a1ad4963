"""Frames of directions: carried through steps, and made orthonormal again."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.reflections import combine, reflect, triangularise
from gradlab.kernels.rows import add_combinations, aligned, blocks
from gradlab.registers import greatest, larger, load, spread, store

COMPILED_WITH = "83b38fe051b9fe3d"


@compiled
def carry(J, C, moved, sizes):
    """Put J_T ··· J_1 · C into `moved` [B, n, k], and the largest |entry| on the way, but for NaN, into `sizes` [B].

    Args:
        J: [B, T, n, n], rows = outputs.
        C: [B, n, k].
        moved: room.
        sizes: room.
    """
    B, T, n, _ = J.shape
    K = C.shape[2]
    width = -(-K // WIDTH) * WIDTH
    room, step = aligned((2, blocks(n), width)), np.zeros((blocks(n), n))
    before, after = room[0], room[1]
    for b in range(B):
        sizes[b] = 0.0
        for i in range(n):
            for k in range(K):
                before[i, k] = C[b, i, k]
        for s in range(T):
            step[:n] = J[b, s]  # all at once: memory is faster so than a few rows at a time
            size = spread(sizes[b])
            for i in range(0, n, 4):
                for r in range(i, i + 4):
                    for k in range(0, width, WIDTH):
                        store(after, r, k, spread(0.0))
                add_combinations(after, i, step, i, before, 0, n, K, False)
                for r in range(i, i + 4):
                    for k in range(0, width, WIDTH):
                        size = larger(size, load(after, r, k))
            sizes[b] = greatest(size)
            before, after = after, before
        for i in range(n):
            for k in range(K):
                moved[b, i, k] = before[i, k]


@compiled
def orthonormal(C, Q, r):
    """Q and r = |diag R| of each C = Q·R [B, n, k] by reflections."""
    B, n, K = C.shape
    width, height = -(-K // WIDTH) * WIDTH, -(-n // WIDTH) * WIDTH
    A, H, V = aligned((n, width)), aligned((n, width)), aligned((K, height))
    along, scales = aligned((K, width)), np.zeros(K)
    for b in range(B):
        V[:] = 0.0
        scales[:] = 0.0
        for i in range(n):
            for k in range(K):
                A[i, k] = C[b, i, k]
                H[i, k] = 1.0 if i == k else 0.0
        triangularise(A, K, V, along, scales)
        for k in range(K):
            r[b, k] = abs(A[k, k])
        combine(H, V, K - 1, along, scales[K - 1], K - 1, (K - 1) // WIDTH * WIDTH, K)
        for k in range(K - 1, -1, -1):
            after = max(k - 1, 0)
            start = after // WIDTH * WIDTH
            for j in range(start, k // WIDTH * WIDTH):
                along[k, j] = 0.0  # what the register before has not been combined for
            reflect(H, V, k, along, after, scales[after], after, start, K)
        for i in range(n):
            for k in range(K):
                Q[b, i, k] = H[i, k]

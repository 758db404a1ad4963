"""Determinants of many matrices."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.rows import aligned, exchange, largest, largest_below, scale_row
from gradlab.registers import fma, load, spread, store
from gradlab.scales import LN2

COMPILED_WITH = "380ef511f3f2f6a4"


@compiled
def log_determinants(A, out):
    """Put ln|det| of each matrix of A [N, n, n] into `out`, by LU with rows scaled: pivoting must not see their scale.

    The scales are powers of two, so that taking them out costs no rounding.
    """
    N, n, _ = A.shape
    LU = aligned((n + 1, -(-n // WIDTH) * WIDTH))  # one row more, for an odd n
    for m in range(N):
        ln_det = 0.0
        for i in range(n):
            for j in range(n):
                LU[i, j] = A[m, i, j]
            exponent = math.frexp(largest(LU, i))[1]
            ln_det += exponent * LN2
            scale_row(LU, i, LU, i, -exponent)
        for k in range(n):
            row = largest_below(LU, k, n)
            if row != k:
                exchange(LU, k, row)
            ln_det += math.log(abs(LU[k, k]))
            if LU[k, k] == 0.0:
                break
            inverse = -1.0 / LU[k, k]
            for i in range(k + 1, n, 2):
                a, b = spread(LU[i, k] * inverse), spread(LU[i + 1, k] * inverse)
                for j in range((k + 1) // WIDTH * WIDTH, n, WIDTH):  # what this does to L is no matter
                    x = load(LU, k, j)
                    store(LU, i, j, fma(a, x, load(LU, i, j)))
                    store(LU, i + 1, j, fma(b, x, load(LU, i + 1, j)))
        out[m] = ln_det

"""Y of a product kept well conditioned: what makes it crooked goes into C, where rounding is half as long."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.grading import in_scale, rescale
from gradlab.kernels.reflections import triangle_of, upper_transposed
from gradlab.kernels.rows import add_combination, copy_row, largest, power_of_two, transpose
from gradlab.kernels.twofold import add_product, store_twofold
from gradlab.registers import fma, load, spread, store, total

COMPILED_WITH = "d04754ff053fdc35"

CROOKED = 16.0  # times the rounding of Y in a scale, and it is straightened …
TOO_CROOKED = 256.0  # … and here sooner the next time
EXAMPLES = (5.0**0.5, 2.0**0.5, 3.0**0.5)  # whose multiples, but for the integers, are spread evenly
CLOSE = 16  # bits between scales
FAR = 128  # bits between scales: entries of a triangle below 2^-64 are not applied to Y
LONGEST = 64  # factorizations between two looks, at most


@compiled
def straighten(F, work):
    """C · diag(d) · Y = (C·G) · diag(d') · Y' with orthonormal rows of Y', where those of Y lean on each other.

    Y = Λ·Y' with Λ lower triangular (QR of Yᵀ), d' = diag(Λ)·d and G = diag(d)·Λ·diag(d')⁻¹, a unit lower triangle.
    Y is rounded in float64 at every factorization, which does as little harm as Y is well conditioned: it is a change
    of the product from outside, and no later step can make it grow. But the Y of many factorizations, each of which
    multiplies it by a triangle, is worse conditioned the longer they go on, without bound where there are
    many units. C·G has twice the digits, and what is rounded of Λ and Y' is outside again.

    Only rows whose scales lie within FAR bits are straightened against each other, and only where it makes nothing of
    a zero of C. Y mixes no others from one step to the next, so what leans there does not lean more; but in C it would
    be a small number instead of a zero, which is lost when the scales draw further apart, and missed when they meet.

    What is turned between scales that lie close is as good as a change of Y, L·(I + E)·d = L·d·(I + d⁻¹·E·d), and is
    added to the error for good: G would turn it on among them, though it does no harm there. What is left of the
    example of rounding stays as it is, as G is the identity between scales that lie far apart.

    Args:
        F: the product.
        work: room for three matrices [whole blocks of rows, padded].

    Returns:
        how many times the rounding of Y a scale takes on, at most; nothing is done up to CROOKED.
    """
    n, width = F.Y.shape
    A, L, G, pivots = work[0], work[1], work[2], np.empty(n)
    for k in range(n):
        copy_row(F.Y, k, L, k)
    transpose(L, n, A)
    triangle_of(A[:n])
    upper_transposed(A[:n], L, pivots)  # Λ
    rank, leaning = n, np.zeros(n)
    while rank and F.mantissa[rank - 1] == 0.0:
        rank -= 1
    sizes = np.zeros(n)
    for k in range(rank):
        if pivots[k] == 0.0:
            return np.inf  # what is lost cannot be had back
        sizes[k] = largest(F.Y, k)
    rounding_passed_on(L, pivots, sizes, leaning, G)
    crooked = leaning[:rank].max() if rank else 0.0
    if not crooked > CROOKED:
        return crooked
    for j in range(n):
        for k in range(j):
            if not (j < rank and belongs(F, L, sizes, j, k)):
                L[j, k] = 0.0
    for k in range(rank, n):
        pivots[k] = 1.0
    in_scale(L, F.mantissa, F.exponent, pivots, G)
    rescale(F.mantissa, F.exponent, pivots)
    for k in range(rank):
        F.leaning[k] = math.hypot(F.leaning[k], leaning[k])
        for j in range(k):
            L[k, j] = -L[k, j]
        add_combination(F.Y, k, L, k, F.Y, 0, k, 0, width)
        inverse = spread(1.0 / pivots[k])
        for j in range(0, width, WIDTH):
            store(F.Y, k, j, inverse * load(F.Y, k, j))
    for k in range(n):
        G[k, k] = 1.0
    settle(F)
    multiply_triangle(F, G)
    return crooked


@compiled
def belongs(F, triangle, sizes, j, k):
    """Whether row j of Y is straightened against row k: Λ_jk is no rounding, and C·G has the zeros of C."""
    n = len(F.rows)
    if not abs(triangle[j, k]) > n * 2.0**-50 * sizes[j] or abs(F.exponent[k] - F.exponent[j]) > FAR:
        return False
    filled = 0
    for i in range(j, n):
        filled += F.high[i, j] != 0.0 and F.high[i, k] == 0.0
    return filled == 0


@compiled
def rounding_passed_on(triangle, pivots, sizes, passed, room):
    """What rounding of the rows of Y = Λ·Q, as large as `sizes`, does to each diagonal entry of Λ, relatively.

    A row that leans on those before it takes on what they were rounded by: |Λ⁻¹ · sizes · x|, the root of the mean of
    the squares of a few examples of x, each spread evenly with variance 1.
    """
    for e in range(len(EXAMPLES)):
        for j in range(0, room.shape[1], WIDTH):
            store(room, e, j, spread(0.0))
    for k in range(len(pivots)):
        square = 0.0
        for e in range(len(EXAMPLES)):
            x = sizes[k] * 3.0**0.5 * (2.0 * ((k + 1) * EXAMPLES[e] % 1.0) - 1.0)
            behind = spread(0.0)
            for j in range(0, k, WIDTH):
                behind = fma(load(triangle, k, j), load(room, e, j), behind)
            room[e, k] = (x - total(behind)) / pivots[k] if pivots[k] != 0.0 else 0.0
            square += room[e, k] ** 2
        passed[k] = math.sqrt(square / len(EXAMPLES))


@compiled
def multiply_triangle(F, G):
    """C ← C·G for unit lower triangles, in twice the digits."""
    n = len(F.rows)
    for i in range(n):
        for j in range(0, i + 1, WIDTH):  # what has been replaced is to the left, and no longer needed
            high, low = spread(0.0), spread(0.0)
            for k in range(j, i + 1):
                high, low = add_product(high, low, load(G, k, j), spread(F.high[i, k]), spread(F.low[i, k]))
            store_twofold(F.high, F.low, i, j, high, low)


@compiled
def settle(F):
    """Add to the error, once and for all, what is turned between scales that lie close."""
    n = len(F.rows)
    for j in range(n):
        moved = 0.0
        for k in range(j + 1, n):
            apart = F.exponent[j] - F.exponent[k]
            if apart <= CLOSE:
                moved = max(moved, abs(F.turned[j, k]) * power_of_two(apart))
                F.turned[j, k] = 0.0
        F.error[j] += moved

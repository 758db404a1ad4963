"""Singular values of a graded triangle by Jacobi's rotations."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.rows import dot, power_of_two
from gradlab.registers import fma, load, spread, store
from gradlab.scales import LN2

COMPILED_WITH = "7675cdad2fc1db95"

UNFELT = 2.0**-48  # the relative change of a singular value for which a coupling between rows may be dropped
UNTURNED = 2.0**-96  # the squared cosine of two rows that are as good as orthogonal …
APART = 2.0**-50  # … and of two that differ in size, on which it acts as its square
NEAR_BITS = 32  # rows further apart in scale act on each other by their entry of the triangle, if at all
ROTATIONS = 30  # sweeps; up to 10 are needed


@compiled
def first_rows_felt(At, mantissa, exponent, first):
    """Put into `first`, for each row j, the first row that acts on any of j … n−1; where it is j, cut before j.

    Dropping A_ij changes ln σ by no more than |A_ij|, and by about A_ij² only where d_j < d_i/2.
    """
    n = len(At)
    negligible = np.empty(n)
    below = -np.inf
    for i in range(n - 1, -1, -1):
        scale = exponent[i] + math.log2(abs(mantissa[i])) if mantissa[i] != 0.0 else -np.inf
        negligible[i] = UNFELT**0.5 if below < scale - 1 else UNFELT
        below = max(below, scale)
    reach = n
    for j in range(n - 1, -1, -1):
        i = 0
        while i < j and abs(At[j, i]) <= negligible[i]:
            i += 1
        reach = min(reach, i)
        first[j] = reach


@compiled
def orthogonalise(A, mantissa, exponent, near):
    """Make the rows of diag(d) · A orthogonal to each other by rotations (one-sided Jacobi); d stays as it is.

    Only A is ever touched, so that no scale is too large or small, and each row keeps its own precision: a rotation by
    the tangent ρ·u, ρ = d_j/d_i, adds ρ²·u times row j to row i, and subtracts u times row i from row j. Its cosine is
    multiplied in once a sweep.

    Args:
        A: [m, padded]; all NaN in the end if rotations should not converge.
        mantissa: [m], of d.
        exponent: [m].
        near: [m], the first row that acts on any from each row on; what is further off is not looked at.
    """
    m, widest = len(near), 0
    squares, cosines, ends = np.empty(m), np.ones(m), np.empty(m, np.int64)
    for b in range(m):
        widest = max(widest, b - near[b])
        for a in range(near[b], b + 1):
            ends[a] = b + 1
    for _ in range(ROTATIONS):
        turned = False
        for i in range(m):
            for k in range(0, m, WIDTH):
                store(A, i, k, spread(cosines[i]) * load(A, i, k))
            cosines[i], squares[i] = 1.0, dot(A, i, i, 0, m)
        for distance in range(1, widest + 1):  # neighbours in this order share no row: the processor overlaps them
            for a in range(m - distance):
                b = a + distance
                if a < near[b]:
                    continue
                start, stop = near[b] // WIDTH * WIDTH, ends[a]
                product = dot(A, a, b, start, stop)
                if product * product <= UNTURNED * squares[a] * squares[b]:
                    continue
                i, j = a, b
                rho = abs(mantissa[j] / mantissa[i]) * power_of_two(exponent[j] - exponent[i]) * cosines[j] / cosines[i]
                if rho * rho * squares[j] > squares[i]:
                    i, j, rho = b, a, 1.0 / rho
                gap = squares[i] - rho * rho * squares[j]
                if product * product <= APART * gap * squares[j]:
                    continue
                turned = True
                u = 2.0 * product / (gap + math.sqrt(gap * gap + 4.0 * (rho * product) ** 2))
                up, down = spread(rho * rho * u), spread(-u)
                for k in range(start, stop, WIDTH):
                    x, y = load(A, i, k), load(A, j, k)
                    store(A, i, k, fma(up, y, x))
                    store(A, j, k, fma(down, x, y))
                stretch = 1.0 + (rho * u) ** 2
                cosines[i] /= math.sqrt(stretch)
                cosines[j] /= math.sqrt(stretch)
                squares[i] = (squares[i] + rho * rho * u * product) * stretch
                left = squares[j] - u * product
                squares[j] = left * stretch if left > 0.25 * squares[j] else dot(A, j, j, 0, m)
        if not turned:
            return
    A[:] = np.nan  # it has never come to that


@compiled
def triangle_values(Ut, mantissa, exponent, first, A, ln_s):
    """Put ln σ of diag(d) · U, U a unit upper triangle, into `ln_s`: block by block of rows that act on each other."""
    n, start = len(mantissa), 0
    near = np.empty(n, np.int64)
    while start < n:
        stop = start + 1
        while stop < n and first[stop] < stop:
            stop += 1
        m = stop - start
        for b in range(m - 1, -1, -1):
            a = start
            while a < first[start + b] and exponent[a] > exponent[start + b] + NEAR_BITS:
                a += 1  # of rows as close as that, one acts on another by way of a third
            near[b] = min(a - start, near[b + 1]) if b + 1 < m else a - start
        if m > 1:
            for i in range(m):
                for j in range(-(-m // WIDTH) * WIDTH):
                    A[i, j] = Ut[start + j, start + i] if i < j < m else 0.0
                A[i, i] = 1.0
            orthogonalise(A, mantissa[start:stop], exponent[start:stop], near[:m])
        for i in range(m):
            size = math.sqrt(dot(A, i, i, 0, m)) if m > 1 else 1.0
            ln_s[start + i] = math.log(abs(mantissa[start + i]) * size) + exponent[start + i] * LN2
        start = stop

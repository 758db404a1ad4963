"""Singular values of a graded triangle by Jacobi's rotations."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled, inlined
from gradlab.kernels.rows import aligned, dot, power_of_two
from gradlab.registers import fma, load, root, spread, store, total, where_greater
from gradlab.row_blocks import FIRST, PRODUCT, SECOND, multiply_blocks, multiply_pairs, rotate_pairs
from gradlab.scales import LN2, Integers
from gradlab.validation import Array

COMPILED_WITH = "380ef511f3f2f6a4"

UNFELT = 2.0**-48  # the relative change of a singular value for which a coupling between rows may be dropped
UNTURNED = 2.0**-96  # the squared cosine of two rows that are as good as orthogonal …
APART = 2.0**-50  # … and of two that differ in size, on which it acts as its square
NEAR_BITS = 32  # rows further apart in scale act on each other by their entry of the triangle, if at all
ROTATIONS = 30  # sweeps; up to 10 are needed
IN_RANGE = 400  # bits between scales of sixteen rows that are held as plain numbers


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


# Rows of `work`: 1/scale, square and cosine of eight rows; scale, square and cosine of the others, twice
INVERSE, SQUARE, COSINE, SCALE, OTHER_SQUARE, OTHER_COSINE = range(6)


class Turning(NamedTuple):
    """diag(d) · A while its rows are made orthogonal. Arrays over rows are as long as A, which ends in zeros."""

    A: Array  # [rows in sixteens, padded]
    mantissa: Array  # of |d|
    exponent: Integers
    near: Integers  # the first row that acts on any from each row on, ascending; what is further off is not looked at
    cosines: Array  # what the entries of each row are still to be multiplied by
    squares: Array  # of the rows, as they stand
    rows: Integers  # [2, 8]: eight pairs of rows
    pairs: Array  # [3, 8]: their products, and what they take of each other
    work: Array  # [6, 16]: scales, squares and cosines of the rows that are being rotated, as plain numbers
    columns: int  # of A that may not be zero


@inlined
def angles(product, ratio, first, second):
    """For eight pairs of rows at once, what each row takes of the other: one-sided Jacobi, cosines left out.

    Row i, of the larger scaled size, takes ρ²·u times row j, ρ = d_j/d_i, and row j takes −u times row i, where ρ·u is
    the tangent. Of a pair that is as good as orthogonal neither takes anything. Rows of zeros give NaN on the way,
    which no comparison lets through.

    Args:
        product: of the rows.
        ratio: d_second/d_first.
        first: the square of the first row.
        second: that of the second.

    Returns:
        what the first takes, what the second takes, 1/cosine, both squares; a square is −1 where it lost its digits.
    """
    zero, one = spread(0.0), spread(1.0)
    scaled = ratio * ratio * second  # the second is the larger one where this is more than the first
    of_i, of_j = where_greater(scaled, first, second, first), where_greater(scaled, first, first, second)
    rho = where_greater(scaled, first, one / ratio, ratio)
    gap, coupling, squared = of_i - rho * rho * of_j, rho * product, product * product
    u = (product + product) / (gap + root(fma(gap, gap, spread(4.0) * coupling * coupling)))
    u = where_greater(squared, spread(UNTURNED) * of_i * of_j, u, zero)
    u = where_greater(squared, spread(APART) * gap * of_j, u, zero)
    up, down = rho * rho * u, zero - u
    stretch = fma(rho * u, rho * u, one)
    after_i, left = fma(up, product, of_i) * stretch, fma(down, product, of_j)
    after_j = where_greater(left, spread(0.25) * of_j, left * stretch, zero - one)
    return (
        where_greater(scaled, first, down, up),
        where_greater(scaled, first, up, down),
        root(stretch),
        where_greater(scaled, first, after_j, after_i),
        where_greater(scaled, first, after_i, after_j),
    )


@inlined
def nothing(x, y):
    """Whether both registers are zero."""
    return total(x * x + y * y) == 0.0


@inlined
def lost(square):
    """1 where a square has lost its digits, else 0."""
    return where_greater(spread(0.0), square, spread(1.0), spread(0.0))


@inlined
def ratio_of(of, a, b):
    """d_b/d_a as rows a and b stand."""
    size = of.mantissa[b] / of.mantissa[a] * power_of_two(of.exponent[b] - of.exponent[a])
    return size * (of.cosines[b] / of.cosines[a])


@compiled
def rotate(of, start, stop):
    """Rotate eight pairs of rows in the columns start … stop; whether any was turned."""
    rows, work = of.rows, of.work
    multiply_pairs(of.A, rows, start, stop, of.pairs)
    for p in range(WIDTH):
        a, b = rows[0, p], rows[1, p]
        work[SCALE, p], work[SQUARE, p], work[OTHER_SQUARE, p] = ratio_of(of, a, b), of.squares[a], of.squares[b]
    product, ratio, first, second = (
        load(of.pairs, PRODUCT, 0),
        load(work, SCALE, 0),
        load(work, SQUARE, 0),
        load(work, OTHER_SQUARE, 0),
    )
    by_first, by_second, secant, first, second = angles(product, ratio, first, second)
    if nothing(by_first, by_second):
        return False
    store(of.pairs, FIRST, 0, by_first)
    store(of.pairs, SECOND, 0, by_second)
    rotate_pairs(of.A, rows, start, stop, of.pairs)
    store(work, COSINE, 0, spread(1.0) / secant)
    store(work, SQUARE, 0, first)
    store(work, OTHER_SQUARE, 0, second)
    for p in range(WIDTH):
        a, b = rows[0, p], rows[1, p]
        of.cosines[a] *= work[COSINE, p]
        of.cosines[b] *= work[COSINE, p]
        of.squares[a], of.squares[b] = work[SQUARE, p], work[OTHER_SQUARE, p]
    if not nothing(lost(first), lost(second)):
        for which in range(2):
            for p in range(WIDTH):
                i = rows[which, p]
                if of.squares[i] < 0.0:
                    of.squares[i] = dot(of.A, i, i, 0, of.columns)
    return True


@compiled
def rotate_within(of, first, count, start, stop):
    """Rotate all pairs of rows that lie in one block of eight, for two blocks at once, of which `count` rows matter."""
    turned = False
    for distance in range(1, 8 if count > 4 else 4 if count > 2 else 2):
        p, felt = 0, False
        for i in range(WIDTH):
            if i < i ^ distance:
                for block in range(2):
                    a, b = first + block * WIDTH + i, first + block * WIDTH + (i ^ distance)
                    of.rows[0, p], of.rows[1, p] = a, b
                    felt |= of.near[b] <= a
                    p += 1
        if felt:
            turned |= rotate(of, start, stop)
    return turned


@compiled
def rotate_across(of, first, second, start, stop):
    """Rotate each of eight rows with each of eight others in the columns start … stop; whether any was turned."""
    rows, pairs, work = of.rows, of.pairs, of.work
    top, wide, any_turned = of.exponent[first], False, False
    for p in range(WIDTH):
        rows[0, p] = first + p
        wide |= max(abs(of.exponent[first + p] - top), abs(of.exponent[second + p] - top)) > IN_RANGE
    if wide:  # no common scale for all sixteen
        for shift in range(WIDTH):
            for p in range(WIDTH):
                rows[1, p] = second + (p + shift) % WIDTH
            any_turned |= rotate(of, start, stop)
        return any_turned
    for p in range(WIDTH):  # what belongs to the second rows stands there twice, to be read from any on
        a, b = first + p, second + p
        work[INVERSE, p] = 1.0 / (of.mantissa[a] * power_of_two(of.exponent[a] - top) * of.cosines[a])
        work[SQUARE, p], work[COSINE, p] = of.squares[a], 1.0
        work[SCALE, p] = work[SCALE, p + WIDTH] = of.mantissa[b] * power_of_two(of.exponent[b] - top) * of.cosines[b]
        work[OTHER_SQUARE, p] = work[OTHER_SQUARE, p + WIDTH] = of.squares[b]
        work[OTHER_COSINE, p] = work[OTHER_COSINE, p + WIDTH] = 1.0
    turned = False
    for shift in range(WIDTH):
        felt = False
        for p in range(WIDTH):
            rows[1, p] = second + (p + shift) % WIDTH
            felt |= of.near[rows[1, p]] <= first + p
        if not felt:
            turned = False
            continue
        if not turned:
            multiply_pairs(of.A, rows, start, stop, pairs)
        inverse, scale = load(work, INVERSE, 0), load(work, SCALE, shift)
        by_first, by_second, secant, square, other = angles(
            load(pairs, PRODUCT, 0), inverse * scale, load(work, SQUARE, 0), load(work, OTHER_SQUARE, shift)
        )
        turned = not nothing(by_first, by_second)
        if turned:
            any_turned = True
            store(pairs, FIRST, 0, by_first)
            store(pairs, SECOND, 0, by_second)
            rotate_pairs(of.A, rows, start, stop, pairs)
            cosine = spread(1.0) / secant
            store(work, INVERSE, 0, inverse * secant)
            store(work, SQUARE, 0, square)
            store(work, COSINE, 0, load(work, COSINE, 0) * cosine)
            store(work, SCALE, shift, scale * cosine)
            store(work, OTHER_SQUARE, shift, other)
            store(work, OTHER_COSINE, shift, load(work, OTHER_COSINE, shift) * cosine)
            if not nothing(lost(square), lost(other)):
                for p in range(WIDTH):
                    if work[SQUARE, p] < 0.0:
                        work[SQUARE, p] = dot(of.A, rows[0, p], rows[0, p], 0, of.columns)
                    if work[OTHER_SQUARE, p + shift] < 0.0:
                        work[OTHER_SQUARE, p + shift] = dot(of.A, rows[1, p], rows[1, p], 0, of.columns)
            for which in (SCALE, OTHER_SQUARE, OTHER_COSINE):
                for p in range(shift, WIDTH):  # the second place of those that will be read from there
                    work[which, p + WIDTH] = work[which, p]
    for p in range(WIDTH):
        a, b = first + p, second + p
        of.cosines[a], of.squares[a] = of.cosines[a] * work[COSINE, p], work[SQUARE, p]
        of.cosines[b], of.squares[b] = of.cosines[b] * work[OTHER_COSINE, p + WIDTH], work[OTHER_SQUARE, p + WIDTH]
    return any_turned


@compiled
def orthogonal(of, first, second, start, stop, products):
    """Whether no pair of these eight rows and those eight others would be turned."""
    multiply_blocks(of.A, first, second, start, stop, products)
    for a in range(first, first + WIDTH):
        for b in range(second, second + WIDTH):
            squared = products[a - first, b - second] ** 2
            if squared > UNTURNED * of.squares[a] * of.squares[b]:
                scaled = ratio_of(of, a, b) ** 2
                gap = of.squares[a] - scaled * of.squares[b]
                if gap < 0.0:  # b is the larger one: the same, times ρ²
                    gap, squared = -gap * of.squares[a], squared * scaled
                else:
                    gap *= of.squares[b]
                if squared > APART * gap:
                    return False
    return True


@compiled
def orthogonalise(A, mantissa, exponent, near):
    """Make the rows of diag(d) · A orthogonal to each other by rotations (one-sided Jacobi); d stays as it is.

    Only A is ever touched, so that no scale is too large or small, and each row keeps its own precision. A rotation's
    cosine is multiplied in once a sweep. Eight pairs that have no row in common are rotated at once.

    Args:
        A: [rows in sixteens, padded], zero from row m on; all NaN in the end if rotations should not converge.
        mantissa: [m], of d.
        exponent: [m].
        near: [m], as in `Turning`.
    """
    m = len(near)
    n = -(-m // (2 * WIDTH)) * 2 * WIDTH
    of = Turning(
        A=A,
        mantissa=np.ones(n),
        exponent=np.full(n, exponent[m - 1]),
        near=np.full(n, n),
        cosines=np.ones(n),
        squares=np.ones(n),
        rows=np.empty((2, WIDTH), np.int64),
        pairs=aligned((3, WIDTH)),
        work=aligned((6, 2 * WIDTH)),
        columns=m,
    )
    ends, products = np.empty(m, np.int64), aligned((WIDTH, WIDTH))
    quiet = np.zeros((n // WIDTH, n // WIDTH), np.bool_)
    for b in range(m):
        of.mantissa[b], of.exponent[b], of.near[b] = abs(mantissa[b]), exponent[b], near[b]
        for a in range(near[b], b + 1):
            ends[a] = b + 1
    for _ in range(ROTATIONS):
        for i in range(m):
            for k in range(0, m, WIDTH):
                store(A, i, k, spread(of.cosines[i]) * load(A, i, k))
            of.cosines[i], of.squares[i] = 1.0, dot(A, i, i, 0, m)
        turned = False
        for a in range(0, m, 2 * WIDTH):
            start, stop = near[a] // WIDTH * WIDTH, ends[min(a + 2 * WIDTH, m) - 1]
            turned |= rotate_within(of, a, m - a, start, stop)
        for a in range(0, m, WIDTH):
            stop = ends[min(a + WIDTH, m) - 1]
            for b in range(a + WIDTH, m, WIDTH):
                if near[b] >= a + WIDTH:
                    break
                start, before = near[b] // WIDTH * WIDTH, quiet[a // WIDTH, b // WIDTH]
                if before and orthogonal(of, a, b, start, stop, products):
                    continue
                active = rotate_across(of, a, b, start, stop)
                quiet[a // WIDTH, b // WIDTH] = not active
                turned |= active
        if not turned:
            return
    A[:] = np.nan  # it has never come to that


@compiled
def triangle_values(Ut, mantissa, exponent, first, A, ln_s):
    """Put ln σ of diag(d) · U, U a unit upper triangle, into `ln_s`: block by block of rows that act on each other.

    U is graded: its entries U_ij are not much larger than d_j/d_i, or rows far apart would act on each other by way of
    others, which is not looked for. A is room, with as many rows as `orthogonalise` wants.
    """
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
            for i in range(-(-m // (2 * WIDTH)) * 2 * WIDTH):
                for j in range(-(-m // WIDTH) * WIDTH):
                    A[i, j] = Ut[start + j, start + i] if i < j < m else 0.0
                if i < m:
                    A[i, i] = 1.0
            orthogonalise(A, mantissa[start:stop], exponent[start:stop], near[:m])
        for i in range(m):
            size = math.sqrt(dot(A, i, i, 0, m)) if m > 1 else 1.0
            ln_s[start + i] = math.log(abs(mantissa[start + i]) * size) + exponent[start + i] * LN2
        start = stop

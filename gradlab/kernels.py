"""The sweep and the reading-out of `gradlab.graded`, compiled.

Everything compiled is in this file, but for single instructions: Numba keeps compiled functions on disk, and looks at
the file of a function, not at those of what it uses, to see whether they have changed. COMPILED_WITH, the digest of
the files whose constants and instructions are compiled in, brings their changes into this file; a test compares it.

Loops over whole registers are written out (`gradlab.registers`); matrices of the state are transposed where that lets
them run along rows.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from gradlab import graded
from gradlab.graded import PATTERNS, UNIT, WIDTH
from gradlab.registers import bits_of, fma, from_bits, larger, load, spread, store, total
from gradlab.scales import LN2, ZERO_EXPONENT

COMPILED_WITH = "ebc97a075514f49d"

SINGULAR = 32 * 2.0**-53  # a pivot this far below what it was reduced from hangs on the last digits of J …
LOST = 32 * UNIT  # … and here it has no right digit left
SPLIT_BITS = 20  # rows of a step that differ by more are graded before the step is multiplied by …
BRACKET_BITS = 900  # … and by no more than this at once: its rounding still fits float64
UNDERFLOWS = 2.0**-500  # an entry of L or of a step: what next changes it, by 2^-451 at most, may make it zero
UNFELT = 2.0**-48  # the relative change of a singular value for which a coupling between rows may be dropped
UNTURNED = 2.0**-96  # the squared cosine of two rows that are as good as orthogonal …
APART = 2.0**-50  # … and of two that differ in size, on which it acts as its square
NEAR_BITS = 32  # rows further apart in scale act on each other by their entry of the triangle, if at all
ROTATIONS = 30  # sweeps; up to 10 are needed
NEGLIGIBLE = 2.0**-64  # entries of a unit triangle, which is rounded to 2^-53


def compiled(function: Any) -> Any:
    """Compile when first called, to run without the interpreter's lock; kept on disk where a folder can be written to.

    Division by zero gives ∞, as in NumPy.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True, error_model="numpy")(function)


aligned = compiled(graded.aligned)


# --- Scales and rows --------------------------------------------------------------------------------------------------


@compiled
def power_of_two(exponent: int) -> float:
    """2^exponent, 0 below the normal range and 2^500 at most: too large to be of use, and times a zero still zero."""
    return from_bits(min(max(exponent + 1023, 0), 1523) << 52)


@compiled
def largest(A, i):
    """The largest |entry| of row i."""
    size = 0.0
    for j in range(A.shape[1]):
        size = max(size, abs(A[i, j]))
    return size


@compiled
def largest_below(A, k, n):
    """The row of the largest |entry| of column k among the rows k … n − 1."""
    row, size = k, 0.0
    for i in range(k, n):
        if abs(A[i, k]) > size:
            row, size = i, abs(A[i, k])
    return row


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
def add_combinations(M, row, weights, which, A, first, last, stop):
    """`add_combination` to rows `row` and `row + 1`, with the weights `which` and `which + 1`, from column 0 on."""
    for j in range(0, stop, 2 * WIDTH):
        a, b = load(M, row, j), load(M, row + 1, j)
        if j + WIDTH < stop:
            c, d = load(M, row, j + WIDTH), load(M, row + 1, j + WIDTH)
            for m in range(first, last):
                u, v = spread(weights[which, m]), spread(weights[which + 1, m])
                x, y = load(A, m, j), load(A, m, j + WIDTH)
                a, b = fma(u, x, a), fma(v, x, b)
                c, d = fma(u, y, c), fma(v, y, d)
            store(M, row, j + WIDTH, c)
            store(M, row + 1, j + WIDTH, d)
        else:
            for m in range(first, last):
                x = load(A, m, j)
                a, b = fma(spread(weights[which, m]), x, a), fma(spread(weights[which + 1, m]), x, b)
        store(M, row, j, a)
        store(M, row + 1, j, b)


@compiled
def scaled(x: float, exponent: int) -> float:
    """Return x · 2^exponent for any exponent, subnormal x included."""
    half = exponent // 2
    return math.ldexp(math.ldexp(x, half), exponent - half)


# --- Twofold products and elimination ---------------------------------------------------------------------------------


@compiled
def add_product(high, low, a, x, x_low):
    """(high, low) + a · (x + x_low): the product and the sum of high parts without rounding, what is left in `low`."""
    product = a * x
    rest = fma(a, x_low, fma(a, x, spread(0.0) - product))
    total = high + product
    part = total - high
    return total, low + (((high - (total - part)) + (product - part)) + rest)


@compiled
def multiply(step, F, C_high, C_low, C_size):
    """C_high + C_low = stepᵀ · C for the triangle C[rows] of F: products and sums without rounding, but for the low.

    C_size = |step|ᵀ · |C|, to which its rounding is relative.
    """
    n, zero = len(step), spread(0.0)
    columns = np.zeros((2, n))
    for i in range(0, n, 2):  # two rows at a time
        for k in range(n):
            columns[0, k] = step[F.rows[k], i]
            columns[1, k] = step[F.rows[k], i + 1] if i + 1 < n else 0.0
        for j in range(0, n, WIDTH):
            high = low = other_high = other_low = zero
            size = other_size = zero
            for k in range(j, n):  # a row of the triangle is zero beyond its diagonal
                x, x_low = load(F.high, k, j), load(F.low, k, j)
                x_size = larger(x, zero)
                a = spread(columns[0, k])
                size = fma(larger(a, zero), x_size, size)
                high, low = add_product(high, low, a, x, x_low)
                a = spread(columns[1, k])
                other_size = fma(larger(a, zero), x_size, other_size)
                other_high, other_low = add_product(other_high, other_low, a, x, x_low)
            store(C_size, i, j, size)
            store(C_size, i + 1, j, other_size)
            total = high + low
            store(C_high, i, j, total)
            store(C_low, i, j, low - (total - high))
            total = other_high + other_low
            store(C_high, i + 1, j, total)
            store(C_low, i + 1, j, other_low - (total - other_high))


@compiled
def subtract_multiple(C_high, C_low, i, k, pivot, start, stop, left_size):
    """C[i] −= C[i, k] · pivot in the columns start … stop, for rows i and i + 1; the largest |C| there to `left_size`.

    High and low are not brought back to one rounding: that can wait until they are used.
    """
    a, a_low = spread(-C_high[i, k]), spread(-C_low[i, k])
    b, b_low = spread(-C_high[i + 1, k]), spread(-C_low[i + 1, k])
    for j in range(start, stop, WIDTH):
        x, x_low = load(pivot, 0, j), load(pivot, 1, j)
        high, low = add_product(load(C_high, i, j), fma(a_low, x, load(C_low, i, j)), a, x, x_low)
        store(C_high, i, j, high)
        store(C_low, i, j, low)
        size = larger(load(left_size, 0, j), high)
        high, low = add_product(load(C_high, i + 1, j), fma(b_low, x, load(C_low, i + 1, j)), b, x, x_low)
        store(C_high, i + 1, j, high)
        store(C_low, i + 1, j, low)
        store(left_size, 0, j, larger(size, high))


@compiled
def scale_rows(F, exponents, C_high, C_low, C_size):
    """C_high + C_low = diag(2^exponents) · C, rows in their own order; there is no rounding, C_size = 0."""
    for k in range(len(exponents)):
        i = F.rows[k]
        factor = power_of_two(exponents[i])
        C_high[i] = factor * F.high[k]
        C_low[i] = factor * F.low[k]
        C_size[i] = 0.0


@compiled
def exchange(A, a, b):
    """Exchange two rows of A."""
    for j in range(0, A.shape[1], WIDTH):
        x = load(A, a, j)
        store(A, a, j, load(A, b, j))
        store(A, b, j, x)


@compiled
def exchange_columns(C_high, C_low, C_size, F, columns, left_size, a, b):
    """Exchange two columns of C and what belongs to them."""
    for i in range(len(columns)):
        C_high[i, a], C_high[i, b] = C_high[i, b], C_high[i, a]
        C_low[i, a], C_low[i, b] = C_low[i, b], C_low[i, a]
        C_size[i, a], C_size[i, b] = C_size[i, b], C_size[i, a]
    left_size[0, a], left_size[0, b] = left_size[0, b], left_size[0, a]
    F.mantissa[a], F.mantissa[b] = F.mantissa[b], F.mantissa[a]
    F.exponent[a], F.exponent[b] = F.exponent[b], F.exponent[a]
    columns[a], columns[b] = columns[b], columns[a]


@compiled
def eliminate(C_high, C_low, C_size, F, columns, left_size):
    """C[rows][:, columns] = L · R, in the place of C, by complete pivoting on C · diag(d); the scales d go along.

    The pivot is the largest entry of the column whose scaled size is largest, so that no entry of L, nor of R in scale,
    exceeds 1. Elimination, unlike reflections, leaves a row as small as it was: a saturated unit is not drowned.

    Args:
        C_high: [n + 1, padded], the last row zero.
        C_low: the same.
        C_size: the same, what the rounding of C is relative to.
        F: gives d, and takes the new order of d and of the rows.
        columns: takes the order of the columns.
        left_size: [1, padded] for the largest entry of each column in what is left.

    Returns:
        the rank: columns from there on are zero, exactly or (F.flags[1]) as far as rounding lets one see.
    """
    n = len(columns)
    for j in range(n):
        F.rows[j] = columns[j] = j
        if F.mantissa[j] == 0.0:  # counts for nothing: must not decide the order of rows, nor feed noise into zeros
            for i in range(n):
                for m in range(n):  # but for the noise that columns which count have of it
                    C_size[i, m] += abs(C_high[i, j] * F.turned[m, j])
                C_high[i, j] = C_low[i, j] = 0.0
    for j in range(n):
        if F.mantissa[j] == 0.0:
            for i in range(n):
                C_size[i, j] = 0.0
    for j in range(0, n, WIDTH):
        size = spread(0.0)
        for i in range(n):
            size = larger(size, load(C_high, i, j))
        store(left_size, 0, j, size)
    pivot = aligned((2, C_high.shape[1]))
    rank, k = n, 0
    while k < rank:
        best, column = -np.inf, -1
        for j in range(k, rank):
            size = left_size[0, j] * abs(F.mantissa[j])
            key = F.exponent[j] + bits_of(size) * 2.0**-52  # log2 but for a bend between powers of two
            if size > 0.0 and key > best:
                best, column = key, j
        if column < 0:  # all that is left is zero: made of zeros, or of what cancels to the last digit
            for i in range(k, n):
                for m in range(k):
                    for j in range(k, rank):
                        if C_high[i, m] * C_high[m, j] != 0.0:
                            F.flags[:] = True
                for j in range(k, rank):
                    if C_size[i, j] != 0.0:
                        F.flags[:] = True
            rank = k
            break
        if column != k:
            exchange_columns(C_high, C_low, C_size, F, columns, left_size, k, column)
        row = largest_below(C_high, k, n)
        if row != k:
            exchange(C_high, k, row)
            exchange(C_low, k, row)
            exchange(C_size, k, row)
            F.rows[k], F.rows[row] = F.rows[row], F.rows[k]
        for j in range(k // WIDTH * WIDTH, rank, WIDTH):
            high, low = load(C_high, k, j), load(C_low, k, j)
            total = high + low
            store(C_high, k, j, total)
            store(C_low, k, j, low - (total - high))
        reduced_from, noise = abs(C_high[k, k]), C_size[k, k]
        for i in range(k):
            reduced_from += abs(C_high[k, i] * C_high[i, k])
            noise += abs(C_high[k, i]) * C_size[i, k] + C_size[k, i] * abs(C_high[i, k] / C_high[i, i])
        if abs(C_high[k, k]) <= SINGULAR * reduced_from:
            F.flags[0] = True
        if abs(C_high[k, k]) <= LOST * (reduced_from + noise):
            # no right digit: it is the zero that it cannot be told from
            F.flags[1] = True
            rank -= 1
            for i in range(k, n):
                C_high[i, k] = C_low[i, k] = 0.0
            if rank != k:
                exchange_columns(C_high, C_low, C_size, F, columns, left_size, k, rank)
            continue
        inverse = 1.0 / C_high[k, k]
        inverse_low = inverse * (fma(-C_high[k, k], inverse, 1.0) - C_low[k, k] * inverse)
        start = (k + 1) // WIDTH * WIDTH
        for j in range(start, rank, WIDTH):
            store(left_size, 0, j, spread(0.0))
            store(pivot, 0, j, load(C_high, k, j))
            store(pivot, 1, j, load(C_low, k, j))
        for j in range(start, k + 1):
            pivot[0, j] = pivot[1, j] = 0.0  # whole registers are overwritten, L must not be
        for i in range(k + 1, n):
            entry = C_high[i, k]
            factor = entry * inverse
            rest = fma(entry, inverse, -factor) + (entry * inverse_low + C_low[i, k] * inverse)
            C_high[i, k] = factor + rest
            C_low[i, k] = rest - (C_high[i, k] - factor)
            if entry != 0.0 and abs(C_high[i, k]) < UNDERFLOWS:
                F.flags[0] = True  # it may leave float64, and be missed when the row opens again
        for i in range(k + 1, n, 2):
            subtract_multiple(C_high, C_low, i, k, pivot, start, rank, left_size)
        k += 1
    for i in range(rank, n):
        for j in range(rank, n):
            C_high[i, j] = C_low[i, j] = 0.0
    return rank


@compiled
def quotient(x, y, exponent):
    """x/y · 2^exponent, with nothing lost on the way; 0 for y = 0."""
    if x == 0.0 or y == 0.0:
        return 0.0
    fraction, shift = math.frexp(x)
    divisor, down = math.frexp(y)
    return math.ldexp(fraction / divisor, max(min(exponent + shift - down, 1000), -1100))


@compiled
def in_scale(Xt, mantissa, exponent, pivots, out):
    """Put (diag(pivot·d)⁻¹ · X · diag(d))ᵀ into `out`, zero above the diagonal and where a scale is."""
    n = len(pivots)
    inverse = np.zeros(n)
    for k in range(n):
        if 1e-90 < abs(pivots[k] * mantissa[k]) < 1e90:
            inverse[k] = 1.0 / (pivots[k] * mantissa[k])
    for j in range(n):
        for k in range(out.shape[1]):
            out[j, k] = 0.0
        for k in range(j + 1):
            x, e = Xt[j, k] * mantissa[j], exponent[j] - exponent[k]
            if inverse[k] != 0.0 and abs(x) < 1e90 and e < 400:  # the rule; below 2^-1022 it is zero
                out[j, k] = x * inverse[k] * power_of_two(e)
            else:
                out[j, k] = quotient(x, pivots[k] * mantissa[k], e)


@compiled
def apply_triangle(Ut, Y):
    """Y ← U·Y for a unit upper triangle U."""
    for k in range(len(Y)):
        for j in range(k + 1, len(Y)):
            if abs(Ut[j, k]) > NEGLIGIBLE:
                add_row(Y, k, Ut[j, k], Y, j, 0, len(Y))


@compiled
def rescale(mantissa, exponent, factors):
    """Multiply d by the factors."""
    for k in range(len(mantissa)):
        fraction, shift = math.frexp(mantissa[k] * factors[k])
        mantissa[k] = fraction
        exponent[k] = exponent[k] + shift if fraction != 0.0 else ZERO_EXPONENT


@compiled
def count_rounding(F, C_size, Rt, L_size, rank, columns, pivots, examples, M, room):
    """Carry `turned` E and `error` through C·(I + E) = L·(I + E')·R: E' = (R·E + what is new)·R⁻¹.

    What stands in E' below the diagonal turns the columns of L and is carried on. What stands on or above it is a
    relative change of d and Y, and remains what it is.
    """
    n = len(F.rows)
    pattern = F.steps[0] % PATTERNS
    weights = np.zeros((4, n))
    for j in range(0, n, 2):  # M, transposed like `turned`, two rows at a time
        for i in range(j, min(j + 2, n)):
            for m in range(n):
                weights[i - j, m] = abs(Rt[i, m])
                weights[i - j + 2, m] = F.turned[columns[i], columns[m]]
        for k in range(n):
            M[j, k] = C_size[k, j]
            M[j + 1, k] = C_size[k, j + 1] if j + 1 < n else 0.0
        add_combinations(M, j, weights, 0, L_size, 0, min(j + 2, n), n)  # reduced from numbers as large as |L|·|R|
        for k in range(0, n, WIDTH):
            store(M, j, k, load(examples, pattern + j, k) * load(M, j, k))
            store(M, j + 1, k, load(examples, pattern + j + 1, k) * load(M, j + 1, k))
        add_combinations(M, j, weights, 2, Rt, 0, n, n)
    for j in range(n):
        for m in range(j):
            weights[0, m] = -Rt[j, m]
        add_combination(M, j, weights, 0, M, 0, j, 0, n)
        inverse = spread(1.0 / Rt[j, j]) if j < rank else spread(0.0)
        for k in range(0, n, WIDTH):
            store(M, j, k, inverse * load(M, j, k))
    in_scale(M, F.mantissa, F.exponent, pivots, room)
    before = F.error.copy()
    for k in range(n):
        error = 0.0
        for j in range(k, rank):
            error = max(error, abs(room[j, k] * pivots[j]))
        F.error[k] = before[columns[k]] + error
    for j in range(n):
        for k in range(n):
            F.turned[j, k] = M[j, k] if k > j else 0.0
            if k > j and not abs(M[j, k]) < 1.0 / UNIT:  # NaN is not, either: nothing is known of this column
                F.turned[j, k], F.error[j] = 0.0, np.inf


@compiled
def refactor(C_high, C_low, C_size, F, examples, work):
    """Put C · diag(d) · Y into F, for the d and Y of F and a C that is overwritten, without ever forming C · diag(d).

    C = L·R with R upper triangular, d' = r·d with r = diag R, and Y' = (I + U)·Y with U_kj = (R_kj/r_k)·(d_j/d_k) for
    j > k: the ratio is taken from the exponents.

    Args:
        C_high: [n + 1, padded], rows in their own order, and one of zeros.
        C_low: the same.
        C_size: the same, as in `eliminate`.
        F: the product, its C apart.
        examples: `examples_of_rounding`.
        work: room, [5, n + 1, padded].
    """
    n = len(F.rows)
    columns, pivots = np.empty(n, np.int64), np.zeros(n)
    Rt, Ut, M, Y, L_size = work[0], work[1], work[2], work[3], work[4]
    rank = eliminate(C_high, C_low, C_size, F, columns, aligned((1, C_high.shape[1])))
    for j in range(n):
        for k in range(C_high.shape[1]):
            Rt[j, k] = C_high[k, j] if k <= j and k < rank else 0.0
            L_size[j, k] = abs(C_high[k, j]) if j < k < n and j < rank else 0.0
        L_size[j, j] = 1.0
        if j < rank:
            pivots[j] = C_high[j, j] + C_low[j, j]
    in_scale(Rt, F.mantissa, F.exponent, pivots, Ut)
    Y[:n] = F.Y
    for k in range(n):
        F.Y[k] = Y[columns[k]]
    apply_triangle(Ut, F.Y)
    count_rounding(F, C_size, Rt, L_size, rank, columns, pivots, examples, M, Ut)
    rescale(F.mantissa, F.exponent, pivots)
    for k in range(n):
        F.high[k] = 0.0
        F.low[k] = 0.0
        stop = min(k, rank)
        F.high[k, :stop] = C_high[k, :stop]
        F.low[k, :stop] = C_low[k, :stop]
        F.high[k, k] = 1.0
    F.steps[0] += 1


# --- The sweep --------------------------------------------------------------------------------------------------------


@compiled
def row_exponents(step, exponents):
    """Put the exponent of the largest entry of each row into `exponents`.

    Returns:
        (the least, the greatest of them, whether rows must be graded before the step is multiplied by): they must where
        their sizes differ much, and where one is zero, so that what it makes zero is so exactly.
    """
    low, high, dead = 1 << 20, -(1 << 20), False
    for i in range(len(exponents)):
        size = 0.0
        for j in range(len(exponents)):
            size = max(size, abs(step[i, j]))
        exponents[i] = math.frexp(size)[1] if size > 0.0 else ZERO_EXPONENT
        dead |= size == 0.0
        if size > 0.0:
            low, high = min(low, exponents[i]), max(high, exponents[i])
    return min(low, high), high, dead or high - low > SPLIT_BITS


@compiled
def sweep(F, J, wanted, examples, out):
    """Carry P_tᵀ = J_{t+1}ᵀ ··· J_Tᵀ backwards through a chunk of steps of one sequence.

    Fed with J_sᵀ as it stands the sweep would lose accuracy where units saturate: the grading of diag(φ')·W would sit
    on the wrong side of each factor. So a Jacobian whose rows differ in size is split, J_s = D_s Ĵ_s, and the product
    regrouped, every bracket graded by rows:

        P_tᵀ = Ĵ_{t+1}ᵀ · [D_{t+1} Ĵ_{t+2}ᵀ] ··· [D_{T−1} Ĵ_Tᵀ] · [D_T]

    Args:
        F: the product at the end of the chunk; the one at its start, afterwards.
        J: the chunk [K, n, n].
        wanted: [K], which steps to hand out.
        examples: `examples_of_rounding`.
        out: the product before each wanted step, ascending in time.
    """
    n = J.shape[1]
    exponents, part = np.empty(n, np.int64), np.empty(n, np.int64)
    unit = np.empty((n, n))
    C = aligned((3, n + 1, F.high.shape[1]))  # one row more, for an odd n
    C_high, C_low, C_size = C[0], C[1], C[2]  # taken apart otherwise they would not count as contiguous
    work = aligned((5, n + 1, F.high.shape[1]))
    m = len(out.flags)
    for s in range(len(J) - 1, -1, -1):
        low, high, split = row_exponents(J[s], exponents)
        shift = (low + high) // 2
        for i in range(n):
            own = exponents[i] if split else shift
            factor = power_of_two(-own)
            for j in range(n):
                unit[i, j] = J[s, i, j] * factor if abs(own) < 500 else scaled(J[s, i, j], -own)
                if J[s, i, j] != 0.0 and abs(unit[i, j]) < UNDERFLOWS:
                    F.flags[0] = True
                    F.flags[1] |= unit[i, j] == 0.0  # a row that spans more than float64
        if split:
            parts = 1 + (high - low) // BRACKET_BITS
            for p in range(parts):
                for i in range(n):
                    e = exponents[i] - shift
                    part[i] = e if exponents[i] == ZERO_EXPONENT else e * (p + 1) // parts - e * p // parts
                scale_rows(F, part, C_high, C_low, C_size)
                refactor(C_high, C_low, C_size, F, examples, work)
        multiply(unit, F, C_high, C_low, C_size)
        for k in range(n):
            if F.mantissa[k] != 0.0:
                F.exponent[k] += shift
        refactor(C_high, C_low, C_size, F, examples, work)
        if wanted[s]:
            m -= 1
            out.high[m] = F.high
            out.Y[m] = F.Y
            out.mantissa[m] = F.mantissa
            out.exponent[m] = F.exponent
            out.flags[m] = F.flags
            for j in range(n):
                out.swept[m, j] = F.error[j] + largest(F.turned, j)


# --- Reading out ------------------------------------------------------------------------------------------------------


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


@compiled
def upper_transposed(A, Rt, pivots):
    """Rᵀ and its diagonal, for R on and above the diagonal of A."""
    for j in range(len(A)):
        row = Rt[j]
        row[:] = 0.0
        for k in range(j + 1):
            row[k] = A[k, j]
        pivots[j] = A[j, j]


@compiled
def sort_descending(keys, order):
    """Put into `order` the indices that sort the keys downwards; ties keep their order. They are nearly sorted."""
    for k in range(len(keys)):
        i = k
        while i > 0 and keys[order[i - 1]] < keys[k]:
            order[i] = order[i - 1]
            i -= 1
        order[i] = k


@compiled
def reorder(x, order):
    """Bring x into this order."""
    before = x.copy()
    for k in range(len(x)):
        x[k] = before[order[k]]


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


@compiled
def read_off(out, ln_s):
    """Put ln σ of each C · diag(d) · Y of `out` into `ln_s` [M, n], in the order of `out.swept` and `out.reading`.

    First C is made orthogonal from the left and dropped. Then the rows of diag(d) · Y are made orthogonal from the
    right (QR of Yᵀ, rows in descending order), after which d nearly descends and the triangle left has a unit diagonal
    and U_ij ~ d_j/d_i: rotations are soon done with it (Drmač and Veselić 2008).

    Args:
        out: `reading` is filled in, `swept` put in order, all else is used up.
        ln_s: in the order of d, which nearly descends.
    """
    M, n = out.mantissa.shape
    pivots, keys, sizes = np.empty(n), np.empty(n), np.empty(n)
    order, order_before, first = np.empty(n, np.int64), np.full(n, -1), np.empty(n, np.int64)
    work = aligned((6, n, out.high.shape[2]))
    A, Rt, Ut, B, Y_before, Rt_of_Y = work[0], work[1], work[2], work[3], work[4], work[5]
    pivots_of_Y = np.empty(n)
    for m in range(M):
        Y, mantissa, exponent, reading = out.Y[m], out.mantissa[m], out.exponent[m], out.reading[m]
        A[:] = out.high[m]
        triangle_of(A)
        upper_transposed(A, Rt, pivots)
        in_scale(Rt, mantissa, exponent, pivots, Ut)
        apply_triangle(Ut, Y)
        rescale(mantissa, exponent, pivots)
        for k in range(n):
            reading[k] = abs(1.0 / pivots[k]) if mantissa[k] != 0.0 else 0.0
            sizes[k] = largest(Y, k)
            size = abs(mantissa[k]) * sizes[k]
            keys[k] = exponent[k] + bits_of(size) * 2.0**-52
        sort_descending(keys, order)
        if not (np.array_equal(order, order_before) and np.array_equal(Y, Y_before)):  # Y stands still at long lags
            for k in range(n):
                order_before[k] = order[k]
                for a in range(n):
                    Y_before[k, a] = Y[k, a]
                    B[a, k] = Y[order[k], a]
            triangle_of(B)
            upper_transposed(B, Rt_of_Y, pivots_of_Y)
        for x in (mantissa, reading, out.swept[m]):
            reorder(x, order)
        reorder(exponent, order)
        in_scale(Rt_of_Y, mantissa, exponent, pivots_of_Y, Ut)
        for k in range(n):
            reading[k] += sizes[order[k]] / abs(pivots_of_Y[k]) if pivots_of_Y[k] != 0.0 else 0.0
        rescale(mantissa, exponent, pivots_of_Y)
        first_rows_felt(Ut, mantissa, exponent, first)
        triangle_values(Ut, mantissa, exponent, first, A, ln_s[m])


# --- Determinants -----------------------------------------------------------------------------------------------------


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
            exponent = math.frexp(largest(A[m], i))[1]
            ln_det += exponent * LN2
            factor = power_of_two(-exponent)
            for j in range(n):
                LU[i, j] = A[m, i, j] * factor if abs(exponent) < 500 else scaled(A[m, i, j], -exponent)
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

"""The sweep of `gradlab.graded`: a product carried backwards in time, and its rounding with it."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from gradlab.graded import PATTERNS, UNIT, WIDTH
from gradlab.kernels.compiling import compiled
from gradlab.kernels.elimination import UNDERFLOWS, eliminate
from gradlab.kernels.grading import apply_triangle, in_scale, rescale
from gradlab.kernels.rows import (
    add_combinations,
    add_row,
    aligned,
    blocks,
    copy_row,
    largest,
    scale_row,
    scaled,
    smallest_entry,
    transpose,
)
from gradlab.kernels.straightening import CROOKED, LONGEST, TOO_CROOKED, straighten
from gradlab.kernels.twofold import multiply, scale_rows
from gradlab.registers import greatest, larger, load, magnitude, spread, store, where_greater
from gradlab.scales import ZERO_EXPONENT

COMPILED_WITH = "ff03dc3c629b1d62"

SPLIT_BITS = 20  # rows of a step that differ by more are graded before the step is multiplied by …
BRACKET_BITS = 900  # … and by no more than this at once: its rounding still fits float64


@compiled
def count_rounding(F, C_size, Rt, rank, columns, pivots, examples, M, room):
    """Carry `turned` E and `error` through C·(I + E) = L·(I + E')·R: E' = (R·E + what is new)·R⁻¹.

    What stands in E' below the diagonal turns the columns of L and is carried on. What stands on or above it is a
    relative change of d and Y, and remains what it is. C_size is what new rounding is relative to.
    """
    n = len(F.rows)
    pattern, none = F.steps[0] % PATTERNS, spread(0.0)
    turned, moved = F.turned, not unmoved(columns)
    if moved:
        turned = room
        for j in range(n):
            for m in range(n):
                room[j, m] = F.turned[columns[j], columns[m]]
        for j in range(n, -(-n // 4) * 4):
            for m in range(n):
                room[j, m] = 0.0
    transpose(C_size, n, M)  # M is transposed like `turned`; in the end it is −E', as that saves signs
    for j in range(0, n, 4):
        rows = min(4, n - j)
        for i in range(j, j + rows):
            for k in range(0, n, WIDTH):
                store(M, i, k, load(examples, pattern + i, k) * load(M, i, k))
        add_combinations(M, j, turned, j, Rt, 0 if moved else j + 1, n, n, True)
        add_combinations(M, j, Rt, j, M, 0, j, n, False)
        for i in range(j, j + rows):
            for m in range(j, i):
                add_row(M, i, Rt[i, m], M, m, 0, n)
            inverse = spread(-1.0 / Rt[i, i]) if i < rank else none
            for k in range(0, n, WIDTH):
                store(M, i, k, inverse * load(M, i, k))
    in_scale(M, F.mantissa, F.exponent, pivots, room)
    before, errors, leaning = F.error.copy(), aligned((1, room.shape[1])), F.leaning.copy()
    for j in range(rank):
        size = spread(abs(pivots[j]))
        for k in range(0, j + 1, WIDTH):
            store(errors, 0, k, larger(load(errors, 0, k), size * load(room, j, k)))
    for k in range(n):
        F.error[k] = before[columns[k]] + errors[0, k]
        F.leaning[k] = leaning[columns[k]]
    for j in range(n):
        unknown = none
        for k in range(0, n, WIDTH):
            x = none - load(M, j, k) if k + WIDTH > j else none
            # NaN is not less, either
            unknown = larger(unknown, where_greater(spread(1.0 / UNIT), magnitude(x), none, spread(1.0)))
            store(F.turned, j, k, x)
        for k in range(j // WIDTH * WIDTH, j + 1):
            F.turned[j, k] = 0.0
        for k in range(n, -(-n // WIDTH) * WIDTH):
            F.turned[j, k] = 0.0
        if greatest(unknown) > 0.0:
            lost = False
            for k in range(j + 1, n):
                if not abs(M[j, k]) < 1.0 / UNIT:
                    F.turned[j, k] = 0.0
                    lost = True
            if lost:  # nothing is known of this column
                F.error[j] = np.inf


@compiled
def unmoved(columns):
    """Whether each column is in its own place."""
    moved = 0
    for k in range(len(columns)):
        moved += columns[k] != k
    return moved == 0


@compiled
def refactor(C_high, C_low, C_size, F, examples, work):
    """Put C · diag(d) · Y into F, for the d and Y of F and a C that is overwritten, without ever forming C · diag(d).

    C = L·R with R upper triangular, d' = r·d with r = diag R, and Y' = (I + U)·Y with U_kj = (R_kj/r_k)·(d_j/d_k) for
    j > k: the ratio is taken from the exponents.

    Args:
        C_high: [whole blocks of rows, padded], rows in their own order, zero from row n on.
        C_low: the same.
        C_size: the same, what the rounding of C is relative to.
        F: the product, its C apart.
        examples: `examples_of_rounding`.
        work: room for five such matrices.
    """
    n = len(F.rows)
    columns, pivots = np.empty(n, np.int64), np.zeros(n)
    Rt, Ut, M, Y, C_grown = work[0], work[1], work[2], work[3], work[4]
    rank = eliminate(C_high, C_low, C_size, C_grown, F, columns)
    for i in range(n):
        add_row(C_size, i, 1.0, C_grown, i, 0, n)
    transpose(C_high, n, Rt)
    for j in range(n):
        for k in range(min(j + 1, rank), C_high.shape[1]):
            Rt[j, k] = 0.0
        if j < rank:
            pivots[j] = C_high[j, j] + C_low[j, j]
    in_scale(Rt, F.mantissa, F.exponent, pivots, Ut)
    if unmoved(columns):
        apply_triangle(Ut[:n], F.Y, M)
    else:
        for k in range(n):
            copy_row(F.Y, columns[k], Y, k)
        apply_triangle(Ut[:n], Y, M)
        for k in range(n):
            copy_row(Y, k, F.Y, k)
    count_rounding(F, C_size, Rt, rank, columns, pivots, examples, M, Ut)
    rescale(F.mantissa, F.exponent, pivots)
    for k in range(n):
        stop = min(k, rank)
        for j in range(0, k + 1, WIDTH):
            store(F.high, k, j, load(C_high, k, j))
            store(F.low, k, j, load(C_low, k, j))
        for j in range(stop, (k // WIDTH + 1) * WIDTH):
            F.high[k, j] = F.low[k, j] = 0.0
        F.high[k, k] = 1.0
    F.steps[0] += 1


@compiled
def row_exponents(step, exponents):
    """Put the exponent of the largest entry of each row into `exponents`.

    Returns:
        (the least, the greatest of them, whether rows must be graded before the step is multiplied by): they must where
        their sizes differ much, and where one is zero, so that what it makes zero is so exactly.
    """
    low, high, dead = 1 << 20, -(1 << 20), False
    for i in range(len(exponents)):
        size = largest(step, i)
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
    C = aligned((3, blocks(n), F.high.shape[1]))
    C_high, C_low, C_size = C[0], C[1], C[2]  # taken apart otherwise they would not count as contiguous
    step = aligned((n, F.high.shape[1]))
    work = aligned((5, blocks(n), F.high.shape[1]))
    m = len(out.flags)
    for s in range(len(J) - 1, -1, -1):
        for i in range(n):
            for j in range(n):
                step[i, j] = J[s, i, j]
        if F.steps[0] >= F.straight[0]:
            crooked = straighten(F, work)
            if crooked > TOO_CROOKED:
                F.straight[1] = max(F.straight[1] // 2, 1)
            elif crooked <= CROOKED:
                F.straight[1] = min(2 * F.straight[1], LONGEST)
            F.straight[0] = F.steps[0] + F.straight[1]
        low, high, split = row_exponents(step, exponents)
        shift = (low + high) // 2
        for i in range(n):
            own = exponents[i] if split else shift
            if exponents[i] != ZERO_EXPONENT:
                smallest = scaled(smallest_entry(step, i), -own)
                if smallest < UNDERFLOWS:
                    F.flags[0] = True
                    F.flags[1] |= smallest == 0.0  # a row that spans more than float64
                scale_row(step, i, step, i, -own)
        if split:
            parts = 1 + (high - low) // BRACKET_BITS
            for p in range(parts):
                for i in range(n):
                    e = exponents[i] - shift
                    part[i] = e if exponents[i] == ZERO_EXPONENT else e * (p + 1) // parts - e * p // parts
                scale_rows(F, part, C_high, C_low, C_size)
                refactor(C_high, C_low, C_size, F, examples, work)
        multiply(step, F, C_high, C_low, C_size)
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
            out.reading[m] = F.leaning
            out.flags[m] = F.flags
            for j in range(n):
                out.swept[m, j] = F.error[j] + largest(F.turned, j)

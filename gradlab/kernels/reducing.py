"""What the pivots of a panel do to the columns of it that are left, and to those on its right."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from gradlab.graded import WIDTH
from gradlab.kernels.compiling import compiled, inlined
from gradlab.kernels.twofold import ANCHOR, add_anchored, add_product, store_twofold
from gradlab.registers import fma, larger, load, magnitude, spread, store

COMPILED_WITH = "356041be8f1def45"

LEFT, NOISE, TILT = range(3)  # for each column: its largest entry left, Σ C_size, Σ|R/diag R| over the pivots so far
LOW, SIZE = 4, 8  # where `factors` has the low parts and sizes of four rows of L; their high parts come first, negative


@compiled
def reduce_panel(C_high, C_low, C_size, C_grown, k, n, factors, pivot, columnwise):
    """C[i] −= L[i, k]·R[k] for the rows below k, in the columns of the panel that are right of k: one register."""
    j = k // WIDTH * WIDTH
    store(pivot, 0, 0, load(C_high, k, j))
    store(pivot, 1, 0, load(C_low, k, j))
    for i in range(k + 1 - j):
        pivot[0, i] = pivot[1, i] = 0.0  # the whole register is overwritten, L must not be
    x, x_low, none = load(pivot, 0, 0), load(pivot, 1, 0), spread(0.0)
    size, left = magnitude(x), none
    for i in range(k + 1, n):
        a, a_low = spread(-factors[0, i]), spread(-factors[1, i])
        high, low = add_product(load(C_high, i, j), fma(a_low, x, load(C_low, i, j)), a, x, x_low)
        both = high + low
        store(C_high, i, j, both)
        store(C_low, i, j, low - (both - high))
        store(C_grown, i, j, fma(magnitude(a), size, load(C_grown, i, j)))
        left = larger(left, both)
    store(columnwise, LEFT, j, left)
    count_row(C_size, C_grown, k, j, size, spread(abs(1.0 / C_high[k, k])), columnwise)


@inlined
def count_row(C_size, C_grown, k, j, size, inverse, columnwise):
    """Count row k of R, of this size in the register at j, among what its columns were reduced from."""
    store(C_grown, k, j, load(C_grown, k, j) + size)
    store(columnwise, NOISE, j, load(columnwise, NOISE, j) + load(C_size, k, j))
    store(columnwise, TILT, j, fma(inverse, size, load(columnwise, TILT, j)))


@compiled
def reduce_row(C_high, C_low, C_grown, i, first, last, start, stop, columnwise):
    """C[i] −= Σ L[i, m]·R[m] over the pivots first ≤ m < last, in the columns start … stop, on top of an anchor."""
    for j in range(start, stop, WIDTH):
        size = rest = spread(0.0)
        for m in range(first, last):
            size = fma(magnitude(spread(C_high[i, m])), magnitude(load(C_high, m, j)), size)
        a, low, anchor = anchored(C_high, C_low, i, j, size)
        for m in range(first, last):
            x = load(C_high, m, j)
            a, low, rest = add_anchored(a, low, rest, spread(0.0) - spread(C_high[i, m]), x, load(C_low, m, j))
            rest = fma(spread(0.0) - spread(C_low[i, m]), x, rest)
        a = store_twofold(C_high, C_low, i, j, a - anchor, low + rest)
        store(C_grown, i, j, load(C_grown, i, j) + size)
        store(columnwise, LEFT, j, larger(load(columnwise, LEFT, j), a))


@compiled
def reduce_four_rows(C_high, C_low, C_grown, i, first, last, start, stop, factors, columnwise):
    """What `reduce_row` does, for the rows i … i + 3 at once; `factors` [12, 8] is room."""
    panel, none = first // WIDTH * WIDTH, spread(0.0)
    for r in range(4):
        x = load(C_high, i + r, panel)
        store(factors, r, 0, none - x)
        store(factors, LOW + r, 0, none - load(C_low, i + r, panel))
        store(factors, SIZE + r, 0, magnitude(x))
    for m in range(WIDTH):
        if not first <= panel + m < last:
            for r in range(12):
                factors[r, m] = 0.0
    for j in range(start, stop, WIDTH):
        size_a = size_b = size_c = size_d = none
        for m in range(WIDTH):  # always all eight: known in advance, LLVM writes the loop out
            x = magnitude(load(C_high, panel + m, j))
            size_a = fma(spread(factors[SIZE, m]), x, size_a)
            size_b = fma(spread(factors[SIZE + 1, m]), x, size_b)
            size_c = fma(spread(factors[SIZE + 2, m]), x, size_c)
            size_d = fma(spread(factors[SIZE + 3, m]), x, size_d)
        store(C_grown, i, j, load(C_grown, i, j) + size_a)
        store(C_grown, i + 1, j, load(C_grown, i + 1, j) + size_b)
        store(C_grown, i + 2, j, load(C_grown, i + 2, j) + size_c)
        store(C_grown, i + 3, j, load(C_grown, i + 3, j) + size_d)
        a, a_low, anchor_a = anchored(C_high, C_low, i, j, size_a)
        b, b_low, anchor_b = anchored(C_high, C_low, i + 1, j, size_b)
        c, c_low, anchor_c = anchored(C_high, C_low, i + 2, j, size_c)
        d, d_low, anchor_d = anchored(C_high, C_low, i + 3, j, size_d)
        a_rest = b_rest = c_rest = d_rest = none
        for m in range(WIDTH):
            x, x_low = load(C_high, panel + m, j), load(C_low, panel + m, j)
            a, a_low, a_rest = add_anchored(a, a_low, a_rest, spread(factors[0, m]), x, x_low)
            b, b_low, b_rest = add_anchored(b, b_low, b_rest, spread(factors[1, m]), x, x_low)
            c, c_low, c_rest = add_anchored(c, c_low, c_rest, spread(factors[2, m]), x, x_low)
            d, d_low, d_rest = add_anchored(d, d_low, d_rest, spread(factors[3, m]), x, x_low)
            a_rest = fma(spread(factors[LOW, m]), x, a_rest)
            b_rest = fma(spread(factors[LOW + 1, m]), x, b_rest)
            c_rest = fma(spread(factors[LOW + 2, m]), x, c_rest)
            d_rest = fma(spread(factors[LOW + 3, m]), x, d_rest)
        a = store_twofold(C_high, C_low, i, j, a - anchor_a, a_low + a_rest)
        b = store_twofold(C_high, C_low, i + 1, j, b - anchor_b, b_low + b_rest)
        c = store_twofold(C_high, C_low, i + 2, j, c - anchor_c, c_low + c_rest)
        d = store_twofold(C_high, C_low, i + 3, j, d - anchor_d, d_low + d_rest)
        store(columnwise, LEFT, j, larger(load(columnwise, LEFT, j), larger(larger(a, b), larger(c, d))))


@inlined
def anchored(C_high, C_low, i, j, size):
    """(the register of C on top of an anchor, its low part, the anchor) for sums that add up to this size at most."""
    x = load(C_high, i, j)
    anchor = spread(ANCHOR) * (size + magnitude(x))
    both = anchor + x
    return both, load(C_low, i, j) + (x - (both - anchor)), anchor


@compiled
def reduce_rest(C_high, C_low, C_size, C_grown, first, last, start, stop, n, factors, columnwise):
    """What the pivots first ≤ k < last of a panel do to the columns start … stop on the right of it."""
    for i in range(first + 1, last):
        reduce_row(C_high, C_low, C_grown, i, first, i, start, stop, columnwise)
    for j in range(start, stop, WIDTH):
        for k in range(first, last):
            size, inverse = magnitude(load(C_high, k, j)), spread(abs(1.0 / C_high[k, k]))
            count_row(C_size, C_grown, k, j, size, inverse, columnwise)
        store(columnwise, LEFT, j, spread(0.0))
    whole = last + (n - last) % 4
    for i in range(last, whole):
        reduce_row(C_high, C_low, C_grown, i, first, last, start, stop, columnwise)
    for i in range(whole, n, 4):
        reduce_four_rows(C_high, C_low, C_grown, i, first, last, start, stop, factors, columnwise)

"""Singular values of the products that a sweep hands out."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from gradlab.kernels.compiling import compiled
from gradlab.kernels.grading import apply_triangle, in_scale, rescale
from gradlab.kernels.reflections import triangle_of, upper_transposed
from gradlab.kernels.rotations import first_rows_felt, triangle_values
from gradlab.kernels.rows import aligned, blocks, copy_row, largest, transpose
from gradlab.kernels.straightening import rounding_passed_on
from gradlab.registers import bits_of

COMPILED_WITH = "c04f9b1d47a66fe5"


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
def read_off(out, ln_s):
    """Put ln σ of each C · diag(d) · Y of `out` into `ln_s` [M, n], descending.

    First C is made orthogonal from the left and dropped. Then the rows of diag(d) · Y are made orthogonal from the
    right (QR of Yᵀ, rows in descending order), after which d nearly descends and the triangle left has a unit diagonal
    and U_ij ~ d_j/d_i: rotations are soon done with it (Drmač and Veselić 2008).

    Args:
        out: `reading` is added to, `swept` put in the same order, all else is used up.
        ln_s: takes the values.
    """
    M, n = out.mantissa.shape
    pivots, keys, sizes = np.empty(n), np.empty(n), np.empty(n)
    order, order_before, first = np.empty(n, np.int64), np.full(n, -1), np.empty(n, np.int64)
    work = aligned((7, blocks(n), out.high.shape[2]))
    A, B, Rt, Rt_of_Y, Ut = work[0][:n], work[1][:n], work[2][:n], work[3][:n], work[4][:n]
    Y, Y_before = work[5], work[6]
    crooked = np.empty(n)
    pivots_of_Y, last = np.empty(n), np.empty(n, np.int64)
    for m in range(M):
        mantissa, exponent, reading = out.mantissa[m], out.exponent[m], out.reading[m]
        high, Y_given = out.high[m], out.Y[m]
        for k in range(n):
            copy_row(high, k, A, k)  # into arrays that have whole blocks of rows
            copy_row(Y_given, k, Y, k)
        triangle_of(A)
        upper_transposed(A, Rt, pivots)
        in_scale(Rt, mantissa, exponent, pivots, Ut)
        apply_triangle(Ut, Y, B)
        rescale(mantissa, exponent, pivots)
        for k in range(n):
            reading[k] += abs(1.0 / pivots[k]) if mantissa[k] != 0.0 else 0.0
            sizes[k] = largest(Y, k)
            size = abs(mantissa[k]) * sizes[k]
            keys[k] = exponent[k] + bits_of(size) * 2.0**-52
        sort_descending(keys, order)
        if not (np.array_equal(order, order_before) and np.array_equal(Y, Y_before)):  # Y stands still at long lags
            for k in range(n):
                order_before[k] = order[k]
                copy_row(Y, k, Y_before, k)
                copy_row(Y, order[k], A, k)
            transpose(A, n, B)
            triangle_of(B)
            upper_transposed(B, Rt_of_Y, pivots_of_Y)
            rounding_passed_on(Rt_of_Y, pivots_of_Y, sizes[order], crooked, A)
        for x in (mantissa, reading, out.swept[m]):
            reorder(x, order)
        reorder(exponent, order)
        in_scale(Rt_of_Y, mantissa, exponent, pivots_of_Y, Ut)
        for k in range(n):
            reading[k] += crooked[k]
        rescale(mantissa, exponent, pivots_of_Y)
        first_rows_felt(Ut, mantissa, exponent, first)
        triangle_values(Ut, mantissa, exponent, first, A, ln_s[m])
        sort_descending(ln_s[m], last)
        for x in (ln_s[m], reading, out.swept[m]):
            reorder(x, last)

"""Long products carried as Q · diag(d) · Y, with d held as mantissa and exponent so that nothing overflows.

The singular values of a product over hundreds of steps span far more than one float64 matrix can hold: formed in
the open, the small ones drown in the rounding of the large ones. Here Q is orthogonal, Y is well conditioned with
determinant ±1, and every scale sits in d, where it costs nothing and loses nothing.

Lineage: stratification, or "UDT", of quantum Monte Carlo (Loh and Gubernatis 1992; Bauer 2020), and graded QR for
products of matrices (G. W. Stewart 1995; D. E. Stewart 1997). Row ordering: Cox and Higham 1998.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradlab import lapack, remainder
from gradlab.scales import ZERO_EXPONENT, Integers, Scales, descending, largest, unit_triangle
from gradlab.validation import Array

LU_GROWTH = 2.0  # past this |U| QR is worth its price: one to three digits, measured, where values stay close together
PIVOT_GROWTH = 2.0**7  # |U| with column pivoting is at most 1; past this, ordering by column size was not good enough
ROUNDING = 32 * float(np.finfo(np.float64).eps)  # a pivot this far below its row and column has no right digit left
EXAMPLE = 2.0**-53  # the size of an example of rounding, relative to what is rounded: an entry of C and its sums
SMALL = 2.0**-26  # past this the square of a correction counts
NOTHING_LEFT = 2.0**-36  # a pivot this much smaller than the rounding of its row and column may as well be zero
EXAMPLES = 8  # patterns of it, in turn, so that a constant Jacobian does not add up one and the same


class GradedFactor(NamedTuple):
    """A batch of products C · diag(d) · Y; C is kept as Cᵀ, as LAPACK wants it, its columns in the order of `rows`.

    The rest of C is carried along to first order. Without `slices` it is an example of what rounding has done so far,
    from which the error of each value follows. With them it is what C lacks in truth, so that C has up to twice the
    digits of float64.
    """

    Ct: Array  # [N, n, n]
    d: Scales
    Y: Array  # [N, n, n]
    singular: NDArray[np.bool_]  # [N]: a pivot vanished in rounding and was taken for an exact zero
    rest: Array  # [N, n, n], laid out like Ct
    error: Array  # [N, n] relative error of d and Y so far, which nothing later can change; with slices, that left
    pending: Array  # [N, n] relative error of the columns of C, by which later steps may yet change d; 0 with slices
    slices: int = 0
    rows: Integers | None = None  # [N, n]: Ct[b, :, i] is row rows[b, i] of C; None: row i
    factorizations: int = 0  # so far


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # hopeless pivots are seen and replaced
def refactor(F: GradedFactor, *, keep_left: bool) -> GradedFactor:
    """Factor C · diag(d) · Y = X · diag(d') · Y' without ever forming C · diag(d); X is well conditioned.

    C = XR with R upper triangular, d' = r·d with r = diag R, and Y' = (I + U)·Y with U_ij = (R_ij/r_i)·(d_j/d_i) for
    j > i: the ratio is taken from the exponents. Columns go in descending order of ‖c_j‖·d_j, which keeps U small.

    An X that is carried on only has to be well conditioned, and LU with partial pivoting does that at a third of the
    price of QR with Q: it is as accurate row by row as the growth of its pivots allows (a row of L is as small as the
    row of C), and the columns of X span the same nested spaces. Where U is not small, QR it is. To be rid of X, it must
    be orthogonal: QR, the rows in descending order of their largest entry, which makes Householder QR accurate row by
    row (Cox and Higham 1998); without it a saturated unit's small row is lost in the rounding of the large ones.

    The rest of C goes with it, as `GradedFactor` says.

    Args:
        F: C · diag(d) · Y, rows in their own order.
        keep_left: whether X is wanted (LU). False leaves an X that is orthogonal and is dropped: Ct and its rest then
            mean nothing, and `error` is all of the error.
    """
    Ct = F.Ct
    zero = F.d.mantissa == 0
    if zero.any():  # columns that count for nothing must not decide the order of the rows, nor feed noise into zeros
        Ct = np.where(zero[:, :, None], 0.0, Ct)
    size = np.abs(Ct)
    row_size = largest(size, axis=1)
    each = np.arange(len(Ct))[:, None]
    column_size = largest(size, axis=2)
    columns = descending(F.d.log2() + np.log2(column_size))
    ordered = F.d.at(each, columns)
    if keep_left:
        factors = Ct[each, columns]
        rows = lapack.lu(factors)
        left = _unit_upper(factors)
    else:
        rows = descending(row_size)
        factors = left = _permuted(Ct, columns, rows)
        lapack.qr(factors)
    Ut, d, ratios = unit_triangle(factors, ordered)
    orthogonal = np.full(len(Ct), not keep_left)

    def redo(b: int) -> None:
        """Factor one member by QR with Q, for the columns in the order of columns[b]."""
        one = slice(b, b + 1)
        orthogonal[b] = True
        rows[b] = descending(row_size[b])
        Q, R = np.linalg.qr(Ct[b].T[rows[b]][:, columns[b]])
        left[b], factors[b] = Q.T, R.T
        Ut[one], scales, ratios[one] = unit_triangle(factors[one], F.d.at(each[one], columns[one]))
        d.mantissa[one], d.exponent[one] = scales

    growth = np.abs(Ut).max(axis=(1, 2))
    for b in np.flatnonzero(~(growth <= LU_GROWTH)) if keep_left else ():  # NaN counts as large
        redo(int(b))
        growth[b] = np.abs(Ut[b]).max()
    # a column is rounded relative to its own size, and its rows to theirs: what is small in both ways is still right
    rounding = max(1.0, Ct.shape[-1] / 32) * ROUNDING
    lost = rounding * np.minimum(row_size[each, rows], column_size[each, columns])
    dead = F.d.at(each, columns).mantissa == 0
    vanished = (np.abs(factors.diagonal(axis1=1, axis2=2)) <= lost) & ~dead
    singular = F.singular
    if vanished.any() or not (growth <= PIVOT_GROWTH).all():
        # an early pivot is too small for what stands to its right
        tail = np.abs(factors * np.tril(np.ones(Ct.shape[1:]), -1)).max(axis=1, initial=0.0)
        for b in np.flatnonzero(~(growth <= PIVOT_GROWTH) | (vanished & (tail > lost)).any(axis=1)):
            columns[b] = _pivoted_columns(Ct[b].T, F.d.log2()[b])
            redo(int(b))
            lost[b] = rounding * np.minimum(row_size[b, rows[b]], column_size[b, columns[b]])
            vanished[b] = (np.abs(factors[b].diagonal()) <= lost[b]) & (F.d.mantissa[b, columns[b]] != 0)
        if F.slices and keep_left:  # any other pivot will do, as what it lacks is made good below
            raised = vanished & (lost > 0)
            np.einsum("bii->bi", factors)[raised] = lost[raised]
            Ut, d, ratios = unit_triangle(factors, F.d.at(each, columns))
            vanished &= ~raised
        # a vanished pivot has no right digit, so it is the zero that it cannot be told from; in an empty row or column
        # it is an exact zero
        singular = singular | (vanished & (lost > 0)).any(axis=1)
        d = _without(d, vanished)
        Ut.swapaxes(1, 2)[vanished] = 0.0
    factored = _Factored(left, factors, ratios, d, rows, columns, orthogonal)
    if not keep_left:
        error = _error_of_reading(F, factored, np.minimum(row_size[each, rows], column_size[each, columns]))
        return F._replace(Ct=left, d=d, Y=Ut.swapaxes(1, 2) @ F.Y[each, columns], singular=singular, error=error)
    error, pending = F.error, F.pending
    if F.slices:
        d, Ut, rest, vanished, unknown = _make_good(F, factored, Ut)
        error = error[each, columns] + unknown
        singular = singular | vanished.any(axis=1)
        d = _without(d, vanished)
    else:
        rest, error, pending = _keep_count(F, factored, row_size)
    Y = Ut.swapaxes(1, 2) @ F.Y[each, columns]
    return GradedFactor(left, d, Y, singular, rest, error, pending, F.slices, rows, F.factorizations + 1)


# --- The rest of C, to first order: C + rest = X · (I + E) · R, with E = X⁻¹ · rest · R⁻¹ -----------------------------
#
# What stands in E below the diagonal turns the columns of X and is carried on with them: it does no harm as long as the
# scales keep their order, and grows when later steps close the gap between two of them. What stands on or above it is a
# relative change of d and Y, and remains what it is.


class _Factored(NamedTuple):
    """C[rows][:, columns] = X · R of a batch."""

    left: Array  # Xᵀ
    Rt: Array  # Rᵀ on and below the diagonal; above it is no part of R
    ratios: Array  # d_j/d'_i at [j, i], d and d' the scales before and after
    d: Scales  # d'
    rows: Integers
    columns: Integers
    orthogonal: NDArray[np.bool_]  # [N]: X is Q, not L


def _make_good(F: GradedFactor, A: _Factored, Ut: Array) -> tuple[Scales, Array, Array, NDArray[np.bool_], Array]:
    """d, Uᵀ and the rest of X, for the rest of C that is known and what this factorization adds to it.

    X · (I + E) · R = (X · L) · (D · V · R) for I + E = L · D · V, which E itself tells where it is small.

    Returns:
        (d, Uᵀ, the rest, which of d are 0 as far as the slices can tell, the error of d that E cannot tell), the last
        two [N, n].
    """
    rest = _permuted(F.rest, A.columns, A.rows)
    rest += remainder.residual(_permuted(F.Ct, A.columns, A.rows), np.tril(A.Rt), A.left, F.slices)
    Et, _ = _relative(A, rest)
    n = Et.shape[-1]
    diagonal = 1.0 + Et.diagonal(axis1=1, axis2=2)
    size = np.abs(Et)
    error = np.zeros_like(diagonal)
    for b in np.flatnonzero(~(size.max(axis=(1, 2)) <= SMALL)):
        error[b] = n * EXAMPLE * np.maximum(size[b].max(axis=0), size[b].max(axis=1))
        diagonal[b], Et[b] = _unpivoted(Et[b])
    vanished = np.abs(diagonal) <= NOTHING_LEFT
    above = A.ratios * A.Rt.diagonal(axis1=1, axis2=2)[:, :, None] * Et * _strictly_upper(n).T
    np.einsum("bii->bi", above)[...] = 0.0
    d = Scales.of(A.d.mantissa * diagonal, A.d.exponent)
    return d, Ut + Ut @ above, _carried(Et, A), vanished, error


def _unpivoted(Et: Array) -> tuple[Array, Array]:
    """D [n] and (L − I + V − I)ᵀ [n, n] for I + E = L · D · V."""
    M = np.eye(len(Et)) + Et.T
    for k in range(len(M)):
        if M[k, k] != 0:
            M[k + 1 :, k] /= M[k, k]
            M[k + 1 :, k + 1 :] -= np.outer(M[k + 1 :, k], M[k, k + 1 :])
            M[k, k + 1 :] /= M[k, k]
    return M.diagonal().copy(), M.T


def _without(d: Scales, vanished: NDArray[np.bool_]) -> Scales:
    """The same with exact zeros where a scale has vanished."""
    return Scales(np.where(vanished, 0.0, d.mantissa), np.where(vanished, ZERO_EXPONENT, d.exponent))


def _keep_count(F: GradedFactor, A: _Factored, row_size: Array) -> tuple[Array, Array, Array]:
    """The rest of X, the error of d and Y, and the error that is pending, with an example of what rounding did here."""
    n = F.Ct.shape[-1]
    rest = _permuted(F.rest, A.columns, A.rows)
    # the product before this and elimination: both may pass through numbers much larger than those they end with
    rest += _example(n, F.factorizations) * (np.abs(A.Rt * _strictly_upper(n + 1).T[1:, :-1]) @ np.abs(A.left))
    for b in np.flatnonzero(A.orthogonal):  # reflections fill in zeros, which elimination leaves alone
        rest[b] += _example(n, F.factorizations + 1) * row_size[b, A.rows[b]]
    Et, in_scale = _relative(A, rest)
    error = np.take_along_axis(F.error, A.columns, 1) + largest(np.abs(in_scale), axis=1)
    return _carried(Et, A), error, largest(np.abs(Et * _strictly_upper(n)), axis=2)


def _error_of_reading(F: GradedFactor, A: _Factored, size: Array) -> Array:
    """The error of d once X is dropped, `size` [N, n] being that of what the diagonal of R was reduced from."""
    return np.take_along_axis(F.error + F.pending, A.columns, 1) + rounding_of_pivots(size, A.Rt)


def rounding_of_pivots(size: Array, Rt: Array) -> Array:
    """Relative rounding errors of the diagonal of R [N, n], where what it was reduced from was of that size."""
    pivots = np.abs(Rt.diagonal(axis1=1, axis2=2))
    return EXAMPLE * np.divide(size, pivots, out=np.zeros_like(pivots), where=pivots != 0)


def _relative(A: _Factored, rest: Array) -> tuple[Array, Array]:
    """Eᵀ for restᵀ [N, n, n], in its place, and (diag(d')⁻¹ · E · diag(d'))ᵀ on and above the diagonal of E."""
    left, Rt = A.left, A.Rt
    if A.orthogonal.any():
        left = left.copy()
        for b in np.flatnonzero(A.orthogonal):
            rest[b] = rest[b] @ left[b].T
            left[b] = np.eye(left.shape[-1])
    live = A.d.mantissa != 0
    whole = live.all()
    if not whole:  # what is exactly zero has no rest
        Rt = Rt.copy()
        np.einsum("bii->bi", Rt)[~live] = 1.0
        rest *= live[:, :, None]
    lapack.divide_by_triangles(rest, left, Rt)
    if not whole:
        rest *= live[:, :, None]
        rest *= live[:, None, :]
    in_scale = A.ratios * rest
    in_scale *= Rt.diagonal(axis1=1, axis2=2)[:, :, None]
    return rest, in_scale


def _carried(Et: Array, A: _Factored) -> Array:
    """(X · E)ᵀ of what stands in E below the diagonal."""
    rest: Array = (Et * _strictly_upper(Et.shape[-1])) @ A.left
    return rest


@functools.cache
def _strictly_upper(n: int) -> Array:
    """Ones above the diagonal."""
    return np.triu(np.ones((n, n)), 1)


@functools.cache
def _examples(n: int) -> Array:
    """Signs and sizes of rounding, to cut patterns from."""
    return EXAMPLE * np.random.default_rng(0).uniform(-1.0, 1.0, (n + EXAMPLES, n + EXAMPLES))


def _example(n: int, count: int) -> Array:
    """One pattern of relative rounding [n, n]."""
    k = count % EXAMPLES
    return _examples(n)[k : k + n, k : k + n]


# --- Factors and orders -----------------------------------------------------------------------------------------------


def _permuted(Ct: Array, columns: Integers, rows: Integers) -> Array:
    """Ct[b][columns[b], :][:, rows[b]] for each b: two takes cost a third of indexing with both."""
    out = np.empty_like(Ct)
    for b in range(len(Ct)):
        Ct[b].take(columns[b], 0).take(rows[b], 1, out=out[b], mode="clip")
    return out


def _unit_upper(LUt: Array) -> Array:
    """Lᵀ with its unit diagonal, from what `lapack.lu` left."""
    Lt = LUt * _strictly_upper(LUt.shape[-1])
    np.einsum("bii->bi", Lt)[...] = 1.0
    return Lt


def _pivoted_columns(C: Array, log2_d: Array) -> Integers:
    """The column order of Householder QR with pivoting on C · diag(d), without forming it. The rare way: slow."""
    C, n = C.copy(), len(C)
    order = np.arange(n)
    for j in range(n - 1):
        size = np.abs(C[j:, j:]).max(axis=0)
        key = np.log2(size) + log2_d[order[j:]]
        best = int(np.argmax(key))
        if key[best] == -np.inf:
            break
        C[:, [j, j + best]] = C[:, [j + best, j]]
        order[[j, j + best]] = order[[j + best, j]]
        v = C[j:, j] / size[best]
        v[0] += np.copysign(np.sqrt(v @ v), v[0])
        C[j:, j:] -= np.outer(v * (2 / (v @ v)), v @ C[j:, j:])
    return order

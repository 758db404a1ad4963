"""Long products carried as Q · diag(d) · Y, with d held as mantissa and exponent so that nothing overflows.

The singular values of a product over hundreds of steps span far more than one float64 matrix can hold: formed in
the open, the small ones drown in the rounding of the large ones. Here Q is orthogonal, Y is well conditioned with
determinant ±1, and every scale sits in d, where it costs nothing and loses nothing.

Lineage: stratification, or "UDT", of quantum Monte Carlo (Loh and Gubernatis 1992; Bauer 2020), and graded QR for
products of matrices (G. W. Stewart 1995; D. E. Stewart 1997). Row ordering: Cox and Higham 1998.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradlab import lapack
from gradlab.validation import Array

Integers = NDArray[np.int64]

LN2 = float(np.log(2.0))
ZERO_EXPONENT = -(1 << 40)  # the exponent of an exact zero: below everything, and its differences still fit int64
BRACKET_BITS = 900  # a Householder vector must hold the ratio of any two rows of a bracket
LU_GROWTH = 2.0  # past this |U| QR is worth its price: one to three digits, measured, where values stay close together
PIVOT_GROWTH = 2.0**7  # |U| with column pivoting is at most 1; past this, ordering by column size was not good enough
ROUNDING = 32 * float(np.finfo(np.float64).eps)  # a pivot this far below its row and column has no right digit left


class Scales(NamedTuple):
    """A batch of diagonals d = mantissa · 2^exponent, each [N, n]; signed; an exact zero stays an exact zero."""

    mantissa: Array
    exponent: Integers

    @classmethod
    def of(cls, mantissa: Array, exponent: Integers) -> Scales:
        """Bring the mantissas into ½ ≤ |m| < 1."""
        fraction, shift = np.frexp(mantissa)
        return cls(fraction, np.where(fraction == 0, ZERO_EXPONENT, exponent + shift))

    def at(self, each: Integers, rows: Integers) -> Scales:
        """The entries rows[b] of each diagonal b."""
        return Scales(self.mantissa[each, rows], self.exponent[each, rows])

    def log2(self) -> Array:
        """log2|d|, −∞ for an exact zero: precise enough to sort by, not to keep."""
        return self.exponent + log2_abs(self.mantissa)


class GradedFactor(NamedTuple):
    """A batch of products C · diag(d) · Y; C is kept as Cᵀ, as LAPACK wants it, its columns in the order of `rows`."""

    Ct: Array  # [N, n, n]
    d: Scales
    Y: Array  # [N, n, n]
    singular: NDArray[np.bool_]  # [N]: a pivot vanished in rounding and was taken for an exact zero
    rows: Integers | None = None  # [N, n]: Ct[b, :, i] is row rows[b, i] of C; None: row i


def log2_abs(x: Array) -> Array:
    """log2|x|, with −∞ at zero and no warning."""
    with np.errstate(divide="ignore"):
        return np.log2(np.abs(x))


def descending(keys: Array) -> Integers:
    """Indices that sort each row downwards; ties keep their order, so structure (permutations) survives."""
    return (-keys).argsort(axis=-1, kind="stable")


def power_of_two_biased(exponents: Integers, largest: int | Integers = 2046) -> Array:
    """2^(exponents − 1023), 0 below the normal range, in place: its bits written directly, far faster than ldexp."""
    np.maximum(exponents, 0, out=exponents)
    np.minimum(exponents, largest, out=exponents)
    exponents <<= 52
    return exponents.view(np.float64)


def _largest(sizes: Array, axis: int) -> Array:
    """The maximum along an axis of numbers ≥ 0, NaN above all: as integers, which compare twice as fast."""
    return sizes.view(np.int64).max(axis=axis).view(np.float64)


def row_scales(J: Array) -> tuple[Array, Integers, Integers]:
    """Split J = 2^shift · diag(2^D) · Ĵ exactly, rows of Ĵ with largest entry in [½, 1).

    Returns:
        (Ĵ, D, shift): J's shape, then without its last axis, then without its last two. D is centred on 0 (the
        rows of one saturated step may span 10^±290). A zero row of J is a zero row of Ĵ and has D = ZERO_EXPONENT.
    """
    largest = _largest(np.abs(J), axis=-1)
    exponent = np.frexp(largest)[1].astype(np.int64)
    dead = largest == 0
    top = np.where(dead, np.iinfo(np.int32).min, exponent).max(axis=-1)
    low = np.where(dead, np.iinfo(np.int32).max, exponent).min(axis=-1)
    shift = np.where(dead.all(axis=-1), 0, (top + low) // 2)
    D = np.where(dead, ZERO_EXPONENT, exponent - shift[..., None])
    half = np.where(np.abs(exponent) < 1000, 0, -exponent // 2)  # 2^-exponent overflows for a subnormal row
    unit = J * power_of_two_biased(1023 - exponent - half)[..., None]
    if half.any():
        unit *= power_of_two_biased(1023 + half)[..., None]
    return unit, D, shift


def unit_triangle(Rt: Array, d: Scales) -> tuple[Array, Scales]:
    """(diag(d')⁻¹ · R · diag(d))ᵀ and d' = diag(R)·d, for Rᵀ lower triangular (what is above its diagonal is ignored).

    The triangle has a unit diagonal; where d'_i = 0 its column is zero.
    """
    pivots = Rt.diagonal(axis1=1, axis2=2) * d.mantissa
    inverse = np.divide(1.0, pivots, out=np.zeros_like(pivots), where=pivots != 0)
    shift = (d.exponent + 1023)[:, :, None] - d.exponent[:, None, :]
    Ut = power_of_two_biased(shift, _largest_exponent(Rt.shape[-1]))
    Ut *= Rt
    Ut *= inverse[:, None, :]
    Ut *= d.mantissa[:, :, None]
    return Ut, Scales.of(pivots, d.exponent)


@functools.cache
def _largest_exponent(n: int) -> Integers:
    """The largest biased exponent of float64 on and below the diagonal, that of zero above it."""
    return np.tril(np.full((n, n), 2046, np.int64))


@functools.cache
def _strictly_upper(n: int) -> Array:
    """Ones above the diagonal."""
    return np.triu(np.ones((n, n)), 1)


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

    Args:
        F: C · diag(d) · Y, rows in their own order.
        keep_left: whether X is wanted (LU). False leaves an X that is orthogonal and is dropped: Ct then means
            nothing.
    """
    Ct = F.Ct
    zero = F.d.mantissa == 0
    if zero.any():  # columns that count for nothing must not decide the order of the rows, nor feed noise into zeros
        Ct = np.where(zero[:, :, None], 0.0, Ct)
    size = np.abs(Ct)
    row_size = _largest(size, axis=1)
    each = np.arange(len(Ct))[:, None]
    column_size = _largest(size, axis=2)
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
    Ut, d = unit_triangle(factors, ordered)

    def redo(b: int) -> None:
        """Factor one member by QR with Q, for the columns in the order of columns[b]."""
        one = slice(b, b + 1)
        rows[b] = descending(row_size[b])
        Q, R = np.linalg.qr(Ct[b].T[rows[b]][:, columns[b]])
        left[b], factors[b] = Q.T, R.T
        Ut[one], (d.mantissa[one], d.exponent[one]) = unit_triangle(factors[one], F.d.at(each[one], columns[one]))

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
        # a vanished pivot has no right digit, so it is the zero that it cannot be told from
        singular = singular | (vanished & (d.mantissa != 0)).any(axis=1)
        d = Scales(np.where(vanished, 0.0, d.mantissa), np.where(vanished, ZERO_EXPONENT, d.exponent))
        Ut.swapaxes(1, 2)[vanished] = 0.0
    return GradedFactor(left, d, Ut.swapaxes(1, 2) @ F.Y[each, columns], singular, rows)


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


def _brackets(D: Integers) -> list[Array]:
    """diag(2^D) as a product of diagonals that each span no more than BRACKET_BITS: one, but for extreme saturation."""
    parts = 1 + int(2 * np.abs(D[D != ZERO_EXPONENT]).max(initial=0)) // BRACKET_BITS
    return [power_of_two_biased(1023 + D * (i + 1) // parts - D * i // parts)[..., None] for i in range(parts)]


def start_of_sweep(start: Array, sequences: int) -> GradedFactor:
    """The empty product P_Tᵀ · start of each sequence, for `start` orthogonal [n, n].

    Any `start` leaves the singular values alone, and a random one redraws the rounding.
    """
    n = len(start)
    d = Scales.of(np.ones((sequences, n)), np.zeros((sequences, n), np.int64))
    eyes = np.repeat(np.eye(n)[None], sequences, axis=0)
    return GradedFactor(np.repeat(start.T[None], sequences, axis=0), d, eyes, np.zeros(sequences, bool))


def sweep(carried: GradedFactor, J: Array, wanted: Sequence[int]) -> tuple[GradedFactor, GradedFactor | None, Array]:
    """Carry P_tᵀ = J_{t+1}ᵀ ··· J_Tᵀ · start backwards through a chunk of steps, for a batch of sequences.

    Fed with J_sᵀ as it stands the sweep would lose accuracy where units saturate: the grading of diag(φ')·W would
    sit on the wrong side of each factor. So each Jacobian is split by its row sizes, J_s = D_s Ĵ_s, and the
    product regrouped, every bracket graded by rows:

        P_tᵀ = Ĵ_{t+1}ᵀ · [D_{t+1} Ĵ_{t+2}ᵀ] ··· [D_{T−1} Ĵ_Tᵀ] · [D_T · start]

    Args:
        carried: C · diag(d) · Y = P_tᵀ · start at the end of the chunk, rows in their own order.
        J: the chunk [B, K, n, n].
        wanted: which of its K steps to hand out, ascending.

    Returns:
        (the product carried to the start of the chunk, C · diag(d) · Y = P_tᵀ · start before each wanted step,
        stacked to [len(wanted)·B, n, n] with time as the slower axis; None if none is wanted;
        ln|det J_s| [B, K]).
    """
    unit, D, shift = row_scales(J)
    brackets = _brackets(D)
    each = np.arange(len(J))[:, None]
    emitted = []
    asked = set(wanted)
    for s in range(J.shape[1] - 1, -1, -1):
        for i, bracket in enumerate(brackets):
            graded = bracket[:, s].swapaxes(1, 2) * (_in_order(carried) if i else carried.Ct)
            carried = refactor(carried._replace(Ct=graded), keep_left=True)
        d = carried.d
        d = Scales(d.mantissa, np.where(d.mantissa == 0, ZERO_EXPONENT, d.exponent + shift[:, s, None]))
        Ct = carried.Ct @ unit[:, s][each, carried.rows]
        carried = GradedFactor(Ct, d, carried.Y, carried.singular)
        if s in asked:
            emitted.append(carried)
    # the determinants of the steps, by an LU of their own, so that they can tell on the sweep
    ln_det = np.asarray(np.linalg.slogdet(unit)[1]) + LN2 * (D.sum(axis=-1) + J.shape[-1] * shift)
    return carried, _stack(emitted[::-1]) if emitted else None, ln_det


def _in_order(F: GradedFactor) -> Array:
    """Cᵀ with the rows of C in their own order."""
    Ct = np.empty_like(F.Ct)
    Ct.swapaxes(1, 2)[np.arange(len(Ct))[:, None], F.rows] = F.Ct.swapaxes(1, 2)
    return Ct


def _stack(factors: list[GradedFactor]) -> GradedFactor:
    """One batch of several."""
    Ct, d, Y, singular, _ = zip(*factors, strict=True)
    mantissa, exponent = zip(*d, strict=True)
    d = Scales(np.concatenate(mantissa), np.concatenate(exponent))
    return GradedFactor(np.concatenate(Ct), d, np.concatenate(Y), np.concatenate(singular))

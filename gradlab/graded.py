"""Long products carried as Q · diag(d) · Y, with d held as mantissa and exponent so that nothing overflows.

The singular values of a product over hundreds of steps span far more than one float64 matrix can hold: formed in
the open, the small ones drown in the rounding of the large ones. Here Q is orthogonal, Y is well conditioned with
determinant ±1, and every scale sits in d, where it costs nothing and loses nothing.

Lineage: stratification, or "UDT", of quantum Monte Carlo (Loh and Gubernatis 1992; Bauer 2020), and graded QR for
products of matrices (G. W. Stewart 1995; D. E. Stewart 1997). Row ordering: Cox and Higham 1998.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from gradlab.validation import Array

Integers = NDArray[np.int64]

ZERO_EXPONENT = -(1 << 40)  # the exponent of an exact zero: below everything, and its differences still fit int64
BRACKET_BITS = 900  # a Householder vector must hold the ratio of any two rows of a bracket
PIVOT_GROWTH = 2.0**7  # |U| with column pivoting is at most 1; past this, ordering by column size was not good enough
ROUNDING = 32 * float(np.finfo(np.float64).eps)  # a pivot this far below its row has no right digit left


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

    def over_powers(self) -> Array:
        """d_j / 2^exponent_i at [N, i, j], clipped to what float64 holds."""
        ratio = power_of_two_biased((self.exponent + 1023)[:, None, :] - self.exponent[:, :, None])
        ratio *= self.mantissa[:, None, :]
        return ratio


class GradedFactor(NamedTuple):
    """A batch of products C · diag(d) · Y, with C and Y of shape [N, n, n]; C need not be orthogonal."""

    C: Array
    d: Scales
    Y: Array
    singular: NDArray[np.bool_]  # [N]: a pivot vanished in rounding and was taken for an exact zero


def log2_abs(x: Array) -> Array:
    """log2|x|, with −∞ at zero and no warning."""
    with np.errstate(divide="ignore"):
        return np.log2(np.abs(x))


def descending(keys: Array) -> Integers:
    """Indices that sort each row downwards; ties keep their order, so structure (permutations) survives."""
    return (-keys).argsort(axis=-1, kind="stable")


def power_of_two_biased(exponents: Integers) -> Array:
    """2^(exponents − 1023), 0 below the normal range, in place: its bits written directly, far faster than ldexp."""
    np.maximum(exponents, 0, out=exponents)
    np.minimum(exponents, 2046, out=exponents)
    exponents <<= 52
    return exponents.view(np.float64)


def row_scales(J: Array) -> tuple[Array, Integers, Integers]:
    """Split J = 2^shift · diag(2^D) · Ĵ exactly, rows of Ĵ with largest entry in [½, 1).

    Returns:
        (Ĵ, D, shift): J's shape, then without its last axis, then without its last two. D is centred on 0 (the
        rows of one saturated step may span 10^±290). A zero row of J is a zero row of Ĵ and has D = ZERO_EXPONENT.
    """
    largest = np.abs(J).max(axis=-1)
    exponent = np.frexp(largest)[1].astype(np.int64)
    dead = largest == 0
    top = np.where(dead, np.iinfo(np.int32).min, exponent).max(axis=-1)
    low = np.where(dead, np.iinfo(np.int32).max, exponent).min(axis=-1)
    shift = np.where(dead.all(axis=-1), 0, (top + low) // 2)
    D = np.where(dead, ZERO_EXPONENT, exponent - shift[..., None])
    half = -exponent // 2  # 2^-exponent itself overflows for a row of subnormal numbers
    unit = J * power_of_two_biased(1023 + half)[..., None]
    unit *= power_of_two_biased(1023 - exponent - half)[..., None]
    return unit, D, shift


def unit_triangle(R: Array, d: Scales) -> tuple[Array, Scales]:
    """diag(d')⁻¹ · R · diag(d) and d' = diag(R)·d, for R upper triangular (what is below its diagonal is ignored).

    The triangle has a unit diagonal; where d'_i = 0 its row is zero.
    """
    pivots = R.diagonal(axis1=1, axis2=2) * d.mantissa
    inverse = np.divide(1.0, pivots, out=np.zeros_like(pivots), where=pivots != 0)
    U = R * _upper(R.shape[-1])
    U *= inverse[:, :, None]
    U *= d.over_powers()
    return U, Scales.of(pivots, d.exponent)


@functools.cache
def _upper(n: int) -> Array:
    """Ones on and above the diagonal."""
    return np.triu(np.ones((n, n)))


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # hopeless pivots are seen and replaced
def graded_qr(F: GradedFactor, *, want_q: bool) -> GradedFactor:
    """Factor C · diag(d) · Y = Q · diag(d') · Y' with Q orthogonal, without ever forming C · diag(d).

    C = QR, d' = r·d with r = diag R, and Y' = (I + U)·Y with U_ij = (R_ij/r_i)·(d_j/d_i) for j > i: the ratio is
    taken from the exponents. Columns go in descending order of ‖c_j‖·d_j, which keeps U small. Rows go in
    descending order of their largest entry, which makes Householder QR accurate row by row (Cox and Higham 1998):
    without it a saturated unit's small row is lost in the rounding of the large ones.

    Args:
        F: C · diag(d) · Y.
        want_q: False saves a third of the work; the result's C then means nothing, its d and Y are as before.
    """
    C = F.C
    zero = F.d.mantissa == 0
    if zero.any():  # columns that count for nothing must not decide the order of the rows, nor feed noise into zeros
        C = np.where(zero[:, None, :], 0.0, C)
    size = np.abs(C)
    row_size = size.max(axis=2)
    each = np.arange(len(C))[:, None]
    columns = descending(F.d.log2() + np.log2(size.max(axis=1)))
    rows = descending(row_size)
    ordered = F.d.at(each, columns)
    Q, R = _ordered_qr(C, rows, columns, want_q)
    U, d = unit_triangle(R, ordered)
    lost = max(1.0, C.shape[-1] / 32) * ROUNDING * row_size[each, rows]
    vanished = (np.abs(R.diagonal(axis1=1, axis2=2)) <= lost) & (ordered.mantissa != 0)
    singular = F.singular
    if vanished.any() or not (U.max() <= PIVOT_GROWTH and U.min() >= -PIVOT_GROWTH):  # NaN counts as large
        for b in _badly_ordered(R, U, vanished, lost):
            one = slice(b, b + 1)
            columns[b] = _pivoted_columns(C[b, rows[b]], F.d.log2()[b])
            Q[one], R[one] = _ordered_qr(C[one], rows[one], columns[one], want_q)
            U[one], (d.mantissa[one], d.exponent[one]) = unit_triangle(R[one], F.d.at(each[one], columns[one]))
            vanished[b] = (np.abs(R[b].diagonal()) <= lost[b]) & (F.d.mantissa[b, columns[b]] != 0)
        # a vanished pivot has no right digit, so it is the zero that it cannot be told from
        singular = singular | (vanished & (d.mantissa != 0)).any(axis=1)
        d = Scales(np.where(vanished, 0.0, d.mantissa), np.where(vanished, ZERO_EXPONENT, d.exponent))
        U[vanished] = 0.0
    return GradedFactor(Q, d, U @ F.Y[each, columns], singular)


def _ordered_qr(C: Array, rows: Integers, columns: Integers, want_q: bool) -> tuple[Array, Array]:
    """(Q, R) of C with its rows and columns permuted, the row order undone in Q; R is to be masked, Q may be R."""
    each = np.arange(len(C))[:, None]
    permuted = C[each[:, :, None], rows[:, :, None], columns[:, None, :]]
    if not want_q:
        R = np.linalg.qr(permuted, mode="raw")[0].swapaxes(1, 2)
        return R, R
    q, R = np.linalg.qr(permuted)
    Q = np.empty_like(q)
    Q[each, rows] = q
    return Q, R


def _badly_ordered(R: Array, U: Array, vanished: NDArray[np.bool_], lost: Array) -> Integers:
    """Batch indices where an early pivot was too small for what stands to its right."""
    n = R.shape[-1]
    large = ~(np.abs(U).reshape(len(U), -1).max(axis=1) <= PIVOT_GROWTH)
    tail = np.abs(R * np.triu(np.ones((n, n)), 1)).max(axis=2, initial=0.0)
    return np.flatnonzero(large | (vanished & (tail > lost)).any(axis=1))


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


def one_blas_thread() -> AbstractContextManager[Any]:
    """Keep BLAS to one thread for a while: on small matrices its threads cost more than they bring."""
    return _blas_libraries().limit(limits=1, user_api="blas")


@functools.cache
def _blas_libraries() -> ThreadpoolController:
    """The BLAS libraries of NumPy and SciPy; looking for them takes milliseconds, so once."""
    return ThreadpoolController()


def backward_sweep(J: Array, start: Array, chunk: int) -> Iterator[tuple[int, GradedFactor]]:
    """Carry P_tᵀ = J_{t+1}ᵀ ··· J_Tᵀ from t = T−1 down to t = 0 for a batch of sequences.

    Fed with J_sᵀ as it stands the sweep would lose accuracy where units saturate: the grading of diag(φ')·W would
    sit on the wrong side of each factor. So each Jacobian is split by its row sizes, J_s = D_s Ĵ_s, and the
    product regrouped, every bracket graded by rows:

        P_tᵀ = Ĵ_{t+1}ᵀ · [D_{t+1} Ĵ_{t+2}ᵀ] ··· [D_{T−1} Ĵ_Tᵀ] · [D_T · start]

    Args:
        J: [B, T, n, n].
        start: orthogonal [n, n]; any choice leaves the singular values alone, and a random one redraws the rounding.
        chunk: lags per item.

    Yields:
        (t, factors): `factors` holds C · diag(d) · Y = P_tᵀ · start (C = Ĵ_{t+1}ᵀ Q is not orthogonal) at the lags
        t + K − 1 down to t, stacked to [K·B, n, n] with the lag as the slower axis.
    """
    B, T, n, _ = J.shape
    C, Y = np.broadcast_to(start, (B, n, n)), np.broadcast_to(np.eye(n), (B, n, n))
    carried = GradedFactor(C, Scales.of(np.ones((B, n)), np.zeros((B, n), np.int64)), Y, np.zeros(B, bool))
    for stop in range(T, 0, -chunk):
        first = max(0, stop - chunk)
        unit, D, shift = row_scales(J[:, first:stop])
        brackets = _brackets(D)
        emitted = []
        for s in range(stop - 1 - first, -1, -1):
            for bracket in brackets:
                carried = graded_qr(carried._replace(C=bracket[:, s] * carried.C), want_q=True)
            Q, d, Y, singular = carried
            d = Scales(d.mantissa, np.where(d.mantissa == 0, ZERO_EXPONENT, d.exponent + shift[:, s, None]))
            carried = GradedFactor(unit[:, s].swapaxes(1, 2) @ Q, d, Y, singular)
            emitted.append(carried)
        yield first, _stack(emitted)


def _stack(factors: list[GradedFactor]) -> GradedFactor:
    """One batch of several."""
    C, d, Y, singular = zip(*factors, strict=True)
    mantissa, exponent = zip(*d, strict=True)
    d = Scales(np.concatenate(mantissa), np.concatenate(exponent))
    return GradedFactor(np.concatenate(C), d, np.concatenate(Y), np.concatenate(singular))

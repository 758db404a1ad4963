"""Diagonal scales far beyond the range of float64, held as mantissa and exponent, and what they do to triangles."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradlab.validation import Array

Integers = NDArray[np.int64]

LN2 = float(np.log(2.0))
ZERO_EXPONENT = -(1 << 40)  # the exponent of an exact zero: below everything, and its differences still fit int64
BRACKET_BITS = 900  # a Householder vector must hold the ratio of any two rows of a bracket


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


def log2_abs(x: Array) -> Array:
    """log2|x|, with −∞ at zero and no warning."""
    with np.errstate(divide="ignore"):
        return np.log2(np.abs(x))


def descending(keys: Array) -> Integers:
    """Indices that sort each row downwards; ties keep their order, so structure (permutations) survives."""
    return (-keys).argsort(axis=-1, kind="stable")


def power_of_two_biased(exponents: Integers, top: int | Integers = 2046) -> Array:
    """2^(exponents − 1023), 0 below the normal range, in place: its bits written directly, far faster than ldexp."""
    np.maximum(exponents, 0, out=exponents)
    np.minimum(exponents, top, out=exponents)
    exponents <<= 52
    return exponents.view(np.float64)


def largest(sizes: Array, axis: int) -> Array:
    """The maximum along an axis of numbers ≥ 0, NaN above all: as integers, which compare twice as fast."""
    return sizes.view(np.int64).max(axis=axis).view(np.float64)


def row_scales(J: Array) -> tuple[Array, Integers, Integers]:
    """Split J = 2^shift · diag(2^D) · Ĵ, rows of Ĵ with largest entry in [½, 1): exactly, unless an entry underflows.

    Returns:
        (Ĵ, D, shift): J's shape, then without its last axis, then without its last two. D is centred on 0 (the
        rows of one saturated step may span 10^±290). A zero row of J is a zero row of Ĵ and has D = ZERO_EXPONENT.
    """
    size = largest(np.abs(J), axis=-1)
    exponent = np.frexp(size)[1].astype(np.int64)
    dead = size == 0
    top = np.where(dead, np.iinfo(np.int32).min, exponent).max(axis=-1)
    low = np.where(dead, np.iinfo(np.int32).max, exponent).min(axis=-1)
    shift = np.where(dead.all(axis=-1), 0, (top + low) // 2)
    D = np.where(dead, ZERO_EXPONENT, exponent - shift[..., None])
    half = np.where(np.abs(exponent) < 1000, 0, -exponent // 2)  # 2^-exponent overflows for a subnormal row
    unit = J * power_of_two_biased(1023 - exponent - half)[..., None]
    if half.any():
        unit *= power_of_two_biased(1023 + half)[..., None]
    return unit, D, shift


def unit_triangle(Rt: Array, d: Scales) -> tuple[Array, Scales, Array]:
    """Take the diagonal out of R · diag(d), for Rᵀ lower triangular (what is above its diagonal is ignored).

    Returns:
        ((diag(d')⁻¹ · R · diag(d))ᵀ, d' = diag(R)·d, the ratios d_j/d'_i at [j, i], j ≥ i). The triangle has a unit
        diagonal; where d'_i = 0 its column is zero.
    """
    pivots = Rt.diagonal(axis1=1, axis2=2) * d.mantissa
    inverse = np.divide(1.0, pivots, out=np.zeros_like(pivots), where=pivots != 0)
    shift = (d.exponent + 1023)[:, :, None] - d.exponent[:, None, :]
    ratios = power_of_two_biased(shift, _largest_exponent(Rt.shape[-1]))
    ratios *= inverse[:, None, :]
    ratios *= d.mantissa[:, :, None]
    return ratios * Rt, Scales.of(pivots, d.exponent), ratios


@functools.cache
def _largest_exponent(n: int) -> Integers:
    """The largest biased exponent of a ratio on and below the diagonal, that of zero above it.

    Half the range of float64, so that a ratio too large to be of use times an exact zero is still zero.
    """
    return np.tril(np.full((n, n), 1023 + 500, np.int64))


def brackets(D: Integers) -> list[Array]:
    """diag(2^D) as a product of diagonals that each span no more than BRACKET_BITS: one, but for extreme saturation."""
    parts = 1 + int(2 * np.abs(D[D != ZERO_EXPONENT]).max(initial=0)) // BRACKET_BITS
    return [power_of_two_biased(1023 + D * (i + 1) // parts - D * i // parts)[..., None] for i in range(parts)]

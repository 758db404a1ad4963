"""Diagonal scales far beyond the range of float64, held as mantissa and exponent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradlab.validation import Array

Integers = NDArray[np.int64]

LN2 = float(np.log(2.0))
ZERO_EXPONENT = -(1 << 40)  # the exponent of an exact zero: below everything, and its differences still fit int64
ROUNDING = 32 * float(np.finfo(np.float64).eps)  # what is this far below its row and column has no right digit left


class Scales(NamedTuple):
    """A batch of diagonals d = mantissa · 2^exponent, each [N, n]; signed; an exact zero stays an exact zero."""

    mantissa: Array
    exponent: Integers

    def log2(self) -> Array:
        """log2|d|, −∞ for an exact zero: precise enough to sort by, not to keep."""
        return self.exponent + log2_abs(self.mantissa)

    def ln(self) -> Array:
        """ln|d|, −∞ for an exact zero."""
        with np.errstate(divide="ignore"):
            values: Array = np.log(np.abs(self.mantissa)) + self.exponent * LN2
        return values


def log2_abs(x: Array) -> Array:
    """log2|x|, with −∞ at zero and no warning."""
    with np.errstate(divide="ignore"):
        return np.log2(np.abs(x))


def descending(keys: Array) -> Integers:
    """Indices that sort each row downwards; ties keep their order, so structure (permutations) survives."""
    return (-keys).argsort(axis=-1, kind="stable")

"""Scales far beyond the range of float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradlab.validation import Array

Integers = NDArray[np.int64]

LN2 = float(np.log(2.0))
ZERO_EXPONENT = -(1 << 40)  # the exponent of an exact zero: below everything, and its differences still fit int64
ROUNDING = 32 * float(np.finfo(np.float64).eps)  # what is this far below its row and column has no right digit left


def log2_abs(x: Array) -> Array:
    """log2|x|, with −∞ at zero and no warning."""
    with np.errstate(divide="ignore"):
        return np.log2(np.abs(x))


def descending(keys: Array) -> Integers:
    """Indices that sort each row downwards; ties keep their order, so structure (permutations) survives."""
    return (-keys).argsort(axis=-1, kind="stable")

"""Singular values of graded factorizations, read out a batch of lags at a time."""

from __future__ import annotations

import numpy as np

from gradlab.graded import Emitted
from gradlab.kernels.reading_off import read_off
from gradlab.validation import Array

EPS = float(np.finfo(np.float64).eps)


def read_out(out: Emitted) -> tuple[Array, Array, Array]:
    """Return ln σ [M, n], descending, of the products in `out`, their errors by reading, and by the sweep.

    The last is in units of `graded.UNIT`; `out` is used up.
    """
    ln_s = np.empty(out.mantissa.shape)
    read_off(out, ln_s)
    return ln_s, EPS / 2 * out.reading + rounding(ln_s), out.swept


def rounding(ln_s: Array) -> Array:
    """Of a logarithm; 0 for −∞."""
    finite = np.isfinite(ln_s)
    size = np.abs(ln_s, out=np.zeros_like(ln_s), where=finite)
    return EPS * np.where(finite, np.maximum(1.0, size), 0.0)

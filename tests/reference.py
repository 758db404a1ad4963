"""Naive, readable oracles: slow, and right by construction. Each section says what makes it right."""

from __future__ import annotations

import math

import flint
import mpmath
import numpy as np
from flint import arb_mat
from numpy.typing import NDArray

Array = NDArray[np.float64]

# --- Singular values of a product of step Jacobians, by ball arithmetic ------------------------------------------
# A float64 is a dyadic rational, so the product is enclosed by balls whose radius is set by the working precision
# alone. The singular value decomposition runs at a precision that exceeds the range of the values twice over, and
# is checked against the determinant, which the balls enclose.


def bits_needed(J: Array) -> int:
    """Bits that hold the range of the product's entries and of its determinant, with plenty to spare."""
    T, n, _ = J.shape
    sizes = np.abs(J[J != 0])
    spread = float(np.log2(sizes.max()) - np.log2(sizes.min())) if sizes.size else 0.0
    return int(200 + T * (2 * spread + 8 * math.log2(n + 1) + 8))


def exact_product(J: Array, bits: int) -> arb_mat:
    """J_T ··· J_1 as balls, for J [T, n, n]."""
    with flint.ctx.workprec(bits):
        product = arb_mat(np.eye(J.shape[-1]).tolist())
        for factor in J:
            product = arb_mat(factor.tolist()) * product
    return product


def exact_log_singular_values(J: Array, bits: int | None = None) -> Array:
    """ln σ_i(J_T ··· J_1) [n], descending, −∞ for zero, for J [T, n, n]; n ≤ 12 or so, T up to about 100."""
    n = J.shape[-1]
    bits = bits_needed(J) if bits is None else bits
    product = exact_product(J, bits)
    with mpmath.workprec(bits):
        midpoints = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                mantissa, exponent = product[i, j].mid().man_exp()
                midpoints[i, j] = mpmath.mpf((int(mantissa), int(exponent)))
        values = mpmath.mp.svd_r(midpoints, compute_uv=False)
        floor = max(values) * mpmath.mpf(2) ** (-bits // 2)  # an exact zero comes out as the rounding of the largest
        ln_s = np.array([float(mpmath.log(v)) if v > floor else -np.inf for v in values])
    with flint.ctx.workprec(bits):
        determinant = product.det()
        if np.isfinite(ln_s).all():
            ln_det = float(abs(determinant).log().mid())
            assert abs(ln_s.sum() - ln_det) <= 1e-14 * (n + np.abs(ln_s).sum()), "the oracle needs more bits"
        else:
            assert determinant.contains(0), "the oracle lost a small singular value: it needs more bits"
    return np.sort(ln_s)[::-1]


def exact_log_entries(J: Array) -> Array:
    """ln|(J_T ··· J_1)_ij| [n, n], −∞ for zero, for J [T, n, n]."""
    bits, n = bits_needed(J), J.shape[-1]
    product = exact_product(J, bits)
    with flint.ctx.workprec(bits):
        entries = [[product[i, j] for j in range(n)] for i in range(n)]
        return np.array([[-np.inf if x.contains(0) else float(abs(x).log().mid()) for x in row] for row in entries])


# --- Products the obvious way ------------------------------------------------------------------------------------
# Right only while everything fits float64: short products of tame matrices.


def formed_products(J: Array) -> Array:
    """∂h_T/∂h_t = J_T ··· J_{t+1} for t = 0 … T−1, [T, n, n], for J [T, n, n]."""
    T, n, _ = J.shape
    out = np.empty_like(J)
    product = np.eye(n)
    for t in range(T - 1, -1, -1):
        product = product @ J[t]
        out[t] = product
    return out


def formed_log_singular_values(J: Array) -> Array:
    """ln σ of the formed products, [T, n]: what gradlab must agree with where float64 is enough."""
    with np.errstate(divide="ignore"):
        return np.log(np.linalg.svd(formed_products(J), compute_uv=False))


def distance(a: Array, b: Array) -> float:
    """Largest |a − b|; −∞ equals −∞ and is infinitely far from everything else."""
    return float(np.abs(np.subtract(a, b, out=np.zeros(np.shape(a)), where=a != b)).max(initial=0.0))

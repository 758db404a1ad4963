"""Singular values of a product of step Jacobians that cannot be wrong unnoticed: ball arithmetic, then a long SVD.

The product is enclosed by balls (python-flint's `arb`); its midpoint goes through an SVD in as many bits (mpmath). The
precision is doubled until the balls' radii and the SVD's own rounding are below 1e-18 of the smallest value that is not
zero; and the determinant, enclosed as well, must equal the product of the values. How many are exactly zero is told by
the rank of the product modulo a prime of 61 bits, where floats are exact; it is too small with a chance of about 1e-17.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import flint
import mpmath
import numpy as np
from flint import arb_mat, nmod_mat
from numpy.typing import NDArray

Array = NDArray[np.float64]
WANTED = 60  # bits below the smallest value, 1e-18 of it
HIGHEST = 1 << 17
PRIME = (1 << 61) - 1


def exact_log_singular_values(J: Array, times: Iterable[int]) -> Array:
    """Return ln σ_i(J_T ··· J_{t+1}) at each t of `times`, descending, −∞ for an exact zero.

    Args:
        J: [T, n, n].
        times: values of t in 0 … T−1.

    Returns:
        [len(times), n].

    Raises:
        ArithmeticError: the precision ran out (2^17 bits).
    """
    wanted = list(times)
    ranks = _ranks(J, set(wanted))
    bits = 512
    while bits <= HIGHEST:
        products = dict(_products(J, set(wanted), bits))
        values: dict[int, Array] = {}
        for t in sorted(products):  # the longest product needs the most bits
            one = _values(products[t], ranks[t], bits)
            if one is None:
                break
            values[t] = one
        else:
            return np.array([values[t] for t in wanted])
        bits *= 2
    raise ArithmeticError(f"the range of the singular values needs more than {HIGHEST} bits")


def _ranks(J: Array, wanted: set[int]) -> dict[int, int]:
    """Return the rank of J_T ··· J_{t+1} at the wanted times, modulo a prime."""

    def residue(x: float) -> int:
        mantissa, exponent = math.frexp(x)
        return int(mantissa * 2**53) % PRIME * pow(2, exponent - 53, PRIME) % PRIME

    n = J.shape[-1]
    P = nmod_mat(n, n, np.eye(n, dtype=int).ravel().tolist(), PRIME)
    ranks = {}
    for t in range(len(J) - 1, min(wanted) - 1, -1):
        P = P * nmod_mat(n, n, [residue(x) for x in J[t].ravel().tolist()], PRIME)
        if t in wanted:
            ranks[t] = P.rank()
    return ranks


def _products(J: Array, wanted: set[int], bits: int) -> Iterable[tuple[int, arb_mat]]:
    """Yield (t, J_T ··· J_{t+1}) at the wanted times."""
    with flint.ctx.workprec(bits):
        P = arb_mat(np.eye(J.shape[-1]).tolist())
        for t in range(len(J) - 1, min(wanted) - 1, -1):
            P = P * arb_mat(J[t].tolist())
            if t in wanted:
                yield t, P


def _values(P: arb_mat, rank: int, bits: int) -> Array | None:
    """Return ln σ of a matrix of balls of this rank; None if `bits` are too few to tell."""
    n = P.nrows()
    if not rank:
        return np.full(n, -np.inf)
    radius = mpmath.mpf(0)
    with mpmath.workprec(bits):
        M = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                for ball, add in ((P[i, j].mid(), False), (P[i, j].rad(), True)):
                    mantissa, exponent = ball.man_exp()
                    number = mpmath.mpf((int(mantissa), int(exponent)))
                    if add:
                        radius += number
                    else:
                        M[i, j] = number
        values = sorted(mpmath.mp.svd_r(M, compute_uv=False), reverse=True)
        real = values[:rank]
        noise = radius + n * n * values[0] * mpmath.mpf(2) ** (-bits)
        if not noise < real[-1] * mpmath.mpf(2) ** (-WANTED):
            return None
        ln_s = np.array([float(mpmath.log(v)) for v in real] + [-np.inf] * (n - len(real)))
    if len(real) == n:
        with flint.ctx.workprec(n * bits):
            determinant = abs(P.det())
            if determinant.contains(0):
                return None
            ln_det = float(determinant.log().mid())
        if abs(ln_s.sum() - ln_det) > 1e-14 * (n + np.abs(ln_s).sum()):
            return None
    return ln_s


def log_spaced_times(T: int, count: int) -> list[int]:
    """Return times t whose lags T − t run from 1 to T in about equal ratios, at most `count` of them."""
    lags = np.unique(np.rint(np.exp(np.linspace(0.0, math.log(T), count))).astype(int))
    return [int(T - lag) for lag in lags]

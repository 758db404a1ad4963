"""Products of step Jacobians, carried as C · diag(d) · Y.

The singular values of a long product span far more than one float64 matrix can hold: formed in the open, the small ones
drown in the rounding of the large ones. Here C and Y are well conditioned, and every scale sits in d, where it costs
nothing and loses nothing. C has twice the digits of float64 (a high and a low part), since rounding that is harmless
when it is made grows wherever later steps bring two scales together again.

Y is rounded in float64, which is a relative change of the product from outside: later steps cannot make it grow, but it
does as much harm as the rows of Y lean on each other. So they are straightened from time to time.

Lineage: stratification, or "UDT", of quantum Monte Carlo (Loh and Gubernatis 1992; Bauer 2020), graded QR for products
of matrices (G. W. Stewart 1995; D. E. Stewart 1997), arithmetic without rounding (Dekker 1971; Ogita, Rump and Oishi
2005).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradlab.scales import Integers
from gradlab.validation import Array

WIDTH = 8  # float64 in the widest of registers; rows are padded to whole ones, for loops without a slow tail
UNIT = 2.0**-104  # rounding of twofold arithmetic; what `Graded` counts in
CROWDED_FROM = 64  # units: then columns of whole registers no longer lie in the first cache side by side
FIRST_LOOK = 8  # factorizations after which it is seen whether Y is well conditioned; then sooner or later
PATTERNS = 8  # examples of rounding, in turn, so that a constant Jacobian does not add up one and the same


class Graded(NamedTuple):
    """One product C · diag(d) · Y and how far rounding may have moved it; what is padded is zero.

    C[rows] is a unit lower triangle, high + low. Rounding, in units of 2^-104, is carried to first order as an example:
    C·(I + turned) are the columns of C as they might be as well. What is turned does no harm as long as the scales keep
    their order, and grows when later steps close the gap between two of them.
    """

    high: Array  # [n, padded]
    low: Array  # [n, padded]
    rows: Integers  # [n]
    mantissa: Array  # [n] d = mantissa · 2^exponent, signed; ½ ≤ |mantissa| < 1, or an exact zero
    exponent: Integers  # [n]
    Y: Array  # [n, padded]
    turned: Array  # [n, padded], transposed: a strictly upper triangle
    error: Array  # [n] relative error of d and Y so far, which nothing later can change
    leaning: Array  # [n] relative error by the rounding of Y, where its rows leaned on each other, in units of 2^-53
    flags: NDArray[np.bool_]  # [2]: a pivot hung on the last digits of J; one vanished in rounding, taken for a zero
    steps: Integers  # [1]: factorizations so far
    straight: Integers  # [2]: the number of them at which to see to Y again, and after how many more then


class Emitted(NamedTuple):
    """Products of one sequence at M lags, to be read out; as in `Graded`, with the lag in front."""

    high: Array  # [M, n, padded]
    mantissa: Array  # [M, n]
    exponent: Integers  # [M, n]
    Y: Array  # [M, n, padded]
    swept: Array  # [M, n] relative error of each scale by the sweep, in units of 2^-104
    reading: Array  # [M, n] that by the rounding of Y and of reading it out, in units of 2^-53
    flags: NDArray[np.bool_]  # [M, 2]

    def cut(self, M: int) -> Emitted:
        """Return the first M."""
        return Emitted._make(array[:M] for array in self)


def padded(n: int) -> int:
    """N rounded up to whole registers, to an odd number of them where a power of two crowds the cache."""
    registers = -(-n // WIDTH)
    return WIDTH * (registers + (n >= CROWDED_FROM and registers % 2 == 0))


def blocks(n: int) -> int:
    """Rows enough for loops that take two registers of them at once, or a few from any row on."""
    return (n // (2 * WIDTH) + 1) * 2 * WIDTH


def aligned(shape: tuple[int, ...], cleared: bool = True) -> Array:
    """Zeros, or whatever stands there, from where a cache line starts: stores across two take twice as long."""
    size = 1
    for length in shape:
        size *= length
    room = np.zeros(size + WIDTH) if cleared else np.empty(size + WIDTH)
    start = -(room.ctypes.data // 8) % WIDTH
    return room[start : start + size].reshape(shape)


def identity(n: int) -> Graded:
    """The empty product. Behind the last row of its matrices there is room for whole blocks of them."""
    high, low, Y, turned = (matrix[:n] for matrix in aligned((4, blocks(n), padded(n))))
    np.fill_diagonal(high, 1.0)
    np.fill_diagonal(Y, 1.0)
    return Graded(
        high=high,
        low=low,
        rows=np.arange(n),
        mantissa=np.full(n, 0.5),
        exponent=np.ones(n, np.int64),
        Y=Y,
        turned=turned,
        error=np.zeros(n),
        leaning=np.zeros(n),
        flags=np.zeros(2, bool),
        steps=np.zeros(1, np.int64),
        straight=np.array([FIRST_LOOK, FIRST_LOOK]),
    )


def room_for(M: int, n: int) -> Emitted:
    """Room for M lags, whatever stands in it."""
    high, Y = aligned((2, M, n, padded(n)), cleared=False)
    return Emitted(
        high=high,
        mantissa=np.empty((M, n)),
        exponent=np.empty((M, n), np.int64),
        Y=Y,
        swept=np.empty((M, n)),
        reading=np.empty((M, n)),
        flags=np.empty((M, 2), bool),
    )


def examples_of_rounding(n: int) -> Array:
    """Signs and sizes of rounding [n + PATTERNS, padded], to cut patterns from."""
    examples = aligned((n + PATTERNS, padded(n)))
    examples[:] = np.random.default_rng(0).uniform(-1.0, 1.0, examples.shape)
    return examples

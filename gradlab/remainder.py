"""What rounding takes from a product of matrices, recovered: products to twice the precision of float64, through BLAS.

The leading bits of each factor are cut off in slices so thin (20 to 24 bits) that the product of two slices has no
rounding at all, whatever the order in which BLAS adds up. What remains is small, and float64 is good enough for its
product: with one slice A·B is right to about 2^-70 of row size times column size, with two to 2^-93, and an entry that
is made of small numbers alone is no worse than in float64. It costs three products where one would do, or six.

Source: Ozaki, Ogita, Oishi and Rump 2012 (error-free transformation of matrix multiplication).
"""

from __future__ import annotations

import numpy as np

from gradlab.validation import Array


def product(A: Array, A_rest: Array, B: Array, slices: int) -> tuple[Array, Array]:
    """(A + A_rest) · B for stacks [N, n, n] as an unevaluated sum (high, rest), rest below one rounding of high."""
    high, *others = _terms(A, B, slices)
    rest = np.zeros_like(high)
    for term in [*others, A_rest @ B]:
        total = high + term
        shared = total - high
        rest += (high - (total - shared)) + (term - shared)  # what the sum lost, exactly (Knuth)
        high = total
    total = high + rest
    return total, rest - (total - high)


def residual(C: Array, A: Array, B: Array, slices: int) -> Array:
    """C − A · B for stacks [N, n, n]: what is left of rounding where C is A · B, and some of its digits."""
    rest = C
    for term in _terms(A, B, slices):  # from the largest on: what cancels does so exactly
        rest = rest - term
    return rest


def bits(n: int, slices: int) -> int:
    """The digits that a product of matrices [n, n] keeps, relative to row size times column size."""
    return slices * _slice_bits(n, slices) + 53 - int(np.ceil(np.log2((slices + 1) * n)))


def _slice_bits(n: int, slices: int) -> int:
    """The digits of a slice such that `slices` times n products of two of them add up without rounding."""
    return (53 - int(np.ceil(np.log2(slices * n)))) // 2


def _terms(A: Array, B: Array, slices: int) -> list[Array]:
    """A · B as a sum of matrices without any rounding, each about 2^-22 of the one before, and one with.

    The columns of A and the rows of B are brought to one scale first, so that a graded inner dimension loses nothing.
    """
    width = _slice_bits(A.shape[-1], slices)
    inner = _power_of_two_above(np.abs(A).max(axis=1))
    a, a_left = _cut(A / inner[:, None, :], 2, width, slices)
    b, b_left = _cut(B * inner[:, :, None], 1, width, slices)
    exact = [np.concatenate(a[: g + 1], axis=2) @ np.concatenate(b[g::-1], axis=1) for g in range(slices)]
    # slice p of A has met the first `slices` − p of B; what is left of A has met none
    rounded = np.concatenate([*a, a_left[-1]], axis=2) @ np.concatenate(b_left[::-1], axis=1)
    return [*exact, rounded]


def _cut(A: Array, axis: int, width: int, slices: int) -> tuple[list[Array], list[Array]]:
    """Slices of A, the p-th with the next `width` bits below 2^(−p·width) of the largest along the axis.

    Returns:
        (the slices, what is left of A before any and after each).
    """
    scale = _power_of_two_above(np.abs(A).max(axis=axis, keepdims=True))
    parts, left = [], [A]
    for p in range(1, slices + 1):
        edge = scale * (1.5 * 2.0 ** (52 - p * width))
        parts.append((left[-1] + edge) - edge)
        left.append(left[-1] - parts[-1])
    return parts, left


def _power_of_two_above(x: Array) -> Array:
    """The least power of two above x; 1 for 0."""
    return np.ldexp(1.0, np.frexp(x)[1])

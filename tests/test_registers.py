"""Registers and blocks of rows: each operation against NumPy, and nothing beside what it is to touch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numba import TypingError, njit
from numpy.typing import NDArray

from gradlab import graded, registers, row_blocks
from gradlab.registers import fma, load, spread, store

Array = NDArray[np.float64]


@njit
def by_registers(A, out):
    """Put what registers do with the rows a, b and c of A into the rows of `out`."""
    for j in range(0, A.shape[1], graded.WIDTH):
        a, b, c = load(A, 0, j), load(A, 1, j), load(A, 2, j)
        store(out, 0, j, fma(a, b, c))
        store(out, 1, j, registers.larger(a, b))
        store(out, 2, j, a - b)
        store(out, 3, j, spread(2.0) * a + (c - c))
        store(out, 4, j, spread(registers.total(a)))
        store(out, 5, j, a / b)
        store(out, 6, j, registers.root(a * a))
        store(out, 7, j, registers.where_greater(a, b, c, a))
        store(out, 8, j, spread(registers.greatest(a)))


def test_registers() -> None:
    A, out = np.random.default_rng(0).standard_normal((3, 24)), np.full((10, 24), np.nan)
    by_registers(A, out)
    a, b, c = A
    exact = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in A.T.tolist()]
    np.testing.assert_array_equal(out[0], exact)  # rounded once
    np.testing.assert_array_equal(out[1], np.abs(A[:2]).max(axis=0))
    np.testing.assert_array_equal(out[2], a - b)
    np.testing.assert_array_equal(out[3], 2 * a)
    np.testing.assert_allclose(out[4, ::8], a.reshape(3, 8).sum(axis=1), rtol=1e-14)
    np.testing.assert_array_equal(out[5], a / b)
    np.testing.assert_array_equal(out[6], np.sqrt(a * a))
    np.testing.assert_array_equal(out[7], np.where(a > b, c, a))
    np.testing.assert_array_equal(out[8, ::8], a.reshape(3, 8).max(axis=1))
    assert np.isnan(out[9]).all()


@pytest.mark.parametrize(
    "A", [np.ones((4, 8), np.float32), np.ones((8, 4)).T, np.ones((8, 16))[:, ::2], np.ones((1, 4, 8)), np.ones(8)]
)
def test_registers_touch_nothing_but_contiguous_float64(A: Array) -> None:
    with pytest.raises(TypingError):
        by_registers(A, np.ones((9, 8)))


@njit
def transposed(A, B):
    """The block of A at (2, 3), transposed, to (1, 8) of B."""
    row_blocks.transpose_block(A, 2, 3, B, 1, 8)


def test_a_block_is_transposed() -> None:
    A, B = np.random.default_rng(0).standard_normal((2, 12, 20))
    expected = B.copy()
    expected[1:9, 8:16] = A[2:10, 3:11].T
    transposed(A, B)
    np.testing.assert_array_equal(B, expected)


@njit
def multiplied_blocks(A, products, start, stop):
    """The products of rows 1 … 8 with rows 9 … 16."""
    row_blocks.multiply_blocks(A, 1, 9, start, stop, products)


@njit
def multiplied_pairs(A, rows, start, stop, pairs):
    """The products of pairs of rows."""
    row_blocks.multiply_pairs(A, rows, start, stop, pairs)


@njit
def rotated_pairs(A, rows, start, stop, pairs):
    """Pairs of rows rotated, and the products of the next."""
    row_blocks.rotate_pairs(A, rows, start, stop, pairs)


@pytest.mark.parametrize(("start", "stop"), [(0, 40), (8, 32), (16, 24), (8, 8)])
def test_pairs_of_rows(start: int, stop: int) -> None:
    rng = np.random.default_rng(0)
    A, pairs, products = rng.standard_normal((18, 40)), rng.standard_normal((4, 8)), np.empty((8, 8))
    rows = rng.permutation(18)[:16].reshape(2, 8)
    inside = A[:, start:stop]
    multiplied_blocks(A, products, start, stop)
    np.testing.assert_allclose(products, inside[1:9] @ inside[9:17].T, atol=1e-14)

    expected = pairs.copy()
    multiplied_pairs(A, rows, start, stop, pairs)
    expected[row_blocks.PRODUCT] = (inside[rows[0]] * inside[rows[1]]).sum(axis=1)
    np.testing.assert_allclose(pairs, expected, atol=1e-14)

    turned, (of_first, of_second) = A.copy(), expected[[row_blocks.FIRST, row_blocks.SECOND], :, None]
    turned[rows[0], start:stop] += of_first * inside[rows[1]]
    turned[rows[1], start:stop] += of_second * inside[rows[0]]
    rotated_pairs(A, rows, start, stop, pairs)
    np.testing.assert_allclose(A, turned, atol=1e-14)  # nothing beside these rows and columns
    after = turned[:, start:stop]
    expected[row_blocks.PRODUCT] = (after[rows[0]] * after[np.roll(rows[1], -1)]).sum(axis=1)
    np.testing.assert_allclose(pairs, expected, atol=1e-13)

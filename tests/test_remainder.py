from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab import lapack, remainder
from gradlab.validation import Array

checked = settings(deadline=None, max_examples=25)
fractions = np.frompyfunc(Fraction, 1, 1)


def graded(n: int, seed: int) -> tuple[Array, Array]:
    """Two matrices whose common dimension, and the rest of theirs, spans twelve decades."""
    rng = np.random.default_rng(seed)
    A, B = (
        rng.standard_normal((2, n, n)) * 10.0 ** rng.uniform(-6, 0, (2, n, 1)) * 10.0 ** rng.uniform(-6, 0, (2, 1, n))
    )
    return A, B


@checked
@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 2, 3]), st.integers(0, 2**32 - 1))
def test_products_keep_the_digits_they_promise(n: int, slices: int, seed: int) -> None:
    A, B = graded(n, seed)
    high, rest = (part[0] for part in remainder.product(A[None], np.zeros((1, n, n)), B[None], slices))
    exact = fractions(A).dot(fractions(B))
    missed = np.abs((fractions(high) + fractions(rest) - exact).astype(float))
    inner = 2.0 ** np.frexp(np.abs(A).max(axis=0))[1]
    size = np.abs(A / inner).max(axis=1)[:, None] * np.abs(B * inner[:, None]).max(axis=0)
    # the rounding of the one term that has any, and of `rest` itself
    allowed = 2.0 ** -remainder.bits(n, slices) + 8 * slices * n * 2.0**-106
    assert (missed <= allowed * size).all()
    assert (np.abs(rest) <= np.spacing(np.abs(high))).all()


@checked
@given(st.sampled_from([1, 2, 5]), st.integers(0, 2**32 - 1))
def test_residual_is_what_rounding_took(n: int, seed: int) -> None:
    A, B = graded(n, seed)
    C = A @ B
    exact = (fractions(C) - fractions(A).dot(fractions(B))).astype(float)
    found = remainder.residual(C[None], A[None], B[None], 2)[0]
    scale = np.abs(A) @ np.abs(B)
    assert np.abs(found - exact).max(initial=0.0, where=scale > 0) <= 2.0**-70 * scale.max()


@checked
@given(st.sampled_from([1, 2, 5, 12]), st.integers(0, 2**32 - 1))
def test_division_by_triangles(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    L = np.tril(rng.uniform(-1, 1, (3, n, n)), -1) / n + np.eye(n)
    R = np.triu(rng.uniform(-1, 1, (3, n, n)), 1) / n + 2 * np.eye(n)
    B = rng.standard_normal((3, n, n))
    quotient = np.ascontiguousarray((L @ B @ R).swapaxes(1, 2))
    junk = rng.standard_normal((3, n, n))  # where neither triangle is
    Lt = np.ascontiguousarray((L + np.triu(junk)).swapaxes(1, 2))
    Rt = np.ascontiguousarray((R + np.tril(junk, -1)).swapaxes(1, 2))
    lapack.divide_by_triangles(quotient, Lt, Rt)
    assert np.abs(quotient.swapaxes(1, 2) - B).max() < 1e-13 * n


def test_division_refuses_stacks_of_another_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        lapack.divide_by_triangles(np.zeros((2, 3, 3)), np.zeros((1, 3, 3)), np.zeros((2, 3, 3)))

"""The compiled core piece by piece: twofold products and eliminations, rotations, determinants, frames."""

from __future__ import annotations

from fractions import Fraction

import compiled_with
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradlab import graded, log_singular_values
from gradlab.kernels import determinants, elimination, frames, rotations, straightening, sweeping, twofold

Array = NDArray[np.float64]
SIZES = [1, 2, 7, 8, 9, 16, 63, 64, 65]  # on either side of whole registers, and of where their number is made odd
# Of n = 16 terms, each errs by 2^-53 of a rest, and rests add up to n·3·2^-53 of the size: 3·n² / 2 · 2^-106, and twice
# that for what is added in between; elimination is nearer
TWOFOLD = 2.0**-96
checked = settings(deadline=None, max_examples=20)


@pytest.mark.parametrize("name", [name for name in compiled_with.in_order() if name.startswith("kernels/")])
def test_what_is_kept_compiled_is_of_these_files(name: str) -> None:
    found = compiled_with.LINE.findall(compiled_with.path_of(name).read_text(encoding="utf-8"))
    expected = [compiled_with.digest_for(name)] if compiled_with.used_by(name) else []
    assert found == expected, "python tests/compiled_with.py, so that Numba compiles again"


def factored(n: int, seed: int) -> tuple[graded.Graded, Array, Array]:
    """Return the product after one dense step, that step, and room."""
    step = np.random.default_rng(seed).standard_normal((n, n))
    F = graded.identity(n)
    sweeping.sweep(F, step[None], np.zeros(1, bool), graded.examples_of_rounding(n), graded.room_for(0, n))
    return F, step, np.zeros((3, graded.blocks(n), graded.padded(n)))


def fractions(high: Array, low: Array) -> list[list[Fraction]]:
    """High + low, exactly."""
    return [
        [Fraction(a) + Fraction(b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(high.tolist(), low.tolist(), strict=True)
    ]


@checked
@given(n=st.sampled_from([1, 3, 8, 9, 16]), seed=st.integers(0, 99))
def test_products_have_twice_the_digits(n: int, seed: int) -> None:
    F, step, C = factored(n, seed)
    twofold.multiply(step, F, *C)
    triangle, found = fractions(F.high[:, :n], F.low[:, :n]), fractions(C[0][:n, :n], C[1][:n, :n])
    for i in range(n):
        for j in range(n):
            terms = [Fraction(step[F.rows[k], i]) * triangle[k][j] for k in range(n)]
            assert abs(found[i][j] - sum(terms)) <= TWOFOLD * sum(map(abs, terms))
            assert C[2][i, j] == pytest.approx(float(sum(map(abs, terms))), rel=1e-14)
    assert not C[:, n:].any()  # nothing is written past the last row …
    assert not C[:, :, n:].any()  # … or unit


@pytest.mark.parametrize("n", [8, 16, 64])
def test_what_rounding_of_products_is_counted_in(n: int) -> None:
    F, step, C = factored(n, 0)
    twofold.multiply(step, F, *C)
    rng, errors = np.random.default_rng(0), []
    for i, j in rng.integers(0, n, (100, 2)).tolist():
        ((found,),) = fractions(C[0][i : i + 1, j : j + 1], C[1][i : i + 1, j : j + 1])
        low = zip(F.high[:, j].tolist(), F.low[:, j].tolist(), F.rows.tolist(), strict=True)
        exact = sum(Fraction(step[row, i]) * (Fraction(high) + Fraction(rest)) for high, rest, row in low)
        errors.append(float(found - exact) / C[2][i, j])
    # examples of it are spread evenly over ±1; entries whose sums are short lose less
    assert 1 / 4 < np.sqrt(np.mean(np.square(errors))) / (graded.UNIT / np.sqrt(3)) < 2


def test_products_whose_terms_add_up_to_their_size() -> None:
    """Rounded, the sum of the sizes may be less than the sum: what lies under the anchor must allow for it."""
    F, C = graded.identity(5), np.zeros((3, graded.blocks(5), graded.padded(5)))
    F.high[1:, 0] = 1.0, 1 / 3, 1 / 3, 1 / 3
    step = np.zeros((5, 5))
    step[1:, 2], step[1:, 3] = -1.0, 1.0
    step[1:3, 4] = -0.6, -1.2
    twofold.multiply(step, F, *C)
    for i in range(5):
        terms = [Fraction(step[k, i]) * Fraction(F.high[k, 0]) for k in range(5)]
        (found,) = fractions(C[0][i : i + 1, :1], C[1][i : i + 1, :1])[0]
        assert abs(found - sum(terms)) <= TWOFOLD * sum(map(abs, terms))


@pytest.mark.parametrize("c", [2.0**-30, 2.0**-40])
def test_a_pivot_that_hangs_on_the_lower_digits(c: float) -> None:
    """J_2 makes −1, s and 1 − b·l, of 2^-54 the size, one entry of the product."""
    b = 1.9058  # b · (1/b) − 1, 1/b rounded, must lie between 2^-54 and 2^-53
    while not 2.0**-54 < Fraction(b) * Fraction(1 / b) - 1 <= 2.0**-53:
        b += 2.0**-20
    s = 1.5 * 2.0**-54 / 0.75
    J = np.array([[[0, c, 1], [b, 0.7, 0], [s, 0, 1]], [[1, -1 / b, 0.75], [0, 1, 0], [0, 0, 1]]])
    ln_s = log_singular_values(J, times=[0])[0]
    np.testing.assert_allclose(ln_s, reference.exact_log_singular_values(J), rtol=1e-15, atol=1e-14)


KINDS = ["dense", "graded", "columns alike", "of low rank", "sparse"]


def matrix_to_eliminate(kind: str, n: int, seed: int) -> tuple[graded.Graded, Array]:
    """Return a product, and room with a C of it whose panels of eight columns are easy or hard to eliminate."""
    rng = np.random.default_rng(seed)
    F, C = graded.identity(n), np.zeros((3, graded.blocks(n), graded.padded(n)))
    A = rng.standard_normal((n, n))
    if kind == "graded":
        F.exponent[:] = rng.integers(-3000, 3000, n)
    if kind == "columns alike":  # what is left of them is nothing beside the others
        A[:, 1::3] = A[:, [0]] + 1e-9 * A[:, 1::3]
    if kind == "of low rank":
        A = A[:, : n // 2] @ rng.standard_normal((n // 2, n))
        A[:, rng.integers(0, n)] = 0.0
    if kind == "sparse":
        A *= rng.random((n, n)) < 0.2
    C[0, :n, :n], C[2, :n, :n] = A, np.abs(A)
    return F, C


@checked
@given(kind=st.sampled_from(KINDS), n=st.sampled_from([1, 3, 8, 9, 17]), seed=st.integers(0, 99))
def test_elimination_has_twice_the_digits(kind: str, n: int, seed: int) -> None:
    F, C = matrix_to_eliminate(kind, n, seed)
    before, exponents, columns = fractions(C[0][:n, :n], C[1][:n, :n]), F.exponent.copy(), np.empty(n, np.int64)
    grown = np.empty_like(C[0])
    rank = elimination.eliminate(*C, grown, F, columns)
    after = fractions(C[0][:n, :n], C[1][:n, :n])
    np.testing.assert_array_equal(F.exponent, exponents[columns])  # the scales go along
    L, R = np.tril(np.abs(C[0][:n, :n]), -1) + np.eye(n), np.triu(np.abs(C[0][:n, :n]))
    L[:, rank:] = np.eye(n)[:, rank:]
    np.testing.assert_allclose(grown[:n, :rank], (L @ R)[:, :rank], rtol=1e-12)  # what rounding is relative to
    for k in range(n):
        for j in range(n):
            terms = [(after[k][m] if m < k else Fraction(1)) * after[m][j] for m in range(min(k, j, rank - 1) + 1)]
            missed = abs(before[F.rows[k]][columns[j]] - sum(terms))
            assert missed <= TWOFOLD * max(sum(map(abs, terms)), Fraction(grown[k, j]))
    assert L.max() <= 1.0
    scale = 2.0 ** np.clip(F.exponent[None] - F.exponent[:, None], -1000, 1000)
    for k in range(rank):  # no column outweighs its pivot's by more than it may grow; keys are logarithms with a bend
        assert (R[k] * scale[k])[k + 1 :].max(initial=0.0) <= 2.0**8.2 * R[k, k]


@checked
@given(n=st.sampled_from([1, 3, 8, 9, 17]), seed=st.integers(0, 99))
def test_triangles_are_multiplied_in_twice_the_digits(n: int, seed: int) -> None:
    F, _, _ = factored(n, seed)
    G = graded.aligned((n, graded.padded(n)))
    G[:, :n] = np.tril(np.random.default_rng([seed, 1]).standard_normal((n, n)), -1) + np.eye(n)
    before = fractions(F.high[:, :n], F.low[:, :n])
    straightening.multiply_triangle(F, G)
    after = fractions(F.high[:, :n], F.low[:, :n])
    for i in range(n):
        for j in range(n):
            terms = [before[i][k] * Fraction(G[k, j]) for k in range(n)]
            assert abs(after[i][j] - sum(terms)) <= TWOFOLD * sum(map(abs, terms))


@checked
@given(n=st.sampled_from([2, 3, 8, 9, 17]), dead=st.integers(0, 1), seed=st.integers(0, 99))
def test_a_product_is_straightened_and_stays_what_it_is(n: int, dead: int, seed: int) -> None:
    F, _, _ = factored(n, seed)
    rng = np.random.default_rng([seed, 2])
    F.Y[:, :n] = (np.triu(rng.standard_normal((n, n)), 1) + np.eye(n)) @ F.Y[:, :n]
    F.Y[-1, :n] = F.Y[0, :n] + 1e-3 * F.Y[-1, :n]  # leans on the first
    F.exponent[:] = -np.arange(n)
    if dead:
        F.mantissa[-1] = 0.0
    rank = n - dead
    before, sensitivity = F.high[:, :n] * np.ldexp(F.mantissa, F.exponent) @ F.Y[:, :n], np.linalg.cond(F.Y[:, :n])
    crooked = straightening.straighten(F, graded.aligned((4, graded.blocks(n), graded.padded(n))))
    after = F.high[:, :n] * np.ldexp(F.mantissa, F.exponent) @ F.Y[:, :n]
    rounding = n * 2.0**-50 * sensitivity
    np.testing.assert_allclose(after, before, rtol=0, atol=rounding * np.abs(before).max())
    if crooked > straightening.CROOKED:
        Y = F.Y[:rank, :n]
        np.testing.assert_allclose(Y @ Y.T, np.eye(rank), atol=rounding)
        assert (F.leaning[:rank] > 0.0).all()
    if not dead:
        assert crooked > straightening.CROOKED
    assert np.array_equal(np.triu(F.high[:, :n]), np.eye(n))


@pytest.mark.parametrize("n", SIZES)
def test_no_size_is_special(n: int) -> None:
    J = np.random.default_rng(n).standard_normal((3, n, n)) / np.sqrt(n)
    # the formed product errs by n·2^-53·‖P‖, and the values of three such factors span some 1e6
    np.testing.assert_allclose(log_singular_values(J), reference.formed_log_singular_values(J), atol=1e-7)


@pytest.mark.parametrize("gap", [0, 1, 7, 25])
@pytest.mark.parametrize("n", [2, 9, 40])
def test_values_of_a_triangle(n: int, gap: int) -> None:
    """Rows that act on their neighbours only, and on all others by way of them, however close they are in scale."""
    U = np.eye(n) + 0.5 * np.eye(n, k=1) * 2.0**-gap
    Ut, room = graded.aligned((2, graded.blocks(n), graded.padded(n)))
    Ut, ln_s = Ut[:n], np.empty(n)
    Ut[:, :n] = U.T
    mantissa, exponent, first = np.full(n, 0.5), -gap * np.arange(n), np.empty(n, np.int64)
    rotations.first_rows_felt(Ut, mantissa, exponent, first)
    rotations.triangle_values(Ut, mantissa, exponent, first, room, ln_s)
    exact = reference.exact_log_singular_values((0.5 * 2.0 ** exponent[:, None] * U)[None])
    np.testing.assert_allclose(np.sort(ln_s)[::-1], exact, rtol=n * 2.0**-53, atol=n * 2.0**-50)


@pytest.mark.parametrize("step", [0, 3, 45, 300])
@pytest.mark.parametrize("m", [2, 8, 9, 17, 40])
def test_rows_are_made_orthogonal(m: int, step: int) -> None:
    """Also where the scales of sixteen rows are too far apart for plain numbers: 2^(45·16), 2^(300·2)."""
    rng = np.random.default_rng(m)
    room = graded.aligned((graded.blocks(m), graded.padded(m)))
    room[:m, :m] = np.triu(rng.uniform(-0.5, 0.5, (m, m)), 1) + np.eye(m)
    mantissa, exponent = rng.uniform(0.5, 1.0, m), -step * np.arange(m)
    parts = -(-step * m // 900)  # of diag(2^exponent), each in the range of float64
    grading = [np.diag(2.0 ** (exponent * (p + 1) // parts - exponent * p // parts)) for p in range(parts)]
    exact = reference.exact_log_singular_values(np.array([mantissa[:, None] * room[:m, :m], *grading]))
    rotations.orthogonalise(room, mantissa, exponent, np.zeros(m, np.int64))
    ln_s = np.log(mantissa * np.linalg.norm(room[:m, :m], axis=1)) + exponent * np.log(2.0)
    # eight sweeps of m rotations round a row, by some 2^-53 each time
    np.testing.assert_allclose(np.sort(ln_s)[::-1], exact, rtol=2.0**-51, atol=8 * m * 2.0**-53)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_determinants(n: int, size: float) -> None:
    rng = np.random.default_rng(n)
    A, sizes, found = rng.standard_normal((3, n, n)), size * 10.0 ** rng.uniform(-90, 90, n), np.empty(3)
    determinants.log_determinants(sizes[:, None] * A, found)
    expected = np.linalg.slogdet(A)[1] + np.log(sizes).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * n)
    A[0, -1], A[1] = 0.0, 1.0
    determinants.log_determinants(A[:2], found[:2])
    assert found[0] == -np.inf
    assert found[1] == (0.0 if n == 1 else -np.inf)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3), (8, 8), (9, 8), (9, 9), (17, 16), (64, 64), (65, 1)])
@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_frames(n: int, k: int, size: float) -> None:
    C = np.random.default_rng(n).standard_normal((2, n, k)) * size
    Q, r = np.empty_like(C), np.empty((2, k))
    frames.orthonormal(C, Q, r)
    rounding = 10 * n * 2.0**-53
    np.testing.assert_allclose(Q.swapaxes(1, 2) @ Q, np.broadcast_to(np.eye(k), (2, k, k)), atol=rounding)
    R = Q.swapaxes(1, 2) @ (C / size)
    np.testing.assert_allclose(np.tril(R, -1), 0.0, atol=rounding * np.sqrt(n))
    np.testing.assert_allclose(np.abs(R.diagonal(axis1=1, axis2=2)) * size, r, rtol=rounding * n)


def test_a_frame_graded_past_what_squares_hold() -> None:
    C = np.array([[[1.0, 1.0], [1e-170, 2e-170]]])
    Q, r = np.empty_like(C), np.empty((1, 2))
    frames.orthonormal(C, Q, r)
    np.testing.assert_allclose(r, [[1.0, 1e-170]], rtol=1e-15)


@pytest.mark.parametrize(
    "sizes", [(1e120, 1e200), (1e-120, 1e-200), (1e-124, 1e-250), (1e110, 1e300), (1e-308, 3e-308)]
)
@pytest.mark.parametrize("n", [2, 3, 7])
def test_frames_of_columns_whose_products_leave_float64(n: int, sizes: tuple[float, float]) -> None:
    plain = np.random.default_rng(n).standard_normal((1, n, 2))
    Q, r = np.empty(plain.shape), np.empty((1, 2))
    frames.orthonormal(plain * np.array(sizes), Q, r)
    np.testing.assert_allclose(Q[0].T @ Q[0], np.eye(2), atol=1e-14)
    np.testing.assert_allclose(r[0] / sizes, np.abs(np.linalg.qr(plain[0])[1].diagonal()), rtol=1e-13)


def test_frames_of_dead_directions() -> None:
    C = np.zeros((1, 5, 3))
    C[0, 2, 1] = 4.0
    Q, r = np.empty_like(C), np.empty((1, 3))
    frames.orthonormal(C, Q, r)
    np.testing.assert_allclose(Q[0].T @ Q[0], np.eye(3), atol=1e-15)
    np.testing.assert_array_equal(r, [[0.0, 4.0, 0.0]])

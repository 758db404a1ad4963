"""Hypothesis strategies: recurrent matrices of every kind that has fooled a bound, slopes, masks, runs of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

Array = NDArray[np.float64]

SIZES = st.sampled_from([1, 2, 3, 4])
STEPS = st.sampled_from([1, 2, 3])


def entries(bound: float = 2.0) -> st.SearchStrategy[float]:
    """Numbers in ±bound, exact zeros among them; nothing between 0 and 1e-3, so that products do not underflow."""
    size = st.floats(1e-3, bound, allow_subnormal=False)
    return st.one_of(st.just(0.0), size, size.map(lambda x: -x))


@st.composite
def recurrent_matrices(draw: st.DrawFn, n: int, *, kinds: tuple[str, ...] | None = None) -> Array:
    """A matrix [n, n], of one of the kinds named below."""
    kind = draw(st.sampled_from(kinds or KINDS))
    dense = draw(arrays(np.float64, (n, n), elements=entries()))
    if kind == "normal":
        return dense + dense.T
    if kind == "orthogonal":
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        return np.linalg.qr(rng.standard_normal((n, n)))[0]
    if kind == "rotations":  # normal with complex eigenvalues, in another basis unless n is 1
        turns = np.zeros((n, n))
        for i in range(0, n - 1, 2):
            angle, size = draw(st.floats(0.1, 3.0)), draw(st.floats(0.1, 1.5))
            c, s = size * np.cos(angle), size * np.sin(angle)
            turns[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
        turns[-1, -1] = turns[-1, -1] or 0.5
        basis = _basis(draw, n)
        return basis.T @ turns @ basis
    if kind == "repeated":  # singular values that repeat, in a matrix that is neither normal nor orthogonal
        values = np.resize(draw(st.sampled_from([[0.5], [1.25, 0.5], [2.0, 2.0, 1e-3]])), n)
        return _basis(draw, n) * values @ _basis(draw, n)
    if kind == "triangular":  # far from normal
        return np.triu(10 * dense, 1) + np.diag(np.diag(dense)) / 2
    if kind == "jordan":
        return draw(entries(1.2)) * np.eye(n) + np.eye(n, k=1)
    if kind == "rank one":  # small integers: the product, and so the singularity, is exact
        column, row = (draw(arrays(np.float64, n, elements=st.integers(-3, 3).map(float))) for _ in range(2))
        return np.outer(column, row)
    if kind == "low rank":  # n − 1 integer columns: singular, and exactly so
        left = draw(arrays(np.float64, (n, n - 1), elements=st.integers(-2, 2).map(float)))
        right = draw(arrays(np.float64, (n - 1, n), elements=st.integers(-2, 2).map(float)))
        return left @ right
    if kind == "zero":
        return np.zeros((n, n))
    return dense


def _basis(draw: st.DrawFn, n: int) -> Array:
    """An orthogonal matrix [n, n]."""
    return np.linalg.qr(np.random.default_rng(draw(st.integers(0, 99))).standard_normal((n, n)))[0]


REGULAR = ("dense", "normal", "rotations", "orthogonal", "repeated", "triangular", "jordan")
KINDS = (*REGULAR, "rank one", "low rank", "zero")


def slopes(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """φ' of tanh or ReLU: up to 1, saturated to 1e-30, dead at 0."""
    live = st.one_of(st.just(1.0), st.floats(1e-3, 1.0), st.floats(-30, -3).map(lambda x: 10.0**x), st.just(0.0))
    return arrays(np.float64, shape, elements=live)


@st.composite
def run_slopes(draw: st.DrawFn, W: Array, T: int) -> Array:
    """φ' [T, n] along a run of h = φ(W h + drive): inputs up to where units saturate to the last digit, some dead."""
    n = len(W)
    drive = draw(arrays(np.float64, (T, n), elements=st.sampled_from([0.0, 0.3, -1.0, 2.0, -9.0, 20.0])))
    kind = draw(st.sampled_from(["tanh", "logistic", "relu"]))
    off = draw(arrays(np.bool_, n)) if kind == "relu" else np.zeros(n, bool)  # a bias that no input lifts
    h, phi = np.zeros(n), np.empty((T, n))
    for t in range(T):
        a = np.clip(W @ h + drive[t], -40.0, 40.0)
        if kind == "tanh":
            h, phi[t] = np.tanh(a), 1 / np.cosh(a) ** 2
        elif kind == "logistic":
            h, phi[t] = 0.5 + 0.5 * np.tanh(a / 2), 0.25 / np.cosh(a / 2) ** 2
        else:
            h, phi[t] = np.where(off, 0.0, np.maximum(a, 0.0)), (a > 0) & ~off
    return phi


@st.composite
def networks(draw: st.DrawFn, *, dead: bool = True) -> tuple[Array, Array]:
    """(W [n, n], φ' [T, n]) of a plain recurrent network; `dead=False` leaves out exact zeros and singular W."""
    n, T = draw(SIZES), draw(STEPS)
    W = draw(recurrent_matrices(n, kinds=KINDS if dead else REGULAR))
    phi = draw(st.one_of(slopes((T, n)), run_slopes(W, T)))
    return W, phi if dead else np.maximum(phi, 1e-30)


@st.composite
def masks(draw: st.DrawFn, B: int, T: int) -> NDArray[np.bool_]:
    """Which steps are real [B, T], at least one of each sequence: all, padding at either end, holes."""
    lengths = draw(arrays(np.int64, B, elements=st.integers(1, T)))
    kind = draw(st.sampled_from(["all", "padded", "padded in front", "holes"]))
    if kind == "holes":
        return draw(arrays(np.bool_, (B, T))) | (np.arange(T) == lengths[:, None] - 1)
    padded = np.arange(T) < lengths[:, None]
    return {"all": np.ones((B, T), bool), "padded": padded, "padded in front": padded[:, ::-1]}[kind]


def cell_runs(B: int, T: int) -> st.SearchStrategy[dict[str, Any]]:
    """What `cell_cases.random_trajectory` takes: any kind of cell, weights from next to none to saturated, any mask."""
    return st.fixed_dictionaries(
        {
            "name": st.sampled_from(["vanilla tanh", "vanilla relu", "simple", "lstm", "gru", "stack", "custom"]),
            "seed": st.integers(0, 99),
            "scale": st.sampled_from([0.01, 0.8, 3.0, 30.0]),
            "mask": masks(B, T),
        }
    )

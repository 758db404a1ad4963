"""Hypothesis strategies: recurrent matrices of every kind that has fooled a bound, and slopes that saturate."""

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
    if kind == "triangular":  # far from normal
        return np.triu(10 * dense, 1) + np.diag(np.diag(dense)) / 2
    if kind == "jordan":
        return draw(entries(1.2)) * np.eye(n) + np.eye(n, k=1)
    if kind == "rank one":  # small integers: the product, and so the singularity, is exact
        column, row = (draw(arrays(np.float64, n, elements=st.integers(-3, 3).map(float))) for _ in range(2))
        return np.outer(column, row)
    if kind == "zero":
        return np.zeros((n, n))
    return dense


KINDS = ("dense", "normal", "orthogonal", "triangular", "jordan", "rank one", "zero")
REGULAR = ("dense", "normal", "orthogonal", "triangular", "jordan")


def slopes(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """φ' of tanh or ReLU: up to 1, saturated to 1e-30, dead at 0."""
    live = st.one_of(st.just(1.0), st.floats(1e-3, 1.0), st.floats(-30, -3).map(lambda x: 10.0**x), st.just(0.0))
    return arrays(np.float64, shape, elements=live)


@st.composite
def networks(draw: st.DrawFn, *, dead: bool = True) -> tuple[Array, Array]:
    """(W [n, n], φ' [T, n]) of a plain recurrent network; `dead=False` leaves out exact zeros and singular W."""
    n, T = draw(SIZES), draw(STEPS)
    W = draw(recurrent_matrices(n, kinds=KINDS if dead else REGULAR))
    phi = draw(slopes((T, n)))
    return W, phi if dead else np.maximum(phi, 1e-30)

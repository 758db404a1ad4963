from __future__ import annotations

import tracemalloc
from typing import Any

import cases
import numpy as np
import pytest
from numpy.typing import NDArray

import gradlab as gl
from gradlab import products
from gradlab.lazy import LazyStepJacobians
from gradlab.products import log_singular_values

Array = NDArray[np.float64]


class Recorded:
    """Step Jacobians read by J[:, a:b] only; what was asked for is written down."""

    def __init__(self, J: Any, shape: tuple[int, ...] | None = None) -> None:
        self.J, self.shape, self.asked = J, shape or J.shape, []

    def __getitem__(self, index: tuple[slice, slice]) -> Array:
        everything, chunk = index
        assert everything == slice(None)
        self.asked.append((chunk.start, chunk.stop))
        return self.J[:, chunk]


@pytest.fixture
def J() -> Array:
    return np.stack([cases.tanh_net(6, 23, 2.0, seed) for seed in range(5)])


@pytest.mark.parametrize("chunk", [1, 8 * 36 * 7, 1 << 20])
def test_lazy_equals_in_memory(J: Array, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CHUNK_BYTES", chunk)
    expected = log_singular_values(J, return_error=True)
    lazy = Recorded(J)
    for got, want in zip(log_singular_values(lazy, return_error=True), expected, strict=True):
        np.testing.assert_array_equal(got, want)  # the same chunks, the same arithmetic
    # once, from the end to the start, without gap or overlap: also where the error needs two sweeps
    assert lazy.asked[0][1] == 23
    assert lazy.asked[-1][0] == 0
    assert all(later[0] == earlier[1] for later, earlier in zip(lazy.asked, lazy.asked[1:], strict=False))


def test_steps_before_the_earliest_time_are_not_read(J: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CHUNK_BYTES", 1)
    lazy = Recorded(J)
    np.testing.assert_array_equal(log_singular_values(lazy, times=[20, 9]), log_singular_values(J, times=[20, 9]))
    assert min(a for a, _ in lazy.asked) == 9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_entry_is_named_in_its_chunk(J: Array, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CHUNK_BYTES", 8 * 36 * 3 * 4)
    J[3, 13, 0, 1] = bad
    with pytest.raises(ValueError, match=r"batch 3, step 14 \(array index 13\)"):
        log_singular_values(Recorded(J))


@pytest.mark.parametrize(
    ("J", "shape", "error", "says"),
    [
        (np.ones((2, 3, 4, 4)), (2, 3, 4, 5), ValueError, r"got \(2, 3, 4, 5\)"),
        (np.ones((2, 3, 4, 4)), (2, 0, 4, 4), ValueError, "at least one"),
        (np.ones((3, 4)), None, ValueError, r"got \(3, 4\)"),
        (np.ones((2, 3, 4, 4)), (1, 3, 4, 4), ValueError, r"must be of shape \(1, 3, 4, 4\), got \(2, 3, 4, 4\)"),
        (np.ones((2, 3, 4, 4), complex), None, TypeError, "real numbers"),
    ],
)
def test_bad_lazy_jacobians(J: Array, shape: tuple[int, ...] | None, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        log_singular_values(Recorded(J, shape))


def test_memory_is_that_of_a_few_chunks() -> None:
    """512 steps of 128 × 128 are 64 MiB; NumPy reports its arrays to tracemalloc."""
    T, n = 512, 128
    step = cases.ginibre(n, 1, 0)
    lazy = Recorded(np.broadcast_to(step, (1, T, n, n)))  # one step's memory
    tracemalloc.start()
    try:
        ln_s = log_singular_values(lazy, times=[0, T // 2])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ln_s.shape == (1, 2, n)
    assert peak < 8 * T * n * n / 2


# --- From a trajectory -------------------------------------------------------------------------------------------


@pytest.fixture
def traj() -> gl.Trajectory:
    rng = np.random.default_rng(0)
    mask = rng.random((3, 17)) < 0.8
    mask[:, 0] = True
    return gl.rollout(gl.VanillaRNNCell(5, recurrent_gain=1.5, seed=0), rng.standard_normal((3, 17, 2)), mask=mask)


def test_lazy_step_jacobians_are_slices_of_the_whole(traj: gl.Trajectory) -> None:
    J, lazy = gl.step_jacobians(traj), LazyStepJacobians(traj)
    assert lazy.shape == J.shape
    for a, b in ((0, 17), (4, 9), (16, 17), (None, 3), (-2, None)):
        # the batch of the matrix products may change their rounding
        np.testing.assert_allclose(lazy[:, a:b], J[:, a:b], rtol=1e-13, atol=1e-15)


def test_from_trajectory_to_spectra(traj: gl.Trajectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CHUNK_BYTES", 1)
    expected = log_singular_values(gl.step_jacobians(traj))
    # J differs in rounding, which κ(J) of a few hundred and 17 steps amplify
    np.testing.assert_allclose(log_singular_values(LazyStepJacobians(traj)), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("index", [0, slice(0, 3), (0, slice(0, 3)), (slice(None), 2), (slice(None), slice(0, 9, 2))])
def test_only_slices_of_time(traj: gl.Trajectory, index: Any) -> None:
    with pytest.raises(TypeError, match=r"J\[:, a:b\]"):
        LazyStepJacobians(traj)[index]

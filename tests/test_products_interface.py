"""What `log_singular_values` takes and refuses: batches, chunks and threads, times, bad input."""

from __future__ import annotations

import warnings

import cases
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import distance

from gradlab import products
from gradlab.graded import padded
from gradlab.products import log_singular_values

Array = NDArray[np.float64]


def test_batch_chunks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    J = np.stack([cases.tanh_net(6, 23, 2.0, seed) for seed in range(5)])
    together = log_singular_values(J)
    assert distance(together, np.stack([log_singular_values(one) for one in J])) < 1e-12
    for cores, chunk in ((1, 1), (1, 1 << 19), (3, 8 * 6 * padded(6) * 2), (3, 8 * 6 * padded(6) * 7)):
        monkeypatch.setattr(products, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(products, "CHUNK_BYTES", chunk)
        assert distance(log_singular_values(J), together) < 1e-12
        assert distance(log_singular_values(J[0]), together[0]) < 1e-12


def test_input_is_left_alone() -> None:
    J = cases.ginibre(4, 6, 0)
    J.setflags(write=False)
    log_singular_values(J, return_error=True)


@pytest.mark.parametrize("times", [[0], [5, 2, 5], np.array([11]), range(12), [11, 0]])
def test_times_are_rows_of_the_whole(times: list[int]) -> None:
    J = np.stack([cases.tanh_net(6, 12, 2.0, seed) for seed in range(3)])
    everything, error = log_singular_values(J, return_error=True)
    ln_s, its_error = log_singular_values(J, times=times, return_error=True)
    # the sweep is the same to the last bit; the reading-out may meet other windows in one LAPACK call
    assert distance(ln_s, everything[:, list(times)]) < 1e-13
    assert distance(its_error, error[:, list(times)]) < 1e-12
    assert distance(log_singular_values(J[0], times=times), everything[0, list(times)]) < 1e-12


def test_what_lies_before_the_earliest_time_is_not_needed() -> None:
    J = cases.ginibre(4, 9, 0)
    np.testing.assert_array_equal(log_singular_values(J, times=[5])[0], log_singular_values(J[5:])[0])


@pytest.mark.parametrize(
    ("times", "error", "says"),
    [
        ([6], ValueError, r"0 … 5 .*got 6"),
        ([0, -1], ValueError, "got -1"),
        ([], TypeError, "list of integers"),
        ([0.5], TypeError, "list of integers"),
        ([[1]], TypeError, "list of integers"),
        (3, TypeError, "list of integers"),
        ([True], TypeError, "list of integers"),
    ],
)
def test_bad_times(times: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        log_singular_values(cases.ginibre(4, 6, 0), times=times)


def test_integers_are_numbers() -> None:
    np.testing.assert_array_equal(log_singular_values(np.array([[[2, 0], [0, 1]]])), [[np.log(2), 0.0]])


@pytest.mark.parametrize(
    ("J", "error", "says"),
    [
        (np.zeros((3, 3)), ValueError, r"\[batch, time, n, n\].*got shape \(3, 3\)"),
        (np.zeros((2, 3, 4)), ValueError, r"got shape \(2, 3, 4\)"),
        (np.zeros((2, 0, 3, 3)), ValueError, "at least one"),
        (np.zeros((1, 2, 3, 3), complex), TypeError, "real numbers"),
    ],
)
def test_bad_shapes(J: Array, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        log_singular_values(J)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_entry_is_named(bad: float) -> None:
    J = np.ones((3, 5, 2, 2))
    J[1, 3, 0, 1] = bad
    with pytest.raises(ValueError, match="batch 1, step 4"):
        log_singular_values(J)


def test_what_was_lost_in_rounding_has_no_finite_error() -> None:
    u = np.array([1.0, 0.3, 0.7]) / 3
    J = np.repeat(np.outer(u, [0.1, 0.7, 0.9])[None], 4, axis=0)  # rank 1, but for the rounding of its entries
    with pytest.warns(RuntimeWarning, match="singular to working precision"):
        ln_s, error = log_singular_values(J, return_error=True)
    assert np.isneginf(ln_s[:, 1:]).all()
    assert np.isinf(error[:, 1:]).all()
    assert (error[:, 0] < 1e-13).all()


def test_the_smallest_numbers_there_are() -> None:
    """Rows of subnormal numbers: scaled up they are like any others, and nothing vanishes."""
    J = 5e-324 * np.array([[[3.0, 1.0], [1.0, 2.0]]] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ln_s, error = log_singular_values(J, times=[0], return_error=True)
    exact = 3 * np.log(np.linalg.svd([[3.0, 1.0], [1.0, 2.0]], compute_uv=False)) - 3 * 1074 * np.log(2.0)
    np.testing.assert_allclose(ln_s[0], exact, rtol=4 * 2.0**-53)  # of a logarithm of −2233, and its three parts
    assert np.isfinite(error).all()


def test_a_pivot_without_an_inverse_takes_no_other_value_along() -> None:
    J = np.ones((1, 9, 9))
    J[0, 1:, 1:] = 1e-310 * np.eye(8)
    with pytest.warns(RuntimeWarning):
        ln_s, error = log_singular_values(J, return_error=True)
    np.testing.assert_allclose(ln_s[0, :2], np.log(np.linalg.svd(J[0], compute_uv=False)[:2]), atol=1e-14)
    assert np.isinf(error[0, 2:]).all()

"""Step Jacobians in chunks of time, from the last step to the first, so that no more than a chunk need be in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from gradlab.validation import Array, check_finite_steps, real_array, step_jacobian_array


@runtime_checkable
class LazyJacobians(Protocol):
    """Anything with a shape (B, T, n, n) whose slices ``J[:, a:b]`` are arrays [B, b − a, n, n].

    `gradlab.lazy.LazyStepJacobians` is one; a dataset of h5py or zarr is another.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, T, n, n)."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Return the steps a … b − 1 of every sequence, for the index (slice(None), slice(a, b))."""
        ...


@dataclass(frozen=True)
class StepReader:
    """Checked float64 chunks of step Jacobians, whether they lie in memory or are made when they are asked for."""

    source: Any
    shape: tuple[int, int, int, int]
    in_memory: bool
    single: bool  # came as [T, n, n]

    @classmethod
    def of(cls, J: ArrayLike | LazyJacobians) -> StepReader:
        """Check J: an array in memory whole, anything lazy for its shape, and each chunk as it is read.

        Raises:
            ValueError: wrong rank, not square, an empty axis, or not finite (names batch and step).
            TypeError: not real numbers.
        """
        if isinstance(J, np.ndarray) or not isinstance(J, LazyJacobians) or len(J.shape) == 3:
            array, single = step_jacobian_array(J)  # type: ignore[arg-type]
            return cls(array, array.shape, in_memory=True, single=single)
        B, T, n, columns = J.shape if len(J.shape) == 4 else (0, 0, 0, 0)
        if not B or not T or not n or n != columns:
            raise ValueError(
                "lazy J must have the shape (batch, time, n, n) with at least one sequence, one step and one unit, got"
                f" {tuple(J.shape)}"
            )
        return cls(J, (B, T, n, n), in_memory=False, single=False)

    def backwards(self, first: int, size: int) -> Iterator[tuple[int, Array]]:
        """Yield (a, J[:, a:b]) from b = T down to a = first, `size` steps at a time.

        Raises:
            ValueError: a chunk of the wrong shape or not finite (names batch and step).
            TypeError: not real numbers.
        """
        B, T, n, _ = self.shape
        for b in range(T, first, -size):
            a = max(first, b - size)
            chunk = self.source[:, a:b]
            yield a, chunk if self.in_memory else _checked(chunk, (B, b - a, n, n), a)


def _checked(chunk: ArrayLike, shape: tuple[int, ...], first: int) -> Array:
    """Return what a lazy J gave for the steps from index `first` on, as finite float64."""
    array = real_array("J", chunk)
    if array.shape != shape:
        raise ValueError(f"lazy J[:, {first}:{first + shape[1]}] must be of shape {shape}, got {array.shape}")
    check_finite_steps(array, first)
    return array

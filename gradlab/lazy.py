"""Step Jacobians that are computed when they are asked for: spectra of long and large runs in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gradlab.jacobian import step_jacobians
from gradlab.trajectory import Trajectory
from gradlab.validation import Array


class LazyStepJacobians:
    """J_t = ∂h_t/∂h_{t−1} of a trajectory, made slice by slice: ``J[:, a:b]`` is float64 [B, b − a, n, n].

    `log_singular_values` takes it in the place of the array [B, T, n, n], which it never holds.

    Args:
        traj: what `rollout` returns.
        options: what `step_jacobians` takes besides.

    Attributes:
        shape: (B, T, n, n).

    Example:
        >>> import gradlab as gl, numpy as np
        >>> traj = gl.rollout(gl.VanillaRNNCell(4, seed=0), np.zeros((2, 7, 3)))
        >>> J = LazyStepJacobians(traj)
        >>> J.shape, J[:, 2:5].shape
        ((2, 7, 4, 4), (2, 3, 4, 4))
        >>> bool(np.array_equal(J[:, 2:5], gl.step_jacobians(traj)[:, 2:5]))
        True
    """

    def __init__(self, traj: Trajectory, **options: Any) -> None:
        B, T, _ = traj.inputs.shape
        n = traj.step.state_size
        self.shape = (B, T, n, n)
        self._traj, self._options = traj, options

    def __getitem__(self, index: tuple[slice, slice]) -> Array:
        """Return the Jacobians of some steps of every sequence.

        Raises:
            TypeError: an index that is not ``[:, a:b]``.
            ValueError: as `step_jacobians`.
        """
        if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None) or type(index[1]) is not slice:
            raise TypeError(f"lazy step Jacobians are read as J[:, a:b], got the index {index!r}")
        a, b, stride = index[1].indices(self.shape[1])
        if stride != 1 or b <= a:
            raise TypeError(f"lazy step Jacobians are read as J[:, a:b] with a < b and no stride, got {index[1]}")
        traj = self._traj
        part = replace(
            traj,
            inputs=traj.inputs[:, a:b],
            states=traj.states[:, a : b + 1],
            mask=None if traj.mask is None else traj.mask[:, a:b],
        )
        try:
            return step_jacobians(part, **self._options)
        except ValueError as error:
            raise ValueError(f"{error} (steps are counted from step {a}: this is the slice [:, {a}:{b}])") from error

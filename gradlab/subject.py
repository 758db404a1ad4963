"""A run of a cell to be checked, and what rounding may do to anything that is computed along it.

An *echo* of the run, its inputs and h_0 each changed by a few units in the last place, shows what rounding does to any
quantity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gradlab.jacobian import step_jacobians
from gradlab.original import EPSILON, Original
from gradlab.step import Step
from gradlab.trajectory import Trajectory, rollout
from gradlab.validation import Array

_ULPS = 8.0  # by how many units in the last place the echo differs
ROOM = 8.0  # how many times its effect is allowed: an ulp per operation, of which a step has a few dozen in a row


class Finding(NamedTuple):
    """What was measured, what is allowed, what to look for if it is too much, and what to say even if it is not."""

    measured: float
    allowed: float
    hint: str = ""
    note: str = ""


class NotApplicableError(Exception):
    """A check that cannot be made; says why."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A run of a cell to be checked.

    Attributes:
        own: the cell as its author wrote it.
        step: the float64 step that gradlab made of it.
        warned: what `as_step` warned of, "" if nothing.
        given: whether the user gave the `Step` and not the cell.
        inputs: x_1 … x_T [B, T, d].
        initial: h_0 [B, n].
        seed: draws the directions.
    """

    own: Original
    step: Step
    warned: str
    given: bool
    inputs: Array
    initial: Array
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        """A source of directions, the same for every check whichever others are made."""
        return np.random.default_rng(self.seed)

    @cached_property
    def traj(self) -> Trajectory:
        """The run."""
        return rollout(self.step, self.inputs, self.initial)

    @cached_property
    def echo(self) -> Trajectory:
        """The run with every input and h_0 changed by a few units in the last place."""
        rng = np.random.default_rng(self.seed)
        x, h = (one * (1.0 + _ULPS * self.eps * rng.standard_normal(one.shape)) for one in (self.inputs, self.initial))
        return rollout(self.step, x, h)

    @cached_property
    def J(self) -> Array:
        """J_t [B, T, n, n]."""
        return self.jacobians(self.traj)

    @cached_property
    def J_echo(self) -> Array:
        """J_t of the echo."""
        return self.jacobians(self.echo)

    def jacobians(self, traj: Trajectory) -> Array:
        """Return J_t [B, T, n, n] of a run; `NotApplicableError` where there are none."""
        try:
            return step_jacobians(traj)
        except Exception as error:  # a stranger's gradient may raise anything
            raise NotApplicableError(f"there are no step Jacobians: {first_line(error)}") from error

    @property
    def eps(self) -> float:
        """The spacing of numbers at 1 in the precision of the step."""
        return EPSILON[self.step.dtype]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, T, d, n)."""
        return (*self.inputs.shape, self.step.state_size)

    @property
    def run_eps(self) -> float:
        """Relative rounding of a sum over n + d terms and 20 more operations, T times."""
        _, T, d, n = self.shape
        return self.eps * T * (n + d + 20)

    @cached_property
    def jacobian_rounding(self) -> float:
        """Rounding of an entry of J_t: slopes and gates err by units in the last place of 1, and weights multiply that.

        Saturated units hide their weights from J_t, but not from the cell, nor from J_t at rest.
        """
        _, _, d, n = self.shape
        depth = len(getattr(self.own.cell, "cells", (None,)))
        weight = max([1.0, *(float(np.abs(w).max(initial=0.0)) for w in self.step.weights)])
        try:
            rest = self.jacobians(rollout(self.step, np.zeros((1, 1, d)), np.zeros(n)))
        except (ValueError, NotApplicableError):  # a step that zeros are nothing for
            rest = self.J
        largest = max(weight**depth, float(np.abs(rest).max()), float(np.abs(self.J).max()))
        return self.eps * (n + d + 20) * largest

    def points(self) -> tuple[Array, Array]:
        """Return (h_{t−1} [B·T, n], x_t [B·T, d]) of every step."""
        B, T, d, n = self.shape
        return self.traj.states[:, :-1].reshape(B * T, n), self.traj.inputs.reshape(B * T, d)

    def rounding(self, value: Array, echoed: Array) -> float:
        """Return what rounding may do to a quantity, from what it is along the run and along its echo."""
        return float(ROOM * np.abs(value - echoed).max() + self.run_eps * np.abs(value).max())


def worst(measured: Array, allowed: Array | float) -> tuple[float, float]:
    """Return (measured, allowed) of the entry that is furthest beyond what is allowed, or nearest to it."""
    measured, allowed = (np.ravel(one) for one in np.broadcast_arrays(np.asarray(measured, np.float64), allowed))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(measured == 0.0, 0.0, measured / allowed)
    i = int(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)))
    return float(measured[i]), float(allowed[i])


def first_line(error: Exception) -> str:
    """Return what kind of error it is and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"

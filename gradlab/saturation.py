"""How much of a network is saturated: the share of slopes that are close to zero along a run."""

from __future__ import annotations

import numpy as np

from gradlab import activations
from gradlab.closed_form import ACTIVATIONS, ingredients
from gradlab.trajectory import Trajectory
from gradlab.validation import Array

NEARLY_FLAT = 0.1  # of the largest slope that the activation has


def saturation(traj: Trajectory) -> float:
    """Return the share of activations on their flat parts.

    The share, over sequences, steps that count, units and gates, of φ'(a) < 0.1·sup φ'. For a simple network φ is its
    activation (of ReLU it is the share of units that are off); for an LSTM or a GRU all gates and the candidate count.

    Args:
        traj: what `rollout` returns.

    Returns:
        A number in [0, 1]; NaN for a cell of which gradlab does not know the activations, and where a mask
        leaves out every step.

    Example:
        >>> import gradlab as gl
        >>> cell = gl.VanillaRNNCell(2, recurrent_initializer="identity", kernel_initializer="ones")
        >>> x = np.array([[[0.0]] * 4, [[100.0]] * 4])    # one sequence at rest, one driven to the end
        >>> saturation(gl.rollout(cell, x))
        0.5
    """
    made = ingredients(traj.step)
    if made is None:
        return float("nan")
    cell, kernel, recurrent, bias, *known = made
    names = [
        activations.name_of(getattr(cell, one)) for one in ("activation", "recurrent_activation") if hasattr(cell, one)
    ]
    u = len(recurrent)
    h = traj.states[:, :-1, :u]
    x = traj.inputs
    blocks = recurrent.shape[1] // u
    b, inner = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    drive, back = np.split(x @ kernel + b, blocks, axis=-1), np.split(h @ recurrent + inner, blocks, axis=-1)
    a = [one + other for one, other in zip(drive, back, strict=True)]
    which = {1: (0,), 3: (1, 1, 0), 4: (1, 1, 0, 1)}[blocks]  # 0: the activation, 1: that of the gates
    if blocks == 3:  # the candidate of a GRU sees the state through the reset gate
        reset = known[1].value(a[1])
        a[2] = drive[2] + (reset * back[2] if cell.reset_after else (reset * h) @ recurrent[:, 2 * u :])
    taken = np.ones(x.shape[:2], bool) if traj.mask is None else traj.mask
    if not taken.any():
        return float("nan")
    flat = [_flat(values, names[one] or "")[taken] for values, one in zip(a, which, strict=True)]
    return float(np.mean(flat))


def _flat(a: Array, name: str) -> Array:
    """Return where an activation of this name is nearly flat, as 0 and 1."""
    below: Array = (ACTIVATIONS[name].slope(a) < NEARLY_FLAT * activations.SLOPE_SUPREMUM[name]).astype(np.float64)
    return below

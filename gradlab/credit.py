"""Where credit goes: how much of ∂L/∂W each lag contributes, and what truncated backpropagation leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import xarray as xr
from numpy.typing import ArrayLike

from gradlab.clipping import norm
from gradlab.gradients import state_gradients
from gradlab.jacobian import step_jacobians
from gradlab.probe import LayerGradients
from gradlab.results import SCHEMA_VERSION, provenance
from gradlab.step import StepFunction
from gradlab.trajectory import Trajectory, as_trajectory
from gradlab.validation import Array
from gradlab.variables import labelled

HELD = 0.9  # of the gradient, at the credit horizon


def credit_by_lag(
    cell: Any,
    inputs: ArrayLike | None = None,
    loss: Callable[[tf.Tensor], tf.Tensor] | None = None,
    *,
    initial_state: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    weight: str = "recurrent_kernel",
) -> xr.Dataset:
    """Return what every lag contributes to ∂L/∂W, and the error of backpropagation truncated there.

    ∂L/∂W = Σ_k G_k,  G_k = Σ_t (∂⁺h_t/∂W)ᵀ (∂h_{t+k}/∂h_t)ᵀ d_{t+k},  k = 0 … T − 1

    with d_s the direct gradient of the loss at h_s and ∂⁺ the derivative of one step alone: G_k is how the use of W at
    some step shows in the loss k steps later. Backpropagation truncated after k steps back gives C_k = Σ_{j≤k} G_j.
    Everything comes from one pass backwards that keeps the lags apart, not from T truncated ones: for a loss at T that
    is the price of one gradient, for a loss at all steps T times as much.

    Args:
        cell: anything with weights that `as_step` takes, a `Trajectory`, or the `LayerGradients` of a layer in a model
            (`gl.layer_gradients`; then nothing else but `weight`).
        inputs: x_1 … x_T [B, T, d].
        loss: maps states [B, T+1, n] to [B] or a scalar, see `state_gradients`; summed over the batch.
        initial_state: h_0, see `rollout`.
        mask: [B, T], see `rollout`; lags count the steps that are taken.
        weight: which, by name; all of that name are taken together (a stack of cells).

    Returns:
        Dataset over lag: credit_log_norm ln‖G_k‖, credit_cosine of G_k with ∂L/∂W, credit_share ⟨G_k, ∂L/∂W⟩/‖∂L/∂W‖²
        (the shares sum to 1; they can be negative) and credit_cumulative, their sum up to k; truncation_bias
        ‖C_k − ∂L/∂W‖/‖∂L/∂W‖ and truncation_cosine of C_k; and over nothing: log_weight_gradient ln‖∂L/∂W‖ and
        credit_horizon, the least lag from which on credit_cumulative stays at 0.9 or more. NaN where a gradient is
        exactly zero and has no direction. Contributions below 1e-308 count as zero.

    Raises:
        TypeError: nothing to compute a gradient from.
        ValueError: a cell without such a weight; else as `state_gradients` and `step_jacobians`.

    Source:
        Pascanu, Mikolov & Bengio 2013, equation 4, for the sum over time; Williams & Peng 1990 for truncation.

    Example:
        >>> import gradlab as gl
        >>> cell = gl.VanillaRNNCell(1, "linear", recurrent_initializer="identity", recurrent_gain=0.5,
        ...     kernel_initializer="ones")
        >>> ds = credit_by_lag(cell, np.ones((1, 3, 1)), lambda states: states[:, -1, 0])
        >>> np.exp(ds.credit_log_norm.values)    # h = 0, 1, 1.5: h_{t−1}·0.5^k for t = 3, 2, 1
        array([1.5, 0.5, 0. ])
        >>> ds.truncation_bias.values, int(ds.credit_horizon)
        (array([0.25, 0.  , 0.  ]), 1)
    """
    traj, direct = gradient_parts(cell, inputs, loss, initial_state, mask)
    pieces = Contributions(traj, direct, weight)
    G, T = pieces.total, pieces.length
    size = norm(G)  # no square of it under- or overflows
    along = G / size if size > 0.0 else G
    found = {name: np.full(T, np.nan) for name in ("credit_cosine", "truncation_cosine")}
    log_norm, share, bias = np.empty(T), np.full(T, np.nan), np.full(T, np.nan)
    C = np.zeros_like(G)
    for k, piece in pieces:
        C = C + piece
        own, kept = norm(piece), norm(C)
        with np.errstate(divide="ignore"):
            log_norm[k] = np.log(own)
        if size > 0.0:
            share[k] = float(piece / size @ along)
            bias[k] = norm((C - G) / size)
            found["credit_cosine"][k] = float(piece / own @ along) if own > 0.0 else np.nan
            found["truncation_cosine"][k] = float(C / kept @ along) if kept > 0.0 else np.nan
    found |= {"credit_log_norm": log_norm, "credit_share": share, "truncation_bias": bias}
    found["credit_cumulative"] = np.cumsum(share)
    with np.errstate(divide="ignore"):
        found["log_weight_gradient"] = np.asarray(np.log(size))
    found["credit_horizon"] = np.asarray(_horizon(found["credit_cumulative"]))
    labels = {"long_name": "lag k from the use of the weight to the loss", "units": "steps"}
    attrs = {"title": f"Credit by lag in {traj.step.description}", "weight": weight, "schema_version": SCHEMA_VERSION}
    return xr.Dataset(labelled(found), {"lag": ("lag", np.arange(T), labels)}, attrs | provenance(None))


def gradient_parts(
    cell: Any, inputs: ArrayLike | None, loss: Any, initial_state: ArrayLike | None, mask: ArrayLike | None
) -> tuple[Trajectory, Array]:
    """Return (the run, the direct gradient ∂L/∂h_t [B, T+1, n]) of a cell and a loss, or of a layer in a model."""
    if isinstance(cell, LayerGradients):
        if not all(one is None for one in (inputs, loss, initial_state, mask)):
            raise TypeError("the gradients of a layer have their own inputs and loss; pass them alone")
        return cell.trajectory, cell.direct
    if isinstance(cell, dict) and cell and all(isinstance(one, LayerGradients) for one in cell.values()):
        raise TypeError(f"one layer is looked at, got those of {list(cell)}; pass found[{next(iter(cell))!r}]")
    if isinstance(cell, keras.Model):
        raise TypeError("cell must be a cell or a layer, got a model; pass gl.layer_gradients(model, …)['a layer']")
    if loss is None:
        raise TypeError("loss must be a function of states [batch, time + 1, n], got None")
    traj = as_trajectory(cell, inputs, initial_state, mask)
    return traj, state_gradients(traj, None, loss).direct


class Contributions:
    """The parts G_k of ∂L/∂W, one after another: ``for k, G_k in contributions``, each a vector.

    Attributes:
        total: ∂L/∂W = Σ_k G_k as a vector, from the total gradients at once.
        length: how many lags there are, the longest sequence's number of steps.
    """

    def __init__(self, traj: Trajectory, direct: Array, weight: str) -> None:
        which = weight_indices(traj, weight)
        self._pull = traj.step.function.graph(_pullback_graph, which)
        self._weights = traj.step.weights
        J = step_jacobians(traj)
        self._states, self._inputs, self._J, self._direct = _real_steps(traj, J, direct)
        self.length = self._J.shape[1]
        g = np.zeros_like(self._direct)
        back = np.zeros_like(g[:, 0])
        for t in range(self.length - 1, -1, -1):
            g[:, t] = self._direct[:, t] + back
            back = np.einsum("bij,bi->bj", self._J[:, t], g[:, t])
        self.total: Array = self._pulled(g, np.arange(self.length))

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        D = self._direct.copy()  # (∂h_{t+k}/∂h_t)ᵀ d_{t+k} at place t
        for k in range(self.length):
            rows = np.flatnonzero(np.any(D != 0.0, axis=(0, 2)))  # a loss at T has one of them
            yield k, self._pulled(D[:, rows], rows)
            moved = np.zeros_like(D)
            later = rows[rows > 0]
            moved[:, later - 1] = np.einsum("btij,bti->btj", self._J[:, later], D[:, later])
            D = moved

    def _pulled(self, u: Array, rows: Any) -> Array:
        """Return Σ_{b,t} (∂⁺h_t/∂W)ᵀ u_t over some steps, as a vector."""
        n, d = self._states.shape[2], self._inputs.shape[2]
        before, x = self._states[:, rows].reshape(-1, n), self._inputs[:, rows].reshape(-1, d)
        parts = self._pull(self._weights, tf.constant(before), tf.constant(x), tf.constant(u.reshape(-1, n)))
        return np.concatenate([np.asarray(one.numpy(), np.float64).ravel() for one in parts])


def weight_indices(traj: Trajectory, weight: str) -> tuple[int, ...]:
    """Return which weights of a step have a name.

    Raises:
        ValueError: none has.
    """
    names = [one.name for one in getattr(traj.step.cell, "weights", ())] if traj.step.weights else []
    which = tuple(i for i, name in enumerate(names) if name == weight)
    if not which:
        raise ValueError(f"weight must name a weight of {traj.step.description}, {sorted(set(names))}, got {weight!r}")
    return which


def _real_steps(traj: Trajectory, J: Array, direct: Array) -> tuple[Array, Array, Array, Array]:
    """Return (h_{t−1}, x_t, J_t, direct gradient at h_t) of the steps that are taken, moved to the front.

    Behind the last one there are zeros, which contribute nothing. What the loss reads of a state that a mask carries on
    belongs to the step that made it.
    """
    before, x, at = traj.states[:, :-1], traj.inputs, direct[:, 1:]
    if traj.mask is None:
        return before, x, J, at
    longest = int(traj.mask.sum(axis=1).max())
    packed = [np.zeros((len(x), longest, *one.shape[2:])) for one in (before, x, J, at)]
    for b, taken in enumerate(traj.mask):
        place = np.cumsum(taken) - 1  # of the step whose state stands at t; −1: still h_0
        count = int(taken.sum())
        for target, source in zip(packed[:3], (before, x, J), strict=True):
            target[b, :count] = source[b, taken]
        np.add.at(packed[3][b], place[place >= 0], at[b, place >= 0])
    return packed[0], packed[1], packed[2], packed[3]


def _pullback_graph(step: StepFunction, which: tuple[int, ...]) -> Any:
    """Return the traced (weights, h [N, n], x [N, d], u [N, n]) → Σ (∂⁺h/∂w)ᵀ u for the chosen weights."""

    @tf.function(reduce_retracing=True)
    def pullback(weights: Any, before: tf.Tensor, x: tf.Tensor, u: tf.Tensor) -> list[tf.Tensor]:
        chosen = [weights[i] for i in which]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(chosen)
            after = step(weights, before, x)
        return tape.gradient(after, chosen, output_gradients=u, unconnected_gradients="zero")

    return pullback


def _horizon(cumulative: Array) -> float:
    """Return the least lag from which on the cumulative share stays at HELD or more; NaN without a gradient."""
    if not np.isfinite(cumulative).all():
        return float("nan")
    short = np.flatnonzero(cumulative < HELD)
    return float(short[-1] + 1) if len(short) else 0.0

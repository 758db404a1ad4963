"""The few largest singular values of ∂h_T/∂h_t of a large network, from Jacobian-vector products alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradlab.frames import Sweeps
from gradlab.trajectory import Trajectory
from gradlab.validation import Array, positive_integer

OVERSAMPLING = 8  # directions carried beyond the k asked for; Halko, Martinsson and Tropp 2011 advise 5 to 10
SETTLED = 0.05  # two moves in a row this far below the tolerance end the iteration: clusters give no other sign


@dataclass(frozen=True, eq=False)
class LeadingSingularValues:
    """The k largest singular values of P_t = ∂h_T/∂h_t, P_t v_i = σ_i u_i, with what is known of their errors.

    Attributes:
        log_values: ln σ_i(P_t) in nats [B, len(times), k], descending; −∞ for a zero.
        residual: ρ_i = ‖P_tᵀ u_i − σ_i v_i‖/σ_i [B, len(times), k]: a true singular value lies within a factor 1 ± ρ_i
            of σ_i, and v_i is off the space of the true ones by about ρ_i; 0 for a zero value.
        error: estimated |error of ln σ_i| [B, len(times), k], quadratic in ρ_i where the value is separated from those
            left out, and twenty times its last moves where it is not; beside it stands the rounding of the steps.
        times: t of each entry [len(times)], as asked for.
        iterations: pairs of sweeps that each time took [len(times)].
        converged: whether every error of a time is within the tolerance [len(times)].
        left: u_i [B, len(times), n, k], directions at time T; None unless asked for.
        right: v_i [B, len(times), n, k], directions at time t; None unless asked for.
    """

    log_values: Array
    residual: Array
    error: Array
    times: NDArray[np.int64]
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]
    left: Array | None = None
    right: Array | None = None


def leading_singular_values(
    traj: Trajectory,
    k: int,
    *,
    times: int | Iterable[int] = 0,
    vectors: bool = False,
    tolerance: float = 1e-8,
    max_iterations: int = 50,
    seed: int = 0,
) -> LeadingSingularValues:
    """The k largest singular values of ∂h_T/∂h_t for chosen t, in logarithms, without any n × n matrix.

        P_t S = Q R_T ··· R_{t+1},   ln σ_i(P_t) ≈ ln σ_i(R_T ··· R_{t+1}),   S [n, m], m ≪ n

    An iteration is a sweep of Jacobian-vector products from t to T, with QR after every step, and one of
    vector-Jacobian products from T back to t. The small triangles R_s are multiplied in graded form
    (`gradlab.frames`), so that the k-th value comes right where it is e^-100 or e^-1000 of the first. The sweep back
    gives residuals and new directions; S holds them beside the present and the last ones, as in LOBPCG, which matters
    where the spectrum is flat; over long lags it is separated, and one or two iterations do. All starting frames are
    read out of one sweep back from T. A masked step is the identity.

    The cost is (T − t)·(k + 8) products of a vector with a step Jacobian or its transpose for a sweep, three times as
    many for the first one from the second iteration on; the memory is that of a few frames [B, len(times), n,
    3(k + 8)].

    Args:
        traj: what `rollout` returns.
        k: how many singular values, 1 ≤ k ≤ n.
        times: t, or several, each in 0 … T−1.
        vectors: whether to return singular vectors as well.
        tolerance: estimated |error of ln σ_i|, in nats, at which to stop.
        max_iterations: sweeps forward at most.
        seed: of the random frame at T.

    Returns:
        `LeadingSingularValues`: values in nats [B, len(times), k], residuals, iterations, and vectors if asked for.

    Raises:
        TypeError: `traj` is no Trajectory, k, a time or `max_iterations` is not an integer.
        ValueError: k > n, a time outside 0 … T−1, a tolerance that is not positive, a derivative that is not finite.

    Warns:
        RuntimeWarning: not converged; or a direction vanished in rounding and was taken for an exact zero.

    Source:
        Halko, Martinsson and Tropp 2011 (randomised subspace iteration); Knyazev 2001 (LOBPCG);
        D. E. Stewart 1997 (graded QR of products).

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(50, activation="linear", recurrent_initializer="identity", recurrent_gain=0.5)
        >>> result = leading_singular_values(gl.rollout(cell, np.zeros((1, 3000, 2))), k=2)
        >>> result.log_values[0, 0] / np.log(2)     # 2^-3000, which float64 cannot hold
        array([-3000., -3000.])
    """
    if not isinstance(traj, Trajectory):
        raise TypeError(
            f"traj must be a Trajectory, got {type(traj).__name__}; gl.rollout(cell, inputs) makes one, and"
            " log_singular_values takes step Jacobians"
        )
    B, T, _ = traj.inputs.shape
    n, k = traj.step.state_size, positive_integer("k", k)
    if k > n:
        raise ValueError(f"k must be at most the length of the carried state n = {n}, got {k}")
    asked = _times(times, T)
    max_iterations = positive_integer("max_iterations", max_iterations)
    if not 0 < tolerance < np.inf:
        raise ValueError(f"tolerance must be a positive number of nats, got {tolerance!r}")
    width = min(k + OVERSAMPLING, n)
    if 3 * width >= n:  # the first frame is then as good as whole
        width = n
    sweeps = Sweeps(traj)
    active = np.unique(asked)
    start = np.linalg.qr(np.random.default_rng(seed).standard_normal((B, n, width)))[0]
    frames = sweeps.backward(np.broadcast_to(start, (1, B, n, width)), active, shared=True)
    kept: dict[int, _Outcome] = {}
    right: Array | None = None
    previous: Array | None = None
    last = np.full((len(active), B, k), np.inf)  # the values of the last iteration, and how far they had moved
    moved = np.full((len(active), B, k), np.inf)
    for iteration in range(1, max_iterations + 1):
        if right is not None:
            frames = _joined([right, frames] if previous is None else [right, frames, previous])
        values, left, new_right, rounded = sweeps.forward(frames, active)
        previous, right, left = right, new_right[..., :width], left[..., :width]
        frames = sweeps.backward(left, active)
        residual = _residuals(values[..., :k], right, frames[..., :k])
        error = _error(values, residual, width)
        shift = np.abs(np.subtract(values[..., :k], last, out=np.zeros_like(last), where=values[..., :k] != last))
        settled = (np.maximum(shift, moved) <= SETTLED * tolerance) & (residual**2 <= tolerance)
        error = np.where(settled, np.minimum(error, np.maximum(shift, moved) / SETTLED), error)
        last, moved = values[..., :k], shift
        done: NDArray[np.bool_] = np.all(error <= tolerance, axis=(1, 2))
        for a, t in enumerate(active.tolist()):
            if done[a] or iteration == max_iterations:
                u, v = left[a, ..., :k].copy(), right[a, ..., :k].copy()
                arrays = values[a, :, :k], residual[a], error[a], u, v
                kept[t] = _Outcome(*arrays, iteration, bool(done[a]), bool(rounded[a]))
        if done.all():
            break
        active = active[~done]
        right, frames, last, moved = (one[~done] for one in (right, frames, last, moved))
        previous = None if previous is None else previous[~done]
    results = [kept[t] for t in asked.tolist()]
    _warn(asked, results, tolerance)
    log_values, residual, error, u, v = (np.stack(arrays, axis=1) for arrays in list(zip(*results, strict=True))[:5])
    return LeadingSingularValues(
        log_values=log_values,
        residual=residual,
        error=error,
        times=asked,
        iterations=np.array([one.iterations for one in results]),
        converged=np.array([one.converged for one in results]),
        left=u if vectors else None,
        right=v if vectors else None,
    )


def _times(times: Any, T: int) -> NDArray[np.int64]:
    """Return the times asked for as an array of integers in 0 … T−1."""
    array = np.atleast_1d(np.asarray(times))
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(f"times must be an integer t or several, got {times!r}")
    if not array.size:
        raise ValueError(f"times must name at least one t in 0 … {T - 1}, got none")
    if array.min() < 0 or array.max() >= T:
        raise ValueError(f"times must lie in 0 … T−1 = {T - 1} (∂h_T/∂h_T is the identity), got {array.tolist()}")
    return array.astype(np.int64)


def _residuals(values: Array, right: Array, frames: Array) -> Array:
    """ρ_i [A, B, k]: what of P_tᵀ u_i lies outside the right vectors, relative to it.

    P_tᵀ u_i has no part in v_j, j ≠ i, but for rounding, which may drown a small σ_i; the i-th vector of the frame is
    P_tᵀ u_i made orthogonal to those before, which removes it.
    """
    outside = frames - right @ (right.swapaxes(-1, -2) @ frames)
    return np.where(np.isneginf(values), 0.0, np.linalg.norm(outside, axis=-2))


def _error(values: Array, residual: Array, width: int) -> Array:
    """Estimated |error of ln σ_i| [A, B, k]: |Δλ| ≤ ‖r‖²/gap for λ = σ², and |Δσ| ≤ ‖r‖ in any case."""
    # the nearest value left out is about the last one carried
    outside = values[..., width] if values.shape[-1] > width else values[..., width - 1]
    with np.errstate(invalid="ignore"):  # −∞ − −∞: a zero value, which has no error
        fall = np.nan_to_num(-np.expm1(2 * (outside[..., None] - values[..., : residual.shape[-1]])), nan=1.0)
    return residual**2 / np.maximum(fall, residual + np.finfo(float).tiny)


def _joined(blocks: list[Array]) -> Array:
    """Orthonormal columns [A, B, n, m] that span several blocks, those of the first one first."""
    return np.asarray(tf.linalg.qr(tf.constant(np.concatenate(blocks, axis=-1)))[0])


class _Outcome(NamedTuple):
    """What one time ended with: arrays [B, k] and [B, n, k]."""

    log_values: Array
    residual: Array
    error: Array
    left: Array
    right: Array
    iterations: int
    converged: bool
    rounded: bool


def _warn(times: NDArray[np.int64], results: list[_Outcome], tolerance: float) -> None:
    """Say what did not converge, and what vanished in rounding."""
    late = [int(t) for t, one in zip(times, results, strict=True) if not one.converged]
    if late:
        error = max(float(one.error.max()) for one in results)
        warnings.warn(
            f"the singular values at t = {late} are not converged: estimated error {error:.1e} nats, asked for"
            f" {tolerance:.1e}; raise max_iterations or tolerance, see .error and .residual",
            RuntimeWarning,
            stacklevel=3,
        )
    if any(one.rounded and np.isneginf(one.log_values).any() for one in results):
        warnings.warn(
            "a direction vanished in rounding (a low-rank or repeated weight, or a step Jacobian that is singular to"
            " working precision): its singular value is returned as −∞",
            RuntimeWarning,
            stacklevel=3,
        )

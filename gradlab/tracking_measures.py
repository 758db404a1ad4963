"""What one look at a layer measures: norms of its gradients, spectra at chosen lags, rates and saturation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.decay import fit_decay
from gradlab.gradients import log_norm
from gradlab.jacobian import step_jacobians
from gradlab.lyapunov import lyapunov_exponents
from gradlab.probe import LayerGradients
from gradlab.products import swept_log_singular_values
from gradlab.saturation import saturation
from gradlab.spectrum import spectral_radius
from gradlab.step import Step
from gradlab.trajectory import Trajectory
from gradlab.validation import Array


@dataclass(frozen=True, eq=False)
class LayerMeasures:
    """One look at one layer.

    Attributes:
        log_gradient_norm: ln‖∂L/∂h_t‖, the norm over batch and units together [T+1].
        log_direct_gradient_norm: of the direct part [T+1].
        log_recurrent_gradient_norm: of the part that came back through time [T+1].
        log_singular_values: ln σ_i(∂h_T/∂h_{T−k}) at the chosen lags k, median over sequences [K, n]; NaN where no
            sequence reaches so far back.
        lyapunov_exponent: λ_1 in nats per step, mean over the sequences that a mask leaves a step of; NaN if none.
        decay_rate: of ‖∂L/∂h_t‖ over the lag, nats per step, mean over the sequences that have one: not over those
            whose gradient becomes exactly 0, a rate of −∞; −∞ if that is all of them; NaN if none has a rate.
        spectral_radius: ρ(W_hh), for a gated cell of the candidate's matrix; NaN where it is not known.
        saturation: share of activations on their flat parts; NaN where it is not known.
    """

    log_gradient_norm: Array
    log_direct_gradient_norm: Array
    log_recurrent_gradient_norm: Array
    log_singular_values: Array
    lyapunov_exponent: float
    decay_rate: float
    spectral_radius: float
    saturation: float


def measure(gradients: LayerGradients, lags: Sequence[int], sequences: int) -> LayerMeasures:
    """Return what there is to say of one layer.

    Args:
        gradients: of the layer, from a `Probe`.
        lags: k at which the spectrum is taken, counted in steps that a mask does not leave out.
        sequences: how many of the batch, the first ones, the spectrum is taken of.

    Returns:
        `LayerMeasures`.

    Raises:
        NotFiniteError: a step Jacobian that is not finite.
    """
    traj = gradients.trajectory
    J = step_jacobians(traj)
    W = main_recurrent_matrix(traj.step)[1]
    fit = fit_decay(log_norm(gradients.total), lags=traj.lag)
    return LayerMeasures(
        log_gradient_norm=over_the_batch(gradients.total),
        log_direct_gradient_norm=over_the_batch(gradients.direct),
        log_recurrent_gradient_norm=over_the_batch(gradients.recurrent),
        log_singular_values=_spectrum(traj, J[:sequences], lags),
        lyapunov_exponent=_largest_exponent(traj, J),
        decay_rate=_mean_rate(np.atleast_1d(fit.rate)),
        spectral_radius=float("nan") if W is None else float(spectral_radius(W)),
        saturation=saturation(traj),
    )


def over_the_batch(vectors: Array) -> Array:
    """Return ln of the norm over batch and units of vectors [B, T+1, n], for each t."""
    return log_norm(vectors.swapaxes(0, 1).reshape(vectors.shape[1], -1))


def main_recurrent_matrix(step: Step) -> tuple[str, Array | None]:
    """Return (name, W [n, n]): of a simple network its matrix, of an LSTM or a GRU that of the candidate.

    In a stack it is that of the last cell; (“”, None) where gradlab does not know the cell.
    """
    matrices = step.recurrent_matrices
    # the candidate's matrix is the only one of a gated cell that writes new content into the state
    name = next((one for one in reversed(list(matrices)) if one.split(".")[-1] in ("W", "c", "h")), None)
    return ("", None) if name is None else (name, matrices[name])


def _mean_rate(rates: Array) -> float:
    """Return the mean over the finite rates; without any, −∞ if one is, else NaN."""
    finite = rates[np.isfinite(rates)]
    if len(finite):
        return float(finite.mean())
    return float("-inf") if np.isneginf(rates).any() else float("nan")


def _spectrum(traj: Trajectory, J: Array, lags: Sequence[int]) -> Array:
    """Return the median over sequences of ln σ_i at each lag [K, n]."""
    B, n = len(J), J.shape[-1]
    found = np.full((B, len(lags), n), np.nan)
    for b, steps in _real_steps(traj, J):
        reached = [i for i, k in enumerate(lags) if k <= steps.shape[1]]
        if reached:
            times = [steps.shape[1] - lags[i] for i in reached]
            found[np.ix_(b, reached)] = swept_log_singular_values(steps, times)
    ordered = np.sort(found, axis=0)  # NaN last; the lower of two in the middle, since −∞ and a number have no mean
    count = np.sum(~np.isnan(found), axis=0)
    middle = np.take_along_axis(ordered, np.maximum((count - 1) // 2, 0)[None], axis=0)[0]
    return middle


def _largest_exponent(traj: Trajectory, J: Array) -> float:
    """Return λ_1 in nats per step, mean over the sequences that have a step; NaN if none has."""
    found = np.full(len(J), np.nan)
    for b, steps in _real_steps(traj, J):
        found[b] = lyapunov_exponents(steps, 1, discard=steps.shape[1] // 10).exponents[:, 0]
    return float("nan") if np.isnan(found).all() else float(np.nanmean(found))


def _real_steps(traj: Trajectory, J: Array) -> list[tuple[list[int], Array]]:
    """Return (indices, Jacobians [·, T', n, n]) of sequences alike, steps that a mask leaves out taken away."""
    if traj.mask is None:
        return [(list(range(len(J))), J)]
    return [
        ([b], steps[taken][None]) for b, (steps, taken) in enumerate(zip(J, traj.mask, strict=False)) if taken.any()
    ]

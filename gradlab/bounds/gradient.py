"""The gradient itself: the interval it must lie in, clipping, and the penalty on steps that change its norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gradlab.bounds.arguments import logarithms
from gradlab.links import real_steps
from gradlab.validation import Array, finite, real_array, step_jacobian_array


def gradient_sandwich(log_singular_values: ArrayLike, log_gradient_norm: ArrayLike) -> tuple[Array, Array]:
    """Return the interval in which the gradient's norm must lie, for a loss at the last step only.

    ln σn(P_t) + ln‖g_T‖ ≤ ln‖∂L/∂h_t‖ = ln‖P_tᵀ g_T‖ ≤ ln σ1(P_t) + ln‖g_T‖, with g_T = ∂L/∂h_T.

    Args:
        log_singular_values: ln σ_i(P_t), all n of them, descending [B, T, n] or [T, n].
        log_gradient_norm: ln‖g_T‖ [B] or a scalar.

    Returns:
        (lower, upper), each [B, T] (or [T]) in nats.

    Raises:
        ValueError: shapes that do not fit, or NaN or +∞.
        TypeError: entries that are not real numbers.

    Source:
        The variational characterisation of σ1 and σn.

    Example:
        >>> lower, upper = gradient_sandwich([[2.0, -3.0]], 1.0)
        >>> float(lower[0]), float(upper[0])
        (-2.0, 3.0)
    """
    values = logarithms("log_singular_values", log_singular_values)
    norm = logarithms("log_gradient_norm", log_gradient_norm)
    if values.ndim not in (2, 3) or 0 in values.shape or norm.shape not in ((), values.shape[:-2]):
        raise ValueError(
            "log_singular_values must be [batch, time, n] or [time, n] and log_gradient_norm [batch] or a scalar,"
            f" got shapes {values.shape} and {norm.shape}"
        )
    norm = norm[..., None]
    return values[..., -1] + norm, values[..., 0] + norm


def clip_gradient(gradient: ArrayLike, threshold: float) -> Array:
    """Return the gradient, its norm clipped.

    g ← θ g/‖g‖ where ‖g‖ > θ, else g: the norm is then at most θ, the direction is kept, and clipping again changes
    nothing (all to rounding).

    Args:
        gradient: g [..., p], each vector along the last axis by itself; flatten and join all parameters for the global
            norm.
        threshold: θ > 0.

    Returns:
        The clipped gradient, the same shape.

    Raises:
        ValueError: entries that are not finite, a scalar, or a threshold that is not positive and finite.
        TypeError: entries that are not real numbers.

    Source:
        Pascanu, Mikolov & Bengio 2013.

    Example:
        >>> clip_gradient([[3.0, 4.0], [0.3, 0.4]], 1.0)
        array([[0.6, 0.8],
               [0.3, 0.4]])
    """
    g = finite("gradient", real_array("gradient", gradient))
    theta = real_array("threshold", threshold)
    if g.ndim == 0:
        raise ValueError("gradient must be [..., parameters], got a scalar")
    if theta.ndim != 0 or not 0 < theta < np.inf:
        raise ValueError(f"threshold must be a single number, positive and finite, got {threshold!r}")
    largest = np.abs(g).max(axis=-1, keepdims=True, initial=0.0)
    unit = g / np.where(largest > 0, largest, 1.0)  # no square of 1e200 overflows
    size = np.linalg.norm(unit, axis=-1, keepdims=True)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.where(size * largest > theta, unit / size * theta, g)


def norm_preservation_penalty(J: ArrayLike, gradients: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Return Ω, the penalty on steps that change the norm of the gradient that passes through them.

    Ω = Σ_s (‖g_s J_s‖/‖g_s‖ − 1)² ≥ 0 with g_s = ∂L/∂h_s and g_s J_s = J_sᵀ g_s what comes back to h_{s−1}. It is 0 for
    a linear network with an orthogonal W, whatever the loss.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        gradients: ∂L/∂h_t at t = 0 … T [B, T+1, n] or [T+1, n] (`state_gradients(...).total`); of each only the
            direction counts, and that at t = 0 does not.
        mask: True where the step is real [B, T] (or [T]); a masked step costs nothing.

    Returns:
        Ω [B] (or a scalar); NaN where some g_s of a real step is exactly zero: it has no direction.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Pascanu, Mikolov & Bengio 2013.

    Example:
        >>> J = np.array([np.diag([1.0, 2.0])] * 2)
        >>> float(norm_preservation_penalty(J, [[0.0, 4.0], [0.0, 2.0], [0.0, 1.0]]))
        2.0
    """
    steps, single = step_jacobian_array(J)
    B, T, n, _ = steps.shape
    g = finite("gradients", real_array("gradients", gradients))
    g = g[None] if single and g.ndim == 2 else g
    if g.shape != (B, T + 1, n):
        raise ValueError(f"gradients must be [batch, time + 1, n] = {(B, T + 1, n)} like J, got shape {g.shape}")
    real = real_steps(mask, (B, T))
    largest = np.abs(g[:, 1:]).max(axis=-1, keepdims=True)
    direction = g[:, 1:] / np.where(largest > 0, largest, 1.0)
    size = np.linalg.norm(direction, axis=-1)
    back = np.linalg.norm(np.einsum("btij,bti->btj", steps, direction), axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(size > 0, back / size, np.nan)
    total = np.where(real, (ratio - 1) ** 2, 0.0).sum(axis=-1)
    return total[0] if single else total

"""Rigorous bounds on ∂h_T/∂h_t: what must hold on this trajectory, up to rounding.

Every array over time has t = 0 … T−1 on its time axis and speaks of P_t = J_T ··· J_{t+1}, so sums run from the
end. All values are natural logarithms; −∞ is the logarithm of an exact zero. A step that a mask leaves out is
the identity: it adds nothing and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.blas import one_blas_thread
from gradlab.links import (
    check_step_bounds,
    log_abs_determinants,
    log_norms,
    log_smallest,
    log_zero,
    real_steps,
    sum_from_end,
    times,
)
from gradlab.validation import Array, finite, real_array, square_matrix, step_jacobian_array

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Chain:
    """Upper bounds of ln σ1(P_t), each looser than the one before; [B, T], or [T] for one sequence.

    Attributes:
        step_norms: Σ_s ln‖J_s‖₂.
        slopes: Σ_s ln(max_i |φ'(a_{s,i})| σ1(W)), or None without `recurrent_matrix` and `slopes`.
        promise: k ln(γ σ1(W)), or None without `recurrent_matrix` and `slope_supremum`.
        log_step_norms: ln‖J_s‖₂ of each step by itself (array index s holds step s+1), 0 where masked.
        lags: k, the number of steps from t to T that count.
    """

    step_norms: Array
    slopes: Array | None
    promise: Array | None
    log_step_norms: Array
    lags: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LowerEnd:
    """Lower bounds of ln σn(P_t), the second looser than the first; [B, T], or [T] for one sequence.

    Attributes:
        step_values: Σ_s ln σn(J_s).
        slopes: Σ_s ln min_i |φ'(a_{s,i})| + k ln σn(W), or None without `recurrent_matrix` and `slopes`.
    """

    step_values: Array
    slopes: Array | None


@dataclass(frozen=True, eq=False)
class LatchingCertificate:
    """Whether every step of a sequence contracts, and what that implies.

    Attributes:
        eta: η = max_s ‖J_s‖₂, [B] or a scalar; 1 where the mask leaves no step.
        certified: η < 1 beyond rounding, [B] or a scalar.
        log_bound: k ln η ≥ ln‖P_t‖, [B, T] or [T]; it holds whether or not η < 1.
    """

    eta: Array
    certified: NDArray[np.bool_]
    log_bound: Array


def chain(
    J: ArrayLike,
    *,
    recurrent_matrix: ArrayLike | None = None,
    slopes: ArrayLike | None = None,
    slope_supremum: float | None = None,
    mask: ArrayLike | None = None,
) -> Chain:
    """Return the chain of upper bounds on the largest singular value of ∂h_T/∂h_t.

    ln σ1(P_t) ≤ Σ_s ln‖J_s‖ ≤ Σ_s ln(max_i |φ'(a_{s,i})| σ1(W)) ≤ k ln(γ σ1(W)), with s = t+1 … T, k = T − t.

    The first link holds for any J. The other two suppose J_s = diag(φ'(a_s)) W with one fixed W (the plain
    recurrent network; not an LSTM, a GRU or a leaky unit) and |φ'| ≤ γ. So σ1(W) < 1/γ suffices for vanishing
    gradients and σ1(W) > 1/γ is necessary for exploding ones. The spectral radius of W does neither.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        recurrent_matrix: W as it acts, a = W h [n, n]; a Keras `recurrent_kernel` is its transpose.
        slopes: φ'(a_t) [B, T, n] (or [T, n] with J [T, n, n]).
        slope_supremum: γ = sup|φ'|: 1 for tanh and ReLU, ¼ for the logistic function.
        mask: True where the step is real [B, T] (or [T]); None: all are.

    Returns:
        A `Chain` of logarithms in nats, [B, T] (or [T]).

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, or a slope above `slope_supremum`.
        TypeError: entries that are not real numbers.

    Source:
        Pascanu, Mikolov & Bengio 2013.

    Example:
        >>> import numpy as np
        >>> W, slopes = np.array([[0.0, 0.8], [0.4, 0.0]]), np.array([[0.5, 1.0], [1.0, 0.5]])
        >>> links = chain(slopes[:, :, None] * W, recurrent_matrix=W, slopes=slopes, slope_supremum=1.0)
        >>> np.exp(links.step_norms).round(6), np.exp(links.promise).round(6)
        (array([0.32, 0.8 ]), array([0.64, 0.8 ]))
    """
    steps, single = step_jacobian_array(J)
    real = real_steps(mask, steps.shape[:2])
    lags = real[:, ::-1].cumsum(axis=1)[:, ::-1]
    gamma = _supremum(slope_supremum, slopes)
    with one_blas_thread():
        norms = np.where(real, log_norms(steps), 0.0)
        links = promise = None
        if recurrent_matrix is not None:
            matrix = _recurrent(recurrent_matrix, steps.shape[-1])
            log_sigma = log_norms(matrix)
            if slopes is not None:
                largest = log_zero(_slopes(slopes, steps.shape[:3]).max(axis=-1))
                links = sum_from_end(np.where(real, largest + log_sigma, 0.0))
                check_step_bounds(norms, np.where(real, largest + log_sigma, np.inf), steps.shape[-1])
            if gamma is not None:
                promise = times(lags, np.log(gamma) + log_sigma)
                check_step_bounds(norms, np.where(real, np.log(gamma) + log_sigma, np.inf), steps.shape[-1])
    if single:
        return Chain(
            step_norms=sum_from_end(norms)[0],
            slopes=None if links is None else links[0],
            promise=None if promise is None else promise[0],
            log_step_norms=norms[0],
            lags=lags[0],
        )
    return Chain(sum_from_end(norms), links, promise, norms, lags)


def lower_end(
    J: ArrayLike,
    *,
    recurrent_matrix: ArrayLike | None = None,
    slopes: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> LowerEnd:
    """Return lower bounds of the smallest singular value of ∂h_T/∂h_t.

    ln σn(P_t) ≥ Σ_s ln σn(J_s) ≥ Σ_s ln min_i |φ'(a_{s,i})| + k ln σn(W). The first link holds for any J, the
    second for J_s = diag(φ'(a_s)) W.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        recurrent_matrix: W as it acts [n, n].
        slopes: φ'(a_t) [B, T, n] (or [T, n]).
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        A `LowerEnd`, [B, T] (or [T]). Values of σn(J_s) far below σ1(J_s) come from a Jacobi method, accurate
        where a step is diag(φ') times a well-conditioned matrix, however saturated.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        σn(AB) ≥ σn(A) σn(B): Horn & Johnson 1991, Topics in Matrix Analysis, chapter 3.

    Example:
        >>> import numpy as np
        >>> lower_end(np.array([np.diag([2.0, 0.5])] * 2)).step_values / np.log(2)
        array([-2., -1.])
    """
    steps, single = step_jacobian_array(J)
    real = real_steps(mask, steps.shape[:2])
    with one_blas_thread():
        values = sum_from_end(np.where(real, log_smallest(steps), 0.0))
        links = None
        if recurrent_matrix is not None and slopes is not None:
            log_sigma = log_smallest(_recurrent(recurrent_matrix, steps.shape[-1])[None, None])[0, 0]
            smallest = log_zero(_slopes(slopes, steps.shape[:3]).min(axis=-1))
            links = sum_from_end(np.where(real, smallest + log_sigma, 0.0))
    if single:
        return LowerEnd(values[0], None if links is None else links[0])
    return LowerEnd(values, links)


def log_determinant(J: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Return ln|det ∂h_T/∂h_t|, which the logarithms of all its singular values must sum to.

    Σ_i ln σ_i(P_t) = Σ_s ln|det J_s|: an identity, for any J.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        [B, T] (or [T]) in nats; −∞ where a step is singular.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Multiplicativity of the determinant.

    Example:
        >>> import numpy as np
        >>> log_determinant(np.array([np.diag([2.0, 4.0])] * 2)) / np.log(2)
        array([6., 3.])
    """
    steps, single = step_jacobian_array(J)
    real = real_steps(mask, steps.shape[:2])
    with one_blas_thread():
        total = sum_from_end(np.where(real, log_abs_determinants(steps), 0.0))
    return total[0] if single else total


def log_determinant_from_slopes(
    recurrent_matrix: ArrayLike, slopes: ArrayLike, *, mask: ArrayLike | None = None
) -> Array:
    """Return ln|det ∂h_T/∂h_t| of a plain recurrent network from its slopes and its recurrent matrix.

    Σ_i ln σ_i(P_t) = Σ_s Σ_i ln|φ'(a_{s,i})| + k ln|det W|, for J_s = diag(φ'(a_s)) W.

    Args:
        recurrent_matrix: W as it acts [n, n].
        slopes: φ'(a_t) [B, T, n] or [T, n].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        [B, T] (or [T]) in nats; −∞ where a unit is dead or W singular.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Multiplicativity of the determinant.

    Example:
        >>> log_determinant_from_slopes([[1.0]], [[0.0], [1.0]])
        array([-inf,   0.])
    """
    matrix = square_matrix("recurrent_matrix", recurrent_matrix)
    phi = np.abs(finite("slopes", real_array("slopes", slopes)))
    if phi.ndim not in (2, 3) or phi.shape[-1] != len(matrix) or 0 in phi.shape:
        raise ValueError(
            f"slopes must be [batch, time, {len(matrix)}] or [time, {len(matrix)}], got shape {phi.shape};"
            " one slope for each row of the recurrent matrix"
        )
    single = phi.ndim == 2
    phi = phi[None] if single else phi
    real = real_steps(mask, phi.shape[:2])
    with one_blas_thread():
        per_step = log_zero(phi).sum(axis=-1) + log_abs_determinants(matrix)
    total = sum_from_end(np.where(real, per_step, 0.0))
    return total[0] if single else total


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
    values = _logs("log_singular_values", log_singular_values)
    norm = _logs("log_gradient_norm", log_gradient_norm)
    if values.ndim not in (2, 3) or 0 in values.shape or norm.shape not in ((), values.shape[:-2]):
        raise ValueError(
            "log_singular_values must be [batch, time, n] or [time, n] and log_gradient_norm [batch] or a scalar,"
            f" got shapes {values.shape} and {norm.shape}"
        )
    norm = norm[..., None]
    return values[..., -1] + norm, values[..., 0] + norm


def latching_certificate(J: ArrayLike, mask: ArrayLike | None = None) -> LatchingCertificate:
    """Return whether every step contracts, which latches the state and makes the gradient vanish.

    η = max_s ‖J_s‖₂ along the trajectory. If η < 1, then ‖P_t‖ ≤ η^k: information once stored is robust to
    noise, and for the same reason its gradient vanishes.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        A `LatchingCertificate`. Its `certified` wants η < 1 − 4nε, so that an orthogonal J is not certified by
        rounding.

    Raises:
        ValueError: shapes that do not fit or entries that are not finite.
        TypeError: entries that are not real numbers.

    Source:
        Bengio, Simard & Frasconi 1994.

    Example:
        >>> import numpy as np
        >>> c = latching_certificate(0.5 * np.ones((4, 1, 1)))
        >>> bool(c.certified), float(c.eta), c.log_bound / np.log(2)
        (True, 0.5, array([-4., -3., -2., -1.]))
    """
    links = chain(J, mask=mask)
    norms, lags = np.atleast_2d(links.log_step_norms), np.atleast_2d(links.lags)
    real = real_steps(mask, norms.shape)
    log_eta = np.where(real.any(axis=1), np.where(real, norms, -np.inf).max(axis=1), 0.0)
    bound = times(lags, log_eta[:, None])
    certified = log_eta < -4 * np.shape(J)[-1] * EPS
    if np.ndim(J) == 3:
        return LatchingCertificate(np.exp(log_eta[0]), certified[0], bound[0])
    return LatchingCertificate(np.exp(log_eta), certified, bound)


def latching_threshold(w: ArrayLike) -> Array:
    """Return the largest input under which a single tanh unit keeps its sign for ever.

    For a_t = w tanh(a_{t−1}) + u_t with w > 1, the sign of a is kept while |u_t| < u*,
    u* = w√(1 − 1/w) − artanh √(1 − 1/w): the distance from the diagonal to the map at its points of slope one.

    Args:
        w: self-connection, > 1, of any shape.

    Returns:
        u* of the same shape.

    Raises:
        ValueError: w ≤ 1, where the unit has one attractor and latches nothing, or w not finite.
        TypeError: w is not real.

    Source:
        Bengio, Simard & Frasconi 1994.

    Example:
        >>> round(float(latching_threshold(2.0)), 12)
        0.532839975354
    """
    weight = finite("w", real_array("w", w))
    if not (weight > 1).all():
        raise ValueError(f"w must be greater than 1, got {weight.min()}; a weaker unit cannot latch")
    s = np.sqrt((weight - 1) / weight)
    # near w = 1 both terms are s and cancel: u* = Σ_j s^{2j+3} 2(j+1)/(2j+3), 12 terms reach 0.2^24 = 2e-17
    series = s**3 * np.polynomial.polynomial.polyval(s * s, [2 * (j + 1) / (2 * j + 3) for j in range(12)])
    return np.where(s < 0.2, series, weight * s - np.log((1 + s) * np.sqrt(weight)))  # artanh, for s → 1 too


def _recurrent(matrix: ArrayLike, n: int) -> Array:
    W = square_matrix("recurrent_matrix", matrix)
    if len(W) != n:
        raise ValueError(
            f"recurrent_matrix must be [{n}, {n}] like the Jacobians, got shape {W.shape};"
            " this bound is for a plain recurrent layer, leave the matrix out for gated or stacked cells"
        )
    return W


def _slopes(slopes: ArrayLike, shape: tuple[int, ...]) -> Array:
    phi = finite("slopes", real_array("slopes", slopes))
    if phi.ndim == 2 and shape[0] == 1:
        phi = phi[None]
    if phi.shape != tuple(shape):
        raise ValueError(f"slopes must be [batch, time, n] = {tuple(shape)} like the Jacobians, got shape {phi.shape}")
    return np.abs(phi)


def _supremum(slope_supremum: float | None, slopes: ArrayLike | None) -> float | None:
    if slope_supremum is None:
        return None
    gamma = float(slope_supremum)
    if not 0 < gamma < np.inf:
        raise ValueError(f"slope_supremum must be positive and finite, got {slope_supremum}; it is 1 for tanh")
    if slopes is not None:
        largest = float(np.abs(real_array("slopes", slopes)).max(initial=0.0))
        if largest > gamma * (1 + 1e-12):
            raise ValueError(f"slopes reach {largest}, above slope_supremum = {gamma}; give the activation's supremum")
    return gamma


def _logs(name: str, value: ArrayLike) -> Array:
    array = real_array(name, value)
    if np.isnan(array).any() or (array == np.inf).any():
        raise ValueError(f"{name} must be finite or −∞ (the logarithm of zero), got NaN or +∞")
    return array

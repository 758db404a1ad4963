"""The largest and the smallest singular value of ∂h_T/∂h_t, bounded by those of its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.blas import one_blas_thread
from gradlab.bounds.arguments import recurrent_like, slopes_like, summed_back, supremum_above
from gradlab.links import check_step_bounds, log_norms, log_smallest, log_zero, real_steps, sum_from_end, times
from gradlab.validation import Array, step_jacobian_array


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
    gamma = supremum_above(slope_supremum, slopes)
    with one_blas_thread():
        norms = np.where(real, log_norms(steps), 0.0)
        links = promise = None
        if recurrent_matrix is not None:
            matrix = recurrent_like(recurrent_matrix, steps.shape[-1])
            log_sigma = log_norms(matrix)
            if slopes is not None:
                largest = log_zero(slopes_like(slopes, steps.shape[:3]).max(axis=-1))
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
            log_sigma = log_smallest(recurrent_like(recurrent_matrix, steps.shape[-1])[None, None])[0, 0]
            smallest = log_zero(slopes_like(slopes, steps.shape[:3]).min(axis=-1))
            links = sum_from_end(np.where(real, smallest + log_sigma, 0.0))
    if single:
        return LowerEnd(values[0], None if links is None else links[0])
    return LowerEnd(values, links)


def induced_norm_bound(J: ArrayLike, order: float, *, mask: ArrayLike | None = None) -> Array:
    """Return the first link of the chain in another induced norm.

    ln‖P_t‖_p ≤ Σ_s ln‖J_s‖_p for p = 1 (largest column sum), 2 and ∞ (largest row sum). It is an upper bound of
    ln|λ_1(P_t)|, too, and within ½ ln n of one of ln σ1(P_t): ‖P‖₂ ≤ √n ‖P‖_1 and ≤ √n ‖P‖_∞.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n].
        order: p: 1, 2 or `math.inf`.
        mask: True where the step is real [B, T] (or [T]).

    Returns:
        Σ_s ln‖J_s‖_p [B, T] (or [T]) in nats; −∞ where a step is zero.

    Raises:
        ValueError: shapes that do not fit, entries that are not finite, or another `order`.
        TypeError: entries that are not real numbers.

    Source:
        Pascanu, Mikolov & Bengio 2013; an induced norm is submultiplicative.

    Example:
        >>> import numpy as np
        >>> np.exp(induced_norm_bound([[[0.0, 0.5], [0.5, 0.0]]] * 2, np.inf))
        array([0.25, 0.5 ])
    """
    if order not in (1, 2, np.inf):
        raise ValueError(f"order must be 1, 2 or infinity, the induced norms that have a formula, got {order!r}")
    steps, single = step_jacobian_array(J)
    real = real_steps(mask, steps.shape[:2])
    with one_blas_thread():
        return summed_back(log_norms(steps, order), real, single)

"""Growth of ∂h_T/∂h_t with the lag, as the largest Lyapunov exponent has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.validation import Array, finite, lag_array, positive_integer, real_array

CONFIDENCE = 1.96  # standard errors at which a sign counts as settled: 95 %


@dataclass(frozen=True, eq=False)
class JacobianGrowth:
    """What the largest Lyapunov exponent predicts of ‖∂h_T/∂h_t‖.

    Attributes:
        log_norm: λ1 k, with λ1 and the lags broadcast [..., *lags], nats.
        standard_error: of ln‖P_t‖ at one lag, SE(λ1) √(N k): a random walk whose steps add up to SE(λ1) over N.
        diverges: λ1 > 0 beyond 1.96 standard errors: chaos, gradients explode at this rate [...].
        bounded: λ1 < 0 beyond 1.96 standard errors: a stable fixed point or cycle, gradients vanish [...].
    """

    log_norm: Array
    standard_error: Array
    diverges: NDArray[np.bool_]
    bounded: NDArray[np.bool_]


def jacobian_growth(exponent: ArrayLike, standard_error: ArrayLike, lags: ArrayLike, *, steps: int) -> JacobianGrowth:
    """Return how the norm of ∂h_T/∂h_t grows with the lag, from the largest Lyapunov exponent.

    ln‖P_t‖ ≈ λ1 k: with λ1 > 0 the norm diverges, and the slope of ln‖P_t‖ over k is λ1 within its standard error, on
    chaotic trajectories of *any* recurrent network, whatever its architecture. Stable fixed points and cycles, λ1 < 0,
    bound it. The bias is O(1) in ln‖P_t‖, so O(1/k) in the rate; the fluctuation is O(√k), from the standard error with
    which λ1 was measured.

    Args:
        exponent: λ1 in nats per step [...], as `lyapunov_exponents(J).exponents[..., 0]`.
        standard_error: of λ1, the same shape (0 where λ1 is known).
        lags: k = T − t, of any shape.
        steps: N, over how many steps λ1 was averaged.

    Returns:
        A `JacobianGrowth`. Where neither `diverges` nor `bounded` holds, the sign is not settled.

    Raises:
        ValueError: shapes that differ, a negative error or lag, or entries that are not finite.
        TypeError: entries that are not real numbers, lags or steps that are not integers.

    Source:
        Mikhaeil, Monfared & Durstewitz 2022; Oseledets 1968.

    Example:
        >>> growth = jacobian_growth([0.1, -0.2], [0.01, 0.01], [25, 100], steps=400)
        >>> growth.log_norm
        array([[  2.5,  10. ],
               [ -5. , -20. ]])
        >>> growth.standard_error[0], growth.diverges, growth.bounded
        (array([1., 2.]), array([ True, False]), array([False,  True]))
    """
    rate = finite("exponent", real_array("exponent", exponent))
    error = finite("standard_error", real_array("standard_error", standard_error))
    k, N = lag_array(lags), positive_integer("steps", steps)
    if rate.shape != error.shape:
        raise ValueError(f"exponent and standard_error must have one shape, got {rate.shape} and {error.shape}")
    if (error < 0).any():
        raise ValueError(f"standard_error must not be negative, got {error.min()}")
    return JacobianGrowth(
        np.multiply.outer(rate, k.astype(np.float64)),
        np.multiply.outer(error, np.sqrt(N * k)),
        np.asarray(rate > CONFIDENCE * error),
        np.asarray(rate < -CONFIDENCE * error),
    )

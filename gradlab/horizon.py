"""How far back floating point sees: the lag at which a product formed in the open loses each singular value."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from gradlab.blas import one_blas_thread
from gradlab.products import log_singular_values
from gradlab.validation import Array, step_jacobian_array

TOLERANCE = 0.1  # nats: a singular value that is wrong by a tenth of itself is no longer measured
CHUNK_BYTES = 1 << 22  # products that wait for one batched SVD


def reliability_horizon(
    J: ArrayLike,
    dtype: DTypeLike = np.float32,
    *,
    tolerance: float = TOLERANCE,
    exact: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Return the lag from which on an explicitly formed product has lost each singular value.

        k_i = min{k : |ln σ̂_i(k') − ln σ_i(k')| > tolerance for every lag k' with k ≤ k' ≤ T}

    σ_i(k) is the i-th singular value of ∂h_T/∂h_{T−k} as `log_singular_values` gives it; σ̂_i(k) is what one gets in
    `dtype` by the obvious way: J_s rounded to `dtype`, P ← P·J_s, and an SVD of P, everything in `dtype`. What that way
    gets right again at a longer lag is not lost. A σ̂ that underflowed to 0, one of a product that overflowed, and a
    rounding error in place of an exact zero (dead units) are wrong at any tolerance.

    The rule of thumb: the value is lost where σ_i falls below σ_1 times the rounding unit (6e-8 in float32, 1.1e-16
    in float64), and every one is where the whole product leaves the range of `dtype`.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n], rows = outputs.
        dtype: float32 or float64.
        tolerance: in nats, positive; 0.1 is a tenth of the value.
        exact: ln σ [B, T, n] (or [T, n]) of these J, if it is known already; computed if not.
        mask: [B, T] (or [T]), False where a step does not count and J is the identity: lags count the other steps.

    Returns:
        int64 [B, n] (or [n]), in steps, i in the order of `log_singular_values`: 1 for a value that a single step gets
        wrong, and one more than the number of steps that count for a value that is right at the longest lag.

    Raises:
        ValueError: wrong shape of J, `exact` or `mask`, NaN or infinity in J, a dtype that is neither float32 nor
            float64, a tolerance that is not positive.
        TypeError: J is not real, a mask that is not boolean.

    Source:
        The rule of thumb is Weyl's inequality, |σ̂_i − σ_i| ≤ ‖P̂ − P‖, with the rounding of a matrix product (Higham
        2002, section 3.5).

    Example:
        >>> import numpy as np
        >>> J = np.repeat(np.array([[0.55, 0.45], [0.45, 0.55]])[None], 60, axis=0)    # σ_1 = 1, σ_2 = 10^−k
        >>> single, double = (reliability_horizon(J, dtype) for dtype in ("float32", "float64"))
        >>> bool(single[0] == double[0] == 61), bool(6 <= single[1] <= 9), bool(14 <= double[1] <= 18)
        (True, True, True)
    """
    array, single = step_jacobian_array(J)
    precision = np.dtype(dtype)
    if precision not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64, got {precision}; LAPACK has no SVD in any other real one")
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be a positive number of nats, got {tolerance!r}")
    steps = _lags(mask, array.shape[:2], single)
    truth = _checked_exact(exact, array.shape[:3], single) if exact is not None else log_singular_values(array)
    formed = _formed_log_singular_values(array, precision)
    with np.errstate(invalid="ignore"):
        right = (np.abs(formed - truth) <= tolerance) | (formed == truth)  # −∞ = −∞; NaN is never right
    # at a masked step nothing happens, and its index stands for the lag that was reached before
    last = np.where(right, steps[:, :, None], 0).max(axis=1)
    horizon: NDArray[np.int64] = last + 1
    return horizon[0] if single else horizon


def _formed_log_singular_values(J: Array, dtype: np.dtype[Any]) -> Array:
    """Return ln σ of the products as `dtype` forms and factors them, [B, T, n]; NaN where they left its range."""
    B, T, n, _ = J.shape
    ln_s = np.empty((B, T, n))
    P = np.broadcast_to(np.eye(n, dtype=dtype), (B, n, n))
    chunk = max(1, CHUNK_BYTES // (B * n * n * dtype.itemsize))
    with one_blas_thread(), np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        for stop in range(T, 0, -chunk):
            first = max(0, stop - chunk)
            formed = np.empty((B, stop - first, n, n), dtype)
            for s in range(stop - 1, first - 1, -1):
                P = P @ J[:, s].astype(dtype)
                formed[:, s - first] = P
            finite = np.isfinite(formed).all(axis=(2, 3))
            formed[~finite] = 0.0  # LAPACK raises on what is not finite
            values = np.log(_values(formed).astype(np.float64))
            values[~finite] = np.nan
            ln_s[:, first:stop] = values
    return ln_s


def _values(P: NDArray[Any]) -> NDArray[Any]:
    """Return the singular values [B, K, n] of P [B, K, n, n] in its own dtype; NaN where LAPACK does not converge."""
    try:
        return np.asarray(np.linalg.svd(P, compute_uv=False))
    except np.linalg.LinAlgError:  # it names no matrix
        values = np.full(P.shape[:-1], np.nan, P.dtype)
        for place in np.ndindex(P.shape[:2]):
            with contextlib.suppress(np.linalg.LinAlgError):
                values[place] = np.linalg.svd(P[place], compute_uv=False)
        return values


def _lags(mask: ArrayLike | None, shape: tuple[int, ...], single: bool) -> NDArray[np.int64]:
    """Return how many steps count after t, [B, T] at t = 0 … T−1."""
    if mask is None:
        taken = np.ones(shape, bool)
    else:
        taken = np.asarray(mask)
        expected = shape[1:] if single else shape
        if taken.shape != expected:
            raise ValueError(f"mask must be of shape {expected}, as J is, got shape {taken.shape}")
        if taken.dtype != np.bool_:
            raise TypeError(f"mask must be boolean, True where a step counts, got {taken.dtype}; use mask.astype(bool)")
    lags: NDArray[np.int64] = np.cumsum(taken.reshape(shape)[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]
    return lags


def _checked_exact(exact: ArrayLike, shape: tuple[int, ...], single: bool) -> Array:
    """Return ln σ [B, T, n] as it was given, −∞ allowed."""
    values = np.asarray(exact, np.float64)
    expected = shape[1:] if single else shape
    if values.shape != expected:
        raise ValueError(
            f"exact must be ln σ of shape {expected}, got shape {values.shape}; log_singular_values(J) makes it"
        )
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError("exact must hold ln σ, finite or −∞, got NaN or +∞; log_singular_values(J) makes it")
    return values.reshape(shape)

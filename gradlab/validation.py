"""What enters gradlab is checked here, once: each error says what was expected, what came and what to do."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def real_array(name: str, value: ArrayLike) -> Array:
    """Return `value` as a float64 array, or say why it is not one.

    Raises:
        TypeError: complex, boolean, text or object entries.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}; convert it to float64 first")
    return array.astype(np.float64, copy=False)


def finite(name: str, array: Array, axes: tuple[str, ...] = ()) -> Array:
    """Return `array` unchanged, or name the first place that holds NaN or infinity.

    Args:
        name: what the array is called in the message.
        array: the numbers.
        axes: names of the leading axes, used to say where the bad entry is ("batch", "time").

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    good = np.isfinite(array)
    if not good.all():
        place = np.unravel_index(int(np.argmin(good)), array.shape)
        labels = [*axes, *("index" for _ in place[len(axes) :])]
        where = ", ".join(f"{label} {int(i)}" for label, i in zip(labels, place, strict=False))
        raise ValueError(
            f"{name} must be finite, got {array[place]} at {where or 'the only entry'}"
            f" ({int((~good).sum())} of {array.size} entries); remove or rescale it"
        )
    return array


def square_matrix(name: str, value: ArrayLike) -> Array:
    """Return `value` as a finite float64 matrix [n, n] with n ≥ 1.

    Raises:
        ValueError: wrong rank, not square, empty, or not finite.
        TypeError: not real numbers.
    """
    matrix = real_array(name, value)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(
            f"{name} must be a square matrix [n, n], got shape {matrix.shape};"
            " a Keras recurrent_kernel of a gated cell holds several gates side by side: pass one block"
        )
    return finite(name, matrix, ("row", "column"))


def step_jacobian_array(J: ArrayLike) -> tuple[Array, bool]:
    """Return (J as float64 [B, T, n, n], whether it came as [T, n, n] without a batch axis).

    Raises:
        ValueError: wrong rank, not square, an empty axis, or not finite (names batch and step).
        TypeError: not real numbers.
    """
    array = real_array("J", J)
    single = array.ndim == 3
    if single:
        array = array[None]
    if array.ndim != 4 or array.shape[2] != array.shape[3]:
        raise ValueError(
            f"J must be step Jacobians [batch, time, n, n] or [time, n, n], got shape {np.shape(J)};"
            " gl.step_jacobians(traj) makes them"
        )
    if 0 in array.shape:
        raise ValueError(f"J must have at least one sequence, one step and one unit, got shape {np.shape(J)}")
    check_finite_steps(array)
    return array, single


def check_finite_steps(J: Array, first: int = 0) -> None:
    """Raise unless step Jacobians [B, K, n, n] are finite; `first` is the array index that their first step has.

    Raises:
        ValueError: not finite (names batch and step).
    """
    good = np.isfinite(J).all(axis=(2, 3))
    if not good.all():
        b, s = (int(i) for i in np.unravel_index(int(np.argmin(good)), good.shape))
        raise ValueError(
            f"J must be finite, got NaN or infinity at batch {b}, step {first + s + 1} (array index {first + s});"
            " shorten the sequence or lower the gain so that the trajectory stays finite"
        )


def positive_integer(name: str, value: Any) -> int:
    """Return `value` as an int ≥ 1.

    Raises:
        TypeError: not an integer.
        ValueError: less than one.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a positive integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """Return `value` as a float in (0, ∞).

    Raises:
        ValueError: not a number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 < float(value) < np.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)


def update_rates(leak: Any, residual: Any) -> tuple[float | None, float | None]:
    """Return (leak, residual) of a simple network's update as floats, None for what is not given.

    Raises:
        ValueError: a leak outside (0, 1], a residual that is not positive and finite, or both given.
    """
    if leak is not None and residual is not None:
        raise ValueError(f"leak={leak} and residual={residual} are two updates of one state; give one of them")
    if leak is not None and positive_number("leak", leak) > 1.0:
        raise ValueError(f"leak must be a number in (0, 1], got {leak!r}")
    return None if leak is None else float(leak), None if residual is None else positive_number("residual", residual)


def lag_array(lags: ArrayLike) -> NDArray[np.int64]:
    """Return lags as integers ≥ 0, of any shape.

    Raises:
        TypeError: not integers.
        ValueError: a negative lag.
    """
    array = np.asarray(lags)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lags must be integers, got dtype {array.dtype}; count the steps from t to T")
    if (array < 0).any():
        raise ValueError(f"lags must not be negative, got {array.min()}; a lag is the number of steps from t to T")
    return array.astype(np.int64)

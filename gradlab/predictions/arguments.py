"""Checks of the single numbers that predictions take."""

from __future__ import annotations

import numpy as np

from gradlab.validation import real_array


def non_negative(name: str, value: float) -> float:
    """Return a number ≥ 0 whose square is finite."""
    number = real_array(name, value)
    if number.ndim != 0 or not 0 <= number < np.inf:
        raise ValueError(f"{name} must be a single number, finite and not negative, got {value!r}")
    if not np.isfinite(float(number) * float(number)):  # ** would raise
        raise ValueError(f"{name} must have a square that float64 holds, got {value!r}")
    return float(number)

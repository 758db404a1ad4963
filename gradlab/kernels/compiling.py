"""How Numba compiles the functions of this package, and keeps what it made."""

from __future__ import annotations

from typing import Any

from numba import njit


def compiled(function: Any) -> Any:
    """Compile when first called, to run without the interpreter's lock; kept on disk where a folder can be written to.

    Division by zero gives ∞, as in NumPy.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # nowhere to keep it
        return njit(nogil=True, error_model="numpy")(function)


def inlined(function: Any) -> Any:
    """Compile into whatever calls it: a call that hands over several arrays costs more than a short function does."""
    return njit(nogil=True, error_model="numpy", forceinline=True)(function)

"""LU, QR and triangular solves of stacks of small matrices by LAPACK, in place and without the interpreter's lock.

`numpy.linalg` has no LU, and its QR costs twice what LAPACK does at n = 32; the wrappers of `scipy.linalg.lapack` hold
the lock, so that threads gain nothing. SciPy exports the routines themselves for exactly this use
(`scipy.linalg.cython_lapack`, `scipy.linalg.cython_blas`), and ctypes calls them.

LAPACK wants columns one after another, NumPy has rows: every stack here holds the *transposes* of its matrices.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

from gradlab.validation import Array

PANEL = 8  # columns that blocked QR takes at a time; dgeqrf takes 32, which is too wide below n = 200 …
BLOCKED_FROM = 80  # … and where it pays: measured, 37 µs instead of 50 at n = 64, but 222 instead of 170 at n = 128


@functools.cache
def _routine(name: str) -> Callable[..., None]:
    """The LAPACK or BLAS routine of that name; every argument is the address of its value."""
    module = cython_lapack if name in cython_lapack.__pyx_capi__ else cython_blas
    capsule = module.__pyx_capi__[name]
    api: Any = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * signature.count(b"*"))
    return prototype(api.PyCapsule_GetPointer(capsule, signature))


def lu(At: Array) -> NDArray[np.int64]:
    """Factor each A = At[b]ᵀ as A[rows[b]] = L·U by partial pivoting, and put Lᵀ and Uᵀ in the place of At[b].

    The unit diagonal of L is not stored; an exactly zero pivot stays one, and what follows it is still factored.

    Returns:
        rows [N, n].
    """
    N, n = _check(At)
    getrf, laswp = _routine("dgetrf"), _routine("dlaswp")
    pivots, rows = np.empty((N, n), np.int32), np.tile(np.arange(n, dtype=np.float64), (N, 1))
    sizes = np.array([n, 1, 0], np.int32)  # the last takes LAPACK's report, which says no more than U's diagonal
    size = sizes.ctypes.data
    one, info = size + 4, size + 8
    at, pivot, row = At.ctypes.data, pivots.ctypes.data, rows.ctypes.data
    for _ in range(N):
        getrf(size, size, at, size, pivot, info)
        laswp(one, row, size, one, size, pivot, one)  # the exchanges, one after another, as a permutation
        at, pivot, row = at + 8 * n * n, pivot + 4 * n, row + 8 * n
    return rows.astype(np.int64)


def qr(At: Array) -> None:
    """Put Rᵀ of each A = At[b]ᵀ = Q·R on and below the diagonal of At[b]; what is left above it is no part of R."""
    N, n = _check(At)
    geqr2, geqrt = _routine("dgeqr2"), _routine("dgeqrt")
    reflectors, work = np.empty(PANEL * n), np.empty(PANEL * n)
    sizes = np.array([n, min(PANEL, n), 0], np.int32)
    size = sizes.ctypes.data
    panel, info = size + 4, size + 8
    at, scalars, space = At.ctypes.data, reflectors.ctypes.data, work.ctypes.data
    for _ in range(N):
        if n < BLOCKED_FROM:
            geqr2(size, size, at, size, scalars, space, info)
        else:
            geqrt(size, size, panel, at, size, scalars, panel, space, info)
        at += 8 * n * n


def divide_by_triangles(Bt: Array, Lt: Array, Rt: Array) -> None:
    """Replace each B = Bt[b]ᵀ by L⁻¹ · B · R⁻¹, for L = Lt[b]ᵀ unit lower and R = Rt[b]ᵀ upper triangular.

    What is on or above the diagonal of L, and below that of R, is not read.
    """
    N, n = _check(Bt)
    if _check(Lt) != (N, n) or _check(Rt) != (N, n):
        raise ValueError(f"expected stacks of one shape, got {Bt.shape}, {Lt.shape} and {Rt.shape}")
    trsm = _routine("dtrsm")
    letters, one, sizes = np.frombuffer(b"LRUN", np.uint8), np.ones(1), np.array([n], np.int32)
    left = lower = letters.ctypes.data
    right, upper, no = left + 1, left + 2, left + 3
    unit, alpha, size = upper, one.ctypes.data, sizes.ctypes.data
    at, by_left, by_right = Bt.ctypes.data, Lt.ctypes.data, Rt.ctypes.data
    for _ in range(N):
        trsm(left, lower, no, unit, size, size, alpha, by_left, size, at, size)
        trsm(right, upper, no, no, size, size, alpha, by_right, size, at, size)
        at, by_left, by_right = at + 8 * n * n, by_left + 8 * n * n, by_right + 8 * n * n


def _check(At: Array) -> tuple[int, int]:
    """(N, n) of a stack that LAPACK may write into: anything else would be memory corrupted."""
    if At.ndim != 3 or At.shape[1] != At.shape[2] or At.dtype != np.float64 or not At.flags.carray:
        raise ValueError(f"expected a writable contiguous float64 stack [N, n, n], got {At.dtype} {At.shape}")
    return At.shape[0], At.shape[1]

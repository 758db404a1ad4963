"""Singular values of ∂h_T/∂h_t at every lag, the small ones as exactly as the large."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dgejsv

from gradlab.graded import (
    GradedFactor,
    Integers,
    Scales,
    backward_sweep,
    descending,
    graded_qr,
    log2_abs,
    one_blas_thread,
    row_scales,
    unit_triangle,
)
from gradlab.validation import Array, step_jacobian_array

LN2 = float(np.log(2.0))

# Windows of rows, in bits below the topmost. dqds works on squares, so little more than 430 bits fit one LAPACK
# call; narrower windows are cheaper. Rows k bits apart change each other's singular values by 2^-2k: 30 bits are
# enough above a value that counts, and 60 below, where LAPACK's own rounding is felt as well.
WINDOW_BITS = 220.0
MARGIN_ABOVE = 30.0
MARGIN_BELOW = 60.0
NEGLIGIBLE = 2.0**-48  # the relative change of a singular value for which a coupling between rows may be dropped
CERTIFICATE = 2.0**-46  # the |Σ ln σ − Σ ln d| per row that plain LAPACK is allowed before Jacobi takes over
UNTRUSTED = 1e-6  # the |Σ ln σ − Σ ln|det J_s|| at which the user is told
CHUNK_BYTES = 1 << 20  # per array: a chunk of lags stays in a core's cache, and the memory stays bounded


@overload
def log_singular_values(J: ArrayLike, *, return_error: Literal[False] = False) -> Array: ...
@overload
def log_singular_values(J: ArrayLike, *, return_error: Literal[True]) -> tuple[Array, Array]: ...
@overload
def log_singular_values(J: ArrayLike, *, return_error: bool) -> Array | tuple[Array, Array]: ...


def log_singular_values(J: ArrayLike, *, return_error: bool = False) -> Array | tuple[Array, Array]:
    """All singular values of ∂h_T/∂h_t, for every t, in logarithms.

        ln σ_i(P_t),   P_t = ∂h_T/∂h_t = J_T ··· J_{t+1},   t = 0 … T−1

    Forming P_t and calling an SVD gets the largest right and loses the rest, since the values soon span more than
    float64 holds. Here the product is carried as orthogonal · exponents · well-conditioned (`gradlab.graded`), and
    every value is exact to about 1e-12 wherever the product is not ill-conditioned by itself.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n], rows = outputs; array index s holds J_{s+1}.
        return_error: also estimate the error, at twice the cost: everything runs again with a random orthogonal
            factor at the far end, which changes no singular value and all of the rounding. One draw may come out ten
            times too small now and then; it is a magnitude, not a bound.

    Returns:
        ln σ in nats [B, T, n] (or [T, n]), index t along time, descending in i. −∞ is an exact zero: dead units
        are counted, not guessed; or, with a warning, a value of which rounding left no digit. With `return_error`,
        (ln σ, |error of ln σ|) of the same shape.

    Raises:
        ValueError: wrong shape, an empty axis, NaN or infinity in J (named by batch and step).
        TypeError: J is not real.

    Warns:
        RuntimeWarning: a step Jacobian is singular to working precision without a zero row (a low-rank W), so that
            −∞ stands for values no different from zero in float64; or Σ_i ln σ_i(P_t) = Σ_s ln|det J_s| fails, so that
            some values are rounding noise, and `return_error=True` says which.

    Source:
        D. E. Stewart 1997 (graded QR of products); Bauer 2020 (stratification); Cox and Higham 1998 (row ordering);
        Drmač and Veselić 2008 (Jacobi).

    Example:
        >>> import numpy as np
        >>> J = np.repeat(np.diag([0.5, 1e-9])[None], 100, axis=0)
        >>> log_singular_values(J)[0] / np.log(10)    # 0.5^100 and 10^-900, which float64 cannot hold
        array([ -30.10299957, -900.        ])
    """
    array, single = step_jacobian_array(J)
    n = array.shape[-1]
    ln_s, singular, imbalance = _all_lags(array, np.eye(n))
    if singular:
        warnings.warn(
            "a step Jacobian is singular to working precision though none of its rows is zero (a low-rank or repeated"
            " weight): the singular values that vanish in rounding are returned as −∞",
            RuntimeWarning,
            stacklevel=2,
        )
    if not imbalance <= UNTRUSTED:
        warnings.warn(
            f"the singular values of a product miss its determinant by {imbalance:.1e} nats: the step Jacobians are too"
            " ill-conditioned for the smallest values; log_singular_values(J, return_error=True) says which to trust",
            RuntimeWarning,
            stacklevel=2,
        )
    if not return_error:
        return ln_s[0] if single else ln_s
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    again, *_ = _all_lags(array, rotation)
    error = np.abs(np.subtract(ln_s, again, out=np.zeros_like(ln_s), where=ln_s != again))
    return (ln_s[0], error[0]) if single else (ln_s, error)


# --- Over sequences and lags -------------------------------------------------------------------------------------


def _all_lags(J: Array, start: Array) -> tuple[Array, bool, float]:
    """(ln σ(P_tᵀ · start) [B, T, n], whether a pivot vanished, the largest failure of the determinant identity)."""
    B, T, n, _ = J.shape
    ln_s = np.empty((B, T, n))
    workers = _usable_cores()
    matrix_bytes = 8 * n * n
    sequences = max(1, min(-(-B // workers), CHUNK_BYTES // matrix_bytes))
    groups = [slice(b, min(b + sequences, B)) for b in range(0, B, sequences)]
    lags = max(1, CHUNK_BYTES // (matrix_bytes * sequences))

    def read_out(group: slice, first: int, factors: GradedFactor) -> bool:
        d, A, singular = _triangularise(factors)
        values = _log_values(d, A).reshape(-1, *ln_s[group, 0].shape)
        ln_s[group, first : first + len(values)] = values[::-1].swapaxes(0, 1)
        return bool(singular.any())

    def sweep(group: slice) -> bool:
        singular = False
        for item in backward_sweep(J[group], start, lags):
            singular |= read_out(group, *item)
        return singular

    # numpy.linalg releases the GIL, and threads inside BLAS only get in each other's way at these sizes
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        if len(groups) > 1 or workers == 1:
            singular = max(pool.map(sweep, groups))
        else:  # a single sweep: hand the reading-out to the other cores, not too far ahead of them
            singular, pending = False, deque[Future[bool]]()
            for item in backward_sweep(J, start, lags):
                pending.append(pool.submit(read_out, groups[0], *item))
                if len(pending) > 2 * workers:
                    singular |= pending.popleft().result()
            while pending:
                singular |= pending.popleft().result()
        imbalance = max(pool.map(lambda group: _imbalance(J[group], ln_s[group], lags), groups))
    return ln_s, singular, imbalance


def _usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _imbalance(J: Array, ln_s: Array, chunk: int) -> float:
    """The largest |Σ_i ln σ_i(P_t) − Σ_s ln|det J_s||, by LU of the row-scaled steps; exact zeros are left out."""
    ln_det = np.concatenate([_log_determinants(J[:, s : s + chunk]) for s in range(0, J.shape[1], chunk)], axis=1)
    expected = np.cumsum(ln_det[:, ::-1], axis=1)[:, ::-1]
    total = ln_s.sum(axis=-1)
    nonzero = ~np.isneginf(total)
    return float(np.abs(total[nonzero] - expected[nonzero]).max(initial=0.0))


def _log_determinants(J: Array) -> Array:
    """Return ln|det J_s| [B, T]; the row scales are taken out first, so that LU does not lose a saturated row."""
    unit, D, shift = row_scales(J)
    return np.asarray(np.linalg.slogdet(unit)[1]) + LN2 * (D.sum(axis=-1) + J.shape[-1] * shift)


# --- Reading out one batch of lags -------------------------------------------------------------------------------


def _triangularise(F: GradedFactor) -> tuple[Scales, Array, NDArray[np.bool_]]:
    """Reduce C · diag(d) · Y to (d, A, singular): diag(d) · A has its singular values, A is a graded unit triangle.

    First C is made orthogonal from the left and dropped. Then the rows of diag(d) · Y are made orthogonal from the
    right (QR of Yᵀ, rows in descending order), after which d nearly descends and A_ij ~ d_j/d_i.
    """
    F = graded_qr(F, want_q=False)
    rows = descending(F.d.log2() + log2_abs(np.abs(F.Y).max(axis=2)))
    each = np.arange(len(rows))[:, None]
    R = np.linalg.qr(F.Y[each, rows].swapaxes(1, 2), mode="raw")[0].swapaxes(1, 2)
    A, d = unit_triangle(R, F.d.at(each, rows))
    return d, A, F.singular


def _log_values(d: Scales, A: Array) -> Array:
    """Return ln σ(diag(d) · A) [N, n], descending, by windows of rows: those that act on each other, and no wider."""
    ln_s = _log_abs(d)  # already right for a row that no other row acts on
    layout = _Layout.of(d.log2(), A)
    for window in layout.windows():
        for size in np.unique(window.stop - window.start):  # one LAPACK call for all windows of a size
            same = np.flatnonzero(window.stop - window.start == size)
            batch = window.batch[same, None]
            rows = window.start[same, None] + np.arange(size)
            base = d.exponent[batch, window.start[same, None]]
            scale = np.ldexp(np.abs(d.mantissa[batch, rows]), np.maximum(d.exponent[batch, rows] - base, -1000))
            block = scale[:, :, None] * A[batch[:, :, None], rows[:, :, None], rows[:, None, :]]
            values = np.log(_window_values(block, scale)) + base * LN2
            counts = (rows >= window.done[same, None]) & (rows < window.keep[same, None])
            ln_s[np.broadcast_to(batch, rows.shape)[counts], rows[counts]] = values[counts]
    return np.sort(ln_s, axis=1)[:, ::-1]


def _log_abs(d: Scales) -> Array:
    """ln|d|, −∞ for an exact zero."""
    with np.errstate(divide="ignore"):
        return np.log(np.abs(d.mantissa)) + d.exponent * LN2


@dataclass(frozen=True)
class _Windows:
    """One window of rows start ≤ i < stop for each member of `batch`; its values done ≤ i < keep count."""

    batch: Integers
    start: Integers
    stop: Integers
    done: Integers
    keep: Integers


@dataclass(frozen=True)
class _Layout:
    """How the rows of graded triangles lie in scale, and where they may be cut apart."""

    live: Integers  # [N] rows that are not exactly zero; they come first
    coupled: Integers  # [N, n+1] the first row from i on that acts on another, n if there is none
    last_cut: Integers  # [N, n+1] the last place up to i where the rows above act on none below
    envelope: Array  # [N, n] log2 of the largest scale from row i on
    lowest: Array  # [N, n] log2 of the smallest scale down to row i

    @classmethod
    def of(cls, log2_d: Array, A: Array) -> _Layout:
        N, n = log2_d.shape
        index = np.arange(n)
        cut = np.concatenate([np.ones((N, 1), bool), _reach(A, log2_d) == index], axis=1)  # before row i, or at the end
        coupled = np.where(cut[:, :-1] & cut[:, 1:], n, index)
        coupled = np.concatenate([coupled, np.full((N, 1), n)], axis=1)
        return cls(
            live=np.isfinite(log2_d).sum(axis=1),
            coupled=np.minimum.accumulate(coupled[:, ::-1], axis=1)[:, ::-1],
            last_cut=np.maximum.accumulate(np.where(cut, np.arange(n + 1), 0), axis=1),
            envelope=np.maximum.accumulate(log2_d[:, ::-1], axis=1)[:, ::-1],
            lowest=np.minimum.accumulate(log2_d, axis=1),
        )

    def windows(self) -> Iterator[_Windows]:
        """Windows from the top down, one of each member at a time, until every coupled row has its value."""
        done = np.zeros(len(self.live), np.int64)
        while True:
            done = np.take_along_axis(self.coupled, done[:, None], 1)[:, 0]
            batch = np.flatnonzero(done < self.live)
            if not len(batch):
                return
            window = self._next(batch, done[batch])
            yield window
            done[batch] = window.keep

    def _next(self, batch: Integers, done: Integers) -> _Windows:
        """The windows that give the values from row `done` on."""
        each = np.arange(len(batch))
        envelope, lowest, live = self.envelope[batch], self.lowest[batch], self.live[batch]
        clear_above = (lowest > (envelope[each, done] + MARGIN_ABOVE)[:, None]).sum(axis=1)
        start = np.maximum(self.last_cut[batch, done], np.minimum(clear_above, done))
        stop = (envelope >= (envelope[each, start] - WINDOW_BITS)[:, None]).sum(axis=1)
        stop = np.minimum(stop, live)
        clear_below = (envelope >= (lowest[each, stop - 1] + MARGIN_BELOW)[:, None]).sum(axis=1)
        keep = np.maximum(np.maximum(clear_below, self.last_cut[batch, stop]), done + 1)
        return _Windows(batch, start, stop, done, np.where(stop == live, stop, keep))


def _reach(A: Array, log2_d: Array) -> Integers:
    """For each row i of [N, n], the last row that rows 0 … i act on: i itself where a cut may follow.

    Dropping A_ij changes ln σ by no more than |A_ij|, and by about A_ij² only where d_j < d_i/2.
    """
    n = A.shape[-1]
    apart = log2_d[:, None, :] < log2_d[:, :, None] - 1
    felt = np.abs(A) > np.where(apart, NEGLIGIBLE**0.5, NEGLIGIBLE)
    felt[:, np.arange(n), np.arange(n)] = True
    last: Integers = n - 1 - np.argmax(felt[:, :, ::-1], axis=2)
    return np.maximum.accumulate(last, axis=1)


def _window_values(blocks: Array, d: Array) -> Array:
    """Singular values [G, m] of graded triangles [G, m, m] whose determinants are Π d, descending.

    Bidiagonalisation keeps most such gradings to the last digit, at a tenth of the price of Jacobi, but not where
    repeated singular values and gaps meet. The determinant tells: Σ ln(σ_i/d_i) must vanish.
    """
    try:
        values = np.asarray(np.linalg.svd(blocks, compute_uv=False), np.float64)
    except np.linalg.LinAlgError:  # one block of the batch did not converge
        values = np.zeros_like(d)
    with np.errstate(divide="ignore"):
        missed = np.abs(np.log(values / np.sort(d, axis=1)[:, ::-1]).sum(axis=1))
    for g in np.flatnonzero(~(missed <= CERTIFICATE * d.shape[1])):
        values[g] = _jacobi_values(blocks[g])
    return values


def _jacobi_values(A: Array) -> Array:
    """Singular values by preconditioned one-sided Jacobi, accurate under any row scaling; descending."""
    scaled, _, _, work, _, _ = dgejsv(np.asfortranarray(A.T), joba=0, jobu=3, jobv=3)
    values: Array = np.sort(scaled * (work[0] / work[1]))[::-1]
    return values

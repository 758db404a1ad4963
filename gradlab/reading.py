"""Singular values of graded factorizations, read out a batch of lags at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dgejsv

from gradlab.graded import Emitted
from gradlab.kernels import fill_blocks, triangularise
from gradlab.scales import LN2, Integers, Scales, descending
from gradlab.validation import Array

# Windows of rows, in bits below the topmost. dqds works on squares, so little more than 430 bits fit one LAPACK
# call; narrower windows are cheaper, until they overlap for the most part. Rows k bits apart change each other's
# singular values by 2^-2k: 30 bits are enough above and below a value that counts.
WINDOW_BITS = 150.0
MARGIN_ABOVE = 30.0
MARGIN_BELOW = 30.0
CERTIFICATE = 2.0**-46  # the |Σ ln σ − Σ ln d| per row that plain LAPACK is allowed before Jacobi takes over
EPS = float(np.finfo(np.float64).eps)


def read_out(out: Emitted) -> tuple[Array, Array, Array]:
    """Return ln σ [M, n], descending, of the products in `out`, their errors by reading, and by the sweep.

    The last is in units of `graded.UNIT`; `out` is used up.
    """
    M, n = out.mantissa.shape
    At, first = np.empty((M, n, n)), np.empty((M, n), np.int64)
    triangularise(out, At, first)
    d = Scales(out.mantissa, out.exponent)
    order = descending(d.log2())
    each = np.arange(M)[:, None]
    ln_s = d.ln()[each, order]
    some = np.flatnonzero((first < np.arange(n)).any(axis=1))
    if len(some):
        ln_s[some] = log_values(Scales(d.mantissa[some], d.exponent[some]), At, some, first[some])
    reading = EPS / 2 * out.reading[each, order] + rounding(ln_s)
    return ln_s, reading, out.swept[each, order]


def log_values(d: Scales, At: Array, place: Integers, first: Integers) -> Array:
    """Return ln σ(diag(d) · A) [N, n], descending, by windows of rows: those that act on each other, and no wider.

    The triangle of each d is at At[place]; `first` are the first rows that are felt.
    """
    ln_s = d.ln()  # already right for a row that no other row acts on
    layout = _Layout.of(d.log2(), first)
    for window in layout.windows():
        for size in np.unique(window.stop - window.start):  # one LAPACK call for all windows of a size
            same = np.flatnonzero(window.stop - window.start == size)
            batch = window.batch[same, None]
            rows = window.start[same, None] + np.arange(size)
            base = d.exponent[batch, window.start[same, None]]
            scale = np.ldexp(np.abs(d.mantissa[batch, rows]), np.maximum(d.exponent[batch, rows] - base, -1000))
            blocks = np.empty((len(same), size, size))
            fill_blocks(At, place[batch[:, 0]], window.start[same], scale, blocks)
            values = np.log(_window_values(blocks, scale)) + base * LN2
            counts = (rows >= window.done[same, None]) & (rows < window.keep[same, None])
            ln_s[np.broadcast_to(batch, rows.shape)[counts], rows[counts]] = values[counts]
    return np.sort(ln_s, axis=1)[:, ::-1]


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
    def of(cls, log2_d: Array, first: Integers) -> _Layout:
        N, n = log2_d.shape
        index = np.arange(n)
        # a cut before row i, or after the last
        cut = np.concatenate([first >= index, np.ones((N, 1), bool)], axis=1)
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
        stop = np.clip(stop, done + 1, live)
        clear_below = (envelope >= (lowest[each, stop - 1] + MARGIN_BELOW)[:, None]).sum(axis=1)
        keep = np.clip(np.maximum(clear_below, self.last_cut[batch, stop]), done + 1, stop)
        return _Windows(batch, start, stop, done, np.where(stop == live, stop, keep))


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


def rounding(ln_s: Array) -> Array:
    """Of a logarithm; 0 for −∞."""
    finite = np.isfinite(ln_s)
    size = np.abs(ln_s, out=np.zeros_like(ln_s), where=finite)
    return EPS * np.where(finite, np.maximum(1.0, size), 0.0)

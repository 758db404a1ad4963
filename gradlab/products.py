"""Singular values of ∂h_T/∂h_t at every lag, the small ones as exactly as the large."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dgejsv

from gradlab import lapack, remainder
from gradlab.backwards import start_of_sweep, sweep
from gradlab.blas import one_blas_thread
from gradlab.graded import GradedFactor, refactor, rounding_of_pivots
from gradlab.scales import LN2, Integers, Scales, descending, log2_abs, unit_triangle
from gradlab.streaming import LazyJacobians, StepReader
from gradlab.validation import Array

# Windows of rows, in bits below the topmost. dqds works on squares, so little more than 430 bits fit one LAPACK
# call; narrower windows are cheaper, until they overlap for the most part. Rows k bits apart change each other's
# singular values by 2^-2k: 30 bits are enough above and below a value that counts.
WINDOW_BITS = 150.0
MARGIN_ABOVE = 30.0
MARGIN_BELOW = 30.0
NEGLIGIBLE = 2.0**-48  # the relative change of a singular value for which a coupling between rows may be dropped
CERTIFICATE = 2.0**-46  # the |Σ ln σ − Σ ln d| per row that plain LAPACK is allowed before Jacobi takes over
DOUBTFUL = 1e-11  # the error at which a sequence is computed again with its rounding made good …
ONE_SLICE = 1e-8  # … by products to about 2^-70, or beyond this to 2^-93
ALTOGETHER = 0.5  # nats by which a value changes that the last digits of J decide: it may as well be zero
EPS = float(np.finfo(np.float64).eps)
UNTRUSTED = 1e-6  # the error, or the |Σ ln σ − Σ ln|det J_s||, at which the user is told
CHUNK_BYTES = 1 << 20  # per array: a chunk of lags stays in a core's cache, and the memory stays bounded


Times = Sequence[int] | NDArray[np.integer]


@overload
def log_singular_values(
    J: ArrayLike | LazyJacobians, *, times: Times | None = None, return_error: Literal[False] = False
) -> Array: ...
@overload
def log_singular_values(
    J: ArrayLike | LazyJacobians, *, times: Times | None = None, return_error: Literal[True]
) -> tuple[Array, Array]: ...
@overload
def log_singular_values(
    J: ArrayLike | LazyJacobians, *, times: Times | None = None, return_error: bool
) -> Array | tuple[Array, Array]: ...


def log_singular_values(
    J: ArrayLike | LazyJacobians, *, times: Times | None = None, return_error: bool = False
) -> Array | tuple[Array, Array]:
    """All singular values of ∂h_T/∂h_t, for every t, in logarithms.

        ln σ_i(P_t),   P_t = ∂h_T/∂h_t = J_T ··· J_{t+1},   t = 0 … T−1

    Forming P_t and calling an SVD gets the largest right and loses the rest, since the values soon span more than
    float64 holds. Here the product is carried as orthogonal · exponents · well-conditioned (`gradlab.graded`) together
    with an example of what rounding does to it, which tells the error of every value. Where that is above 1e-11 in
    ln σ, the sweep is done again with its rounding made good (`gradlab.remainder`). What comes back is right to 1e-10
    for the step Jacobians as they are given, all values and all lags, and mostly to 1e-13
    (`benchmarks/spectrum_accuracy.py`); where it is not, a warning says so, and `return_error` which values.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n], rows = outputs; array index s holds J_{s+1}. Or anything that has
            a ``shape`` (B, T, n, n) and gives arrays for slices ``J[:, a:b]``: it is read once, backwards and in
            chunks, so that memory stays bounded (`LazyStepJacobians`, a dataset of h5py or zarr).
        times: which t to read out, indices 0 … T−1 in any order, repeated or not; all T by default. The rest costs
            the sweep only, and what lies before the earliest is not read at all.
        return_error: also give the estimated error, which is known anyway. It is a magnitude, from one example of
            rounding, and no bound: it comes out ten times too small now and then.

    Returns:
        ln σ in nats [B, T, n] (or [T, n]), index t along time, or [B, len(times), n] with the times in the order
        given; descending in i. −∞ is an exact zero: dead units are counted, not guessed; or, with a warning, a value
        that the last digits of the entries of J decide altogether. With `return_error`, (ln σ, |error of ln σ|) of the
        same shape; the error of such a value is ∞.

    Raises:
        ValueError: wrong shape, an empty axis, NaN or infinity in J (named by batch and step), times out of range.
        TypeError: J is not real, or times are not integers.

    Warns:
        RuntimeWarning: a step Jacobian is singular to working precision without a zero row (a low-rank W), so that
            −∞ stands for values no different from zero in float64; or some values are uncertain by more than 1e-6
            nats, by their estimated errors or since Σ_i ln σ_i(P_t) = Σ_s ln|det J_s| fails.

    Source:
        D. E. Stewart 1997 (graded QR of products); Bauer 2020 (stratification); Cox and Higham 1998 (row ordering);
        Drmač and Veselić 2008 (Jacobi); Ozaki et al. 2012 (products without rounding).

    Example:
        >>> import numpy as np
        >>> J = np.repeat(np.diag([0.5, 1e-9])[None], 100, axis=0)
        >>> log_singular_values(J)[0] / np.log(10)    # 0.5^100 and 10^-900, which float64 cannot hold
        array([ -30.10299957, -900.        ])
        >>> log_singular_values(J, times=[0, 50]).shape
        (2, 2)
    """
    reader = StepReader.of(J)
    asked, order = np.unique(_checked_times(times, reader.shape[1]), return_inverse=True)
    found = _at_times(reader, asked)
    _make_good(reader, asked, found)
    if found.singular.any():
        warnings.warn(
            "a step Jacobian is singular to working precision though none of its rows is zero (low-rank or repeated"
            " weights, or saturated gates): the singular values that vanish in rounding are returned as −∞",
            RuntimeWarning,
            stacklevel=2,
        )
    uncertain = max(found.imbalance.max(), found.error[np.isfinite(found.error)].max(initial=0.0))
    if not uncertain <= UNTRUSTED:
        warnings.warn(
            f"some singular values are uncertain by {uncertain:.1e} nats, so ill-conditioned are the step Jacobians;"
            " log_singular_values(J, return_error=True) says which",
            RuntimeWarning,
            stacklevel=2,
        )
    place = (0, order) if reader.single else (slice(None), order)
    return (found.ln_s[place], found.error[place]) if return_error else found.ln_s[place]


def _make_good(reader: StepReader, times: Integers, found: _Found) -> None:
    """Replace what is doubtful in `found` by a sweep that makes good its own rounding, with as many slices as it takes.

    The error left is that of the first sweep, as far down as the slices reach. Where that sweep lost all digits of a
    value, or this one does not know how many it found, it is the difference of two sweeps from different starts; and
    what the last digits of J decide is taken for zero.
    """
    n = reader.shape[-1]
    doubtful = np.any(~(found.error <= DOUBTFUL), axis=2)  # NaN is doubtful
    worst = found.error.max(axis=(1, 2))
    slices = np.where(worst <= ONE_SLICE, 1, 2)  # NaN takes two
    for count in np.unique(slices[doubtful.any(axis=1)]).tolist():
        sequences = np.flatnonzero((slices == count) & doubtful.any(axis=1))
        lags = np.flatnonzero(doubtful[sequences].any(axis=0))
        place = np.ix_(sequences, lags)
        again = _at_times(reader, times[lags], sequences=sequences, slices=count)
        left = 2.0 ** (53 - remainder.bits(n, count))
        error = again.error + left * found.error[place]
        lost = np.any(~(found.error[place] < 1) | ~(again.error <= DOUBTFUL), axis=(1, 2))
        if lost.any():
            turn = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
            other = _at_times(reader, times[lags], sequences=sequences[lost], start=turn, slices=count)
            error[lost] = _apart(again.ln_s[lost], other.ln_s)
            shaken = _at_times(reader, times[lags], sequences=sequences[lost], slices=count, shake=True)
            nothing = np.zeros_like(error, bool)
            nothing[lost] = np.maximum(error[lost], _apart(again.ln_s[lost], shaken.ln_s)) > ALTOGETHER
            again.ln_s[nothing] = -np.inf
            again.ln_s[...] = np.sort(again.ln_s, axis=2)[..., ::-1]
            again.singular[...] |= nothing.any(axis=2)
        error[np.isneginf(again.ln_s) & again.singular[..., None]] = np.inf
        found.ln_s[place], found.error[place], found.singular[place] = again.ln_s, error, again.singular
        found.imbalance[place] = 0.0  # the determinants of the steps are no better than the first sweep


def _apart(ln_s: Array, other: Array) -> Array:
    """How far two answers lie apart, and the rounding of either."""
    apart = np.subtract(ln_s, other, out=np.zeros_like(other), where=ln_s != other)  # −∞ is −∞
    return np.abs(apart) + _rounding(ln_s)


def _rounding(ln_s: Array) -> Array:
    """Of a logarithm; 0 for −∞."""
    finite = np.isfinite(ln_s)
    size = np.abs(ln_s, out=np.zeros_like(ln_s), where=finite)
    return EPS * np.where(finite, np.maximum(1.0, size), 0.0)


def _checked_times(times: Times | None, T: int) -> Integers:
    """Return times as integers in 0 … T−1, at least one."""
    if times is None:
        return np.arange(T)
    array = np.asarray(times)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise TypeError(f"times must be a list of integers t, got {times!r}; leave it out for all of them")
    if array.min() < 0 or array.max() >= T:
        bad = array[(array < 0) | (array >= T)][0]
        raise ValueError(f"times must lie in 0 … {T - 1} (∂h_T/∂h_t for T = {T} steps), got {bad}")
    return array.astype(np.int64)


# --- Over sequences and lags -------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """What one sweep over some sequences gives."""

    ln_s: Array  # [B, len(times), n]
    error: Array  # [B, len(times), n]
    singular: NDArray[np.bool_]  # [B, len(times)] a pivot vanished
    imbalance: Array  # [B, len(times)] by how much Σ ln σ misses the determinant of the product; 0 where it is −∞


def _at_times(
    reader: StepReader,
    times: Integers,
    *,
    sequences: Integers | None = None,
    start: Array | None = None,
    slices: int = 0,
    shake: bool = False,
) -> _Found:
    """Sweep once over the steps of the `sequences` (all), from `start` (1), and read out the `times` (ascending).

    `slices` make good the rounding; `shake` changes every entry of J by at most one unit in its last place.
    """
    B, T, n, _ = reader.shape
    chosen = np.arange(B) if sequences is None else sequences
    B = len(chosen)
    start = np.eye(n) if start is None else start
    ln_s, error = np.empty((B, len(times), n)), np.empty((B, len(times), n))
    singular = np.zeros((B, len(times)), bool)
    ln_det = np.empty((B, T - times[0]))
    workers = _usable_cores()
    matrix_bytes = 8 * n * n
    size = max(1, min(-(-B // workers), CHUNK_BYTES // matrix_bytes))
    groups = [slice(b, min(b + size, B)) for b in range(0, B, size)]
    lags = max(1, CHUNK_BYTES // (matrix_bytes * size))

    rng = np.random.default_rng(0)
    _keep_freed_memory()

    def read_out(group: slice, first: int, factors: GradedFactor) -> None:
        d, At, errors, vanished = _triangularise(factors)
        values = _log_values(d, At)

        def by_time(x: NDArray[Any]) -> NDArray[Any]:
            return x.reshape(-1, group.stop - group.start, *x.shape[1:]).swapaxes(0, 1)

        lags = slice(first, first + len(values) // (group.stop - group.start))
        ln_s[group, lags] = by_time(values)
        error[group, lags] = by_time(_errors(errors, d, values, vanished))
        singular[group, lags] = by_time(vanished)

    # LAPACK runs outside the interpreter's lock, and threads inside BLAS only get in each other's way at these sizes
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        carried = [start_of_sweep(start, group.stop - group.start, slices=slices) for group in groups]
        pending = deque[Future[None]]()
        given_up = set[int]()  # groups of which every sequence is doubtful
        for first, chunk in reader.backwards(int(times[0]), lags):
            if sequences is not None:
                chunk = chunk[sequences]
            if shake:
                chunk = chunk * (1 + EPS * rng.integers(-1, 2, chunk.shape))
            steps = slice(first - int(times[0]), first - int(times[0]) + chunk.shape[1])
            low, high = np.searchsorted(times, (first, first + chunk.shape[1]))
            wanted = (times[low:high] - first).tolist()
            swept = [
                pool.submit(sweep, state, chunk[group], () if i in given_up else wanted)
                for i, (state, group) in enumerate(zip(carried, groups, strict=True))
            ]
            for i, (group, future) in enumerate(zip(groups, swept, strict=True)):
                carried[i], factors, ln_det[group, steps] = future.result()
                worst = carried[i].error.max(axis=1)
                if factors is not None:
                    pending.append(pool.submit(read_out, group, low, factors))
                elif i in given_up:
                    ln_s[group, low:high], error[group, low:high] = np.nan, worst[:, None, None]
                if not slices and (worst > DOUBTFUL).all():  # nor will it ever be less: reading out is for later
                    given_up.add(i)
            while len(pending) > 2 * len(groups) + 2 * workers:  # not too far ahead: factors take memory
                pending.popleft().result()
        while pending:
            pending.popleft().result()
    expected = np.cumsum(ln_det[:, ::-1], axis=1)[:, ::-1][:, times - times[0]]
    total = ln_s.sum(axis=-1)
    imbalance = np.abs(np.subtract(total, expected, out=np.zeros_like(total), where=~np.isneginf(total)))
    return _Found(ln_s, error, singular, imbalance)


def _keep_freed_memory() -> None:
    """Let glibc keep freed arrays for the next ones, instead of giving their pages back to the system each time.

    It does so for blocks up to the size of the largest that was freed, and 32 MiB at most: one of 16 MiB, never
    touched, is enough. Page faults otherwise double the time of everything here; other allocators do not mind.
    """
    np.empty(1 << 21)


def _usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Reading out one batch of lags -------------------------------------------------------------------------------


def _triangularise(F: GradedFactor) -> tuple[Scales, Array, Array, NDArray[np.bool_]]:
    """Reduce C · diag(d) · Y to (d, Aᵀ, errors, singular): diag(d) · A has its singular values, A is a graded triangle.

    First C is made orthogonal from the left and dropped. Then the rows of diag(d) · Y are made orthogonal from the
    right (QR of Yᵀ, rows in descending order), after which d nearly descends and A_ij ~ d_j/d_i; A has a unit diagonal.
    """
    F = refactor(F, keep_left=False)
    size = np.abs(F.Y).max(axis=2)
    rows = descending(F.d.log2() + log2_abs(size))
    each = np.arange(len(rows))[:, None]
    Rt = F.Y[each, rows]
    lapack.qr(Rt)
    At, d, _ = unit_triangle(Rt, F.d.at(each, rows))
    return d, At, F.error[each, rows] + rounding_of_pivots(size[each, rows], Rt), F.singular


def _errors(error: Array, d: Scales, ln_s: Array, vanished: NDArray[np.bool_]) -> Array:
    """The errors of ln σ [N, n] by those of d."""
    each = np.arange(len(ln_s))[:, None]
    error = np.where(np.isneginf(ln_s), 0.0, error[each, descending(d.log2())]) + _rounding(ln_s)
    error[np.isneginf(ln_s) & vanished[:, None]] = np.inf  # lost in rounding: any value below it will do
    return error


def _log_values(d: Scales, At: Array) -> Array:
    """Return ln σ(diag(d) · A) [N, n], descending, by windows of rows: those that act on each other, and no wider."""
    ln_s = _log_abs(d)  # already right for a row that no other row acts on
    layout = _Layout.of(d.log2(), At)
    for window in layout.windows():
        for size in np.unique(window.stop - window.start):  # one LAPACK call for all windows of a size
            same = np.flatnonzero(window.stop - window.start == size)
            batch = window.batch[same, None]
            rows = window.start[same, None] + np.arange(size)
            base = d.exponent[batch, window.start[same, None]]
            scale = np.ldexp(np.abs(d.mantissa[batch, rows]), np.maximum(d.exponent[batch, rows] - base, -1000))
            blocks = np.empty((len(same), size, size))
            for g, (b, i) in enumerate(zip(window.batch[same], window.start[same], strict=True)):
                np.multiply(At[b, i : i + size, i : i + size].T, scale[g, :, None], out=blocks[g])
            values = np.log(_window_values(blocks, scale)) + base * LN2
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
    def of(cls, log2_d: Array, At: Array) -> _Layout:
        N, n = log2_d.shape
        index = np.arange(n)
        # a cut before row i, or after the last
        cut = np.concatenate([_first_felt(At, log2_d) >= index, np.ones((N, 1), bool)], axis=1)
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


def _first_felt(At: Array, log2_d: Array) -> Integers:
    """For each row j of [N, n], the first row that acts on any of j … n−1; where it is j itself a cut may go before j.

    Dropping A_ij changes ln σ by no more than |A_ij|, and by about A_ij² only where d_j < d_i/2.
    """
    n = At.shape[-1]
    below = np.full_like(log2_d, -np.inf)  # the largest scale below each row
    below[:, :-1] = np.maximum.accumulate(log2_d[:, :0:-1], axis=1)[:, ::-1]
    negligible = np.where(below < log2_d - 1, NEGLIGIBLE**0.5, NEGLIGIBLE)
    felt = np.abs(At) > negligible[:, None, :]
    felt[:, np.arange(n), np.arange(n)] = True
    first: Integers = np.argmax(felt, axis=2)
    return np.minimum.accumulate(first[:, ::-1], axis=1)[:, ::-1]


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

"""Singular values of ∂h_T/∂h_t at every lag, the small ones as exactly as the large."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab import remainder
from gradlab.backwards import start_of_sweep, sweep
from gradlab.blas import one_blas_thread
from gradlab.graded import GradedFactor
from gradlab.reading import EPS, errors, log_values, rounding, triangularise
from gradlab.scales import Integers
from gradlab.streaming import LazyJacobians, StepReader
from gradlab.validation import Array

DOUBTFUL = 1e-11  # the error at which a sequence is computed again with its rounding made good …
ONE_SLICE = 1e-8  # … by products to about 2^-70, or beyond this to 2^-93
LOST = 1e-7  # the error of the first sweep past which that of the second is looked for by another route …
REVERSALS = 6  # … at so many lags
SHAKES = (1, 2, 3)  # seeds
NO_DIGIT = 0.1  # nats by which a value changes that the last digits of J decide: it may as well be zero
UNTRUSTED = 1e-6  # the error, or the |Σ ln σ − Σ ln|det J_s||, at which the user is told
THREADS_FROM = 100  # units; below, threads wait for the interpreter's lock: 1.7 times slower at n = 32, measured
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
    ln σ, the sweep is done again with its rounding made good (`gradlab.remainder`). For the networks of
    `benchmarks/spectrum_accuracy.py`, saturated ones included, what comes back is right to 1e-10 for the step Jacobians
    as they are given, all values and all lags, mostly to 1e-13. It may be less where ln σ hangs on entries far below
    the rounding of their rows' largest (units shut and opened by factors of 1e-10 and beyond, with zeros in W); there a
    warning says so, and `return_error` says which values.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n], rows = outputs; array index s holds J_{s+1}. Or anything that has
            a ``shape`` (B, T, n, n) and gives arrays for slices ``J[:, a:b]``: it is read backwards and in chunks,
            so that memory stays bounded (`LazyStepJacobians`, a dataset of h5py or zarr); more than once where
            sequences are doubtful.
        times: which t to read out, indices 0 … T−1 in any order, repeated or not; all T by default. The rest costs
            the sweep only, and what lies before the earliest is not read at all.
        return_error: also give the estimated error, which is known anyway. It is a magnitude, from one example of
            rounding, and no bound: it comes out ten times too small now and then.

    Returns:
        ln σ in nats [B, T, n] (or [T, n]), index t along time, or [B, len(times), n] with the times in the order
        given; descending in i. −∞ is an exact zero, such as that of a dead unit; or, with a warning, a value of which
        rounding or the last digits of the entries of J leave nothing. With `return_error`, (ln σ, |error of ln σ|) of
        the same shape; the error of such a value is ∞.

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
    found.error[np.isnan(found.ln_s)] = np.nan
    uncertain = max(found.imbalance.max(), np.where(np.isneginf(found.ln_s), 0.0, found.error).max())
    if not uncertain <= UNTRUSTED:  # NaN is no trust
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

    The error left is that of the first sweep, as far down as the slices reach. Where this is no ground to stand on,
    since the first sweep lost many digits or the second does not know how many it found, the error is the difference
    from the product swept in the other direction; and what the last digits of J decide is taken for zero.
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
        lost = np.any(~(found.error[place] <= LOST) | ~(again.error <= DOUBTFUL), axis=(1, 2))
        if lost.any():
            names = sequences[lost]
            error[lost] = _error_by_reversal(reader, times[lags], names, again.ln_s[lost])
            nothing = np.zeros_like(error, bool)
            for shake in SHAKES:
                shaken = _at_times(reader, times[lags], sequences=names, slices=count, shake=shake)
                nothing[lost] |= ~(_apart(again.ln_s[lost], shaken.ln_s) <= NO_DIGIT)
            again.ln_s[nothing] = -np.inf
            again.ln_s[...] = np.sort(again.ln_s, axis=2)[..., ::-1]
            again.singular[...] |= nothing.any(axis=2)
        error[np.isneginf(again.ln_s) & again.singular[..., None]] = np.inf
        found.ln_s[place], found.error[place], found.singular[place] = again.ln_s, error, again.singular
        found.imbalance[place] = 0.0  # the determinants of the steps are no better than the first sweep


def _error_by_reversal(reader: StepReader, times: Integers, sequences: Integers, ln_s: Array) -> Array:
    """How far ln σ [S, len(times), n] is from that of P_tᵀ = J_{t+1}ᵀ ··· J_Tᵀ, swept from the other end.

    The scales of its brackets are others, and so is what its rounding spoils. Every t takes a sweep of its own, so only
    some are checked; between two of them the larger difference counts.
    """
    error = np.empty_like(ln_s)
    checked = np.unique(np.linspace(0, len(times) - 1, REVERSALS).round().astype(int))
    for i, b in enumerate(sequences.tolist()):
        apart = np.empty((len(checked), ln_s.shape[2]))
        for k, index in enumerate(checked):
            other = StepReader.of(_Reversed(reader, b, int(times[index])))
            apart[k] = _apart(ln_s[i, index], _at_times(other, np.array([0]), slices=2).ln_s[0, 0])
        after = np.searchsorted(checked, np.arange(len(times)))
        before = np.searchsorted(checked, np.arange(len(times)), side="right") - 1
        error[i] = np.maximum(apart[after], apart[before])
    return error


class _Reversed:
    """The steps of P_tᵀ = J_{t+1}ᵀ ··· J_Tᵀ of one sequence, made in chunks as they are asked for."""

    def __init__(self, reader: StepReader, sequence: int, t: int) -> None:
        _, self.T, n, _ = reader.shape
        self.shape = (1, self.T - t, n, n)
        self.source, self.sequence = reader.source, sequence

    def __getitem__(self, index: tuple[slice, slice]) -> Array:
        first, stop = index[1].start, index[1].stop
        chunk = np.asarray(self.source[:, self.T - stop : self.T - first], np.float64)
        return chunk[self.sequence : self.sequence + 1, ::-1].swapaxes(2, 3)


def _apart(ln_s: Array, other: Array) -> Array:
    """How far two answers lie apart, and the rounding of either."""
    apart = np.subtract(ln_s, other, out=np.zeros_like(other), where=ln_s != other)  # −∞ is −∞
    difference: Array = np.abs(apart) + rounding(ln_s)
    return difference


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
    shake: int | None = None,
) -> _Found:
    """Sweep once over the steps of the `sequences` (all), from `start` (1), and read out the `times` (ascending).

    `slices` make good the rounding; `shake`, a seed, changes every entry of J by at most one unit in its last place.
    """
    B, T, n, _ = reader.shape
    chosen = np.arange(B) if sequences is None else sequences
    B = len(chosen)
    start = np.eye(n) if start is None else start
    ln_s, error = np.empty((B, len(times), n)), np.empty((B, len(times), n))
    singular = np.zeros((B, len(times)), bool)
    ln_det = np.empty((B, T - times[0]))
    workers = _usable_cores() if n >= THREADS_FROM else 1
    matrix_bytes = 8 * n * n
    size = max(1, min(-(-B // workers), CHUNK_BYTES // matrix_bytes))
    groups = [slice(b, min(b + size, B)) for b in range(0, B, size)]
    lags = max(1, CHUNK_BYTES // (matrix_bytes * size))

    rng = np.random.default_rng(shake)
    _keep_freed_memory()

    def read_out(group: slice, first: int, factors: GradedFactor) -> None:
        d, At, relative, vanished = triangularise(factors)
        values = log_values(d, At)

        def by_time(x: NDArray[Any]) -> NDArray[Any]:
            return x.reshape(-1, group.stop - group.start, *x.shape[1:]).swapaxes(0, 1)

        lags = slice(first, first + len(values) // (group.stop - group.start))
        ln_s[group, lags] = by_time(values)
        error[group, lags] = by_time(errors(relative, d, values, vanished))
        singular[group, lags] = by_time(vanished)

    # LAPACK runs outside the interpreter's lock, and threads inside BLAS only get in each other's way at these sizes
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        carried = [start_of_sweep(start, group.stop - group.start, slices=slices) for group in groups]
        pending = deque[Future[None]]()
        given_up = set[int]()  # groups of which every sequence is doubtful
        for first, chunk in reader.backwards(int(times[0]), lags):
            if sequences is not None:
                chunk = chunk[sequences]
            if shake is not None:
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

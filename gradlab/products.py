"""Singular values of ∂h_T/∂h_t at every lag, the small ones as exactly as the large."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab import graded
from gradlab.cores import usable_cores
from gradlab.kernels.sweeping import sweep
from gradlab.reading import EPS, read_out, rounding
from gradlab.scales import Integers, descending
from gradlab.streaming import LazyJacobians, StepReader
from gradlab.two_stages import TwoStages
from gradlab.validation import Array

LOST = 1e-3  # the error of a sweep in float64 past which ours, 2^51 times finer, is looked at by another route …
REVERSALS = 6  # … at so many lags
SHAKES = (1, 2, 3)  # seeds
NO_DIGIT = 0.1  # nats by which a value changes that the last digits of J decide: it may as well be zero
SAME = 1e-9  # nats within which a value is found again though one above it has vanished
UNTRUSTED = 1e-6  # the error at which the user is told
CHUNK_BYTES = 1 << 20  # per array: a chunk of lags stays in a core's cache, and the memory stays bounded …
MANY_SEQUENCES = 32  # … for which so many sequences or more take chunks that are shorter


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
    float64 holds. Here the product is carried as well-conditioned · exponents · well-conditioned, the first in twice
    the digits of float64 (`gradlab.graded`), together with an example of what rounding does to it, which tells the
    error of every value. What comes back is right for the step Jacobians as they are given: for the networks of
    `benchmarks/spectrum_accuracy.py`, saturated ones included, to a few roundings of ln σ itself, all values and all
    lags. Where even twice the digits are not enough (units shut and opened by factors of 1e-10 and beyond, by turns
    and with zeros in W), a warning says so, and `return_error` says which values. The first call on a machine compiles
    for some forty seconds, and keeps what it made.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n], rows = outputs; array index s holds J_{s+1}. Or anything that has
            a ``shape`` (B, T, n, n) and gives arrays for slices ``J[:, a:b]``: it is read backwards and in chunks,
            so that memory stays bounded (`LazyStepJacobians`, a dataset of h5py or zarr); more than once where
            sequences are doubtful.
        times: which t to read out, indices 0 … T−1 in any order, repeated or not; all T by default. The rest costs
            the sweep only, and what lies before the earliest is not read at all.
        return_error: also give the estimated error, which is known anyway. It is a magnitude, from one example of
            rounding, and no bound.

    Returns:
        ln σ in nats [B, T, n] (or [T, n]), index t along time, or [B, len(times), n] with the times in the order
        given; descending in i. −∞ is an exact zero, such as that of a dead unit; or, with a warning, a value that
        cannot be told from zero. With `return_error`, (ln σ, |error of ln σ|) of the same shape; the error of such a
        value is ∞.

    Raises:
        ValueError: wrong shape, an empty axis, NaN or infinity in J (named by batch and step), times out of range.
        TypeError: J is not real, or times are not integers.

    Warns:
        RuntimeWarning: a step Jacobian is singular to working precision without a zero row (a low-rank W), and −∞
            stands for what is no different from zero in float64; or the last digits of J decide some values (a change
            of its entries by two units in the last place moves them by more than 0.1 nats), which are right for J as it
            is; or some values are uncertain by more than 1e-6 nats.

    Source:
        D. E. Stewart 1997 (graded QR of products); Bauer 2020 (stratification); Ogita, Rump and Oishi 2005 (arithmetic
        in twice the digits); Drmač and Veselić 2008 (Jacobi).

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
    _distrust(reader, asked, found)
    found.error[np.isneginf(found.ln_s) & found.vanished[..., None]] = np.inf  # any value below it will do
    if found.vanished.any():
        warnings.warn(
            "a step Jacobian is singular to working precision though none of its rows is zero (low-rank or repeated"
            " weights, or saturated gates): the singular values that vanish in rounding are returned as −∞",
            RuntimeWarning,
            stacklevel=2,
        )
    if found.undecided.any():
        warnings.warn(
            "the last digits of the step Jacobians decide some singular values: they are right for J as it is given,"
            " but would be others for a J rounded otherwise",
            RuntimeWarning,
            stacklevel=2,
        )
    found.error[np.isnan(found.ln_s)] = np.nan
    uncertain = np.where(np.isneginf(found.ln_s), 0.0, found.error).max()
    if not uncertain <= UNTRUSTED:  # NaN is no trust
        warnings.warn(
            f"some singular values are uncertain by {uncertain:.1e} nats, so ill-conditioned are the step Jacobians;"
            " log_singular_values(J, return_error=True) says which",
            RuntimeWarning,
            stacklevel=2,
        )
    place = (0, order) if reader.single else (slice(None), order)
    return (found.ln_s[place], found.error[place]) if return_error else found.ln_s[place]


def swept_log_singular_values(J: ArrayLike | LazyJacobians, times: Times | None = None) -> Array:
    """Return ln σ_i(∂h_T/∂h_t) by one sweep alone, for looks at a training that must cost little.

    The values are those of J as it is given, as in `log_singular_values`, in a third of its time where that has doubts:
    whether the last digits of J decide a value is not asked, nothing is called −∞ for it, and nothing is warned of.

    Args:
        J: step Jacobians, as there.
        times: t, as there.

    Returns:
        ln σ, as there.

    Raises:
        ValueError, TypeError: as there.

    Example:
        >>> swept_log_singular_values(np.array([[[0.1, 0.0], [0.0, 1e-9]]] * 100)).shape
        (100, 2)
    """
    reader = StepReader.of(J)
    asked, order = np.unique(_checked_times(times, reader.shape[1]), return_inverse=True)
    place = (0, order) if reader.single else (slice(None), order)
    return np.asarray(_at_times(reader, asked).ln_s[place])


def _distrust(reader: StepReader, times: Integers, found: _Found) -> None:
    """Look at what a sweep in float64 would have lost by another route, and take what hangs on last digits for zero.

    There the example of rounding is no ground to stand on: the error is the difference from the product swept in the
    other direction. And where a step is singular but for the last digits of its entries, as low-rank weights are, a
    value that these decide may as well be zero.
    """
    lost = np.flatnonzero(np.any(~(EPS / 2 * found.swept <= LOST), axis=(1, 2)) | found.singular.any(axis=1))  # NaN too
    if not len(lost):
        return
    ln_s = found.ln_s[lost]
    found.error[lost] = np.maximum(found.error[lost], _error_by_reversal(reader, times, lost, ln_s))
    nothing = np.zeros_like(ln_s, bool)
    for shake in SHAKES:
        shaken = _at_times(reader, times, sequences=lost, shake=shake).ln_s
        nothing |= ~((_apart(ln_s, shaken) <= NO_DIGIT) | (_nearest(ln_s, shaken) <= SAME))
    zero = nothing & (found.singular[lost, :, None] | np.isinf(found.error[lost]))
    ln_s[zero] = -np.inf
    order = descending(ln_s)
    found.ln_s[lost] = np.take_along_axis(ln_s, order, axis=2)
    found.error[lost] = np.take_along_axis(found.error[lost], order, axis=2)
    found.vanished[lost] |= zero.any(axis=2)
    found.undecided[lost] = (nothing & ~zero).any(axis=2)


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
            reversed_ln_s = _at_times(other, np.array([0])).ln_s[0, 0]
            nearest = _nearest(ln_s[i, index], reversed_ln_s)
            apart[k] = np.where(nearest <= SAME, nearest, _apart(ln_s[i, index], reversed_ln_s))
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


def _nearest(ln_s: Array, other: Array) -> Array:
    """How far each value is from the nearest of another answer: one that vanishes there moves the smaller ones up."""
    apart = np.empty_like(ln_s)
    for place in np.ndindex(ln_s.shape[:-1]):  # not all pairs at once: n² for every lag would not fit
        one, ascending = ln_s[place], other[place][::-1]
        above = np.searchsorted(ascending, one).clip(max=len(one) - 1)
        apart[place] = np.inf
        for neighbour in (ascending[above], ascending[(above - 1).clip(min=0)]):
            np.minimum(apart[place], _apart(one, neighbour), out=apart[place])
    return apart


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
    swept: Array  # [B, len(times), n] the error by the sweep alone, in units of its rounding
    singular: NDArray[np.bool_]  # [B, len(times)] a step is singular but for the last digits of its entries
    vanished: NDArray[np.bool_]  # [B, len(times)] a −∞ may be something below rounding
    undecided: NDArray[np.bool_]  # [B, len(times)] the last digits of J decide a value


class _Chunk(NamedTuple):
    """Some steps of one sequence."""

    b: int  # which
    J: Array  # [K, n, n]
    wanted: NDArray[np.bool_]  # [K] which to read out …
    some: slice  # … and where these are among all that are read out


def _at_times(
    reader: StepReader, times: Integers, *, sequences: Integers | None = None, shake: int | None = None
) -> _Found:
    """Sweep once over the steps of the `sequences` (all) and read out the `times` (ascending).

    `shake`, a seed, changes every entry of J by at most two units in its last place.
    """
    B, _, n, _ = reader.shape
    chosen = np.arange(B) if sequences is None else sequences
    shape = (len(chosen), len(times), n)
    found = _Found(*np.empty((3, *shape)), *np.zeros((3, *shape[:2]), bool))
    lags = max(1, CHUNK_BYTES // (8 * n * graded.padded(n) * -(-len(chosen) // MANY_SEQUENCES)))
    examples = graded.examples_of_rounding(n)
    rng = np.random.default_rng(shake)
    carried = [graded.identity(n) for _ in chosen]
    rooms: list[graded.Emitted] = []  # to be used again, while they are in a core's cache

    def sweep_through(chunk: _Chunk) -> graded.Emitted:
        try:
            room = rooms.pop()
        except IndexError:
            room = graded.room_for(lags, n)
        J = np.require(chunk.J, requirements=("C", "W"))
        sweep(carried[chunk.b], J, chunk.wanted, examples, room.cut(chunk.some.stop - chunk.some.start))
        return room

    def read(chunk: _Chunk, room: graded.Emitted) -> None:
        b, some, out = chunk.b, chunk.some, room.cut(chunk.some.stop - chunk.some.start)
        found.singular[b, some], found.vanished[b, some] = out.flags.T
        found.ln_s[b, some], reading, found.swept[b, some] = read_out(out)
        error = reading + graded.UNIT * found.swept[b, some]
        found.error[b, some] = np.where(np.isneginf(found.ln_s[b, some]), 0.0, error)
        rooms.append(room)

    _keep_freed_memory()
    with TwoStages(sweep_through, read, lines=len(chosen), workers=usable_cores()) as work:
        for first, chunk in reader.backwards(int(times[0]), lags):
            steps = chunk if sequences is None else chunk[sequences]
            if shake is not None:
                steps = steps * (1 + EPS * rng.integers(-1, 2, steps.shape))
            low, high = np.searchsorted(times, (first, first + chunk.shape[1]))
            wanted = np.zeros(chunk.shape[1], bool)
            wanted[times[low:high] - first] = True
            for b, J in enumerate(steps):
                work.add(b, _Chunk(b, J, wanted, slice(int(low), int(high))))
    return found


def _keep_freed_memory() -> None:
    """Let glibc keep freed arrays for the next ones, instead of giving their pages back to the system each time.

    It does so for blocks up to the size of the largest that was freed, and 32 MiB at most: one of 16 MiB, never
    touched, is enough. Page faults otherwise double the time of everything here; other allocators do not mind.
    """
    np.empty(1 << 21)

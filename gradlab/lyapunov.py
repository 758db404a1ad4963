"""Lyapunov exponents of a trajectory: the mean rates at which perturbations of the state grow or die."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dgeqrf, dorgqr

from gradlab.attractor import entropy_rate, kaplan_yorke_dimension
from gradlab.blas import one_blas_thread
from gradlab.cores import usable_cores
from gradlab.kernels.frames import carry, orthonormal
from gradlab.links import log_abs_determinants
from gradlab.scales import ROUNDING, descending
from gradlab.validation import Array, positive_integer, step_jacobian_array

# Between two QRs the columns of a frame may grow apart by this much: R_ii then keeps 53 − 24 bits, and an exponent
# is off by less than 2^-29 = 2e-9 a step; measured, by 1e-13 to 1e-11, as the errors of blocks are independent.
SPREAD = 2.0**24
UNTRUSTED = 1e-6  # nats per step, summed over all exponents, at which the user is told
LOST = 2.0**44  # past this a direction cannot be told from a dead one, whatever stride is asked for
TARGET_BITS = 18.0  # of the 24, aimed at when the next stride is chosen: a block that goes too far is done again
MAX_STRIDE = 32
LAPACK_FROM = 160  # columns: from there on blocked QR is faster than our own, which takes half the time at 64
GROUP_ENTRIES = 1 << 14  # entries of the frames that move together: more sequences share NumPy's overhead up to here


@dataclass(frozen=True, eq=False)
class PooledExponents:
    """Lyapunov exponents averaged over a batch, nats per step, with two standard errors [k].

    If the one over the batch is much larger than the one over time, the sequences have exponents of their own.

    Attributes:
        exponents: λ_i, mean over the batch.
        standard_error_time: from the errors of each sequence over time, √(Σ_b SE_b²)/B.
        standard_error_batch: from the spread between sequences, std_b(λ)/√B; NaN for one sequence.
    """

    exponents: Array
    standard_error_time: Array
    standard_error_batch: Array


@dataclass(frozen=True, eq=False)
class LyapunovExponents:
    """Lyapunov exponents in nats per step, descending, with their errors.

    Attributes:
        exponents: [B, k], mean of ln|R_ii| over the steps kept; −∞ for a direction that died.
        standard_error: [B, k], by block bootstrap over time; NaN where there are too few steps, or the exponent is −∞.
        history: [B, T − discard, k], the running estimates; the last one is `exponents`, up to the order of i. Between
            two QRs the growth is shared out evenly.
        state_size: n, of which k exponents were asked for.

    Without a batch axis in J, none of the three has one.
    """

    exponents: Array
    standard_error: Array
    history: Array
    state_size: int

    @property
    def kaplan_yorke_dimension(self) -> Array:
        """Kaplan–Yorke dimension [B], see the function of this name; NaN where more exponents are needed."""
        return kaplan_yorke_dimension(self.exponents, self.state_size)

    @property
    def entropy_rate(self) -> Array:
        """Sum of the positive exponents in nats per step [B], see the function of this name."""
        return entropy_rate(self.exponents, self.state_size)

    def pooled(self) -> PooledExponents:
        """Average over the batch.

        Raises:
            ValueError: J came without a batch axis.
        """
        if self.exponents.ndim != 2:
            raise ValueError("pooling is over sequences: J must be [batch, time, n, n], it came as [time, n, n]")
        B, error = len(self.exponents), self.standard_error
        with np.errstate(invalid="ignore"):  # −∞ − −∞ for directions that died
            between = self.exponents.std(axis=0, ddof=1) / np.sqrt(B) if B > 1 else np.full(error.shape[1:], np.nan)
        return PooledExponents(self.exponents.mean(axis=0), np.sqrt((error**2).sum(axis=0)) / B, between)


def lyapunov_exponents(
    J: ArrayLike | Iterator[ArrayLike],
    k: int | None = None,
    discard: int = 0,
    *,
    stride: int | None = None,
    seed: int = 0,
) -> LyapunovExponents:
    """The k largest Lyapunov exponents along each sequence of step Jacobians.

        λ_i = (1/N) Σ_s ln|R_ii(s)|,   J_{s+m−1} ··· J_s Q = Q' R(s),   N = T − discard

    The frame Q is a random orthogonal one at first: a frame of unit vectors may be invariant under a structured W
    (diagonal, triangular, block) and would then return the exponents of the wrong directions, in the wrong order.

    The QR is taken every m steps, m chosen as it goes: rounding moves ln R_ii by about ε·max‖c_j‖/R_ii, with c_j the
    columns on the way; a block in which that ratio passes 2^24 is done again with half its steps, down to single ones,
    with rows in order of size, which keeps even the exponents of saturated units right and finds dead ones exactly.

    These are averages that converge as N → ∞ with bias O(1/N) and fluctuation O(1/√N). The sums Σ ln|R_ii| are *not*
    the logarithms of the singular values of the product at any finite T: `log_singular_values` has those.

    The standard error is that of the circular block bootstrap with blocks of b = ⌈√N⌉ steps, in the limit of many
    replicates: SE² = b/(N − b) · mean over the N blocks of (block mean − λ)². It allows for correlations over times
    shorter than b, and needs N ≥ 4b.

    Args:
        J: step Jacobians [B, T, n, n] or [T, n, n]; or an iterator over such arrays, consecutive in time, which are
            then never held together.
        k: how many exponents; all n by default.
        discard: steps left out at the start, while the frame turns towards the leading directions; a direction that
            dies there (a ReLU network that starts at rest) is replaced by a fresh one.
        stride: steps between two QRs, fewer only where a direction would be lost; chosen as above by default. 1 is the
            most accurate.
        seed: of the random frame.

    Returns:
        Exponents in nats per step [B, k] (or [k]), descending, their standard errors, and the running estimates. A
        direction that a singular step after `discard` sends to zero (a dead unit) has the exponent −∞.

    Raises:
        ValueError: wrong shape or not finite J, k > n, or nothing left after `discard`.
        TypeError: J is not real, or k, discard or stride is not an integer.

    Warns:
        RuntimeWarning: a direction vanished in rounding and was taken for dead; all n exponents do not sum to the mean
            of ln|det J_s|; or a `stride` asked for is too long for the small exponents.

    Source:
        Benettin, Galgani, Giorgilli and Strelcyn 1980; Geist, Parlitz and Lauterborn 1990 (QR form); Politis and
        Romano 1992 (circular block bootstrap).

    Example:
        >>> import numpy as np
        >>> J = np.repeat(np.diag([0.5, 2.0])[None], 400, axis=0)
        >>> lyapunov_exponents(J, discard=100).exponents / np.log(2)
        array([ 1., -1.])
    """
    chunks = map(step_jacobian_array, J if isinstance(J, Iterator) else iter((J,)))
    array, single = next(chunks, (np.empty((0, 0, 0, 0)), False))
    B, _, n, _ = array.shape
    if not n:
        raise ValueError("J must give at least one array of step Jacobians [batch, time, n, n], got an empty iterator")
    k = n if k is None else positive_integer("k", k)
    if k > n:
        raise ValueError(f"k must be at most the number of states n = {n}, got {k}; leave it out for all of them")
    discard = _steps_discarded(discard, None if isinstance(J, Iterator) else array.shape[1])
    stride = None if stride is None else positive_integer("stride", stride)
    start = np.linalg.qr(np.random.default_rng(seed).standard_normal((B, n, k)))[0]
    size = max(1, GROUP_ENTRIES // (n * k))  # not of the machine: the grouping decides the strides
    # steps that share a QR share its growth, which must not reach across the blocks of the bootstrap
    longest = 8 if isinstance(J, Iterator) else max(1, min(MAX_STRIDE, math.isqrt(array.shape[1] - discard) // 4))
    frames = [_Frames(start[b : b + size], discard, stride, longest, (seed, b)) for b in range(0, B, size)]
    parts, log_det = [], []
    with one_blas_thread(), ThreadPoolExecutor(min(2 * len(frames), usable_cores())) as pool:
        while True:
            groups = [array[b : b + size] for b in range(0, B, size)]
            growing = pool.map(_Frames.advance, frames, groups)
            if k == n:
                log_det.append(np.concatenate(list(pool.map(log_abs_determinants, groups))))
            parts.append(np.concatenate(list(growing)))
            following = next(chunks, None)
            if following is None:
                break
            if following[0].shape[::2] != (B, n):
                shapes = f"{following[0].shape} after {array.shape}"
                raise ValueError(f"every chunk of J must have the same batch and n, got shape {shapes}")
            array = following[0]
    growth = np.concatenate(parts, axis=1)
    _steps_discarded(discard, T := growth.shape[1])
    _warn(frames, stride)
    growth = growth[:, discard:]
    if k == n:
        _check_sum(growth, np.concatenate(log_det, axis=1)[:, discard:])
    history = np.cumsum(growth, axis=1) / np.arange(1, T - discard + 1)[:, None]
    order = np.argsort(-history[:, -1], axis=-1, kind="stable")  # directions that are not yet sorted out
    exponents = np.take_along_axis(history[:, -1], order, axis=-1)
    error = np.take_along_axis(_bootstrap_error(growth), order, axis=-1)
    which = 0 if single else slice(None)
    return LyapunovExponents(exponents[which], error[which], history[which], n)


def _steps_discarded(discard: Any, T: int | None) -> int:
    """Return `discard` as an int ≥ 0 with at least one of the T steps left, where T is known."""
    if discard != 0 or isinstance(discard, float | bool):
        discard = positive_integer("discard", discard)
    if T is not None and discard >= T:
        says = f"discard must be less than the {T} steps of J, got {discard}"
        raise ValueError(f"{says}; pass fewer, or a longer sequence")
    return int(discard)


class _Frames:
    """Frames [B, n, k] on their way along some sequences, and how far they have come."""

    def __init__(self, frame: Array, discard: int, stride: int | None, longest: int, seed: tuple[int, int]) -> None:
        self.frame, self.discard, self.longest, self.seed = frame, discard, longest, seed
        self.fixed, self.stride = stride is not None, stride or 1
        self.done, self.rounded = 0, False  # steps; whether a direction vanished in rounding
        self.spread = 1.0  # the largest ratio of sizes met between two QRs more than a step apart

    def advance(self, J: Array) -> Array:
        """Carry the frames through J [B, T, n, n]; return ln|R_ii| of every step [B, T, k], −∞ once it has died."""
        growth, s = np.empty((*J.shape[:2], self.frame.shape[2])), 0
        while s < J.shape[1]:
            if self.done == self.discard:
                self.frame = _refilled(self.frame, np.random.default_rng(self.seed))
            steps = min(self.stride, J.shape[1] - s)
            if self.done < self.discard:
                steps = min(steps, self.discard - self.done)
            log_r = None
            while log_r is None:
                log_r = self._block(J[:, s : s + steps]) if steps > 1 else self._step(J[:, s])
                if log_r is None:
                    steps = max(1, steps // 2)
                    self.stride = self.stride if self.fixed else steps
            growth[:, s : s + steps] = log_r[:, None] / steps
            s, self.done = s + steps, self.done + steps
        return growth

    def _block(self, J: Array) -> Array | None:
        """ln|R_ii| [B, k] of several steps at once; None where the frame would lose directions on the way."""
        moved, largest = _carried(J, self.frame)
        if not np.isfinite(largest).all():
            return None
        Q, r = _orthonormal(moved)
        dead: NDArray[np.bool_] = np.logical_not(self.frame.any(axis=1))
        smallest = np.where(dead, np.inf, r).min(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = float(np.max(largest / smallest, initial=1.0))
        # where a direction dies, single steps say which one, and when; NaN is 0/0, a step in which all of them do
        if not spread <= (LOST if self.fixed else SPREAD):
            return None
        self.spread = max(self.spread, spread)
        self._choose(J.shape[1], spread)
        if dead.any():
            Q = np.where(dead[:, None, :], 0.0, Q)
        self.frame = Q
        return np.log(r, out=np.full_like(r, -np.inf), where=~dead)

    def _choose(self, steps: int, spread: float) -> None:
        """Aim the next stride at the spread that is wanted, were the columns to grow apart at the same rate."""
        if not self.fixed:
            wanted = int(steps * TARGET_BITS / max(math.log2(spread), 1.0))
            self.stride = max(1, min(wanted, 2 * self.stride, self.longest))

    def _step(self, J: Array) -> Array:
        """ln|R_ii| [B, k] of a single step, its rows in order of size."""
        each, k = np.arange(len(J))[:, None], self.frame.shape[2]
        moved = J @ self.frame
        size = np.abs(moved).max(axis=2)
        rows = descending(size)  # Householder QR is then accurate row by row, and zero rows give exact zeros
        Q, r = _orthonormal(moved[each, rows])
        lost = r <= max(1.0, J.shape[-1] / 32) * ROUNDING * size[each, rows[:, :k]]
        self.rounded |= bool((lost & (r > 0)).any()) and self.done >= self.discard
        self.frame = np.empty_like(Q)
        self.frame[each, rows] = np.where(lost[:, None, :], 0.0, Q)  # a dead direction stays dead
        smallest = np.where(lost, np.inf, r).min(axis=1)
        self._choose(1, float(np.max(size.max(axis=1) / smallest, initial=1.0)))
        return np.log(r, out=np.full_like(r, -np.inf), where=~lost)


def _carried(J: Array, C: Array) -> tuple[Array, Array]:
    """(J_T ··· J_1 · C [B, n, k], the largest |entry| met on the way [B]) for J [B, T, n, n]."""
    moved, largest = np.empty_like(C), np.zeros(len(C))
    if C.shape[2] <= LAPACK_FROM:
        carry(np.ascontiguousarray(J), np.ascontiguousarray(C), moved, largest)
        return moved, largest
    moved = C
    with np.errstate(over="ignore", invalid="ignore"):
        for s in range(J.shape[1]):
            moved = J[:, s] @ moved
            largest = np.maximum(largest, np.abs(moved).max(axis=(1, 2)))
    return moved, largest


def _orthonormal(C: Array) -> tuple[Array, Array]:
    """(Q [B, n, k], |diag R| [B, k]) of C = QR."""
    Q, r = np.empty_like(C), np.empty((len(C), C.shape[2]))
    if C.shape[2] > LAPACK_FROM:
        for b, one in enumerate(C):
            factors, tau, _, _ = dgeqrf(np.asfortranarray(one), lwork=32 * len(r[b]))
            r[b] = np.abs(factors.diagonal())
            Q[b] = dorgqr(factors, tau, lwork=32 * len(tau), overwrite_a=1)[0]
        return Q, r
    orthonormal(np.ascontiguousarray(C), Q, r)
    return Q, r


def _warn(frames: list[_Frames], stride: int | None) -> None:
    """Say what vanished in rounding, and whether the stride asked for was too long."""
    if any(one.rounded for one in frames):
        warnings.warn(
            "a step Jacobian is singular to working precision though none of its rows is zero (low-rank or repeated"
            " weights, or saturated gates): the exponents of the directions that vanish in rounding are returned as −∞",
            RuntimeWarning, stacklevel=3,
        )  # fmt: skip
    if (spread := max(one.spread for one in frames)) > SPREAD:
        warnings.warn(
            f"directions grow apart by {spread:.1e} within stride = {stride} steps: the small exponents may be off by"
            f" {min(1.0, spread * 2.0**-53):.1e}; leave stride out, or make it shorter",
            RuntimeWarning, stacklevel=3,
        )  # fmt: skip


def _check_sum(growth: Array, log_det: Array) -> None:
    """Warn where Σ_i λ_i is not the mean of ln|det J_s|: then rounding has eaten the small exponents."""
    total = growth.sum(axis=(1, 2))
    finite = np.isfinite(total)
    missed = float(np.abs(total[finite] - log_det[finite].sum(axis=1)).max(initial=0.0)) / growth.shape[1]
    if missed > UNTRUSTED:
        warnings.warn(
            f"the exponents miss the mean of ln|det J| by {missed:.1e} nats/step in all: some step Jacobians are so"
            " ill-conditioned (saturated gates) that rounding changed the smallest exponents; trust the leading ones",
            RuntimeWarning, stacklevel=3,
        )  # fmt: skip


def _refilled(frame: Array, rng: np.random.Generator) -> Array:
    """Put fresh directions, orthogonal to the living ones, in the place of dead ones; they come last."""
    dead = ~frame.any(axis=1)
    if not dead.any():
        return frame
    order = np.argsort(dead, axis=1, kind="stable")
    living = np.take_along_axis(frame, order[:, None, :], axis=2)
    fresh = rng.standard_normal(frame.shape)
    return np.linalg.qr(np.where(np.take_along_axis(dead, order, axis=1)[:, None, :], fresh, living))[0]


def _bootstrap_error(growth: Array) -> Array:
    """Standard error [B, k] of the time averages of growth [B, N, k]: circular block bootstrap, many replicates."""
    B, N, k = growth.shape
    length = int(np.ceil(np.sqrt(N)))
    if 4 * length > N:
        return np.full((B, k), np.nan)
    alive = np.isfinite(growth.sum(axis=1))
    centred = np.where(alive[:, None], growth - np.where(alive, growth.mean(axis=1), 0.0)[:, None], 0.0)
    sums = np.cumsum(np.concatenate([np.zeros((B, 1, k)), centred, centred[:, : length - 1]], axis=1), axis=1)
    means = (sums[:, length:] - sums[:, :-length]) / length  # of the N blocks that start at each step
    return np.where(alive, np.sqrt(length / (N - length) * (means**2).mean(axis=1)), np.nan)

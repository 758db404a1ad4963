"""Whether a sequence was long enough for a rate that was taken along it: a verdict, with the numbers behind it.

A Lyapunov exponent and a decay rate are means of increments, one for each step. `check_convergence` looks at the
increments; `exponent_convergence` and `decay_convergence` find them. NumPy and SciPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from gradlab.decay import checked_norms, usable_lags
from gradlab.lyapunov import LyapunovExponents
from gradlab.validation import Array, positive_integer, real_array

FALSE_ALARMS = 0.01  # chance of any at all among the series of one call, if all are stationary and long enough
# nats: a factor of e. No finite sequence knows its rate better than O(1)/N, and less than that bends no line
STRAIGHT = 1.0
OUTCOMES = ("long enough", "drifting", "correlated", "too few steps", "dead")


class _Numbers(NamedTuple):
    """What is found for one series, in the order of the fields of `Convergence`."""

    rate: float
    standard_error: float
    drift: float
    drift_error: float
    correlation_time: float
    outcome: str


@dataclass(frozen=True, eq=False)
class Convergence:
    """Whether sequences were long enough for the rates along them; arrays of the shape of the series.

    Attributes:
        outcome: one of `OUTCOMES` for each: "long enough"; "drifting", its halves differ; "correlated", over so many
            steps that no standard error can be had; "too few steps", fewer than four blocks; "dead", a rate of −∞.
        steps: N, the number of increments.
        rate: their mean, nats per step.
        standard_error: of it, from blocks of ⌈√N⌉ steps.
        drift: mean of the second half less that of the first, nats per step.
        drift_error: its standard error.
        correlation_time: 1 + 2 Σ_j ρ_j in steps, as far as blocks see it: N/that is how many independent increments
            there are. Above ½⌈√N⌉ do not rely on it, nor on the standard error.
    """

    outcome: NDArray[np.str_]
    steps: NDArray[np.int64]
    rate: Array
    standard_error: Array
    drift: Array
    drift_error: Array
    correlation_time: Array

    @property
    def long_enough(self) -> Array:
        """1 where the sequence was long enough, 0 where not, NaN for a rate of −∞, which needs no length."""
        return np.where(self.outcome == "dead", np.nan, np.asarray(self.outcome == "long enough", np.float64))

    @property
    def converged(self) -> bool:
        """Whether none was too short."""
        return not (self.long_enough == 0.0).any()

    @property
    def verdict(self) -> str:
        """What was found, in a sentence."""
        total, found = self.outcome.size, []
        lengths = f"{self.steps.min()}" + (f" to {self.steps.max()}" if np.ptp(self.steps) else "") + " steps"
        for name, says in zip(OUTCOMES[1:4], (self._drifting, self._correlated, self._few), strict=True):
            which = self.outcome == name
            if which.any():
                found.append(f"{int(which.sum())} of {total} {says(which)}")
        if found:
            return f"too short at {lengths}: " + "; ".join(found)
        dead = int((self.outcome == "dead").sum())
        if dead == total:
            return f"rates of −∞ at {lengths}: all {total}"
        rest = f"{total - dead} of {total}, and a rate of −∞ {dead} of {total}" if dead else f"all {total}"
        return f"long enough at {lengths}: {rest}"

    def _drifting(self, which: NDArray[np.bool_]) -> str:
        with np.errstate(divide="ignore"):
            ratio = np.where(which, np.abs(self.drift) / self.drift_error, -np.inf)
        worst = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        return f"drift, {self.drift[worst]:+.2g} nats/step from half to half, {ratio[worst]:.1f} standard errors"

    def _correlated(self, which: NDArray[np.bool_]) -> str:
        longest = float(np.where(which, self.correlation_time, 0.0).max())
        return f"are correlated over {longest:.3g} steps or more, as long as what a standard error is made of"

    def _few(self, which: NDArray[np.bool_]) -> str:
        return "have no standard error, which takes four blocks of ⌈√N⌉ steps"


def check_convergence(increments: ArrayLike, *, comparisons: int | None = None) -> Convergence:
    """Return whether sequences are long enough for the means of their increments to be taken for rates.

    The N increments are cut into blocks of b = ⌈√N⌉ steps, K of them (an even number, the first steps left out). If b
    is well above the correlation time, block means are independent and nearly normal, and then

    - *drift*: the means of the first and the second K/2 blocks differ by Student's t of K − 2 degrees of freedom;
    - *correlation*: C = 1 − ½ Σ(m_{i+1} − m_i)²/Σ(m_i − m̄)² has mean 0 and variance (K − 2)/(K² − 1) (von Neumann's
      ratio). Above it the blocks are not independent: b is not well above the correlation time.

    Either test is made at a level of 0.01 over twice the number of series, so that the chance of *any* false alarm in a
    call is 1 % (Bonferroni). A sequence whose increments never add up to more than 1 nat away from the straight line of
    their mean passes: its rate is known to O(1/N), which no finite sequence can better, whatever the tests say of
    fluctuations that small. Fewer than 4b steps (N < 16) give no verdict but "too few steps". What no test can see is
    a time scale that the sequence does not cover at all.

    Args:
        increments: nats [N], [B, N] or [B, N, k], steps along axis 0 of one series and axis 1 of several; −∞ where the
            rate is −∞.
        comparisons: among how many series this call is to be counted; those in it if None.

    Returns:
        `Convergence`, its arrays without the axis of the steps.

    Raises:
        ValueError: another number of axes, no step, or NaN or +∞.
        TypeError: entries that are not real numbers.

    Source:
        von Neumann 1941 (moments of the ratio); Fishman 1978 (that ratio as the test of block means); the rule as a
        whole is gradlab's.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> check_convergence(0.3 * rng.standard_normal(400) - 0.1).verdict
        'long enough at 400 steps: all 1'
        >>> check_convergence(0.3 * rng.standard_normal(400) + np.linspace(-0.4, 0.2, 400)).verdict.split(",")[0]
        'too short at 400 steps: 1 of 1 drift'
    """
    array = real_array("increments", increments)
    if array.ndim not in (1, 2, 3) or 0 in array.shape:
        raise ValueError(
            f"increments must be [time], [batch, time] or [batch, time, k] with at least one step, got {array.shape}"
        )
    if np.isnan(array).any() or (array == np.inf).any():
        raise ValueError("increments must be finite or −∞ (a rate of −∞), got NaN or +∞; find where the run overflowed")
    series = np.moveaxis(array, 0 if array.ndim == 1 else 1, -1)
    shape, rows = series.shape[:-1], series.reshape(-1, series.shape[-1])
    total = len(rows) if comparisons is None else positive_integer("comparisons", comparisons)
    return _gathered([_judged(row, total) for row in rows], np.full(len(rows), rows.shape[1]), shape)


def exponent_convergence(found: LyapunovExponents, *, comparisons: int | None = None) -> Convergence:
    """Return whether the sequences were long enough for their Lyapunov exponents.

    The increments of `check_convergence` are ln|R_ii| of each step after `discard`.

    Args:
        found: what `lyapunov_exponents` returns.
        comparisons: as in `check_convergence`.

    Returns:
        `Convergence` of the shape of ``found.exponents``, in that order.

    Example:
        >>> import gradlab as gl
        >>> J = np.random.default_rng(0).standard_normal((2, 400, 3, 3)) / np.sqrt(3)
        >>> exponent_convergence(gl.lyapunov_exponents(J, discard=20)).verdict
        'long enough at 380 steps: all 6'
    """
    history = found.history  # [..., N, k], the running means
    order = np.argsort(-history[..., -1, :], axis=-1, kind="stable")
    history = np.take_along_axis(history, order[..., None, :], axis=-1)
    steps = np.arange(1, history.shape[-2] + 1)[:, None]
    with np.errstate(invalid="ignore"):  # −∞ − −∞ after a direction has died
        increments = np.diff(history * steps, axis=-2, prepend=0.0)
    increments = np.where(np.isneginf(history[..., -1:, :]), -np.inf, increments)
    if history.ndim == 3:
        return check_convergence(increments, comparisons=comparisons)
    whole = check_convergence(increments[None], comparisons=comparisons)
    return Convergence(**{name: value[0] for name, value in vars(whole).items()})


def decay_convergence(
    log_norms: ArrayLike, *, lags: ArrayLike | None = None, skip: int | None = None, comparisons: int | None = None
) -> Convergence:
    """Return whether the sequences were long enough for the rates that `fit_decay` gives.

    The increments of `check_convergence` are those of ln‖∂L/∂h_t‖ from lag to lag, over the lags that are fitted.

    Args:
        log_norms: as for `fit_decay`.
        lags: as for `fit_decay`.
        skip: as for `fit_decay`.
        comparisons: as in `check_convergence`.

    Returns:
        `Convergence` of arrays [B], or scalars.

    Raises:
        ValueError, TypeError: as `fit_decay`.

    Example:
        >>> decay_convergence(-0.1 * np.arange(50.0)[::-1]).verdict
        'long enough at 44 steps: all 1'
    """
    norms, each, skip = checked_norms(log_norms, lags, skip)
    rows, steps = [], []
    total = len(each) if comparisons is None else positive_integer("comparisons", comparisons)
    for y, k in zip(np.atleast_2d(norms), each, strict=True):
        x, y, _ = usable_lags(y, k, skip)
        gaps = np.diff(x)
        increments = np.repeat(np.diff(y) / gaps, gaps)  # a gap in the lags: shared out evenly
        rows.append(_judged(increments, total))
        steps.append(len(increments))
    return _gathered(rows, np.array(steps), norms.shape[:-1])


def _judged(x: Array, comparisons: int) -> _Numbers:
    """Return what is found of one series [N]."""
    N, nan = len(x), math.nan
    if np.isneginf(x).any():
        return _Numbers(-math.inf, nan, nan, nan, nan, "dead")
    b = math.ceil(math.sqrt(N))
    rate = float(x.mean()) if N else nan
    if 4 * b > N or N == 0:
        return _Numbers(rate, nan, nan, nan, nan, "too few steps")
    K = N // b // 2 * 2
    means = x[N - K * b :].reshape(K, b).mean(axis=1)
    spread = float(means.var(ddof=1))
    first, second = means[: K // 2], means[K // 2 :]
    drift = float(second.mean() - first.mean())
    drift_error = math.sqrt(2.0 * float(first.var(ddof=1) + second.var(ddof=1)) / K)  # (s₁² + s₂²)/(K/2)
    variance = float(x.var(ddof=1))
    time = b * spread / variance if variance > 0 else 1.0
    level = FALSE_ALARMS / (2 * comparisons)
    outcome = "long enough"
    if np.abs(np.cumsum(x - rate)).max() > STRAIGHT:
        if abs(drift) > -special.stdtrit(K - 2, level / 2) * drift_error:
            outcome = "drifting"
        elif spread > 0 and _neighbours(means) > -special.ndtri(level) * math.sqrt((K - 2) / (K * K - 1)):
            outcome = "correlated"
    return _Numbers(rate, math.sqrt(b * spread / N), drift, drift_error, time, outcome)


def _neighbours(means: Array) -> float:
    """Return C = 1 − ½ Σ(m_{i+1} − m_i)²/Σ(m_i − m̄)²: near the correlation of neighbours, and 0 in the mean."""
    return float(1 - 0.5 * (np.diff(means) ** 2).sum() / ((means - means.mean()) ** 2).sum())


def _gathered(rows: list[_Numbers], steps: NDArray[np.int64], shape: tuple[int, ...]) -> Convergence:
    *numbers, outcome = (np.array(column).reshape(shape) for column in zip(*rows, strict=True))
    return Convergence(outcome, steps.reshape(shape).astype(np.int64), *numbers)

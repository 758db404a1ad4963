"""How fast the gradient decays on its way back through time, and where the decay comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.links import check_step_bounds, log_zero, real_steps, sum_from_end, times
from gradlab.validation import Array, finite, real_array

LN2 = float(np.log(2.0))


@dataclass(frozen=True, eq=False)
class DecayFit:
    """A straight line through the log norm of the gradient against the lag; scalars, or [B].

    Attributes:
        rate: slope, nats per step; negative where the gradient shrinks on its way back.
        standard_error: of `rate`, from the fluctuation of the increments.
        intercept: value of the line at lag 0.
        first_lag: smallest lag in the fit; −1 where there is none.
        last_lag: largest lag in the fit; −1 where there is none.
        reason: why this range, in words; a string, or a tuple of B strings.
        half_life: steps for the norm to halve, ln 2/(−rate); ∞ where it does not shrink.
        doubling_time: steps for the norm to double, ln 2/rate; ∞ where it does not grow.
    """

    rate: Array
    standard_error: Array
    intercept: Array
    first_lag: NDArray[np.int64]
    last_lag: NDArray[np.int64]
    reason: str | tuple[str, ...]

    @property
    def half_life(self) -> Array:
        """Steps for the norm to halve; ∞ where it does not shrink, NaN without a fit."""
        return _times_to_factor_two(-self.rate)

    @property
    def doubling_time(self) -> Array:
        """Steps for the norm to double; ∞ where it does not grow, NaN without a fit."""
        return _times_to_factor_two(self.rate)


@dataclass(frozen=True, eq=False)
class DecayBudget:
    """The exact account of the gradient's decay from T back to t, in nats; [B, T] each, or [T].

    The terms, in the order of `terms`, sum to `measured`. The first three are None without a recurrent matrix,
    and `step_norms` stands for them; otherwise `step_norms` is None.

    Attributes:
        promise: k ln(γ σ1(W)), what the norm of W alone promises.
        saturation: Σ_s ln(max φ'_s σ1(W)) − promise ≤ 0: the slopes are not at their supremum.
        within_step: Σ_s ln‖J_s‖ − Σ_s ln(max φ'_s σ1(W)) ≤ 0: the steepest units are not those W drives most.
        step_norms: Σ_s ln‖J_s‖.
        between_steps: ln σ1(P_t) − Σ_s ln‖J_s‖ ≤ 0: a step does not stretch most what the last one did.
        direction: ln‖P_tᵀ g_T‖ − ln σ1(P_t) − ln‖g_T‖ ≤ 0: the loss does not ask in the leading direction.
        other_times: ln‖∂L/∂h_t‖ − ln‖P_tᵀ g_T‖: what losses before T add; 0 for a loss at T.
        measured: ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖.
        lags: k, the number of real steps from t to T.
    """

    promise: Array | None
    saturation: Array | None
    within_step: Array | None
    step_norms: Array | None
    between_steps: Array
    direction: Array
    other_times: Array
    measured: Array
    lags: NDArray[np.int64]

    @property
    def terms(self) -> dict[str, Array]:
        """The terms that are there, in the order of the account, name → array."""
        names = ["promise", "saturation", "within_step", "step_norms", "between_steps", "direction", "other_times"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def residual(self) -> Array:
        """`measured` minus the sum of the terms: rounding, or NaN where the gradient is exactly zero."""
        with np.errstate(invalid="ignore"):
            return self.measured - sum(self.terms.values())

    @property
    def per_step(self) -> dict[str, Array]:
        """The terms and `measured` divided by the lag, nats per step; 0 at lag 0."""
        steps = np.maximum(self.lags, 1)
        return {name: value / steps for name, value in {**self.terms, "measured": self.measured}.items()}


def fit_decay(log_norms: ArrayLike, *, lags: ArrayLike | None = None, skip: int | None = None) -> DecayFit:
    """Return the exponential rate at which the gradient's norm changes on its way back through time.

    Least squares of ln‖∂L/∂h_t‖ on the lag k = T − t.

    *Range.* Lags below `skip` are left out, in which the gradient turns towards the leading directions; by
    default the first tenth, ⌈0.1 T⌉ with T the largest lag. The fit ends before the first −∞, an exactly zero
    gradient. `reason` says what was done.

    *Standard error.* The log norm under a random product is a random walk with drift, so residuals about the line
    are nearly as correlated as they can be. The slope is Σ w_i Δ_i in the increments Δ_i, exactly; its variance is
    Σ_ij w_i w_j times the autocovariance of Δ about its mean, with Bartlett weights (Newey & West) to lag
    L = min(⌈√m⌉, ⌊(m − 1)/2⌋) for m increments, divided by 1 − (L + 1)/m for the mean that was taken off.

    Simulated coverage of ±1.96 standard errors: independent increments 0.90 at m = 20, 0.92 at 50, 0.93 at 100, 0.94
    at 500; correlated at 0.5: 0.82 at m = 20, 0.88 at 50, 0.90 at 100, 0.93 at 500; correlated at 0.8: 0.65 at m = 20,
    0.77 at 50, 0.82 at 100, 0.91 at 500, too small for short sequences. For noise about an exact line it is far too
    large: 5 times at m = 20, 47 times at 500. (benchmarks/fit_decay_coverage.py; ± 0.004, 20000 sequences each.)

    Args:
        log_norms: ln‖∂L/∂h_t‖ at t = 0 … T, [T+1] or [B, T+1]; −∞ for a zero gradient.
        lags: number of real steps from t to T, not increasing in t, [T+1] or [B, T+1]. Where a lag repeats, at
            masked steps, the earliest t counts, as it gathers all losses on that state. Default T − t.
        skip: the smallest lag that is used.

    Returns:
        A `DecayFit`; scalars for [T+1], arrays [B] for [B, T+1]. The rate is NaN with fewer than 3 usable lags.

    Raises:
        ValueError: NaN or +∞ among the norms, shapes or lags that do not fit.
        TypeError: entries that are not real numbers, or a `skip` that is not an integer.

    Source:
        Newey & West 1987 (variance).

    Example:
        >>> fit = fit_decay([-6.0, -5.0, -4.0, -3.0, -2.0, -1.0])
        >>> float(fit.rate), float(fit.intercept), round(float(fit.half_life), 4), fit.reason
        (-1.0, -1.0, 0.6931, 'lags 1 to 5: the first 1 left out while the gradient aligns')
    """
    norms, each, skip = checked_norms(log_norms, lags, skip)
    fits = [_fit(y, k, skip) for y, k in zip(np.atleast_2d(norms), each, strict=True)]
    numbers = np.array([f[:5] for f in fits])
    rate, error, intercept, first, last = numbers[0] if norms.ndim == 1 else numbers.T
    reason = fits[0][5] if norms.ndim == 1 else tuple(f[5] for f in fits)
    return DecayFit(rate, error, intercept, first.astype(np.int64), last.astype(np.int64), reason)


def decay_budget(
    log_singular_values: ArrayLike,
    log_step_norms: ArrayLike,
    log_gradient_norms: ArrayLike,
    *,
    slopes: ArrayLike | None = None,
    sigma_max: float | None = None,
    slope_supremum: float | None = None,
    log_terminal_gradient: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> DecayBudget:
    """Return why the gradient decays as it does: the chain of bounds as an exact account.

    k ln(γσ1(W)) + saturation + within_step + between_steps + direction + other_times
    = ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖, each term the slack of one inequality (see `DecayBudget`).

    Where the gradient is exactly zero, the first term that is −∞ names the cause (dead units show in
    `saturation`, `within_step` or `between_steps`, a gradient orthogonal to what is left in `direction`); the
    terms after it, −∞ less −∞, are NaN: what is lost cannot be lost again. `residual` is NaN there. With
    ∂L/∂h_T = 0 `direction` and `measured` are NaN or +∞: no account from T is possible.

    Args:
        log_singular_values: ln σ_i(P_t) [B, T, n], or ln σ1(P_t) [B, T].
        log_step_norms: ln‖J_s‖₂ [B, T] (`gradlab.bounds.chain(J).log_step_norms`).
        log_gradient_norms: ln‖∂L/∂h_t‖, t = 0 … T [B, T+1], total over all losses.
        slopes: φ'(a_t) [B, T, n]. With `sigma_max` and `slope_supremum`, all three or none: without, as for gated
            cells, the account starts at the step norms.
        sigma_max: σ1(W).
        slope_supremum: γ = sup|φ'|.
        log_terminal_gradient: ln‖P_tᵀ g_T‖ [B, T+1] with g_T = ∂L/∂h_T. None supposes that the loss is at T only.
        mask: True where the step is real [B, T].

    Returns:
        A `DecayBudget` of arrays [B, T]. All inputs may lack the batch axis; then so do the arrays.

    Raises:
        ValueError: shapes that do not fit, NaN or +∞, some but not all of slopes, sigma_max and
            slope_supremum, or a `log_terminal_gradient` that differs from `log_gradient_norms` at T.
        TypeError: entries that are not real numbers.

    Source:
        Pascanu, Mikolov & Bengio 2013 for the chain; the account itself is gradlab's.

    Example:
        >>> budget = decay_budget([[-2.0], [-1.0]], [-0.5, -1.0], [-4.0, -2.5, -1.0])
        >>> {name: term.tolist() for name, term in budget.terms.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'step_norms': [-1.5, -1.0], 'between_steps': [-0.5, 0.0],
         'direction': [-1.0, -0.5], 'other_times': [0.0, 0.0]}
    """
    steps = real_array("log_step_norms", log_step_norms)
    single = steps.ndim == 1
    steps = np.atleast_2d(steps)
    if steps.ndim != 2 or 0 in steps.shape:
        raise ValueError(f"log_step_norms must be [batch, time] or [time], got shape {steps.shape}")
    shape = B, T = steps.shape
    sigma = _batched("log_singular_values", log_singular_values, single, (shape, (B, T, -1)))
    sigma = sigma[..., 0] if sigma.ndim == 3 else sigma
    total = _batched("log_gradient_norms", log_gradient_norms, single, ((B, T + 1),))
    _no_nan("log_step_norms", steps)
    real = real_steps(mask, shape)
    lags = real[:, ::-1].cumsum(axis=1)[:, ::-1]
    norms = sum_from_end(np.where(real, steps, 0.0))
    terminal = total
    if log_terminal_gradient is not None:
        terminal = _batched("log_terminal_gradient", log_terminal_gradient, single, ((B, T + 1),))
        ends = terminal[:, -1], total[:, -1]
        # 1e-3 is far above rounding, even of float32, and far below a forgotten gradient
        if not all(a == b or abs(a - b) < 1e-3 for a, b in zip(*ends, strict=True)):
            raise ValueError(
                f"log_terminal_gradient must equal log_gradient_norms at T, where both are ln‖∂L/∂h_T‖,"
                f" got {ends[0].tolist()} and {ends[1].tolist()}"
            )
    terms: dict[str, Array | None] = dict.fromkeys(("promise", "saturation", "within_step"))
    with np.errstate(invalid="ignore"):
        given = (slopes is not None, sigma_max is not None, slope_supremum is not None)
        if all(given):
            gain = _log_gains(slopes, sigma_max, slope_supremum, single, shape)
            check_step_bounds(np.where(real, steps, -np.inf), gain[1], np.asarray(slopes).shape[-1])
            promise = times(lags, gain[0])
            links = sum_from_end(np.where(real, gain[1], 0.0))
            terms = {"promise": promise, "saturation": links - promise, "within_step": norms - links}
        elif any(given):
            raise ValueError(
                "slopes, sigma_max and slope_supremum must be given together or not at all, got "
                + ", ".join(n for n, g in zip(("slopes", "sigma_max", "slope_supremum"), given, strict=True) if g)
            )
        terms |= {
            "step_norms": None if all(given) else norms,
            "between_steps": sigma - norms,
            "direction": terminal[:, :-1] - sigma - total[:, -1:],
            "other_times": np.zeros(shape) if log_terminal_gradient is None else total[:, :-1] - terminal[:, :-1],
            "measured": total[:, :-1] - total[:, -1:],
        }
    if single:
        terms, lags = {name: None if a is None else a[0] for name, a in terms.items()}, lags[0]
    return DecayBudget(**terms, lags=lags)  # type: ignore[arg-type]


def checked_norms(
    log_norms: ArrayLike, lags: ArrayLike | None, skip: int | None
) -> tuple[Array, NDArray[np.int64], int | None]:
    """Return the log norms [T+1] or [B, T+1], the lags of each sequence [B, T+1], and skip, or say what is wrong.

    Args:
        log_norms: as `fit_decay` takes them.
        lags: as `fit_decay` takes them.
        skip: as `fit_decay` takes it.

    Raises:
        ValueError: NaN or +∞ among the norms, shapes or lags that do not fit.
        TypeError: entries that are not real numbers, or a `skip` that is not an integer.
    """
    norms = real_array("log_norms", log_norms)
    if norms.ndim not in (1, 2) or 0 in norms.shape:
        raise ValueError(f"log_norms must be [time + 1] or [batch, time + 1], got shape {norms.shape}")
    _no_nan("log_norms", norms)
    if skip is not None and (isinstance(skip, bool) or not isinstance(skip, int | np.integer)):
        raise TypeError(f"skip must be an integer number of lags, got {skip!r}")
    if skip is not None and skip < 0:
        raise ValueError(f"skip must not be negative, got {skip}; 0 uses every lag")
    return norms, _lags(lags, norms.shape), None if skip is None else int(skip)


def usable_lags(y: Array, lags: NDArray[np.int64], skip: int | None) -> tuple[NDArray[np.int64], Array, str]:
    """Return the lags that a rate is taken over, ascending, the log norms at these, and why these, in words.

    Args:
        y: ln‖∂L/∂h_t‖ at t = 0 … T [T+1].
        lags: of each, not increasing [T+1].
        skip: the smallest lag that is used; None: the first tenth is left out.
    """
    distinct, earliest = np.unique(lags, return_index=True)  # ascending lags, the earliest t of each
    y = y[earliest]
    start = int(skip) if skip is not None else int(np.ceil(0.1 * distinct[-1]))
    zero = np.flatnonzero(y == -np.inf)
    stop = int(zero[0]) if zero.size else len(y)
    x, y = distinct[:stop], y[:stop]
    why = f"the first {start} left out " + ("while the gradient aligns" if skip is None else "as asked")
    why = "none left out" if start == 0 else why
    if zero.size:
        why += f", stopped before lag {distinct[stop]} where the gradient is exactly zero"
    return x[x >= start], y[x >= start], why


def _fit(y: Array, lags: NDArray[np.int64], skip: int | None) -> tuple[float, float, float, int, int, str]:
    """Fit one sequence: (rate, standard error, intercept, first lag, last lag, reason)."""
    x, y, why = usable_lags(y, lags, skip)
    if len(x) < 3:
        ends = (int(x[0]), int(x[-1])) if len(x) else (-1, -1)
        return np.nan, np.nan, np.nan, *ends, f"no fit: {len(x)} usable lags of the 3 it takes; {why}"
    centre = x.mean()
    c = (x - centre) / ((x - centre) ** 2).sum()
    rate = float(c @ (y - y[0]))
    weights = c[::-1].cumsum()[::-1][1:]  # slope = Σ weights · increments
    gaps, increments = np.diff(x), np.diff(y)
    e = weights * (increments - gaps * (y[-1] - y[0]) / (x[-1] - x[0]))
    m = len(e)
    L = min(int(np.ceil(np.sqrt(m))), (m - 1) // 2)
    variance = e @ e + 2 * sum((1 - j / (L + 1)) * (e[j:] @ e[:-j]) for j in range(1, L + 1))
    error = float(np.sqrt(max(variance, 0.0) / (1 - (L + 1) / m)))
    return rate, error, float(y.mean() - rate * centre), int(x[0]), int(x[-1]), f"lags {x[0]} to {x[-1]}: {why}"


def _lags(lags: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the lags [B, T+1], checked."""
    if lags is None:
        lags = np.arange(shape[-1])[::-1]
    array = np.asarray(lags)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lags must be integers, got dtype {array.dtype}; count the real steps from t to T")
    if array.shape not in (shape, shape[-1:]):
        raise ValueError(f"lags must have the shape of log_norms {shape} or be [time + 1], got shape {array.shape}")
    array = array.astype(np.int64)
    if (np.diff(array, axis=-1) > 0).any() or (array < 0).any():
        raise ValueError("lags must not be negative and must not increase with t; lag = steps from t to the end T")
    return np.broadcast_to(array, np.atleast_2d(np.empty(shape)).shape)


def _log_gains(
    slopes: ArrayLike | None, sigma_max: float | None, supremum: float | None, single: bool, shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Return (ln(γσ1(W)), ln(max|φ'_s| σ1(W)) [B, T])."""
    phi = np.abs(_batched("slopes", slopes, single, ((*shape, -1),)))
    finite("slopes", phi, ("batch", "time"))
    sigma = finite("sigma_max", real_array("sigma_max", np.asarray(sigma_max)))
    gamma = finite("slope_supremum", real_array("slope_supremum", np.asarray(supremum)))
    if sigma.ndim or gamma.ndim or sigma < 0 or gamma <= 0:
        raise ValueError(f"sigma_max must be ≥ 0 and slope_supremum > 0, got {sigma_max} and {supremum}")
    if phi.max() > gamma * (1 + 1e-12):
        raise ValueError(f"slopes reach {phi.max()}, above slope_supremum = {supremum}; give the activation's supremum")
    return log_zero(gamma) + log_zero(sigma), log_zero(phi.max(axis=-1)) + log_zero(sigma)


def _batched(name: str, value: ArrayLike | None, single: bool, shapes: tuple[tuple[int, ...], ...]) -> Array:
    """Return `value` with a batch axis, one of `shapes` (−1: any length ≥ 1), free of NaN and +∞."""
    array = real_array(name, np.asarray(value))
    array = array[None] if single else array
    for shape in shapes:
        if array.ndim == len(shape) and all(a == s or (s == -1 and a) for a, s in zip(array.shape, shape, strict=True)):
            _no_nan(name, array)
            return array
    wanted = " or ".join(str(tuple("n" if s == -1 else s for s in shape[single:])) for shape in shapes)
    raise ValueError(f"{name} must have shape {wanted} to go with log_step_norms, got {array.shape[single:]}")


def _no_nan(name: str, array: Array) -> None:
    if np.isnan(array).any() or (array == np.inf).any():
        raise ValueError(f"{name} must be finite or −∞ (an exact zero), got NaN or +∞; find where the run overflowed")


def _times_to_factor_two(rate: Array) -> Array:
    rate = np.asarray(rate)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(np.isnan(rate), np.nan, np.where(rate > 0, LN2 / np.abs(rate), np.inf))

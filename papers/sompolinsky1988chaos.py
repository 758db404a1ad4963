"""A random network of tanh units turns from rest to chaos at g = 1, and its λ_1 follows from mean field.

Stated by Sompolinsky, Crisanti & Sommers 1988 (doi 10.1103/PhysRevLett.61.259) for ẋ = −x + J tanh(x), J_ij ~
N(0, g²/n), n → ∞: below g = 1 rest is stable, with the rate g − 1 by the circular law; above it there is chaos, its λ_1
follows from the autocorrelation of the activity, and λ_1 → (g − 1)²/2 as g → 1. In their theory the autocorrelation
moves over the lag τ like a particle in a potential, from rest to the top at 0, and λ_1 = −1 + √(1 − E_0) with E_0 the
lowest level of −d²/dτ² + 1 − g²⟨tanh'(x_t) tanh'(x_{t+τ})⟩. Measured in networks in Euler steps, and extrapolated to
n → ∞ and dt → 0 at once, from networks of half the size in steps of twice the length: over 1/n in the chaotic phase,
at rest over 1/√n, as the edge of the spectrum of W has it, with the Euler step undone.

    python papers/sompolinsky1988chaos.py            # four minutes on 2 cores
    python papers/sompolinsky1988chaos.py --quick    # smaller networks
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reproduction import Claim, Result, reproduce, standard_error
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import brentq

import gradlab as gl
from gradlab.record import figure

REST = 0.5  # g of a network at rest
CHAOTIC = (4.0, 6.0)  # g at which measurement and theory are compared
ONSET = (3.0, 2.0, 1.5, 1.25)  # and, in full, towards the transition, where λ_1 is small against its spread
NEAR = 0.02  # g − 1 from which the theory is extrapolated to its limit
ERRORS = 4.0  # standard errors that a mean may be off …
TELLING = 0.5  # … and at most this much of the value: a wider tolerance would pass anything
TRANSIENT = 50.0  # units of time until the state is on its attractor
CHUNK = 10  # step Jacobians that are held together: they stay in the cache

Array = NDArray[np.float64]


def correlation(f: Callable[[Array], Array], covariance: Array, variance: float) -> Array:
    """Return ⟨f(x) f(y)⟩ for normal x and y of one variance and each of the covariances ≥ 0."""
    nodes = np.linspace(-6.6, 6.6, 121)  # the trapezoidal rule: e^-20 for the poles of tanh, also at g = 8
    weights = np.exp(-0.5 * nodes**2)
    weights = weights / weights.sum()
    own, shared = (np.sqrt(np.maximum(v, 0.0))[:, None, None] for v in (variance - covariance, covariance))
    given = np.einsum("dij,i->dj", f(own * nodes[:, None] + shared * nodes), weights)  # ⟨f⟩ given what is shared
    return given**2 @ weights


def mean_field_exponent(gain: float) -> float:
    """Return λ_1 per unit of time of the infinite network, g > 1."""

    def log_cosh(x: Array) -> Array:
        return np.logaddexp(x, -x) - np.log(2.0)

    def energy(covariance: Array, variance: float) -> Array:
        return -0.5 * covariance**2 + gain**2 * correlation(log_cosh, covariance, variance)

    variance = brentq(lambda v: np.diff(energy(np.array([0.0, v]), v))[0], 0.5 * (gain - 1.0), gain**2)
    covariance = variance * np.linspace(0.0, 1.0, 401) ** 2
    potential = CubicSpline(covariance, energy(covariance, variance))
    well = CubicSpline(covariance, 1.0 - gain**2 * correlation(lambda x: np.cosh(x) ** -2.0, covariance, variance))

    def fall(_: float, value: Array) -> Array:
        return -np.sqrt(np.maximum(2.0 * (potential(0.0) - potential(np.maximum(value, 0.0))), 0.0))

    tau = np.linspace(0.0, 30.0 + 12.0 / (gain - 1.0), 4001)  # near g = 1 Δ falls as exp(−2(g − 1)τ/√3)
    start = variance - 0.5 * float(potential(variance, 1)) * 1e-6  # Δ'' = −V'(Δ) over the first 1e-3
    path = solve_ivp(fall, (1e-3, tau[-1]), [start], t_eval=tau[1:], rtol=1e-9, atol=1e-12).y[0]
    levels = well(np.maximum(np.concatenate([path[::-1], [variance], path]), 0.0))
    step = tau[1]
    coupling = np.full(len(levels) - 1, -(step**-2))
    lowest = eigh_tridiagonal(levels + 2.0 * step**-2, coupling, select="i", select_range=(0, 0))[0][0]
    return float(np.sqrt(1.0 - lowest) - 1.0)


def exponent(n: int, gain: float, dt: float, time: float, seed: int) -> float:
    """Return λ_1 per unit of time of one network of n units in Euler steps."""
    rng = np.random.default_rng([seed, n, round(100 * gain)])  # one network and start for every dt
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    x = rng.standard_normal(n)
    for _ in range(round(TRANSIENT / dt)):
        x = x + dt * (W @ np.tanh(x) - x)

    def jacobians(x: Array) -> Iterator[Array]:
        for _ in range(round(time / dt / CHUNK)):
            J = np.empty((CHUNK, n, n))
            for s in range(CHUNK):
                J[s] = dt * W * np.cosh(x) ** -2.0
                x = x + dt * (W @ np.tanh(x) - x)
            J[:, np.arange(n), np.arange(n)] += 1.0 - dt
            yield J

    return float(gl.lyapunov_exponents(jacobians(x), k=1, discard=round(10.0 / dt)).exponents[0]) / dt


def networks(n: int, gain: float, dt: float, time: float, seeds: range) -> tuple[float, float]:
    """Return λ_1, mean over networks and its standard error."""
    values = [exponent(n, gain, dt, time, s) for s in seeds]
    return float(np.mean(values)), standard_error(values)


def at_the_transition(near: float) -> float:
    """Return λ_1/(½(g − 1)²) of the theory for g → 1, from g − 1 = near and twice that."""
    first, second = (mean_field_exponent(1.0 + e) / (0.5 * e**2) for e in (near, 2.0 * near))
    return 2.0 * first - second


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: rest below the transition, the law just above it, λ_1 in the chaotic phase."""
    n, dt, time, count = (200, 0.1, 60.0, 12) if options.quick else (400, 0.05, 100.0, 32)
    seeds = range(options.seed, options.seed + count)
    compared = CHAOTIC if options.quick else CHAOTIC + ONSET
    gains = sorted({REST, *compared} if options.quick else {REST, 0.8, *compared})
    fine = {gain: networks(n, gain, dt, time, seeds) for gain in gains}
    coarse = {gain: networks(n // 2, gain, 2.0 * dt, time, seeds) for gain in gains}
    edge, half = (np.expm1(found[REST][0] * step) / step for found, step in ((fine, dt), (coarse, 2.0 * dt)))
    ahead = 1.0 / (np.sqrt(2.0) - 1.0)  # times the change from n/2 to n that 1/√n → 0 brings
    rest_error = float(np.hypot((1.0 + ahead) * fine[REST][1], ahead * coarse[REST][1]))
    onset, before = at_the_transition(NEAR), at_the_transition(2.0 * NEAR)
    claims = [
        Claim(
            statement=f"λ_1 at g = {REST:g} is g − 1, extrapolated to 1/√n → 0",
            place="",
            published=REST - 1.0,
            measured=float(edge + ahead * (edge - half)),
            uncertainty=rest_error,
            tolerance=ERRORS * rest_error,
            why=f"{ERRORS:g} standard errors over {count} networks",
            units="per unit of time",
        ),
        Claim(
            statement="λ_1 of the theory over (g − 1)²/2 for g → 1",
            place="",
            published=1.0,
            measured=onset,
            tolerance=abs(onset - before),
            why=f"its change where g − 1 = {NEAR:g} and {2 * NEAR:g} become {2 * NEAR:g} and {4 * NEAR:g}",
        ),
    ]
    for gain in compared:
        published, step = mean_field_exponent(gain), fine[gain][0] - coarse[gain][0]
        error = float(np.hypot(2.0 * fine[gain][1], coarse[gain][1]))
        claims.append(
            Claim(
                statement=f"λ_1 at g = {gain:g}, extrapolated to 1/n → 0 and dt → 0",
                place="",
                published=published,
                measured=fine[gain][0] + step,
                uncertainty=error,
                tolerance=min(ERRORS * error + step**2 / published, TELLING * published),
                why=f"{ERRORS:g} standard errors over {count} networks, and the next order of the extrapolation;"
                f" {TELLING:.0%} at most",
                units="per unit of time",
            )
        )
    rows = [
        {"gain": gain, "n": units, "dt": length, "value": value, "error": error}
        for units, length, found in ((n, dt, fine), (n // 2, 2.0 * dt, coarse))
        for gain, (value, error) in found.items()
    ]
    theory = [[g, mean_field_exponent(g)] for g in (1.02, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)]
    differs = f"n up to {n}, where the theory is of n → ∞."
    if not options.quick:
        nearest = min(ONSET)
        differs += (
            f" At g = {nearest:g} that is too few: λ_1 is {coarse[nearest][0]:.3f} at n = {n // 2} and"
            f" {fine[nearest][0]:.3f} at n = {n}, so that 1/n is no small correction."
        )
    return Result(claims, {"rows": rows, "theory": theory}, differs)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw λ_1 over g, for two sizes, with the theory."""
    curves = record["curves"]
    theory = np.array(curves["theory"])
    sizes = sorted({row["n"] for row in curves["rows"]})
    found = {
        n: np.array([[row["gain"], row["value"], row["error"]] for row in curves["rows"] if row["n"] == n]).T
        for n in sizes
    }
    with figure(path, figsize=(3.4, 2.6)) as (_, axes):
        ax = axes[0, 0]
        ax.axhline(0.0, color="0.7", linewidth=0.6)
        ax.plot([0.4, 1.0, *theory[:, 0]], [-0.6, 0.0, *theory[:, 1]], color="k", label=r"theory, $n\to\infty$")
        for n, marker in zip(sizes, ("v", "s"), strict=True):
            gain, value, error = found[n]
            label = f"n = {n}"
            ax.errorbar(gain, value, error, fmt=marker, color="0.6", markersize=2.5, linewidth=0.7, label=label)
        (gain, coarse, coarse_error), (_, fine, fine_error) = (found[n] for n in sizes)
        error = np.hypot(2.0 * fine_error, coarse_error)
        ax.errorbar(gain, 2.0 * fine - coarse, error, fmt="o", color="C0", label="extrapolated")
        ax.set_xlim(0.3, 6.2)
        ax.set_xlabel("gain g")
        ax.set_ylabel(r"$\lambda_1$ (per unit of time)")
        ax.legend(loc="lower right")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

"""In a linear diagonal recurrence σ_i(∂h_T/∂h_t) = |λ_i|^k, and λ = exp(−e^ν + iθ) keeps |λ| < 1 whatever is learnt.

Setting: the complex units h_k = Λ h_{k−1} + B u_k of Orvieto et al. 2023 (arXiv 2303.06349), with eigenvalues uniform
on the ring 0.9 ≤ |λ| ≤ 0.99 (section 3.2.2, the lemma on sampling a ring). Their statements: the state goes as |λ_j|^k
(section 3.2.1), the ring lemma, stability by the exponential parametrisation (section 3.3), and the forward blow-up
E‖h‖²/E‖Bu‖² = ln[(1 − r_min²)/(1 − r_max²)]/(r_max² − r_min²) under white noise, which the normalisation
γ = √(1 − |λ|²) takes away (section 3.4).

    python papers/orvieto2023resurrecting.py            # ten seconds on 2 cores
    python papers/orvieto2023resurrecting.py --quick    # seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from reproduction import Claim, Result, reproduce

import gradlab as gl
from gradlab.record import figure

R_MIN, R_MAX = 0.9, 0.99
SIZE = 0.05  # of one update of each parameter: a large step of Adam
ERRORS = 4.0  # standard errors that a sampled mean may be off

Complex = NDArray[np.complex128]


def ring(units: int, rng: np.random.Generator) -> tuple[Complex, NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues by the lemma on the ring, and their parameters ν and θ."""
    u = rng.random(units) * (R_MAX**2 - R_MIN**2) + R_MIN**2
    nu, theta = np.log(-0.5 * np.log(u)), 2.0 * np.pi * rng.random(units)
    return gl.predictions.stable_eigenvalues(nu, theta), nu, theta


def log_singular_values(eigenvalues: Complex, steps: int) -> NDArray[np.float64]:
    """Return ln σ_i of ∂h_T/∂h_t, measured along a run of the real recurrence (Re h, Im h) [T, 2n]."""
    real, imaginary = tf.constant(eigenvalues.real), tf.constant(eigenvalues.imag)

    def step(state: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        x, y = tf.split(state, 2, axis=-1)
        return tf.concat([real * x - imaginary * y + u, real * y + imaginary * x], axis=-1)

    inputs = np.random.default_rng(0).standard_normal((1, steps, 1))
    traj = gl.rollout(gl.as_step(step, state_size=2 * len(eigenvalues), input_size=1), inputs)
    return gl.log_singular_values(gl.step_jacobians(traj))[0]


def updated(
    eigenvalues: Complex, nu: NDArray[np.float64], theta: NDArray[np.float64], updates: int, rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Return the largest |λ| after each of many random updates, of ν and θ, and of Re λ and Im λ."""
    stable, direct = [], []
    for _ in range(updates):
        steps = SIZE * rng.standard_normal((4, len(nu)))
        nu, theta, eigenvalues = nu + steps[0], theta + steps[1], eigenvalues + steps[2] + 1j * steps[3]
        stable.append(float(np.abs(gl.predictions.stable_eigenvalues(nu, theta)).max()))
        direct.append(float(np.abs(eigenvalues).max()))
    return stable, direct


def squared_states(eigenvalues: Complex, steps: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return |h|² of every unit at the end, under complex white noise of unit variance of its own."""
    h = np.zeros(len(eigenvalues), complex)
    for _ in range(steps):
        x, y = rng.standard_normal((2, len(eigenvalues)))
        h = eigenvalues * h + (x + 1j * y) / np.sqrt(2.0)
    return np.abs(h) ** 2


def sampled(statement: str, place: str, published: float, values: NDArray[np.float64], error: float) -> Claim:
    """Return a claim about a mean over independent units, whose standard error is known beforehand."""
    return Claim(
        statement=statement,
        place=place,
        published=published,
        measured=float(values.mean()),
        uncertainty=float(values.std(ddof=1) / np.sqrt(len(values))),
        tolerance=ERRORS * error / np.sqrt(len(values)),
        why=f"{ERRORS:g} standard errors of the mean over {len(values)} units",
    )


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: powers, ring, stability, blow-up and its cure."""
    units, length, wide, updates = (8, 300, 4_000, 200) if options.quick else (32, 1000, 100_000, 2000)
    rng = np.random.default_rng(options.seed)
    eigenvalues, nu, theta = ring(units, rng)
    log_sigma = log_singular_values(eigenvalues, length)
    lags = np.arange(length, 0, -1)
    exact = np.repeat(gl.predictions.diagonal_log_singular_values(eigenvalues, lags), 2, axis=-1)
    stable, direct = updated(eigenvalues, nu, theta, updates, rng)

    many, _, _ = ring(wide, rng)
    squares, width = np.abs(many) ** 2, R_MAX**2 - R_MIN**2
    h2 = squared_states(many, int(np.ceil(15.0 / (1.0 - R_MAX))), rng)  # what is left of the start is e^-30
    # |h|² of a unit is exponential about 1/(1 − |λ|²), whose mean and mean square over the ring are known
    mean = np.log((1.0 - R_MIN**2) / (1.0 - R_MAX**2)) / width
    mean_square = (1.0 / (1.0 - R_MAX**2) - 1.0 / (1.0 - R_MIN**2)) / width
    claims = [
        Claim(
            statement="largest |ln σ_i − k ln|λ_i|| over all units and lags",
            place="section 3.2.1",
            published=0.0,
            measured=float(np.abs(log_sigma - exact).max()),
            tolerance=4.0 * length * float(np.finfo(float).eps),
            why=f"4ε for the entries of each of {length} factors",
            units="nats",
            kind="theorem",
        ),
        sampled("mean |λ|² on the ring", "section 3.2.2", R_MIN**2 + width / 2, squares, width / np.sqrt(12.0)),
        Claim(
            statement=f"largest |λ| under {updates} random updates of ν and θ, of {SIZE:g} each",
            place="section 3.3",
            published=1.0,
            measured=max(stable),
            tolerance=0.0,
            why="an inequality; 1 − |λ| stays above rounding here",
            sense="at most",
            kind="theorem",
        ),
        sampled(
            "E|h|² under white noise, eigenvalues on the ring",
            "section 3.4",
            mean,
            h2,
            np.sqrt(2.0 * mean_square - mean**2),
        ),
        sampled("E|h|² with the inputs scaled by √(1 − |λ|²)", "section 3.4", 1.0, (1.0 - squares) * h2, 1.0),
    ]
    shown = np.linspace(1, length, 26).astype(int)
    return Result(
        claims,
        {
            "eigenvalues": [eigenvalues.real.tolist(), eigenvalues.imag.tolist()],
            "lags": shown.tolist(),
            "log_singular_values": log_sigma[length - shown].T.tolist(),
            "updates": list(range(1, updates + 1, updates // 200)),
            "largest_stable": stable[:: updates // 200],
            "largest_direct": direct[:: updates // 200],
        },
        "updates are random, not those of training on the Long Range Arena, whose accuracies need days",
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the singular values over the lag with k ln|λ|, and the largest |λ| over the updates."""
    curves = record["curves"]
    real, imaginary = np.array(curves["eigenvalues"])
    lags = np.array(curves["lags"])
    exact = gl.predictions.diagonal_log_singular_values(real + 1j * imaginary, lags)  # [lags, n]
    with figure(path, 1, 2, figsize=(5.6, 2.3)) as (_, axes):
        left, right = axes[0]
        pick = np.unique(np.linspace(0, exact.shape[1] - 1, 6).astype(int))
        for i in pick:
            left.plot(lags, exact[:, i], color="0.4", label=r"$k\,\ln|\lambda_i|$" if i == pick[0] else None)
            left.plot(
                lags,
                np.array(curves["log_singular_values"])[2 * i],
                "o",
                color="C0",
                markersize=2.2,
                label=r"$\ln\sigma_i(\partial h_T/\partial h_{T-k})$, measured" if i == pick[0] else None,
            )
        left.set_xlabel("lag k (steps)")
        left.set_ylabel("nats")
        left.set_xlim(0, 1.02 * lags.max())
        left.legend(loc="lower left")
        updates = curves["updates"]
        right.plot(updates, curves["largest_direct"], color="C3", label=r"$\lambda=a+\mathrm{i}b$")
        right.plot(
            updates, curves["largest_stable"], color="C0", label=r"$\lambda=\exp(-\mathrm{e}^{\nu}+\mathrm{i}\theta)$"
        )
        right.axhline(1.0, color="k", linestyle=":", label="bound")
        right.set_xlabel("random updates")
        right.set_ylabel(r"largest $|\lambda_i|$")
        right.set_xlim(0, None)
        right.set_ylim(0.0, None)
        right.legend(loc="upper left")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

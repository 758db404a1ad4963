"""As the memory of a linear recurrence grows its gradients explode, although no Jacobian ever exceeds 1.

Setting: h_t = λ h_{t−1} + x_t with white noise x of unit variance, stationary. Stated by Zucchet & Orvieto 2024 (arXiv
2405.21064): E h² = 1/(1 − λ²) and E(∂h/∂λ)² = (1 + λ²)/(1 − λ²)³, so the sensitivity grows as (1 − λ)^−3 while
|∂h_T/∂h_t| = λ^k < 1. Both moments are taken over long runs for four λ; once more by backpropagation through
independent sequences, ∂h_T/∂λ = Σ_t (∂h_T/∂h_t) h_{t−1}.

    python papers/zucchet2024curse.py            # ten seconds on 2 cores
    python papers/zucchet2024curse.py --quick    # seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from reproduction import Claim, Result, reproduce
from scipy.signal import lfilter

import gradlab as gl
from gradlab.record import figure

EIGENVALUES = (0.5, 0.9, 0.95, 0.99)
SHOWN = 0.95  # the one that is followed by backpropagation, too
SHOWN_LAGS = 200
ERRORS = 4.0  # standard errors that a sampled mean may be off: 6e-5 of them are, for a normal error


def long_runs(
    eigenvalue: float, runs: int, steps: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the time averages of h² and (∂h/∂λ)² over independent stationary runs [runs] each."""
    before = int(np.ceil(40.0 / (1.0 - eigenvalue)))  # e^-40 of the start is left
    means = []
    for _ in range(runs):
        h = lfilter([1.0], [1.0, -eigenvalue], rng.standard_normal(before + steps))
        s = lfilter([0.0, 1.0], [1.0, -eigenvalue], h)  # ∂h_t/∂λ = λ ∂h_{t−1}/∂λ + h_{t−1}
        means.append([np.mean(h[before:] ** 2), np.mean(s[before:] ** 2)])
    state, sensitivity = np.transpose(means)
    return state, sensitivity


def diagonal_cell() -> gl.VanillaRNNCell:
    """Return the recurrences as one linear network, a unit for each λ, every one driven by the same input."""
    return gl.VanillaRNNCell(
        len(EIGENVALUES),
        activation="linear",
        kernel_initializer="ones",
        recurrent_initializer=keras.initializers.Constant(np.diag(EIGENVALUES)),
        dtype="float64",
    )


def backpropagated(sequences: int, steps: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return ∂h_T/∂λ of independent sequences that start at rest [sequences, units], by backpropagation."""
    found = []
    for first in range(0, sequences, 1000):
        inputs = rng.standard_normal((min(1000, sequences - first), steps, 1))
        traj = gl.rollout(diagonal_cell(), inputs)
        # the units do not meet, so the gradient of their sum is that of each
        g = gl.state_gradients(traj, None, lambda states: keras.ops.sum(states[:, -1], axis=-1))
        found.append(np.einsum("btn,btn->bn", g.total[:, 1:], traj.states[:, :-1]))
    return np.concatenate(found)


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: both moments at every λ, the gradient, the Jacobian."""
    runs, steps = (100, 10_000) if options.quick else (200, 200_000)
    sequences, length = (4_000, 400) if options.quick else (20_000, 400)
    rng = np.random.default_rng(options.seed)
    claims, rows = [], []
    for eigenvalue in EIGENVALUES:
        theory = gl.predictions.sensitivity_moments(eigenvalue)
        expected = theory.standard_errors(runs * steps)
        measured = long_runs(eigenvalue, runs, steps, rng)
        row = {"eigenvalue": eigenvalue}
        for name, symbol, value, values, error in zip(
            ("state", "sensitivity"),
            ("E h²", "E(∂h/∂λ)²"),
            (float(theory.state), float(theory.sensitivity)),
            measured,
            map(float, expected),
            strict=True,
        ):
            own = float(values.std(ddof=1) / np.sqrt(runs))
            row |= {name: float(values.mean()), f"{name}_error": own}
            if name == "state" and eigenvalue != SHOWN:
                continue
            claims.append(
                Claim(
                    statement=f"{symbol} at λ = {eigenvalue:g}",
                    place="",
                    published=value,
                    measured=float(values.mean()),
                    uncertainty=own,
                    tolerance=ERRORS * error,
                    why=f"{ERRORS:g} standard errors of a mean over {runs * steps:.0e} correlated steps",
                )
            )
        rows.append(row)
    unit = EIGENVALUES.index(SHOWN)
    gradient = backpropagated(sequences, length, rng)[:, unit] ** 2
    sensitivity = float(gl.predictions.sensitivity_moments(SHOWN).sensitivity)
    claims.append(
        Claim(
            statement=f"E(∂h_T/∂λ)² at λ = {SHOWN:g}, by backpropagation through {length} steps",
            place="",
            published=sensitivity,
            measured=float(gradient.mean()),
            uncertainty=float(gradient.std(ddof=1) / np.sqrt(sequences)),
            tolerance=ERRORS * np.sqrt(2.0 / sequences) * sensitivity,
            why=f"{ERRORS:g} standard errors of the mean of {sequences} squares of a normal variable",
        )
    )
    J = gl.step_jacobians(gl.rollout(diagonal_cell(), rng.standard_normal((1, length, 1))))
    log_sigma = gl.log_singular_values(J)[0]  # [T, n], from the largest lag to 1
    claims.append(
        Claim(
            statement="largest singular value of ∂h_T/∂h_t, over all lags and λ",
            place="abstract",
            published=1.0,
            measured=float(np.exp(log_sigma.max())),
            tolerance=0.0,
            why="λ < 1: nothing to allow for",
            sense="at most",
            kind="theorem",
        )
    )
    return Result(
        claims,
        {
            "rows": rows,
            "lags": list(range(1, SHOWN_LAGS + 1)),
            "log_singular_values": log_sigma[: -SHOWN_LAGS - 1 : -1, ::-1].T.tolist(),  # ascending, as the λ are
            "eigenvalues": list(EIGENVALUES),
        },
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the moments over 1 − λ, and the Jacobian over the lag."""
    curves = record["curves"]
    distance = np.array([1.0 - row["eigenvalue"] for row in curves["rows"]])
    grid = np.geomspace(0.7 * distance.min(), 0.7, 200)
    theory = gl.predictions.sensitivity_moments(1.0 - grid)
    with figure(path, 1, 2, figsize=(5.6, 2.3)) as (_, axes):
        left, right = axes[0]
        for name, line, colour, label in (
            ("sensitivity", theory.sensitivity, "C3", r"$\mathrm{E}(\partial h/\partial\lambda)^2$"),
            ("state", theory.state, "C0", r"$\mathrm{E}\,h^2$"),
        ):
            left.loglog(grid, line, color=colour)
            left.errorbar(
                distance,
                [row[name] for row in curves["rows"]],
                [row[f"{name}_error"] for row in curves["rows"]],
                fmt="o",
                color=colour,
                label=f"{label}, measured",
            )
        left.loglog(grid, np.ones_like(grid), color="k", linestyle=":", label=r"$\sup\,\|\partial h_T/\partial h_t\|$")
        left.plot([], [], color="0.4", label="published")
        left.set_xlabel(r"$1-\lambda$")
        left.set_ylabel("second moment")
        left.invert_xaxis()
        left.legend(loc="upper left")
        for value, line, colour in zip(
            curves["eigenvalues"], curves["log_singular_values"], ("C5", "C2", "C0", "C3"), strict=True
        ):
            right.plot(curves["lags"], np.exp(line), color=colour, label=rf"$\lambda={value:g}$")
        right.axhline(1.0, color="k", linestyle=":")
        right.set_xlim(0, SHOWN_LAGS)
        right.set_ylim(0, 1.05)
        right.set_xlabel("lag k (steps)")
        right.set_ylabel(r"$|\partial h_T/\partial h_{T-k}|$")
        right.legend()


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

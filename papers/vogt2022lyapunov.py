"""Lyapunov exponents of trained networks tell how fast gradients vanish, for an LSTM only if its cell state is kept.

Vogt, Puelma Touzel, Shlizerman & Lajoie 2022 (doi 10.3389/fams.2022.818799) read the propagation of gradients in
trained networks from the Lyapunov exponents of their step Jacobians. In the authors' public code
(github.com/shlizee/lyapunov-hyperopt, lyapunov.py: calc_Jac and lstm_jac) the Jacobian of an LSTM is ∂h_t/∂h_{t−1} with
c_{t−1} held fixed: n exponents of a state of 2n. Setting: LSTMs and, as a control, GRUs, whose state is h alone, that
learn digits as sequences of 64 pixels; then one long stream of test digits. λ_1 of the whole state and of h alone are
set beside the rate at which the gradient decays in the same run.

    python papers/vogt2022lyapunov.py            # two minutes on 2 cores
    python papers/vogt2022lyapunov.py --quick    # fewer and less trained networks
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from reproduction import Claim, Result, reproduce

import gradlab as gl
from gradlab.record import figure

UNITS, CLASSES = 32, 10
DISCARD = 64  # steps, one digit
ERRORS = 3.0  # standard errors of the mean difference
KINDS = ("LSTM", "GRU")

Array = NDArray[np.float64]


def measure(layer: Any, stream: Array, seed: int) -> dict[str, Any]:
    """Return λ_1 of the whole state, λ_1 of h alone, and the rate of the gradient, each with its standard error."""
    traj = gl.rollout(layer, stream)
    J = gl.step_jacobians(traj)
    h_alone = np.ascontiguousarray(J[:, :, :UNITS, :UNITS])  # ∂h_t/∂h_{t−1}, c_{t−1} held fixed: the authors' lstm_jac
    direction = np.random.default_rng(seed).standard_normal(UNITS)
    g = gl.state_gradients(traj, None, lambda states: keras.ops.sum(states[:, -1, :UNITS] * direction, axis=-1))
    fit = gl.fit_decay(g.log_total_norm)
    whole, alone = (gl.lyapunov_exponents(M, k=1, discard=DISCARD) for M in (J, h_alone))
    return {
        "rate": [float(fit.rate[0]), float(fit.standard_error[0])],
        "whole": [float(whole.exponents[0, 0]), float(whole.standard_error[0, 0])],
        "alone": [float(alone.exponents[0, 0]), float(alone.standard_error[0, 0])],
    }


def log_norms(layer: Any, stream: Array, longest: int) -> dict[str, list[float]]:
    """Return ln‖∂h_T/∂h_{T−k}‖ over the lags 1 … longest, through the whole state and with c left out."""
    J = gl.step_jacobians(gl.rollout(layer, stream))[0, -longest:]
    P, whole = np.eye(J.shape[-1]), []
    for step in J[::-1]:
        P = P @ step  # a few hundred steps above e^−700: the largest singular value is safe in float64
        whole.append(float(np.log(np.linalg.norm(P[:UNITS, :UNITS], 2))))
    alone = gl.log_singular_values(J[:, :UNITS, :UNITS])[::-1, 0]
    return {"whole": whole, "alone": alone.tolist()}


def difference(rows: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Return the mean of λ_1 − rate over networks and its standard error, between them or within, what is larger."""
    values = np.array([row[name][0] - row["rate"][0] for row in rows])
    within = np.sqrt(np.mean([row[name][1] ** 2 + row["rate"][1] ** 2 for row in rows]))
    return float(values.mean()), float(max(values.std(ddof=1), within) / np.sqrt(len(rows)))


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: λ_1 of the whole state and of h alone against the gradient, LSTM and GRU."""
    seeds, epochs, digits = (3, 1, 8) if options.quick else (6, 8, 24)
    task = gl.tasks.digits("pixels", seed=options.seed)
    stream = task.test_inputs[:digits].reshape(1, -1, 1)
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for kind in KINDS:
        for seed in range(options.seed, options.seed + seeds):
            for stage, passes in (("initial", 0), ("trained", epochs)):
                experiment = gl.Experiment(
                    kind.lower(), data="digits", units=UNITS, initializer="orthogonal", epochs=passes, seed=seed
                )
                network = gl.trained(experiment)
                row = {"cell": kind, "stage": stage, "seed": seed, **measure(network.layer, stream, seed)}
                if passes:
                    row["accuracy"] = float(network.curves["test_accuracy"][-1])
                rows.append(row)
            if kind == "LSTM" and seed == options.seed:
                curves["log_norms"] = log_norms(network.layer, stream, min(256, stream.shape[1]))
    claims = []
    for kind, name, what, place in (
        ("LSTM", "whole", "λ_1 of (h, c)", "abstract"),
        ("LSTM", "alone", "λ_1 of ∂h_t/∂h_{t−1} with c held fixed", "the authors' code, lstm_jac"),
        ("GRU", "alone", "λ_1 of ∂h_t/∂h_{t−1}", "abstract"),
    ):
        trained = [row for row in rows if row["cell"] == kind and row["stage"] == "trained"]
        mean, error = difference(trained, name)
        claims.append(
            Claim(
                statement=f"{what} is the rate of ln‖∂L/∂h_t‖ in trained {kind}s: their difference",
                place=place,
                published=0.0,
                measured=mean,
                uncertainty=error,
                tolerance=ERRORS * error,
                why=f"{ERRORS:g} standard errors of the mean over {seeds} networks",
                units="nats/step",
            )
        )
    return Result(
        claims,
        {"rows": rows, **curves},
        "digits in place of their tasks, nats in place of bits. What fails is the recipe of their code: it leaves out"
        " the path through c, along which an LSTM keeps its gradient",
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw λ_1 over the rate of the gradient for all networks, and ln‖∂h_T/∂h_t‖ over the lag for one."""
    curves = record["curves"]
    looks = (("LSTM", "whole", "o", "C0", "LSTM, (h, c)"), ("LSTM", "alone", "s", "C3", "LSTM, h alone (recipe)"))
    looks += (("GRU", "alone", "^", "C2", "GRU, h"),)
    with figure(path, 1, 2, figsize=(5.6, 2.6)) as (_, axes):
        left, right = axes[0]
        ends = [row["rate"][0] for row in curves["rows"]]
        line = [min(ends) - 0.03, max(ends) + 0.03]
        left.plot(line, line, color="k", linewidth=0.7)
        for cell, name, marker, colour, label in looks:
            for stage, face in (("initial", "w"), ("trained", colour)):
                some = [row for row in curves["rows"] if row["cell"] == cell and row["stage"] == stage]
                left.errorbar(
                    [row["rate"][0] for row in some],
                    [row[name][0] for row in some],
                    [row[name][1] for row in some],
                    [row["rate"][1] for row in some],
                    fmt=marker,
                    color=colour,
                    markerfacecolor=face,
                    linewidth=0.7,
                    label=label if stage == "trained" else None,
                )
        left.set_xlabel(r"rate of $\ln\|\partial L/\partial h_t\|$ (nats/step)")
        left.set_ylabel(r"$\lambda_1$ (nats/step)")
        left.legend(title="open: before training", loc="center left")
        for name, colour, label in (("whole", "C0", "through (h, c)"), ("alone", "C3", "h alone (recipe)")):
            values = curves["log_norms"][name]
            right.plot(range(1, len(values) + 1), values, color=colour, label=label)
        right.set_xlabel("lag k (steps)")
        right.set_ylabel(r"$\ln\|\partial h_T/\partial h_{T-k}\|$")
        right.legend(title="a trained LSTM", loc="lower left")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

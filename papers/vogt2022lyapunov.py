"""Lyapunov exponents of trained networks tell how fast gradients vanish, for an LSTM only if its cell state is kept.

Vogt, Puelma Touzel, Shlizerman & Lajoie 2022 (doi 10.3389/fams.2022.818799) read the propagation of gradients in
trained networks from the Lyapunov exponents of their step Jacobians. In the public code
(github.com/shlizee/lyapunov-hyperopt, lyapunov.py: calc_Jac and lstm_jac) the Jacobian of an LSTM is ∂h_t/∂h_{t−1} with
c_{t−1} held fixed: n exponents of a state of 2n. Setting: LSTMs and, as a control, GRUs, whose state is h alone, that
learn digits as sequences of 64 pixels; then long streams of test digits. λ_1 of the whole state and of h alone is
measured on some of them, the rate at which the gradient decays on others.

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
from reproduction import Claim, Result, reproduce, standard_error

import gradlab as gl
from gradlab.record import figure

UNITS, CLASSES = 32, 10
DISCARD = 64  # steps, one digit
ERRORS = 3.0  # standard errors of the mean difference
KINDS = ("LSTM", "GRU")

Array = NDArray[np.float64]


def measure(layer: Any, streams: Array, seed: int) -> dict[str, Any]:
    """Return λ_1 of the whole state and of h alone, and the rate of the gradient, each with its standard error.

    The exponents are of the first half of the streams [S, T, 1], the gradient is of the second.
    """
    first, second = np.split(streams, 2)
    J = gl.step_jacobians(gl.rollout(layer, first))
    h_alone = np.ascontiguousarray(J[:, :, :UNITS, :UNITS])  # ∂h_t/∂h_{t−1}, c_{t−1} held fixed: the public lstm_jac
    whole, alone = (gl.lyapunov_exponents(M, k=1, discard=DISCARD) for M in (J, h_alone))
    direction = np.random.default_rng(seed).standard_normal(UNITS)
    traj = gl.rollout(layer, second)
    g = gl.state_gradients(traj, None, lambda states: keras.ops.sum(states[:, -1, :UNITS] * direction, axis=-1))
    fit = gl.fit_decay(g.log_total_norm)

    def of_streams(values: Array, errors: Array) -> list[float]:
        return [float(np.mean(values)), float(np.sqrt(np.mean(np.square(errors)) / len(values)))]

    return {
        "rate": of_streams(fit.rate, fit.standard_error),
        "whole": of_streams(whole.exponents[:, 0], whole.standard_error[:, 0]),
        "alone": of_streams(alone.exponents[:, 0], alone.standard_error[:, 0]),
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


def difference(rows: list[dict[str, Any]], name: str, other: str) -> tuple[float, float]:
    """Return the mean of `name` − `other` over networks and its standard error, between or within, what is larger."""
    values = np.array([row[name][0] - row[other][0] for row in rows])
    within = np.sqrt(np.mean([row[name][1] ** 2 + row[other][1] ** 2 for row in rows]) / len(rows))
    return float(values.mean()), max(standard_error(values), float(within))


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: λ_1 of the whole state and of h alone against the gradient, LSTM and GRU."""
    seeds, epochs, digits, streams = (3, 1, 8, 4) if options.quick else (6, 8, 24, 8)
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for kind in KINDS:
        for seed in range(options.seed, options.seed + seeds):
            for stage, passes in (("initial", 0), ("trained", epochs)):
                experiment = gl.Experiment(
                    kind.lower(), data="digits", units=UNITS, initializer="orthogonal", epochs=passes, seed=seed
                )
                network = gl.trained(experiment)
                read = network.task.test_inputs[: streams * digits].reshape(streams, -1, 1)
                row = {"cell": kind, "stage": stage, "seed": seed, **measure(network.layer, read, seed)}
                if passes:
                    row["accuracy"] = float(network.curves["test_accuracy"][-1])
                rows.append(row)
            if kind == "LSTM" and seed == options.seed:
                curves["log_norms"] = log_norms(network.layer, read[-1:], min(256, read.shape[1]))
    claims = []
    for kind, name, other, what, place in (
        ("LSTM", "whole", "rate", "λ_1 of (h, c) is the rate of ln‖∂L/∂h_t‖ on other digits", "abstract"),
        (
            "LSTM",
            "alone",
            "whole",
            "the recipe of the public code, ∂h_t/∂h_{t−1} with c_{t−1} held fixed, gives λ_1 of (h, c)",
            "the public code, lstm_jac; not a sentence of the paper",
        ),
        ("GRU", "alone", "rate", "λ_1 of h is the rate of ln‖∂L/∂h_t‖ on other digits", "abstract"),
    ):
        trained = [row for row in rows if row["cell"] == kind and row["stage"] == "trained"]
        mean, error = difference(trained, name, other)
        claims.append(
            Claim(
                statement=f"trained {kind}s: {what}; their difference",
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
        "digits in place of their tasks, nats in place of bits; exponents and gradient are of different test digits,"
        " out of a split of each seed that LSTM and GRU share. No sentence of the paper says that the recipe gives λ_1"
        " of an LSTM, only the public code takes it so: it leaves out the path through c, along which an LSTM keeps its"
        " gradient",
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

"""Does a state that withstands noise for ever have to lose its gradient?

Bengio, Simard & Frasconi 1994, Learning long-term dependencies with gradient descent is difficult. Their unit is
a_t = w tanh(a_{t−1}) + u_t with w > 1. It keeps its sign for ever while |u_t| stays below some h*, which they name and
do not compute; it is h* = w√(1 − 1/w) − artanh√(1 − 1/w), found again here by simulation: the search narrows in on the
steady adverse input under which the sign just survives T steps. Then the price of that: along every latched trajectory
|∂a_t/∂a_{t−1}| < 1, so that ∂a_t/∂a_0 → 0; at the fixed point a = w tanh(a) it falls by ln(w(1 − tanh²a)) a step.

Published: h* exists, and larger inputs need fewer steps (section III); latched implies vanishing (section IV).

    python papers/bengio1994latching.py            # a minute
    python papers/bengio1994latching.py --quick    # some seconds
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from reproduction import Claim, Result, reproduce

import gradlab as gl
from gradlab.record import figure

WEIGHTS = (1.25, 1.5, 2.0, 3.0)
# theory: u* to 15 digits, and the slope of the map at its stable fixed point
THRESHOLDS = {1.25: 0.0778051693153440, 1.5: 0.207546455322030, 2.0: 0.532839975353552, 3.0: 1.30327390800259}
SLOPES = {1.5: 0.394313025498602497, 2.0: 0.166372087751674327, 3.0: 0.0305128460478683121}


@functools.cache  # traced once: w comes in as an input
def unit() -> Any:
    """Return the unit of the paper as a step: a_t = w tanh(a_{t−1}) + u_t, its inputs being (w, u_t)."""
    return gl.as_step(lambda a, x: x[:, :1] * tf.tanh(a) + x[:, 1:], state_size=1, input_size=2)


def run(w: np.ndarray, inputs: np.ndarray) -> gl.Trajectory:
    """Return the units with self-connections w [B] from rest at a = w tanh(a) > 0, under inputs [B, T]."""
    a = w
    for _ in range(2000):  # contracts by the slope at rest, 0.62 for w = 1.25
        a = w * np.tanh(a)
    return gl.rollout(unit(), np.stack(np.broadcast_arrays(w[:, None], inputs), axis=-1), a[:, None])


def kept(w: np.ndarray, inputs: np.ndarray, steps: int) -> np.ndarray:
    """Return how many of `steps` steps steady inputs −u [B] leave units at rest with w [B] positive."""
    states = run(w, np.repeat(-inputs[:, None], steps, axis=1)).states[..., 0]
    return np.cumprod(states > 0, axis=1).sum(axis=1) - 1


def thresholds(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for all of WEIGHTS where the sign is lost within `steps` steps, and half of what is left of the search."""
    low, high = np.zeros(len(WEIGHTS)), np.array(WEIGHTS)
    while (high - low > [1e-3 * passage(w, steps) for w in WEIGHTS]).any():
        grid = np.linspace(low, high, 34, axis=1)
        survived = kept(np.repeat(WEIGHTS, 34), grid.ravel(), steps).reshape(grid.shape) == steps
        low, high = np.where(survived, grid, -np.inf).max(axis=1), np.where(survived, np.inf, grid).min(axis=1)
    return 0.5 * (low + high), 0.5 * (high - low)


def passage(w: float, steps: int) -> float:
    """Return how far beyond u* an input must lie to pass the bottleneck of the saddle-node in so many steps.

    Near u* the map moves by δ + c x² a step, δ = u − u*, c = ½|M''| = w s (1 − s²), s = √(1 − 1/w): π/√(cδ) steps.
    """
    s = np.sqrt(1 - 1 / w)
    return float((np.pi / steps) ** 2 / (w * s * (1 - s * s)))


def latched(w: float, share: float, sequences: int, steps: int, seed: int) -> dict[str, Any]:
    """Return what noise of up to `share`·h* does: how many keep their sign, how many are certified, what they lose."""
    noise = np.random.default_rng(seed).uniform(-1, 1, (sequences, steps)) * share * gl.bounds.latching_threshold(w)
    traj = run(np.full(sequences, w), noise)
    J = gl.step_jacobians(traj)
    growth = gl.log_singular_values(J)[..., 0]
    certificate = gl.bounds.latching_certificate(J)
    rounding = 8 * np.finfo(float).eps * np.arange(steps, 0, -1) * np.abs(np.log(certificate.eta))[:, None].clip(1)
    return {
        "w": w,
        "share": share,
        "kept": int((traj.states > 0).all(axis=(1, 2)).sum()),
        "certified": int(certificate.certified.sum()),
        "crossed": int((growth > certificate.log_bound + rounding).sum()),
        "rate": float(growth[:, 0].mean() / steps),
        "rate_standard_error": float(growth[:, 0].std(ddof=1) / steps / np.sqrt(sequences)),
        "log_eta": float(np.log(certificate.eta).max()),
    }


def compute(options: argparse.Namespace) -> Result:
    """Return the claims and what the figure shows."""
    steps = 1000 if options.quick else 10_000
    lost, left = thresholds(steps)
    late = [passage(w, steps) for w in WEIGHTS]
    claims = [
        Claim(
            f"a unit of w = {w:g} keeps its sign for ever while |u| < h* = w√(1 − 1/w) − artanh√(1 − 1/w)",
            "section III; the formula is ours",
            THRESHOLDS[w],
            lost[i],
            2 * late[i] + left[i],
            f"twice π²/(c T²): so far beyond h* the saddle-node delays the loss over all T = {steps} steps",
        )
        for i, w in enumerate(WEIGHTS)
    ]
    beyond = np.geomspace(1e-4, 0.3, 13)
    took = kept(np.full(13, 2.0), gl.bounds.latching_threshold(2.0) + beyond, steps)
    claims.append(
        Claim(
            "the larger the input beyond h*, the fewer the steps that it needs (w = 2)",
            "section III",
            0.0,
            float((np.diff(took) > 0).sum()),
            0.0,
            "a count of inputs that need more steps than a smaller one",
            sense="at most",
            kind="theorem",
        )
    )
    sequences, length = (50, 100) if options.quick else (500, 300)
    noisy = [
        latched(w, share, sequences, length, options.seed + i)
        for w in WEIGHTS
        for i, share in enumerate((0.1, 0.5, 0.9))
    ]
    total = sequences * len(noisy)
    claims += [
        Claim(
            "bounded noise below h* never unlatches, and every such trajectory is certified, |∂a_t/∂a_{t−1}| ≤ η < 1",
            "section IV",
            1.0,
            min(sum(one[name] for one in noisy) for name in ("kept", "certified")) / total,
            0.0,
            "a theorem: all of them",
            kind="theorem",
        ),
        Claim(
            "latched, the gradient vanishes: |∂a_t/∂a_0| ≤ η^t",
            "section IV",
            0.0,
            float(sum(one["crossed"] for one in noisy)),
            0.0,
            f"a theorem: none of {total * length} comparisons, each with room for the rounding of its t factors",
            sense="at most",
            kind="theorem",
        ),
    ]
    for w, slope in SLOPES.items():
        growth = gl.log_singular_values(gl.step_jacobians(run(np.array([w]), np.zeros((1, length)))))[0, :, 0]
        rate = float(gl.fit_decay(np.append(growth, 0.0)).rate)
        claims.append(
            Claim(
                f"at rest ln|∂a_t/∂a_0| falls on a straight line of slope ln(w(1 − tanh²a)), w = {w:g}",
                "section IV; the closed form is ours",
                float(np.log(slope)),
                rate,
                1e-12,
                "rounding: the slope w(1 − tanh²a) has a relative error of some 1e-15·w/(1 − slope)",
                units="nats/step",
                kind="theorem",
            )
        )
    curves = {
        "thresholds": np.transpose([WEIGHTS, lost]).tolist(),
        "transient": np.transpose([beyond, took]).tolist(),
        "noisy": noisy,
        "steps": steps,
    }
    return Result(claims, curves, "the unit is given, not trained; the adverse input is steady, the worst of its size")


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the threshold over w, the time to unlatch beyond it, and what latching costs."""
    curves = record["curves"]
    with figure(path, 1, 3, figsize=(6.8, 2.2)) as (_, axes):
        left, middle, right = axes[0]
        w = np.linspace(1.01, 3.2, 200)
        left.plot(w, gl.bounds.latching_threshold(w), color="C7", lw=0.8, label="$h^*(w)$")
        measured = np.array(curves["thresholds"])
        left.plot(measured[:, 0], measured[:, 1], "o", color="C0", label=f"lost within {curves['steps']:,} steps")
        left.set(xlabel="self-connection $w$", ylabel="adverse input $|u|$", xlim=(1, 3.2), ylim=(0, None))
        left.text(2.45, 0.22, "latched")
        left.text(1.2, 1.0, "loses its sign")
        left.legend(loc="upper left")
        beyond, took = np.array(curves["transient"]).T
        d = np.geomspace(beyond.min(), beyond.max(), 100)
        s = np.sqrt(0.5)
        middle.loglog(d, np.pi / np.sqrt(2 * s * (1 - s * s) * d), color="C7", lw=0.8, label=r"$\pi/\sqrt{c\,\delta}$")
        middle.loglog(beyond, took, "o", color="C0", label="measured, $w = 2$")
        middle.set(xlabel=r"input beyond the threshold, $\delta = |u| - h^*$", ylabel="steps until the sign is lost")
        middle.set_xlim(7e-5, 0.5)
        middle.legend(loc="upper right")
        w = np.linspace(1.01, 3.2, 200)
        a = w
        for _ in range(2000):
            a = w * np.tanh(a)
        slope = np.log(w / np.cosh(a) ** 2)
        right.plot(gl.bounds.latching_threshold(w), slope, color="C7", lw=0.8, label="at rest, closed form")
        for share, marker, color in ((0.1, "o", "C0"), (0.9, "D", "C3")):
            these = [one for one in curves["noisy"] if one["share"] == share]
            where = gl.bounds.latching_threshold([one["w"] for one in these])
            style = {"color": color, "mfc": "none" if share > 0.5 else color, "ms": 5 if share > 0.5 else 2.5}
            right.plot(where, [one["rate"] for one in these], marker, **style, label=f"noise up to {share:g} $h^*$")
            right.plot(where, [one["log_eta"] for one in these], ":", color=color, label=r"its bound $\ln\eta$")
        right.set(xlabel="input withstood, $h^*$", xlim=(0, 1.45), ylim=(-5.2, 0))
        right.set_ylabel(r"rate of $|\partial a_t/\partial a_0|$  [nats/step]")
        right.legend(loc="lower left")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

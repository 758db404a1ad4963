"""The bias b of a forget gate is worth 1 + e^b steps of memory, and chrono initialisation spreads them up to T_max.

Setting: an LSTM at initialisation, its memory measured by the gradient ∂c_T/∂c_t. Stated by Tallec & Ollivier 2018
(arXiv 1804.11188): where inputs and states are centred a gate takes values about σ(b), and its unit forgets over
1/(1 − f) = 1 + e^b steps (section 2); b_f ~ ln U[1, T_max − 1], b_i = −b_f, the chrono initialisation (equation 16),
then gives memories uniform on [2, T_max]. The paper calls this a loose prescription, of the order of magnitude. Exact
for weights close to zero; how much Keras's own initial weights change is measured over seeds. −1/ln f, over which a
power of f falls by e, is what equation 13 gives where f is constant.

    python papers/tallec2018warp.py            # half a minute on 2 cores
    python papers/tallec2018warp.py --quick    # seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from reproduction import Claim, Result, reproduce, standard_error
from scipy import stats

import gradlab as gl
from gradlab.record import figure

BIASES = (0.0, 1.0, 2.0, 3.0, 4.0)
UNITS, FEATURES = 32, 4
SMALL = 1e-12  # of weights that are to be negligible
LONGEST = 100  # T_max
SHOWN = 200  # lags in the figure
FITTED = 30  # lags: the shortest memory is then still well above what comes through other units
ERRORS = 4.0  # standard errors that a sampled mean may be off

Array = NDArray[np.float64]


def lstm(units: int, bias: Any, seed: int, size: float | None = None) -> keras.layers.LSTMCell:
    """Return an LSTM cell with the biases given and weights of the size given, by default those of Keras."""
    kernel: Any = keras.initializers.GlorotUniform(seed=2 * seed)
    recurrent: Any = keras.initializers.Orthogonal(seed=2 * seed + 1)
    if size is not None:
        kernel, recurrent = (keras.initializers.RandomNormal(stddev=size, seed=2 * seed + i) for i in range(2))
    return keras.layers.LSTMCell(
        units,
        kernel_initializer=kernel,
        recurrent_initializer=recurrent,
        bias_initializer=bias,
        unit_forget_bias=False,
        dtype="float64",
    )


def equal(forget: float) -> keras.initializers.Initializer:
    """Return biases that give all units one memory: b_f, and b_i = −b_f as in the paper; Keras's order i, f, c, o."""
    return keras.initializers.Constant(np.repeat([-forget, forget, 0.0, 0.0], UNITS))


def run(cell: keras.layers.LSTMCell, steps: int, seed: int) -> gl.Trajectory:
    """Return a run under white noise."""
    return gl.rollout(cell, np.random.default_rng(seed).standard_normal((1, steps, FEATURES)))


def unit_gradients(traj: gl.Trajectory) -> Array:
    """Return ∂(Σ_j c_{T,j})/∂c_{t,i} [units, T+1]: of unit i itself where the weights are negligible."""
    n = traj.step.cell.units
    return gl.state_gradients(traj, None, lambda states: keras.ops.sum(states[:, -1, n:], axis=-1)).total[0, :, n:].T


def log_gradient(traj: gl.Trajectory, seed: int) -> Array:
    """Return ln‖∂L/∂(h, c)_t‖ [T+1] for a loss L that asks for a random direction of c_T: through every gate."""
    n = traj.step.cell.units
    direction = np.random.default_rng(seed).standard_normal(n)
    g = gl.state_gradients(traj, None, lambda states: keras.ops.sum(states[:, -1, n:] * direction, axis=-1))
    return g.log_total_norm[0] - g.log_total_norm[0, -1]


def negligible_weights(b: float, seed: int) -> dict[str, float]:
    """Return the memory at one bias by the sum over all lags, 1/(1 − f), and by the decay, −1/ln f."""
    steps = int(40.0 * (1.0 + np.exp(b)))  # e^-40 of the sum is left out
    g = unit_gradients(run(lstm(UNITS, equal(b), seed, SMALL), steps, seed))
    return {"leak": float(g.sum(axis=1).mean()), "decay": float(np.mean(-1.0 / gl.fit_decay(np.log(g), skip=0).rate))}


def initial_weights(b: float, seeds: range) -> dict[str, float]:
    """Return the memory of the whole gradient at one bias with Keras's weights, mean over seeds."""
    steps = int(20.0 * (1.0 + np.exp(b)))
    found = [-1.0 / float(gl.fit_decay(log_gradient(run(lstm(UNITS, equal(b), s), steps, s), s)).rate) for s in seeds]
    return {"keras": float(np.mean(found)), "keras_error": standard_error(found)}


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: both time scales, the whole gradient with Keras's weights, the spread under chrono."""
    seeds = range(options.seed, options.seed + (3 if options.quick else 12))
    units = 200 if options.quick else 500
    claims, rows = [], []
    for b in BIASES:
        published = gl.predictions.gate_memory(b)
        rows.append({"bias": b, **negligible_weights(b, options.seed), **initial_weights(b, seeds)})
        if b not in (1.0, max(BIASES)):
            continue
        for name, symbol, value in (("leak", "1/(1 − f)", published.leak), ("decay", "−1/ln f", published.decay)):
            claims.append(
                Claim(
                    statement=f"memory {symbol} at b = {b:g}, negligible weights",
                    place="section 2" if name == "leak" else "from equation 13",
                    published=float(value),
                    measured=rows[-1][name],
                    tolerance=float(value) ** 2 * 4 * UNITS * SMALL,
                    why="weights w change a factor f by at most 4nw through the gates, a memory by its square as much",
                    units="steps",
                    kind="theorem",
                )
            )
    ratio = np.array([row["keras"] / (1.0 + np.exp(row["bias"])) for row in rows])
    worst = int(np.abs(np.log(ratio)).argmax())  # a factor too short is as wrong as one too long
    claims.append(
        Claim(
            statement="memory of the whole gradient with Keras's weights is of the order of 1 + e^b; ln of their ratio,"
            " the worst of five b",
            place="section 2",
            published=0.0,
            measured=float(np.log(ratio[worst])),
            uncertainty=rows[worst]["keras_error"] / rows[worst]["keras"],
            tolerance=0.5 * float(np.log(10.0)),
            why="½ ln 10, half an order of magnitude to either side",
            units="nats",
        )
    )
    rates, drawn = [], range(options.seed, options.seed + (1 if options.quick else 4))
    for s in drawn:
        g = unit_gradients(run(lstm(units, gl.fixes.ChronoInitializer(LONGEST, seed=s), s, SMALL), FITTED, s))
        rates.append(gl.fit_decay(np.log(g), skip=0).rate)
    memory = np.sort(-1.0 / np.expm1(np.concatenate(rates)))
    span, total = LONGEST - 2.0, len(memory)
    claims += [
        Claim(
            statement=f"mean memory under chrono initialisation, T_max = {LONGEST}",
            place="section 2, equation 16",
            published=(LONGEST + 2.0) / 2.0,
            measured=float(memory.mean()),
            uncertainty=float(memory.std(ddof=1) / np.sqrt(total)),
            tolerance=ERRORS * span / np.sqrt(12.0 * total),
            why=f"{ERRORS:g} standard errors of the mean of {total} uniform draws",
            units="steps",
            kind="theorem",
        ),
        Claim(
            statement=f"largest distance of its distribution from the uniform one on [2, {LONGEST}]",
            place="section 2, equation 16",
            published=0.0,
            measured=float(stats.kstest(memory, stats.uniform(2.0, span).cdf).statistic),
            tolerance=float(stats.kstwo.isf(6e-5, total)),
            why=f"what {total} uniform draws exceed 6 times in 100 000 (Kolmogorov–Smirnov)",
            kind="theorem",
        ),
    ]
    biases = {"chrono": gl.fixes.ChronoInitializer(LONGEST, seed=options.seed), "b = 1": equal(1.0)}
    gradients = {
        name: np.mean([log_gradient(run(lstm(UNITS, bias, s), SHOWN, s), s) for s in seeds], axis=0)[::-1].tolist()
        for name, bias in biases.items()
    }
    shown = memory[total // 120 :: total // 60]
    return Result(claims, {"rows": rows, "chrono_memory": shown.tolist(), "gradients": gradients})


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw memory over bias, the distribution under chrono, and the gradient over the lag."""
    curves = record["curves"]
    rows, grid = curves["rows"], np.linspace(-0.2, 4.2, 100)
    published = gl.predictions.gate_memory(grid)
    with figure(path, 1, 3, figsize=(7.0, 2.2)) as (_, axes):
        left, middle, right = axes[0]
        bias = [row["bias"] for row in rows]
        left.semilogy(grid, published.leak, color="C0", label=r"$1/(1-f)=1+\mathrm{e}^b$")
        left.semilogy(grid, published.decay, color="C1", label=r"$-1/\ln f$")
        left.plot(bias, [row["leak"] for row in rows], "o", color="C0", label="measured, weights near 0")
        left.plot(bias, [row["decay"] for row in rows], "o", color="C1")
        left.errorbar(
            bias,
            [row["keras"] for row in rows],
            [row["keras_error"] for row in rows],
            fmt="s",
            color="k",
            markerfacecolor="w",
            label="measured, Keras's weights",
        )
        left.set_xlabel("bias b of the forget gate")
        left.set_ylabel("memory (steps)")
        left.set_ylim(1.0, 400.0)
        left.legend(loc="upper left")
        memory = np.array(curves["chrono_memory"])
        middle.plot([2, LONGEST], [0, 1], color="C0", label=f"uniform on [2, {LONGEST}]")
        middle.plot(memory, (np.arange(len(memory)) + 0.5) / len(memory), ".", color="k", label="measured, chrono")
        middle.set_xlabel("memory 1/(1 − f) (steps)")
        middle.set_ylabel("share of units below")
        middle.legend(loc="upper left")
        for name, colour in (("chrono", "C2"), ("b = 1", "C3")):
            right.plot(np.arange(SHOWN + 1), np.array(curves["gradients"][name]), color=colour, label=name)
        right.set_xlabel("lag k (steps)")
        right.set_ylabel(r"$\ln(\|\partial L/\partial s_{T-k}\|\,/\,\|\partial L/\partial s_T\|)$")
        right.legend(title=r"$s=(h,c)$, Keras's weights", loc="lower left")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

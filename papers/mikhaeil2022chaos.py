"""On a chaotic orbit ‖∂h_T/∂h_t‖ diverges at the rate λ_1, whatever the network; a stable orbit bounds the gradient.

Stated by Mikhaeil, Monfared & Durstewitz 2022 (arXiv 2110.07238): λ_1 is the rate of ln‖J_T ··· J_{t+1}‖ (equation 4);
along orbits that converge to a stable fixed point or cycle the product vanishes and ∂L_T/∂θ stays bounded (theorem 1),
on a chaotic attractor both explode (theorem 2), for every architecture and any first-order recursive map, for an LSTM
over (h, c) (remarks 1 and 3). Setting: autonomous random tanh networks, an LSTM and a GRU with large recurrent weights,
the Hénon map and the Lorenz equations. The slope of ln‖∂h_T/∂h_t‖ over the lag in the second half of each orbit is set
beside λ_1 from its first half, and beside what is known: literature for the two maps, the slope of tanh(2h).

    python papers/mikhaeil2022chaos.py            # a minute on 2 cores
    python papers/mikhaeil2022chaos.py --quick    # seconds
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from reproduction import Claim, Result, reproduce, standard_error

import gradlab as gl
from gradlab.record import figure

ERRORS = 4.0  # standard errors between a slope and λ_1
DT = 0.03  # of the Lorenz equations, in their unit of time
TRANSIENT = 1000  # steps until an orbit is on its attractor
TURNING = 50  # steps until a frame has turned towards the leading direction
LAGS = 25  # at which ln‖∂h_T/∂h_t‖ is looked at
SPANS = (10, 30, 100, 300)  # steps over which ∂L_T/∂W is summed

Array = NDArray[np.float64]


@dataclass(frozen=True)
class System:
    """A recurrence without inputs, how to start it, and what is known of λ_1 in nats per step."""

    name: str
    cell: Any
    start: Callable[[np.random.Generator, int], Array]
    known: float | None = None
    digits: float = 0.0  # half a unit in the last one of what is known
    chaotic: bool = True
    slow: int = 1  # how many times more steps it needs


def henon(state: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """One step of the Hénon map, a = 1.4, b = 0.3."""
    x, y = tf.split(state, 2, axis=-1)
    return tf.concat([1.0 - 1.4 * x * x + y, 0.3 * x], axis=-1)


def lorenz(state: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """One Runge–Kutta step of the Lorenz equations, σ = 10, ρ = 28, β = 8/3."""

    def velocity(s: tf.Tensor) -> tf.Tensor:
        x, y, z = tf.split(s, 3, axis=-1)
        return tf.concat([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z], axis=-1)

    a = velocity(state)
    b = velocity(state + 0.5 * DT * a)
    c = velocity(state + 0.5 * DT * b)
    return state + DT / 6.0 * (a + 2.0 * b + 2.0 * c + velocity(state + DT * c))


def normal(size: int, scale: float = 1.0) -> Callable[[np.random.Generator, int], Array]:
    """Return a draw of start states [B, n]."""
    return lambda rng, count: scale * rng.standard_normal((count, size))


def near(size: int) -> Callable[[np.random.Generator, int], Array]:
    """Return a draw of start states [B, n] about one of them: a gated network may have several attractors."""
    return lambda rng, count: rng.standard_normal(size) + 0.01 * rng.standard_normal((count, size))


def systems(seed: int) -> list[System]:
    """Return what is looked at, stable orbits last."""
    tanh = [
        System(
            f"tanh network, g = {g:g}",
            gl.VanillaRNNCell(64, recurrent_initializer="gaussian", recurrent_gain=g, seed=seed, dtype="float64"),
            normal(64),
        )
        for g in (2.0, 4.0)
    ]
    gated: dict[str, Any] = {"kernel_initializer": "zeros", "dtype": "float64"}
    # smaller at the gate that keeps the state: else some orbits pause, or fall onto a cycle after a thousand steps
    large = gl.fixes.BlockInitializer("gaussian", gain=[32.0, 8.0, 32.0, 32.0], seed=seed)
    small = gl.fixes.BlockInitializer("gaussian", gain=[2.0, 8.0, 8.0], seed=seed)
    lstm = keras.layers.LSTMCell(32, recurrent_initializer=large, unit_forget_bias=False, **gated)
    gru = keras.layers.GRUCell(64, recurrent_initializer=small, **gated)
    maps = (gl.as_step(henon, state_size=2, input_size=1), gl.as_step(lorenz, state_size=3, input_size=1))
    rate = float(np.log(0.166372087751674327))  # slope 2(1 − h²) at h = tanh 2h
    fixed, cycle = (
        gl.VanillaRNNCell(3, recurrent_initializer=keras.initializers.Constant(2.0 * W), dtype="float64")
        for W in (np.eye(3), np.roll(np.eye(3), 1, axis=1))
    )
    return [
        *tanh,
        System("LSTM, g = 32", lstm, near(64)),
        System("GRU, g = 8", gru, near(64)),
        System("Hénon map", maps[0], normal(2, 0.1), 0.41922, 5e-6),
        System("Lorenz equations", maps[1], normal(3, 5.0), 0.9056 * DT, 5e-5 * DT, slow=4),
        System("fixed point of h = tanh(2h)", fixed, unequal, rate, chaotic=False),
        System("3-cycle of h = tanh(2Ph)", cycle, unequal, rate, chaotic=False),
    ]


def unequal(rng: np.random.Generator, count: int) -> Array:
    """Return start states of three units with signs +, +, −, which a cyclic permutation never repeats."""
    return (0.2 + 0.8 * rng.random((count, 3))) * [1.0, 1.0, -1.0]


def settled(system: System, count: int, rng: np.random.Generator) -> Array:
    """Return states on the attractor [B, n]."""
    return gl.rollout(system.cell, np.zeros((count, TRANSIENT, 1)), initial_state=system.start(rng, count)).states[
        :, -1
    ]


def measure(system: System, steps: int, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return λ_1 in the first half of some orbits, and the slope of ln‖∂h_T/∂h_t‖ over the lag in the second."""
    inputs = np.zeros((count, TURNING + 2 * steps, 1))
    J = gl.step_jacobians(gl.rollout(system.cell, inputs, initial_state=settled(system, count, rng)))
    first, second = J[:, : TURNING + steps], J[:, TURNING + steps :]
    lyapunov = gl.lyapunov_exponents(first, k=1, discard=TURNING)
    times = steps - np.unique(np.append(np.linspace(1, steps, LAGS), np.geomspace(1, steps, LAGS)).astype(int))[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the smallest values, and the largest alone is wanted
        log_norm = gl.log_singular_values(second, times=times)[..., 0]
    fit = gl.fit_decay(np.pad(log_norm, ((0, 0), (0, 1))), lags=np.append(steps - times, 0))
    exponent, slope = lyapunov.exponents[:, 0], np.asarray(fit.rate)
    within = lyapunov.standard_error[:, 0] ** 2 + np.asarray(fit.standard_error) ** 2
    # between orbits and along them: whichever is larger
    error = max(standard_error(slope - exponent), float(np.sqrt(within.sum())) / count)
    return {
        "name": system.name,
        "chaotic": system.chaotic,
        "lyapunov": float(exponent.mean()),
        "lyapunov_error": standard_error(exponent),
        "slope": float(slope.mean()),
        "slope_error": max(standard_error(slope), float(np.sqrt(np.mean(fit.standard_error**2) / count))),
        "difference_error": error,
        "lags": (steps - times)[::-1].tolist(),
        "log_norm": log_norm.mean(axis=0)[::-1].tolist(),
        "log_norm_error": (log_norm.std(axis=0, ddof=1) / np.sqrt(count))[::-1].tolist(),
    }


def log_weight_gradients(system: System, count: int, rng: np.random.Generator) -> Array:
    """Return ln‖∂L_T/∂W‖ over the last steps of some orbits, for a loss along a random direction [spans, B]."""
    start = settled(system, count, rng)
    direction = rng.standard_normal(start.shape[-1])
    found = []
    for span in SPANS:
        traj = gl.rollout(system.cell, np.zeros((count, span, 1)), initial_state=start)
        g = gl.state_gradients(traj, None, lambda states: keras.ops.sum(states[:, -1] * direction, axis=-1))
        back = gl.activation_slopes(traj) * g.total[:, 1:]
        gradient = np.einsum("bti,btj->bij", back, traj.states[:, :-1])
        found.append(np.log(np.linalg.norm(gradient, axis=(1, 2))))
    return np.array(found)


def compute(options: argparse.Namespace) -> Result:
    """Return the claims: the slope of each system, what is known of it, and the gradient of the weights."""
    steps, count = (200, 6) if options.quick else (800, 12)
    rng = np.random.default_rng(options.seed)
    claims, rows, spans = [], [], {}
    made = systems(options.seed)
    for system in made:
        row = measure(system, system.slow * steps if system.chaotic else 300, count, rng)
        rows.append(row)
        place = "theorem 2" if system.chaotic else "theorem 1"
        if system.chaotic:
            claims.append(
                Claim(
                    statement=f"slope of ln‖∂h_T/∂h_t‖ over the lag is λ_1 of other steps: {system.name}",
                    place=place,
                    published=row["lyapunov"],
                    measured=row["slope"],
                    uncertainty=row["slope_error"],
                    tolerance=ERRORS * row["difference_error"],
                    why=f"{ERRORS:g} standard errors of the difference, {count} orbits of {system.slow * steps} steps",
                    units="nats/step",
                    kind="theorem",
                )
            )
        if system.known is not None:
            rounding = 1e-12 if not system.chaotic else ERRORS * row["slope_error"] + system.digits
            claims.append(
                Claim(
                    statement=f"slope of ln‖∂h_T/∂h_t‖ is the known λ_1: {system.name}",
                    place=place,
                    published=system.known,
                    measured=row["slope"],
                    uncertainty=row["slope_error"] if system.chaotic else 0.0,
                    tolerance=rounding,
                    why=f"{ERRORS:g} standard errors" if system.chaotic else "rounding: 4 digits of 16 for 300 factors",
                    units="nats/step",
                    kind="value" if system.chaotic else "theorem",
                )
            )
    for system, row in ((made[0], rows[0]), (made[-2], rows[-2])):
        values = log_weight_gradients(system, 4 * count, rng)
        spans[system.name] = {"mean": values.mean(axis=1).tolist(), "deviation": values.std(axis=1, ddof=1).tolist()}
        growth = (values[-1] - values[-2]) / (SPANS[-1] - SPANS[-2])
        error = standard_error(growth)
        spread = float(np.hypot(error, row["lyapunov_error"]))
        claims.append(
            Claim(
                statement=f"growth of ln‖∂L_T/∂W‖ with T: {system.name}",
                place="theorem 2" if system.chaotic else "theorem 1",
                published=row["lyapunov"] if system.chaotic else 0.0,
                measured=float(growth.mean()),
                uncertainty=error,
                tolerance=ERRORS * spread if system.chaotic else 1e-12,
                why=f"{ERRORS:g} standard errors" if system.chaotic else "rounding: the gradient is bounded",
                sense="equal" if system.chaotic else "at most",
                units="nats/step",
                kind="theorem",
            )
        )
    return Result(claims, {"rows": rows, "spans": list(SPANS), "weight_gradients": spans})


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw ln‖∂h_T/∂h_t‖ over the lag for every system, and the slopes over λ_1."""
    curves = record["curves"]
    rows = [row for row in curves["rows"] if row["chaotic"]]
    with figure(path, 1, 3, figsize=(7.0, 2.4)) as (_, axes):
        left, middle, right = axes[0]
        for i, row in enumerate(rows):
            lags = np.array(row["lags"])
            mean, error = (np.array(row[name]) / (row["lyapunov"] * lags) for name in ("log_norm", "log_norm_error"))
            left.fill_between(lags, mean - error, mean + error, color=f"C{i}", alpha=0.25, linewidth=0)
            left.plot(lags, mean, color=f"C{i}")
        left.axhline(1.0, color="k", linewidth=0.7)
        left.set_xscale("log")
        left.set_ylim(0.0, 4.0)
        left.set_xlabel("lag k (steps)")
        left.set_ylabel(r"$\ln\|\partial h_T/\partial h_{T-k}\|\,/\,\lambda_1 k$")
        for i, row in enumerate(rows):
            middle.errorbar(
                row["slope"] / row["lyapunov"],
                len(rows) - 1 - i,
                xerr=row["difference_error"] / row["lyapunov"],
                fmt="o",
                color=f"C{i}",
            )
        middle.axvline(1.0, color="k", linewidth=0.7)
        middle.margins(x=0.05)
        middle.set_yticks(range(len(rows)), [row["name"] for row in rows][::-1])
        middle.set_ylim(-0.5, len(rows) - 0.5)
        middle.set_xlabel(r"slope of $\ln\|\partial h_T/\partial h_{T-k}\|$ over $\lambda_1$")
        for (name, values), colour in zip(curves["weight_gradients"].items(), ("C0", "k"), strict=True):
            right.errorbar(curves["spans"], values["mean"], values["deviation"], fmt="o-", color=colour, label=name)
        right.set_xlim(0, 1.05 * max(curves["spans"]))
        right.set_xlabel("steps T")
        right.set_ylabel(r"$\ln\|\partial L_T/\partial W\|$")
        right.legend(loc="upper left")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

"""How long do all step Jacobians J_t = ∂h_t/∂h_{t−1} of a batch of trajectories take? gradlab and seven other ways.

float64, units n, T steps, B sequences (the LSTM's Jacobians are 2n × 2n: it carries h and c). Every way starts from
the same states and returns the numbers as a NumPy array, compared with the closed form's. The first call (tracing,
compiling) and later calls (median) are apart; the ways take turns. A way that would take minutes is run on fewer steps,
and its time scaled up to all of them is marked "extrapolated": its cost is so much per step. A way whose
later calls took over 20 seconds in all is not called again.

    python benchmarks/jacobian_speed.py            # about six minutes on 2 cores
    python benchmarks/jacobian_speed.py --quick    # about a minute; writes nothing unless --out is given
    python benchmarks/jacobian_speed.py --plot     # the figure again from the JSON

Needs TensorFlow; torch and JAX (extra `peers`) where they are installed. What is missing is named in the JSON.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from environment import environment
from numpy.typing import NDArray
from turns import timed, with_interval

import gradlab as gl
from gradlab.record import command_line, figure, read_record, results_folder, write_record

Array = NDArray[np.float64]
RESULT = results_folder() / "jacobian_speed.json"
SIZES = {"n=64, T=50, B=8": (64, 50, 8), "n=128, T=200, B=16": (128, 200, 16)}
QUICK = {"n=16, T=20, B=4": (16, 20, 4)}
FEATURES, SEED = 16, 0
ENOUGH = 20.0  # seconds of later calls of one way
CELLS: dict[str, Callable[[int], Any]] = {
    "tanh": lambda n: gl.VanillaRNNCell(n, dtype="float64"),
    "GRU": lambda n: keras.layers.GRUCell(n, dtype="float64"),
    "LSTM": lambda n: keras.layers.LSTMCell(n, dtype="float64"),
}


class Problem:
    """A trajectory of one cell, and its weights as arrays."""

    def __init__(self, kind: str, n: int, T: int, B: int) -> None:
        keras.utils.set_random_seed(SEED)
        self.kind, self.n, self.T, self.B = kind, n, T, B
        self.cell = CELLS[kind](n)
        self.traj = gl.rollout(self.cell, np.random.default_rng(SEED).standard_normal((B, T, FEATURES)))
        self.size = self.traj.step.state_size
        self.weights = [np.asarray(weight) for weight in self.traj.step.weights]
        self.before = self.traj.states[:, :-1].reshape(B * T, self.size)
        self.inputs = self.traj.inputs.reshape(B * T, FEATURES)

    def formula(self, h: Any, x: Any, xp: Any, logistic: Any, weights: list[Any]) -> Any:
        """Return the step of one state [m] in torch or JAX."""
        n, (U, W, b) = self.n, weights
        if self.kind == "tanh":
            return xp.tanh(h @ W + x @ U + b)
        if self.kind == "LSTM":
            h, c = h[:n], h[n:]
            a = h @ W + x @ U + b
            i, f, g, o = (a[k * n : (k + 1) * n] for k in range(4))
            c = logistic(f) * c + logistic(i) * xp.tanh(g)
            return xp.concatenate([logistic(o) * xp.tanh(c), c])
        a, r = x @ U + b[0], h @ W + b[1]
        z, reset = (logistic(a[k * n : (k + 1) * n] + r[k * n : (k + 1) * n]) for k in (0, 1))
        return z * h + (1 - z) * xp.tanh(a[2 * n :] + reset * r[2 * n :])


# Each way is a maker: Problem → (call, number of steps that it does). Making is not timed, calling is.
Way = tuple[Callable[[], Any], int]


def ours(method: str, jit: bool = False) -> Callable[[Problem], Way]:
    """gl.step_jacobians."""

    def make(p: Problem) -> Way:
        return lambda: gl.step_jacobians(p.traj, method=method, jit_compile=jit), p.B * p.T

    return make


def eager_per_step(p: Problem) -> Way:
    """One eager `batch_jacobian` for each t, over the batch; the first few t."""
    T = min(p.T, 3)
    states, inputs = p.traj.states, p.traj.inputs

    def call() -> Array:
        out = []
        for t in range(T):
            h = tf.constant(states[:, t])
            with tf.GradientTape() as tape:
                tape.watch(h)
                new = p.traj.step(h, tf.constant(inputs[:, t]))
            out.append(tape.batch_jacobian(new, h).numpy())
        return np.stack(out, axis=1)

    return call, T * p.B


def persistent_tape(p: Problem) -> Way:
    """One persistent tape over the unrolled loop, one `batch_jacobian(h_t, h_{t−1})` for each t; few steps."""
    T = min(p.T, 3)

    def call() -> Array:
        h = [tf.constant(p.traj.states[:, 0])]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(h[0])
            for t in range(T):
                h.append(p.traj.step(h[-1], tf.constant(p.traj.inputs[:, t])))
        return np.stack([tape.batch_jacobian(h[t + 1], h[t]).numpy() for t in range(T)], axis=1)

    return call, T * p.B


def per_output(p: Problem) -> Way:
    """`tape.gradient` of each output by itself; the first step of the batch."""
    h0, x0 = tf.constant(p.traj.states[:, 0]), tf.constant(p.traj.inputs[:, 0])

    def call() -> Array:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(h0)
            new = p.traj.step(h0, x0)
            parts = [new[:, i] for i in range(p.size)]
        return np.stack([tape.gradient(part, h0).numpy() for part in parts], axis=1)[:, None]

    return call, p.B


def torch_jacrev(p: Problem) -> Way:
    """torch.func.vmap(jacrev) of a local step over all B·T steps."""
    import torch

    weights = [torch.from_numpy(weight.copy()) for weight in p.weights]

    def step(h: Any, x: Any) -> Any:
        return p.formula(h, x, torch, torch.sigmoid, weights)

    jacobian = torch.func.vmap(torch.func.jacrev(step), chunk_size=max(1, (1 << 24) // p.size**2))
    h, x = torch.from_numpy(p.before.copy()), torch.from_numpy(p.inputs.copy())
    return lambda: jacobian(h, x).numpy().reshape(p.B, p.T, p.size, p.size), p.B * p.T


def jax_jacrev(p: Problem) -> Way:
    """jax.jit(jax.vmap(jax.jacrev(step))) over all B·T steps."""
    import jax

    jax.config.update("jax_enable_x64", True)
    weights = [jax.numpy.asarray(weight) for weight in p.weights]

    def step(h: Any, x: Any) -> Any:
        return p.formula(h, x, jax.numpy, jax.nn.sigmoid, weights)

    jacobian = jax.jit(jax.vmap(jax.jacrev(step)))
    return lambda: np.asarray(jacobian(p.before, p.inputs)).reshape(p.B, p.T, p.size, p.size), p.B * p.T


WAYS: dict[str, Callable[[Problem], Way]] = {
    "gradlab, closed form": ours("closed_form"),
    "gradlab, autodiff": ours("autodiff"),
    "gradlab, autodiff, XLA": ours("autodiff", jit=True),
    "JAX vmap(jacrev), jit": jax_jacrev,
    "torch vmap(jacrev)": torch_jacrev,
    "eager batch_jacobian per step": eager_per_step,
    "persistent tape": persistent_tape,
    "tape.gradient per output": per_output,
}
NEEDS = {"JAX vmap(jacrev), jit": "jax", "torch vmap(jacrev)": "torch"}


def measure(kind: str, n: int, T: int, B: int, repeats: int) -> dict[str, Any]:
    """Return first and later times of every way on one problem, in seconds for all B·T steps."""
    p = Problem(kind, n, T, B)
    calls, record, expected = {}, {}, None
    for name, make in WAYS.items():
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            continue
        call, steps = make(p)
        started = time.perf_counter()
        J = call()
        first = time.perf_counter() - started
        # entries of size 1, sums over n + d products on either side, in different orders
        expected = J[0].copy() if expected is None else expected  # one sequence: all of them are gigabytes
        error = float(np.abs(J[0] - expected[: J.shape[1]]).max())
        if not error <= 1e-12 * n:
            raise AssertionError(f"{name} differs from the closed form by {error:.1e} on {kind}, n={n}")
        del J
        scale = B * T / steps
        record[name] = {"first": first * scale, "later": [], "steps": steps, "extrapolated": scale > 1, "error": error}
        calls[name] = call
        print(f"  {name:32} first {first:8.3f} s for {steps} of {B * T} steps", flush=True)
    for turn in range(repeats):
        for name, call in calls.items():
            one = record[name]
            if turn and (one["extrapolated"] or sum(one["later"]) > ENOUGH):
                continue  # what is extrapolated is hopeless: once is enough
            one["later"].append(timed(call) * B * T / one["steps"])
    for one in record.values():
        one["median"] = statistics.median(one["later"])
    return record


def run(sizes: dict[str, tuple[int, int, int]], repeats: int) -> dict[str, Any]:
    """Return the record of all problems."""
    started, results = time.perf_counter(), {}
    for label, (n, T, B) in sizes.items():
        for kind in CELLS:
            print(f"{kind}, {label}", flush=True)
            results[f"{kind}, {label}"] = measure(kind, n, T, B, repeats)
    made = environment(SEED, ("torch", "jax", "jaxlib")) | {"wall_seconds": round(time.perf_counter() - started, 1)}
    return {"environment": made, "repeats": repeats, "dtype": "float64", "problems": results}


def table(record: dict[str, Any]) -> str:
    """Return the table as text; a star marks an extrapolated time."""
    problems = record["problems"]
    lines = [
        "seconds for all steps: first call / median of later ones / how many times as long as gradlab's closed form"
    ]
    for label, ways in problems.items():
        lines.append(label)
        for name, one in ways.items():
            star = "*" if one["extrapolated"] else " "
            ours = ways["gradlab, closed form"]["later"]
            times = f"{one['median'] / statistics.median(ours):.3g}"
            if not one["extrapolated"]:
                both = min(len(one["later"]), len(ours))  # turns that they took together
                times = with_interval(one["later"][:both], ours[:both])
            lines.append(f"  {name:32}{one['first']:>12.4f}{star}{one['median']:>12.4f}{star}  × {times}")
    return "\n".join([*lines, "* extrapolated from fewer steps"])


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw first (ring) and later (dot) times of every way, one panel for each problem."""
    from matplotlib.lines import Line2D

    problems = record["problems"]
    columns = len(CELLS)
    rows = -(-len(problems) // columns)
    size = (7.0, 1.7 * rows + 0.3)
    with figure(path, rows, columns, figsize=size, sharey=True, sharex="row") as (fig, grid):
        for ax, (label, ways) in zip(grid.flat, problems.items(), strict=False):
            for i, name in enumerate(WAYS):
                if name not in ways:
                    continue
                one = ways[name]
                colour = "#0072B2" if name.startswith("gradlab") else "#D55E00"
                ax.plot([one["median"], one["first"]], [i, i], color=colour, linewidth=0.6, zorder=1)
                ax.plot(one["first"], i, "o", color=colour, markerfacecolor="white", markersize=4)
                ax.plot(one["median"], i, "d" if one["extrapolated"] else "o", color=colour, markersize=4)
            ax.set(xscale="log", title=label, ylim=(len(WAYS) - 0.5, -0.5))
            ax.margins(x=0.06)
            ax.set_yticks(range(len(WAYS)), list(WAYS))
            ax.grid(axis="x", linewidth=0.3)
        for ax in grid[-1]:
            ax.set_xlabel("seconds for all B·T steps")
        marks = (("o", "white", "first call"), ("o", "black", "later calls, median"), ("d", "black", "extrapolated"))
        handles = [
            Line2D([], [], marker=marker, linestyle="none", color="black", markerfacecolor=face, label=label)
            for marker, face, label in marks
        ]
        fig.legend(handles=handles, loc="outside upper center", ncols=3)


def main() -> None:
    """Run or read, print, write, draw."""
    parser = command_line(__doc__, "one small size")
    parser.add_argument("--plot", action="store_true", help="draw from the JSON that is there")
    parser.add_argument("--repeats", type=int, default=15, help="later calls, at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"JSON to write, figure beside it (default: results/{RESULT.name})")
    options = parser.parse_args()
    out = options.out or RESULT
    if options.plot:
        record = read_record(out)
    else:
        record = run(QUICK if options.quick else SIZES, options.repeats)
    print(table(record))
    if options.quick and not options.out:
        return
    if not options.plot:
        write_record(record, out)
    draw(record, out)


if __name__ == "__main__":
    main()

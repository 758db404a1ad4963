"""All Lyapunov exponents of a tanh network: gradlab beside a plain QR loop, lyapynov, clvlib, lyapax and chaotax.

One process; the contenders take turns and medians are reported. The map is h ← tanh(W h), n = 64, gain 1.5, from one
h_0 on the attractor, 2000 steps. "From the network" starts at W and h_0; "from the Jacobians" at J [T, n, n], which
only gradlab and the plain loop take. JAX runs in float64, compiled beforehand where that is possible (chaotax 0.0.1
cannot be wrapped in jax.jit, and compiles at every call); BLAS has one thread, which is faster for everybody at this
size. The map is chaotic, so that trajectories of two codes part after some hundred steps and exponents agree within
their standard errors, not digit by digit.

    python benchmarks/lyapunov_speed.py            # some minutes; peers that are not installed are left out
    python benchmarks/lyapunov_speed.py --quick    # n = 16, 300 steps
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from threadpoolctl import threadpool_limits
from turns import take_turns, with_interval

from gradlab.record import command_line, figure, out_folder, path_of, write_record

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")  # a bar per call would be timed with it
SEED = 0
PEERS = ("lyapynov", "clvlib", "lyapax", "chaotax")
JACOBIANS, NETWORK = "from the Jacobians", "from the network"
Contender = Callable[[], Any]


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = out_folder(command_line(__doc__, "a small network, a few rounds"))
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: 25, quick: 3)")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 25)
    return options


def network(n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (W [n, n], h_0 [n] after 1000 steps)."""
    rng = np.random.default_rng(SEED)
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    h = rng.standard_normal(n)
    for _ in range(1000):
        h = np.tanh(W @ h)
    return W, h


def jacobians(W: np.ndarray, h: np.ndarray, T: int) -> np.ndarray:
    """Return J [T, n, n] along h ← tanh(W h)."""
    J = np.empty((T, *W.shape))
    for t in range(T):
        a = W @ h
        h, J[t] = np.tanh(a), W / np.cosh(a)[:, None] ** 2
    return J


def plain_loop(J: np.ndarray) -> np.ndarray:
    """The textbook: QR at every step."""
    n = J.shape[-1]
    Q, total = np.eye(n), np.zeros(n)
    for one in J:
        Q, R = np.linalg.qr(one @ Q)
        total += np.log(np.abs(np.diag(R)))
    return total / len(J)


def contenders(W: np.ndarray, h0: np.ndarray, T: int) -> dict[tuple[str, str], Contender]:
    """Return what runs, by (name, where it starts), each giving exponents [n] or `LyapunovExponents`."""
    import gradlab as gl

    n, J = len(W), jacobians(W, h0, T)
    cell = gl.VanillaRNNCell(n, dtype="float64")
    cell.build((None, 1))
    cell.set_weights([W.T if w.shape == (n, n) and "recurrent" in w.path else np.zeros(w.shape) for w in cell.weights])
    silence = np.zeros((1, T, 1))

    def from_the_network() -> Any:
        traj = gl.rollout(cell, silence, h0)
        return gl.lyapunov_exponents(gl.step_jacobians(traj)[0])

    found: dict[tuple[str, str], Contender] = {
        ("gradlab", JACOBIANS): lambda: gl.lyapunov_exponents(J),
        ("gradlab, stride=1", JACOBIANS): lambda: gl.lyapunov_exponents(J, stride=1),
        ("NumPy loop", JACOBIANS): lambda: plain_loop(J),
        ("gradlab", NETWORK): from_the_network,
        ("NumPy loop", NETWORK): lambda: plain_loop(jacobians(W, h0, T)),
    }
    for name, make in (("lyapynov", _lyapynov), ("clvlib", _clvlib), ("lyapax", _lyapax), ("chaotax", _chaotax)):
        try:
            found[name, NETWORK] = make(W, h0, T)
        except ImportError as error:
            print(f"{name}: not found ({error})")
    return found


def _derivative(W: np.ndarray, h: np.ndarray) -> np.ndarray:
    return W / np.cosh(W @ h)[:, None] ** 2


def _lyapynov(W: np.ndarray, h0: np.ndarray, T: int) -> Contender:
    import lyapynov

    def run() -> Any:
        system = lyapynov.DiscreteDS(h0, 0, lambda x, t: np.tanh(W @ x), lambda x, t: _derivative(W, x))
        return lyapynov.LCE(system, len(W), 0, T, False)

    return run


def _clvlib(W: np.ndarray, h0: np.ndarray, T: int) -> Contender:
    from clvlib.numpy import lyap_exp_from_ic

    def run() -> Any:
        times = np.arange(T + 1.0)
        step, slope = (lambda t, x: np.tanh(W @ x)), (lambda t, x: _derivative(W, x))
        return lyap_exp_from_ic(step, slope, h0, times, stepper="discrete")[0]

    return run


def _lyapax(W: np.ndarray, h0: np.ndarray, T: int) -> Contender:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import lyapax

    matrix = jnp.asarray(W)

    @jax.jit
    def spectrum(state: Any) -> Any:
        return lyapax.lyapunov_spectrum(lambda h: jnp.tanh(matrix @ h), state, 1.0, T).exponents

    return lambda: np.asarray(spectrum(jnp.asarray(h0)))


def _chaotax(W: np.ndarray, h0: np.ndarray, T: int) -> Contender:
    import jax

    jax.config.update("jax_enable_x64", True)
    import chaotax
    import jax.numpy as jnp

    matrix = jnp.asarray(W)
    estimate = chaotax.lyapunov_spectrum(
        lambda h: jnp.tanh(matrix @ h), rollout_steps=T, warmup_steps=0, discard_steps=0, dt=1
    )
    # jax.jit(estimate) fails on chaotax 0.0.1 (a traced size): it is called as it stands, and compiles at every call
    return lambda: np.asarray(estimate(jnp.asarray(h0), jnp.eye(len(W))))


def report(seconds: dict, results: dict, options: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """Return one row per contender: median seconds, ratio to gradlab's, how far the exponents differ."""
    rows = []
    for (name, start), times in seconds.items():
        ours = results["gradlab", start]
        exponents = getattr(results[name, start], "exponents", results[name, start])
        distance = np.abs(np.sort(exponents)[::-1] - ours.exponents)
        # both estimates scatter, where the trajectories have parted
        apart = distance / (np.sqrt(2) * ours.standard_error)
        row = {
            "name": name,
            "start": start,
            "median_s": float(np.median(times)),
            "seconds": times,
            "ratio_to_gradlab": float(np.median(times) / np.median(seconds["gradlab", start])),
            "largest_difference": float(distance.max()),
            "rms_difference_in_standard_errors": float(np.sqrt((apart**2).mean())),
        }
        rows.append(row)
        print(
            f"{start:19s} {name:18s} {row['median_s'] * 1e3:8.1f} ms"
            f"  × {with_interval(times, seconds['gradlab', start])}"
            f"  max |Δλ| {row['largest_difference']:.1e}  rms {row['rms_difference_in_standard_errors']:.2f} SE"
        )
    missing = [name for name in PEERS if not any(row["name"] == name for row in rows)]
    print("peers found:", [name for name in PEERS if name not in missing], "not found:", missing)
    found = {"setting": setting, "environment": environment(SEED, ("jax", *PEERS)), "rounds": options.rounds}
    return {**found, "rows": rows, "missing": missing}


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw medians as bars, from the record alone."""
    with figure(path, 2, figsize=(5.0, 3.2), sharex=True, height_ratios=(3, 6)) as (_, axes):
        for ax, start in zip(axes[:, 0], (JACOBIANS, NETWORK), strict=True):
            rows = sorted((row for row in record["rows"] if row["start"] == start), key=lambda row: -row["median_s"])
            colours = ["C0" if row["name"] == "gradlab" else "0.7" for row in rows]
            bars = ax.barh([row["name"] for row in rows], [1e3 * row["median_s"] for row in rows], color=colours)
            ax.bar_label(bars, [f"×{row['ratio_to_gradlab']:.1f}" for row in rows], padding=3)
            ax.set_title(start, loc="left")
            ax.margins(x=0.12)
        setting = record["setting"]
        ax.set_xlabel(f"median time, ms (n = {setting['n']}, {setting['steps']} steps, all exponents)")


def main() -> None:
    """Run, print, write JSON, draw."""
    options = arguments()
    setting = {"n": 16 if options.quick else 64, "gain": 1.5, "steps": 300 if options.quick else 2000}
    W, h0 = network(setting["n"], setting["gain"])
    with threadpool_limits(1, "blas"):
        seconds, results = take_turns(contenders(W, h0, setting["steps"]), options.rounds)
    record = report(seconds, results, options, setting)
    write_record(record, path := path_of("lyapunov_speed", options))
    draw(record, path)


if __name__ == "__main__":
    main()

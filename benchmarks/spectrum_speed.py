"""All singular values of ∂h_T/∂h_t at every t: gradlab beside forming the products and calling an SVD.

The others' values are wrong beyond the largest few (float64 holds no more); this is the price of the wrong answer. One
process, the contenders take turns; medians are reported, and their ratios with a 95 % interval (`turns.py`). NumPy and
torch run with their own number of threads and with one, since threads inside BLAS do harm at these sizes, and the
faster of the two counts. JAX runs in float64, compiled beforehand, as is gradlab. The step Jacobians are those of a
tanh network, gain 1.5. Beside it stands what gradlab's two stages take on one thread, for the first sequence: the
sweep, and reading out.

    python benchmarks/spectrum_speed.py              # some minutes; peers that are not installed are left out
    python benchmarks/spectrum_speed.py --quick      # small shapes, seconds
    python benchmarks/spectrum_speed.py --plot-only  # print and draw again from the JSON
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from threadpoolctl import threadpool_limits
from turns import take_turns, with_interval

import gradlab as gl
from gradlab import graded
from gradlab.kernels.sweeping import sweep
from gradlab.reading import read_out
from gradlab.record import command_line, figure, out_folder, path_of, read_record, write_record

SHAPES = ((8, 32, 1000), (4, 64, 300), (1, 64, 1000), (4, 128, 200))
QUICK = ((2, 8, 40), (1, 16, 60))
SEED = 0
Contender = Callable[[], np.ndarray]


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = out_folder(command_line(__doc__, "small shapes, a few rounds"))
    parser.add_argument("--rounds", type=int, help="turns of each contender (default: 15, quick: 3)")
    parser.add_argument("--plot-only", action="store_true", help="draw from the JSON that is there")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 15)
    return options


def jacobians(B: int, n: int, T: int, gain: float = 1.5) -> np.ndarray:
    """Return J [B, T, n, n] of tanh networks with noise, h ← tanh(W h + ξ)."""
    rng = np.random.default_rng(SEED)
    W = gain * rng.standard_normal((B, n, n)) / np.sqrt(n)
    h, J = rng.standard_normal((B, n)), np.empty((B, T, n, n))
    for t in range(T):
        a = np.einsum("bij,bj->bi", W, h) + 0.3 * rng.standard_normal((B, n))
        h, J[:, t] = np.tanh(a), W / np.cosh(a)[:, :, None] ** 2
    return J


def formed_numpy(J: np.ndarray) -> np.ndarray:
    """Return the singular values of the formed products, [B, T, n]: right for the largest few."""
    P = np.empty_like(J)
    P[:, -1] = J[:, -1]
    for t in range(J.shape[1] - 2, -1, -1):
        np.matmul(P[:, t + 1], J[:, t], out=P[:, t])
    return np.linalg.svd(P, compute_uv=False)


def contenders(J: np.ndarray) -> dict[str, Contender]:
    """Return what runs, by name; each gives ln σ or σ [B, T, n]."""

    def numpy_one() -> np.ndarray:
        with threadpool_limits(1, "blas"):
            return formed_numpy(J)

    found: dict[str, Contender] = {
        "gradlab": lambda: gl.log_singular_values(J),
        "NumPy": lambda: formed_numpy(J),
        "NumPy, one thread": numpy_one,
    }
    for make in (_torch, _jax):
        try:
            found |= make(J)
        except ImportError:
            print(f"{make.__name__[1:]}: not found")
    return found


def _torch(J: np.ndarray) -> dict[str, Contender]:
    import torch

    steps, default = torch.from_numpy(J), torch.get_num_threads()

    def formed(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        P = torch.empty_like(steps)
        P[:, -1] = steps[:, -1]
        for t in range(J.shape[1] - 2, -1, -1):
            torch.matmul(P[:, t + 1], steps[:, t], out=P[:, t])
        values = torch.linalg.svdvals(P).numpy()
        torch.set_num_threads(default)
        return values

    return {"torch": lambda: formed(default), "torch, one thread": lambda: formed(1)}


def _jax(J: np.ndarray) -> dict[str, Contender]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    @jax.jit
    def formed(steps: Any) -> Any:
        def back(P: Any, one: Any) -> Any:
            P = P @ one
            return P, P

        eye = jnp.broadcast_to(jnp.eye(steps.shape[-1]), steps[:, 0].shape)
        P = jax.lax.scan(back, eye, jnp.moveaxis(steps, 1, 0), reverse=True)[1]
        return jnp.moveaxis(jnp.linalg.svd(P, compute_uv=False), 0, 1)

    steps = jnp.asarray(J)
    return {"JAX": lambda: np.asarray(formed(steps))}


def stages(J: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Return the seconds a step that sweeping J [T, n, n] and reading out all lags take by themselves, each time."""
    T, n = J.shape[:2]
    examples, wanted, seconds = graded.examples_of_rounding(n), np.ones(T, bool), {"sweep": [], "reading": []}
    for _ in range(rounds + 1):
        carried, out = graded.identity(n), graded.room_for(T, n)
        start = time.perf_counter()
        sweep(carried, J, wanted, examples, out)
        between = time.perf_counter()
        read_out(out)
        seconds["sweep"].append((between - start) / T)
        seconds["reading"].append((time.perf_counter() - between) / T)
    return {stage: times[1:] for stage, times in seconds.items()}  # the first one touches the memory first


def check_largest(results: dict[str, np.ndarray], n: int, T: int) -> float:
    """Return the largest |Δ ln σ_1| between gradlab and the others, or raise where it is more than rounding."""
    ours = results["gradlab"][..., 0]
    others = (values[..., 0] for name, values in results.items() if name != "gradlab")
    worst = max(float(np.abs(np.log(largest) - ours).max()) for largest in others)
    # a product of T factors has an error of T·n·2^-53·Π‖J_s‖; the slack between that and σ_1(P) is some powers of ten
    if not worst < 1e6 * T * n * 2.0**-53:
        raise RuntimeError(f"the largest singular values differ by {worst:.1e} nats")
    return worst


def report(row: dict[str, Any]) -> None:
    """Print the medians of one shape, and how many times as long as the fastest way of each peer gradlab takes."""
    B, n, T = row["shape"].values()
    each, medians = 1e6 / (B * T), {name: float(np.median(times)) for name, times in row["seconds"].items()}
    print(f"(B, n, T) = {(B, n, T)}: |Δ ln σ_1| ≤ {row['largest_difference_of_first']:.0e}; µs per lag:")
    print("   ", ", ".join(f"{name} {median * each:.0f}" for name, median in medians.items()))
    fastest: dict[str, str] = {}
    for name in sorted(set(medians) - {"gradlab"}, key=medians.__getitem__):
        fastest.setdefault(name.split(",")[0], name)
    ours = row["seconds"]["gradlab"]
    ratios = (f"{with_interval(ours, row['seconds'][name])} × {name}" for name in fastest.values())
    print("    gradlab takes", ", ".join(ratios))
    parts = " + ".join(f"{np.median(times) * 1e6:.0f} {stage}" for stage, times in row["stages_s"].items())
    print(f"    on one thread: {parts}", flush=True)


def main() -> None:
    """Run, print, write JSON, draw."""
    options = arguments()
    path = path_of("spectrum_speed", options)
    if options.plot_only:
        record = read_record(path)
        for row in record["rows"]:
            report(row)
        draw(record, path)
        return
    rows = []
    for B, n, T in QUICK if options.quick else SHAPES:
        runs = contenders(J := jacobians(B, n, T))
        seconds, results = take_turns(runs, options.rounds)
        rows.append(
            {
                "shape": {"B": B, "n": n, "T": T},
                "seconds": seconds,
                "largest_difference_of_first": check_largest(results, n, T),
                "stages_s": stages(J[0], options.rounds),
            }
        )
        report(rows[-1])
        del J, runs, results  # the contenders hold it
    record = {"environment": environment(SEED, ("torch", "jax", "jaxlib")), "rounds": options.rounds, "rows": rows}
    write_record(record, path)
    draw(record, path)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the time per lag as bars, from the record alone."""
    rows = record["rows"]
    with figure(path, 1, len(rows), figsize=(1.7 * len(rows) + 0.9, 1.9)) as (_, axes):
        for ax, row in zip(axes[0], rows, strict=True):
            each = 1e6 / (row["shape"]["B"] * row["shape"]["T"])
            names = list(row["seconds"])[::-1]
            values = [np.median(row["seconds"][name]) * each for name in names]
            colours = ["C0" if name == "gradlab" else "0.75" for name in names]
            bars = ax.barh(names, values, color=colours)
            ax.bar_label(bars, [f"{value:.0f}" for value in values], padding=2, fontsize=6)
            ax.set_title(", ".join(f"{key} = {value}" for key, value in row["shape"].items()))
            ax.margins(x=0.18)
            if ax is not axes[0, 0]:
                ax.set_yticklabels([])
        axes[0, len(rows) // 2].set_xlabel("µs per lag, medians; only gradlab's values are right beyond the largest")


if __name__ == "__main__":
    main()

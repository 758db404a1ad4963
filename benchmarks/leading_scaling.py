"""What `leading_singular_values` costs: against T, against k, against n, and one large GRU from start to end.

The curves time one pair of sweeps (`max_iterations=1`), since the number of iterations depends on the spectrum: T, k
and n vary around a GRU with n = 512, T = 100, k = 8. The headline is a GRU with n = 2048, T = 200, k = 8, run
to its tolerance of 1e-8 nats, with the memory that the process then held. Median of the turns, after one not counted.

    python benchmarks/leading_scaling.py            # some minutes on 2 cores
    python benchmarks/leading_scaling.py --quick    # n = 64, a look at the curves
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from environment import environment

import gradlab as gl
from gradlab.leading import leading_singular_values
from gradlab.record import command_line, figure, out_folder, path_of, write_record


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    return out_folder(command_line(__doc__, "small networks, one turn")).parse_args()


def trajectory(n: int, T: int) -> Any:
    """Return the run of a GRU at Keras's initialisation on white noise, one sequence."""
    keras.utils.set_random_seed(0)
    return gl.rollout(keras.layers.GRUCell(n), np.random.default_rng(0).standard_normal((1, T, 8)))


def sweep_seconds(n: int, T: int, k: int, rounds: int) -> float:
    """Return the median time of one iteration: a sweep back for the first frame, one forward, one back."""
    traj, seconds = trajectory(n, T), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # not converged, on purpose
        for _ in range(rounds + 1):
            start = time.perf_counter()
            leading_singular_values(traj, k, max_iterations=1)
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def slope(x: list[int], y: list[float]) -> float:
    """Return the exponent of y ~ x^slope by least squares in logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def curves(quick: bool) -> dict[str, Any]:
    """Return seconds against T, k and n, with the exponents of the curves."""
    n, T, k, rounds = (64, 40, 4, 1) if quick else (512, 100, 8, 3)
    times = [10, 20, 40, 80] if quick else [25, 50, 100, 200, 400]
    ks = [2, 4, 8] if quick else [4, 8, 16, 32, 64]
    sizes = [32, 64, 128] if quick else [128, 256, 512, 1024]
    result: dict[str, Any] = {"setting": {"cell": "GRU", "n": n, "T": T, "k": k, "rounds": rounds}}
    for name, values in (("T", times), ("k", ks), ("n", sizes)):
        seconds = []
        for value in values:
            seconds.append(sweep_seconds(**({"n": n, "T": T, "k": k} | {name: value}), rounds=rounds))
            print(f"{name} = {value:5d}: {seconds[-1]:.3f} s for one iteration")
        # the block is k + 8 wide, so that is what the cost is in proportion to
        x = [value + 8 for value in values] if name == "k" else values
        result[name] = {"values": values, "seconds": seconds, "exponent": slope(x, seconds)}
        print(f"  ~ {'(k + 8)' if name == 'k' else name}^{result[name]['exponent']:.2f}")
    return result


def headline(quick: bool) -> dict[str, Any]:
    """Return the run of the large network to its tolerance."""
    n, T, k = (256, 50, 8) if quick else (2048, 200, 8)
    traj = trajectory(n, T)
    start = time.perf_counter()
    found = leading_singular_values(traj, k)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {
        "n": n,
        "T": T,
        "k": k,
        "seconds": seconds,
        "iterations": int(found.iterations[0]),
        "log_values": found.log_values[0, 0].tolist(),
        "residual": found.residual[0, 0].tolist(),
        "error": found.error[0, 0].tolist(),
        "peak_memory_gb": peak / (1e9 if sys.platform == "darwin" else 1e6),  # macOS counts bytes, Linux KiB
    }
    print(
        f"GRU n = {n}, T = {T}, k = {k}: {row['seconds']:.1f} s, {row['iterations']} iterations, estimated error"
        f" {max(row['error']):.1e} nats, peak memory {row['peak_memory_gb']:.2f} GB"
    )
    return row


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the three curves, from the record alone."""
    from matplotlib.ticker import LogLocator

    setting = record["curves"]["setting"]
    with figure(path, 1, 3, figsize=(7.0, 2.3)) as (_, axes):
        for ax, name in zip(axes[0], ("T", "k", "n"), strict=True):
            curve = record["curves"][name]
            x = [value + 8 for value in curve["values"]] if name == "k" else curve["values"]
            ax.loglog(x, curve["seconds"], "o-")
            order = 2 if name == "n" else 1  # a step costs n² a direction
            ax.loglog(x, [curve["seconds"][-1] * (one / x[-1]) ** order for one in x], "--", color="0.6", zorder=0)
            ax.set_xticks(x, [str(one) for one in x])
            ax.minorticks_off()
            ax.margins(x=0.06)
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.set_title(", ".join(f"{other} = {setting[other]}" for other in "nTk" if other != name))
            ax.set_xlabel({"T": "steps T", "k": "directions k + 8", "n": "state size n"}[name])
            said = f"measured exponent {curve['exponent']:.2f}"
            ax.text(0.97, 0.04, said, transform=ax.transAxes, ha="right")
        axes[0, 0].set_ylabel("seconds an iteration")


def main() -> None:
    """Run, print, write JSON, draw."""
    options = arguments()
    large = headline(options.quick)  # first: the peak memory is then its own
    record = {"environment": environment(), "headline": large, "curves": curves(options.quick)}
    write_record(record, path := path_of("leading_scaling", options))
    draw(record, path)


if __name__ == "__main__":
    main()

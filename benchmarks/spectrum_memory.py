"""Peak memory of singular values at a few lags where the step Jacobians do not fit, each case in a fresh process.

"matrices": n = 512, T = 1000, 20 lags; J would take 2.1 GB, and is made in chunks of time. "trajectory": from a
network's run to the spectra, n = 256, T = 1000, B = 16, 20 lags; J would take 8.4 GB (TensorFlow itself counts here).
The seconds are those of the whole run, with what has to be imported or compiled, and making J.

    python benchmarks/spectrum_memory.py            # three minutes on 2 cores
    python benchmarks/spectrum_memory.py --quick    # small sizes
    python benchmarks/spectrum_memory.py --plot-only
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment

import gradlab as gl
from gradlab.record import command_line, figure, out_folder, path_of, read_record, write_record

CASES = {
    "matrices": {"B": 1, "n": 512, "T": 1000, "lags": 20, "limit_gb": 2.0},
    "trajectory": {"B": 16, "n": 256, "T": 1000, "lags": 20, "limit_gb": 3.0},
}
QUICK = {
    "matrices": {"B": 1, "n": 64, "T": 60, "lags": 5, "limit_gb": 2.0},
    "trajectory": {"B": 2, "n": 32, "T": 60, "lags": 5, "limit_gb": 3.0},
}


class TanhJacobians:
    """J_t = diag(sech² a_t)·W of h ← tanh(W h + ξ), made from W and the a_t when they are asked for."""

    def __init__(self, B: int, n: int, T: int, gain: float = 1.5) -> None:
        rng = np.random.default_rng(0)
        self.shape = (B, T, n, n)
        self.W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
        h, self.a = rng.standard_normal((B, n)), np.empty((B, T, n))
        for t in range(T):
            self.a[:, t] = h @ self.W.T + 0.3 * rng.standard_normal((B, n))
            h = np.tanh(self.a[:, t])

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return J[:, a:b]."""
        return self.W / np.cosh(self.a[index])[..., None] ** 2


def run(name: str, B: int, n: int, T: int, lags: int) -> dict[str, Any]:
    """Run one case in this process; return its peak memory, its time and what came out."""
    start = time.perf_counter()
    times = np.unique(np.linspace(0, T - 1, lags).astype(int))
    if name == "matrices":
        J: Any = TanhJacobians(B, n, T)
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from gradlab.lazy import LazyStepJacobians

        inputs = 0.3 * np.random.default_rng(0).standard_normal((B, T, 4))
        J = LazyStepJacobians(gl.rollout(gl.VanillaRNNCell(n, recurrent_gain=1.5, seed=0), inputs))
    before = peak_gb()
    ln_s = gl.log_singular_values(J, times=times)
    return {
        "peak_gb": peak_gb(),
        "peak_before_gb": before,
        "jacobians_gb": 8.0 * B * T * n * n / 1e9,
        "seconds": time.perf_counter() - start,
        "range_of_ln_sigma": [float(ln_s.min()), float(ln_s.max())],
    }


def peak_gb() -> float:
    """Return the largest resident set of this process so far, in 10^9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    """Run each case in a process of its own, print, write JSON, draw."""
    parser = out_folder(command_line(__doc__, "small sizes"))
    parser.add_argument("--plot-only", action="store_true", help="draw from the JSON that is there")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # what the fresh process is told
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run(**json.loads(options.case))))
        return
    path = path_of("spectrum_memory", options)
    if not options.plot_only:
        rows = []
        for name, case in (QUICK if options.quick else CASES).items():
            setting = {key: value for key, value in case.items() if key != "limit_gb"}
            command = [sys.executable, __file__, "--case", json.dumps({"name": name, **setting})]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {"case": name, **case, **json.loads(done.stdout.splitlines()[-1])}
            rows.append(row)
            print(
                f"{name} {setting}: peak {row['peak_gb']:.2f} GB of {row['limit_gb']}"
                f" ({row['peak_before_gb']:.2f} before;"
                f" J alone would be {row['jacobians_gb']:.2f}), {row['seconds']:.0f} s",
                flush=True,
            )
        write_record({"environment": environment(), "rows": rows}, path)
    record = read_record(path)
    draw(record, path)
    over = [row["case"] for row in record["rows"] if row["peak_gb"] > row["limit_gb"]]
    if over:
        raise SystemExit(f"over the limit: {over}")


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw peaks beside what J alone would take, from the record alone."""
    with figure(path, figsize=(5.0, 1.9)) as (_, axes):
        ax = axes[0, 0]
        for y, row in enumerate(record["rows"]):
            ax.barh(y + 0.2, row["jacobians_gb"], 0.38, color="0.8", label="J in memory" if not y else None)
            ax.barh(y - 0.2, row["peak_gb"], 0.38, color="C0", label="peak of the process" if not y else None)
            ax.barh(y - 0.2, row["peak_before_gb"], 0.38, color="C0", hatch="///", edgecolor="w")
            ax.plot([row["limit_gb"]] * 2, [y - 0.42, y + 0.02], color="C3", label="limit" if not y else None)
        labels = [f"{row['case']}\nB = {row['B']}, n = {row['n']}, T = {row['T']}" for row in record["rows"]]
        ax.set_yticks(range(len(labels)), labels)
        ax.set_xlabel("GB (hatched: before the spectra are asked for)")
        ax.margins(x=0.02)
        ax.legend(loc="center right")


if __name__ == "__main__":
    main()

"""How often do the standard errors of `fit_decay` cover the rate? Simulated walks of which the rate is known.

The log norm of a gradient under a random product is a random walk with drift: increments are normal with unit variance,
independent or an AR(1) process with the correlation given. ±1.96 standard errors should cover the drift in 95 % of the
sequences. Beside it, what the error is not made for: independent noise about an exact line, where the increments are
all noise, and the claimed error is set beside the actual one.

    python benchmarks/fit_decay_coverage.py              # about half a minute on one core
    python benchmarks/fit_decay_coverage.py --quick      # seconds
    python benchmarks/fit_decay_coverage.py --plot-only  # the figure again from the JSON
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from numpy.typing import NDArray
from scipy.signal import lfilter

import gradlab as gl
from gradlab.record import command_line, figure, out_folder, path_of, read_record, write_record

NAME = "fit_decay_coverage"
INCREMENTS = (20, 50, 100, 500)
CORRELATIONS = (0.0, 0.5, 0.8)
DRIFT, NOMINAL = -0.3, 0.95
CHUNK = 1000  # sequences at a time


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = out_folder(command_line(__doc__, "a twentieth of the sequences"))
    parser.add_argument("--plot-only", action="store_true", help="draw from the JSON that is there")
    parser.add_argument("--sequences", type=int, help="of each kind (default: 20000; quick: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the walks (default: %(default)s)")
    options = parser.parse_args()
    if options.sequences is None:
        options.sequences = 1000 if options.quick else 20000
    if options.sequences < 2:
        parser.error(f"--sequences must be at least 2, got {options.sequences}")
    return options


def walks(rng: np.random.Generator, sequences: int, m: int, correlation: float) -> NDArray[np.float64]:
    """Return ln norms at t = 0 … m [sequences, m + 1] of which the increments over the lag are stationary AR(1)."""
    increments = rng.standard_normal((sequences, m))
    increments[:, 1:] *= np.sqrt(1.0 - correlation**2)  # the first has the stationary variance already
    increments = DRIFT + lfilter([1.0], [1.0, -correlation], increments, axis=1)
    return np.concatenate([np.zeros((sequences, 1)), increments.cumsum(axis=1)], axis=1)[:, ::-1]


def lines(rng: np.random.Generator, sequences: int, m: int) -> NDArray[np.float64]:
    """Return ln norms at t = 0 … m [sequences, m + 1]: an exact line with independent unit noise."""
    return DRIFT * np.arange(m, -1, -1) + rng.standard_normal((sequences, m + 1))


def measure(m: int, correlation: float | None, sequences: int, seed: int) -> dict[str, Any]:
    """Return coverage and size of the standard error for walks, or for noise about a line (correlation None)."""
    entropy = [seed, m, 1000 if correlation is None else round(100 * correlation)]
    rng = np.random.default_rng(entropy)
    rates, errors = [], []
    for first in range(0, sequences, CHUNK):
        count = min(CHUNK, sequences - first)
        curves = lines(rng, count, m) if correlation is None else walks(rng, count, m, correlation)
        fit = gl.fit_decay(curves, skip=0)
        rates.append(fit.rate)
        errors.append(fit.standard_error)
    rate, error = np.concatenate(rates), np.concatenate(errors)
    hits = int((np.abs(rate - DRIFT) < 1.96 * error).sum())
    near = (hits + 1) / (sequences + 2)  # not 1, where every sequence was covered: the standard error is then not 0
    return {
        "increments": m,
        "correlation": correlation,
        "coverage": hits / sequences,
        "binomial_standard_error": float(np.sqrt(near * (1.0 - near) / sequences)),
        "claimed_over_actual": float(np.sqrt((error**2).mean()) / rate.std(ddof=1)),
        "bias": float(rate.mean() - DRIFT),
        "standard_error_of_bias": float(rate.std(ddof=1) / np.sqrt(sequences)),
    }


def run(sequences: int, seed: int) -> dict[str, Any]:
    """Return the record."""
    started = time.perf_counter()
    rows = []
    for correlation in (*CORRELATIONS, None):
        for m in INCREMENTS:
            rows.append(measure(m, correlation, sequences, seed))
            row, kind = rows[-1], "noise about a line" if correlation is None else f"walk, correlation {correlation:g}"
            print(
                f"{kind:21s} m = {m:3d}: coverage {row['coverage']:.4f} ± {row['binomial_standard_error']:.4f},"
                f" claimed error {row['claimed_over_actual']:.3f} × actual",
                flush=True,
            )
    made = environment(seed) | {"wall_seconds": round(time.perf_counter() - started, 1)}
    return {"environment": made, "sequences": sequences, "drift": DRIFT, "nominal": NOMINAL, "rows": rows}


def sentence(record: dict[str, Any]) -> str:
    """Return what the docstring of `fit_decay` says of this."""

    def coverages(correlation: float) -> str:
        found = [row for row in record["rows"] if row["correlation"] == correlation]
        said = [f"{row['coverage']:.2f} at {row['increments']}" for row in found]
        return ", ".join([said[0].replace("at ", "at m = "), *said[1:]])

    noise = [row for row in record["rows"] if row["correlation"] is None]
    times = [f"{row['claimed_over_actual']:.0f} times at {row['increments']}" for row in (noise[0], noise[-1])]
    return (
        f"Simulated coverage of ±1.96 standard errors: independent increments {coverages(0.0)}; correlated at 0.5:"
        f" {coverages(0.5)}; correlated at 0.8: {coverages(0.8)}, too small for short sequences. For noise about an"
        f" exact line it is far too large: {times[0].replace('at ', 'at m = ')}, {times[1]}."
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw coverage, and claimed over actual error, against the number of increments, from the record alone."""
    with figure(path, 1, 2, figsize=(6.4, 2.6)) as (drawn, axes):
        for correlation, colour, mark in zip((*CORRELATIONS, None), ("C0", "C1", "C2", "0.5"), "os^D", strict=True):
            rows = [row for row in record["rows"] if row["correlation"] == correlation]
            m = [row["increments"] for row in rows]
            label = "noise about a line" if correlation is None else f"walk, correlation {correlation:g}"
            spread = [1.96 * row["binomial_standard_error"] for row in rows]
            style = {"color": colour, "marker": mark, "markersize": 3.5, "linewidth": 0.9}
            axes[0, 0].errorbar(m, [row["coverage"] for row in rows], spread, capsize=2, label=label, **style)
            axes[0, 1].plot(m, [row["claimed_over_actual"] for row in rows], **style)
        axes[0, 0].axhline(record["nominal"], color="0.4", linewidth=0.8, linestyle="--", zorder=0, label="nominal")
        axes[0, 1].axhline(1.0, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
        axes[0, 0].set(ylabel="coverage of ±1.96 standard errors")
        axes[0, 1].set(yscale="log", ylabel="claimed / actual standard error")
        axes[0, 1].yaxis.set_major_formatter("{x:g}")
        for ax in axes[0]:
            ax.set(xscale="log", xlabel="increments m")
            ax.margins(x=0.05)
            ax.set_xticks(m, [str(one) for one in m])
            ax.minorticks_off()
        drawn.legend(loc="outside upper center", ncols=5, frameon=False)


def main() -> None:
    """Run or read, print, write, draw."""
    options = arguments()
    path = path_of(NAME, options)
    if not options.plot_only:
        write_record(run(options.sequences, options.seed), path)
    record = read_record(path)
    print(sentence(record))
    draw(record, path)


if __name__ == "__main__":
    main()

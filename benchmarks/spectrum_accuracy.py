"""How wrong are the singular values of ∂h_T/∂h_t? Seven ways to them, against ball arithmetic.

The table gives max |Δ ln σ| over all values and all lags up to 16 units, and over 24 lags from 1 to T in about equal
ratios beyond (all of them in high precision would take hours; --lags asks for another number). "inf" is a value that
underflowed to 0, or an exact zero that was not seen.

    python benchmarks/spectrum_accuracy.py            # five minutes on 2 cores
    python benchmarks/spectrum_accuracy.py --quick    # seconds; writes nothing unless --out is given
    python benchmarks/spectrum_accuracy.py --plot     # the figure again from the JSON

Needs the extra `test` (mpmath, python-flint).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ball_arithmetic import exact_log_singular_values, log_spaced_times
from environment import environment
from numpy.typing import NDArray

import gradlab as gl
from gradlab.results import write_text_atomically

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow is imported by the first cell, and talks

Array = NDArray[np.float64]
RESULT = Path(__file__).resolve().parent / "results" / "spectrum_accuracy.json"
EPS = float(np.finfo(np.float64).eps)
SEED = 0


# --- Cases: step Jacobians [T, n, n] ----------------------------------------------------------------------------------


def cell_jacobians(kind: str, n: int, T: int, gain: float, noise: float) -> Array:
    """Return the Jacobians of one sequence through a cell whose recurrent matrices are N(0, gain²/units)."""
    import keras

    keras.utils.set_random_seed(SEED)  # before the cell is made: its initializers draw their seeds then
    rng = np.random.default_rng(SEED)
    layers = keras.layers
    if kind == "stack":
        members = [layers.LSTMCell(n // 4), gl.VanillaRNNCell(n // 4), layers.GRUCell(n // 4)]
        cell = layers.StackedRNNCells(members)
    else:
        makers = {"lstm": lambda: layers.LSTMCell(n // 2), "gru": lambda: layers.GRUCell(n)}
        cell = makers.get(kind, lambda: gl.VanillaRNNCell(n, kind))()
        members = [cell]
    cell.build((None, n))
    for member in members:
        shape = tuple(member.recurrent_kernel.shape)
        member.recurrent_kernel.assign(gain * rng.standard_normal(shape) / math.sqrt(shape[0]))
    return gl.step_jacobians(gl.rollout(cell, noise * rng.standard_normal((1, T, n))))[0]


def leaky(n: int, T: int) -> Array:
    """0.95·I + 0.05·W, W fresh at every step."""
    return 0.95 * np.eye(n) + 0.05 * np.random.default_rng(SEED).standard_normal((T, n, n)) / math.sqrt(n)


def ginibre(n: int, T: int) -> Array:
    """Fresh N(0, 1/n) entries at every step."""
    return np.random.default_rng(SEED).standard_normal((T, n, n)) / math.sqrt(n)


def ascending_triangle(n: int, T: int) -> Array:
    """Upper triangles with a diagonal from 0.2 to 1.2: in reverse order, unless the columns are sorted."""
    above = np.triu(np.random.default_rng(SEED).standard_normal((T, n, n)), 1)
    return 0.5 * above + np.diag(np.linspace(0.2, 1.2, n))


def jordan(n: int, T: int) -> Array:
    """One Jordan block, 0.95 on its diagonal: ill-conditioned by itself."""
    return np.repeat((0.95 * np.eye(n) + np.eye(n, k=1))[None], T, axis=0)


def turned_jordan(n: int, T: int) -> Array:
    """The same block in a random orthonormal basis: no elimination sees its structure any more."""
    Q = np.linalg.qr(np.random.default_rng(SEED).standard_normal((n, n)))[0]
    return Q @ jordan(n, T) @ Q.T


def cell(kind: str, n: int, T: int, gain: float = 1.0, noise: float = 0.3) -> Callable[[], Array]:
    """Return a maker of `cell_jacobians`."""
    return lambda: cell_jacobians(kind, n, T, gain, noise)


CASES: dict[str, Callable[[], Array]] = {
    "tanh gain 0.5 (16, 200)": cell("tanh", 16, 200, 0.5),
    "tanh gain 1 (32, 1000)": cell("tanh", 32, 1000, 1.0),
    "tanh gain 1.5 (16, 200)": cell("tanh", 16, 200, 1.5),
    "tanh gain 1.5 (32, 300)": cell("tanh", 32, 300, 1.5),
    "tanh gain 5 (12, 200)": cell("tanh", 12, 200, 5.0),
    "tanh gain 12 (12, 100)": cell("tanh", 12, 100, 12.0, 3.0),
    "ReLU, dead units (16, 60)": cell("relu", 16, 60, 1.6, 1.0),
    "LSTM (16, 200)": cell("lstm", 16, 200),
    "LSTM gain 8 (16, 100)": cell("lstm", 16, 100, 8.0, 1.0),
    "GRU (16, 200)": cell("gru", 16, 200),
    "GRU gain 8 (16, 100)": cell("gru", 16, 100, 8.0, 1.0),
    "LSTM (32, 200)": cell("lstm", 32, 200),
    "GRU (32, 200)": cell("gru", 32, 200),
    "stack LSTM+tanh+GRU (16, 200)": cell("stack", 16, 200, 1.0),
    "leaky (10, 200)": lambda: leaky(10, 200),
    "ascending triangle (16, 200)": lambda: ascending_triangle(16, 200),
    "Ginibre (10, 150)": lambda: ginibre(10, 150),
    "Jordan 0.95 (10, 200)": lambda: jordan(10, 200),
    "Jordan 0.95, turned (10, 200)": lambda: turned_jordan(10, 200),
}
QUICK: dict[str, Callable[[], Array]] = {
    "tanh gain 1.5 (8, 60)": cell("tanh", 8, 60, 1.5),
    "ReLU, dead units (8, 20)": cell("relu", 8, 20, 1.6, 1.0),
    "LSTM gain 8 (8, 30)": cell("lstm", 8, 30, 8.0, 1.0),
    "Ginibre (8, 60)": lambda: ginibre(8, 60),
    "Jordan 0.95 (8, 60)": lambda: jordan(8, 60),
}


# --- Methods: (J [T, n, n], times) → ln σ [len(times), n], descending -------------------------------------------------


def log(x: Any) -> Any:
    """Return ln|x|, −∞ at 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.abs(x))


def naive(J: Array, times: list[int]) -> Array:
    """P ← P J, then an SVD."""
    out, P = {}, np.eye(J.shape[-1])
    for t in range(len(J) - 1, -1, -1):
        P = P @ J[t]
        if t in times:
            out[t] = log(np.linalg.svd(P, compute_uv=False))
    return np.array([out[t] for t in times])


def scaled(J: Array, times: list[int]) -> Array:
    """The same with P divided by its largest entry at every step, the logarithms of the divisors added up."""
    out, P, scale = {}, np.eye(J.shape[-1]), 0.0
    for t in range(len(J) - 1, -1, -1):
        P = P @ J[t]
        largest = np.abs(P).max() or 1.0
        P, scale = P / largest, scale + math.log(largest)
        if t in times:
            out[t] = log(np.linalg.svd(P, compute_uv=False)) + scale
    return np.array([out[t] for t in times])


def tree(J: Array, times: list[int]) -> Array:
    """Neighbours multiplied in pairs, scaled, until one is left."""

    def product(factors: Array) -> tuple[Array, float]:
        scale = 0.0
        while len(factors) > 1:
            odd = factors[-1:] if len(factors) % 2 else factors[:0]
            factors = np.concatenate([factors[1::2] @ factors[: len(factors) // 2 * 2 : 2], odd])
            largest = np.maximum(np.abs(factors).max(axis=(1, 2), keepdims=True), 1e-300)
            factors, scale = factors / largest, scale + float(np.log(largest).sum())
        return factors[0], scale

    pairs = [product(J[t:]) for t in times]
    return np.array([log(np.linalg.svd(P, compute_uv=False)) + scale for P, scale in pairs])


def qr_sweeps(J: Array, times: list[int], sweeps: int) -> Array:
    """ln|diag| of the triangles of QR accumulation; each further sweep is on the triangles transposed, in reverse.

    One sweep is what tools for Lyapunov exponents do. More of them are the QR iteration for products.
    """
    rows = []
    for t in times:
        factors = J[t:]
        for _ in range(sweeps):
            Q, triangles = np.eye(J.shape[-1]), []
            for factor in factors:
                Q, R = np.linalg.qr(factor @ Q)
                triangles.append(R)
            factors = np.array(triangles)[::-1].swapaxes(1, 2)  # Πᵀ: lower triangles, the last first
        rows.append(np.sort(log(np.einsum("tii->ti", np.array(triangles))).sum(axis=0))[::-1])
    return np.array(rows)


METHODS: dict[str, Callable[[Array, list[int]], Array]] = {
    "product, SVD": naive,
    "scaled product, SVD": scaled,
    "tree of products, SVD": tree,
    "QR diagonals": lambda J, times: qr_sweeps(J, times, 1),
    "iterated QR (8)": lambda J, times: qr_sweeps(J, times, 8),
}
OURS, ESTIMATE = "gradlab", "gradlab's estimate"


# --- Measuring --------------------------------------------------------------------------------------------------------


def difference(values: Array, exact: Array) -> Array:
    """Return |Δ ln σ|, 0 where both are −∞, ∞ where one is."""
    with np.errstate(invalid="ignore"):
        return np.where(values == exact, 0.0, np.nan_to_num(np.abs(values - exact), nan=np.inf, posinf=np.inf))


def measure(J: Array, times: list[int], exact: Array) -> dict[str, Any]:
    """Return the errors of every method on one case, and how the estimate compares with the truth."""
    errors = {}
    for name, method in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            errors[name] = float(difference(method(J, times), exact).max())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        ours, estimate = gl.log_singular_values(J, return_error=True)
    wrong, estimate = difference(ours[times], exact), estimate[times]
    # what ln σ itself cannot resolve, a few units in its last place, says nothing on an estimate
    rounding = 8.0 * EPS * np.maximum(1.0, np.where(np.isfinite(exact), np.abs(exact), 1.0))
    ratio = np.maximum(estimate, rounding) / np.maximum(wrong, rounding)
    errors |= {OURS: float(wrong.max()), ESTIMATE: float(estimate.max())}
    finite = exact[np.isfinite(exact)]
    return {
        "range": [float(finite.min()), float(finite.max())],
        "zeros": int(np.isneginf(exact).sum()),
        "zeros_found": int((np.isneginf(exact) & np.isneginf(ours[times])).sum()),
        "zeros_invented": int((~np.isneginf(exact) & np.isneginf(ours[times])).sum()),
        "errors": {name: error if math.isfinite(error) else "inf" for name, error in errors.items()},
        "estimate_over_truth": {
            "of_maxima": float(max(estimate.max(), rounding.max()) / max(wrong.max(), rounding.max())),
            "least": float(ratio.min()),
            "greatest": float(ratio.max()),
            "within_30": float(((ratio >= 1 / 30) & (ratio <= 30)).mean()),
        },
        "warnings": sorted({str(one.message).split(":")[0][:120] for one in warned}),
        "lags": [len(J) - t for t in times],
    }


ALL_LAGS_UP_TO = 16  # units
LAGS_BEYOND = 24
TIMES_PER_TASK = 4  # short lags need fewer bits than long ones


def checked_times(J: Array, lags: int | None) -> list[int]:
    """Return the t at which one case is checked."""
    T, n = J.shape[:2]
    if lags is None and n <= ALL_LAGS_UP_TO:
        return list(range(T))
    return log_spaced_times(T, lags or LAGS_BEYOND)


def exact_spectra(jacobians: dict[str, Array], times: dict[str, list[int]]) -> dict[str, Array]:
    """Return the exact ln σ [len(times), n] of every case, by as many processes as there are cores."""
    tasks = [
        (name, times[name][i : i + TIMES_PER_TASK])
        for name in sorted(jacobians, key=lambda name: -jacobians[name].size)  # longest first
        for i in range(0, len(times[name]), TIMES_PER_TASK)
    ]
    # spawned, because a fork after TensorFlow started hangs
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(exact_log_singular_values, jacobians[name], some) for name, some in tasks]
        parts: dict[str, list[Array]] = {name: [] for name in jacobians}
        for (name, _), one in zip(tasks, waiting, strict=True):
            parts[name].append(one.result())
    return {name: np.concatenate(some) for name, some in parts.items()}


def run(cases: dict[str, Callable[[], Array]], lags: int | None) -> dict[str, Any]:
    """Return the record of all cases."""
    started = time.perf_counter()
    jacobians = {name: make() for name, make in cases.items()}
    times = {name: checked_times(J, lags) for name, J in jacobians.items()}
    exact = exact_spectra(jacobians, times)
    results = {name: measure(J, times[name], exact[name]) for name, J in jacobians.items()}
    made = environment(SEED) | {"wall_seconds": round(time.perf_counter() - started, 1)}
    return {"environment": made, "cases": results}


def table(record: dict[str, Any]) -> str:
    """Return the table as text."""
    names = [*METHODS, OURS, ESTIMATE]
    width = max(map(len, record["cases"]))
    heads = ("product", "scaled", "tree", "QR", "QR x 8", "gradlab", "estimate", "est/true", "within 30", "zeros")
    lines = [f"{'max |Δ ln σ|':{width}}  {'range of ln σ':>15}" + "".join(f"{head:>10}" for head in heads)]
    for name, case in record["cases"].items():
        low, high = case["range"]
        errors = "".join(f"{float(case['errors'][method]):>10.1e}" for method in names)
        ratio = case["estimate_over_truth"]
        zeros = f"{case['zeros_found']}/{case['zeros']}"
        last = f"{ratio['of_maxima']:>10.2g}{ratio['within_30']:>10.1%}{zeros:>10}"
        lines.append(f"{name:{width}}  {high:>7.0f} …{low:>6.0f}{errors}{last}")
    return "\n".join(lines)


def draw(record: dict[str, Any], stem: Path) -> None:
    """Draw the errors of every method, one row for each case."""
    import matplotlib.pyplot as plt

    marks = {
        "product, SVD": ("x", "#D55E00"),
        "scaled product, SVD": ("+", "#D55E00"),
        "tree of products, SVD": ("|", "#D55E00"),
        "QR diagonals": ("s", "#E69F00"),
        "iterated QR (8)": ("D", "#CC79A7"),
        ESTIMATE: ("o", "none"),
        OURS: ("o", "#0072B2"),
    }
    cases = record["cases"]
    with gl.plot.style():
        fig, ax = plt.subplots(figsize=(5.2, 0.6 + 0.2 * len(cases) + 0.5))
        end = 1e6
        for method, (marker, colour) in marks.items():
            errors = [float(case["errors"][method]) for case in cases.values()]
            x = [min(max(error, 1e-16), end) for error in errors]
            face = {"markerfacecolor": colour, "color": "#0072B2" if method == ESTIMATE else colour}
            size = 6.5 if method == ESTIMATE else 4
            ax.plot(x, range(len(cases)), marker, label=method, markersize=size, clip_on=False, **face)
        ax.set(xscale="log", xlim=(1e-16, end), ylim=(len(cases) - 0.5, -0.5))
        ax.set_yticks(range(len(cases)), list(cases))
        powers = range(-16, 5, 4)
        ax.set_xticks([*(10.0**p for p in powers), end], [*(f"$10^{{{p}}}$" for p in powers), r"$\infty$"])
        ax.minorticks_off()
        ax.axvline(1.0, color="#8c8c8c", linewidth=0.6, zorder=0)
        ax.grid(axis="y", linewidth=0.3)
        ax.set_xlabel(r"max $|\Delta\ln\sigma|$ against ball arithmetic")
        fig.legend(loc="outside upper center", ncols=3)
        gl.plot.save_figure(fig, stem)
        plt.close(fig)


def main() -> None:
    """Run or read, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five small cases")
    parser.add_argument("--plot", action="store_true", help="draw from the JSON that is there")
    parser.add_argument("--lags", type=int, help="lags to check in each case (quick: 5)")
    parser.add_argument("--out", type=Path, help=f"JSON to write, figure beside it (default: results/{RESULT.name})")
    options = parser.parse_args()
    out = options.out or RESULT
    if options.plot:
        record = json.loads(out.read_text(encoding="utf-8"))
    else:
        record = run(QUICK if options.quick else CASES, options.lags or (5 if options.quick else None))
    print(table(record))
    if options.quick and not options.out:
        return
    if not options.plot:
        write_text_atomically(out, json.dumps(record, indent=1) + "\n")
    draw(record, out.with_suffix(""))


if __name__ == "__main__":
    main()

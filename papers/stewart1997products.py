"""To how many digits can the singular values of a product of a thousand matrices be had?

D. E. Stewart, A new algorithm for the SVD of a long product of matrices and the stability of products, Electronic
Transactions on Numerical Analysis 5 (1997) 29–47.

Claims (abstract): products of "perhaps 1000 or more" factors have extreme ratios between their singular values; an
algorithm with a small backward error in each factor exists; and for *stable* products such an error leaves all singular
values with a high relative accuracy. Here ln σ is what is compared, so a difference is a relative error of σ.

Setting: step Jacobians of networks and of fresh random matrices, lags from 1 to T. The truth: floats are integers over
a power of two, so the product is formed exactly, and its SVD has more bits than the values span.

- gradlab carries the product in graded form, in twice the digits of float64: what is left is the rounding of ln σ.
- Forming the product in float64 leaves the values above ε σ1, and noise for the rest.
- ln|R_ii| of QR accumulation estimates Lyapunov exponents; it is no singular value at any finite T.
- What the paper promises: a change of each factor by ε‖J_s‖ in a random direction. In a stable product value i moves at
  a step by ε‖J_s‖ over its growth there, so by ε κ(J_s) at most, and by ε Σ_s κ(J_s) over all.

    python papers/stewart1997products.py            # a minute
    python papers/stewart1997products.py --quick    # seconds

Needs the extra `test` (mpmath, python-flint).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mpmath
import numpy as np
from flint import fmpz_mat
from reproduction import Claim, Result, reproduce

import gradlab as gl
from gradlab.record import figure

Array = np.ndarray
EPS = float(np.finfo(float).eps)
LONG = "Ginibre, 1000 factors"
NEAR_IDENTITY = "leaky"
UNSTABLE = "Jordan block 0.95"
OURS, PRODUCT, QR, CHANGED = "gradlab", "product, then SVD", "QR diagonals", "factors changed by ε"
ROUNDINGS = 8  # of ln σ, one unit in its last place each: a logarithm, sums, and the truth's own
MAGNIFIED = 16  # changes of this many ε, so that the rounding of ln σ does not cover what they do
GUARD = 64  # bits of the truth below its smallest value
OWN = "ours"  # the place of what the paper does not say


def ginibre(n: int, T: int, rng: np.random.Generator) -> Array:
    """Return fresh matrices [T, n, n] of N(0, 1/n)."""
    return rng.standard_normal((T, n, n)) / np.sqrt(n)


def network(cell: Any, T: int, rng: np.random.Generator) -> Array:
    """Return the step Jacobians [T, n, n] of a cell under white noise of deviation 0.3."""
    return gl.step_jacobians(gl.rollout(cell, 0.3 * rng.standard_normal((1, T, 8))))[0]


def tanh(n: int, gain: float, seed: int) -> gl.VanillaRNNCell:
    """Return a tanh cell with W_ij ~ N(0, g²/n)."""
    return gl.VanillaRNNCell(n, recurrent_initializer="gaussian", recurrent_gain=gain, seed=seed, dtype="float64")


def lstm(units: int, seed: int) -> keras.layers.LSTMCell:
    """Return an LSTM cell with recurrent weights of N(0, 1/units)."""
    return keras.layers.LSTMCell(
        units,
        kernel_initializer=keras.initializers.GlorotUniform(seed=2 * seed),
        recurrent_initializer=keras.initializers.RandomNormal(stddev=units**-0.5, seed=2 * seed + 1),
        dtype="float64",
    )


def products(quick: bool, seed: int) -> dict[str, Array]:
    """Return the step Jacobians [T, n, n] by name."""
    n, T = (6, 60) if quick else (12, 200)
    rng = np.random.default_rng(seed)
    return {
        "Ginibre": ginibre(n, T, rng),
        LONG: ginibre(4 if quick else 6, 1000, rng),
        NEAR_IDENTITY: 0.95 * np.eye(n) + 0.05 * ginibre(n, T, rng),
        "tanh, gain 1.5": network(tanh(n, 1.5, seed), T, rng),
        "tanh, gain 5": network(tanh(n, 5.0, seed), T, rng),
        "LSTM": network(lstm(n // 2, seed), T, rng),
        UNSTABLE: np.repeat((0.95 * np.eye(n) + np.eye(n, k=1))[None], T, axis=0),
    }


def log_spaced_times(T: int, count: int) -> list[int]:
    """Return at most `count` t, the last first, whose lags T − t run from 1 to T in about equal ratios."""
    return [T - int(lag) for lag in np.unique(np.rint(np.geomspace(1, T, count)))]


def truth(J: Array, times: list[int]) -> Array:
    """Return ln σ_i of J_T ··· J_{t+1} [len(times), n]."""
    n, rows = J.shape[-1], {}
    P, scale = fmpz_mat(n, n, np.eye(n, dtype=int).ravel().tolist()), 1
    for t in range(len(J) - 1, min(times) - 1, -1):
        ratios = [x.as_integer_ratio() for x in J[t].ravel().tolist()]
        common = max(q for _, q in ratios)  # all are powers of two
        P, scale = P * fmpz_mat(n, n, [p * (common // q) for p, q in ratios]), scale * common
        if t in times:
            rows[t] = exact_values(P, scale)
    return np.array([rows[t] for t in times])


def exact_values(P: fmpz_mat, scale: int) -> list[float]:
    """Return ln σ_i of P/scale, descending, from an SVD in twice the bits until they are enough."""
    bits = 256
    while True:
        with mpmath.workprec(bits):
            entries = mpmath.matrix([[int(entry) for entry in row] for row in P.tolist()])
            values = sorted(mpmath.svd_r(entries, compute_uv=False), reverse=True)
            if values[-1] > values[0] * mpmath.mpf(2) ** (GUARD - bits):  # none of these products is singular
                return [float(mpmath.log(value / scale)) for value in values]
        bits *= 2


def log(x: Array) -> Array:
    """Return ln|x|, −∞ at 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.abs(x))


def formed(J: Array, times: list[int]) -> Array:
    """Return ln σ of the product formed in float64."""
    rows, P = {}, np.eye(J.shape[-1])
    for t in range(len(J) - 1, min(times) - 1, -1):
        P = P @ J[t]
        rows[t] = log(np.linalg.svd(P, compute_uv=False))
    return np.array([rows[t] for t in times])


def qr_diagonals(J: Array, times: list[int]) -> Array:
    """Return Σ ln|R_ii| of QR accumulation from t on, descending, as tools for Lyapunov exponents have it."""
    rows = []
    for t in times:
        Q, total = np.eye(J.shape[-1]), 0.0
        for factor in J[t:]:
            Q, R = np.linalg.qr(factor @ Q)
            total = total + log(np.diag(R))
        rows.append(np.sort(total)[::-1])
    return np.array(rows)


def difference(values: Array, exact: Array) -> Array:
    """Return |Δ ln σ|, ∞ for a value that underflowed."""
    return np.abs(values - exact)


def moved(J: Array, times: list[int], rng: np.random.Generator) -> Array:
    """Return how far ln σ moves [len(times), n] when every factor is changed by ε‖J_s‖ in a random direction."""
    E = rng.standard_normal(J.shape)
    sizes = MAGNIFIED * EPS * np.linalg.norm(J, 2, axis=(1, 2)) / np.linalg.norm(E, 2, axis=(1, 2))
    after, before = (gl.log_singular_values(A)[times] for A in (J + sizes[:, None, None] * E, J))
    return difference(after, before) / MAGNIFIED


METHODS: dict[str, Callable[[Array, list[int]], Array]] = {
    PRODUCT: formed,
    QR: qr_diagonals,
    OURS: lambda J, times: gl.log_singular_values(J)[times],
}


def compute(options: Namespace) -> Result:
    """Compare every method with the truth, on every product."""
    rng = np.random.default_rng(options.seed)
    errors: dict[str, dict[str, float]] = {}
    spectra, left, above = {}, 0, 0
    for name, J in products(options.quick, options.seed).items():
        times = log_spaced_times(len(J), 3 if options.quick else 12)
        exact = truth(J, times)
        found = {method: f(J, times) for method, f in METHODS.items()}
        errors[name] = {method: float(difference(values, exact).max()) for method, values in found.items()}
        errors[name] |= {
            CHANGED: float(moved(J, times, rng).max()),
            "promise": float(EPS * np.linalg.cond(J).sum()),
            "rounding": float(ROUNDINGS * EPS * np.abs(exact).max()),
        }
        whole = times.index(0)
        spectra[name] = {"truth": exact[whole].tolist()} | {m: found[m][whole].tolist() for m in METHODS}
        if name != UNSTABLE:  # a product of positive triangles, which cancel nothing: more of it survives
            left += int((difference(found[PRODUCT], exact)[whole] < 0.5).sum())
            above += int((exact[whole] > exact[whole, 0] + np.log(EPS)).sum())

    stable = [name for name in errors if name != UNSTABLE]
    worst = max(stable, key=lambda name: errors[name][OURS] / errors[name]["rounding"])
    most = max(stable, key=lambda name: errors[name][CHANGED] / errors[name]["promise"])
    unstable = errors[UNSTABLE]
    why = f"{ROUNDINGS} units in the last place of the largest ln σ"
    claims = [
        Claim(
            "1000 factors: all singular values to high relative accuracy; max |Δ ln σ| of gradlab",
            "abstract", 0.0, errors[LONG][OURS], errors[LONG]["rounding"], why,
        ),
        Claim(
            f"stable products: all singular values to high relative accuracy; max |Δ ln σ| of gradlab, {worst}",
            "abstract", 0.0, errors[worst][OURS], errors[worst]["rounding"], why,
        ),
        Claim(
            "stable products: what a backward error of ε in each factor does to ln σ, over ε Σ κ(J_s); the worst of"
            f" {len(stable)}, {most}",
            "abstract", 1.0, errors[most][CHANGED] / errors[most]["promise"], 0.0, "a bound to first order in ε",
            sense="at most",
        ),
        Claim(
            f"a product that is not stable, {UNSTABLE}: the same is beyond ε Σ κ(J_s)",
            OWN, 1.0, unstable[CHANGED] / unstable["promise"], 0.0, "the converse of the bound", sense="at least",
        ),
        Claim(
            f"{UNSTABLE} in twice the digits of float64: max |Δ ln σ| of gradlab",
            OWN, 0.0, unstable[OURS], unstable["rounding"], why,
        ),
        Claim(
            "stable products formed in float64 keep the values above ε σ1: how many are right to a factor √e, at lag T",
            OWN, above, left, len(stable), "one value in each product may lie on the edge",
        ),
        Claim(
            "diagonals of QR accumulation are not singular values: max |Δ ln σ|, the least over all products but"
            f" {NEAR_IDENTITY}",
            OWN, np.log(2.0), min(errors[name][QR] for name in errors if name != NEAR_IDENTITY), 0.0,
            f"a factor of 2; {NEAR_IDENTITY}, with factors near the identity, has {errors[NEAR_IDENTITY][QR]:.2f}",
            sense="at least",
        ),
    ]  # fmt: skip
    differs = (
        "gradlab's algorithm is another one (graded QR in twice the digits; the paper's is a variant of Cholesky LR);"
        " the products are those of networks; ε Σ κ(J_s) stands for the paper's own criterion of a stable product."
        ' Claims placed as "ours", with their thresholds, are not the paper\'s.'
    )
    return Result(claims, {"errors": errors, "spectra": spectra}, differs)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the errors by product and method, and two spectra by all methods."""
    errors, spectra = record["curves"]["errors"], record["curves"]["spectra"]
    marks = {PRODUCT: ("x", "C3"), QR: ("s", "C1"), CHANGED: ("D", "C4"), OURS: ("o", "C0")}
    end = 1e5
    with figure(path, 1, 3, figsize=(6.9, 2.5), width_ratios=(1.5, 1, 1)) as (fig, axes):
        left, *others = axes[0]
        rows = np.arange(len(errors))
        for method, (marker, colour) in marks.items():
            values = [min(max(of[method], 1e-16), end) for of in errors.values()]
            left.plot(values, rows, marker, color=colour, label=method, markersize=4, clip_on=False)
        for row, of in zip(rows, errors.values(), strict=True):
            left.plot([of["promise"]] * 2, [row - 0.3, row + 0.3], color="C4", linewidth=0.9)
        left.plot([], [], color="C4", marker="|", linestyle="none", label=r"$\varepsilon\,\Sigma\kappa(J_s)$")
        left.set(xscale="log", xlim=(1e-16, end), ylim=(len(rows) - 0.5, -0.5), xlabel=r"max $|\Delta\ln\sigma|$")
        left.set_xticks([10.0**p for p in (-16, -12, -8, -4, 0, 4)])
        left.minorticks_off()
        left.set_yticks(rows, list(errors))
        left.grid(axis="y", linewidth=0.3)
        left.axvline(1.0, color="0.6", linewidth=0.6, zorder=0)

        for ax, name in zip(others, ("tanh, gain 1.5", UNSTABLE), strict=True):
            one = spectra[name]
            i = np.arange(1, len(one["truth"]) + 1)
            ax.plot(i, one["truth"], color="0.3", label="truth (exact product)")
            for method in (PRODUCT, QR, OURS):
                marker, colour = marks[method]
                ax.plot(i, one[method], marker, color=colour, markersize=4 - (method == OURS))
            ax.set(xlabel="$i$", ylabel=r"$\ln\sigma_i$, all factors", title=name, xlim=(0.5, len(i) + 0.5))
            ax.set_xticks(i[::3])
            ax.legend(loc="lower left")
        fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=5)


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

"""To how many digits can the singular values of a product of a thousand matrices be had?

D. E. Stewart, A new algorithm for the SVD of a long product of matrices and the stability of products, Electronic
Transactions on Numerical Analysis 5 (1997) 29–47.

Claims (abstract): products of "perhaps 1000 or more" factors have extreme ratios between their singular values; an
algorithm with a small backward error in each factor exists; and for *stable* products such an error leaves all singular
values with a high relative accuracy. Here ln σ is what is compared, so a difference is a relative error of σ.

Setting: step Jacobians of networks and of fresh random matrices, lags from 1 to T, the truth from ball arithmetic.

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

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import Claim, Result, reproduce

import gradlab as gl
from gradlab.record import figure

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))  # products and their truth, shared with it
from ball_arithmetic import exact_log_singular_values, log_spaced_times
from spectrum_accuracy import EPS, cell_jacobians, difference, ginibre, jordan, leaky, naive, qr_sweeps

Array = np.ndarray
LONG = "Ginibre, 1000 factors"
UNSTABLE = "Jordan block 0.95"
OURS, PRODUCT, QR, CHANGED = "gradlab", "product, then SVD", "QR diagonals", "factors changed by ε"
ROUNDINGS = 8  # of ln σ, one unit in its last place each: a logarithm, sums, and the truth's own
MAGNIFIED = 16  # changes of this many ε, so that the rounding of ln σ does not cover what they do


def products(quick: bool) -> dict[str, Array]:
    """Return the step Jacobians [T, n, n] by name."""
    n, T = (6, 60) if quick else (12, 200)
    return {
        "Ginibre": ginibre(n, T),
        LONG: ginibre(4 if quick else 6, 1000),
        "leaky": leaky(n, T),
        "tanh, gain 1.5": cell_jacobians("tanh", n, T, gain=1.5, noise=0.3),
        "tanh, gain 5": cell_jacobians("tanh", n, T, gain=5.0, noise=0.3),
        "LSTM": cell_jacobians("lstm", n, T, gain=1.0, noise=0.3),
        UNSTABLE: jordan(n, T),
    }


def moved(J: Array, times: list[int], rng: np.random.Generator) -> Array:
    """Return how far ln σ moves [len(times), n] when every factor is changed by ε‖J_s‖ in a random direction."""
    E = rng.standard_normal(J.shape)
    sizes = MAGNIFIED * EPS * np.linalg.norm(J, 2, axis=(1, 2)) / np.linalg.norm(E, 2, axis=(1, 2))
    after, before = (gl.log_singular_values(A)[times] for A in (J + sizes[:, None, None] * E, J))
    return difference(after, before) / MAGNIFIED


METHODS: dict[str, Callable[[Array, list[int]], Array]] = {
    PRODUCT: naive,
    QR: lambda J, times: qr_sweeps(J, times, 1),
    OURS: lambda J, times: gl.log_singular_values(J)[times],
}


def compute(options: Namespace) -> Result:
    """Compare every method with the truth, on every product."""
    rng = np.random.default_rng(options.seed)
    errors: dict[str, dict[str, float]] = {}
    spectra, left, above = {}, 0, 0
    for name, J in products(options.quick).items():
        times = log_spaced_times(len(J), 3 if options.quick else 12)
        exact = exact_log_singular_values(J, times)
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
            "abstract", 1.0, unstable[CHANGED] / unstable["promise"], 0.0, "a bound to first order in ε",
            sense="at least",
        ),
        Claim(
            f"{UNSTABLE} in twice the digits of float64: max |Δ ln σ| of gradlab",
            "", 0.0, unstable[OURS], unstable["rounding"], why,
        ),
        Claim(
            "stable products formed in float64 keep the values above ε σ1: how many are right to a factor √e, at lag T",
            "", above, left, len(stable), "one value in each product may lie on the edge",
        ),
        Claim(
            "diagonals of QR accumulation are not singular values: the least over the products of max |Δ ln σ|",
            "", np.log(2.0), min(errors[name][QR] for name in errors if name != "leaky"), 0.0,
            "a factor of 2; the product near the identity is left out", sense="at least",
        ),
    ]  # fmt: skip
    differs = (
        "gradlab's algorithm is another one (graded QR in twice the digits; the paper's is a variant of Cholesky LR);"
        " the products are those of networks; ε Σ κ(J_s) stands for the paper's own criterion of a stable product."
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
            ax.plot(i, one["truth"], color="0.3", label="truth (balls)")
            for method in (PRODUCT, QR, OURS):
                marker, colour = marks[method]
                ax.plot(i, one[method], marker, color=colour, markersize=4 - (method == OURS))
            ax.set(xlabel="$i$", ylabel=r"$\ln\sigma_i$, all factors", title=name, xlim=(0.5, len(i) + 0.5))
            ax.set_xticks(i[::3])
            ax.legend(loc="lower left")
        fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=5)


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

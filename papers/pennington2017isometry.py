"""How far does a product of L random Jacobians stay from an isometry, Gaussian or orthogonal, linear or tanh?

J. Pennington, S. S. Schoenholz & S. Ganguli, Resurrecting the sigmoid in deep learning through dynamical isometry:
theory and practice, NIPS 2017 (arXiv 1711.04735).

Setting: J = D_L W_L ··· D_1 W_1 with fresh n×n weights in each layer, D_l = diag φ'(a_l), n → ∞ at fixed L.

    linear, Gaussian N(0, 1/n):   (1/n) tr JJᵀ → 1,   (1/n) tr (JJᵀ)² → L + 1,   σ1² → (L + 1)^(L+1)/L^L
    linear, orthogonal:           all singular values are 1
    tanh on the critical line:    variance of σ² → L(μ2/μ1² − 1 − s1), μ_k = ∫Dz φ'(√q z)^2k,
                                  s1 = −1 for Gaussian weights, 0 for orthogonal ones

What a finite n costs. Linear and Gaussian: the first two moments are known at every n (gl.predictions). σ1² of n×n
matrices lies at the soft edge, which ends as a square root: it falls short of z = (L + 1)^(L+1)/L^L by
1.2065 z L (2(L + 1))^(−1/3) n^(−2/3) in the mean (Tracy and Widom's law for real matrices; the scale follows from
w^(L+1) = z(w − 1) near its double root w = 1 + 1/L). tanh: in powers of 1/n, so the limit is an intercept over 1/n.

    python papers/pennington2017isometry.py            # four minutes
    python papers/pennington2017isometry.py --quick    # seconds
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import Claim, Result, reproduce
from scipy.optimize import brentq

import gradlab as gl
from gradlab.record import figure

DEPTH = 8  # corrections are powers of L²/n: deeper ones need larger n
FEW = 2
BIAS = 0.05  # standard deviation of the biases of the tanh networks, which decides where the critical line is met
ERRORS = 4  # standard errors
TRACY_WIDOM = 1.2065335745820  # −mean of Tracy and Widom's law, β = 1


def weights(rng: np.random.Generator, orthogonal: bool, draws: int, n: int) -> np.ndarray:
    """Return W [draws, DEPTH, n, n] with E W_ij² = 1/n."""
    G = rng.standard_normal((draws, DEPTH, n, n))
    if not orthogonal:
        return G / np.sqrt(n)
    Q, R = np.linalg.qr(G)
    return Q * np.sign(np.einsum("...ii->...i", R))[..., None, :]  # the signs make it uniform (Haar)


def tanh_jacobians(rng: np.random.Generator, W: np.ndarray, gain: float, q: float) -> np.ndarray:
    """Return the layers' Jacobians gain·D_l W_l along one input each [draws, DEPTH, n, n]."""
    draws, _, n, _ = W.shape
    h = np.tanh(np.sqrt(q) * rng.standard_normal((draws, n)))
    slopes = []
    for layer in range(DEPTH):
        a = gain * np.einsum("bij,bj->bi", W[:, layer], h) + BIAS * rng.standard_normal((draws, n))
        h = np.tanh(a)
        slopes.append(1 / np.cosh(a) ** 2)
    return gain * np.stack(slopes, axis=1)[..., None] * W


def spectra(J: np.ndarray) -> np.ndarray:
    """Return ln σ_i of the last L layers' product [draws, L, n], index L − 1."""
    return gl.log_singular_values(J)[:, ::-1]


def moments(ln_s: np.ndarray) -> dict[str, np.ndarray]:
    """Return (1/n) tr JJᵀ, (1/n) tr (JJᵀ)², the variance of σ² over its squared mean, and σ1², [draws, L] each."""
    first, second = np.exp(2 * ln_s).mean(axis=-1), np.exp(4 * ln_s).mean(axis=-1)
    return {"first": first, "second": second, "variance": second / first**2 - 1, "top": np.exp(2 * ln_s[..., 0])}


def with_errors(draws: np.ndarray) -> np.ndarray:
    """Return mean and standard error over draws [2, …]."""
    return np.array([draws.mean(axis=0), draws.std(axis=0, ddof=1) / np.sqrt(len(draws))])


def edge_shift(L: int) -> float:
    """Return by how much of itself times n^(−2/3) the mean of σ1² falls short of its limit."""
    return TRACY_WIDOM * L / (2 * (L + 1)) ** (1 / 3)


def critical_tanh() -> tuple[float, float, float]:
    """Return gain, q and μ2/μ1² − 1 of the tanh network with these biases on the critical line χ1 = 1."""
    gain = brentq(lambda g: gl.predictions.mean_field(g, bias_variance=BIAS**2).chi - 1, 0.9, 1.5, xtol=1e-14)
    q = gl.predictions.mean_field(gain, bias_variance=BIAS**2).q
    nodes, weight = np.polynomial.hermite_e.hermegauss(80)
    slopes = 1 / np.cosh(np.sqrt(q) * nodes) ** 2
    mu1, mu2 = (weight @ slopes**power / weight.sum() for power in (2, 4))
    return gain, q, mu2 / mu1**2 - 1


def compute(options: Namespace) -> Result:
    """Measure the moments and the edge over L and n."""
    rng = np.random.default_rng(options.seed)
    entries = 2e5 if options.quick else 3e6  # n² draws: all sizes cost about the same
    sizes = (32, 64, 128) if options.quick else (50, 100, 200, 400)
    claims, linear = [], {}
    for n in sizes:
        draws = max(8, int(entries / n**2))
        found = moments(spectra(weights(rng, False, draws, n)))
        linear[n] = {name: with_errors(values) for name, values in found.items()}
    for factors in (FEW, DEPTH):
        exact, limit = (gl.predictions.ginibre_product_moments(factors, size) for size in (n, None))
        (first, second, top), (first_error, second_error, top_error) = np.array(
            [linear[n][name][:, factors - 1] for name in ("first", "second", "top")]
        ).T
        edge = edge_shift(factors) * n ** (-2 / 3)
        claims += [
            Claim(
                f"linear, Gaussian, L = {factors}: (1/n) tr JJᵀ → 1",
                "section 2", limit.first, first, ERRORS * exact.first_standard_deviation / np.sqrt(draws),
                f"{ERRORS} standard errors of {draws} draws at n = {n}, exact; the mean is 1 at every n", first_error,
            ),
            Claim(
                f"linear, Gaussian, L = {factors}: (1/n) tr (JJᵀ)² → L + 1, variance L of the squared singular values",
                "section 2", limit.second, second, exact.second - limit.second + ERRORS * second_error,
                f"the exact mean at n = {n} is {exact.second:.4f}, and {ERRORS} standard errors", second_error,
            ),
            Claim(
                f"linear, Gaussian, L = {factors}: σ1² → (L + 1)^(L+1)/L^L; measured plus the {edge:.1%} that Tracy"
                f" and Widom's law takes at n = {n}",
                "section 2", limit.sigma_max_squared, top + limit.sigma_max_squared * edge,
                limit.sigma_max_squared * (edge**2 + factors / n) + ERRORS * top_error,
                f"the next orders in 1/n: this shift squared and L/n; and {ERRORS} standard errors",
                top_error,
            ),
        ]  # fmt: skip
    isometric = spectra(weights(rng, True, 4, 64))
    claims.append(
        Claim(
            f"linear, orthogonal: all singular values are 1; max |ln σ| up to L = {DEPTH}, n = 64",
            "abstract", 0.0, np.abs(isometric).max(), 64 * DEPTH * np.finfo(float).eps,
            "nε a factor: rounding of the entries of an orthogonal matrix", kind="theorem",
        )
    )  # fmt: skip

    gain, q, slopes = critical_tanh()
    nonlinear = {}
    for name, orthogonal, s1 in (("Gaussian", False, -1), ("orthogonal", True, 0)):
        each = []
        for n in sizes[-3:]:
            W = weights(rng, orthogonal, max(8, int(entries / n**2)), n)
            each.append(with_errors(moments(spectra(tanh_jacobians(rng, W, gain, q)))["variance"]))
        values, errors = np.array(each).transpose(1, 0, 2)  # [sizes, L]
        inverse = 1 / np.array(sizes[-3:])
        fits = [np.polyfit(inverse, v, 1, w=1 / e, cov="unscaled") for v, e in zip(values.T, errors.T, strict=True)]
        limits, limit_errors = np.array([(c[1], np.sqrt(C[1, 1])) for c, C in fits]).T
        theory = (slopes - s1) * np.arange(1, DEPTH + 1)
        claims.append(
            Claim(
                f"tanh, {name}, on the critical line (σ_b = {BIAS}, g = {gain:.4f}, q = {q:.4f}), L = {DEPTH}:"
                f" variance of σ² → L(μ2/μ1² − 1 − s1), s1 = {s1}",
                "section 2", theory[-1], limits[-1], ERRORS * limit_errors[-1],
                f"{ERRORS} standard errors of the intercept over 1/n, n = {', '.join(map(str, sizes[-3:]))}",
                limit_errors[-1],
            )
        )  # fmt: skip
        nonlinear[name] = [theory.tolist(), limits.tolist(), limit_errors.tolist()]
    # σ of single large networks, for the figure: [name][L]
    n = sizes[-1]
    shown = {
        "linear, Gaussian": weights(rng, False, 1, n),
        "tanh, orthogonal": tanh_jacobians(rng, weights(rng, True, 1, n), gain, q),
    }
    curves = {
        "linear": {n: {name: v.tolist() for name, v in found.items()} for n, found in linear.items()},
        "tanh": nonlinear,
        "spectra": {name: np.exp(spectra(J)[0, [1, 3, 7]]).tolist() for name, J in shown.items()},
    }
    differs = f"Widths of at most {max(sizes)}, not the limit; the critical line is met at one small bias."
    return Result(claims, curves, differs)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw singular values of single networks, their variance over depth, and the edge over n."""
    curves = record["curves"]
    with figure(path, 1, 3, figsize=(6.9, 2.4)) as (_, axes):
        left, middle, right = axes[0]
        for (name, values), colour in zip(curves["spectra"].items(), ("C0", "C2"), strict=True):
            for sigma, L, dashes in zip(values, (2, 4, 8), ("-", "--", ":"), strict=True):
                x = (np.arange(len(sigma)) + 0.5) / len(sigma)
                left.plot(x, sigma, dashes, color=colour, label=f"{name}, $L={L}$")
        left.axhline(1.0, color="0.6", linewidth=0.6, zorder=0)
        left.set(
            xlabel="$(i-\\frac{1}{2})/n$",
            ylabel=f"singular value $\\sigma_i$, $n={len(x)}$",
            xlim=(0, 1),
            ylim=(0, 4.6),
        )
        left.legend()

        L = np.arange(1, DEPTH + 1)
        n, found = list(curves["linear"].items())[-1]
        middle.plot(L, L, color="0.3", linewidth=0.9)
        second = np.array(found["second"])
        middle.errorbar(L, second[0] - 1, second[1], fmt="o", color="C0", label=f"linear, Gaussian, $n={n}$")
        for (name, found), marker, colour in zip(curves["tanh"].items(), "sD", ("C3", "C2"), strict=True):
            theory, limits, errors = found
            middle.plot(L, theory, color="0.3", linewidth=0.9)
            middle.errorbar(L, limits, errors, fmt=marker, color=colour, label=f"tanh, {name}, $n\\to\\infty$")
        middle.set(xlabel="depth $L$", ylabel="variance of $\\sigma^2$", xscale="log", yscale="log", xlim=(0.9, 9))
        middle.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        middle.minorticks_off()
        middle.legend(loc="lower left", bbox_to_anchor=(0.06, 0.36), fontsize=6)

        sizes = np.array([float(n) for n in curves["linear"]])
        x = np.linspace(0, sizes[0] ** (-2 / 3) * 1.1, 50)
        for factors, marker, colour in ((FEW, "o", "C0"), (DEPTH, "s", "C1")):
            top = np.array([found["top"] for found in curves["linear"].values()])[:, :, factors - 1]
            z = gl.predictions.ginibre_product_moments(factors).sigma_max_squared
            right.plot(
                x,
                1 - edge_shift(factors) * x,
                color="0.3",
                linewidth=0.9,
                label="Tracy–Widom" if factors == FEW else None,
            )
            style = {"fmt": marker, "color": colour, "label": f"$L={factors}$", "capsize": 2}
            right.errorbar(sizes ** (-2 / 3), top[:, 0] / z, top[:, 1] / z, **style)
        right.plot(0, 1, "k*", markersize=6, clip_on=False, label="published", zorder=5)
        right.set(xlabel="$n^{-2/3}$", ylabel="$\\sigma_1^2$ over $(L+1)^{L+1}/L^L$", xlim=(0, None))
        right.legend()


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

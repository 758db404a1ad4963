"""How fast do the singular values of a product of Gaussian matrices part, and how much does one product scatter?

C. M. Newman, The distribution of Lyapunov exponents: exact results for random matrices, Commun. Math. Phys. 103 (1986);
and G. Akemann, Z. Burda & M. Kieburg, Universal distribution of Lyapunov exponents for products of Ginibre matrices,
J. Phys. A 47 (2014), for complex matrices and for the scatter.

Setting: J_T ··· J_1 with a fresh n×n matrix at each step, its entries independent N(0, 1/n) (complex: E|J_ij|² = 1/n).

    λ_i = ½ [ln(2/n) + ψ((n − i + 1)/2)],    per-step variance ¼ ψ'((n − i + 1)/2)
    complex: ½ [ln(1/n) + ψ(n − i + 1)], ¼ ψ'(n − i + 1), and at large T each exponent is normal
    n → ∞: −λ is exponentially distributed, e^{2λ} uniform: λ(x) = ½ ln(1 − x) at x = i/n

No start has to be left out: a Gaussian matrix looks alike in every frame, so ln|R_ii| of a step is the logarithm of a
chi variable from the first step on, independent from step to step. A complex matrix A + iB acts as the real one
[[A, −B], [B, A]], which has every exponent twice; its exponents are every second one of the real case at 2n.

    python papers/newman1986exponents.py            # ten seconds
    python papers/newman1986exponents.py --quick    # seconds
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import Claim, Result, reproduce
from scipy.special import polygamma
from scipy.stats import kstest, norm

import gradlab as gl
from gradlab.record import figure

SEQUENCES = 100
COMPLEX, BLOCK = 3, 100  # size of the complex matrices; steps of one product whose exponents are compared with a normal
STARTS = 200  # steps until the complex frame has turned into complex lines: e^(−2·0.25·200), below rounding
ERRORS = 4  # standard errors: of 14 numbers one lies further out with a chance of 1e-3
KOLMOGOROV = 2.09  # √M sup|F_M − F| of one of 3 samples exceeds it with a chance of 1e-3: √(½ ln(2·3/1e-3))


def gaussian(rng: np.random.Generator, steps: int, n: int) -> np.ndarray:
    """Return J [B, T, n, n] with N(0, 1/n) entries."""
    return rng.standard_normal((SEQUENCES, steps, n, n)) / np.sqrt(n)


def complex_gaussian(rng: np.random.Generator, steps: int, n: int) -> np.ndarray:
    """Return complex matrices with E|J_ij|² = 1/n as the real ones that act alike [B, T, 2n, 2n]."""
    A, B = rng.standard_normal((2, SEQUENCES, steps, n, n)) / np.sqrt(2 * n)
    return np.block([[A, -B], [B, A]])


def growth_of(J: np.ndarray, discard: int = 0) -> np.ndarray:
    """Return ln|R_ii| of every step [B, T, k], in the order of the frame, out of the running means."""
    history = gl.lyapunov_exponents(J, discard=discard, stride=1).history
    return np.diff(history * np.arange(1, history.shape[1] + 1)[:, None], axis=1, prepend=0.0)


def compute(options: Namespace) -> Result:
    """Measure exponents and variances, the limit, and the law of the exponents of one product."""
    rng = np.random.default_rng(options.seed)
    steps = 400 if options.quick else 2000
    claims, small = [], []
    for n in (2, 4):
        growth = growth_of(gaussian(rng, steps, n)).reshape(-1, n)
        theory, T = gl.predictions.ginibre_exponents(n), len(growth)
        mean, variance = growth.mean(axis=0), growth.var(axis=0, ddof=1)
        # a sample variance has the variance (κ4 + 2κ2²)/T; ln χ_m has the cumulants κ2 = ¼ψ'(m/2), κ4 = ψ‴(m/2)/16
        fourth = polygamma(3, np.arange(n, 0, -1) / 2) / 16
        spread = np.sqrt((fourth + 2 * theory.step_variance**2) / T)
        claims += [
            Claim(
                f"n = {n}: λ_{i + 1} = ½[ln(2/n) + ψ({n - i}/2)]",
                "abstract, without the formula", theory.exponents[i], mean[i],
                ERRORS * np.sqrt(theory.step_variance[i] / T), f"{ERRORS} standard errors √(¼ψ'/T), T = {T} steps",
                np.sqrt(variance[i] / T), units="nats/step",
            )
            for i in range(n)
        ]  # fmt: skip
        small += [[n, i + 1, variance[i], spread[i]] for i in range(n)]
    claims += [
        Claim(
            f"n = {n}: per-step variance of exponent {i + 1} is ¼ψ'({n - i}/2)",
            "ours, after Akemann et al. 2014", theory.step_variance[i], variance[i],
            ERRORS * spread[i], f"{ERRORS} standard errors √((ψ‴/16 + 2(¼ψ')²)/T) of a sample variance",
            spread[i], units="nats²/step",
        )
        for i in range(n)
    ]  # fmt: skip

    large = {}
    for n in (8, 16, 32) if options.quick else (8, 16, 32, 64):
        means = growth_of(gaussian(rng, (1600 if options.quick else 6400) // n, n)).mean(axis=1)  # of each sequence
        large[n] = [means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(SEQUENCES)]
    exponents, error = large[n]
    squares, error = np.exp(2 * exponents), 2 * np.exp(2 * exponents) * error
    distance = np.abs(squares - 1 + positions(n))
    claims.append(
        Claim(
            f"n → ∞: −λ is exponentially distributed, e^(2λ) uniform: sup|e^(2λ_i) − 1 + (i − ½)/n| at n = {n}",
            "abstract", 0.0, distance.max(), 0.5 / n + ERRORS * error.max(),
            f"1/(2n), as m/2 − 1/2 < e^ψ(m/2) < m/2, and {ERRORS} standard errors", error[distance.argmax()],
        )
    )  # fmt: skip

    n = COMPLEX
    growth = growth_of(complex_gaussian(rng, STARTS + (500 if options.quick else 2000), n), STARTS)[..., ::2]
    theory, T = gl.predictions.ginibre_exponents(2 * n), growth[..., 0].size
    exponents, variances = theory.exponents[::2], theory.step_variance[::2]
    error, mean = np.sqrt(variances / T), growth.mean(axis=(0, 1))
    i = int(np.argmax(np.abs(mean - exponents) / error))
    claims.append(
        Claim(
            f"complex, n = {n}: λ_i = ½[ln(1/n) + ψ(n − i + 1)]; the furthest of {n}, i = {i + 1}",
            "Akemann et al. 2014, abstract", exponents[i], mean[i], ERRORS * error[i],
            f"{ERRORS} standard errors √(¼ψ'/T), T = {T} steps", error[i], units="nats/step",
        )
    )  # fmt: skip
    blocks = growth.reshape(SEQUENCES, -1, BLOCK, n).sum(axis=2).reshape(-1, n)
    normal = (blocks - BLOCK * exponents) / np.sqrt(BLOCK * variances)
    # the first term of Edgeworth's series, sup|γ(1 − z²)φ(z)|/6 = |γ|/(6√2π), with the skewness γ of a sum of T steps
    skewness = -polygamma(2, 1) / polygamma(1, 1) ** 1.5 / np.sqrt(BLOCK)
    claims.append(
        Claim(
            f"complex, n = {n}: at large T, Σ_t ln|R_ii| is normal with mean Tλ_i and variance ¼Tψ'(n − i + 1);"
            f" Kolmogorov–Smirnov distance at T = {BLOCK}, the largest of {n}",
            "Akemann et al. 2014, abstract", 0.0, max(kstest(normal[:, i], "norm").statistic for i in range(n)),
            KOLMOGOROV / np.sqrt(len(normal)) + skewness / (6 * np.sqrt(2 * np.pi)),
            f"{KOLMOGOROV}/√M for M = {len(normal)} products (1 in 1000 for one of {n}), and the skewness left at T",
        )
    )  # fmt: skip
    curves = {
        "variances": small,
        "large": {n: [exponents.tolist(), error.tolist()] for n, (exponents, error) in large.items()},
        "normal": np.quantile(normal, positions(200), axis=0).T.tolist(),
    }
    differs = "The exponents are those of QR accumulation over T steps, not ln σ_i/T; the two agree to O(1/T)."
    return Result(claims, curves, differs)


def positions(n: int) -> np.ndarray:
    """Return (i − ½)/n."""
    return (np.arange(n) + 0.5) / n


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the exponents over i/n with their limit, the variances, and the normal law."""
    curves = record["curves"]
    with figure(path, 1, 3, figsize=(6.9, 2.3)) as (_, axes):
        left, middle, right = axes[0]
        x = np.linspace(0.0, 0.995, 400)
        left.plot(x, gl.predictions.ginibre_limit(x), color="0.3", label=r"$n\to\infty$: $\frac{1}{2}\ln(1-x)$")
        for (n, (exponents, error)), marker in zip(curves["large"].items(), "osD^", strict=False):
            at = positions(int(n))
            (line,) = left.plot(at, gl.predictions.ginibre_exponents(int(n)).exponents, linewidth=0.7)
            style = {"color": line.get_color(), "markersize": 2.5, "elinewidth": 0.6}
            left.errorbar(at, exponents, error, fmt=marker, label=f"$n={n}$", **style)
        left.set(xlabel=r"$x=(i-\frac{1}{2})/n$", ylabel=r"exponent $\lambda_i$ (nats/step)")
        left.set(xlim=(0, 1), ylim=(-3.2, 0.15))
        left.legend(loc="lower left")

        m = np.linspace(0.8, 4.3, 200)
        middle.plot(m, 0.25 * polygamma(1, m / 2), color="0.3", label=r"$\frac{1}{4}\psi'(m/2)$")
        for size, style in ((2, {"fmt": "o", "markersize": 6, "markerfacecolor": "none"}), (4, {"fmt": "s"})):
            n, i, variance, error = np.array([row for row in curves["variances"] if row[0] == size]).T
            middle.errorbar(n - i + 1, variance, ERRORS * error, label=f"$n={size}$, {ERRORS} SE", **style)
        middle.set(xlabel=r"$m=n-i+1$", ylabel=r"variance of $\ln|R_{ii}|$ (nats$^2$/step)")
        middle.set(xticks=[1, 2, 3, 4], ylim=(0, None))
        middle.legend()

        right.plot([-3.3, 3.3], [-3.3, 3.3], color="0.3", label="normal")
        for i, quantiles in enumerate(curves["normal"]):
            right.plot(norm.ppf(positions(200)), quantiles, ".", markersize=2.2, label=f"complex, $i={i + 1}$")
        right.set(xlabel="quantile of the normal law", xlim=(-3.3, 3.3), ylim=(-3.3, 3.3))
        right.set(ylabel=r"of $(\Sigma_t\ln|R_{ii}|-T\lambda_i)/\sqrt{T\psi'/4}$")
        right.legend()


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

"""How long does a random tanh network remember, and how large must it be for mean field to say so?

M. Chen, J. Pennington & S. S. Schoenholz, Dynamical isometry and a mean field theory of RNNs: gating enables signal
propagation in recurrent neural networks, ICML 2018 (arXiv 1806.05394); the feed-forward original is Schoenholz, Gilmer,
Ganguli & Sohl-Dickstein, Deep information propagation, ICLR 2017 (arXiv 1611.01232).

Setting: h_t = tanh(a_t), a_t = W h_{t−1} + √s ξ_t with one W_ij ~ N(0, g²/n) for all steps and white noise ξ_t, n → ∞:

    q  = g² ∫Dz tanh²(√q z) + s                 variance of a pre-activation
    χ1 = g² ∫Dz tanh'(√q z)²                    growth of a squared perturbation in one step
    λ1 = ½ ln χ1,   ξ = −1/ln χ1                chaos where χ1 > 1; where not, the time that the past is remembered

Measured along one trajectory of each of many networks of several sizes; the limit is the intercept over 1/n. λ1 is the
largest Lyapunov exponent; ξ comes from two copies that start apart and receive the same noise: their squared distance
falls by e in ξ steps.

    python papers/chen2018dynamical.py            # two or three minutes
    python papers/chen2018dynamical.py --quick    # seconds
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import Claim, Result, reproduce

import gradlab as gl
from gradlab.record import figure

SETTINGS = ((1.5, 0.0), (3.0, 0.0), (1.0, 0.09), (1.5, 1.0))  # g, s
NEAR = (1.25, 0.0)  # next to the edge, last and in full only: many finite networks are not chaotic there
DISCARD, CHUNK = 100, 100  # steps
FORGETTING = 120  # steps of the two copies: e^(−120/2.8) of the squared distance is still above rounding, 1e-31
ERRORS = 4  # standard errors
FORMULAS = {"q": "g²∫Dz tanh²(√q z) + s", "χ1": "g²∫Dz tanh'(√q z)²", "λ1": "½ ln χ1"}


def network(n: int, gain: float, noise: float, seed: int) -> gl.VanillaRNNCell:
    """Return one network; with noise, its inputs are the noise."""
    kernel = "identity" if noise else "zeros"
    return gl.VanillaRNNCell(
        n, use_bias=False, recurrent_initializer="gaussian", recurrent_gain=gain, kernel_initializer=kernel, seed=seed,
        dtype="float64",
    )  # fmt: skip


def measure(n: int, gain: float, noise: float, steps: int, seed: int) -> dict[str, Any]:
    """Return q, χ1, λ1 of one network and, with noise, ln of the squared distance of two copies and its rate."""
    cell, rng = network(n, gain, noise, seed), np.random.default_rng((seed, n))
    inputs = np.sqrt(noise) * rng.standard_normal((1, steps, n if noise else 1))  # without noise one input that is 0
    traj = gl.rollout(cell, inputs, rng.standard_normal((1, n)))
    J = gl.LazyStepJacobians(traj)
    chunks = (J[:, t : t + CHUNK] for t in range(0, steps, CHUNK))
    a = traj.states[0, :-1] @ cell.recurrent_matrix.T + (inputs[0] if noise else 0.0)
    found = {
        "q": np.mean(a[DISCARD:] ** 2),
        "χ1": gain**2 * np.mean(gl.activation_slopes(traj)[0, DISCARD:] ** 2),
        "λ1": gl.lyapunov_exponents(chunks, k=1, discard=DISCARD).exponents[0, 0],
    }
    if noise:
        copies = gl.rollout(cell, np.repeat(inputs[:, -FORGETTING:], 2, axis=0), rng.standard_normal((2, n)))
        distance = np.log(np.sum((copies.states[0] - copies.states[1]) ** 2, axis=-1))
        # fit_decay takes norms of gradients, the one at the end first in time; half, as these are squares
        found |= {"distance": distance - distance[0], "λ1, copies": float(gl.fit_decay(distance[::-1] / 2).rate)}
    return found


def limit(values: dict[int, list[float]]) -> tuple[float, float, float]:
    """Return the intercept over 1/n of the means over networks, its standard error, and the slope."""
    mean, error = np.array([(np.mean(v), np.std(v, ddof=1) / np.sqrt(len(v))) for v in values.values()]).T
    line, covariance = np.polyfit(1 / np.array(list(values)), mean, 1, w=1 / error, cov="unscaled")
    return line[1], np.sqrt(covariance[1, 1]), line[0]


def compute(options: Namespace) -> Result:
    """Measure every setting at every size, and extrapolate."""
    sizes = {50: 16, 100: 8} if options.quick else {100: 48, 200: 24, 400: 12}  # n: networks
    steps = 300 if options.quick else 1000
    why = f"{ERRORS} standard errors of the intercept over 1/n, n = {', '.join(map(str, sizes))}"
    claims, curves = [], {}
    for gain, noise in SETTINGS if options.quick else (*SETTINGS, NEAR):
        theory = gl.predictions.mean_field(gain, input_variance=noise)
        runs = {
            n: [measure(n, gain, noise, steps, options.seed + i) for i in range(count)] for n, count in sizes.items()
        }
        published = {"q": theory.q, "χ1": theory.chi, "λ1": theory.rate, "λ1, copies": theory.rate}
        setting = f"g = {gain:g}" + (f", s = {noise:g}" if noise else "")
        curves[setting] = curve = {"published": published, "time_scale": theory.time_scale if noise else None}
        for name in published if noise else list(published)[:3]:
            values = {n: [float(run[name]) for run in some] for n, some in runs.items()}
            curve[name] = {"networks": values, "limit": limit(values)}
        for name in ("q", "χ1", "λ1"):
            value, error, slope = curve[name]["limit"]
            claims.append(
                Claim(
                    f"{setting}: {name} = {FORMULAS[name]}", "", published[name], value, ERRORS * error,
                    f"{why}; {slope:+.2g}/n at finite n", error, units="nats/step" if name == "λ1" else "",
                )
            )  # fmt: skip
        if noise:
            curve["distance"] = np.mean([run["distance"] for run in runs[max(sizes)]], axis=0).tolist()
            rate, error, _ = curve["λ1, copies"]["limit"]
            xi, error = -0.5 / rate, 0.5 * error / rate**2
            claims.append(
                Claim(
                    f"{setting}: what the past leaves falls by e in ξ = −1/ln χ1", "abstract", theory.time_scale, xi,
                    ERRORS * error, why, error, units="steps",
                )
            )  # fmt: skip
    differs = f"Networks without bias; sizes of at most {max(sizes)}; white noise of variance s for the input."
    if not options.quick:
        shares = ", ".join(f"{np.mean(np.array(v) <= 0.0):.0%} at n = {n}" for n, v in curve["λ1"]["networks"].items())
        differs += (
            f" At {setting}, next to the edge, many networks settle on a fixed point or a cycle (λ1 ≤ 0: {shares}), and"
            " the line over 1/n is not reached."
        )
    return Result(claims, curves, differs)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the exponents over 1/n and the forgetting of two copies."""
    with figure(path, 1, 2, figsize=(6.9, 2.5)) as (_, axes):
        left, right = axes[0]
        for (setting, curve), marker in zip(record["curves"].items(), "osD^v", strict=False):
            published, found = curve["published"]["λ1"], curve["λ1"]
            n = np.array([int(size) for size in found["networks"]])
            mean, error = np.array(
                [(np.mean(v), np.std(v, ddof=1) / np.sqrt(len(v))) for v in found["networks"].values()]
            ).T
            intercept, _, slope = found["limit"]
            bars = left.errorbar(1 / n, mean - published, error, fmt=marker, label=f"${setting}$", capsize=2)
            x = np.array([0.0, 1.1 / n.min()])
            left.plot(x, intercept - published + slope * x, "--", color=bars[0].get_color(), linewidth=0.8)
        left.axhline(0.0, color="0.3", linewidth=0.9)
        left.plot(0, 0, "k*", markersize=6, clip_on=False, zorder=5, label=r"mean field, $n\to\infty$")
        left.set(xlabel="$1/n$", ylabel=r"$\lambda_1-\frac{1}{2}\ln\chi_1$ (nats/step)", xlim=(0, None))
        left.legend(loc="lower left")

        noisy = {name: curve for name, curve in record["curves"].items() if "distance" in curve}
        for (setting, curve), marker, colour in zip(noisy.items(), "D^", ("C2", "C3"), strict=True):
            t, xi = np.arange(len(curve["distance"])), curve["time_scale"]
            at = slice(None, None, 6)
            right.plot(t[at], np.array(curve["distance"])[at], marker, color=colour, label=f"${setting}$, two copies")
            right.plot(t, -t / xi, color=colour, label=rf"$-t/\xi$, $\xi={xi:.3f}$ steps")
        right.set(xlabel="step $t$", ylabel=f"ln squared distance, $n={n.max()}$", xlim=(0, None))
        right.legend()


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

"""What does the whole Lyapunov spectrum of a chaotic continuous-time network look like, at any size?

R. Engelken, F. Wolf & L. F. Abbott, Lyapunov spectra of chaotic recurrent neural networks, Phys. Rev. Research 5 (2023)
043044 (arXiv 2006.02427).

Setting: dh/dt = −h + W tanh(h), W_ij ~ N(0, g²/n), W_ii = 0 as in the code of the authors
(github.com/RainerEngelken/RNN-LyapunovSpectra), in Euler steps of dt = 0.05 of the units' time constant τ:

    h ← (1 − dt) h + dt W tanh(h),    J = (1 − dt) I + dt W diag(tanh'(h))

- size invariance: λ_i is a function of i/n, so that the attractor's dimension D grows in proportion to n, once n is
  large: at n = 50 D/n is smaller;
- the dimension is much smaller than n: D/n ≈ 0.067 at g = 4 and 0.072 at g = 10, to about a fifth (read at second hand,
  where the paper says so was not found);
- the spectrum is nearly point-symmetric about its mean, which is ln(1 − dt)/dt → −1 whatever g: chaos redistributes.

The last is the determinant: Σ_i λ_i is exactly the mean of ln|det J|/dt. With a = dt/(1 − dt), past n ln(1 − dt) its
first order a Σ_i W_ii φ'_i is zero, and its second −½a² Σ_ij W_ij W_ji φ'_i φ'_j has a standard deviation a²g²⟨φ'²⟩/√2
over networks, and no reason for a zero mean along an attractor, where φ' depends on W.

    python papers/engelken2023spectra.py            # two minutes
    python papers/engelken2023spectra.py --quick    # seconds
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from reproduction import Claim, Result, reproduce, standard_error

import gradlab as gl
from gradlab.record import figure

DT = 0.05
GAINS = {4.0: 0.067, 10.0: 0.072}  # g: D/n as published
TRANSIENT, DISCARD, CHUNK = 1500, 400, 100  # steps until the attractor is reached, and the frame has turned to it
SIZE = 100  # of the networks whose D/n is compared
ERRORS = 4  # standard errors
READ = 0.2  # of D/n: what the published values are taken to hold to
QR_ROUNDING = 2.0**-29  # nats per step and exponent, see gl.lyapunov_exponents


def leaky_step(n: int) -> tuple[tf.Variable, Any]:
    """Return W [n, n] and the step that reads it; one for all networks of a size, as a new one would be traced anew."""
    W = tf.Variable(tf.zeros((n, n), tf.float64))

    def step(h: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (1 - DT) * h + DT * tf.matmul(tf.tanh(h), W, transpose_b=True)

    return W, gl.as_step(step, state_size=n, input_size=1)


def network(leaky: tuple[tf.Variable, Any], gain: float, steps: int, seed: int) -> dict[str, Any]:
    """Return all exponents of one network per unit of time, mean ln|det J|/dt and the mean of φ'²."""
    variable, step = leaky
    n = step.state_size
    rng = np.random.default_rng((seed, n))
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    np.fill_diagonal(W, 0.0)
    variable.assign(W)
    T = TRANSIENT + DISCARD + steps
    traj = gl.rollout(step, np.zeros((1, T, 1)), gain * rng.standard_normal((1, n)))
    J, log_det = gl.LazyStepJacobians(traj), []

    def chunks():  # all Jacobians at once would take gigabytes
        for t in range(TRANSIENT, T, CHUNK):
            chunk = J[:, t : t + CHUNK]
            if t >= TRANSIENT + DISCARD:
                log_det.append(gl.bounds.log_determinant(chunk)[0, 0])
            yield chunk

    exponents = gl.lyapunov_exponents(chunks(), discard=DISCARD).exponents[0] / DT
    slopes = 1 / np.cosh(traj.states[0, TRANSIENT + DISCARD :]) ** 2
    return {"λ": exponents, "volume": np.sum(log_det) / steps / DT, "slopes": np.mean(slopes**2)}


def compute(options: Namespace) -> Result:
    """Measure the spectra at both gains and every size."""
    sizes = {50: 5, SIZE: 5} if options.quick else {50: 12, SIZE: 20, 200: 4}  # n: networks
    steps = 400 if options.quick else 1500
    claims, last, curves, seen = [], [], {}, []
    leaky = {n: leaky_step(n) for n in sizes}
    for gain, published in GAINS.items():
        runs = {
            n: [network(leaky[n], gain, steps, options.seed + i) for i in range(count)] for n, count in sizes.items()
        }
        spectra = {n: np.array([run["λ"] for run in some]) for n, some in runs.items()}  # [networks, n]
        means = {n: (values.mean(axis=0), standard_errors(values)) for n, values in spectra.items()}
        dimensions = {n: gl.kaplan_yorke_dimension(values) / n for n, values in spectra.items()}
        values, mean, here = spectra[SIZE], means[SIZE][0], f"g = {gain:g}, n = {SIZE}"

        dimension, its_error = dimensions[SIZE].mean(), standard_error(dimensions[SIZE])
        last.append(
            Claim(
                f"{here}: the attractor's Kaplan–Yorke dimension over n", "", published, dimension,
                READ * published, f"{READ:.0%} of what was published; {len(values)} networks", its_error,
            )
        )  # fmt: skip
        its_error = standard_error(values.mean(axis=1))
        slopes = np.mean([run["slopes"] for run in runs[SIZE]])
        second_order = DT * gain**2 * slopes / (np.sqrt(2) * (1 - DT) ** 2 * SIZE)
        claims.append(
            Claim(
                f"{here}: the mean exponent is ln(1 − dt)/dt", "",
                gl.predictions.leaky_mean_exponent(DT, SIZE, gain).rate, values.mean(),
                second_order + ERRORS * its_error,
                f"dt g²⟨φ'²⟩/(√2 (1 − dt)² n), the size of the second order; {ERRORS} standard errors over networks",
                its_error, units="nats/τ",
            )
        )  # fmt: skip
        volume = np.array([run["volume"] for run in runs[SIZE]])
        claims.append(
            Claim(
                f"{here}: the exponents sum to the mean of ln|det J|/dt; the largest difference over n", "",
                0.0, np.abs(values.sum(axis=1) - volume).max() / SIZE, QR_ROUNDING / DT,
                "2^-29 a step is what a QR every few steps may lose", units="nats/τ", kind="theorem",
            )
        )  # fmt: skip
        each = values - gl.predictions.mirrored_exponents(values)
        asymmetry, its_error = each.mean(axis=0), standard_errors(each)
        euler = DT * ((mean[0] - mean[-1]) / 2) ** 2
        claims.append(
            Claim(
                f"{here}: point symmetry about the mean λ̄; rms of λ_i + λ_(n+1−i) − 2λ̄", "abstract", 0.0,
                rms(asymmetry),
                euler + ERRORS * rms(its_error),
                f"dt μ² that Euler's ln(1 + dt μ)/dt puts between ±μ, at half the range, and {ERRORS} standard errors",
                rms(its_error), units="nats/τ",
            )
        )  # fmt: skip
        (small, (coarse, coarse_error)), (large, (fine, fine_error)) = list(means.items())[-2:]
        difference = coarse - np.interp(positions(small), positions(large), fine)
        both = np.hypot(rms(coarse_error), rms(fine_error))
        claims.append(
            Claim(
                f"g = {gain:g}: λ_i is a function of i/n; rms difference of the spectra at n = {small} and {large}",
                "abstract", 0.0, rms(difference), ERRORS * both,
                f"{ERRORS} standard errors over the networks; the spectra spread by {mean.std():.2f}", both,
                units="nats/τ", kind="experiment",
            )
        )  # fmt: skip
        last.append(
            Claim(
                f"g = {gain:g}: D grows in proportion to n; D/n at n = {large} less that at n = {small}",
                "abstract", 0.0, dimensions[large].mean() - dimensions[small].mean(), READ * dimensions[small].mean(),
                f"{READ:.0%} of D/n here, too; {sizes[small]} and {sizes[large]} networks",
                np.hypot(standard_error(dimensions[small]), standard_error(dimensions[large])), kind="experiment",
            )
        )  # fmt: skip
        curves[f"{gain:g}"] = {
            "spectra": {n: [m.tolist(), e.tolist()] for n, (m, e) in means.items()},
            "dimensions": {n: d.tolist() for n, d in dimensions.items()},
            "asymmetry": [asymmetry.tolist(), its_error.tolist()],
            "euler": euler,
        }
        ratios = ", ".join(f"{d.mean():.3f} ± {standard_error(d):.3f} at n = {n}" for n, d in dimensions.items())
        seen.append(f"D/n at g = {gain:g} is {ratios}.")
    differs = (
        f"{steps * DT:g} τ per network after {(TRANSIENT + DISCARD) * DT:g} τ; n ≤ {max(sizes)}, and n = {SIZE} stands"
        f" beside the published D/n, which could not be looked up in the paper. {' '.join(seen)}"
    )
    return Result(claims if options.quick else claims + last, curves, differs)  # five networks do not tell D


def positions(n: int) -> np.ndarray:
    """Return (i − ½)/n."""
    return (np.arange(n) + 0.5) / n


def rms(values: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


def standard_errors(values: np.ndarray) -> np.ndarray:
    """Return those of the means over networks [networks, n]."""
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the spectra, their asymmetry, and the attractor's dimension over n."""
    with figure(path, 1, 3, figsize=(6.9, 2.4), width_ratios=(1.4, 1, 1)) as (_, axes):
        left, middle, right = axes[0]
        for (gain, curve), colour, shift in zip(record["curves"].items(), ("C0", "C3"), (-2.0, 2.0), strict=True):
            for (n, (mean, error)), marker in zip(curve["spectra"].items(), "o^s", strict=False):
                left.errorbar(
                    positions(int(n)), mean, error, fmt=marker, color=colour, markersize=0.6 + 120 / float(n),
                    elinewidth=0.4, alpha=0.6, markeredgewidth=0, label=f"$g={gain}$, $n={n}$",
                )  # fmt: skip
            mirrored = gl.predictions.mirrored_exponents(curve["spectra"][str(SIZE)][0])
            left.plot(positions(SIZE), mirrored, color="k", linewidth=0.7)
            asymmetry, error = curve["asymmetry"]
            band = f"$g={gain}$, $dt\\mu^2$ (Euler)"
            middle.axhspan(-curve["euler"], curve["euler"], color=colour, alpha=0.12, linewidth=0, label=band)
            middle.errorbar(
                positions(SIZE),
                asymmetry,
                error,
                fmt="o",
                color=colour,
                markersize=2,
                elinewidth=0.5,
                label=f"$g={gain}$",
            )
            sizes = np.array([0.0, *map(float, curve["spectra"])])
            right.plot(sizes, GAINS[float(gain)] * sizes, color=colour, label=f"$g={gain}$, published")
            for n, values in curve["dimensions"].items():
                D, at = float(n) * np.array(values), float(n) + shift
                right.plot(np.full(len(D), at), D, ".", color=colour, markersize=2, alpha=0.4)
                right.errorbar(at, D.mean(), standard_error(D), fmt="o", color=colour, capsize=2)
        left.plot([], [], color="k", linewidth=0.6, label=r"$2\bar\lambda-\lambda_{n+1-i}$, $n=100$")
        left.axhline(0.0, color="0.6", linewidth=0.6, zorder=0)
        left.set(xlabel=r"$(i-\frac{1}{2})/n$", ylabel=r"$\lambda_i$ (nats/$\tau$)", xlim=(0, 1))
        left.legend()
        middle.axhline(0.0, color="0.3", linewidth=0.9)
        middle.set(
            xlabel=r"$(i-\frac{1}{2})/n$", ylabel=r"$\lambda_i+\lambda_{n+1-i}-2\bar\lambda$ (nats/$\tau$)", xlim=(0, 1)
        )
        middle.legend(loc="lower center")
        right.set(xlabel="units $n$", ylabel="Kaplan–Yorke dimension $D$", xlim=(0, 1.08 * sizes[-1]), ylim=(0, None))
        right.legend(loc="upper left")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

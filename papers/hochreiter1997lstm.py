"""How fast does an error vanish in a conventional recurrent net, and does an LSTM bridge the lags at which it has?

Hochreiter & Schmidhuber 1997, Long short-term memory. Section 3.1 (after Hochreiter 1991): an error that flows back
over q steps of a net of n logistic units is scaled by |∂ϑ_v(t−q)/∂ϑ_u(t)| ≤ n (f'_max ‖W‖_∞)^q, f'_max = ¼, so that it
decays where all |w_ij| < 4/n; the local factor |f'(net) w| is largest where w = coth(½ net)/y. For y = 1 that is
|f'(w) w| = 0.223871602347151 at w = 1.54340463841821.

Sections 5.4 and 5.6: adding (an answer is right within 0.04) and temporal order, which the LSTM learns with at most 3
errors in 2560 sequences, and which, the text says, no other recurrent net had learnt. Here shorter, with the gradient
of all time steps and the forget gates of today, beside tanh nets of as many weights that start as small as the paper's
LSTM. Shown besides, no claim of the paper: tanh nets with an orthogonal W.

    python papers/hochreiter1997lstm.py            # six minutes
    python papers/hochreiter1997lstm.py --quick    # some seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from reproduction import Claim, Result, reproduce
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

import gradlab as gl
from gradlab.record import figure

PEAK, ARGMAX = 0.223871602347151, 1.54340463841821
LAGS = 40
PLACES = {"adding": "section 5.4 and table 7", "temporal_order": "section 5.6 and table 9"}
SMALL = "tanh, small W"
# the paper draws the weights of its LSTM in [−0.1, 0.1], of standard deviation 0.1/√3
NETS = {
    "LSTM": {"cell": "lstm", "units": 16, "initializer": "orthogonal"},
    SMALL: {"cell": "tanh", "units": 32, "gain": 0.1 / np.sqrt(3) * np.sqrt(32)},
    "tanh, orthogonal W": {"cell": "tanh", "units": 32, "initializer": "orthogonal"},
}


def error_flow(n: int, shares: tuple[float, ...], seeds: int, seed: int) -> list[dict[str, Any]]:
    """Return the largest error flow of random logistic nets at every lag, with its bounds, as logarithms.

    The weights are uniform in ±4 share/n. They come in as inputs, so that nets of one size are traced once.
    """
    rng = np.random.default_rng(seed)
    largest = np.repeat(shares, seeds) * 4.0 / n
    weights = rng.uniform(-1, 1, (len(largest), n, n)) * largest[:, None, None]
    step = gl.as_step(
        lambda y, W: tf.sigmoid(tf.linalg.matvec(tf.reshape(W, (-1, n, n)), y)), state_size=n, input_size=n * n
    )
    inputs = np.repeat(weights.reshape(len(largest), 1, n * n), LAGS, axis=1)
    steps = gl.step_jacobians(gl.rollout(step, inputs, rng.uniform(0, 1, (len(largest), n))))
    lags = np.arange(1, LAGS + 1)
    found = []
    for W, J, limit in zip(weights, steps, largest, strict=True):
        product, flow = np.eye(n), []
        for one in J[::-1]:  # every entry: singular values bound their size, not each
            product = product @ one
            flow.append(float(np.log(np.abs(product).max())))
        bound = gl.bounds.entry_bound(W, lags, slope_supremum=0.25, J=J)
        simple = gl.bounds.logistic_entry_bound(n, np.abs(W).max(), lags)
        entries = gl.bounds.dominating_entries(W, lags, slope_supremum=0.25, J=J).max(axis=(1, 2))
        found.append(
            {
                "n": n,
                "share": float(limit * n / 4),
                "flow": flow,
                "bound": bound.log_bound.tolist(),
                "entries": entries.tolist(),
                "certified": bool(simple.certified),
                "crossed": sum(int((flow > b.log_bound + 1e-13 * lags).sum()) for b in (bound, simple)),
            }
        )
    return found


def trained(net: str, data: str, seed: int, length: int, epochs: int) -> dict[str, Any]:
    """Return the success rate on 1000 other sequences after every epoch of a net with some 1200 weights."""
    ds = gl.run(
        gl.Experiment(
            **NETS[net],
            data=data,
            length=length,
            samples=5000,
            seed=seed,
            learning_rate=0.01,
            batch_size=50,
            epochs=epochs,
            measured=(),
        )
    )
    success = np.nan_to_num(ds.test_success.values)
    return {
        "net": net,
        "data": data,
        "seed": seed,
        "weights": int(ds.attrs["trainable_parameters"]),
        "success": success.tolist(),
        "solved": bool(success.max() >= ds.attrs["success"]),
    }


def compute(options: argparse.Namespace) -> Result:
    """Return the claims and what the figure shows."""
    peak = minimize_scalar(lambda w: -float(gl.bounds.local_factor(w)), bounds=(0.1, 10), options={"xatol": 1e-12})
    w = np.linspace(-4, 4, 8001)[1:-1]
    y = np.linspace(0, 1, 101)[:, None]
    nets = [
        one
        for n in ((2, 8) if options.quick else (2, 8, 32))
        for one in error_flow(n, (0.5, 0.95, 4.0), 1 if options.quick else 5, options.seed)
    ]
    claims = [
        Claim(
            "the local factor |f'(w y) w| is largest where w = coth(½ w y)/y: for y = 1 at this w",
            "section 3.1; the number is ours",
            ARGMAX,
            float(peak.x),
            1e-7,
            "a maximum is found to the root of the rounding of its height, √(2e-16·0.22/|½f''|) < 1e-7",
            kind="theorem",
        ),
        Claim(
            "and there it has this height",
            "section 3.1; the number is ours",
            PEAK,
            -float(peak.fun),
            1e-14,
            "rounding",
            kind="theorem",
        ),
        Claim(
            "it is less than 1 where |w| < 4, whatever the activation y in [0, 1]",
            "section 3.1",
            1.0,
            float(gl.bounds.local_factor(w, y).max()),
            0.0,
            "the largest of a grid; |w|/4, at y = 0, is the supremum",
            sense="at most",
            kind="theorem",
        ),
        Claim(
            "|∂ϑ_v(t−q)/∂ϑ_u(t)| ≤ n (f'_max ‖W‖)^q, and ≤ n (n w_max/4)^q",
            "section 3.1, weak upper bound",
            0.0,
            float(sum(one["crossed"] for one in nets)),
            0.0,
            f"a theorem: none of {2 * LAGS * len(nets)} comparisons, each with room for rounding",
            sense="at most",
            kind="theorem",
        ),
        Claim(
            "with |w_ij| < 4/n the error decays: the largest rate over such nets and all lags from 20 on",
            "section 3.1, weak upper bound",
            0.0,
            max((one["flow"][-1] - one["flow"][19]) / (LAGS - 20) for one in nets if one["certified"]),
            0.0,
            "a theorem",
            sense="at most",
            units="nats/step",
            kind="theorem",
        ),
    ]
    curves: dict[str, Any] = {"nets": nets, "runs": []}
    differs = "the number 0.2239 is not in the paper, its condition w = coth(½ net)/y is"
    if options.quick:
        return Result(claims, curves, differs + "; nothing is trained with --quick")
    length, epochs = 40, 10
    runs = [
        trained(net, data, options.seed + seed, length, epochs)
        for data in PLACES
        for net in NETS
        for seed in range(8 if net in ("LSTM", SMALL) else 3)
    ]
    solved = {
        (data, net): [one["solved"] for one in runs if (one["data"], one["net"]) == (data, net)]
        for data in PLACES
        for net in NETS
    }
    for data, place in PLACES.items():
        difference, error = advantage(solved[data, "LSTM"], solved[data, SMALL])
        claims.append(
            Claim(
                f"{data.replace('_', ' ')} of length {length}: the share of LSTMs that come to 99 % right less that of"
                " tanh nets",
                place,
                0.0,
                difference,
                0.0,
                f"a difference of sign, of {len(solved[data, 'LSTM'])} runs each; the error is half the reach of"
                " Newcombe's 95 % interval",
                uncertainty=error,
                sense="at least",
                kind="experiment",
            )
        )
    orthogonal = " and ".join(
        f"{sum(each)} of {len(each)} runs of {data.replace('_', ' ')}"
        for (data, net), each in solved.items()
        if net not in ("LSTM", SMALL)
    )
    return Result(
        claims,
        curves | {"runs": runs},
        f"{differs}; length {length} instead of 100 and more, {epochs} epochs of 5000 sequences instead of fresh ones,"
        " Adam and the whole gradient instead of its truncation, forget gates (Gers et al. 2000); adding is that of"
        " Arjovsky et al. 2016, right within 0.2 of a sum in [0, 2], a tenth of its range and not 0.04 of it;"
        f" tanh nets with an orthogonal W, later than the paper, come to 99 % in {orthogonal}",
    )


def advantage(better: list[bool], worse: list[bool]) -> tuple[float, float]:
    """Return the difference of two shares, and half the reach of its 95 % interval towards 0.

    The interval is Newcombe's (1998), from Wilson's of each share: where all runs agree a normal one has no width.
    """
    (p, low_p, high_p), (q, low_q, high_q) = (
        (sum(each) / len(each), *binomtest(sum(each), len(each)).proportion_ci(method="wilson"))
        for each in (better, worse)
    )
    low, high = np.hypot(p - low_p, high_q - q), np.hypot(high_p - p, q - low_q)
    return p - q, 0.5 * float(low if p > q else high if p < q else max(low, high))


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the local factor, the error flow beneath its bounds, and what is learnt."""
    curves = record["curves"]
    rows = 2 if curves["runs"] else 1
    with figure(path, rows, 2, figsize=(6.8, 2.4 * rows)) as (_, axes):
        ax = axes[0, 0]
        w = np.linspace(0, 10, 300)
        for y, style in ((1.0, "-"), (0.5, "--"), (0.25, ":")):
            ax.plot(w, gl.bounds.local_factor(w, y), style, color="C7", label=f"$y = {y:g}$")
        ax.plot(ARGMAX, PEAK, "o", color="C0")
        ax.set(xlabel="weight $w$", ylabel="local factor $|f'(wy)\\,w|$", xlim=(0, 10), ylim=(0, 1))
        ax.legend(loc="upper left")
        ax = axes[0, 1]
        lags = np.arange(1, LAGS + 1)
        for share, color in ((0.95, "C0"), (4.0, "C3")):
            these = [one for one in curves["nets"] if (one["n"], round(one["share"], 6)) == (8, share)]
            for one in these:
                ax.plot(lags, one["flow"], ".", ms=2, color=color)
                ax.plot(lags, one["bound"], "-", lw=0.6, color=color)
                ax.plot(lags, one["entries"], ":", lw=0.8, color=color)
            ax.plot([], [], "s", color=color, label=f"$w_{{\\max}} = {share:g}\\cdot 4/n$")
        ax.plot([], [], ".", color="C7", label="measured")
        ax.plot([], [], "-", color="C7", label=r"$n(\|W\|_\infty/4)^q$")
        ax.plot([], [], ":", color="C7", label=r"$\max_{uv}\,((|W|/4)^q)_{uv}$")
        ax.set(xlabel="lag $q$", ylabel="log of the error flow  [nats]", xlim=(0, LAGS + 1), ylim=(-120, 70))
        ax.legend(loc="lower left")
        for ax, data in zip(axes[1:].ravel(), ("adding", "temporal_order"), strict=False):
            for one in (one for one in curves["runs"] if one["data"] == data):
                color, line = dict(zip(NETS, (("C0", "-"), ("C1", "-"), ("C3", "--")), strict=True))[one["net"]]
                first = one["net"] not in ax.get_legend_handles_labels()[1]
                epochs = np.arange(1, len(one["success"]) + 1)
                ax.plot(epochs, one["success"], line, color=color, label=one["net"] if first else None)
            ax.axhline(0.99, color="C7", lw=0.5)
            ax.set(xlabel="epoch", ylabel=f"success, {data.replace('_', ' ')}", ylim=(0, 1.02))
            ax.legend(loc="lower right")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

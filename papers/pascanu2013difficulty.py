"""When do gradients vanish and explode, and do clipping their norm and the regulariser Ω help?

Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks; pascanu2013walls.py is on its
sections 2.2 and 2.3.

Section 2.1. ln σ1(P)/k ≤ Σ ln‖J_s‖/k ≤ … ≤ ln γσ1(W): σ1(W) < 1/γ suffices for vanishing, σ1(W) > 1/γ is necessary for
exploding gradients. Here 50 tanh units, 100 steps, W of Gaussian entries over gains.

Section 4.1.1, figure 7. Temporal order with 50 units and stochastic gradient descent at a rate of 0.01: the longer the
sequences, the more it takes clipping at norm 1, and Ω besides, of weight 4 as in the text (the authors' code has 2); a
run succeeds below 1 % of errors.

    python papers/pascanu2013difficulty.py            # eight minutes
    python papers/pascanu2013difficulty.py --quick    # seconds; nothing is trained
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from reproduction import Claim, Result, reproduce, standard_error

import gradlab as gl
from gradlab.record import figure

UNITS, STEPS = 50, 100
TESTED = 800  # sequences after every 200 updates
CLIPPED = {"global_clip_norm": 1.0}
RUNS: dict[str, tuple[int, float, int, int, dict[str, float]]] = {  # length, gain of W, updates, runs, what is done
    "long": (40, 1.2, 2400, 4, {}),
    "long, clipped": (40, 1.2, 2400, 4, CLIPPED),
    "short": (20, 1.2, 1600, 4, {}),
    "short, clipped": (20, 1.2, 1600, 4, CLIPPED),
    "without Ω": (40, 0.7, 1600, 6, CLIPPED),
    "with Ω": (40, 0.7, 1600, 6, CLIPPED | {"omega": 4.0}),
    "short, with Ω": (20, 0.7, 1600, 4, CLIPPED | {"omega": 4.0}),
}


def chain(gain: float, seed: int, sequences: int) -> list[dict[str, float]]:
    """Return for each sequence the links of the chain in nats per step, and what is known of W."""
    cell = gl.VanillaRNNCell(UNITS, recurrent_initializer="gaussian", recurrent_gain=gain, seed=seed)
    inputs = 0.1 * np.random.default_rng(seed).standard_normal((sequences, STEPS, UNITS))
    traj = gl.rollout(cell, inputs)
    J, W = gl.step_jacobians(traj), traj.step.recurrence.recurrent_matrix
    links = gl.bounds.chain(J, recurrent_matrix=W, slopes=gl.activation_slopes(traj), slope_supremum=1.0)
    measured = gl.log_singular_values(J)[..., 0]
    return [
        {
            "gain": gain,
            "sigma": float(np.linalg.norm(W, 2)),
            "radius": float(gl.spectral_radius(W)),
            "measured": float(measured[b, 0] / STEPS),
            "step_norms": float(links.step_norms[b, 0] / STEPS),
            "slopes": float(links.slopes[b, 0] / STEPS),
            "promise": float(links.promise[b, 0] / STEPS),
            "crossed": sum(
                int((low > high + 1e-12 * (1 + np.abs(high))).sum())  # 100 roundings of some 1e-15, and a margin
                for low, high in zip(
                    (measured[b], links.step_norms[b], links.slopes[b]),
                    (links.step_norms[b], links.slopes[b], links.promise[b]),
                    strict=True,
                )
            ),
        }
        for b in range(sequences)
    ]


def trained(length: int, gain: float, seed: int, updates: int, **how: Any) -> dict[str, Any]:
    """Return the learning curve of temporal order, as accuracy on other sequences after every 200 updates."""
    experiment = gl.Experiment(
        "tanh",
        data="temporal_order",
        length=length,
        samples=4000,
        units=UNITS,
        gain=gain,
        seed=seed,
        optimizer="sgd",
        learning_rate=0.01,
        batch_size=20,
        epochs=updates // 200,
        measured=(),
        **{"clip_norm": None} | how,
    )
    ds = gl.run(experiment)
    accuracy = np.nan_to_num(ds.test_success.values)
    return {
        "length": length,
        "gain": gain,
        "seed": seed,
        "how": how,
        "accuracy": accuracy.tolist(),
        "loss": np.nan_to_num(ds.test_loss.values, nan=np.log(4)).tolist(),  # that of chance, where it left the numbers
        "solved": bool(accuracy.max() >= ds.attrs["success"]),
    }


def compute(options: argparse.Namespace) -> Result:
    """Return the claims and what the figure shows."""
    gains = np.geomspace(0.2, 4.0, 7 if options.quick else 15)
    seeds, sequences = (1, 1) if options.quick else (3, 4)
    links = [one for g in gains for seed in range(seeds) for one in chain(float(g), options.seed + seed, sequences)]
    small = [one for one in links if one["sigma"] < 1.0]
    exploding = [one for one in links if one["measured"] > 0.0]
    claims = [
        Claim(
            "ln σ1(P)/k ≤ Σ ln‖J_s‖/k ≤ Σ ln(max φ' σ1(W))/k ≤ ln γσ1(W) at every lag",
            "section 2.1, equations (6) and (7)",
            0.0,
            float(sum(one["crossed"] for one in links)),
            0.0,
            f"a theorem: none of {3 * STEPS * len(links)} comparisons, each with room for rounding",
            sense="at most",
            kind="theorem",
        ),
        Claim(
            "σ1(W) < 1/γ suffices for vanishing: the largest ln σ1(P)/k among such networks",
            "section 2.1",
            0.0,
            max(one["measured"] for one in small),
            0.0,
            f"a theorem, on {len(small)} trajectories",
            sense="at most",
            units="nats/step",
            kind="theorem",
        ),
        Claim(
            "σ1(W) > 1/γ is necessary for exploding: the smallest σ1(W) where σ1(P) grows",
            "section 2.1",
            1.0,
            min(one["sigma"] for one in exploding),
            0.0,
            f"a theorem, on {len(exploding)} trajectories",
            sense="at least",
            kind="theorem",
        ),
    ]
    if options.quick:
        return Result(claims, {"links": links, "runs": []}, "W is Gaussian; nothing is trained with --quick")
    runs = {
        name: [trained(length, gain, options.seed + seed, updates, **how) for seed in range(count)]
        for name, (length, gain, updates, count, how) in RUNS.items()
    }
    return Result(
        claims + training_claims(runs),
        {"links": links, "runs": [one for some in runs.values() for one in some]},
        "trained with 1600 to 2400 updates, not up to 5 million, on 4000 sequences, not on fresh ones, tested on"
        f" {TESTED}, not on 10000, at lengths 20 and 40, not to 200; for Ω W has gain 0.7 as in the paper (basic tanh,"
        " entries of size 0.1), for clipping 1.2, where gradients explode at this length already; sigmoid units and"
        " smart tanh are left out",
    )


def training_claims(runs: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    """Return what figure 7 says of clipping and Ω; runs that differ in nothing else are compared seed by seed."""

    def lower(worse: str, better: str) -> np.ndarray:
        pairs = zip(runs[worse], runs[better], strict=True)
        return np.array([one["loss"][-1] - other["loss"][-1] for one, other in pairs])

    long, short = lower("long", "long, clipped"), lower("short", "short, clipped")
    omega = lower("without Ω", "with Ω")
    claims = [
        Claim(
            f"temporal order: {statement}",
            "section 4.1.1, figure 7",
            0.0,
            float(less.mean()),
            0.0,
            f"a difference of sign, of {len(less)} pairs of runs",
            uncertainty=standard_error(less),
            sense="at least",
            units="nats",
            kind="experiment",
        )
        for statement, less in (
            ("by so much clipping lowers the final cross-entropy where gradients explode (length 40, gain 1.2)", long),
            ("by so much more it does so at length 40 than at length 20 (gain 1.2)", long - short),
            ("by so much Ω lowers it where gradients vanish (length 40, gain 0.7, both clipped)", omega),
        )
    ]
    errors = [1.0 - one["accuracy"][-1] for one in runs["short, with Ω"]]
    claims.append(
        Claim(
            "temporal order, clipping and Ω: share of errors at the end (length 20), 1 % being a success",
            "section 4.1.1",
            0.01,
            float(np.mean(errors)),
            0.0,
            f"none: the mean of {len(errors)} runs of {TESTED} test sequences",
            uncertainty=float(np.hypot(standard_error(errors), 1.0 / TESTED / np.sqrt(len(errors)))),
            sense="at most",
            kind="experiment",
        )
    )
    return claims


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the chain over the gain, and the learning curves."""
    links, runs = record["curves"]["links"], record["curves"]["runs"]
    with figure(path, 1, 2 if runs else 1, figsize=(6.8 if runs else 3.4, 2.6)) as (_, axes):
        _draw_chain(axes[0, 0], links)
        if runs:
            _draw_runs(axes[0, 1], runs)


def _draw_chain(ax: Any, links: list[dict[str, float]]) -> None:
    gains = np.array([one["gain"] for one in links])
    for name, style, label in (
        ("promise", {"color": "C3", "ls": "-"}, r"$\ln\gamma\sigma_1(W)$"),
        ("slopes", {"color": "C1", "ls": "--"}, r"$\langle\ln\,\max\phi'\,\sigma_1(W)\rangle$"),
        ("step_norms", {"color": "C2", "ls": "-."}, r"$\langle\ln\|J_s\|\rangle$"),
    ):
        each = [np.mean([one[name] for one in links if one["gain"] == g]) for g in np.unique(gains)]
        ax.plot(np.unique(gains), each, **style, label=label)
    ax.plot(gains, [one["measured"] for one in links], "o", ms=2.5, color="C0", label=r"measured, $\ln\sigma_1(P)/k$")
    ax.axhline(0, color="C7", lw=0.5)
    ax.axvspan(0.95 * gains.min(), 0.5, color="C7", alpha=0.08, lw=0)
    ax.set(
        xscale="log", xlabel="gain $g$ of $W$", ylabel="nats per step", xlim=(0.95 * gains.min(), 1.05 * gains.max())
    )
    ax.set_xticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    ax.minorticks_off()
    ax.text(0.21, 1.9, "$\\sigma_1(W) < 1/\\gamma$")
    ax.legend(loc="lower right")


def _draw_runs(ax: Any, runs: list[dict[str, Any]]) -> None:
    styles = {
        (1.2, None): ("C0", "-", "SGD, $g = 1.2$"),
        (1.2, 1.0): ("C1", "-", "clipped, $g = 1.2$"),
        (0.7, 1.0): ("C1", ":", "clipped, $g = 0.7$"),
        (0.7, 4.0): ("C2", ":", r"clipped and $\Omega$, $g = 0.7$"),
    }
    for one in runs:
        if one["length"] < 40:
            continue
        how = one["how"]
        color, line, label = styles[one["gain"], how.get("omega") or how.get("global_clip_norm")]
        updates = 200 * np.arange(1, len(one["accuracy"]) + 1)
        first = label not in ax.get_legend_handles_labels()[1]
        ax.plot(updates, one["accuracy"], line, color=color, label=label if first else None)
    ax.axhline(0.25, color="C7", lw=0.5)
    ax.set(xlabel="updates of 20 sequences", ylabel="accuracy, temporal order, $T = 40$", ylim=(-0.1, 1.02))
    ax.text(2380, 0.265, "chance", ha="right")
    ax.legend(loc="lower right")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

"""Where is the wall of the error surface, and how high: at a bifurcation, or where x_0 changes its basin?

Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks, sections 2.2 and 2.3. One unit
without input, x_t = wσ(x_{t−1}) + b, x_0 = ½, E = (σ(x_50) − 0.7)², equation (8) and figure 6. They argue that a
bifurcation, where an attractor appears or goes, is neither sufficient nor necessary for gradients to explode, and that
crossing the boundary between two basins of attraction is sufficient, ∂x_t/∂θ then growing as α^t, α > 1.

Bifurcations are saddle-nodes, b = logit(s) − ws with s = (1 ± √(1 − 4/w))/2. The boundary between the basins is the
unstable fixed point; x_0 lies on it where ½ = wσ(½) + b, and there α = wσ'(½).

    python papers/pascanu2013walls.py            # half a minute
    python papers/pascanu2013walls.py --quick    # some seconds
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from reproduction import Claim, Result, reproduce
from scipy.special import expit, logit

import gradlab as gl
from gradlab.record import figure

UNROLLED = 50


@functools.cache  # traced once: w and b come in as inputs
def unit() -> Any:
    """Return the unit of equation (8), its inputs being (w, b)."""
    return gl.as_step(lambda x, p: p[:, :1] * tf.sigmoid(x) + p[:, 1:], state_size=1, input_size=2)


def run(w: np.ndarray, b: np.ndarray, steps: int, start: float = 0.5) -> gl.Trajectory:
    """Return the units with parameters w and b [B], from x_0 = `start`."""
    inputs = np.repeat(np.stack([w, b], axis=-1)[:, None], steps, axis=1)
    return gl.rollout(unit(), inputs, np.full((len(w), 1), start))


def surface(w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return E and ‖∂E/∂(w, b)‖ at parameters of any shape."""
    errors, slopes = [], []
    flat = np.stack([np.ravel(w), np.ravel(b)], axis=1)
    for part in np.array_split(flat, max(1, len(flat) // 50_000)):
        traj = run(part[:, 0], part[:, 1], UNROLLED)
        x = traj.states[..., 0]
        g = gl.state_gradients(traj, None, lambda states: (tf.sigmoid(states[:, -1, 0]) - 0.7) ** 2).total[:, 1:, 0]
        errors.append((expit(x[:, -1]) - 0.7) ** 2)
        slopes.append(np.hypot((g * expit(x[:, :-1])).sum(axis=1), g.sum(axis=1)))
    return np.concatenate(errors).reshape(np.shape(w)), np.concatenate(slopes).reshape(np.shape(w))


def boundary(w: Any) -> Any:
    """Return the b at which x_0 = ½ is the unstable fixed point: ½ = wσ(½) + b."""
    return 0.5 - w * expit(0.5)


def saddle_nodes(w: Any) -> tuple[Any, Any]:
    """Return b_2 < b_1 between which the unit has two attractors."""
    root = np.sqrt(1 - 4 / w)
    low, high = ((logit(s) - w * s) for s in (0.5 * (1 + root), 0.5 * (1 - root)))
    return low, high


def walls(weights: np.ndarray) -> list[dict[str, float]]:
    """Return for each w the steepest point over b, in widths of the wall from the boundary of the basins.

    To first order a step of δ in b moves x_50 by δ(α^50 − 1)/(α − 1), α = wσ'(½): the wall is as wide as the step that
    takes x_50 from one attractor to the other.
    """
    found = []
    for w in weights:
        line, alpha = boundary(w), w * expit(0.5) * expit(-0.5)
        ends = [run(np.array([w]), np.array([line + side]), 400).states[0, -1, 0] for side in (-1e-3, 1e-3)]
        width = (ends[1] - ends[0]) * (alpha - 1) / (alpha**UNROLLED - 1)
        low, high = saddle_nodes(w)
        # all of the wedge, and ever finer towards the boundary
        away = np.geomspace(8 * width, 1.5, 300)
        near = np.concatenate([np.linspace(-8, 8, 801) * width, -away, away])
        b = line + near[(line + near > low - 0.1) & (line + near < high + 0.1)]
        steepness = surface(np.full(len(b), w), b)[1]
        at_bifurcation = surface(np.full(2, w), np.array([low, high]))[1].max()
        found.append(
            {
                "w": float(w),
                "b": float(b[steepness.argmax()]),
                "widths": float((b[steepness.argmax()] - line) / width),
                "steepness": float(steepness.max()),
                "at_bifurcation": float(at_bifurcation),
                "alpha": float(alpha),
            }
        )
    return found


def bifurcation(upper: bool, steps: int) -> float:
    """Return the b at which one of two attractors at w = 5 goes, by simulation: a low and a high start end together."""
    low, high = -3.0, -2.0
    while high - low > 1e-7:
        b = np.linspace(low, high, 34)
        ends = [run(np.full(34, 5.0), b, steps, start).states[:, -1, 0] for start in (-8.0, 8.0)]
        two = np.flatnonzero(ends[1] - ends[0] > 1e-3)
        edge = two[-1] if upper else two[0] - 1
        low, high = b[edge], b[edge + 1]
    return 0.5 * (low + high)


def compute(options: argparse.Namespace) -> Result:
    """Return the claims and what the figure shows."""
    steps = 400 if options.quick else 4000
    late = (np.pi / steps) ** 2 / (0.5 * np.sqrt(1 - 4 / 5))
    found = walls(np.linspace(4.6, 7.2, 5 if options.quick else 27))
    on_line = run(np.array([5.0]), boundary(np.array([5.0])), UNROLLED)
    growth = gl.log_singular_values(gl.step_jacobians(on_line))[0, :, 0]
    alpha = 5.0 * expit(0.5) * expit(-0.5)
    claims = [
        *(
            Claim(
                f"at w = 5 one of two attractors goes at {name} = logit(s) − ws, s = (1 {sign} √(1 − 4/w))/2",
                "figure 3; the formula is ours",
                saddle_nodes(5.0)[upper],
                bifurcation(bool(upper), steps),
                2 * late + 1e-7,
                f"twice π²/(c T²), T = {steps}: so far beyond it the ghost of the attractor holds the state",
            )
            for upper, name, sign in ((0, "b_2", "+"), (1, "b_1", "−"))
        ),
        Claim(
            "gradients explode where x_0 crosses the boundary of two basins: the wall's distance from b = ½ − wσ(½)",
            "sections 2.2 and 2.3, figure 6",
            0.0,
            max(abs(one["widths"]) for one in found),
            1.0,
            "one width of the wall, the step in b that takes x_50 from one attractor to the other, to first order",
            units="widths",
            kind="experiment",
        ),
        Claim(
            "a bifurcation is not sufficient for them: the largest ln(‖∇E‖ on the saddle-node lines/‖∇E‖ at the wall)",
            "section 2.2",
            0.0,
            max(float(np.log(one["at_bifurcation"] / one["steepness"])) for one in found),
            0.0,
            f"a difference of sign, at {len(found)} values of w",
            sense="at most",
            units="nats",
            kind="experiment",
        ),
        Claim(
            "at the wall they grow as α^t with α > 1: the rate of |∂x_t/∂x_0| at w = 5, α = wσ'(½)",
            "section 2.3; the closed form is ours",
            float(np.log(alpha)),
            float(growth[0] / UNROLLED),
            10 * float(np.finfo(float).eps * alpha**UNROLLED),
            "rounding of x_0, 2e-16, which grows by α^50 too, times |φ''/φ'|/(α − 1) < 10",
            units="nats/step",
            kind="theorem",
        ),
    ]
    size = (101, 76) if options.quick else (801, 601)
    w, b = np.meshgrid(np.linspace(4, 8, size[0]), np.linspace(-4, -1, size[1]), indexing="ij")
    error, steepness = surface(w, b)
    top = np.unravel_index(steepness.argmax(), steepness.shape)
    highest = max(found, key=lambda one: one["steepness"])
    return Result(
        claims,
        {
            "walls": found,
            "grid": [float(w[top]), float(b[top]), float(steepness[top])],
            "surface": np.round(error[:: size[0] // 100, :: size[1] // 75], 4).tolist(),
        },
        f"a {size[0]} × {size[1]} grid of the surface finds ‖∇E‖ ≤ {steepness[top]:.4g}, at w = {w[top]:g} and"
        f" b = {b[top]:g}; that is the grid's, for the wall is {highest['steepness']:.1e} high at w = {highest['w']:g}",
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the surface with its wall, and how steep it is there and at the bifurcations."""
    curves = record["curves"]
    with figure(path, 1, 2, figsize=(6.8, 2.6)) as (made, axes):
        _draw_surface(made, axes[0, 0], np.array(curves["surface"]))
        _draw_walls(axes[0, 1], curves["walls"], curves["grid"])


def _draw_surface(made: Any, ax: Any, error: np.ndarray) -> None:
    image = ax.imshow(
        error.T, origin="lower", extent=(4, 8, -4, -1), aspect="auto", cmap="cividis", interpolation="nearest"
    )
    w = np.linspace(4, 8, 400)
    for i, line in enumerate(saddle_nodes(w)):
        ax.plot(w, line, ":", color="white", label="saddle-nodes" if i else None)
    ax.plot(w, boundary(w), "--", color="C3", label=r"$b = \frac{1}{2} - w\,\sigma(\frac{1}{2})$")
    ax.set(xlabel="$w$", ylabel="$b$", xlim=(4, 8), ylim=(-4, -1))
    ax.legend(loc="upper right", facecolor="C7", framealpha=0.5, frameon=True, edgecolor="none", labelcolor="white")
    made.colorbar(image, ax=ax, label=r"error $(\sigma(x_{50}) - 0.7)^2$")


def _draw_walls(ax: Any, walls: list[dict[str, float]], grid: list[float]) -> None:
    w = np.array([one["w"] for one in walls])
    alpha = np.array([one["alpha"] for one in walls])
    ax.semilogy(w, alpha**UNROLLED, color="C7", lw=0.8, label=r"$\alpha^{50}$,  $\alpha = w\,\sigma'(\frac{1}{2})$")
    ax.semilogy(w, [one["steepness"] for one in walls], "o", color="C3", label="at the wall")
    ax.semilogy(w, [one["at_bifurcation"] for one in walls], "s", color="C0", label="on the saddle-node lines")
    ax.semilogy(*grid[::2], "D", mfc="none", color="C1", label="steepest point of a grid")
    ax.set(xlabel="$w$", ylabel=r"largest $\|\partial E/\partial(w, b)\|$", xlim=(4.3, 7.3))
    ax.legend(loc="upper left")


if __name__ == "__main__":
    reproduce(__file__, __doc__, compute, draw)

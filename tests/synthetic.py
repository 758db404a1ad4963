"""A dataset of the schema of `gl.analyze`, made in NumPy from a simulated tanh network in a moment."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from gradlab.variables import VARIABLES

BT = ("batch", "time")


def dataset(
    *,
    batch: int = 5,
    steps: int = 40,
    n: int = 8,
    gain: float = 1.2,
    lengths: list[int] | None = None,
    dead: int = 0,
    gated: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Return what analysing a random tanh RNN with a linear loss at its last step would give.

    Singular values below the first are QR diagonals, good enough to draw and no more.

    Args:
        batch: B, sequences.
        steps: T, steps.
        n: units.
        gain: W_ij ~ N(0, gain²/n).
        lengths: unmasked steps of each sequence, padded at the end; all of them if not given.
        dead: how many units never answer, so that as many singular values are exactly zero.
        gated: leave out what exists for vanilla cells only.
        seed: seed of everything.
    """
    rng = np.random.default_rng(seed)
    W = gain * rng.standard_normal((n, n)) / np.sqrt(n)
    eigenvalues, singular = np.linalg.eigvals(W), np.linalg.svd(W, compute_uv=False)
    real = np.arange(1, steps + 1)[None] <= np.array(lengths or [steps] * batch)[:, None]  # [B, T]
    lag = np.concatenate([np.cumsum(real[:, ::-1], axis=1)[:, ::-1], np.zeros((batch, 1), int)], axis=1)

    h = 0.1 * rng.standard_normal((batch, n))
    slopes, J = np.ones((batch, steps, n)), np.tile(np.eye(n), (batch, steps, 1, 1))
    for s in range(steps):
        a = h @ W.T + 0.3 * rng.standard_normal((batch, n))
        slope = np.cosh(a) ** -2.0
        slope[:, n - dead :] = 0.0
        slopes[:, s] = np.where(real[:, s, None], slope, 1.0)
        J[:, s] = np.where(real[:, s, None, None], slope[:, :, None] * W, J[:, s])
        h = np.where(real[:, s, None], np.tanh(a), h)

    ln_s, gradient = np.zeros((batch, steps + 1, n)), np.zeros((batch, steps + 1))
    with np.errstate(divide="ignore"):
        for b in range(batch):
            g, Q, diagonal, product = rng.standard_normal(n) / np.sqrt(n), np.eye(n), np.zeros(n), np.eye(n)
            gradient[b, steps] = np.log(np.linalg.norm(g))
            scale = norm = 0.0
            for s in reversed(range(steps)):
                g, product = J[b, s].T @ g, J[b, s].T @ product
                norm, g = norm + np.log(np.linalg.norm(g)), g / np.linalg.norm(g)
                top = np.linalg.norm(product, 2)
                scale, product = scale + np.log(top), product / top
                if real[b, s]:
                    Q, R = np.linalg.qr(J[b, s].T @ Q)
                    diagonal = diagonal + np.log(np.abs(np.diag(R)))
                gradient[b, s] = norm
                ln_s[b, s] = np.sort(diagonal)[::-1]
                ln_s[b, s, 0] = scale
                ln_s[b, s, n - dead :] = -np.inf if lag[b, s] else 0.0

        def back(per_step: np.ndarray) -> np.ndarray:
            """Sum [B, T] over the real steps after t: [B, T+1]."""
            kept = np.where(real, per_step, 0.0)
            return np.concatenate([np.cumsum(kept[:, ::-1], axis=1)[:, ::-1], np.zeros((batch, 1))], axis=1)

        ln_step = np.log(np.linalg.svd(J, compute_uv=False))
    steps_sum, lower_sum = back(ln_step[..., 0]), back(ln_step[..., -1])
    slope_sum = back(np.log(slopes.max(axis=2)) + np.log(singular[0]))
    promise = lag * np.log(singular[0])
    measured = gradient - gradient[:, -1:]
    at_end = gradient[:, -1:]

    variables: dict[str, Any] = {
        "log_singular_values": ((*BT, "mode"), ln_s),
        "log_gradient_norm": (BT, gradient),
        "log_recurrent_gradient_norm": (BT, gradient),
        "log_direct_gradient_norm": (BT, np.where(np.arange(steps + 1) == steps, gradient, -np.inf)),
        "gradient_lower_bound": (BT, ln_s[..., -1] + at_end),
        "gradient_upper_bound": (BT, ln_s[..., 0] + at_end),
        "bound_step_norms": (BT, steps_sum),
        "lower_step_norms": (BT, lower_sum),
        "log_step_norm": (BT, np.concatenate([np.full((batch, 1), np.nan), ln_step[..., 0]], axis=1)),
        "budget_between_steps": (BT, ln_s[..., 0] - steps_sum),
        "budget_direction": (BT, measured - ln_s[..., 0]),
        "budget_other_times": (BT, np.zeros_like(measured)),
        "budget_measured": (BT, measured),
        "lyapunov_exponent": (("batch", "mode"), ln_s[:, 0] / lag[:, :1]),
        "lyapunov_standard_error": (("batch", "mode"), np.full((batch, n), 0.01)),
    }
    if gated:
        variables["budget_step_norms"] = (BT, steps_sum)
    else:
        variables |= {
            "bound_slopes": (BT, slope_sum),
            "bound_promise": (BT, promise),
            "budget_promise": (BT, promise),
            "budget_saturation": (BT, slope_sum - promise),
            "budget_within_step": (BT, steps_sum - slope_sum),
            "mean_field_rate": ("batch", np.full(batch, 0.02)),
        }
    rate = np.array([np.polyfit(lag[b], measured[b], 1)[0] for b in range(batch)])
    variables |= {
        "decay_rate": ("batch", rate),
        "decay_rate_standard_error": ("batch", np.full(batch, 0.004)),
        "decay_half_life": ("batch", np.where(rate < 0, -np.log(2) / rate, np.inf)),
        "decay_first_lag": ("batch", np.zeros(batch)),
        "decay_last_lag": ("batch", lag[:, 0].astype(float)),
        "eigenvalue_real": ("eigenvalue", eigenvalues.real),
        "eigenvalue_imag": ("eigenvalue", eigenvalues.imag),
        "spectral_radius": np.abs(eigenvalues).max(),
        "sigma_max": singular[0],
    }
    ds = xr.Dataset(
        variables,
        coords={
            "batch": np.arange(batch),
            "time": np.arange(steps + 1),
            "mode": np.arange(1, n + 1),
            "eigenvalue": np.arange(1, n + 1),
            "lag": (BT, lag),
        },
        attrs={
            "title": "synthetic",
            "cell": "tanh RNN",
            "recurrent_matrix": "W",
            "state_parts": json.dumps({"h": n}),
            "seed": seed,
            "dirty": False,
            "schema_version": 1,
        },
    )
    for name, variable in ds.data_vars.items():
        _, long_name, units, formula = VARIABLES[str(name)]
        variable.attrs = {"long_name": long_name, "units": units, "formula": formula}
    return ds

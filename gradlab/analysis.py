"""From a cell and inputs to one labelled dataset with everything that gradlab measures and predicts."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from gradlab import bounds, predictions
from gradlab.convergence import Convergence, decay_convergence, exponent_convergence
from gradlab.decay import decay_budget, fit_decay
from gradlab.gradients import StateGradients, log_norm, state_gradients
from gradlab.horizon import reliability_horizon
from gradlab.jacobian import activation_slopes, check_elementwise, step_jacobians
from gradlab.lyapunov import LyapunovExponents, lyapunov_exponents
from gradlab.paths import gate_paths, has_gate_paths
from gradlab.products import log_singular_values
from gradlab.results import SCHEMA_VERSION, provenance
from gradlab.spectrum import recurrent_spectrum
from gradlab.statistics import LEAST_DEGREES, mean_interval
from gradlab.step import Step
from gradlab.trajectory import Trajectory, as_trajectory
from gradlab.validation import Array
from gradlab.variables import labelled


def analyze(
    cell: Any,
    inputs: ArrayLike | None,
    loss: Callable[[tf.Tensor], tf.Tensor] | None = None,
    *,
    initial_state: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    seed: int = 0,
    recurrent_block: str | None = None,
    return_error: bool = False,
) -> xr.Dataset:
    """Return everything about the gradients of one cell on one batch, as a labelled dataset.

    Measured: the gradient ∂L/∂h_t, all singular values of ∂h_T/∂h_t and the lag at which floating point would have lost
    each of them, Lyapunov exponents, the fitted decay rate.
    Rigorous: the chain of bounds from above and from below, Horn's sums, the sandwich, the determinant identity,
    dominance, latching. Predicted: the mean-field rate (tanh). And the decay budget, which accounts for the distance
    between promise and measurement. Links of the chain that do not hold for a cell (there is no ‖φ'‖·σ_1(W) for a gated
    one) are left out, not approximated. For an LSTM and a GRU, the share of each path through their gates (see
    `gradlab.gate_paths`), and the path along the carried state with the gates held fixed.

    How sure: standard errors along each sequence, 95 % intervals of the batch means over sequences (this network
    given; NaN below 7 sequences; `gradlab.interval` and `gradlab.compare` do the same over networks), and whether each
    sequence was long enough for its rates (see `gradlab.check_convergence`).

    Args:
        cell: anything that `as_step` takes, or a `Trajectory` (then pass None as `inputs`).
        inputs: x_1 … x_T [B, T, d].
        loss: maps states [B, T+1, n] to [B] or a scalar; None: L = uᵀh_T with u uniform on the unit sphere, one for
            each sequence, from `seed`: the decay of a gradient that prefers no direction.
        initial_state: h_0, see `rollout`.
        mask: [B, T], see `rollout`.
        seed: for u, and written into the attributes.
        recurrent_block: which gate's matrix the numbers on W are of, a key of ``step.recurrent_matrices``; the
            default is W of a simple RNN and the candidate's matrix of a gated cell (LSTM "c", GRU "h"), in a stack
            that of the last layer. It enters no bound of a gated cell.
        return_error: also estimate the error of every singular value, at twice the cost.

    Returns:
        Dataset with dims batch, time (t = 0 … T), mode (i = 1 … n), end (of an interval: "low", "high") and, for gated
        cells, path (by name); coordinate
        ``lag`` [batch, time], the number of steps that count between t and T, in the order in which the cell reads
        (the attribute ``go_backwards`` says whether that is from the end). Lyapunov exponents leave out the first
        tenth of the steps; the sandwich of the gradient is there only if the loss reads nothing but h_T. Every
        variable carries its long name, units and
        formula. Attributes: cell, where each part of the state lies, versions, seed, commit, whether the tree was
        dirty, dtype, command, UTC.

    Raises:
        TypeError, ValueError: as `rollout`, `step_jacobians` and `state_gradients` do; an unknown `recurrent_block`.

    Warns:
        RuntimeWarning: sequences were too short for the decay rate or for Lyapunov exponents; see the variables
            ``decay_long_enough`` and ``lyapunov_long_enough``.

    Example:
        >>> import gradlab as gl, numpy as np
        >>> cell = gl.VanillaRNNCell(8, recurrent_gain=0.9, seed=0)
        >>> ds = analyze(cell, np.random.default_rng(0).standard_normal((2, 40, 3)))
        >>> dict(ds["log_singular_values"].sizes)
        {'batch': 2, 'time': 41, 'mode': 8}
        >>> bool((ds["log_singular_values"].isel(mode=0) <= ds["bound_promise"] + 1e-9).all())
        True
    """
    traj = as_trajectory(cell, inputs, initial_state, mask)
    J = step_jacobians(traj)
    slopes = activation_slopes(traj)
    if slopes is not None:
        check_elementwise(traj, J, slopes)
    values: dict[str, Array] = {}
    g = state_gradients(traj, None, loss or random_direction_loss(len(J), traj.step.state_size, seed))
    terminal = _add_gradients_and_spectra(values, traj, J, g, return_error)
    path_names = _add_paths(values, traj, J, g)
    budget_names = _add_bounds(values, traj, J, slopes, terminal)
    values["norm_preservation_penalty"] = bounds.norm_preservation_penalty(J, g.total, mask=traj.mask)
    short = _add_rates(values, traj, J)
    if short:
        advice = "take longer sequences, or read these rates as of this stretch alone"
        warnings.warn(f"{'; '.join(short)}: {advice}", RuntimeWarning, stacklevel=2)
    block = _add_recurrent_matrix(values, traj.step, recurrent_block)
    ds = _dataset(values, traj, path_names)
    ds.attrs |= {
        "title": f"Gradient analysis of {traj.step.description}",
        "cell": traj.step.description,
        "state_parts": json.dumps([asdict(part) for part in traj.step.parts]),
        "recurrent_matrix": block,
        "go_backwards": traj.step.go_backwards,
        "loss": _describe_loss(loss),
        "budget_terms": json.dumps(budget_names),
        "schema_version": SCHEMA_VERSION,
        "dtype": traj.step.dtype,
        **provenance(seed),
    }
    return ds


def random_direction_loss(batch: int, n: int, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return L = uᵀh_T, u uniform on the unit sphere of the full state, one for each sequence."""
    u = np.random.default_rng(seed).standard_normal((batch, n))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return lambda states: tf.reduce_sum(tf.constant(u) * states[:, -1], axis=-1)


def exponents_along(traj: Trajectory, J: Array) -> tuple[Array, Array]:
    """Return all Lyapunov exponents of each sequence and their standard errors, both [B, n], nats per step.

    Masked steps do not count, and the first tenth of the others is left out.

    Args:
        traj: the run, of which the mask is read.
        J: its step Jacobians [B, T, n, n].
    """
    found = _exponents(traj, J)
    return np.array([one.exponents for one in found]), np.array([one.standard_error for one in found])


def _exponents(traj: Trajectory, J: Array) -> list[LyapunovExponents]:
    """Return the Lyapunov exponents along each sequence; a masked step is no time that passes."""
    real = [steps[taken] for steps, taken in zip(J, _taken(traj), strict=True)]
    return [lyapunov_exponents(steps, discard=len(steps) // 10) for steps in real]


def _taken(traj: Trajectory) -> NDArray[np.bool_]:
    """Return where a step counts [B, T]."""
    return np.ones(traj.inputs.shape[:2], bool) if traj.mask is None else traj.mask


def _describe_loss(loss: Callable[[tf.Tensor], tf.Tensor] | None) -> str:
    """Return the loss in words."""
    if loss is None:
        return "random unit direction of the last state"
    name = getattr(loss, "__name__", type(loss).__name__)
    return str((inspect.isfunction(loss) and inspect.getdoc(loss)) or name)


def _add_gradients_and_spectra(
    values: dict[str, Array], traj: Trajectory, J: Array, g: StateGradients, return_error: bool
) -> Array:
    """Add the measurement: gradients and singular values; return ln‖P_tᵀ g_T‖."""
    values["log_gradient_norm"] = g.log_total_norm
    values["log_direct_gradient_norm"] = g.log_direct_norm
    values["log_recurrent_gradient_norm"] = g.log_recurrent_norm
    if return_error:
        ln_s, error = log_singular_values(J, return_error=True)
        values["log_singular_values_error"] = _with_end(error)
    else:
        ln_s = log_singular_values(J)
    values["log_singular_values"] = _with_end(ln_s)
    for dtype in ("float32", "float64"):
        horizon = reliability_horizon(J, dtype, exact=ln_s, mask=traj.mask)
        values[f"horizon_{dtype}"] = np.where(horizon > traj.lag[:, :1], np.inf, horizon)
    if np.isneginf(g.log_direct_norm[:, :-1]).all():  # a loss that reads other states as well is outside the sandwich
        lower, upper = bounds.gradient_sandwich(values["log_singular_values"], g.log_total_norm[:, -1])
        values["gradient_lower_bound"], values["gradient_upper_bound"] = lower, upper
    return _terminal_gradient(J, g.direct[:, -1])


def _terminal_gradient(J: Array, g: Array) -> Array:
    """Return ln‖P_tᵀ g_T‖ [B, T+1]: the part of the gradient that started at T, in log scale at any length."""
    norms = [log_norm(g)]
    scale = np.zeros(len(g))
    for s in range(J.shape[1] - 1, -1, -1):
        largest = np.abs(g).max(axis=1)
        largest = np.where(largest == 0.0, 1.0, largest)
        g = np.einsum("bij,bi->bj", J[:, s], g / largest[:, None])
        scale = scale + np.log(largest)
        norms.append(log_norm(g) + scale)
    return np.stack(norms[::-1], axis=1)


def _add_paths(values: dict[str, Array], traj: Trajectory, J: Array, g: StateGradients) -> tuple[str, ...]:
    """Add the shares of the paths through the gates of an LSTM or a GRU; return the names of the paths."""
    if not has_gate_paths(traj):
        return ()
    paths = gate_paths(traj, J=J)
    values["path_share_of_gradient"] = _with_start(paths.shares_of_gradient(g))
    values["path_share_of_singular_value"] = _with_start(paths.shares_of_singular_value())
    values["path_share_of_product"] = _with_start(paths.shares_of_product())
    gates = paths.highway
    if gates.min() >= 0.0 and gates.max() <= 1.0:  # a recurrent activation may leave [0, 1]
        along = bounds.gate_path(gates, mask=traj.mask)
        values["gate_path_largest"], values["gate_path_mean"] = (_with_end(f(along, axis=2)) for f in (np.max, np.mean))
    return paths.names


def _add_bounds(
    values: dict[str, Array], traj: Trajectory, J: Array, slopes: Array | None, terminal: Array
) -> list[str]:
    """Add the theory that is rigorous, and the budget; return the names of the budget's terms in order."""
    recurrence, mask = traj.step.recurrence, traj.mask
    W = None if recurrence is None else recurrence.recurrent_matrix
    gamma = None if recurrence is None else recurrence.slope_supremum
    chain = bounds.chain(J, recurrent_matrix=W, slopes=slopes, slope_supremum=gamma, mask=mask)
    values["bound_step_norms"] = _with_end(chain.step_norms)
    if chain.slopes is not None:
        values["bound_slopes"] = _with_end(chain.slopes)
    if chain.promise is not None:
        values["bound_promise"] = _with_end(chain.promise)
    lower = bounds.lower_end(J, recurrent_matrix=W, slopes=slopes, mask=mask)
    values["lower_step_norms"] = _with_end(lower.step_values)
    if lower.slopes is not None:
        values["lower_slopes"] = _with_end(lower.slopes)
    values["bound_leading_sums"] = _with_end(bounds.leading_sums(J, mask=mask))
    values["log_determinant"] = _with_end(bounds.log_determinant(J, mask=mask))
    step_norms = chain.log_step_norms if mask is None else np.where(mask, chain.log_step_norms, np.nan)
    values["log_step_norm"] = _with_start(step_norms)
    values["latching_eta"] = bounds.latching_certificate(J, mask).eta
    if slopes is not None:
        counted = np.abs(slopes) if mask is None else np.where(mask[..., None], np.abs(slopes), np.nan)
        values["largest_slope"] = _with_start(counted.max(axis=2))
        values["mean_slope"] = _with_start(counted.mean(axis=2))
    if W is not None and gamma is not None:
        values["dominance_radius"] = np.asarray(bounds.dominance_certificate(W, 0, slope_supremum=gamma).upper)
    full_chain = chain.promise is not None and chain.slopes is not None
    budget = decay_budget(
        values["log_singular_values"][:, :-1],
        chain.log_step_norms,
        values["log_gradient_norm"],
        slopes=slopes if full_chain else None,
        sigma_max=float(np.linalg.norm(W, 2)) if full_chain and W is not None else None,
        slope_supremum=gamma if full_chain else None,
        log_terminal_gradient=terminal,
        mask=mask,
    )
    for name, term in budget.terms.items():
        values[f"budget_{name}"] = _with_end(term)
    values["budget_measured"] = _with_end(budget.measured)
    return [f"budget_{name}" for name in budget.terms]


def _add_rates(values: dict[str, Array], traj: Trajectory, J: Array) -> list[str]:
    """Add what is one number per sequence: fitted decay, Lyapunov exponents, mean field; return what was too short."""
    fit = fit_decay(values["log_gradient_norm"], lags=traj.lag)
    values["decay_rate"], values["decay_rate_standard_error"] = np.asarray(fit.rate), np.asarray(fit.standard_error)
    values["decay_half_life"] = np.asarray(fit.half_life)
    values["decay_first_lag"] = np.asarray(fit.first_lag, np.float64)
    values["decay_last_lag"] = np.asarray(fit.last_lag, np.float64)
    taken = _taken(traj)
    mean_field = []
    recurrence = traj.step.recurrence
    with_mean_field = recurrence is not None and recurrence.activation_name == "tanh"
    for b in range(len(J)):
        if with_mean_field and recurrence is not None:
            W = recurrence.recurrent_matrix
            drive = traj.inputs[b][taken[b]] @ recurrence.input_matrix.T + recurrence.bias
            path = predictions.mean_field_path(
                float(np.linalg.norm(W) / np.sqrt(len(W))),
                (drive**2).mean(axis=1),
                initial_variance=float((traj.states[b, 0] ** 2).mean()),
            )
            mean_field.append(float(path.rate))
    exponents = _exponents(traj, J)
    values["lyapunov_exponent"] = np.array([one.exponents for one in exponents])
    values["lyapunov_standard_error"] = np.array([one.standard_error for one in exponents])
    if mean_field:
        values["mean_field_rate"] = np.array(mean_field)
    for name, mean in (("decay_rate_interval", "decay_rate"), ("lyapunov_interval", "lyapunov_exponent")):
        unknown = np.full((2, *values[mean].shape[1:]), np.nan)
        values[name] = np.stack(mean_interval(values[mean])) if len(J) > LEAST_DEGREES else unknown
    decay = decay_convergence(values["log_gradient_norm"], lags=traj.lag)
    along = [exponent_convergence(one, comparisons=values["lyapunov_exponent"].size) for one in exponents]
    whole = Convergence(**{name: np.array([vars(one)[name] for one in along]) for name in vars(along[0])})
    for name, one in (("decay", decay), ("lyapunov", whole)):
        values[f"{name}_drift"], values[f"{name}_correlation_time"] = one.drift, one.correlation_time
        values[f"{name}_long_enough"] = one.long_enough
    named = (("decay rate", decay), ("Lyapunov exponents", whole))
    return [f"{name} {one.verdict}" for name, one in named if not one.converged]


def _add_recurrent_matrix(values: dict[str, Array], step: Step, block: str | None) -> str:
    """Add the numbers on one recurrent matrix; return which one it is, in words."""
    matrices = step.recurrent_matrices
    if block is None:
        # the candidate's matrix is the only one of a gated cell that writes new content into the state
        block = next((name for name in reversed(list(matrices)) if name.split(".")[-1] in ("W", "c", "h")), None)
        if block is None:
            return "none known for this cell"
    if block not in matrices:
        raise ValueError(f"recurrent_block must be one of {sorted(matrices)}, got {block!r}")
    stored = np.finfo(tf.as_dtype(getattr(step.cell, "variable_dtype", "float64")).as_numpy_dtype).eps
    w = recurrent_spectrum(matrices[block], precision=float(stored))
    values["recurrent_matrix"] = np.asarray(matrices[block], np.float64)
    values["eigenvalue_real"], values["eigenvalue_imag"] = w.eigenvalues.real, w.eigenvalues.imag
    for name in (
        "spectral_radius",
        "sigma_max",
        "numerical_radius",
        "henrici_departure",
        "kreiss_lower_bound",
        "transient_peak",
        "eigenvector_condition",
    ):
        values[name] = np.asarray(getattr(w, name), np.float64)
    kind = {"W": "W of", "c": "candidate matrix W_c of", "h": "candidate matrix W_h of"}
    return f"{kind.get(block.split('.')[-1], 'block ' + block + ' of')} {step.description}" + (
        f" ({block})" if "." in block else ""
    )


def _with_end(array: Array) -> Array:
    """Return [B, T+1, …]: at t = T the product is empty, its logarithm 0."""
    return np.concatenate([array, np.zeros_like(array[:, :1])], axis=1)


def _with_start(array: Array) -> Array:
    """Return [B, T+1, …]: what belongs to step t at index t, NaN at t = 0."""
    return np.concatenate([np.full_like(array[:, :1], np.nan), array], axis=1)


def _dataset(values: dict[str, Array], traj: Trajectory, path_names: tuple[str, ...]) -> xr.Dataset:
    """Return the labelled dataset."""
    B, T, _ = traj.inputs.shape
    ds = xr.Dataset(
        labelled(values),
        coords={
            "batch": ("batch", np.arange(B), {"long_name": "sequence", "units": "1"}),
            "time": ("time", np.arange(T + 1), {"long_name": "time step t", "units": "steps"}),
            "mode": ("mode", np.arange(1, traj.step.state_size + 1), {"long_name": "mode i", "units": "1"}),
            "lag": (("batch", "time"), traj.lag, {"long_name": "lag k to the last step", "units": "steps"}),
        },
    )
    if "eigenvalue_real" in ds:
        ds = ds.assign_coords(eigenvalue=("eigenvalue", np.arange(1, ds.sizes["eigenvalue"] + 1)))
    ds = ds.assign_coords(end=("end", ["low", "high"], {"long_name": "end of an interval"}))
    if path_names:
        ds = ds.assign_coords(path=("path", list(path_names), {"long_name": "path through the gates"}))
    return ds

"""One run of a description: a network is made, trained, and measured on the way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from gradlab import tasks
from gradlab.analysis import analyze, exponents_along, random_direction_loss
from gradlab.blas import one_blas_thread
from gradlab.credit import credit_by_lag
from gradlab.decay import fit_decay
from gradlab.experiment import Experiment
from gradlab.gradients import state_gradients
from gradlab.jacobian import NotFiniteError, activation_slopes, step_jacobians
from gradlab.networks import Network, network
from gradlab.stamps import stamped
from gradlab.step import as_step
from gradlab.tracking_dataset import with_tracked
from gradlab.training import Training, fix_threads, load_task, loss_of_states, one_at_a_time, train
from gradlab.trajectory import LeftFiniteNumbers, rollout
from gradlab.validation import Array
from gradlab.variables import labelled


def run(experiment: Experiment | Mapping[str, Any]) -> xr.Dataset:
    """Make the network, measure it, train it, measure it again.

    Training is Keras's `fit` on the (categorical) cross-entropy, of all steps where there is a label at each, or on the
    squared error for a regression, in float32; the analysis runs in float64 on the first `probes` test sequences, with
    the same loss for each of them, without penalties (Ω, flossing). What is measured on the way does not change what
    comes after.

    Args:
        experiment: what to do, or a table of its fields.

    Returns:
        The dataset of `analyze` with one more dim, stage ("initial", "trained", or "epoch 3"), the Lyapunov exponents
        along the next `held_out` test sequences over dim held_out, `credit_by_lag` of the probes over dim credit_lag,
        and over dim epoch the learning curves: training_loss (with penalties), test_loss, the accuracies (of labels),
        and test_success, the share of test sequences answered right after each epoch (`Task.success_rate`; with one
        label a sequence it is the accuracy); less where the description asks for less. What a tracker saw has names of
        its own (see `gradlab.tracking_dataset.tracked`). A network that left the finite numbers, on a probe or a
        held-out sequence, has NaN throughout that stage, and the attribute ``status_<stage>`` says why; so has every
        stage after training stopped because its loss was not finite. The attributes hold the description, its hash, and
        what `provenance` and `stamped` know of the code, the machine and the result; ``success``, the success rate from
        which the task counts as solved (NaN where nobody has said: the real data); ``trainable_parameters``; and
        ``epoch_seconds`` and their sum ``training_seconds``, the wall time of each epoch with its test, but without
        what was measured at its end, and ``epoch_processor_seconds``, which other processes on the machine disturb
        less. The first epoch includes tracing, if no run of the same architecture came before in this process.

    Raises:
        ValueError: no stage could be analysed and nothing was trained.
        ValueError, TypeError: the description is wrong.

    Example:
        >>> ds = run(Experiment("tanh", gain=0.9, data="noise", units=4, epochs=0, probes=2))
        >>> ds.sizes["stage"], ds.attrs["status_initial"]
        (1, 'ok')
    """
    experiment = Experiment.from_dict(experiment)
    fix_threads()
    with one_at_a_time, one_blas_thread():  # in a sweep and by itself alike: the order of sums is part of the numbers
        return _run(experiment)


def _run(experiment: Experiment) -> xr.Dataset:
    started = time.perf_counter()
    task = load_task(experiment)
    made, stages = network(experiment, task), experiment.stages
    found: dict[str, xr.Dataset | str] = {}
    training = Training({}, None, [], [])

    def measure(epoch: int) -> None:
        if epoch in stages:
            found[stages[epoch]] = _attempt(made, experiment, task)

    with _runtime_warnings() as said:
        measure(0)
        if experiment.epochs:
            training = train(made.model, experiment, task, measure)
            if np.isfinite(training.curves["training_loss"][-1]):
                measure(experiment.epochs)
    for name in stages.values():
        found.setdefault(name, "training had stopped, its loss was NaN or infinite")
    if stages and not training.curves and all(isinstance(one, str) for one in found.values()):
        raise ValueError(f"the network could not be analysed at any stage: {found}")
    ds = _stacked({name: found[name] for name in stages.values()})
    _add(ds, training.curves)
    if training.curves:
        epochs = np.arange(1, experiment.epochs + 1)
        ds = ds.assign_coords(epoch=("epoch", epochs, {"long_name": "epochs done", "units": "1"}))
    if training.tracker is not None:
        ds = with_tracked(ds, training.tracker.dataset())
    ds.attrs |= {
        "success": task.success,
        "trainable_parameters": made.model.count_params(),
        "training_seconds": round(sum(training.seconds), 3),
        "baseline": task.baseline,
        "metric": task.metric,
        "data_source": task.source,
        "warnings": sorted(set(said)),
    }
    if training.seconds:
        ds.attrs |= {"epoch_seconds": training.seconds, "epoch_processor_seconds": training.processor_seconds}
    return stamped(ds, experiment, time.perf_counter() - started)


@contextmanager
def _runtime_warnings() -> Iterator[list[str]]:
    """Collect what RuntimeWarnings say: it goes with the numbers, not past them on the screen. Let the others through.

    The list is filled when the context ends.
    """
    said: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            yield said
    finally:
        for one in caught:
            if issubclass(one.category, RuntimeWarning):
                said.append(str(one.message))
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)


def _measured(made: Network, experiment: Experiment, task: tasks.Task) -> xr.Dataset:
    """Return what the description asks for of the network as it is now."""
    probe = slice(0, experiment.probes)
    other = slice(experiment.probes, experiment.probes + experiment.held_out)
    inputs, mask = _part(task.test_inputs, probe), _part(task.test_mask, probe)
    targets = _part(task.test_targets, probe)
    loss = None if targets is None else loss_of_states(made.readout, experiment, task, targets)
    ds = xr.Dataset()
    if "analysis" in experiment.measured:
        ds = analyze(made.layer, inputs, loss, mask=mask, seed=experiment.seed)
    if "decay" in experiment.measured:
        ds = _decay(made.layer, inputs, loss, mask, experiment.seed)
    if "held_out" in experiment.measured:
        traj = rollout(made.layer, _part(task.test_inputs, other), mask=_part(task.test_mask, other))
        exponents, errors = exponents_along(traj, step_jacobians(traj))
        _add(ds, {"held_out_lyapunov_exponent": exponents, "held_out_lyapunov_standard_error": errors})
    if "slopes" in experiment.measured:
        slopes: Any = activation_slopes(rollout(made.layer, inputs, mask=mask))
        if mask is not None:
            slopes = np.where(mask[..., None], slopes, np.nan)
        _add(ds, {"activation_slope": np.concatenate([np.full_like(slopes[:, :1], np.nan), slopes], axis=1)})
    if "credit" in experiment.measured:
        if loss is None:
            loss = random_direction_loss(len(inputs), as_step(made.layer).state_size, experiment.seed)
        credit = credit_by_lag(made.layer, inputs, loss, mask=mask).rename(lag="credit_lag")  # "lag" is of sequences
        ds = ds.assign(credit.data_vars).assign_coords(credit_lag=credit["credit_lag"])
    return ds


def _decay(layer: Any, inputs: Array, loss: Any, mask: Any, seed: int) -> xr.Dataset:
    """Return the part of `analyze` that needs no product of Jacobians: gradients, and their fitted decay."""
    traj = rollout(layer, inputs, mask=mask)
    if loss is None:
        loss = random_direction_loss(len(inputs), traj.step.state_size, seed)
    g = state_gradients(traj, None, loss)
    fit = fit_decay(g.log_total_norm, lags=traj.lag)
    ds = xr.Dataset(
        coords={
            "batch": ("batch", np.arange(len(inputs)), {"long_name": "sequence", "units": "1"}),
            "time": ("time", np.arange(inputs.shape[1] + 1), {"long_name": "time step t", "units": "steps"}),
            "lag": (("batch", "time"), traj.lag, {"long_name": "lag k to the last step", "units": "steps"}),
        },
        attrs={"cell": traj.step.description, "title": f"Decay of gradients of {traj.step.description}"},
    )
    values = {
        "log_gradient_norm": g.log_total_norm,
        "log_direct_gradient_norm": g.log_direct_norm,
        "log_recurrent_gradient_norm": g.log_recurrent_norm,
        "decay_rate": fit.rate,
        "decay_rate_standard_error": fit.standard_error,
        "decay_half_life": fit.half_life,
        "decay_first_lag": fit.first_lag,
        "decay_last_lag": fit.last_lag,
    }
    _add(ds, {name: np.asarray(value, np.float64) for name, value in values.items()})
    return ds


def _add(ds: xr.Dataset, values: dict[str, Array]) -> None:
    """Put variables into a dataset, with their dims, units and formulas."""
    for name, variable in labelled(values).items():
        ds[name] = variable


def _part(values: Any, which: slice) -> Any:
    """Return some of the sequences, where there is anything to take them from."""
    return None if values is None else values[which]


def _attempt(made: Network, experiment: Experiment, task: tasks.Task) -> xr.Dataset | str:
    """Return the dataset, or in words why there is none: a network that exploded is a result, not a crash."""
    if not all(np.isfinite(weight).all() for weight in made.model.get_weights()):
        return "a weight of the network is NaN or infinite"
    try:
        return _measured(made, experiment, task)
    except (LeftFiniteNumbers, NotFiniteError) as error:
        return str(error)


def _stacked(found: dict[str, xr.Dataset | str]) -> xr.Dataset:
    """Return the stages side by side; one that could not be analysed is NaN throughout.

    Where none could be, there is nothing to be NaN, and the attributes alone say why.
    """
    statuses = {f"status_{name}": "ok" if isinstance(one, xr.Dataset) else one for name, one in found.items()}
    whole = [one for one in found.values() if isinstance(one, xr.Dataset)]
    if not whole:
        return xr.Dataset(attrs=statuses)
    blank = whole[0].map(lambda values: xr.full_like(values, np.nan, dtype=np.float64))
    stages = [one if isinstance(one, xr.Dataset) else blank for one in found.values()]
    ds = xr.concat(
        stages, xr.Variable("stage", list(found)), combine_attrs="override", coords="minimal", compat="override"
    )
    ds.attrs = dict(whole[0].attrs) | statuses
    return ds

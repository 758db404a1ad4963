"""One run of a description: a network is made, trained, and measured on the way."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from gradlab import tasks
from gradlab.analysis import analyze, exponents_along, random_direction_loss
from gradlab.blas import one_blas_thread
from gradlab.decay import fit_decay
from gradlab.experiment import DATA, Experiment
from gradlab.gradients import state_gradients
from gradlab.jacobian import NotFiniteError, step_jacobians
from gradlab.networks import Network, network
from gradlab.stamps import stamped
from gradlab.trajectory import LeftFiniteNumbers, rollout
from gradlab.validation import Array
from gradlab.variables import VARIABLES

_one_at_a_time = threading.Lock()  # a compiled model is shared by all runs of its architecture


def load_task(experiment: Experiment) -> tasks.Task:
    """Return the data of an experiment."""
    seed, length = experiment.seed, experiment.length or DATA[experiment.data] or 0
    if experiment.data == "digits":
        return tasks.digits("pixels", seed=seed)
    if experiment.data == "vowels":
        return tasks.vowels()
    if experiment.data == "adding":
        return tasks.adding(length, experiment.samples or 2000, seed=seed)
    tested = experiment.probes + experiment.held_out
    return tasks.noise(length, experiment.samples or 64, 4, seed=seed, test_samples=tested)


def run(experiment: Experiment | Mapping[str, Any]) -> xr.Dataset:
    """Make the network, measure it, train it, measure it again.

    Training is Keras's `fit` on the (categorical) cross-entropy, or on the squared error for a regression, in float32;
    the analysis runs in float64 on the first `probes` test sequences, with the same loss for each of them. What is
    measured on the way does not change what comes after.

    Args:
        experiment: what to do, or a table of its fields.

    Returns:
        The dataset of `analyze` with one more dim, stage ("initial", "trained", or "epoch 3"), the Lyapunov exponents
        along the next `held_out` test sequences over dim held_out, and the learning curve over dim epoch; less where
        the description asks for less. A network that left the finite numbers, on a probe or a held-out sequence, has
        NaN throughout that stage, and the attribute ``status_<stage>`` says why; so has every stage after training
        stopped because its loss was not finite. The attributes hold the description,
        its hash, and what `provenance` and `stamped` know of the code, the machine and the result.

    Raises:
        ValueError: no stage could be analysed, or there are fewer test sequences than `probes` and `held_out`.

    Example:
        >>> ds = run(Experiment("tanh", gain=0.9, data="noise", units=4, epochs=0, probes=2))
        >>> ds.sizes["stage"], ds.attrs["status_initial"]
        (1, 'ok')
    """
    experiment = Experiment.from_dict(experiment) if isinstance(experiment, Mapping) else experiment
    with _one_at_a_time, one_blas_thread():  # in a sweep and by itself alike: the order of sums is part of the numbers
        return _run(experiment)


def _run(experiment: Experiment) -> xr.Dataset:
    started = time.perf_counter()
    task = load_task(experiment)
    if experiment.probes + experiment.held_out > len(task.test_inputs):
        raise ValueError(
            f"probes and held_out must be at most the {len(task.test_inputs)} test sequences of {experiment.data}"
            f" together, got {experiment.probes} and {experiment.held_out}"
        )
    made, stages = network(experiment, task), experiment.stages
    found: dict[str, xr.Dataset | str] = {}
    curves: dict[str, Array] = {}

    def measure(epoch: int) -> None:
        if epoch in stages:
            found[stages[epoch]] = _attempt(made, experiment, task)

    with _runtime_warnings() as said:
        measure(0)
        if experiment.epochs:
            curves = _train(made.model, experiment, task, measure)
            if np.isfinite(curves["training_loss"][-1]):
                measure(experiment.epochs)
    for name in stages.values():
        found.setdefault(name, "training had stopped, its loss was NaN or infinite")
    ds = _stacked({name: found[name] for name in stages.values()})
    for name, values in curves.items():
        ds[name] = ("epoch", values)
    if curves:
        ds = ds.assign_coords(epoch=np.arange(1, experiment.epochs + 1))
    ds.attrs |= {
        "baseline": task.baseline,
        "metric": task.metric,
        "data_source": task.source,
        "warnings": sorted(set(said)),
    }
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
    loss = None if targets is None else _probe_loss(made.readout, experiment, task, targets)
    ds = xr.Dataset()
    if "analysis" in experiment.measured:
        ds = analyze(made.layer, inputs, loss, mask=mask, seed=experiment.seed)
    if "decay" in experiment.measured:
        ds = _decay(made.layer, inputs, loss, mask, experiment.seed)
    if "held_out" in experiment.measured:
        traj = rollout(made.layer, _part(task.test_inputs, other), mask=_part(task.test_mask, other))
        exponents, errors = exponents_along(traj, step_jacobians(traj))
        _add(ds, {"held_out_lyapunov_exponent": exponents, "held_out_lyapunov_standard_error": errors})
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
    for name, value in values.items():
        dims, long_name, units, formula = VARIABLES[name]
        ds[name] = (dims, value, {"long_name": long_name, "units": units, "formula": formula})


def _part(values: Any, which: slice) -> Any:
    """Return some of the sequences, where there is anything to take them from."""
    return None if values is None else values[which]


def _train(
    model: keras.Model, experiment: Experiment, task: tasks.Task, measure: Callable[[int], None]
) -> dict[str, Array]:
    """Train, and return the learning curves [epochs], NaN from the epoch on in which the loss left the numbers."""

    def features(inputs: Array, mask: Any) -> Any:
        x = inputs.astype(np.float32)
        return x if mask is None else [x, mask]

    def between(epoch: int, logs: Any) -> None:  # within one call of fit: another call would shuffle anew
        # where the loss is not finite, training has stopped in mid-epoch
        if 0 < epoch + 1 < experiment.epochs and np.isfinite(logs["loss"]):
            measure(epoch + 1)

    keras.utils.set_random_seed(experiment.seed)  # the order of the batches
    history = model.fit(
        features(task.inputs, task.mask),
        task.targets,
        batch_size=experiment.batch_size,
        epochs=experiment.epochs,
        validation_data=(features(task.test_inputs, task.test_mask), task.test_targets),
        callbacks=[keras.callbacks.TerminateOnNaN(), keras.callbacks.LambdaCallback(on_epoch_end=between)],
        verbose=0,
    ).history
    names = {"loss": "training_loss", "val_loss": "test_loss"}
    names |= {"accuracy": "training_accuracy", "val_accuracy": "test_accuracy"}
    curves = {}
    for key, name in names.items():
        if key in history:
            curve = np.full(experiment.epochs, np.nan)
            curve[: len(history[key])] = history[key]
            curves[name] = curve
    return curves


def _probe_loss(
    readout: Any, experiment: Experiment, task: tasks.Task, targets: Any
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the training loss of each probe sequence as a function of the full state, in float64."""
    kernel, bias = (tf.constant(np.asarray(w, np.float64)) for w in readout.get_weights())

    def loss(states: tf.Tensor) -> tf.Tensor:
        output = states[:, -1, : experiment.units] @ kernel + bias  # h stands first in the state of every cell here
        if task.num_classes is not None:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.constant(targets), output)
        return tf.reduce_mean(tf.square(output - tf.constant(targets)), axis=-1)

    kind = "cross-entropy" if task.num_classes is not None else "squared error"
    loss.__doc__ = f"{kind} at the last step"
    return loss


def _attempt(made: Network, experiment: Experiment, task: tasks.Task) -> xr.Dataset | str:
    """Return the dataset, or in words why there is none: a network that exploded is a result, not a crash."""
    if not all(np.isfinite(weight).all() for weight in made.model.get_weights()):
        return "a weight of the network is NaN or infinite"
    try:
        return _measured(made, experiment, task)
    except (LeftFiniteNumbers, NotFiniteError) as error:
        return str(error)


def _stacked(found: dict[str, xr.Dataset | str]) -> xr.Dataset:
    """Return the stages side by side; one that could not be analysed is NaN throughout."""
    if not found:
        return xr.Dataset()
    whole = [one for one in found.values() if isinstance(one, xr.Dataset)]
    if not whole:
        raise ValueError(f"the network could not be analysed at any stage: {found}")
    blank = whole[0].map(lambda values: xr.full_like(values, np.nan, dtype=np.float64))
    stages = [one if isinstance(one, xr.Dataset) else blank for one in found.values()]
    ds = xr.concat(
        stages, xr.Variable("stage", list(found)), combine_attrs="override", coords="minimal", compat="override"
    )
    ds.attrs = dict(whole[0].attrs)
    for name, one in found.items():
        ds.attrs[f"status_{name}"] = "ok" if isinstance(one, xr.Dataset) else one
    return ds

"""One run of a description: a network is made, trained, and measured on the way."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from gradlab import tasks
from gradlab.analysis import analyze, exponents_along, random_direction_loss
from gradlab.blas import one_blas_thread
from gradlab.credit import credit_by_lag
from gradlab.decay import fit_decay
from gradlab.experiment import DATA, Experiment
from gradlab.gradients import state_gradients
from gradlab.jacobian import NotFiniteError, activation_slopes, step_jacobians
from gradlab.networks import Network, answers_each_step, network
from gradlab.stamps import stamped
from gradlab.step import as_step
from gradlab.tracking import GradientTracker
from gradlab.tracking_dataset import with_tracked
from gradlab.trajectory import LeftFiniteNumbers, rollout
from gradlab.validation import Array
from gradlab.variables import labelled

_one_at_a_time = threading.Lock()  # a compiled model is shared by all runs of its architecture


def load_task(experiment: Experiment) -> tasks.Task:
    """Return the data of an experiment."""
    data, seed, length = experiment.data, experiment.seed, experiment.length or DATA[experiment.data] or 0
    if data in ("digits", "digits_rows"):
        return tasks.digits("pixels" if data == "digits" else "rows", seed=seed)
    if data == "noise":
        tested = experiment.probes + experiment.held_out
        return tasks.noise(length, experiment.samples or 64, 4, seed=seed, test_samples=tested)
    make = getattr(tasks, data)
    made: tasks.Task = make(length, experiment.samples or 2000, seed=seed) if length else make()
    return made


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
    training = _Training({}, None, [], [])

    def measure(epoch: int) -> None:
        if epoch in stages:
            found[stages[epoch]] = _attempt(made, experiment, task)

    with _runtime_warnings() as said:
        measure(0)
        if experiment.epochs:
            training = _train(made.model, experiment, task, measure)
            if np.isfinite(training.curves["training_loss"][-1]):
                measure(experiment.epochs)
    for name in stages.values():
        found.setdefault(name, "training had stopped, its loss was NaN or infinite")
    ds = _stacked({name: found[name] for name in stages.values()})
    for name, values in training.curves.items():
        ds[name] = ("epoch", values)
    if training.curves:
        ds = ds.assign_coords(epoch=np.arange(1, experiment.epochs + 1))
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


class _Training(NamedTuple):
    """What came of a training: learning curves [epochs], NaN from the epoch on in which the loss left the numbers."""

    curves: dict[str, Array]
    tracker: GradientTracker | None
    seconds: list[float]  # of each epoch
    processor_seconds: list[float]


def _train(model: keras.Model, experiment: Experiment, task: tasks.Task, measure: Callable[[int], None]) -> _Training:
    """Train, measure on the way, and say what came of it."""

    def features(inputs: Array, mask: Any) -> Any:
        x = inputs.astype(np.float32)
        return x if mask is None else [x, mask]

    def between(epoch: int, logs: Any) -> None:  # within one call of fit: another call would shuffle anew
        # where the loss is not finite, training has stopped in mid-epoch
        if 0 < epoch + 1 < experiment.epochs and np.isfinite(logs["loss"]):
            measure(epoch + 1)

    tracker, clock = None, _Clock()
    if "tracking" in experiment.measured:
        at, probe = experiment.measured_at, slice(0, experiment.probes)
        tracker = GradientTracker(
            features(task.test_inputs[probe], _part(task.test_mask, probe)),
            task.test_targets[probe],  # type: ignore[index]  # there is something to learn
            schedule=None if at is None else at.__contains__,
        )
    keras.utils.set_random_seed(experiment.seed)  # the order of the batches
    history = model.fit(
        features(task.inputs, task.mask),
        task.targets,
        batch_size=experiment.batch_size,
        epochs=experiment.epochs,
        validation_data=(features(task.test_inputs, task.test_mask), task.test_targets),
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=clock.stop),  # before what is measured at the end …
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.LambdaCallback(on_epoch_end=between),
            *([] if tracker is None else [tracker]),
            keras.callbacks.LambdaCallback(on_epoch_begin=clock.start),  # … and after what is at the beginning
        ],
        verbose=0,
    ).history
    names = {"loss": "training_loss", "val_loss": "test_loss"}
    names |= {"accuracy": "training_accuracy", "val_accuracy": "test_accuracy", "val_success": "test_success"}
    if "val_success" not in history and "val_accuracy" in history:
        history["val_success"] = history["val_accuracy"]
    curves = {}
    for key, name in names.items():
        if key in history:
            curve = np.full(experiment.epochs, np.nan)
            curve[: len(history[key])] = history[key]
            curves[name] = curve
    return _Training(curves, tracker, clock.seconds, clock.processor_seconds)


class _Clock:
    """Wall and processor time of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []
        self._started = (0.0, 0.0)

    def start(self, epoch: int, logs: Any = None) -> None:
        """Begin to count."""
        self._started = time.perf_counter(), time.process_time()

    def stop(self, epoch: int, logs: Any = None) -> None:
        """Take down what has passed."""
        now = time.perf_counter(), time.process_time()
        for into, end, start in zip((self.seconds, self.processor_seconds), now, self._started, strict=True):
            into.append(round(end - start, 4))


def _probe_loss(
    readout: Any, experiment: Experiment, task: tasks.Task, targets: Any
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the training loss of each probe sequence as a function of the full state, in float64."""
    kernel, bias = (tf.constant(np.asarray(w, np.float64)) for w in readout.get_weights())

    each_step = answers_each_step(task)

    def loss(states: tf.Tensor) -> tf.Tensor:
        h = states[:, :, : experiment.units]  # it stands first in the state of every cell here
        if each_step:
            output = tf.einsum("bti,ij->btj", h[:, 1:], kernel) + bias
            every = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.constant(targets), output)
            return tf.reduce_mean(every, axis=1)
        output = h[:, -1] @ kernel + bias
        if task.num_classes is not None:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.constant(targets), output)
        return tf.reduce_mean(tf.square(output - tf.constant(targets)), axis=-1)

    kind = "cross-entropy" if task.num_classes is not None else "squared error"
    loss.__doc__ = f"{kind}, mean over all steps" if each_step else f"{kind} at the last step"
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

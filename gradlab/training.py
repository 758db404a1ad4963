"""Training a network as its description says, and the network that comes of it."""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from gradlab import tasks
from gradlab.blas import one_blas_thread
from gradlab.experiment import DATA, SAMPLES, Experiment
from gradlab.networks import answers_each_step, copy_of, network
from gradlab.tracking import GradientTracker
from gradlab.validation import Array

one_at_a_time = threading.Lock()  # a compiled model is shared by all runs of its architecture


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network trained by `trained`, its own object: what is trained later does not change it.

    Attributes:
        experiment: its description.
        task: its data.
        layer: the recurrent layer, for `rollout`, `analyze` and all that takes a layer.
        readout: the dense layer on its last output, or on each.
        model: both, compiled, for Keras's own `evaluate` and `predict`.
        curves: training_loss, test_loss, the accuracies and test_success after each epoch, as in `run`; empty without
            training.
    """

    experiment: Experiment
    task: tasks.Task
    layer: Any
    readout: Any
    model: keras.Model
    curves: dict[str, Array]

    def __repr__(self) -> str:
        """Return the description and the task, without the numbers."""
        return f"TrainedNetwork({self.experiment!r}, {self.task!r})"

    def loss(self, targets: Any) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the training loss of each sequence, a function of states for `state_gradients` and `analyze`.

        Args:
            targets: of the sequences, such as ``network.task.test_targets[:8]``.
        """
        return loss_of_states(self.readout, self.experiment, self.task, targets)


@functools.cache
def fix_threads() -> None:
    """Give each operation of TensorFlow one thread, as a sweep's workers have, so that sums are taken in one order.

    That can be done before TensorFlow has started; afterwards a warning says so. Whoever has set TF_NUM_INTRAOP_THREADS
    has chosen, and nothing is done.
    """
    if "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:  # it has started
        if tf.config.threading.get_intra_op_parallelism_threads() != 1 and (os.cpu_count() or 1) > 1:
            warnings.warn(
                "TensorFlow was used before this run and sums in several threads, in another order than a sweep's"
                " workers do: numbers may differ from theirs by rounding. For the same bits everywhere set"
                " TF_NUM_INTRAOP_THREADS=1, or make the run first",
                UserWarning,
                stacklevel=3,
            )


def trained(experiment: Experiment | Mapping[str, Any]) -> TrainedNetwork:
    """Train the network of a description exactly as `run` does, and return it, to measure what `run` does not.

    Args:
        experiment: what to train, or a table of the fields of `Experiment`; ``epochs=0`` gives the initial network.
            What it says of measuring is not done.

    Returns:
        The network, with its data, loss and learning curves.

    Raises:
        ValueError, TypeError: the description is wrong.

    Example:
        >>> import gradlab as gl
        >>> network = trained(Experiment("tanh", data="latching", length=12, units=4, epochs=1, samples=80))
        >>> x, y = network.task.test_inputs[:3], network.task.test_targets[:3]
        >>> gl.state_gradients(gl.rollout(network.layer, x), None, network.loss(y)).log_total_norm.shape
        (3, 13)
    """
    experiment = Experiment.from_dict(experiment)
    fix_threads()
    with one_at_a_time, one_blas_thread():
        task = load_task(experiment)
        made = network(experiment, task)
        curves = {}
        if experiment.epochs:
            curves = train(made.model, experiment, task).curves
        own = copy_of(made, experiment, task)
    return TrainedNetwork(experiment, task, own.layer, own.readout, own.model, curves)


def load_task(experiment: Experiment) -> tasks.Task:
    """Return the data of an experiment."""
    data, seed, length = experiment.data, experiment.seed, experiment.length or DATA[experiment.data] or 0
    if data in ("digits", "digits_rows"):
        return tasks.digits("pixels" if data == "digits" else "rows", seed=seed)
    if data == "noise":
        tested = experiment.probes + experiment.held_out
        return tasks.noise(length, experiment.samples or SAMPLES[data], 4, seed=seed, test_samples=tested)
    make = getattr(tasks, data)
    made: tasks.Task = make(length, experiment.samples or SAMPLES[data], seed=seed) if length else make()
    return made


class Training(NamedTuple):
    """What came of a training: learning curves [epochs], NaN from the epoch on in which the loss left the numbers."""

    curves: dict[str, Array]
    tracker: GradientTracker | None
    seconds: list[float]  # of each epoch
    processor_seconds: list[float]


def train(
    model: keras.Model, experiment: Experiment, task: tasks.Task, measure: Callable[[int], None] | None = None
) -> Training:
    """Train, measure on the way, and say what came of it.

    Args:
        model: of `networks.network`.
        experiment: its description.
        task: of the description.
        measure: called with the number of the epoch after each but the last.
    """

    def features(inputs: Array, mask: Any) -> Any:
        x = inputs.astype(np.float32)
        return x if mask is None else [x, mask]

    def between(epoch: int, logs: Any) -> None:  # within one call of fit: another call would shuffle anew
        # where the loss is not finite, training has stopped in mid-epoch
        if measure and 0 < epoch + 1 < experiment.epochs and np.isfinite(logs["loss"]):
            measure(epoch + 1)

    tracker, clock = None, _Clock()
    if "tracking" in experiment.measured:
        at, probe = experiment.measured_at, slice(0, experiment.probes)
        tracker = GradientTracker(
            features(task.test_inputs[probe], None if task.test_mask is None else task.test_mask[probe]),
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
    return Training(curves, tracker, clock.seconds, clock.processor_seconds)


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


def loss_of_states(
    readout: Any, experiment: Experiment, task: tasks.Task, targets: Any
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the training loss of each sequence [B] as a function of the full state [B, T+1, n], in float64.

    Args:
        readout: the dense layer.
        experiment: the description.
        task: its data.
        targets: of the B sequences.
    """
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

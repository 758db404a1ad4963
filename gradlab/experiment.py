"""One run, described by values: a network is made, trained, and analysed before and after."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from gradlab import tasks
from gradlab.analysis import analyze, exponents_along
from gradlab.cells import VanillaRNNCell
from gradlab.jacobian import step_jacobians
from gradlab.trajectory import rollout
from gradlab.validation import Array, positive_integer
from gradlab.variables import VARIABLES

CELLS = ("tanh", "relu", "lstm", "gru")
DATA = ("digits", "vowels", "adding", "noise")
STAGES = ("initial", "trained")


@dataclass(frozen=True)
class Experiment:
    """What is trained and measured; the same description gives the same numbers on the same machine.

    Attributes:
        cell: "tanh" or "relu" (`VanillaRNNCell`), "lstm" or "gru" (Keras).
        gain: g of the recurrent matrices at initialisation, W_ij ~ N(0, g²/n), every gate alike.
        seed: of the weights, the order of the batches and the data.
        data: "digits" (64 pixel steps), "vowels" (masked, up to 29 steps), "adding" (100 steps), "noise" (100 steps of
            white noise, nothing to learn).
        units: n of each gate.
        epochs: passes over the training data; 0 analyses the initial network alone.
        batch_size: sequences per training step.
        learning_rate: of Adam.
        clip_norm: the norm at which the gradient of each weight is clipped in training (not in the analysis).
        probes: number of test sequences analysed.
        held_out: number of further test sequences, on which the Lyapunov exponents alone are measured: what they say of
            the decay on the probes is a forecast, for neither the training nor the decay has seen these.

    Raises:
        ValueError: an unknown cell or data set, numbers out of range, epochs on data with nothing to learn.
        TypeError: counts that are not integers.
    """

    cell: str
    gain: float = 1.0
    seed: int = 0
    data: str = "digits"
    units: int = 32
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 3e-3
    clip_norm: float = 1.0
    probes: int = 8
    held_out: int = 8

    def __post_init__(self) -> None:
        """Check every value."""
        for name, value, choices in (("cell", self.cell, CELLS), ("data", self.data, DATA)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
        for name in ("units", "batch_size", "probes", "held_out"):
            positive_integer(name, getattr(self, name))
        for name in ("gain", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive finite number, got {value!r}")
        for name in ("seed", "epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if self.data == "noise" and self.epochs:
            raise ValueError(f"white noise has nothing to learn, got epochs={self.epochs}; set epochs=0")

    @property
    def key(self) -> str:
        """A name for the result, from the content of the description alone."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.cell}-{self.data}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def load_task(experiment: Experiment) -> tasks.Task:
    """Return the data of an experiment."""
    if experiment.data == "digits":
        return tasks.digits("pixels", seed=experiment.seed)
    if experiment.data == "vowels":
        return tasks.vowels()
    if experiment.data == "adding":
        return tasks.adding(100, 2000, seed=experiment.seed)
    tested = experiment.probes + experiment.held_out
    return tasks.noise(100, 64, 4, seed=experiment.seed, test_samples=tested)


def run(experiment: Experiment) -> xr.Dataset:
    """Make the network, analyse it, train it, analyse it again.

    Training is Keras's `fit` with Adam on the (categorical) cross-entropy, or on the squared error for a regression, in
    float32; the analysis runs in float64 on the first `probes` test sequences, with the same loss for each of them.

    Args:
        experiment: what to do.

    Returns:
        The dataset of `analyze` with one more dim, stage ("initial", "trained"), the Lyapunov exponents along the next
        `held_out` test sequences over dim held_out, and the learning curve over dim epoch. A network that left the
        finite numbers, on a probe or a held-out sequence, has NaN throughout that stage, and the attribute
        ``status_<stage>`` says why.

    Raises:
        ValueError: no stage could be analysed, or there are fewer test sequences than `probes` and `held_out`.

    Example:
        >>> ds = run(Experiment("tanh", gain=0.9, data="noise", units=4, epochs=0, probes=2))
        >>> ds.sizes["stage"], ds.attrs["status_initial"]
        (1, 'ok')
    """
    task = load_task(experiment)
    network = _network(experiment, task)
    probe = slice(0, experiment.probes)
    other = slice(experiment.probes, experiment.probes + experiment.held_out)
    if other.stop > len(task.test_inputs):
        raise ValueError(
            f"probes and held_out must be at most the {len(task.test_inputs)} test sequences of {experiment.data}"
            f" together, got {experiment.probes} and {experiment.held_out}"
        )
    inputs, mask = _part(task.test_inputs, probe), _part(task.test_mask, probe)
    targets = _part(task.test_targets, probe)

    def measure() -> xr.Dataset:
        loss = None if targets is None else _probe_loss(network.readout, experiment, task, targets)
        ds = analyze(network.layer, inputs, loss, mask=mask, seed=experiment.seed)
        traj = rollout(network.layer, _part(task.test_inputs, other), mask=_part(task.test_mask, other))
        names = ("held_out_lyapunov_exponent", "held_out_lyapunov_standard_error")
        for name, values in zip(names, exponents_along(traj, step_jacobians(traj)), strict=True):
            dims, long_name, units, formula = VARIABLES[name]
            ds[name] = (dims, values, {"long_name": long_name, "units": units, "formula": formula})
        return ds

    curves: dict[str, Array] = {}
    with warnings.catch_warnings(record=True) as caught:  # they go with the numbers, not past them on the screen
        warnings.simplefilter("always", RuntimeWarning)
        found: dict[str, xr.Dataset | str] = {"initial": _attempt(measure)}
        if experiment.epochs:
            curves = _train(network.model, experiment, task)
            found["trained"] = _attempt(measure)
    ds = _stacked(found)
    for name, values in curves.items():
        ds[name] = ("epoch", values)
    if curves:
        ds = ds.assign_coords(epoch=np.arange(1, experiment.epochs + 1))
    ds.attrs |= {
        "experiment": json.dumps(dataclasses.asdict(experiment)),
        "baseline": task.baseline,
        "metric": task.metric,
        "data_source": task.source,
        "warnings": sorted({str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)}),
        "seed": experiment.seed,
    }
    return ds


def _part(values: Any, which: slice) -> Any:
    """Return some of the sequences, where there is anything to take them from."""
    return None if values is None else values[which]


@dataclass(frozen=True, eq=False)
class _Network:
    """A compiled model with its traced training step; weights and optimiser state are set anew for every run."""

    layer: Any
    readout: Any
    model: keras.Model
    optimizer_start: list[Any]

    def restart(self, experiment: Experiment) -> None:
        """Put the weights and the optimiser where the description says that they start."""
        features = self.layer.cell.kernel.shape[0]
        fresh = _initial_cell(experiment)
        fresh.build((None, features))
        self.layer.cell.set_weights(fresh.get_weights())
        kernel, bias = self.readout.get_weights()
        draw = keras.initializers.GlorotUniform(seed=_weight_seeds(experiment.seed)[2])
        self.readout.set_weights([np.asarray(draw(kernel.shape)), np.zeros_like(bias)])
        for variable, value in zip(self.model.optimizer.variables, self.optimizer_start, strict=True):
            variable.assign(value)


def _weight_seeds(seed: int) -> list[int]:
    """Return seeds of U, W and the readout: streams of their own."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(3) >> 1]


def _initial_cell(experiment: Experiment) -> Any:
    """Return a cell, not built, with the initialisers that the description asks for."""
    n, g, seed = experiment.units, experiment.gain, experiment.seed
    if experiment.cell in ("tanh", "relu"):
        return VanillaRNNCell(n, experiment.cell, recurrent_initializer="gaussian", recurrent_gain=g, seed=seed)
    kernel_seed, recurrent_seed, _ = _weight_seeds(seed)
    return {"lstm": keras.layers.LSTMCell, "gru": keras.layers.GRUCell}[experiment.cell](
        n,
        kernel_initializer=keras.initializers.GlorotUniform(seed=kernel_seed),
        recurrent_initializer=keras.initializers.RandomNormal(stddev=g / np.sqrt(n), seed=recurrent_seed),
    )


def _network(experiment: Experiment, task: tasks.Task) -> _Network:
    """Return the network of an experiment at its start."""
    network = _compiled(
        experiment.cell,
        experiment.units,
        task.inputs.shape[1:],
        task.mask is not None,
        task.num_classes,
        experiment.learning_rate,
        experiment.clip_norm,
    )
    network.restart(experiment)
    return network


@functools.lru_cache(maxsize=8)  # tracing the training step of one network takes as long as training it for 6 epochs
def _compiled(
    cell: str,
    units: int,
    shape: tuple[int, ...],
    masked: bool,
    classes: int | None,
    learning_rate: float,
    clip_norm: float,
) -> _Network:
    """Return a compiled model of one architecture, once."""
    if cell in ("tanh", "relu"):
        layer: Any = keras.layers.RNN(VanillaRNNCell(units, cell))
    else:
        layer = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[cell](units)
    readout = keras.layers.Dense(classes or 1)
    sequence, mask = keras.Input(shape), keras.Input(shape[:1], dtype="bool")
    if masked:
        model = keras.Model([sequence, mask], readout(layer(sequence, mask=mask)))
    else:
        model = keras.Model(sequence, readout(layer(sequence)))
    optimizer = keras.optimizers.Adam(learning_rate, clipnorm=clip_norm)
    loss = "mse" if classes is None else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=[] if classes is None else ["accuracy"])
    optimizer.build(model.trainable_variables)
    return _Network(layer, readout, model, [np.asarray(variable) for variable in optimizer.variables])


def _train(model: keras.Model, experiment: Experiment, task: tasks.Task) -> dict[str, Array]:
    """Train, and return the learning curves [epochs], NaN from the epoch on in which the loss left the numbers."""

    def features(inputs: Array, mask: Any) -> Any:
        x = inputs.astype(np.float32)
        return x if mask is None else [x, mask]

    keras.utils.set_random_seed(experiment.seed)  # the order of the batches
    history = model.fit(
        features(task.inputs, task.mask),
        task.targets,
        batch_size=experiment.batch_size,
        epochs=experiment.epochs,
        validation_data=(features(task.test_inputs, task.test_mask), task.test_targets),
        callbacks=[keras.callbacks.TerminateOnNaN()],
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


def _attempt(measure: Callable[[], xr.Dataset]) -> xr.Dataset | str:
    """Return the dataset, or in words why there is none: a network that exploded is a result, not a crash."""
    try:
        return measure()
    except ValueError as error:
        return str(error)


def _stacked(found: dict[str, xr.Dataset | str]) -> xr.Dataset:
    """Return the stages side by side; one that could not be analysed is NaN throughout."""
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

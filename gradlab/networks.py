"""Networks made from a description: initialisers, the compiled model, and where weights and optimiser start."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradlab.cells import VanillaRNNCell
from gradlab.experiment import SIMPLE, Experiment
from gradlab.gated_initializers import BlockInitializer, gate_bias
from gradlab.penalties import Flossing, NormPreservation, RegularizedModel
from gradlab.predictions.memory import chrono_biases
from gradlab.tasks import Task

GATED = {"lstm": (keras.layers.LSTMCell, keras.layers.LSTM), "gru": (keras.layers.GRUCell, keras.layers.GRU)}


@dataclass(frozen=True, eq=False)
class Network:
    """A compiled model with its traced training step; weights and optimiser state are set anew for every run.

    Attributes:
        layer: the recurrent layer.
        readout: the dense layer on its last output, or on each.
        model: both, compiled; a `RegularizedModel` where there is a penalty.
        optimizer_start: the optimiser's variables before the first step.
    """

    layer: Any
    readout: Any
    model: keras.Model
    optimizer_start: list[Any]

    def restart(self, experiment: Experiment, steps: int) -> None:
        """Put the weights and the optimiser where the description says that they start; `steps` is T."""
        features = self.layer.cell.kernel.shape[0]
        fresh = _initial_cell(experiment)
        fresh.build((None, features))
        weights = fresh.get_weights()
        if experiment.forget_bias is not None:
            weights[-1] = start_bias(experiment, steps, weights[-1].shape)
        self.layer.cell.set_weights(weights)
        kernel, bias = self.readout.get_weights()
        draw = keras.initializers.GlorotUniform(seed=_weight_seeds(experiment.seed)[2])
        self.readout.set_weights([np.asarray(draw(kernel.shape)), np.zeros_like(bias)])
        for variable, value in zip(self.model.optimizer.variables, self.optimizer_start, strict=True):
            variable.assign(value)
        self.model.optimizer.learning_rate = experiment.learning_rate  # a variable: no new trace for another value


class _Traced(NamedTuple):
    """What enters the traced graph of a training step: the key under which a compiled model is kept."""

    cell: str
    units: int
    leak: float | None
    residual: float | None
    shape: tuple[int, ...]
    masked: bool
    classes: int | None
    each_step: bool
    tolerance: float | None
    optimizer: str
    momentum: float
    clip_norm: float | None
    clip_value: float | None
    global_clip_norm: float | None
    omega: float | None
    flossing: float | None
    flossing_exponents: int


def network(experiment: Experiment, task: Task) -> Network:
    """Return the network of an experiment at its start; what enters the traced graph is all in `_Traced`."""
    made = _compiled(_traced(experiment, task))
    made.restart(experiment, task.inputs.shape[1])
    return made


def copy_of(made: Network, experiment: Experiment, task: Task) -> Network:
    """Return the network of an experiment as it is now, an object that no later experiment uses."""
    copy = _assembled(_traced(experiment, task))
    copy.model.set_weights(made.model.get_weights())
    return copy


def _traced(experiment: Experiment, task: Task) -> _Traced:
    """Return what enters the traced graph of an experiment's training step."""
    of_task: dict[str, Any] = {
        "shape": task.inputs.shape[1:],
        "masked": task.mask is not None,
        "classes": task.num_classes,
        "each_step": answers_each_step(task),
        "tolerance": task.tolerance if task.num_classes is None else None,  # NaN, no key: it is not equal to itself
    }
    given: dict[str, Any] = {name: getattr(experiment, name) for name in _Traced._fields if name not in of_task}
    return _Traced(**of_task, **given)


def answers_each_step(task: Task) -> bool:
    """Return whether a task asks for a label at every step, and not for one answer at the end."""
    return task.num_classes is not None and task.targets is not None and task.targets.ndim == 2


def start_bias(experiment: Experiment, steps: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the bias of a gated cell with the forget bias that is asked for.

    Args:
        experiment: of a gated cell, with a forget bias.
        steps: T of the task, the longest dependency that chrono initialisation asks for.
        shape: of the bias.
    """
    forget: Any = experiment.forget_bias
    input_gate: Any = 0.0
    if forget == "chrono":
        stream = np.random.SeedSequence(experiment.seed).spawn(1)[0]
        forget, input_gate = chrono_biases(experiment.units, steps, seed=stream)
    return gate_bias(experiment.cell, shape, forget, input_gate).astype(np.float32)


def _weight_seeds(seed: int) -> list[int]:
    """Return seeds of U, W and the readout: streams of their own."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(3) >> 1]


def _initial_cell(experiment: Experiment) -> Any:
    """Return a cell, not built, with the initialisers that the description asks for."""
    n, g, seed = experiment.units, experiment.gain, experiment.seed
    if experiment.cell in SIMPLE:
        # the leak, or what is residual, changes no weight
        return VanillaRNNCell(
            n, experiment.cell, recurrent_initializer=experiment.initializer, recurrent_gain=g, seed=seed
        )
    kernel_seed, recurrent_seed, _ = _weight_seeds(seed)
    if experiment.initializer == "gaussian":
        recurrent: Any = keras.initializers.RandomNormal(stddev=g / np.sqrt(n), seed=recurrent_seed)
    else:
        recurrent = BlockInitializer(experiment.initializer, g, recurrent_seed)
    return GATED[experiment.cell][0](
        n,
        kernel_initializer=keras.initializers.GlorotUniform(seed=kernel_seed),
        recurrent_initializer=recurrent,
    )


def _assembled(traced: _Traced) -> Network:
    """Return a compiled model of one architecture."""
    options = {"name": "recurrent", "return_sequences": traced.each_step}  # names that do not count how many there were
    if traced.cell in SIMPLE:
        cell = VanillaRNNCell(
            traced.units, traced.cell, leak=traced.leak, residual=traced.residual, name=f"{traced.cell}_cell"
        )
        layer: Any = keras.layers.RNN(cell, **options)
    else:
        layer = GATED[traced.cell][1](traced.units, **options)
    readout = keras.layers.Dense(traced.classes or 1, name="readout")
    sequence, mask = keras.Input(traced.shape), keras.Input(traced.shape[:1], dtype="bool")
    if traced.masked:
        model = keras.Model([sequence, mask], readout(layer(sequence, mask=mask)))
    else:
        model = keras.Model(sequence, readout(layer(sequence)))
    penalties: list[Any] = [] if traced.omega is None else [NormPreservation(traced.omega)]
    if traced.flossing is not None:
        penalties.append(Flossing(traced.flossing, traced.flossing_exponents))
    if penalties:
        model = RegularizedModel(model, penalties)
    clipping = {
        "clipnorm": traced.clip_norm,
        "clipvalue": traced.clip_value,
        "global_clipnorm": traced.global_clip_norm,
    }
    made = {
        "adam": keras.optimizers.Adam,
        "sgd": functools.partial(keras.optimizers.SGD, momentum=traced.momentum),
        "rmsprop": keras.optimizers.RMSprop,
    }[traced.optimizer](**clipping)
    regression = traced.classes is None
    loss = "mse" if regression else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics: list[Any] = [] if regression else ["accuracy"]
    if regression or traced.each_step:  # else it is the accuracy
        metrics.append(keras.metrics.MeanMetricWrapper(functools.partial(_right, traced.tolerance), name="success"))
    model.compile(made, loss, metrics=metrics)
    made.build(model.trainable_variables)
    return Network(layer, readout, model, [np.asarray(variable) for variable in made.variables])


# once: tracing the training step of one network takes as long as training it for 6 epochs
_compiled = functools.lru_cache(maxsize=16)(_assembled)


def _right(tolerance: float | None, targets: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Return which sequences are answered right [B], 1 or 0, as `Task.success_rate` counts them."""
    if tolerance is not None:
        right = tf.square(outputs[:, 0] - tf.cast(targets[:, 0], outputs.dtype)) <= tolerance
    else:
        right = tf.reduce_all(tf.argmax(outputs, axis=-1) == tf.cast(targets, tf.int64), axis=-1)
    return tf.cast(right, tf.float32)

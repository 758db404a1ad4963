"""Networks made from a description: initialisers, the compiled model, and where weights and optimiser start."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradlab.cells import RecurrentInitializer, VanillaRNNCell
from gradlab.experiment import Experiment
from gradlab.tasks import Task

SIMPLE = ("tanh", "relu")
GATED = {"lstm": (keras.layers.LSTMCell, keras.layers.LSTM), "gru": (keras.layers.GRUCell, keras.layers.GRU)}


@dataclass(frozen=True, eq=False)
class Network:
    """A compiled model with its traced training step; weights and optimiser state are set anew for every run.

    Attributes:
        layer: the recurrent layer.
        readout: the dense layer on its last output.
        model: both, compiled.
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
            weights[-1] = gate_bias(experiment, steps, weights[-1].shape)
        self.layer.cell.set_weights(weights)
        kernel, bias = self.readout.get_weights()
        draw = keras.initializers.GlorotUniform(seed=_weight_seeds(experiment.seed)[2])
        self.readout.set_weights([np.asarray(draw(kernel.shape)), np.zeros_like(bias)])
        for variable, value in zip(self.model.optimizer.variables, self.optimizer_start, strict=True):
            variable.assign(value)
        self.model.optimizer.learning_rate = experiment.learning_rate  # a variable: no new trace for another value


def network(experiment: Experiment, task: Task) -> Network:
    """Return the network of an experiment at its start.

    What enters the traced graph is the key under which the compiled model is kept, and all that is in that key. A
    regulariser of the training loss belongs there too, as a field of `Experiment` and an argument of `_compiled`.
    """
    made = _compiled(
        experiment.cell,
        experiment.units,
        task.inputs.shape[1:],
        task.mask is not None,
        task.num_classes,
        experiment.optimizer,
        experiment.momentum,
        experiment.clip_norm,
        experiment.clip_value,
        experiment.global_clip_norm,
    )
    made.restart(experiment, task.inputs.shape[1])
    return made


def gate_bias(experiment: Experiment, steps: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the bias of a gated cell with the forget bias that is asked for, as Keras lays it out.

    An LSTM has its gates in the order i, f, c, o [4n]; a GRU z, r, h [2, 3n], of which z keeps the state, and the first
    row goes with the inputs.

    Args:
        experiment: of a gated cell, with a forget bias.
        steps: T of the task, the longest dependency that chrono initialisation asks for.
        shape: of the bias.
    """
    n, bias = experiment.units, np.zeros(shape, np.float32)
    if experiment.forget_bias == "chrono":
        draw = np.random.default_rng(np.random.SeedSequence(experiment.seed).spawn(1)[0])
        forget: Any = np.log(draw.uniform(1.0, steps - 1.0, n))
    else:
        forget = np.full(n, experiment.forget_bias)
    if experiment.cell == "gru":
        bias[0, :n] = forget
    else:
        bias[n : 2 * n] = forget
        if experiment.forget_bias == "chrono":
            bias[:n] = -forget
    return bias


def _weight_seeds(seed: int) -> list[int]:
    """Return seeds of U, W and the readout: streams of their own."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(3) >> 1]


def _initial_cell(experiment: Experiment) -> Any:
    """Return a cell, not built, with the initialisers that the description asks for."""
    n, g, seed = experiment.units, experiment.gain, experiment.seed
    if experiment.cell in SIMPLE:
        return VanillaRNNCell(
            n, experiment.cell, recurrent_initializer=experiment.initializer, recurrent_gain=g, seed=seed
        )
    kernel_seed, recurrent_seed, _ = _weight_seeds(seed)
    if experiment.initializer == "gaussian":
        recurrent: Any = keras.initializers.RandomNormal(stddev=g / np.sqrt(n), seed=recurrent_seed)
    else:
        recurrent = _gate_by_gate(experiment.initializer, g, recurrent_seed)
    return GATED[experiment.cell][0](
        n,
        kernel_initializer=keras.initializers.GlorotUniform(seed=kernel_seed),
        recurrent_initializer=recurrent,
    )


def _gate_by_gate(name: str, gain: float, seed: int) -> Callable[..., tf.Tensor]:
    """Return an initialiser of [n, gates·n]: Keras's own would make the rows orthonormal, not each gate's matrix."""

    def draw(shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        n, gates = int(shape[0]), int(shape[1]) // int(shape[0])
        seeds = np.random.SeedSequence(seed).generate_state(gates) >> 1
        blocks = [RecurrentInitializer(name, gain, seed=int(one))((n, n), dtype) for one in seeds]
        return tf.concat(blocks, axis=1)

    return draw


@functools.lru_cache(maxsize=8)  # tracing the training step of one network takes as long as training it for 6 epochs
def _compiled(
    cell: str,
    units: int,
    shape: tuple[int, ...],
    masked: bool,
    classes: int | None,
    optimizer: str,
    momentum: float,
    clip_norm: float | None,
    clip_value: float | None,
    global_clip_norm: float | None,
) -> Network:
    """Return a compiled model of one architecture, once."""
    if cell in SIMPLE:
        layer: Any = keras.layers.RNN(VanillaRNNCell(units, cell))
    else:
        layer = GATED[cell][1](units)
    readout = keras.layers.Dense(classes or 1)
    sequence, mask = keras.Input(shape), keras.Input(shape[:1], dtype="bool")
    if masked:
        model = keras.Model([sequence, mask], readout(layer(sequence, mask=mask)))
    else:
        model = keras.Model(sequence, readout(layer(sequence)))
    clipping = {"clipnorm": clip_norm, "clipvalue": clip_value, "global_clipnorm": global_clip_norm}
    made = {
        "adam": keras.optimizers.Adam,
        "sgd": functools.partial(keras.optimizers.SGD, momentum=momentum),
        "rmsprop": keras.optimizers.RMSprop,
    }[optimizer](**clipping)
    loss = "mse" if classes is None else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(made, loss, metrics=[] if classes is None else ["accuracy"])
    made.build(model.trainable_variables)
    return Network(layer, readout, model, [np.asarray(variable) for variable in made.variables])

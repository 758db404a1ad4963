"""Initial weights of gated layers that Keras lacks: biases that remember, and a gain for the matrix of each gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gradlab.cells import RecurrentInitializer
from gradlab.predictions.memory import chrono_biases
from gradlab.validation import Array


@keras.saving.register_keras_serializable(package="gradlab")
class ChronoInitializer(keras.initializers.Initializer):
    """Biases with which gates remember for times spread up to a wanted one.

    LSTM: b_f = ln U[1, T_max − 1], b_i = −b_f, else 0, in Keras's order i, f, c, o. GRU: b_z = ln U[1, T_max − 1] (in
    Keras z is what is kept), else 0; of its two biases the one beside the inputs. A unit then forgets over 1 + e^b
    steps. It makes the whole bias: an LSTM needs ``unit_forget_bias=False``, or Keras fills the forget gate with 1 and
    asks for the rest in two pieces.

    Args:
        longest: T_max, the longest dependency in steps, more than 2.
        cell: "lstm" or "gru".
        seed: an integer.

    Raises:
        ValueError: an unknown cell, or a number out of range.

    Source:
        Tallec & Ollivier 2018.

    Example:
        >>> layer = keras.layers.LSTM(8, bias_initializer=ChronoInitializer(100), unit_forget_bias=False)
        >>> layer.build((None, None, 2))
        >>> i, f, c, o = np.split(np.asarray(layer.cell.bias), 4)
        >>> bool((i == -f).all()), bool((c == 0).all())
        (True, True)
    """

    def __init__(self, longest: float, cell: str = "lstm", seed: int = 0) -> None:
        if cell not in ("lstm", "gru"):
            raise ValueError(f'cell must be "lstm" or "gru", got {cell!r}')
        chrono_biases(1, longest, seed=seed)  # says what is wrong with them
        self.longest, self.cell, self.seed = longest, cell, seed
        self._last: tuple[int, ...] | None = None  # the shape asked for before

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        """Return the bias, [4n] of an LSTM, [3n] or [2, 3n] of a GRU."""
        blocks = 4 if self.cell == "lstm" else 3
        expected = 1 if self.cell == "lstm" else (1, 2)
        wrong = len(shape) != 1 if expected == 1 else len(shape) not in (1, 2)
        if wrong or shape[-1] % blocks:
            hint = "; give the layer unit_forget_bias=False" if self.cell == "lstm" else ""
            hint = '; say cell="gru" for a GRU' if self.cell == "lstm" and len(shape) == 2 else hint
            raise ValueError(f"the bias of a {self.cell} has {blocks}n entries, got shape {tuple(shape)}{hint}")
        last, self._last = self._last, tuple(shape)
        if self.cell == "lstm" and last is not None and shape[0] == 2 * last[0]:
            raise ValueError(
                f"biases of {last[0]} and then {shape[0]} entries are asked for, as by Keras where it fills the forget"
                " gate itself; give the layer unit_forget_bias=False, and every layer an initializer of its own"
            )
        drawn = chrono_biases(shape[-1] // blocks, self.longest, seed=self.seed)
        bias = gate_bias(self.cell, tuple(shape), drawn.forget, drawn.input)
        return tf.convert_to_tensor(bias, dtype=tf.as_dtype(dtype or keras.config.floatx()))

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make it again."""
        return {"longest": self.longest, "cell": self.cell, "seed": self.seed}


def gate_bias(cell: str, shape: tuple[int, ...], forget: Any, input_gate: Any = 0.0) -> Array:
    """Return the bias of an LSTM or a GRU that is zero but for the gates that keep the state, as Keras lays it out.

    An LSTM has its gates in the order i, f, c, o [4n]; a GRU z, r, h, [3n] or [2, 3n], of which z keeps the state, and
    the first row goes with the inputs.

    Args:
        cell: "lstm" or "gru".
        shape: of the bias.
        forget: of the forget gate (LSTM) or the update gate (GRU), a number or [n].
        input_gate: of the input gate, which a GRU has not.

    Example:
        >>> gate_bias("lstm", (8,), 1.0)
        array([0., 0., 1., 1., 0., 0., 0., 0.])
    """
    bias: Array = np.zeros(shape)
    first = bias[0] if bias.ndim == 2 else bias
    n = shape[-1] // (4 if cell == "lstm" else 3)
    if cell == "lstm":
        first[:n], first[n : 2 * n] = input_gate, forget
    else:
        first[:n] = forget
    return bias


@keras.saving.register_keras_serializable(package="gradlab")
class BlockInitializer(keras.initializers.Initializer):
    """The recurrent kernel of a simple or gated layer, every gate's matrix of a size of its own.

    Keras draws the kernels [n, m·n] of gates as one matrix: "orthogonal" then gives none of the m matrices orthogonal
    columns, and there is no gain. Here each is drawn by itself, by a name and a gain that
    `gradlab.cells.RecurrentInitializer` knows: for "orthogonal", "glorot", "gaussian", "identity" g sets all singular
    values, or the variance g²/n.

    Args:
        kind: "orthogonal", "glorot" (or "xavier"), "gaussian", "identity".
        gain: g, one for all gates or one for each, in Keras's order (LSTM i, f, c, o; GRU z, r, h).
        seed: an integer.

    Raises:
        ValueError: an unknown name, a gain that is not positive and finite; when called, a shape that is not [n, m·n]
            or another number of gates.

    Source:
        Saxe, McClelland & Ganguli 2014 (orthogonal); Le, Jaitly & Hinton 2015 (identity).

    Example:
        >>> W = np.asarray(BlockInitializer("orthogonal", gain=[1.0, 1.0, 0.5], seed=0)((4, 12)))
        >>> [round(float(np.linalg.norm(block, 2)), 6) for block in np.split(W, 3, axis=1)]
        [1.0, 1.0, 0.5]
    """

    def __init__(self, kind: str = "orthogonal", gain: float | Sequence[float] = 1.0, seed: int = 0) -> None:
        gains = [float(gain)] if isinstance(gain, int | float) else [float(one) for one in gain]
        if not gains:
            raise ValueError("gain must be one number or one for each gate, got none")
        for one in gains:
            RecurrentInitializer(kind, one)  # says what is wrong with them
        self.kind, self.gain, self.seed = kind, gains[0] if isinstance(gain, int | float) else gains, int(seed)

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> tf.Tensor:
        """Return the kernel [n, m·n]."""
        if len(shape) != 2 or shape[0] < 1 or shape[1] % shape[0]:
            raise ValueError(f"a recurrent kernel is [n, m·n] for m gates, got shape {tuple(shape)}")
        blocks = shape[1] // shape[0]
        gains = self.gain if isinstance(self.gain, list) else [self.gain] * blocks
        if len(gains) != blocks:
            raise ValueError(f"gain must be one number or one for each of the {blocks} gates, got {len(gains)}")
        seeds = (int(one) for one in np.random.SeedSequence(self.seed).generate_state(blocks) >> 1)
        parts = [
            RecurrentInitializer(self.kind, g, seed=s)((shape[0], shape[0]), dtype)
            for g, s in zip(gains, seeds, strict=True)
        ]
        return tf.concat(parts, axis=1)

    def get_config(self) -> dict[str, Any]:
        """Return what is needed to make it again."""
        return {"kind": self.kind, "gain": self.gain, "seed": self.seed}

"""Memory of gated units: how many steps a forget bias is worth, and biases for a wanted memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gradlab.validation import Array, finite, positive_integer, real_array


class GateMemory(NamedTuple):
    """Memory of a unit with a constant forget gate f = 1/(1 + e^{−b}), in steps, of the shape of b.

    Attributes:
        leak: 1/(1 − f) = 1 + e^b, the sum of the weights f^k of the past.
        decay: −1/ln f, the lag at which f^k has fallen by e.
    """

    leak: Array
    decay: Array


class ChronoBiases(NamedTuple):
    """Initial biases of the forget and input gates of an LSTM, one for each unit."""

    forget: Array
    input: Array


def gate_memory(bias: ArrayLike) -> GateMemory:
    """Return the memory that a forget-gate bias gives, while inputs and recurrent terms average to nothing.

    f = 1/(1 + e^{−b}): 1/(1 − f) = 1 + e^b, and −1/ln f. For a long memory the two differ by ½ step; a fluctuating
    gate forgets faster than its mean says, since E ln f ≤ ln E f.

    Args:
        bias: b of any shape.

    Returns:
        A `GateMemory` in steps; ∞ where e^b overflows.

    Raises:
        ValueError: a bias that is not finite.
        TypeError: a bias that is not real.

    Source:
        Tallec & Ollivier 2018.

    Example:
        >>> memory = gate_memory(1.0)
        >>> round(float(memory.leak), 12), round(float(memory.decay), 12)
        (3.718281828459, 3.19221928453)
    """
    b = finite("bias", real_array("bias", bias))
    with np.errstate(over="ignore", divide="ignore"):
        return GateMemory(1 + np.exp(b), 1 / np.logaddexp(0, -b))


def chrono_biases(units: int, longest: float, *, seed: int | np.random.SeedSequence) -> ChronoBiases:
    """Return gate biases under which the units' memories are spread over the dependencies to be learnt.

    b_f = ln u with u ~ U[1, T_max − 1], and b_i = −b_f: memories 1 + e^{b_f} are uniform on [2, T_max], and each unit's
    input gate is open as much as its forget gate is closed.

    Args:
        units: how many.
        longest: T_max > 2, the longest dependency, in steps.
        seed: of the draw.

    Returns:
        (forget, input), each [units].

    Raises:
        ValueError: units < 1, or T_max ≤ 2 or not finite.
        TypeError: units is not an integer, or T_max not a real number.

    Source:
        Tallec & Ollivier 2018.

    Example:
        >>> biases = chrono_biases(1000, 100.0, seed=0)
        >>> memory = gate_memory(biases.forget).leak
        >>> bool(memory.min() >= 2 and memory.max() <= 100), bool((biases.input == -biases.forget).all())
        (True, True)
    """
    T_max = finite("longest", real_array("longest", longest))
    if T_max.ndim != 0 or T_max <= 2:
        raise ValueError(f"longest must be a single number of steps above 2, got {longest!r}")
    u = np.random.default_rng(seed).uniform(1, float(T_max) - 1, positive_integer("units", units))
    return ChronoBiases(np.log(u), -np.log(u))

"""Latching: the task on which Bengio, Simard & Frasconi 1994 showed why long dependencies are hard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradlab.tasks.task import Task, split_sizes, streams
from gradlab.validation import Array, positive_integer


def latching(
    length: int,
    samples: int,
    seed: int = 0,
    *,
    informative: int = 3,
    level: float = 1.0,
    noise: float = 0.2,
    test_samples: int | None = None,
) -> Task:
    """Two classes of sequences: the first few inputs say which, the rest is noise to be withstood.

    x_t = ±level + ε_t for t ≤ L, the sign being that of the class, and x_t = ε_t after that, ε_t ~ N(0, s²). The class
    is asked for at the end. (In the paper the first inputs are themselves learnt; here they are given.)

    Args:
        length: T, steps.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        informative: L, how many inputs carry the class.
        level: their mean.
        noise: s, the standard deviation of the noise.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, T, 1] and targets [N], 0 or 1; the baseline is chance, 1/2.

    Raises:
        TypeError: an argument is not of its kind.
        ValueError: an argument is out of range, or L > T.

    Source:
        Bengio, Simard & Frasconi 1994 (L = 3, s = 0.2).

    Examples:
        >>> task = latching(50, 10, noise=1e-9)
        >>> bool(((task.inputs[:, 0, 0] > 0) == task.targets).all()), round(task.baseline, 1)
        (True, 0.5)
    """
    T, L = positive_integer("length", length), positive_integer("informative", informative)
    if L > T:
        raise ValueError(f"informative must be at most the length {T}, got {L}")
    for name, value in (("level", level), ("noise", noise)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")

    def draw(generator: np.random.Generator, count: int) -> tuple[Array, NDArray[np.int64]]:
        targets = generator.integers(0, 2, count)
        inputs = noise * generator.standard_normal((count, T, 1))
        inputs[:, :L, 0] += level * (2 * targets - 1)[:, None]
        return inputs, targets

    train, test = streams(seed)
    count, test_count = split_sizes(samples, test_samples)
    inputs, targets = draw(train, count)
    test_inputs, test_targets = draw(test, test_count)
    return Task(
        name=f"latching-{T}",
        inputs=inputs,
        targets=targets,
        mask=None,
        num_classes=2,
        test_inputs=test_inputs,
        test_targets=test_targets,
        test_mask=None,
        metric="accuracy",
        baseline=0.5,
        description=f"The sign of the first {L} of {T} inputs, to be kept through noise.",
        source="Bengio, Simard & Frasconi 1994",
        success=0.99,
    )

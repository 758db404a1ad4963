"""The adding and the copy task in the form of Arjovsky, Shah & Bengio 2016."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlab.tasks.task import Task, split_sizes, streams
from gradlab.validation import Array, positive_integer


def adding(length: int, samples: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """The adding task: recall two marked numbers, one from each half of the sequence, and give their sum.

    Channel 0 is uniform on [0, 1); channel 1 is 1 at one step of the first ⌊T/2⌋ and one of the rest, else 0.
    Always answering 1 has a mean squared error of 2·Var U = 1/6, the baseline. A sequence counts as right within a
    squared error of 0.04, as in Hochreiter & Schmidhuber 1997, and the task as solved from 99 % of them on.

    Args:
        length: T, at least 2 steps.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, T, 2] and targets [N, 1].

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Arjovsky, Shah & Bengio 2016, after Hochreiter & Schmidhuber 1997.

    Examples:
        >>> task = adding(length=50, samples=1000)
        >>> task.inputs.shape, task.targets.shape, round(task.baseline, 4)
        ((1000, 50, 2), (1000, 1), 0.1667)
    """
    length = positive_integer("length", length)
    if length < 2:
        raise ValueError(f"length must be at least 2, one step for each half, got {length}; lengthen it")
    half = length // 2

    def draw(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        inputs = np.zeros((count, length, 2))
        inputs[:, :, 0] = generator.random((count, length))
        row = np.arange(count)
        first, second = generator.integers(0, half, count), generator.integers(half, length, count)
        inputs[row, first, 1] = inputs[row, second, 1] = 1.0
        return inputs, (inputs[row, first, 0] + inputs[row, second, 0])[:, None]

    train, test = streams(seed)
    count, test_count = split_sizes(samples, test_samples)
    inputs, targets = draw(train, count)
    test_inputs, test_targets = draw(test, test_count)
    return Task(
        name=f"adding-{length}",
        inputs=inputs,
        targets=targets,
        mask=None,
        num_classes=None,
        test_inputs=test_inputs,
        test_targets=test_targets,
        test_mask=None,
        metric="mean squared error",
        baseline=1 / 6,
        description=f"{length} numbers in [0, 1), two of them marked; give the sum of the two at the end.",
        source="Arjovsky, Shah & Bengio 2016",
        tolerance=0.04,
        success=0.99,
    )


def copy(delay: int, samples: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """The copy task: keep ten symbols over a delay and give them back in order.

    Ten symbols drawn from eight, T − 1 blanks, a delimiter, ten blanks: T + 20 steps of ten one-hot channels (8 is the
    blank, 9 the delimiter). The answer is blank for T + 10 steps, then the ten symbols. One without memory, which knows
    only when to answer, has a cross-entropy of 10 ln 8/(T + 20), the baseline.

    Args:
        delay: T, at least 1.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, T + 20, 10] and targets [N, T + 20], labels 0 … 8.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Arjovsky, Shah & Bengio 2016, after Hochreiter & Schmidhuber 1997.

    Examples:
        >>> task = copy(100, 50)
        >>> task.inputs.shape, task.targets.shape, f"{task.baseline:.12f}"
        ((50, 120, 10), (50, 120), '0.173286795140')
    """
    T = positive_integer("delay", delay)

    def draw(generator: np.random.Generator, count: int) -> tuple[Array, NDArray[np.int64]]:
        symbols = np.full((count, T + 20), 8)
        symbols[:, :10] = generator.integers(0, 8, (count, 10))
        symbols[:, 10 + T - 1] = 9
        targets = np.full((count, T + 20), 8)
        targets[:, -10:] = symbols[:, :10]
        return np.eye(10)[symbols], targets

    train, test = streams(seed)
    count, test_count = split_sizes(samples, test_samples)
    inputs, targets = draw(train, count)
    test_inputs, test_targets = draw(test, test_count)
    return Task(
        name=f"copy-{T}",
        inputs=inputs,
        targets=targets,
        mask=None,
        num_classes=9,
        test_inputs=test_inputs,
        test_targets=test_targets,
        test_mask=None,
        metric="cross-entropy",
        baseline=10 * math.log(8) / (T + 20),
        description=f"Ten symbols, {T} steps of waiting; give the ten back in order.",
        source="Arjovsky, Shah & Bengio 2016",
        success=0.99,
    )

"""The pathological tasks of Pascanu, Mikolov & Bengio 2013, as their published code draws them.

Their networks had 50 units and were trained by stochastic gradient descent with a rate of 0.01 on batches of 20 fresh
sequences (`gradlab.tasks.stream`), clipped by norm at 1, with a weight of 4 on Ω (2 in their code), at lengths from 50
to 200. A run was a success when at most 1 % of sequences were answered wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.tasks.task import Task, split_sizes, streams
from gradlab.validation import Array, positive_integer

_SOURCE = "Pascanu, Mikolov & Bengio 2013"
Draw = Callable[[np.random.Generator, int, int], tuple[Array, NDArray[Any]]]  # (generator, sequences, length)


def addition(
    length: int, samples: int, seed: int = 0, *, test_samples: int | None = None, one_length: bool = False
) -> Task:
    """Addition: the mean of two marked numbers of a sequence, both in its first half.

    The length is l = L + randint(⌊0.1L⌋). Channel 0 marks two steps, p_0 = randint(⌊0.1l⌋) and p_1 = ⌊0.1l⌋ +
    randint(⌊0.4l⌋); channel 1 is u ~ U[0, 1). The answer is (u_{p_0} + u_{p_1})/2, right within a squared error of
    0.04. Always answering ½ has a mean squared error of 1/24, the baseline.

    Args:
        length: L, at least 10.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.
        one_length: give all sequences of a split the same length, as the authors do within a batch; no mask then.

    Returns:
        Task with inputs [N, l_max, 2], a mask where lengths differ, and targets [N, 1].

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Pascanu, Mikolov & Bengio 2013, after Hochreiter & Schmidhuber 1997.

    Examples:
        >>> task = addition(50, 1000)
        >>> task.inputs.shape, int(task.mask.sum(axis=1).min()), round(task.baseline, 6)
        ((1000, 54, 2), 50, 0.041667)
    """

    def answer(first: Array, second: Array) -> Array:
        return (first + second) / 2

    return _marked("addition", length, samples, seed, test_samples, one_length, answer, 1 / 24, "mean")


def multiplication(
    length: int, samples: int, seed: int = 0, *, test_samples: int | None = None, one_length: bool = False
) -> Task:
    """Multiplication: the product of two marked numbers; else as `addition`.

    Always answering ¼ has a mean squared error of Var(u v) = 1/9 − 1/16 = 7/144, the baseline.

    Args:
        length: L, at least 10.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.
        one_length: give all sequences of a split the same length, as the authors do within a batch; no mask then.

    Returns:
        Task with inputs [N, l_max, 2], a mask where lengths differ, and targets [N, 1].

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Pascanu, Mikolov & Bengio 2013, after Hochreiter & Schmidhuber 1997.

    Examples:
        >>> task = multiplication(50, 1000, one_length=True)
        >>> task.mask is None, round(task.baseline, 6)
        (True, 0.048611)
    """

    def answer(first: Array, second: Array) -> Array:
        return first * second

    return _marked("multiplication", length, samples, seed, test_samples, one_length, answer, 7 / 144, "product")


def temporal_order(length: int, samples: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """Temporal order: which two symbols came at two places far apart, and in which order?

    Six one-hot symbols. A step in [0.1L, 0.2L) and one in [0.5L, 0.6L) hold one of two symbols, v_0 and v_1; everywhere
    else is one of four distractors. The answer at the end is the class v_0 + 2v_1 of four.

    Args:
        length: L, at least 10.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, L, 6] and targets [N], 0 … 3; the baseline is chance, 1/4.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Pascanu, Mikolov & Bengio 2013, after Hochreiter & Schmidhuber 1997.

    Examples:
        >>> task = temporal_order(100, 50)
        >>> task.inputs.shape, task.num_classes, task.baseline
        ((50, 100, 6), 4, 0.25)
    """
    return _ordered("temporal-order", length, samples, seed, test_samples, (0.1, 0.5))


def temporal_order_3bit(length: int, samples: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """Temporal order with three symbols, in [0.1L, 0.2L), [0.3L, 0.4L) and [0.6L, 0.7L), and eight classes.

    Else as `temporal_order`; the class is v_0 + 2v_1 + 4v_2.

    Args:
        length: L, at least 10.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, L, 6] and targets [N], 0 … 7; the baseline is chance, 1/8.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Pascanu, Mikolov & Bengio 2013, after Hochreiter & Schmidhuber 1997.

    Examples:
        >>> temporal_order_3bit(100, 50).num_classes
        8
    """
    return _ordered("temporal-order-3bit", length, samples, seed, test_samples, (0.1, 0.3, 0.6))


def memorization(length: int, samples: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """Noiseless memorisation: ten symbols out of five, L blanks, a cue, and the ten are to be given back.

    L + 20 steps of seven one-hot channels (5 is the blank, 6 the cue, at step L + 10 counted from 0). The answer is
    blank (5) until the last ten steps, which are the symbols in order. One without memory, which knows only when to
    answer, has a cross-entropy of 10 ln 5/(L + 20), the baseline.

    Args:
        length: L, the number of blanks.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, L + 20, 7] and targets [N, L + 20], labels 0 … 5.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Pascanu, Mikolov & Bengio 2013, noiseless memorisation.

    Examples:
        >>> task = memorization(5, 1)
        >>> task.inputs[0].argmax(axis=1)[10:]
        array([5, 5, 5, 5, 5, 6, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    """
    blanks = positive_integer("length", length)

    def draw(generator: np.random.Generator, count: int, T: int) -> tuple[Array, NDArray[Any]]:
        symbols = np.full((count, T), 5)
        symbols[:, :10] = generator.integers(0, 5, (count, 10))
        symbols[:, T - 10] = 6
        targets = np.full((count, T), 5)
        targets[:, -10:] = symbols[:, :10]
        return np.eye(7)[symbols], targets

    return _task(
        f"memorization-{blanks}",
        draw,
        blanks + 20,
        (samples, test_samples, seed),
        num_classes=6,
        metric="cross-entropy",
        baseline=10 * math.log(5) / (blanks + 20),
        description=f"Ten symbols, {blanks} blanks, a cue; give the ten back in order.",
    )


def random_permutation(length: int, samples: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """Random permutation: the first symbol is 0 or 1, the others are any of 98 more; give the first at the end.

    Args:
        length: L, at least 2.
        samples: N, training sequences.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, L, 100] and targets [N], 0 or 1 of 100 classes; the baseline is an accuracy of 1/2.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Source:
        Pascanu, Mikolov & Bengio 2013, after Hochreiter & Schmidhuber 1997.

    Examples:
        >>> task = random_permutation(50, 20)
        >>> task.inputs.shape, bool((task.inputs[:, 0].argmax(axis=1) == task.targets).all())
        ((20, 50, 100), True)
    """
    T = _long_enough(length, 2)

    def draw(generator: np.random.Generator, count: int, T: int) -> tuple[Array, NDArray[Any]]:
        symbols = generator.integers(2, 100, (count, T))
        symbols[:, 0] = generator.integers(0, 2, count)
        return np.eye(100)[symbols], symbols[:, 0].copy()

    return _task(
        f"random-permutation-{T}",
        draw,
        T,
        (samples, test_samples, seed),
        num_classes=100,
        metric="accuracy",
        baseline=0.5,
        description=f"One of two symbols, then {T - 1} of 98 others; give the first.",
    )


def _marked(
    kind: str,
    length: int,
    samples: int,
    seed: int,
    test_samples: int | None,
    one_length: bool,
    answer: Callable[[Array, Array], Array],
    baseline: float,
    word: str,
) -> Task:
    """Return the task of two marked numbers."""
    L = _long_enough(length, 10)

    def draw(generator: np.random.Generator, count: int, T: int) -> tuple[Array, NDArray[Any]]:
        tenth, row = T // 10, np.arange(count)
        first = generator.integers(0, tenth, count)
        second = tenth + generator.integers(0, int(0.4 * T), count)
        inputs = np.zeros((count, T, 2))
        inputs[:, :, 1] = generator.random((count, T))
        inputs[row, first, 0] = inputs[row, second, 0] = 1.0
        return inputs, answer(inputs[row, first, 1], inputs[row, second, 1])[:, None]

    return _task(
        f"{kind}-{L}",
        draw,
        L,
        (samples, test_samples, seed),
        spread=L // 10,
        one_length=one_length,
        num_classes=None,
        metric="mean squared error",
        baseline=baseline,
        tolerance=0.04,
        description=f"{L} or up to a tenth more numbers, two of them marked; give their {word} at the end.",
    )


def _ordered(
    kind: str, length: int, samples: int, seed: int, test_samples: int | None, starts: tuple[float, ...]
) -> Task:
    """Return the task of symbols at places far apart."""
    L = _long_enough(length, 10)

    def draw(generator: np.random.Generator, count: int, T: int) -> tuple[Array, NDArray[Any]]:
        symbols = generator.integers(2, 6, (count, T))
        targets = np.zeros(count, np.int64)
        for i, start in enumerate(starts):
            place = int(start * T) + generator.integers(0, T // 10, count)
            value = generator.integers(0, 2, count)
            symbols[np.arange(count), place] = value
            targets += value << i
        return np.eye(6)[symbols], targets

    classes = 2 ** len(starts)
    return _task(
        f"{kind}-{L}",
        draw,
        L,
        (samples, test_samples, seed),
        num_classes=classes,
        metric="accuracy",
        baseline=1 / classes,
        description=f"{len(starts)} symbols far apart among {L}; say which they were, in order.",
    )


def _task(
    name: str,
    draw: Draw,
    length: int,
    sizes: tuple[int, int | None, int],
    *,
    spread: int = 0,
    one_length: bool = False,
    **about: Any,
) -> Task:
    """Draw both splits; with a spread, each sequence has a length of its own (or each split one)."""
    samples, test_samples, seed = sizes
    parts: dict[str, Any] = {}
    longest = length + max(spread, 1) - 1
    for split, generator, count in zip(("", "test_"), streams(seed), split_sizes(samples, test_samples), strict=True):
        if one_length or spread < 2:
            if split:  # both splits of a task are of one shape
                T = parts["inputs"].shape[1]
            else:
                T = length + (int(generator.integers(0, spread)) if spread else 0)
            inputs, targets = draw(generator, count, T)
            mask = None
        else:
            inputs, targets, mask = _of_all_lengths(generator, draw, length, longest, count)
        parts |= {f"{split}inputs": inputs, f"{split}targets": targets, f"{split}mask": mask}
    return Task(name=name, **parts, **about, source=_SOURCE, success=0.99)


def _of_all_lengths(
    generator: np.random.Generator, draw: Draw, shortest: int, longest: int, count: int
) -> tuple[Array, NDArray[Any], NDArray[np.bool_]]:
    """Return sequences each of a length of its own, zero-padded at the end, with the mask."""
    lengths = generator.integers(shortest, longest + 1, count)
    inputs, targets = (one[:0] for one in draw(generator, 1, shortest))
    padded = np.zeros((count, longest, inputs.shape[2]))
    answers = np.zeros((count, *targets.shape[1:]), targets.dtype)
    for T in np.unique(lengths).tolist():
        which = np.flatnonzero(lengths == T)
        padded[which, :T], answers[which] = draw(generator, len(which), T)
    return padded, answers, np.arange(longest) < lengths[:, None]


def _long_enough(length: int, least: int) -> int:
    """Return a length that leaves room for every mark."""
    L = positive_integer("length", length)
    if least > L:
        raise ValueError(f"length must be at least {least}, so that every marked stretch has a step, got {L}")
    return L

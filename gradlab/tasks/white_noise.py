"""Noise: input for a network apart from any task."""

from __future__ import annotations

from gradlab.tasks.task import Task, split_sizes, streams
from gradlab.validation import positive_integer


def noise(length: int, samples: int, features: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """White Gaussian noise with nothing to learn: input for analysing a network apart from any task.

    x_t ~ N(0, I_d), independent over time and sequences: the input that mean-field predictions assume. There
    are no targets: gradients need a loss of the caller's, e.g. a fixed linear read-out of the last state.

    Args:
        length: T, steps.
        samples: N, sequences.
        features: d, input features.
        seed: seed of the generator; the test sequences have a stream of their own.
        test_samples: M, test sequences; a fifth of `samples`, at least one, if not given.

    Returns:
        Task with inputs [N, T, d], no targets, metric "none", baseline NaN.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.

    Examples:
        >>> task = noise(length=100, samples=20, features=3)
        >>> task.inputs.shape, task.targets is None
        ((20, 100, 3), True)
    """
    length, features = positive_integer("length", length), positive_integer("features", features)
    train, test = streams(seed)
    count, test_count = split_sizes(samples, test_samples)
    return Task(
        name=f"noise-{length}",
        inputs=train.standard_normal((count, length, features)),
        targets=None,
        mask=None,
        num_classes=None,
        test_inputs=test.standard_normal((test_count, length, features)),
        test_targets=None,
        test_mask=None,
        metric="none",
        baseline=float("nan"),
        description=f"{length} steps of white Gaussian noise in {features} features; nothing to learn.",
        source="synthetic",
    )

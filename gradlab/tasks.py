"""Sequences to train and analyse on: two real data sets read from installed packages, two synthetic ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.validation import Array, positive_integer


@dataclass(frozen=True, eq=False)
class Task:
    """A supervised task on sequences, already split into what to train on and what to test on.

    N and M are the numbers of training and test sequences, T the number of steps, d of input features.

    Attributes:
        name: short name, e.g. "digits-pixels".
        inputs: float64 [N, T, d].
        targets: int64 [N] class labels, float64 [N, 1] values, or None if there is nothing to learn.
        mask: bool [N, T], True at real steps; None if every step is real.
        num_classes: number of classes, None for regression.
        test_inputs: float64 [M, T, d].
        test_targets: as `targets`, [M] or [M, 1].
        test_mask: as `mask`, [M, T].
        metric: what `baseline` counts: "accuracy", "mean squared error" or "none".
        baseline: score of the best answer that ignores the input; NaN if there is nothing to learn.
        description: one sentence.
        source: who made the data or defined the task.
    """

    name: str
    inputs: Array
    targets: NDArray[Any] | None
    mask: NDArray[np.bool_] | None
    num_classes: int | None
    test_inputs: Array
    test_targets: NDArray[Any] | None
    test_mask: NDArray[np.bool_] | None
    metric: str
    baseline: float
    description: str
    source: str

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            ValueError: shapes of inputs, targets and masks do not agree.
        """
        for split, inputs, targets, mask in (
            ("", self.inputs, self.targets, self.mask),
            ("test_", self.test_inputs, self.test_targets, self.test_mask),
        ):
            if inputs.ndim != 3 or inputs.shape[1:] != self.inputs.shape[1:]:
                raise ValueError(
                    f"{split}inputs must be [samples, time, features], the last two the same in both splits,"
                    f" got shapes {self.inputs.shape} and {self.test_inputs.shape}; pad the shorter sequences"
                )
            if targets is not None and len(targets) != len(inputs):
                raise ValueError(f"{split}targets must be one a sequence ({len(inputs)}), got {len(targets)}; cut both")
            if mask is not None and (mask.shape != inputs.shape[:2] or mask.dtype != np.bool_):
                raise ValueError(
                    f"{split}mask must be bool {inputs.shape[:2]}, got {mask.dtype} {mask.shape};"
                    " True marks a real step"
                )


def digits(order: str = "pixels", seed: int = 0) -> Task:
    """Handwritten digits of 8×8 pixels, read one pixel or one row at a time.

    Grey levels are scaled from 0…16 to [0, 1]. One fifth is kept for testing, each class in proportion.

    Args:
        order: "pixels" for 64 steps of 1 feature in raster order, "rows" for 8 steps of 8 features.
        seed: which split.

    Returns:
        Task with inputs [1437, 64, 1] or [1437, 8, 8], 360 test sequences, 10 classes.

    Raises:
        ValueError: unknown order, or a negative seed.
        TypeError: the seed is not an integer.
        ImportError: scikit-learn is not installed.

    Source:
        Test part of Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), as bundled with
        scikit-learn. Pixel by pixel after Le, Jaitly & Hinton 2015.

    Examples:
        >>> task = digits("rows")
        >>> task.inputs.shape, task.test_inputs.shape, task.num_classes
        ((1437, 8, 8), (360, 8, 8), 10)
    """
    steps = {"pixels": 64, "rows": 8}
    if order not in steps:
        raise ValueError(f'order must be "pixels" or "rows", got {order!r}; "pixels" is the long dependency')
    seed = _seed(seed)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('gl.tasks.digits needs scikit-learn: pip install "gradlab[data]"') from error

    images, labels = load_digits(return_X_y=True)  # [1797, 64]
    inputs = (images / 16.0).reshape(len(images), steps[order], -1)
    train_x, test_x, train_y, test_y = train_test_split(
        inputs, labels.astype(np.int64), test_size=0.2, stratify=labels, random_state=seed
    )
    return Task(
        name=f"digits-{order}",
        inputs=train_x,
        targets=train_y,
        mask=None,
        num_classes=10,
        test_inputs=test_x,
        test_targets=test_y,
        test_mask=None,
        metric="accuracy",
        baseline=_largest_share(test_y),
        description=f"Handwritten digits, {steps[order]} {order} one after another: which digit was it?",
        source="Alpaydin & Kaynak 1998 (UCI), test part, from sklearn.datasets.load_digits",
    )


def vowels() -> Task:
    """Nine speakers saying two Japanese vowels, 12 cepstral coefficients a frame, 7 to 29 frames: who speaks?

    The official split. Each channel is standardised with the mean and standard deviation of the real training
    frames, then sequences are padded at the end with zeros, which the mask marks.

    Returns:
        Task with inputs [270, 29, 12], 370 test sequences, masks, 9 classes. The test classes are of unequal
        size (24 to 88), so the baseline is 88/370 rather than 1/9.

    Raises:
        ImportError: sktime is not installed.

    Source:
        Kudo, Toyama & Shimbo 1999, Japanese Vowels (UCI), as bundled with sktime.

    Examples:
        >>> task = vowels()
        >>> task.inputs.shape, task.test_inputs.shape, int(task.mask.sum(axis=1).min())
        ((270, 29, 12), (370, 29, 12), 7)
    """
    try:
        from sktime.datasets import load_japanese_vowels
    except ImportError as error:
        raise ImportError('gl.tasks.vowels needs sktime: pip install "gradlab[data]"') from error

    sequences, targets = {}, {}
    for split in ("train", "test"):
        frame, labels = load_japanese_vowels(split=split, return_type="nested_univ")
        # one row a sequence, one column a channel, each entry a series
        sequences[split] = [
            np.stack([np.asarray(channel, dtype=np.float64) for channel in row], axis=1)  # [frames, 12]
            for row in frame.to_numpy()
        ]
        targets[split] = np.asarray(labels, dtype=str).astype(np.int64) - 1  # "1" … "9"
    frames = np.concatenate(sequences["train"])
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    length = max(len(s) for part in sequences.values() for s in part)
    padded = {k: _pad([(s - mean) / deviation for s in part], length) for k, part in sequences.items()}
    return Task(
        name="vowels",
        inputs=padded["train"][0],
        targets=targets["train"],
        mask=padded["train"][1],
        num_classes=9,
        test_inputs=padded["test"][0],
        test_targets=targets["test"],
        test_mask=padded["test"][1],
        metric="accuracy",
        baseline=_largest_share(targets["test"]),
        description="Utterances of 7 to 29 frames with 12 cepstral coefficients; say which of 9 men speaks.",
        source="Kudo, Toyama & Shimbo 1999 (UCI), from sktime.datasets.load_japanese_vowels",
    )


def adding(length: int, samples: int, seed: int = 0, *, test_samples: int | None = None) -> Task:
    """The adding task: recall two marked numbers, one from each half of the sequence, and give their sum.

    Channel 0 is uniform on [0, 1); channel 1 is 1 at one step of the first ⌊T/2⌋ and one of the rest, else 0.
    Always answering 1 has a mean squared error of 2·Var U = 1/6, the baseline.

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

    train, test = _streams(seed)
    count, test_count = _split_sizes(samples, test_samples)
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
    )


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
    train, test = _streams(seed)
    count, test_count = _split_sizes(samples, test_samples)
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


def _seed(seed: int) -> int:
    """Return `seed` as an int ≥ 0."""
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer ≥ 0, got {seed!r} of type {type(seed).__name__}; give a number")
    if seed < 0:
        raise ValueError(f"seed must be an integer ≥ 0, got {seed}; drop the sign")
    return int(seed)


def _streams(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return independent generators, so that test sequences do not depend on the number of training ones."""
    train, test = np.random.SeedSequence(_seed(seed)).spawn(2)
    return np.random.default_rng(train), np.random.default_rng(test)


def _split_sizes(samples: int, test_samples: int | None) -> tuple[int, int]:
    """Return (N, M) checked."""
    count = positive_integer("samples", samples)
    if test_samples is None:
        return count, max(1, count // 5)
    return count, positive_integer("test_samples", test_samples)


def _largest_share(labels: NDArray[Any]) -> float:
    """Return the accuracy of the best answer that ignores the input."""
    return float(np.bincount(labels).max() / len(labels))


def _pad(sequences: list[Array], length: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return sequences [frames, d] zero-padded at the end to [N, length, d], and the mask [N, length]."""
    inputs = np.zeros((len(sequences), length, sequences[0].shape[1]))
    mask = np.zeros((len(sequences), length), dtype=np.bool_)
    for i, sequence in enumerate(sequences):
        inputs[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = True
    return inputs, mask

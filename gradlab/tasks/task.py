"""What a task is: sequences, what to answer, and what counts as an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradlab.validation import Array, positive_integer


@dataclass(frozen=True, eq=False)
class Task:
    """A supervised task on sequences, already split into what to train on and what to test on.

    N and M are the numbers of training and test sequences, T the number of steps, d of input features.

    Attributes:
        name: short name, e.g. "digits-pixels".
        inputs: float64 [N, T, d].
        targets: int64 [N] class labels, int64 [N, T] labels of every step, float64 [N, 1] values, or None if there is
            nothing to learn.
        mask: bool [N, T], True at real steps; None if every step is real.
        num_classes: number of classes, None for regression.
        test_inputs: float64 [M, T, d].
        test_targets: as `targets`, [M], [M, T] or [M, 1].
        test_mask: as `mask`, [M, T].
        metric: what `baseline` counts: "accuracy", "mean squared error", "cross-entropy" (nats, mean over all steps) or
            "none".
        baseline: score of the best answer that ignores the input, or of one without memory; NaN if there is nothing to
            learn.
        description: one sentence.
        source: who made the data or defined the task.
        tolerance: of a regression, the squared error up to which an answer counts as right; NaN elsewhere.
        success: the success rate from which the task counts as solved; NaN where nobody has said.
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
    tolerance: float = float("nan")
    success: float = float("nan")

    def __repr__(self) -> str:
        """Return name and sizes: a line, where the arrays would take pages."""
        N, T, d = self.inputs.shape
        return f"Task({self.name!r}: {N} + {len(self.test_inputs)} sequences, {T} steps, {d} features)"

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

    def success_rate(self, outputs: ArrayLike) -> float:
        """Return the share of test sequences that are answered right.

        A class is right if its output is the largest, and a sequence of labels if it is right at every step; a value is
        right if its squared error is within `tolerance`.

        Args:
            outputs: for `test_inputs`: [M, classes] or [M, T, classes] for labels, [M, 1] for values.

        Returns:
            A number in [0, 1]; the task counts as solved from `success` on.

        Raises:
            ValueError: there is nothing to learn, or a wrong shape.
        """
        if self.test_targets is None:
            raise ValueError(f"{self.name} has no targets: there is nothing to be right about")
        given = np.asarray(outputs)
        shape = self.test_targets.shape if self.num_classes is None else (*self.test_targets.shape, self.num_classes)
        if given.shape != shape:
            raise ValueError(f"outputs must be {shape}, one for each test sequence, got shape {given.shape}")
        if self.num_classes is None:
            return float(np.mean((given[:, 0] - self.test_targets[:, 0]) ** 2 <= self.tolerance))
        right = given.argmax(axis=-1) == self.test_targets
        return float(np.mean(right if right.ndim == 1 else right.all(axis=1)))

    def batches(self, batch_size: int, *, seed: int = 0, split: str = "train") -> Any:
        """Return the sequences in shuffled batches, a `keras.utils.PyDataset` for `fit`, in another order every epoch.

        Args:
            batch_size: sequences in a batch; the last one may be smaller.
            seed: of the order: the same seed gives the same batches, epoch by epoch.
            split: "train" or "test"; the latter is not shuffled.

        Returns:
            The data set: (inputs, targets), the inputs as [inputs, mask] where there is a mask; float32.

        Raises:
            ValueError: an unknown split, nothing to learn, a number out of range.
        """
        from gradlab.tasks.batches import batches  # Keras is imported when there is something to train

        return batches(self, batch_size, seed=seed, split=split)


def checked_seed(seed: int) -> int:
    """Return `seed` as an int ≥ 0."""
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer ≥ 0, got {seed!r} of type {type(seed).__name__}; give a number")
    if seed < 0:
        raise ValueError(f"seed must be an integer ≥ 0, got {seed}; drop the sign")
    return int(seed)


def streams(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return independent generators, so that test sequences do not depend on the number of training ones."""
    train, test = np.random.SeedSequence(checked_seed(seed)).spawn(2)
    return np.random.default_rng(train), np.random.default_rng(test)


def split_sizes(samples: int, test_samples: int | None) -> tuple[int, int]:
    """Return (N, M) checked."""
    count = positive_integer("samples", samples)
    if test_samples is None:
        return count, max(1, count // 5)
    return count, positive_integer("test_samples", test_samples)


def largest_share(labels: NDArray[Any]) -> float:
    """Return the accuracy of the best answer that ignores the input."""
    return float(np.bincount(labels).max() / len(labels))

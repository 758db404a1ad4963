"""Tasks as data sets that Keras trains on: finite ones in shuffled batches, and endless ones drawn afresh."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from gradlab.tasks.task import Task, checked_seed
from gradlab.validation import positive_integer


class _Batches(keras.utils.PyDataset):
    """Batches that are a function of (epoch, index) alone."""

    def __init__(self, make: Callable[[int, int], Any], length: int) -> None:
        super().__init__()
        self._make, self._length, self._epoch = make, length, 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._make(self._epoch, index)

    def on_epoch_end(self) -> None:
        """Go on to the next order, or to fresh sequences."""
        self._epoch += 1


def batches(task: Task, batch_size: int, *, seed: int = 0, split: str = "train") -> keras.utils.PyDataset:
    """Return the batches of a finite task; see `Task.batches`."""
    size, seed = positive_integer("batch_size", batch_size), checked_seed(seed)
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    prefix = "" if split == "train" else "test_"
    inputs, targets, mask = (getattr(task, prefix + name) for name in ("inputs", "targets", "mask"))
    if targets is None:
        raise ValueError(f"{task.name} has no targets: there is nothing to train on")

    def make(epoch: int, index: int) -> Any:
        order: NDArray[Any] = np.arange(len(inputs))
        if split == "train":
            order = np.random.default_rng([seed, epoch]).permutation(len(inputs))
        which = order[index * size : (index + 1) * size]
        return _item(inputs[which], targets[which], None if mask is None else mask[which])

    return _Batches(make, -(-len(inputs) // size))


def stream(
    make: Callable[..., Task], length: int, *, batch_size: int = 20, batches: int = 100, seed: int = 0, **options: Any
) -> keras.utils.PyDataset:
    """Return batches of sequences that are drawn afresh all the time, so that nothing can be learnt by heart.

    Args:
        make: a synthetic task, e.g. ``gl.tasks.temporal_order``.
        length: its first argument.
        batch_size: sequences in a batch; where lengths vary, all of a batch have the same.
        batches: in what Keras takes for an epoch.
        seed: the same seed gives the same sequences, epoch by epoch.
        **options: what else the task takes.

    Returns:
        The data set for `fit`.

    Raises:
        TypeError: `make` is no synthetic task; arguments that are not integers.
        ValueError: numbers out of range, or a task with nothing to learn.

    Examples:
        >>> from gradlab import tasks
        >>> data = stream(tasks.addition, 50, batch_size=4, batches=10)
        >>> x, y = data[0]
        >>> len(data), x.shape[0], x.shape[2], y.shape
        (10, 4, 2, (4, 1))
    """
    size, count, seed = (
        positive_integer("batch_size", batch_size),
        positive_integer("batches", batches),
        checked_seed(seed),
    )
    if not callable(make) or "samples" not in inspect.signature(make).parameters:
        raise TypeError(f"make must be a synthetic task such as gl.tasks.addition, got {make!r}")
    if "one_length" in inspect.signature(make).parameters:
        options = {"one_length": True} | options

    def drawn(epoch: int, index: int) -> Any:
        fresh = int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
        task = make(length, size, seed=fresh, test_samples=1, **options)
        if task.targets is None:
            raise ValueError(f"{task.name} has no targets: there is nothing to train on")
        return _item(task.inputs, task.targets, task.mask)

    return _Batches(drawn, count)


def _item(inputs: NDArray[Any], targets: NDArray[Any], mask: NDArray[np.bool_] | None) -> Any:
    """Return (inputs or (inputs, mask), targets), numbers in float32."""
    x = inputs.astype(np.float32)
    y = targets.astype(np.float32) if targets.dtype.kind == "f" else targets
    return (x if mask is None else (x, mask)), y

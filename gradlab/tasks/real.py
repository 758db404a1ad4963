"""Real sequences, read from installed packages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradlab.tasks.task import Task, checked_seed, largest_share
from gradlab.validation import Array


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
    seed = checked_seed(seed)
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
        baseline=largest_share(test_y),
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
        baseline=largest_share(targets["test"]),
        description="Utterances of 7 to 29 frames with 12 cepstral coefficients; say which of 9 men speaks.",
        source="Kudo, Toyama & Shimbo 1999 (UCI), from sktime.datasets.load_japanese_vowels",
    )


def gunpoint() -> Task:
    """The hand of an actor who draws a gun and points it, or points a finger: one coordinate over 150 frames.

    The official split; each series is standardised in the source. A simple network trained on it stays near chance: the
    vanishing gradient on real data.

    Returns:
        Task with inputs [50, 150, 1], 150 test sequences, 2 classes.

    Raises:
        ImportError: sktime is not installed.

    Source:
        Ratanamahatana & Keogh 2005, GunPoint, as bundled with sktime.

    Examples:
        >>> task = gunpoint()
        >>> task.inputs.shape, task.test_inputs.shape, round(task.baseline, 4)
        ((50, 150, 1), (150, 150, 1), 0.5067)
    """
    try:
        from sktime.datasets import load_gunpoint
    except ImportError as error:
        raise ImportError('gl.tasks.gunpoint needs sktime: pip install "gradlab[data]"') from error

    inputs, targets = {}, {}
    for split in ("train", "test"):
        series, labels = load_gunpoint(split=split, return_type="numpy3d")  # [N, 1, 150]
        inputs[split] = np.ascontiguousarray(np.asarray(series, np.float64).swapaxes(1, 2))
        targets[split] = np.asarray(labels, dtype=str).astype(np.int64) - 1  # "1" and "2"
    return Task(
        name="gunpoint",
        inputs=inputs["train"],
        targets=targets["train"],
        mask=None,
        num_classes=2,
        test_inputs=inputs["test"],
        test_targets=targets["test"],
        test_mask=None,
        metric="accuracy",
        baseline=largest_share(targets["test"]),
        description="150 frames of a hand's position; say whether it holds a gun.",
        source="Ratanamahatana & Keogh 2005, from sktime.datasets.load_gunpoint",
    )


def _pad(sequences: list[Array], length: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return sequences [frames, d] zero-padded at the end to [N, length, d], and the mask [N, length]."""
    inputs = np.zeros((len(sequences), length, sequences[0].shape[1]))
    mask = np.zeros((len(sequences), length), dtype=np.bool_)
    for i, sequence in enumerate(sequences):
        inputs[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = True
    return inputs, mask

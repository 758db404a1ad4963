from __future__ import annotations

import dataclasses
import socket
import sys

import numpy as np
import pytest

from gradlab import tasks


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize(("order", "shape"), [("pixels", (64, 1)), ("rows", (8, 8))])
def test_digits_are_split_by_class_and_scaled(offline, order, shape):
    task = tasks.digits(order)
    assert task.inputs.shape == (1437, *shape)
    assert task.test_inputs.shape == (360, *shape)
    assert task.inputs.dtype == task.test_inputs.dtype == np.float64
    assert task.targets.dtype == task.test_targets.dtype == np.int64
    assert task.mask is None
    assert task.num_classes == 10
    everything = np.concatenate([task.inputs, task.test_inputs])
    assert everything.min() == 0.0
    assert everything.max() == 1.0
    # stratified: a class differs from its share by less than one image
    counts = np.bincount(np.concatenate([task.targets, task.test_targets]))
    assert np.all(np.abs(np.bincount(task.test_targets) - counts * 360 / 1797) < 1.0)


def test_digits_orders_hold_the_same_images_and_nothing_is_lost():
    from sklearn.datasets import load_digits

    pixels, rows = tasks.digits("pixels"), tasks.digits("rows")
    np.testing.assert_array_equal(pixels.inputs.reshape(-1, 8, 8), rows.inputs)
    np.testing.assert_array_equal(pixels.targets, rows.targets)
    images, labels = load_digits(return_X_y=True)
    ours = np.concatenate([pixels.inputs, pixels.test_inputs])[:, :, 0] * 16
    ours = np.column_stack([ours, np.concatenate([pixels.targets, pixels.test_targets])])
    original = np.column_stack([images, labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], original[np.lexsort(original.T)])


def test_digits_split_follows_the_seed():
    np.testing.assert_array_equal(tasks.digits(seed=1).inputs, tasks.digits(seed=1).inputs)
    assert not np.array_equal(tasks.digits(seed=1).targets, tasks.digits(seed=2).targets)


def test_vowels_are_the_official_split_padded_and_standardised(offline):
    task = tasks.vowels()
    assert task.inputs.shape == (270, 29, 12)
    assert task.test_inputs.shape == (370, 29, 12)
    assert task.num_classes == 9
    np.testing.assert_array_equal(np.bincount(task.targets), [30] * 9)  # 30 utterances of each speaker
    np.testing.assert_array_equal(np.bincount(task.test_targets), [31, 35, 88, 44, 29, 24, 40, 50, 29])
    lengths = np.concatenate([task.mask.sum(axis=1), task.test_mask.sum(axis=1)])
    assert (lengths.min(), lengths.max()) == (7, 29)
    for inputs, mask in ((task.inputs, task.mask), (task.test_inputs, task.test_mask)):
        assert mask.dtype == np.bool_
        assert np.all(mask[:, :-1] >= mask[:, 1:])  # padding only at the end
        assert np.all(inputs[~mask] == 0.0)
        assert np.all(np.any(inputs[mask] != 0.0, axis=-1))
    frames = task.inputs[task.mask]
    # means of 4274 numbers of order one, summed in float64: a few hundred units in the last place at most
    np.testing.assert_allclose(frames.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(frames.std(axis=0), 1.0, atol=1e-13)


def test_vowels_first_utterance_is_the_file_s():
    from sktime.datasets import load_japanese_vowels

    task = tasks.vowels()
    frame, _ = load_japanese_vowels(split="train", return_type="nested_univ")
    first = np.array([frame.iloc[0, channel].to_numpy() for channel in range(12)]).T
    raw = np.concatenate(
        [np.array([frame.iloc[i, channel].to_numpy() for channel in range(12)]).T for i in range(len(frame))]
    )
    expected = (first - raw.mean(axis=0)) / raw.std(axis=0)
    np.testing.assert_allclose(task.inputs[0, : len(first)], expected, rtol=0, atol=1e-12)
    assert task.mask[0].sum() == len(first) == 20


@pytest.mark.parametrize("length", [2, 3, 50, 51])
def test_adding_marks_one_step_in_each_half_and_asks_for_their_sum(length):
    task = tasks.adding(length, 200, seed=4)
    for inputs, targets in ((task.inputs, task.targets), (task.test_inputs, task.test_targets)):
        values, markers = inputs[:, :, 0], inputs[:, :, 1]
        assert set(np.unique(markers)) == ({0.0, 1.0} if length > 2 else {1.0})
        np.testing.assert_array_equal(markers[:, : length // 2].sum(axis=1), 1.0)
        np.testing.assert_array_equal(markers[:, length // 2 :].sum(axis=1), 1.0)
        # two terms, and zeros: the sum is exact in either order
        np.testing.assert_array_equal((values * markers).sum(axis=1, keepdims=True), targets)
        assert values.min() >= 0.0
        assert values.max() < 1.0
    assert task.inputs.shape == (200, length, 2)
    assert task.test_inputs.shape == (40, length, 2)


def test_adding_markers_reach_every_place():
    markers = tasks.adding(7, 2000, seed=0).inputs[:, :, 1].mean(axis=0)
    # binomial with N = 2000 and p = 1/3 or 1/4: five standard errors are below 0.053
    np.testing.assert_allclose(markers, [1 / 3] * 3 + [1 / 4] * 4, atol=0.053)


def test_adding_baseline_is_the_error_of_always_answering_one():
    task = tasks.adding(10, 40_000, seed=1)
    errors = (task.targets - 1.0) ** 2
    standard_error = errors.std() / np.sqrt(len(errors))
    assert abs(errors.mean() - task.baseline) < 4 * standard_error
    for answer in (0.9, 1.1):  # one is the best constant
        assert np.mean((task.targets - answer) ** 2) > errors.mean()


@pytest.mark.parametrize("make", [lambda: tasks.digits("rows"), tasks.vowels])
def test_classification_baseline_is_the_best_constant_answer(make):
    task = make()
    scores = [np.mean(task.test_targets == c) for c in range(task.num_classes)]
    assert task.metric == "accuracy"
    assert task.baseline == max(scores)
    assert task.baseline >= 1 / task.num_classes


def test_noise_is_white():
    task = tasks.noise(length=60, samples=500, features=4, seed=2)
    assert task.inputs.shape == (500, 60, 4)
    assert task.test_inputs.shape == (100, 60, 4)
    assert task.targets is None
    assert task.test_targets is None
    assert task.num_classes is None
    assert task.metric == "none"
    assert np.isnan(task.baseline)
    size = task.inputs.size
    assert abs(task.inputs.mean()) < 4 / np.sqrt(size)
    assert abs(task.inputs.var() - 1) < 4 * np.sqrt(2 / size)
    lagged = task.inputs[:, 1:] * task.inputs[:, :-1]
    assert abs(lagged.mean()) < 4 / np.sqrt(lagged.size)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed, n=30, m=None: tasks.adding(20, n, seed, test_samples=m),
        lambda seed, n=30, m=None: tasks.noise(20, n, 2, seed, test_samples=m),
    ],
)
def test_synthetic_tasks_follow_the_seed(make):
    first, again, other = make(0), make(0), make(1)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.test_inputs, again.test_inputs)
    assert not np.array_equal(first.inputs, other.inputs)
    assert not np.array_equal(first.inputs[:6], first.test_inputs)  # training and test streams differ
    # the test sequences stay when more training sequences are asked for
    np.testing.assert_array_equal(make(0, 40, 6).test_inputs, first.test_inputs)


def test_a_task_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tasks.noise(3, 2, 1).name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.zeros((3, 4))}, r"inputs must be \[samples, time, features\]"),
        ({"test_inputs": np.zeros((1, 5, 2))}, "test_inputs must be"),
        ({"targets": np.zeros(2, np.int64)}, r"targets must be one a sequence \(10\), got 2"),
        ({"mask": np.ones((10, 4))}, r"mask must be bool \(10, 4\), got float64"),
        ({"test_mask": np.ones((2, 5), bool)}, r"test_mask must be bool \(2, 4\), got bool \(2, 5\)"),
    ],
)
def test_a_task_whose_parts_do_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tasks.noise(length=4, samples=10, features=2), **change)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tasks.digits("columns"), ValueError, 'order must be "pixels" or "rows", got \'columns\''),
        (lambda: tasks.digits(seed=-1), ValueError, "seed must be an integer ≥ 0, got -1"),
        (lambda: tasks.adding(10, 10, seed=True), TypeError, "seed must be an integer ≥ 0, got True"),
        (lambda: tasks.adding(10, 10, seed=1.0), TypeError, "seed must be an integer ≥ 0, got 1.0"),
        (lambda: tasks.adding(1, 10), ValueError, "length must be at least 2"),
        (lambda: tasks.adding(2.5, 10), TypeError, "length must be a positive integer, got 2.5"),
        (lambda: tasks.adding(10, 0), ValueError, "samples must be at least 1, got 0"),
        (lambda: tasks.adding(10, 10, test_samples=0), ValueError, "test_samples must be at least 1"),
        (lambda: tasks.noise(10, 10, 0), ValueError, "features must be at least 1"),
        (lambda: tasks.noise(10, "10", 1), TypeError, "samples must be a positive integer"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("make", "package"), [(tasks.digits, "sklearn.datasets"), (tasks.vowels, "sktime.datasets")])
def test_a_missing_package_names_the_extra(monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, package, None)  # None makes the import fail
    with pytest.raises(ImportError, match=r'pip install "gradlab\[data\]"'):
        make()

from __future__ import annotations

import numpy as np
import pytest

from gradlab import tasks

PASCANU = {
    "addition": tasks.addition,
    "multiplication": tasks.multiplication,
    "temporal order": tasks.temporal_order,
    "temporal order, 3 bits": tasks.temporal_order_3bit,
    "memorization": tasks.memorization,
    "permutation": tasks.random_permutation,
}
ALL = PASCANU | {"copy": tasks.copy, "latching": tasks.latching, "adding": tasks.adding}


@pytest.mark.parametrize(
    ("make", "answer"), [(tasks.addition, lambda u, v: (u + v) / 2), (tasks.multiplication, lambda u, v: u * v)]
)
def test_two_marks_in_the_first_half_and_their_answer(make, answer):
    L = 50
    task = make(L, 3000, seed=1)
    lengths = task.mask.sum(axis=1)
    assert (lengths.min(), lengths.max()) == (L, L + 4)  # l = L + randint(5)
    np.testing.assert_array_equal(task.mask[:, :-1] >= task.mask[:, 1:], True)
    assert np.all(task.inputs[~task.mask] == 0.0)
    seen = set()
    for x, y, T in zip(task.inputs, task.targets, lengths, strict=True):
        first, second = np.flatnonzero(x[:, 0])
        assert 0 <= first < int(0.1 * T)
        assert int(0.1 * T) <= second < int(0.1 * T) + int(0.4 * T)
        assert set(x[:, 0]) == {0.0, 1.0}
        assert y[0] == answer(x[first, 1], x[second, 1])
        seen |= {int(first), int(second)}
    assert seen == set(range(5 + int(0.4 * (L + 4))))  # 5 + 21 places
    u = task.inputs[:, :, 1][task.mask]
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)


@pytest.mark.parametrize(("make", "best"), [(tasks.addition, 0.5), (tasks.multiplication, 0.25)])
def test_the_baseline_is_the_error_of_the_best_constant(make, best):
    task = make(10, 40_000, seed=2)
    errors = (task.targets - best) ** 2
    assert abs(errors.mean() - task.baseline) < 4 * errors.std() / np.sqrt(len(errors))
    for other in (best - 0.05, best + 0.05):
        assert np.mean((task.targets - other) ** 2) > errors.mean()


@pytest.mark.parametrize(
    ("make", "places"),
    [(tasks.temporal_order, [(10, 20), (50, 60)]), (tasks.temporal_order_3bit, [(10, 20), (30, 40), (60, 70)])],
)
def test_symbols_far_apart_and_their_order(make, places):
    task = make(100, 2000, seed=0)
    symbols = task.inputs.argmax(axis=2)
    np.testing.assert_array_equal(task.inputs.sum(axis=2), 1.0)
    expected = np.zeros(2000, int)
    for bit, (start, stop) in enumerate(places):
        inside = symbols[:, start:stop]
        np.testing.assert_array_equal((inside < 2).sum(axis=1), 1)
        expected += inside[np.arange(2000), (inside < 2).argmax(axis=1)] << bit
        assert set((inside < 2).argmax(axis=1)) == set(range(stop - start))
    assert ((symbols < 2).sum(axis=1) == len(places)).all()  # distractors elsewhere
    np.testing.assert_array_equal(task.targets, expected)
    counts = np.bincount(task.targets, minlength=task.num_classes) / 2000
    assert np.abs(counts - task.baseline).max() < 5 * np.sqrt(task.baseline / 2000)


@pytest.mark.parametrize(
    ("make", "delay", "alphabet", "cue"),
    [(lambda n: tasks.memorization(n, 200, seed=3), 30, 5, 6), (lambda n: tasks.copy(n, 200, seed=3), 30, 8, 9)],
)
def test_ten_symbols_come_back_after_the_cue(make, delay, alphabet, cue):
    task = make(delay)
    symbols, blank = task.inputs.argmax(axis=2), alphabet
    assert symbols.shape == (200, delay + 20)
    assert set(np.unique(symbols[:, :10])) == set(range(alphabet))
    where = np.flatnonzero(symbols[0] == cue)
    # Pascanu: L blanks, then the cue among 10 blanks; Arjovsky: T − 1 blanks, then the delimiter, then 10 blanks
    assert where.tolist() == [delay + 10 if cue == 6 else delay + 9]
    rest = np.delete(symbols, np.r_[:10, where], axis=1)
    assert (rest == blank).all()
    np.testing.assert_array_equal(task.targets[:, -10:], symbols[:, :10])
    assert (task.targets[:, :-10] == blank).all()
    # one that knows when to answer and nothing of what: log of the alphabet at ten steps of all
    assert task.baseline == pytest.approx(10 * np.log(alphabet) / (delay + 20), rel=1e-15)


def test_the_permutation_s_first_symbol_is_the_answer_and_nowhere_else():
    task = tasks.random_permutation(30, 500, seed=0)
    symbols = task.inputs.argmax(axis=2)
    np.testing.assert_array_equal(symbols[:, 0], task.targets)
    assert set(task.targets) == {0, 1}
    assert symbols[:, 1:].min() == 2
    assert symbols.max() == 99


def test_latching_says_its_class_once():
    task = tasks.latching(40, 4000, seed=0, informative=5, level=0.7, noise=0.3)
    sign = (2 * task.targets - 1)[:, None]
    early, late = task.inputs[:, :5, 0], task.inputs[:, 5:, 0]
    assert abs((sign * early).mean() - 0.7) < 5 * 0.3 / np.sqrt(early.size)
    assert abs((sign * late).mean()) < 5 * 0.3 / np.sqrt(late.size)
    assert abs(late.std() - 0.3) < 5 * 0.3 / np.sqrt(2 * late.size)


def test_gunpoint_is_the_official_split():
    task = tasks.gunpoint()
    np.testing.assert_array_equal(np.bincount(task.targets), [24, 26])
    np.testing.assert_array_equal(np.bincount(task.test_targets), [76, 74])
    np.testing.assert_allclose(task.inputs.mean(axis=1), 0.0, atol=1e-6)  # standardised in the source
    assert task.baseline == 76 / 150


@pytest.mark.parametrize("name", ALL)
def test_tasks_follow_the_seed_and_the_test_split_its_own(name):
    make = ALL[name]
    first, again, other = make(20, 12, seed=0), make(20, 12, seed=0), make(20, 12, seed=1)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.inputs, other.inputs)
    np.testing.assert_array_equal(make(20, 30, seed=0, test_samples=2).test_inputs, first.test_inputs)


@pytest.mark.parametrize("name", ALL)
def test_who_knows_the_answer_is_a_success(name):
    task = ALL[name](20, 10, test_samples=6)
    right = np.eye(task.num_classes)[task.test_targets] if task.num_classes else task.test_targets
    assert task.success_rate(right) == 1.0
    assert task.success == 0.99
    wrong = right[::-1] if name == "adding" else -right + (0 if task.num_classes else 3)
    assert task.success_rate(wrong) < 1.0
    with pytest.raises(ValueError, match="outputs must be"):
        task.success_rate(right[:3])


def test_batches_are_all_of_a_task_in_another_order_every_epoch():
    task = tasks.addition(20, 23, seed=0)
    data = task.batches(5, seed=1)
    epochs = []
    for _ in range(2):
        items = [data[i] for i in range(len(data))]
        assert [len(y) for _, y in items] == [5, 5, 5, 5, 3]
        assert items[0][0][0].dtype == np.float32
        assert items[0][0][1].dtype == np.bool_
        epochs.append(np.concatenate([y[:, 0] for _, y in items]))
        data.on_epoch_end()
    np.testing.assert_array_equal(np.sort(epochs[0]), np.sort(task.targets[:, 0].astype(np.float32)))
    assert not np.array_equal(*epochs)
    again = task.batches(5, seed=1)
    np.testing.assert_array_equal(again[0][1][:, 0], epochs[0][:5])
    x, y = task.batches(4, split="test")[0]
    np.testing.assert_array_equal(y, task.test_targets[:4].astype(np.float32))
    assert len(x) == 2


def test_the_test_split_has_the_length_of_training_and_its_own_stream_from_the_start():
    lengths = set()
    for seed in range(4):
        task, other = (tasks.addition(40, samples, seed, test_samples=3, one_length=True) for samples in (5, 6))
        assert task.inputs.shape[1] == task.test_inputs.shape[1] == other.inputs.shape[1]
        np.testing.assert_array_equal(task.test_inputs, other.test_inputs)
        lengths.add(task.inputs.shape[1])
    assert len(lengths) > 1
    assert lengths <= {40, 41, 42, 43}


def test_a_stream_is_fresh_and_the_same_again():
    data, again = (tasks.stream(tasks.multiplication, 40, batch_size=6, batches=3, seed=5) for _ in range(2))
    lengths = set()
    for epoch in range(4):
        for i in range(3):
            (x, y), (same, _) = data[i], again[i]
            np.testing.assert_array_equal(x, same)
            assert x.shape[0] == len(y) == 6
            lengths.add(x.shape[1])
        if epoch == 0:
            first = data[0][0]
        data.on_epoch_end()
        again.on_epoch_end()
    assert lengths == {40, 41, 42, 43}  # one for a batch
    assert first.shape != data[0][0].shape or not np.array_equal(first, data[0][0])
    (x, _) = tasks.stream(tasks.temporal_order_3bit, 30, batch_size=2)[0]
    assert x.shape == (2, 30, 6)


def test_a_model_trains_on_a_stream():
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.SimpleRNN(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(tasks.stream(tasks.addition, 10, batch_size=4, batches=2), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tasks.addition(9, 5), ValueError, "length must be at least 10"),
        (lambda: tasks.random_permutation(1, 5), ValueError, "length must be at least 2"),
        (lambda: tasks.copy(0, 5), ValueError, "delay must be at least 1"),
        (lambda: tasks.latching(5, 5, informative=6), ValueError, "informative must be at most the length 5"),
        (lambda: tasks.latching(5, 5, noise=0.0), ValueError, "noise must be positive"),
        (lambda: tasks.noise(5, 5, 1).batches(2), ValueError, "nothing to train on"),
        (lambda: tasks.copy(5, 5).batches(2, split="valid"), ValueError, 'split must be "train" or "test"'),
        (lambda: tasks.stream(tasks.digits, 5), TypeError, "make must be a synthetic task"),
        (lambda: tasks.stream(tasks.noise, 5, features=2)[0], ValueError, "nothing to train on"),
        (lambda: tasks.noise(5, 5, 1).success_rate(np.zeros(1)), ValueError, "no targets"),
        (lambda: tasks.sorting, AttributeError, "gradlab.tasks has no 'sorting'"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

from __future__ import annotations

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import gradlab as gl
from gradlab.clipping import clip, norm
from gradlab.gradients import log_norm
from gradlab.jacobian import NotFiniteError
from gradlab.probe import Probe
from gradlab.saturation import saturation
from gradlab.tracking_measures import _mean_rate, measure
from gradlab.variables import VARIABLES

L = keras.layers
TASK = gl.tasks.adding(12, 48, seed=0)
PROBE = (TASK.test_inputs[:4].astype(np.float32), TASK.test_targets[:4].astype(np.float32))


def network(optimizer=None, *, lower=None):
    keras.utils.set_random_seed(0)
    layers = [] if lower is None else [lower(5, return_sequences=True, dropout=0.2, name="lower")]
    layers.append(L.SimpleRNN(4, name="upper"))
    model = keras.Sequential([keras.Input((12, 2)), *layers, L.Dense(1)])
    model.compile(optimizer or keras.optimizers.Adam(0.01, clipnorm=0.05), "mse")
    return model


@pytest.fixture(scope="module")
def traced():
    """One layer, compiled: the graph of its training is made once, and `fresh` takes it back to the start."""
    model = network()
    model.optimizer.build(model.trainable_variables)
    variables = [*model.weights, *model.optimizer.variables]
    return model, [(one, np.array(one)) for one in variables]


@pytest.fixture
def fresh(traced):
    model, start = traced
    for variable, value in start:
        variable.assign(value)
    return model


def fit(model, callbacks, **options):
    options = {"epochs": 3, "batch_size": 8, "verbose": 0} | options
    return model.fit(TASK.inputs, TASK.targets, callbacks=callbacks, **options)


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_training_is_bit_identical_with_and_without_it(every):
    """Weights, dropout and the order of the batches: nobody notices that somebody looks."""
    finished = []
    for callbacks in ([], [gl.GradientTracker(*PROBE, schedule=gl.schedules.linear(2), every=every)]):
        model = network(lower=L.SimpleRNN)
        history = fit(model, callbacks, epochs=2)
        finished.append((model.get_weights(), history.history["loss"]))
    for one, other in zip(*(weights for weights, _ in finished), strict=True):
        np.testing.assert_array_equal(one, other)
    assert finished[0][1] == finished[1][1]


def test_what_is_tracked_is_what_the_parts_give(tmp_path):
    model = network(lower=L.LSTM)
    tracker = gl.GradientTracker(
        *PROBE, schedule=gl.schedules.linear(1), spectrum_sequences=3, path=tmp_path / "run.nc"
    )
    history = fit(model, [tracker], epochs=2)
    ds = tracker.dataset()
    np.testing.assert_array_equal(ds.epoch, [0, 1, 2])
    np.testing.assert_array_equal(ds.step, [0, 6, 12])
    np.testing.assert_array_equal(ds.spectrum_lag, [1, 2, 4, 8, 12])
    assert ds.layer.values.tolist() == ["lower", "upper"]
    for name, variable in ds.data_vars.items():
        dims, long_name, units, _ = VARIABLES[name]
        if dims[:1] == ("epoch",):
            assert variable.dims == dims
        assert (variable.attrs["long_name"], variable.attrs["units"]) == (long_name, units)
    found = Probe(model, *PROBE)()
    last = ds.isel(epoch=-1)
    for name, one in found.layers.items():
        seen = last.sel(layer=name)
        flat = [log_norm(part.swapaxes(0, 1).reshape(13, -1)) for part in (one.total, one.direct, one.recurrent)]
        names = ("log_gradient_norm", "log_direct_gradient_norm", "log_recurrent_gradient_norm")
        for variable, expected in zip(names, flat, strict=True):
            np.testing.assert_array_equal(seen[variable], expected)
        J = gl.step_jacobians(one.trajectory)
        ln_s = gl.log_singular_values(J[:3])
        n = J.shape[-1]
        for k in ds.spectrum_lag.values:
            expected = np.median(ln_s[:, 12 - k], axis=0)
            np.testing.assert_allclose(
                seen.log_singular_values_at_lag.sel(spectrum_lag=k)[:n], expected, rtol=0, atol=1e-9
            )
        assert np.isnan(seen.log_singular_values_at_lag[:, n:]).all()
        assert float(seen.saturation) == saturation(one.trajectory)
        exponents = gl.lyapunov_exponents(J, 1, discard=1).exponents
        assert float(seen.largest_lyapunov_exponent) == pytest.approx(exponents.mean(), abs=1e-12)
        assert history.history[f"{name}/decay_rate"][-1] == float(seen.decay_rate)
    W = model.get_layer("upper").cell.recurrent_kernel.numpy()
    assert float(last.spectral_radius.sel(layer="upper")) == pytest.approx(np.abs(np.linalg.eigvals(W)).max(), rel=1e-6)
    clipped = clip(found.weight_gradients, "norm", 0.05)
    for path, one in found.weight_gradients.items():
        assert float(last.log_weight_gradient_norm.sel(weight=path)) == pytest.approx(np.log(norm(one)), abs=1e-6)
        assert float(last.log_clipped_weight_gradient_norm.sel(weight=path)) == pytest.approx(
            np.log(norm(clipped[path])), abs=1e-6
        )
    assert json.loads(ds.attrs["clipping"]) == ["norm", 0.05]
    kept = gl.load(tmp_path / "run.nc")
    np.testing.assert_array_equal(kept.log_gradient_norm, ds.log_gradient_norm)
    assert ds.attrs["diverged_step"] == -1


def test_headlines_reach_the_loggers_listed_after_it(fresh, tmp_path):
    tracker = gl.GradientTracker(*PROBE, schedule=gl.schedules.linear(2))
    history = fit(fresh, [tracker, keras.callbacks.CSVLogger(tmp_path / "log.csv")]).history
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert "upper/lyapunov_exponent" in rows[0]
    assert len(rows) == 4
    # where the schedule looks, and at the end
    assert np.isnan(history["upper/decay_rate"]).tolist() == [True, False, False]
    np.testing.assert_array_equal(tracker.dataset().epoch, [0, 2, 3])


def test_ctrl_c_keeps_what_was_tracked(fresh, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    tracker = gl.GradientTracker(*PROBE, schedule=gl.schedules.linear(1), path=tmp_path / "run.nc")
    with pytest.raises(KeyboardInterrupt):
        fit(fresh, [tracker, Stop()])
    np.testing.assert_array_equal(gl.load(tmp_path / "run.nc").epoch, [0, 1, 2])
    np.testing.assert_array_equal(tracker.dataset().epoch, [0, 1, 2])
    assert [one.name for one in tmp_path.iterdir()] == ["run.nc"]  # no half a file


def test_divergence_is_reported_with_its_step():
    model = network(keras.optimizers.SGD(1e30))
    tracker = gl.GradientTracker(*PROBE, schedule=gl.schedules.linear(1))
    with pytest.warns(RuntimeWarning, match=r"left the finite numbers in epoch 1, at step \d: the training loss is"):
        history = fit(model, [tracker]).history
    assert {len(values) for values in history.values()} == {3}
    assert np.isnan(history["upper/decay_rate"]).all()
    ds = tracker.dataset()
    assert 1 <= ds.attrs["diverged_step"] <= 3
    assert ds.attrs["diverged_epoch"] == 0
    assert np.isfinite(ds.log_gradient_norm.isel(epoch=0)).all()
    assert np.isnan(ds.log_gradient_norm.isel(epoch=-1)).all()


@pytest.mark.parametrize(("done", "said"), [(1.0, 1), (2.0, 2), (0.5, 1), (1.5, 2)])
def test_what_a_look_finds_happened_in_the_epoch_before_it(done, said):
    model = network(keras.optimizers.SGD(1e-3))
    tracker = gl.GradientTracker(*PROBE)
    tracker.set_model(model)
    tracker.record(0)
    model.layers[-1].set_weights([np.full_like(one, np.inf) for one in model.layers[-1].get_weights()])
    with pytest.warns(RuntimeWarning, match=f"left the finite numbers in epoch {said}, at step 7"):
        tracker.record(done, step=7)
    assert tracker.dataset().attrs["diverged_epoch"] == said - 1


def test_schedules_of_steps_begin_anew_with_every_tracker(fresh):
    def steps():
        tracker = gl.GradientTracker(*PROBE, every="step", schedule=gl.schedules.linear(4))
        fit(fresh, [tracker], epochs=2)
        return tracker.dataset().step.values

    first = steps()
    np.testing.assert_array_equal(steps(), first + first[-1])  # by the optimiser's count, which goes on


def test_tensorboard_shows_the_headlines(fresh, tmp_path):
    pytest.importorskip("tensorboard")
    fit(fresh, [gl.GradientTracker(*PROBE), keras.callbacks.TensorBoard(tmp_path, write_graph=False)], epochs=1)
    (events,) = (tmp_path / "train").glob("events*.v2")
    tags = set()
    for record in tf.data.TFRecordDataset(str(events)):
        tags |= {value.tag for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value}
    assert {"epoch_upper/decay_rate", "epoch_upper/saturation", "epoch_probe_gradient_norm"} <= tags


def test_batches_that_end_in_any_order(fresh):
    """Keras does not wait for callbacks that are async_safe, but calls them from several threads."""
    tracker = gl.GradientTracker(*PROBE)
    tracker.set_model(fresh)
    tracker.on_epoch_begin(0)
    for batch, loss in ((4, np.nan), (2, np.inf), (0, 1.0), (3, np.nan), (1, 1.0)):
        tracker.on_train_batch_end(batch, {"loss": loss})
    with pytest.warns(RuntimeWarning, match="in epoch 1, at step 3: the training loss is inf"):
        tracker.on_epoch_end(0)
    ds = tracker.dataset()
    assert ds.attrs["diverged_step"] == 3
    assert ds.step[-1] == 5


def test_keras_does_not_wait_for_it_between_epochs():
    assert gl.GradientTracker(*PROBE).async_safe
    assert not gl.GradientTracker(*PROBE, every="step").async_safe


def test_steps_may_be_counted_and_fit_may_go_on(fresh):
    model, tracker = fresh, gl.GradientTracker(*PROBE, schedule=gl.schedules.linear(4), every="step")
    fit(model, [tracker], epochs=1)
    np.testing.assert_array_equal(tracker.dataset().step, [0, 4, 6])
    fit(model, [tracker], epochs=1)
    ds = tracker.dataset()
    np.testing.assert_array_equal(ds.step, [0, 4, 6, 8, 12])
    np.testing.assert_allclose(ds.epoch, [0, 4 / 6, 1, 1 + 2 / 6, 2])


def test_a_loop_of_one_s_own_can_call_it():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12, 2)), L.GRU(3, name="gru"), L.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1, global_clipnorm=0.01)
    tracker = gl.GradientTracker(
        *PROBE, loss=keras.losses.MeanSquaredError(), optimizer=optimizer, schedule=gl.schedules.linear(1)
    )
    tracker.set_model(model)
    tracker.record(epoch=0)
    for epoch in range(3):
        model.set_weights([0.9 * one for one in model.get_weights()])
        tracker.on_train_batch_end(0, {"loss": 1.0})
        logs = {}
        tracker.on_epoch_end(epoch, logs)
        assert logs["probe_clipped_gradient_norm"] == pytest.approx(min(0.01, logs["probe_gradient_norm"]))
    np.testing.assert_array_equal(tracker.dataset().epoch, [0, 1, 2, 3])
    np.testing.assert_array_equal(tracker.dataset().step, [0, 1, 2, 3])


def test_masked_sequences_count_real_steps_only():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12, 2)), L.Masking(), L.SimpleRNN(4, name="rnn"), L.Dense(1)])
    x = PROBE[0].copy() + 0.1
    x[0, 5:] = 0.0
    x[1, 1:] = 0.0
    tracker = gl.GradientTracker(
        x, PROBE[1], loss=keras.losses.MeanSquaredError(), lags=[1, 5, 12], spectrum_sequences=1
    )
    tracker.set_model(model)
    with pytest.warns(UserWarning, match=r"the spectrum at lags \[12\] is NaN: .* at most 5 steps"):
        tracker.record(0)
    spectrum = tracker.dataset().log_singular_values_at_lag[0, 0]
    step = gl.rollout(model.get_layer("rnn"), x[:1, :5])
    np.testing.assert_allclose(
        spectrum[:2], gl.log_singular_values(gl.step_jacobians(step))[0, [4, 0]], rtol=0, atol=1e-9
    )
    assert np.isnan(spectrum[2]).all()  # no sequence asked for is 12 steps long


def test_a_sequence_that_is_masked_throughout_counts_for_nothing():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12, 2)), L.Masking(), L.SimpleRNN(4), L.Dense(1)])
    x = PROBE[0].copy() + 0.1
    x[0, 5:] = x[2] = 0.0
    found = []
    for keep in ([0, 1, 2, 3], [0, 1, 3], [2]):
        ((one,),) = (Probe(model, x[keep], PROBE[1][keep], loss=keras.losses.MeanSquaredError())().layers.values(),)
        found.append(measure(one, [1, 12], 1))
    assert np.isfinite(found[0].lyapunov_exponent)
    assert found[0].lyapunov_exponent == pytest.approx(found[1].lyapunov_exponent, abs=1e-12)
    assert np.isnan(found[2].lyapunov_exponent)


def test_the_rate_of_sequences_that_are_dead_is_told_apart():
    assert _mean_rate(np.array([-0.5, -np.inf, -0.25, np.nan])) == -0.375
    assert _mean_rate(np.array([-np.inf, np.nan])) == -np.inf
    assert np.isnan(_mean_rate(np.array([np.nan])))


@pytest.mark.parametrize("error", [NotFiniteError, ValueError])
def test_only_what_is_not_finite_counts_as_diverged(monkeypatch, error):
    def measured(*_):
        raise error("a derivative of this kind")

    monkeypatch.setattr("gradlab.tracking.measure", measured)
    tracker = gl.GradientTracker(*PROBE)
    tracker.set_model(network())
    if error is NotFiniteError:
        with pytest.warns(RuntimeWarning, match="left the finite numbers in epoch 1, at step 0: a derivative of this"):
            headlines = tracker.record(0)
        assert list(headlines)[:2] == ["upper/log_gradient_ratio", "upper/decay_rate"]
        assert np.isnan(list(headlines.values())).all()
    else:
        with pytest.raises(ValueError, match="a derivative of this kind"):
            tracker.record(0)


def test_saturation_of_gates_is_the_share_of_flat_slopes():
    for cell in (L.LSTMCell(3), L.GRUCell(3), L.GRUCell(3, reset_after=False)):
        cell.build((None, 2))
        cell.set_weights(
            [8.0 * np.random.default_rng(i).standard_normal(w.shape) for i, w in enumerate(cell.get_weights())]
        )
        traj = gl.rollout(cell, np.random.default_rng(0).standard_normal((2, 6, 2)))
        h, x = traj.states[:, :-1, :3].reshape(-1, 3), traj.inputs.reshape(-1, 2)
        k, r, b = (np.asarray(w, np.float64) for w in cell.get_weights())
        sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
        if isinstance(cell, L.LSTMCell):
            a = np.split(x @ k + h @ r + b, 4, axis=1)
            gates, candidate = [a[0], a[1], a[3]], a[2]
        else:
            b0, b1 = b if b.ndim == 2 else (b, 0 * b)
            xs, hs = np.split(x @ k + b0, 3, axis=1), np.split(h @ r + b1, 3, axis=1)
            gates = [xs[0] + hs[0], xs[1] + hs[1]]
            reset = sigmoid(gates[1])
            candidate = xs[2] + (reset * hs[2] if cell.reset_after else (reset * h) @ r[:, 6:])
        flat = [sigmoid(a) * sigmoid(-a) < 0.025 for a in gates] + [1 / np.cosh(candidate) ** 2 < 0.1]
        assert 0.1 < saturation(traj) < 0.9
        assert saturation(traj) == pytest.approx(np.mean(flat))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gl.GradientTracker(*PROBE, schedule=5), TypeError, "schedule must be a function of a count"),
        (lambda: gl.GradientTracker(*PROBE, every="batch"), ValueError, 'every must be "epoch" or "step"'),
        (lambda: gl.GradientTracker(*PROBE, lags=[0]), ValueError, "lags must be at least 1"),
        (lambda: gl.GradientTracker(*PROBE, lags=5), TypeError, "lags must be a list, got 5; put brackets around it"),
        (lambda: gl.GradientTracker(*PROBE).dataset(), ValueError, "nothing was tracked yet"),
        (lambda: gl.GradientTracker(*PROBE).record(0), ValueError, "no model yet"),
        (lambda: gl.schedules.linear(0), ValueError, "every must be at least 1"),
        (lambda: gl.schedules.logarithmic(0), ValueError, "per_decade must be positive"),
        (lambda: gl.schedules.logarithmic("5"), TypeError, "per_decade must be a number"),
        (
            lambda: fit(network(), [gl.GradientTracker(PROBE[0][:, :, :1], PROBE[1])]),
            ValueError,
            r"takes \[batch, time, 2\], got shape",
        ),
        (
            lambda: fit(network(), [gl.GradientTracker(PROBE[0] * np.nan, PROBE[1])]),
            ValueError,
            "must be finite, got nan",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_lags_beyond_the_sequences_are_named():
    x = np.ones((2, 8, 1), "f4")
    x[0, 5:] = 0.0  # left out by the mask
    model = keras.Sequential([keras.Input((8, 1)), L.Masking(), L.SimpleRNN(3), L.Dense(1)])
    model.compile("sgd", "mse")
    tracker = gl.GradientTracker(x, np.zeros((2, 1)), lags=[2, 9, 8, 30])
    with pytest.raises(ValueError, match=r"lags must be at most T = 8, .* got \[9, 30\]; leave them out"):
        model.fit(x, np.zeros((2, 1)), verbose=0, callbacks=[tracker])
    for sequences in (1, 2):
        tracker = gl.GradientTracker(x, np.zeros((2, 1)), lags=[2, 8], spectrum_sequences=sequences)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(x, np.zeros((2, 1)), epochs=2, verbose=0, callbacks=[tracker])
        said = [str(one.message) for one in caught if "the spectrum at lags [8] is NaN" in str(one.message)]
        assert len(said) == (sequences == 1)  # once, and not where the second sequence reaches so far
        spectrum = tracker.dataset().log_singular_values_at_lag.sel(spectrum_lag=8)
        assert np.isnan(spectrum).all() == (sequences == 1)


def test_a_model_without_recurrence_is_refused_at_once():
    model = keras.Sequential([keras.Input((3,)), L.Dense(1)])
    with pytest.raises(ValueError, match="no recurrent layer"):
        gl.GradientTracker(*PROBE).set_model(model)


def test_logarithmic_thins_out_and_starts_at_zero():
    looked = [i for i in range(1001) if gl.schedules.logarithmic(4)(i)]
    expected = sorted({0} | {round(10 ** (j / 4)) for j in range(13)})
    assert looked == expected

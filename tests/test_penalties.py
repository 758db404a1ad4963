"""A `RegularizedModel` as a Keras model: what it shows while it trains, and saved as a whole."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gradlab import fixes
from gradlab.penalties import _after

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((7, 6, 2)).astype("f4"), RNG.standard_normal((7, 1)).astype("f4")


def network(cell=L.SimpleRNN):
    keras.utils.set_random_seed(3)
    layers = [cell(4, return_sequences=True, name="lower"), cell(3, name="upper"), L.Dense(1)]
    return keras.Sequential([keras.Input((6, 2)), L.Masking(), *layers])


def penalties():
    return [fixes.NormPreservation(2.0), fixes.Flossing(1.5, k=2, target=-0.1, sequences=2, seed=4)]


def fitted(model, **options):
    return model.fit(X, Y, batch_size=3, shuffle=False, verbose=0, **options).history  # batches of 3, 3 and 1


@keras.saving.register_keras_serializable(package="gradlab_tests")
def mean_gradient(layer, total):
    return tf.reduce_mean(tf.square(total))


mean_gradient.weight = 0.5


def test_the_logs_have_the_mean_of_each_penalty():
    model = fixes.RegularizedModel(network(), [*penalties(), fixes.Flossing(0.5, k=1), mean_gradient])
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])  # the weights stay
    history = fitted(model, epochs=2, validation_data=(X, Y))
    names = [
        "norm_preservation_penalty", "flossing_penalty", "flossing_penalty_2", "mean_gradient_penalty",
    ]  # fmt: skip
    assert set(history) == {"loss", "mae", "val_loss", "val_mae", *names}
    for name, one in zip(names, model._penalties, strict=True):
        alone = fixes.RegularizedModel(model.inner, [one])
        alone.compile("sgd", "mse")
        values = [float(alone.penalty(X[b : b + 3], Y[b : b + 3])) / one.weight for b in (0, 3, 6)]
        expected = np.average(values, weights=[3, 3, 1])
        # a hundred roundings of float64; the second epoch has only its own
        np.testing.assert_allclose(history[name], [expected] * 2, rtol=1e-13)
    weighted = sum(one.weight * history[name][0] for name, one in zip(names, model._penalties, strict=True))
    assert history["loss"][0] - weighted == pytest.approx(history["val_loss"][0], rel=1e-5)  # the loss is of float32


def test_evaluation_has_no_penalties():
    model = fixes.RegularizedModel(network(), penalties())
    model.compile("sgd", "mse")
    fitted(model)
    assert isinstance(model.evaluate(X, Y, verbose=0), float)
    assert set(model.evaluate(X, Y, verbose=0, return_dict=True)) == {"loss"}


@pytest.mark.parametrize("cell", [L.SimpleRNN, L.GRU])
def test_showing_the_penalties_changes_no_bit_of_the_training(cell):
    class Unseen(fixes.RegularizedModel):
        train_step = keras.Model.train_step

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = keras.Model.compute_loss(self, x, y, y_pred, sample_weight, training)
            extra = tf.cast(self.penalty(x, y, sample_weight), loss.dtype)
            return _after(loss + extra, extra)

    weights = []
    for kind in (fixes.RegularizedModel, Unseen):
        model = kind(network(cell), penalties())
        model.compile(keras.optimizers.Adam(0.02, clipnorm=1.0), "mse")
        history = fitted(model, epochs=4)
        weights.append([history["loss"], *model.get_weights()])
    for shown, unseen in zip(*weights, strict=True):
        np.testing.assert_array_equal(shown, unseen)


@pytest.mark.parametrize("cell", [L.SimpleRNN, L.LSTM])
def test_a_saved_model_goes_on_where_it_was(cell, tmp_path):
    model = fixes.RegularizedModel(network(cell), [*penalties(), mean_gradient], layers=["upper"], name="whole")
    model.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
    fitted(model, epochs=2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert (type(again), again.name) == (fixes.RegularizedModel, "whole")
    assert again._penalties[2] is mean_gradient
    for one, other in zip(model._penalties[:2], again._penalties, strict=False):
        assert (type(one), one.get_config()) == (type(other), other.get_config())
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))
    assert float(again.penalty(X, Y)) == float(model.penalty(X, Y))
    assert fitted(again, epochs=2) == fitted(model, epochs=2)  # the optimiser goes on, too
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_penalty_that_keras_cannot_make_again_is_named_when_it_is_saved(tmp_path):
    def local(layer, total):
        return tf.reduce_mean(total)

    class Own:
        weight = 1.0

        def __call__(self, layer, total):
            return tf.reduce_mean(total)

    local.weight = 1.0
    for one in (local, Own()):
        model = fixes.RegularizedModel(network(), [one])
        with pytest.raises(TypeError, match=r"with get_config and from_config, got <.*save_weights\(path\)"):
            model.save(tmp_path / "model.keras")

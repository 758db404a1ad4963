from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

import gradlab as gl
from gradlab.clipping import RULES, clip, clipping_of, norm

KEYS = {"norm": "clipnorm", "value": "clipvalue", "global_norm": "global_clipnorm"}
L = keras.layers


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", [0.1, 2.0, 100.0])
def test_clipping_is_keras_s(rule, threshold):
    rng = np.random.default_rng(0)
    gradients = {"W": rng.standard_normal((4, 5)), "b": 3.0 * rng.standard_normal(5)}
    optimizer = keras.optimizers.SGD(**{KEYS[rule]: threshold})
    assert clipping_of(optimizer) == (rule, threshold)
    expected = optimizer._clip_gradients([keras.ops.convert_to_tensor(one, "float32") for one in gradients.values()])
    for one, other in zip(clip(gradients, rule, threshold).values(), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # float32 there


@given(
    st.sampled_from(RULES),
    st.floats(1e-3, 1e3),
    st.lists(st.floats(-1e200, 1e200, allow_subnormal=False), min_size=1, max_size=6),
)
@settings(deadline=None, max_examples=50)
def test_clipped_gradients_are_within_the_threshold_and_stay_there(rule, threshold, entries):
    g = {"a": np.array(entries), "b": np.array([1.0, -2.0])}
    once = clip(g, rule, threshold)
    sizes = [norm(one) for one in once.values()]
    limit = {
        "norm": max(sizes),
        "global_norm": np.hypot(*sizes),
        "value": max(np.abs(one).max() for one in once.values()),
    }
    assert limit[rule] <= threshold * (1 + 1e-14)
    twice = clip(once, rule, threshold)
    for name in g:
        np.testing.assert_allclose(twice[name], once[name], rtol=1e-14, atol=0)  # idempotent to a rounding
        assert np.all(np.sign(once[name]) * np.sign(g[name]) >= 0)


def test_an_optimizer_that_clips_nothing():
    assert clipping_of(keras.optimizers.Adam()) is None
    assert clipping_of(None) is None


def model_and_data(scale, layer=L.LSTM):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    model = keras.Sequential([keras.Input((8, 2)), layer(4, name="rnn"), L.Dense(1)])
    model.compile("sgd", "mse")
    return (
        model,
        rng.standard_normal((13, 8, 2)).astype("float32"),
        scale * rng.standard_normal((13, 1)).astype("float32"),
    )


def test_the_audit_counts_what_clipping_does():
    model, x, y = model_and_data(10.0, L.SimpleRNN)
    thresholds = {"norm": 0.5, "value": 0.05, "global_norm": 0.5}
    ds = gl.clipping_audit(model, x, y, thresholds=thresholds, batch_size=6)
    assert dict(ds.clip_active.sizes) == {"rule": 3, "minibatch": 2, "weight": 5}  # 13 sequences are two batches
    from gradlab.probe import Probe

    for b in range(2):
        which = slice(6 * b, 6 * b + 6)
        raw = Probe(model, x[which], y[which])().weight_gradients
        for rule, theta in thresholds.items():
            after = clip(raw, rule, theta)
            for name, g in raw.items():
                seen = ds.sel(rule=rule, weight=name).isel(minibatch=b)
                assert float(seen.clip_norm_ratio) == pytest.approx(norm(after[name]) / norm(g), rel=1e-4)  # float32
                assert bool(seen.clip_active) == (not np.array_equal(after[name], g))
                cosine = np.sum(g * after[name]) / norm(g) / norm(after[name])
                assert float(seen.clip_cosine) == pytest.approx(cosine, abs=1e-5)
    assert ds.clip_active.any()
    # by norm the direction of each weight stays; by value it does not
    np.testing.assert_allclose(ds.clip_cosine.sel(rule=["norm", "global_norm"]), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ds.clip_total_cosine.sel(rule="global_norm"), 1.0, rtol=0, atol=1e-12)
    assert float(ds.clip_cosine.sel(rule="value").min()) < 0.99
    assert float(ds.clip_total_cosine.sel(rule="norm").min()) < 1.0  # one weight shortened, another not


def test_clipping_by_norm_leaves_the_profile_over_lags():
    model, x, y = model_and_data(10.0)
    ds = gl.clipping_audit(model, x, y, thresholds={"norm": 0.1, "value": 0.01, "global_norm": 0.1}, batch_size=6)
    profile = ds.clip_profile
    credit = gl.credit_by_lag(gl.layer_gradients(model, x[:6], y[:6])["rnn"])
    other = gl.credit_by_lag(gl.layer_gradients(model, x[6:12], y[6:12])["rnn"])
    expected = [one.credit_log_norm - logsumexp(one.credit_log_norm) for one in (credit, other)]
    assert any(np.allclose(profile.sel(profile_rule="none"), one, rtol=0, atol=1e-9) for one in expected)
    for rule in ("norm", "global_norm"):
        np.testing.assert_allclose(profile.sel(profile_rule=rule), profile.sel(profile_rule="none"), rtol=0, atol=1e-12)
    assert float(abs(profile.sel(profile_rule="value") - profile.sel(profile_rule="none")).max()) > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip({"W": [1.0]}, "l2", 1.0), "rule must be one of"),
        (lambda: clip({"W": [1.0]}, "norm", 0.0), "threshold of 'norm' must be a positive finite number"),
        (lambda: clip({"W": [np.nan]}, "norm", 1.0), "the gradient of W must be finite"),
        (lambda: gl.clipping_audit(*model_and_data(1.0), batch_size=20), "at least one batch of 20 sequences, got 13"),
        (lambda: gl.clipping_audit(*model_and_data(1.0), thresholds={}), "at least one of"),
        (
            lambda: gl.clipping_audit(*model_and_data(1.0), batch_size=4, layer="gru"),
            "layers must name recurrent layers",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""What clipping does to the gradients of a model: how often, how much of the norm, which direction, which lags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from gradlab.clipping import RULES, Rule, checked_threshold, clip, norm
from gradlab.credit import Contributions
from gradlab.probe import Loss, layer_gradients
from gradlab.results import SCHEMA_VERSION, provenance
from gradlab.validation import Array, positive_integer
from gradlab.variables import labelled

DEFAULT: dict[Rule, float] = {"norm": 1.0, "value": 0.5, "global_norm": 1.0}


def clipping_audit(
    model: keras.Model,
    inputs: Any,
    targets: Any,
    *,
    thresholds: Mapping[Rule, float] | None = None,
    batch_size: int = 32,
    loss: Loss | None = None,
    layer: str | None = None,
) -> xr.Dataset:
    """Return what each rule of clipping does to the gradients of many batches, with the weights as they are.

    Clipping by norm keeps the direction of what it clips and only shortens it; by value it turns it. Neither brings
    back what vanished on the way: the recurrent gradient is a sum over lags, ∂L/∂W = Σ_k G_k, and a rule that
    multiplies it by one number multiplies every G_k by that number, so that the profile over lags stays as it was.
    Clipping by value multiplies entry by entry by clip(∂L/∂W)/(∂L/∂W), and so are the G_k here.

    Args:
        model: a built Keras model with a recurrent layer.
        inputs: an array or a structure of arrays, batch first; what is left over by the last full batch is dropped.
        targets: what the loss compares with.
        thresholds: θ by rule ("norm", "value", "global_norm"); None: {"norm": 1, "value": 0.5, "global_norm": 1}.
        batch_size: sequences in a batch.
        loss: ``loss(targets, outputs)``; None: what the model was compiled with.
        layer: the recurrent layer whose profile over lags is shown; None: the first that the model calls.

    Returns:
        Dataset over rule, minibatch and weight: clip_active, clip_norm_ratio, clip_cosine (NaN where a gradient is
        zero); over rule and minibatch, all weights taken together: clip_total_norm_ratio, clip_total_cosine; over rule
        (with "none") and lag, on the batch with the largest gradient: clip_profile.

    Raises:
        ValueError: fewer sequences than a batch; unknown rules, thresholds out of range; gradients that are not finite;
            else as `gl.layer_gradients`.

    Source:
        Pascanu, Mikolov & Bengio 2013 (by norm).

    Example:
        >>> model = keras.Sequential([keras.Input((6, 2)), keras.layers.SimpleRNN(3), keras.layers.Dense(1)])
        >>> mse = keras.losses.MeanSquaredError()
        >>> ds = clipping_audit(model, np.ones((4, 6, 2)), np.full((4, 1), 100.0), batch_size=2, loss=mse)
        >>> ds.clip_total_cosine.sel(rule="global_norm").values.round(12)
        array([1., 1.])
    """
    rules = dict(DEFAULT if thresholds is None else thresholds)
    for rule, theta in rules.items():
        checked_threshold(rule, theta)
    if not rules:
        raise ValueError(f"thresholds must hold at least one of {list(RULES)}, got none")
    size = positive_integer("batch_size", batch_size)
    batches = _batches(inputs, targets, size)
    probe = layer_gradients(
        model, *batches[0], loss=loss, layers=None if layer is None else [layer]
    )  # says what is wrong
    gradient = _gradient(model, loss)
    rows = [{path: one.astype(np.float64) for path, one in gradient(*batch).items()} for batch in batches]
    weights = list(rows[0])
    shape = (len(rules), len(rows), len(weights))
    found = {name: np.full(shape, np.nan) for name in ("clip_norm_ratio", "clip_cosine")}
    found["clip_active"] = np.zeros(shape)
    found |= {name: np.full(shape[:2], np.nan) for name in ("clip_total_norm_ratio", "clip_total_cosine")}
    for r, (rule, theta) in enumerate(rules.items()):
        for b, row in enumerate(rows):
            after = clip(row, rule, theta)
            for w, name in enumerate(weights):
                found["clip_norm_ratio"][r, b, w], found["clip_cosine"][r, b, w] = _compared(row[name], after[name])
                found["clip_active"][r, b, w] = float(not np.array_equal(row[name], after[name]))
            joined = [np.concatenate([one[name].ravel() for name in weights]) for one in (row, after)]
            found["clip_total_norm_ratio"][r, b], found["clip_total_cosine"][r, b] = _compared(*joined)
    largest = int(np.argmax([math.hypot(*map(norm, row.values())) for row in rows]))
    if largest:
        probe = layer_gradients(model, *batches[largest], loss=loss, layers=None if layer is None else [layer])
    name, chosen = next(iter(probe.items()))
    found["clip_profile"] = _profile(chosen, rules, rows[largest])
    coords: dict[str, Any] = {
        "rule": ("rule", np.array(list(rules), dtype=str)),
        "threshold": ("rule", np.array([float(theta) for theta in rules.values()])),
        "profile_rule": ("profile_rule", np.array(["none", *rules], dtype=str)),
        "minibatch": np.arange(len(rows)),
        "weight": ("weight", np.array(weights, dtype=str)),
        "lag": ("lag", np.arange(found["clip_profile"].shape[1]), {"long_name": "lag k", "units": "steps"}),
    }
    attrs = {"title": f"Clipping in {model.name}", "profile_layer": name, "schema_version": SCHEMA_VERSION}
    return xr.Dataset(labelled(found), coords, attrs | provenance(None))


def _batches(inputs: Any, targets: Any, size: int) -> list[tuple[Any, Any]]:
    """Return the batches as (inputs, targets) in their own structure."""
    arrays = keras.tree.map_structure(np.asarray, (inputs, targets))
    count = len(keras.tree.flatten(arrays)[0])
    if count < size:
        raise ValueError(f"inputs must hold at least one batch of {size} sequences, got {count}; lower batch_size")
    return [
        keras.tree.map_structure(lambda one, start=start: one[start : start + size], arrays)
        for start in range(0, count - size + 1, size)
    ]


def _gradient(model: Any, loss: Loss | None) -> Any:
    """Return (inputs, targets) → gradients by path, as training computes them but with dropout off."""
    variables = list(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def traced(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape, keras.StatelessScope(collect_losses=True):
            outputs = model(x, training=False)
            value = model.compute_loss(x=x, y=y, y_pred=outputs, training=False) if loss is None else loss(y, outputs)
            value = tf.reduce_mean(value)
        return tape.gradient(value, [one.value for one in variables], unconnected_gradients="zero")

    def gradient(x: Any, y: Any) -> dict[str, Any]:
        found = traced(*keras.tree.map_structure(tf.constant, (x, y)))
        return {one.path: tf.convert_to_tensor(g).numpy() for one, g in zip(variables, found, strict=True)}

    return gradient


def _compared(before: Array, after: Array) -> tuple[float, float]:
    """Return (ratio of norms, cosine) of two gradients, NaN where the first is zero."""
    sizes = norm(before), norm(after)
    if sizes[0] == 0.0 or sizes[1] == 0.0:
        return math.nan, math.nan
    unit = before.ravel() / sizes[0], after.ravel() / sizes[1]
    return sizes[1] / sizes[0], min(1.0, float(unit[0] @ unit[1]))


def _profile(chosen: Any, rules: Mapping[Rule, float], row: dict[str, Array]) -> Array:
    """Return ln(‖G_k‖/Σ_j‖G_j‖) of the recurrent gradient of a layer [1 + rules, lag], first as it is, then clipped."""
    pieces = Contributions(chosen.trajectory, chosen.direct, "recurrent_kernel")
    G = pieces.total
    factors = [np.ones_like(G)]
    for rule, theta in rules.items():
        if rule == "value":
            factors.append(np.minimum(1.0, theta / np.maximum(np.abs(G), np.finfo(np.float64).tiny)))
        else:
            whole = norm(G) if rule == "norm" else math.hypot(*map(norm, row.values()))
            factors.append(np.full_like(G, min(1.0, theta / whole) if whole > 0.0 else 1.0))
    profile = np.empty((len(factors), pieces.length))
    for k, piece in pieces:
        profile[:, k] = [norm(one * piece) for one in factors]
    with np.errstate(divide="ignore", invalid="ignore"):  # a gradient that is zero has no profile
        return np.log(profile / profile.sum(axis=1, keepdims=True))

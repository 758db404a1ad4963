"""A common trap: the gradient of a recurrent layer's output tensor leaves out the way through the recurrence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import xarray as xr

from gradlab.gradients import log_norm
from gradlab.probe import LayerGradients, Loss, layer_gradients
from gradlab.results import SCHEMA_VERSION, provenance
from gradlab.validation import Array
from gradlab.variables import labelled

NEGLIGIBLE = 0.01


def gradient_left_out(
    model: keras.Model,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Loss | None = None,
    sample_weight: Any = None,
    layers: Sequence[str] | None = None,
) -> xr.Dataset:
    """Show how much of ∂L/∂y_t the gradient of a layer's output tensor leaves out.

    ``tape.gradient(loss, layer_output)`` holds the later outputs of the layer fixed, because they are computed inside
    of it: the result is the direct part alone, and for a loss that reads the last output it is exactly 0 at all t < T.
    The gradient that vanishes or explodes is the total, which goes through the recurrence. Here both are computed for
    the outputs y_t = h_t of every recurrent layer (of an LSTM, h and not c).

    Args:
        model: a built Keras model.
        inputs: what it takes, batch first.
        targets: what the loss compares with.
        loss: ``loss(targets, outputs)``; None: what the model was compiled with.
        sample_weight: for the compiled loss.
        layers: names of the layers wanted; None for all.

    Returns:
        Dataset over layer and time (t = 1 … T in reading order): log_total_gradient_norm, log_output_gradient_norm
        (what the tape gives), left_out = ‖total − tape‖/‖total‖ (NaN where the total is zero), and left_out_overall,
        the same over all steps together; the norms are over batch and units.

    Raises:
        TypeError, ValueError: as `gl.layer_gradients`.

    Warns:
        UserWarning: more than a hundredth is left out; says how much.

    Example:
        >>> model = keras.Sequential([keras.Input((5, 2)), keras.layers.GRU(3, name="gru"), keras.layers.Dense(1)])
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     ds = gradient_left_out(model, np.ones((2, 5, 2)), np.ones((2, 1)), loss=keras.losses.MeanSquaredError())
        >>> ds.left_out.values
        array([[1., 1., 1., 1., 0.]])
    """
    found = layer_gradients(model, inputs, targets, loss=loss, sample_weight=sample_weight, layers=layers)
    T = max(one.total.shape[1] for one in found.values()) - 1
    values: dict[str, Array] = {
        name: np.full((len(found), T), np.nan)
        for name in ("log_total_gradient_norm", "log_output_gradient_norm", "left_out")
    }
    overall, sentences = np.full(len(found), np.nan), []
    for i, (name, one) in enumerate(found.items()):
        total, direct = (_of_outputs(one, part) for part in (one.total, one.output))
        missing = log_norm(total - direct)
        whole = log_norm(total)
        with np.errstate(invalid="ignore"):  # −∞ − −∞ where there is no gradient
            share = np.exp(missing - whole)
        for key, curve in zip(values, (whole, log_norm(direct), share), strict=True):
            values[key][i, : len(curve)] = curve
        ends = log_norm(np.stack([(total - direct).ravel(), total.ravel()]))
        overall[i] = np.exp(ends[0] - ends[1]) if np.isfinite(ends[1]) else np.nan
        if overall[i] > NEGLIGIBLE:
            silent = int(np.sum(np.isneginf(log_norm(direct)) & np.isfinite(whole)))
            zeros = f" and is exactly zero at {silent} of {len(whole)} steps" if silent else ""
            sentences.append(f"of layer {name} it leaves out {overall[i]:.0%} of the norm{zeros}")
    if sentences:
        warnings.warn(
            "tape.gradient(loss, layer_output) leaves out what comes back through time: "
            + "; ".join(sentences)
            + ". gl.layer_gradients(model, inputs, targets) has the total",
            UserWarning,
            stacklevel=2,
        )
    coords = {
        "layer": ("layer", np.array(list(found), dtype=str)),
        "time": ("time", np.arange(1, T + 1), {"long_name": "time step t", "units": "steps"}),
    }
    attrs = {"title": f"What the outputs' gradients leave out in {model.name}", "schema_version": SCHEMA_VERSION}
    return xr.Dataset(labelled(values | {"left_out_overall": overall}), coords, attrs | provenance(None))


def _of_outputs(found: LayerGradients, part: Array) -> Array:
    """Return the gradient of the outputs as one vector for each t = 1 … T, [T, B·units]."""
    parts = found.trajectory.step.parts
    shown = next((one for one in reversed(parts) if one.name.split(".")[-1] == "h"), None)
    chosen = part[:, 1:] if shown is None else part[:, 1:, shown.start : shown.stop]
    return chosen.swapaxes(0, 1).reshape(chosen.shape[1], -1)

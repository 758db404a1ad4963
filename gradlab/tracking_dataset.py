"""Looks at a training model as one labelled dataset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr

from gradlab.validation import Array
from gradlab.variables import labels

if TYPE_CHECKING:  # it needs TensorFlow, and to read what was tracked does not
    from gradlab.tracking_measures import LayerMeasures


class Look(NamedTuple):
    """What was seen at one moment of training.

    Attributes:
        epoch: how many epochs were done.
        step: how many updates of the weights.
        loss: on the probe batch.
        measures: by layer; empty where something was not finite.
        gradient_norms: of the gradient of each weight, by path.
        clipped_norms: of the same after clipping.
        seconds: what the look cost.
    """

    epoch: float
    step: int
    loss: float
    measures: dict[str, LayerMeasures]
    gradient_norms: dict[str, float]
    clipped_norms: dict[str, float]
    seconds: float

    def headlines(self, layers: Iterable[str]) -> dict[str, float]:
        """Return the values that go into the logs of a training, NaN for layers that were not measured."""
        found: dict[str, float] = {}
        for name in layers:
            one = self.measures.get(name)
            ends = np.full(2, np.nan) if one is None else one.log_gradient_norm[[0, -1]]
            found[f"{name}/log_gradient_ratio"] = float(ends[0] - ends[1]) if np.isfinite(ends[1]) else math.nan
            for value in ("decay_rate", "lyapunov_exponent", "spectral_radius", "saturation"):
                found[f"{name}/{value}"] = math.nan if one is None else getattr(one, value)
        for label, norms in (("gradient", self.gradient_norms), ("clipped_gradient", self.clipped_norms)):
            found[f"probe_{label}_norm"] = math.hypot(*norms.values()) if norms else math.nan
        return found


_SCALARS = {
    "lyapunov_exponent": "largest_lyapunov_exponent",
    "decay_rate": "decay_rate",
    "spectral_radius": "spectral_radius",
    "saturation": "saturation",
}
_ATTRIBUTES = ("recurrent_matrix", "clipping", "diverged_epoch", "diverged_step", "diverged_reason")
_CURVES = ("log_gradient_norm", "log_direct_gradient_norm", "log_recurrent_gradient_norm")


def as_dataset(looks: Sequence[Look], lags: Sequence[int]) -> xr.Dataset:
    """Return looks in one dataset, dims epoch, layer, time, spectrum_lag, mode, weight.

    Args:
        looks: at least one.
        lags: at which the spectra were taken.

    Returns:
        The dataset, NaN where a look was not finite and where a layer ends before another.
    """
    layers = list(dict.fromkeys(name for one in looks for name in one.measures))
    weights = list(dict.fromkeys(name for one in looks for name in one.gradient_norms))
    whole = [one.measures[name] for one in looks for name in one.measures]
    T = max((len(one.log_gradient_norm) for one in whole), default=1)
    n = max((one.log_singular_values.shape[1] for one in whole), default=1)
    E, K, each = len(looks), len(lags), ("epoch", "layer")
    values: dict[str, tuple[tuple[str, ...], Array]] = {}
    for name in _CURVES:
        values[name] = ((*each, "time"), np.full((E, len(layers), T), np.nan))
    values["log_singular_values_at_lag"] = (
        (*each, "spectrum_lag", "mode"),
        np.full((E, len(layers), K, n), np.nan),
    )
    for name in _SCALARS.values():
        values[name] = (each, np.full((E, len(layers)), np.nan))
    for e, look in enumerate(looks):
        for layer, one in look.measures.items():
            place = layers.index(layer)
            for name in _CURVES:
                curve = getattr(one, name)
                values[name][1][e, place, : len(curve)] = curve
            spectrum = one.log_singular_values
            values["log_singular_values_at_lag"][1][e, place, :, : spectrum.shape[1]] = spectrum
            for attribute, name in _SCALARS.items():
                values[name][1][e, place] = getattr(one, attribute)
    for name, norms in (
        ("log_weight_gradient_norm", [one.gradient_norms for one in looks]),
        ("log_clipped_weight_gradient_norm", [one.clipped_norms for one in looks]),
    ):
        with np.errstate(divide="ignore"):
            table = np.log([[row.get(weight, np.nan) for weight in weights] for row in norms])
        values[name] = (("epoch", "weight"), table.reshape(E, len(weights)))
    values["probe_loss"] = (("epoch",), np.array([one.loss for one in looks]))
    values["tracking_seconds"] = (("epoch",), np.array([one.seconds for one in looks]))
    ds = xr.Dataset({name: (dims, value, labels(name)) for name, (dims, value) in values.items()})
    steps = ("epoch", np.array([one.step for one in looks]), {"long_name": "updates of the weights", "units": "1"})
    ds = ds.assign_coords(
        epoch=("epoch", np.array([one.epoch for one in looks]), {"long_name": "epochs done", "units": "1"}),
        step=steps,
        layer=("layer", np.array(layers, dtype=str)),
        time=("time", np.arange(T), {"long_name": "time step t", "units": "steps"}),
        spectrum_lag=("spectrum_lag", np.array(lags, np.int64), {"long_name": "lag k", "units": "steps"}),
        mode=("mode", np.arange(1, n + 1), {"long_name": "mode i", "units": "1"}),
        weight=("weight", np.array(weights, dtype=str)),
    )
    lengths = np.full(len(layers), -1)
    for look in looks:
        for layer, one in look.measures.items():
            lengths[layers.index(layer)] = len(one.log_gradient_norm) - 1
    return ds.assign_coords(steps=("layer", lengths, {"long_name": "length T of the sequences", "units": "steps"}))


def with_tracked(ds: xr.Dataset, looks: xr.Dataset) -> xr.Dataset:
    """Return a dataset with what a tracker saw of a model with one recurrent layer put into it.

    Every name of a tracker's dataset, of a variable, a coordinate, a dim or an attribute, gets "tracking_" in front,
    and the dim layer goes: decay_rate over (stage, batch) and tracking_decay_rate over (tracking_epoch,) stand side by
    side. Seconds are left to the attribute ``tracking_seconds``, their sum: the same run gives the same variables.

    Args:
        ds: of a run.
        looks: of `GradientTracker.dataset`.
    """
    seen = looks if looks.sizes["layer"] else looks.reindex(layer=["recurrent"])  # none of the looks was finite
    seen = seen.drop_vars(["tracking_seconds", "steps"]).isel(layer=0, drop=True)
    seen = seen.rename({name: f"tracking_{name}" for name in {*seen.variables, *seen.dims}})
    found = ds.assign(seen.data_vars).assign_coords(seen.coords)
    attrs = {f"tracking_{name}": looks.attrs[name] for name in _ATTRIBUTES}
    return found.assign_attrs(attrs, tracking_seconds=float(looks["tracking_seconds"].sum()))


def tracked(ds: xr.Dataset) -> xr.Dataset:
    """Return what a tracker saw of a run that was described with "tracking" in ``measured``, under its own names.

    Args:
        ds: of `gradlab.run`, or one run of a store.

    Returns:
        The dataset of `GradientTracker`, with one layer, "recurrent": what `gl.plot.gradient_flow` and its kind draw.

    Raises:
        ValueError: nothing was tracked, or more than one run is given.

    Example:
        >>> import gradlab as gl
        >>> run = gl.Experiment("tanh", data="latching", length=8, units=2, epochs=1, samples=40, probes=2, held_out=1,
        ...     measured=["tracking"])
        >>> seen = tracked(gl.run(run))
        >>> seen["decay_rate"].dims, seen.sizes["time"]
        (('epoch', 'layer'), 9)
    """
    names = [str(name) for name in ds.variables if str(name).startswith("tracking_")]
    if not names:
        raise ValueError('nothing was tracked in this run; describe it with "tracking" in measured')
    part = ds[names]
    if more := [str(dim) for dim in part.dims if not str(dim).startswith("tracking_")]:
        raise ValueError(f"one run is needed, got the dims {more} as well; choose one: ds.isel({more[0]}=0)")
    found = part.drop_vars([str(name) for name in part.coords if name not in names])
    found = found.rename({name: str(name).removeprefix("tracking_") for name in {*found.variables, *found.dims}})
    whole = {"log_weight_gradient_norm", "log_clipped_weight_gradient_norm", "probe_loss"}  # of all layers together
    found = found.expand_dims(layer=["recurrent"]).assign({name: found[name] for name in whole})
    order = ("epoch", "layer", "time", "spectrum_lag", "mode", "weight")
    found = found.transpose(*order)
    found = found.assign_coords(steps=("layer", [found.sizes["time"] - 1]))
    kept = {name: ds.attrs[f"tracking_{name}"] for name in _ATTRIBUTES if f"tracking_{name}" in ds.attrs}
    return found.assign_attrs({key: value for key, value in ds.attrs.items() if not key.startswith("tracking_")} | kept)

"""All runs of a store as one labelled dataset, of which only what is asked for is read."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Hashable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from gradlab.experiment import Experiment
from gradlab.store import Store, as_store

_DEFAULTS = {field.name: None if field.default is MISSING else field.default for field in fields(Experiment)}
_FROM_ATTRIBUTES = (
    "commit", "dirty", "gradlab_version", "wall_seconds", "training_seconds", "trainable_parameters", "content_hash",
)  # fmt: skip


@dataclass(frozen=True)
class _Form:
    """What one result holds, without its values."""

    key: str
    parameters: dict[str, Any]
    attrs: dict[str, Any]
    sizes: dict[str, int]
    labels: dict[str, tuple[Any, ...]]  # of the dims that have any
    variables: dict[str, tuple[tuple[str, ...], np.dtype[Any], dict[str, Any]]]


def open_store(store: Store | str | os.PathLike[str]) -> xr.Dataset:
    """Return all results of a store as one dataset with the dim run, their values read when they are asked for.

    What a run does not have, as it is shorter or of another cell, is NaN. ``ds.sel(gain=0.5)`` picks runs by a
    parameter that varies. To have some of these as dims, name all that vary:
    ``ds[["decay_rate"]].set_index(run=["gain", "seed"]).unstack()``.

    Args:
        store: a folder, an fsspec URL, or a `Store`.

    Returns:
        Every variable of any of the results, with dim run in front. Coordinates: every field of `Experiment`, over run
        if it varies; key, commit, whether the tree was dirty, wall_seconds, training_seconds, trainable_parameters,
        content_hash; status over run and stage, "ok" or why a network could not be measured. (A field with the name of
        a dim is called ``parameter_<name>``; a field that was not there yet when a run was made has its default.)
        Attributes: ``failed``, a list of key, experiment and error for each run that failed when it was last made;
        ``unreadable``, messages on files that are damaged, foreign or of an unknown version. A warning says how many
        there are of either.

    Raises:
        FileNotFoundError: there is nothing there.

    Example:
        >>> import gradlab as gl
        >>> configs = [gl.Experiment("tanh", gain=g, data="noise", units=4, epochs=0, probes=2) for g in (0.8, 1.2)]
        >>> _ = gl.sweep(configs, "memory://open-example", progress=False)
        >>> ds = open_store("memory://open-example")
        >>> ds["gain"].values, ds["decay_rate"].dims, ds.attrs["failed"]
        (array([0.8, 1.2]), ('run', 'stage', 'batch'), [])
    """
    store = as_store(store)
    forms, unreadable = [], []
    for key in store.finished():
        try:
            with store.opened(key) as ds:
                forms.append(_form(key, ds))
        except ValueError as error:
            unreadable.append(str(error))
    failures = store.failures()
    if not forms and not failures and not unreadable:
        raise FileNotFoundError(f"no results in {store.location}; gl.sweep(configs, store) makes them")
    forms.sort(key=lambda form: [(value is None, str(type(value)), value) for value in form.parameters.values()])
    made = _together(store, forms) if forms else xr.Dataset()
    made.attrs["title"] = f"{len(forms)} runs"
    made.attrs["failed"] = [
        {"key": key, "experiment": one.get("experiment"), "error": one.get("error")} for key, one in failures.items()
    ]
    made.attrs["unreadable"] = unreadable
    older = "" if failures.keys().isdisjoint(form.key for form in forms) else " (reuse='none' where an older result is)"
    for name, found in (("failed", list(failures)), ("unreadable", unreadable)):
        if found:
            warnings.warn(
                f"{len(found)} runs of {store.location} are {name}, the first: {found[0]}; see"
                f" ds.attrs[{name!r}], and gl.sweep makes them again{older}",
                stacklevel=2,
            )
    return made


def _form(key: str, ds: xr.Dataset) -> _Form:
    """Return what a result holds."""
    parameters = json.loads(ds.attrs.get("experiment", "{}"))
    known = {name: parameters.get(name, default if parameters else None) for name, default in _DEFAULTS.items()}
    return _Form(
        key,
        {
            name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in known.items()
        },
        ds.attrs,
        {str(name): size for name, size in ds.sizes.items()},
        {str(name): tuple(ds[name].values.tolist()) for name in ds.dims if name in ds.variables},
        {
            str(name): (tuple(map(str, v.dims)), v.dtype, v.attrs)
            for name, v in ds.variables.items()
            if name not in ds.dims
        },
    )


def _together(store: Store, forms: list[_Form]) -> xr.Dataset:
    """Return the dataset over all runs."""
    sizes: dict[str, int] = {}
    labels: dict[str, list[Any]] = {}
    for form in forms:
        for dim, size in form.sizes.items():
            sizes[dim] = max(size, sizes.get(dim, 0))
            labels[dim] = list(dict.fromkeys([*labels.get(dim, []), *form.labels.get(dim, ())]))
    for dim, known in labels.items():
        if known:
            labels[dim] = known if any(isinstance(one, str) for one in known) else sorted(known)
            sizes[dim] = len(known)
    places = [
        {dim: _places(form.labels.get(dim), size, labels[dim]) for dim, size in form.sizes.items()} for form in forms
    ]
    keys = [form.key for form in forms]
    variables: dict[str, xr.Variable] = {}
    for name in dict.fromkeys(name for form in forms for name in form.variables):
        having = [form.variables[name] for form in forms if name in form.variables]
        dims, _, attrs = max(having, key=lambda one: len(one[0]))
        if any(one[0] != dims for one in having):
            raise ValueError(
                f"{name} has dims {sorted({one[0] for one in having})} in {store.location}; keep runs apart"
            )
        shape = tuple(sizes[dim] for dim in dims)
        whole = len(having) == len(forms) and all(form.sizes[dim] == sizes[dim] for form in forms for dim in dims)
        kind, fill = _kind([one[1] for one in having], whole)
        lazy = _Runs(store, keys, name, [[place.get(dim) for dim in dims] for place in places], shape, kind, fill)
        variables[name] = xr.Variable(("run", *dims), indexing.LazilyIndexedArray(lazy), attrs)
    coords: dict[Hashable, Any] = {dim: (dim, known) for dim, known in labels.items() if known}
    for name in forms[0].parameters:
        label = f"parameter_{name}" if name in sizes or name in variables else name
        coords[label] = _coordinate([form.parameters[name] for form in forms])
    coords["key"] = ("run", keys)
    for name in _FROM_ATTRIBUTES:
        coords[name] = ("run", np.array([form.attrs.get(name, np.nan) for form in forms]))
    stages = labels.get("stage", [])
    if stages and "status" not in variables:
        said = [[str(form.attrs.get(f"status_{stage}", "")) for stage in stages] for form in forms]
        coords["status"] = (("run", "stage"), np.array(said))
    if "lag" in variables:  # a coordinate of every result
        coords["lag"] = variables.pop("lag")
    return xr.Dataset(variables, coords)


def _places(own: tuple[Any, ...] | None, size: int, known: list[Any]) -> NDArray[np.intp] | None:
    """Return where the entries of one run go along a dim; None if each stays where it is."""
    if own is None or list(own) == known[:size]:
        return None
    at = {label: place for place, label in enumerate(known)}
    return np.array([at[label] for label in own], np.intp)


def _kind(dtypes: Iterable[np.dtype[Any]], whole: bool) -> tuple[np.dtype[Any], Any]:
    """Return the type that holds them all, and what stands for nothing."""
    kinds = {dtype.kind for dtype in dtypes}
    if kinds & set("OUST"):
        return np.dtype(object), ""
    found = np.result_type(*dtypes)
    return (found, 0) if whole else (np.result_type(found, np.float64), np.nan)


def _coordinate(values: list[Any]) -> Any:
    """Return a parameter as a coordinate: over run if it varies, None as NaN beside numbers and "none" beside text."""
    if any(isinstance(value, str) for value in values) or all(value is None for value in values):
        values = ["none" if value is None else str(value) for value in values]
    elif any(value is None for value in values):
        values = [np.nan if value is None else float(value) for value in values]
    return values[0] if len(set(values)) == 1 else ("run", np.array(values))


class _Runs(BackendArray):
    """One variable over all runs, [run, …]: a run's file is opened when a value of that run is read."""

    def __init__(
        self,
        store: Store,
        keys: list[str],
        name: str,
        places: list[list[NDArray[np.intp] | None]],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        fill: Any,
    ) -> None:
        self.store, self.keys, self.name, self.places, self.fill = store, keys, name, places, fill
        self.shape, self.dtype = (len(keys), *shape), dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the values that an indexer of xarray picks."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        chosen = np.arange(self.shape[0])[key[0]]
        read = [self._one(int(run), key[1:]) for run in np.atleast_1d(chosen)]
        if np.ndim(chosen) == 0:
            return read[0]
        empty = np.empty((0, *self.shape[1:]), self.dtype)
        return np.stack(read) if read else _outer(empty, (slice(None), *key[1:]))

    def _one(self, run: int, key: tuple[Any, ...]) -> NDArray[Any]:
        values = np.full(self.shape[1:], self.fill, self.dtype)
        with self.store.opened(self.keys[run]) as ds:
            if self.name in ds.variables:
                own = np.asarray(ds[self.name].values)
                at = [
                    np.arange(size) if place is None else place
                    for size, place in zip(own.shape, self.places[run], strict=True)
                ]
                values[np.ix_(*at)] = own
        return _outer(values, key)


def _outer(values: NDArray[Any], key: tuple[Any, ...]) -> NDArray[Any]:
    """Index each axis by itself; the last first, so that an axis that goes does not move those still to come."""
    for axis in range(len(key) - 1, -1, -1):
        values = values[(slice(None),) * axis + (key[axis],)]
    return values

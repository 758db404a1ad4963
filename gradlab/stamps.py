"""What every stored run carries: its description, the hashes of description and numbers, and what made it."""

from __future__ import annotations

import json

import xarray as xr

from gradlab.experiment import Experiment
from gradlab.provenance import provenance, thread_pools
from gradlab.results import SCHEMA_VERSION, content_hash


def stamped(ds: xr.Dataset, experiment: Experiment, seconds: float) -> xr.Dataset:
    """Return a dataset with the description of its run in its attributes, ready to be stored.

    Args:
        ds: the numbers; what it says of its provenance is kept.
        experiment: what was run.
        seconds: that it took.

    Returns:
        The same variables, with the attributes of `provenance` and ``experiment`` (JSON), ``experiment_hash``,
        ``content_hash`` (see `gradlab.results.content_hash`), ``wall_seconds`` and ``thread_pools``.

    Example:
        >>> ds = stamped(xr.Dataset({"rate": -0.1}), Experiment("tanh", seed=3), 0.25)
        >>> ds.attrs["seed"], ds.attrs["wall_seconds"], ds.attrs["experiment_hash"] == Experiment("tanh", seed=3).hash
        (3, 0.25, True)
    """
    return ds.assign_attrs(
        provenance(experiment.seed)
        | ds.attrs
        | {
            "seed": experiment.seed,
            "schema_version": SCHEMA_VERSION,
            "experiment": json.dumps(experiment.as_dict()),
            "experiment_hash": experiment.hash,
            "content_hash": content_hash(ds),
            "wall_seconds": round(seconds, 3),
            "thread_pools": thread_pools(),
        }
    )

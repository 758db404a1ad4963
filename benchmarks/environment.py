"""What the figures of a benchmark depend on: versions, commit, threads, load; no names of machines."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Any

from threadpoolctl import threadpool_info

from gradlab.results import provenance


def environment(seed: int | None = None, peers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return gradlab's provenance, the versions of the peers, the threads of BLAS and the load of the machine.

    Args:
        seed: of the benchmark.
        peers: packages compared with; one that is not installed is on record as such.
    """
    found: dict[str, Any] = dict(provenance(seed))
    for name in peers:
        try:
            found[f"{name}_version"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[f"{name}_version"] = "not installed"
    pools = threadpool_info()
    found["blas"] = sorted({f"{one['internal_api']} {one['version']}: {one['num_threads']} threads" for one in pools})
    if hasattr(os, "getloadavg"):  # far above 1 per core, the times are somebody else's as well
        found["load_average_15_minutes"] = round(os.getloadavg()[2], 1)
    return found

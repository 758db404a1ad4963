"""One run of a sweep as a task: made wherever a worker is, its result or its failure put into the store."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from gradlab.blas import one_blas_thread
from gradlab.experiment import Experiment
from gradlab.results import ForeignFile
from gradlab.stamps import stamped
from gradlab.store import Store, StoreError

Run = Callable[[Experiment], xr.Dataset]
DONE, KEPT, FAILED = "done", "kept", "failed"
GROWTH = 2**30  # bytes by which a worker may grow: TensorFlow keeps what it traced, some 14 MiB for an architecture


@dataclass(frozen=True)
class Job:
    """What every run of a sweep has in common, as it is sent to the workers.

    Attributes:
        location: of the store.
        token: of the sweep, in the store while it is at work and in the results that it makes.
        reuse: which results are kept.
        run: makes the datasets; None for `gradlab.run`.
        made_by: its name, see `name_of`.
        growth: bytes by which a worker may grow.
    """

    location: str
    token: str
    reuse: str
    run: Run | None
    made_by: str
    growth: int = GROWTH


@dataclass(frozen=True)
class Outcome:
    """What became of one run: "done", "kept" (the store has it by now) or "failed", with the error."""

    experiment: Experiment
    status: str
    seconds: float = 0.0
    error: str = ""


def name_of(run: Run | None) -> str:
    """Return the name under which a store knows the function that makes its results.

    Raises:
        ValueError: nothing tells the function from others: a lambda, or a partial with arguments that do not say what
            they are.

    Example:
        >>> name_of(None), name_of(os.path.basename), name_of(functools.partial(os.path.basename, "a"))
        ('gradlab.run', 'posixpath.basename', "posixpath.basename(*('a',), **{})")
    """
    if run is None:
        return "gradlab.run"
    if isinstance(run, functools.partial):
        name = f"{name_of(run.func)}(*{run.args!r}, **{run.keywords!r})"
    else:
        named = run if hasattr(run, "__qualname__") else type(run)
        name = f"{_module_of(named)}.{named.__qualname__}"
    if "<lambda>" in name or re.search(r" at 0x[0-9a-fA-F]+>", name):
        raise ValueError(
            f"run must have a name by which the store tells its results from those of another function, got {name};"
            " use a function made with def"
        )
    return "gradlab.run" if name == "gradlab.runs.run" else name


def _module_of(named: Any) -> str:
    """Return the name of a module; that of a script as if it were imported."""
    name = str(named.__module__)
    if name == "__main__":
        script = sys.modules[name]
        spec, file = getattr(script, "__spec__", None), getattr(script, "__file__", None)
        return str(spec.name) if spec else Path(file).stem if file else name
    return name


def perform(job: Job, experiment: Experiment, store: Store | None = None) -> Outcome:
    """Make one run and put its result, or its failure, into the store: the task that a worker is given.

    Args:
        job: what it has in common with the others.
        experiment: what to run.
        store: the sweep's own, where it is in this process.

    Raises:
        StoreError: the store is in the way, and no run can help that.
    """
    if store is None:
        store = Store(job.location)
        store.check(job.token)
        if store.made_in(experiment, job.token):  # by a worker that died before it could say so
            return Outcome(experiment, DONE)
        # The process is a worker's. Before TensorFlow is first imported, which happens within the run: its own threads
        # would fight for one core.
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ.setdefault(name, "1")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        # another sweep on the same store may have been faster
        if store.refusal(experiment, job.reuse, job.made_by) is None:
            return Outcome(experiment, KEPT)
    except ForeignFile as error:  # it has come since the sweep looked
        return Outcome(experiment, FAILED, error=str(error))
    started = time.perf_counter()
    try:
        run = _function(job)  # first: it loads libraries whose threads are to be counted
        with one_blas_thread():
            ds = run(experiment)
            # whatever it says of itself: it may have grown out of another result, and have its hashes still
            ds = stamped(ds, experiment, time.perf_counter() - started)
        store.write(experiment, ds.assign_attrs(made_by=job.made_by, sweep=job.token))
    except StoreError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        store.write_failure(experiment, said, _trace(error))
        return Outcome(experiment, FAILED, time.perf_counter() - started, said)
    return Outcome(experiment, DONE, time.perf_counter() - started)


def _function(job: Job) -> Run:
    """Return what makes the datasets."""
    if job.run is not None:
        return job.run
    from gradlab.runs import run

    return run


def _trace(error: BaseException) -> str:
    """Return a traceback without the folders of this machine: a record of failures can be published as it is."""
    root = str(Path(__file__).resolve().parent.parent) + os.sep

    def shorten(filename: str) -> str:
        if filename.startswith(root):
            return filename.removeprefix(root)
        return filename.rpartition("site-packages" + os.sep)[2] if "site-packages" in filename else Path(filename).name

    found = traceback.TracebackException.from_exception(error)
    waiting = [found]
    while waiting:
        one = waiting.pop()
        for frame in one.stack:
            frame.filename = shorten(frame.filename)
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "".join(found.format())

"""One run of a sweep as a task: made wherever a worker is, its result or its failure put into the store."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """What every run of a sweep has in common, as it is sent to the workers."""

    location: str
    token: str
    reuse: str
    run: Run | None
    growth: int = GROWTH

    @property
    def made_by(self) -> str:
        """The name of the function that makes the results."""
        return "gradlab.run" if self.run is None else str(getattr(self.run, "__qualname__", type(self.run).__name__))


@dataclass(frozen=True)
class Outcome:
    """What became of one run: "done", "kept" (the store has it by now) or "failed", with the error."""

    experiment: Experiment
    status: str
    seconds: float = 0.0
    error: str = ""


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
    with contextlib.suppress(ForeignFile):  # of that the plan has told
        # another sweep on the same store, or a worker that was taken for dead, may have been faster
        if store.refusal(experiment, job.reuse, job.made_by) is None:
            return Outcome(experiment, KEPT)
    # before TensorFlow is first imported, which happens within the run; its own threads would fight for one core
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    started = time.perf_counter()
    try:
        run = _function(job)  # first: it loads libraries whose threads are to be counted
        with one_blas_thread():
            ds = run(experiment)
        if "content_hash" not in ds.attrs:
            ds = stamped(ds, experiment, time.perf_counter() - started)
        store.write(experiment, ds.assign_attrs(made_by=job.made_by))
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

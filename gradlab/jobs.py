"""One run of a sweep as a task: made wherever a worker is, its result or its failure put into the store."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
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
_PLAIN = (bool, int, float, complex, str, bytes)
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

    It holds the module, the function, the arguments of a partial, and what numbers and strings a function that was made
    within another one uses of that.

    Raises:
        ValueError: nothing tells the function from others: a lambda, an object or its method, or a partial with
            arguments that are not numbers, strings and the like.

    Example:
        >>> name_of(None), name_of(os.path.basename), name_of(functools.partial(os.path.basename, "a"))
        ('gradlab.run', 'posixpath.basename', "posixpath.basename(*('a',), **{})")
    """
    if run is None:
        return "gradlab.run"
    wrong = ""
    if isinstance(run, functools.partial):
        if not all(map(_is_plain, (*run.args, *run.keywords.values()))):
            wrong = "arguments that are not plain values"
        name = f"{name_of(run.func)}(*{run.args!r}, **{run.keywords!r})"
    else:
        name = f"{_module_of(run)}.{getattr(run, '__qualname__', type(run).__qualname__)}"
        if not inspect.isroutine(run):
            wrong = "an object whose state the name leaves out"
        elif inspect.ismethod(run):
            wrong = "a method of an object whose state the name leaves out"
        elif "<lambda>" in name:
            wrong = "a function without a name"
        name += _surroundings(run)
    if wrong:
        raise ValueError(
            f"run must have a name by which the store tells its results from those of another function, got {name},"
            f" {wrong}; use a function made with def, or functools.partial of one with numbers and strings"
        )
    return "gradlab.run" if name == "gradlab.runs.run" else name


def _surroundings(run: Any) -> str:
    """Return the numbers and strings that a function uses of the one in which it was made, as text."""
    cells = zip(run.__code__.co_freevars, run.__closure__, strict=True) if getattr(run, "__closure__", None) else ()
    found = {}
    for name, cell in cells:
        with contextlib.suppress(ValueError):  # not yet set
            if type(cell.cell_contents) in _PLAIN:  # not lists, to which a function may add
                found[name] = cell.cell_contents
    return f"[{', '.join(f'{name}={value!r}' for name, value in found.items())}]" if found else ""


def _is_plain(value: Any) -> bool:
    """Return whether the text of a value says all that there is to it."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or type(value) in _PLAIN


def _module_of(named: Any) -> str:
    """Return the name of a module; that of a script as if it were imported."""
    name = str(getattr(named, "__module__", type(named).__module__))
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

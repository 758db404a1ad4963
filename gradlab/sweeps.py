"""Sweeps: many described runs into one store, in this process, in a pool of workers, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from gradlab.experiment import Experiment
from gradlab.jobs import DONE, FAILED, GROWTH, KEPT, Job, Outcome, Run, name_of, perform
from gradlab.results import ForeignFile
from gradlab.store import REUSE, Store, as_store
from gradlab.validation import positive_integer

RENEWAL = 3600.0  # seconds after which the sign that a sweep is at work is made young again


@dataclass(frozen=True)
class Sweep:
    """What a sweep did.

    Attributes:
        store: where the results are.
        experiments: what was asked for, each once.
        done: how many were run.
        kept: how many results were in the store, or put there by another sweep before their turn came.
        failed: what failed, experiment → error; the store has the tracebacks.
        seconds: that it took.
    """

    store: Store
    experiments: tuple[Experiment, ...]
    done: int
    kept: int
    failed: dict[Experiment, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"{self.done} runs made, {self.kept} kept, {len(self.failed)} failed, in {self.seconds:.0f} s"]
        lines += [f"  {experiment.key}: {error}" for experiment, error in self.failed.items()]
        return "\n".join(lines)


def sweep(
    configs: Iterable[Experiment | Mapping[str, Any]],
    store: Store | str | os.PathLike[str],
    scheduler: str | None = None,
    *,
    workers: int | None = None,
    run: Run | None = None,
    reuse: str = "any",
    progress: bool = True,
) -> Sweep:
    """Run what the store does not have yet, here or on many machines: the same call and the same numbers.

    Each result is in the store as soon as it is finished. A run that fails is on record there with its traceback and
    does not stop the others; it is tried again by the next sweep. A sweep that was interrupted goes on when the same
    call is made again. When a worker dies, the run it was at is made by another one; a run at which every worker dies
    fails.

    Args:
        configs: the descriptions; one that comes twice is run once.
        store: a folder, an fsspec URL such as s3://bucket/runs, or a `Store`. Workers write to it themselves, so they
            must see it under the same name.
        scheduler: the address of a Dask scheduler, "tcp://host:8786", started by ``dask scheduler``, with workers
            started by ``dask worker tcp://host:8786 --nthreads 1 --nworkers 8``; None to run on this machine.
        workers: size of a pool of spawned processes on this machine, with one thread each; None to run in this
            process. A script that has a pool needs ``if __name__ == "__main__":``. TensorFlow never gives back what it
            traced, some 14 MiB for each architecture: a worker that has grown by 1 GiB is replaced, this process not.
        run: makes the dataset of an experiment, `gradlab.run` if not given. Workers must be able to import it, and a
            store holds the results of one such function, which it knows by module and name: no lambda. What it returns
            is stamped anew with the description and the hash of the numbers.
        reuse: which results in the store are kept: "any", those made by the "same-code" (version and commit, without
            changes since), or "none".
        progress: whether to show a bar with what is done, failed, left, and the time to go.

    Returns:
        What was done. `gradlab.open_store` gives the results as one dataset.

    Raises:
        ValueError, TypeError: a description is wrong (none is run then) or there is none, or an argument.
        StoreError: the store is full or cannot be written to; what is finished is safe.
        ConnectionError: there is no scheduler at the address, or it was lost; what is finished is safe.
        ImportError: workers or a scheduler are asked for, and Dask is not installed.

    Example:
        >>> import gradlab as gl
        >>> configs = [gl.Experiment("tanh", gain=g, data="noise", units=4, epochs=0, probes=2) for g in (0.8, 1.2)]
        >>> print(sweep(configs, "memory://sweep-example", progress=False))
        2 runs made, 0 kept, 0 failed, in ... s
        >>> sweep(configs, "memory://sweep-example", progress=False).kept
        2
    """
    if reuse not in REUSE:
        raise ValueError(f"reuse must be one of {list(REUSE)}, got {reuse!r}")
    if scheduler is not None and workers is not None:
        raise ValueError(f"a cluster has its own workers, got scheduler={scheduler!r} and workers={workers}; drop one")
    if workers is not None:
        workers = positive_integer("workers", workers)
    if isinstance(configs, Experiment | Mapping):
        raise TypeError("configs must be a list of descriptions, got one; put brackets around it")
    wanted = tuple(dict.fromkeys(map(Experiment.from_dict, configs)))  # all are checked before any is run
    store, started = as_store(store), time.perf_counter()
    if not wanted:
        raise ValueError("configs must hold at least one description, got none")
    job = Job(store.location, uuid.uuid4().hex[:16], reuse, run, name_of(run), GROWTH)
    todo, kept, failed = _plan(wanted, store, job)
    done = 0
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(todo), unit="run", dynamic_ncols=True, disable=not progress)
    store.begin(job.token)
    made = _outcomes(todo, store, job, scheduler, workers)
    try:
        with bar, _renewed(store, job.token), contextlib.closing(made):
            for outcome in made:
                done += outcome.status == DONE
                kept += outcome.status == KEPT
                if outcome.status == FAILED:
                    failed[outcome.experiment] = outcome.error
                    tqdm.write(f"{outcome.experiment.key} failed: {outcome.error}", file=sys.stderr)
                bar.set_postfix(done=done + kept, failed=len(failed), left=bar.total - bar.n - 1, refresh=False)
                bar.update()
    finally:
        store.end(job.token)
    return Sweep(store, wanted, done, kept, failed, time.perf_counter() - started)


@contextlib.contextmanager
def _renewed(store: Store, token: str) -> Generator[None]:
    """Keep the sign that a sweep is at work young, however long it waits for a worker or a run."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWAL):
            store.renew(token)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _plan(
    wanted: tuple[Experiment, ...], store: Store, job: Job
) -> tuple[list[Experiment], int, dict[Experiment, str]]:
    """Return what is to be run, how many results are kept, and what cannot be run as a foreign file is in the way."""
    todo, failed = [], {}
    there = set(store.finished())
    for experiment in wanted:
        try:
            why = store.refusal(experiment, job.reuse, job.made_by) if experiment.key in there else ""
        except ForeignFile as error:
            failed[experiment] = str(error)
            tqdm.write(str(error), file=sys.stderr)
            continue
        if why is not None:
            todo.append(experiment)
        if why:
            tqdm.write(why, file=sys.stderr)
    return todo, len(wanted) - len(todo) - len(failed), failed


def _outcomes(
    todo: list[Experiment], store: Store, job: Job, scheduler: str | None, workers: int | None
) -> Generator[Outcome, None, None]:
    """Yield what becomes of each run, in the order in which they finish."""
    if not todo:
        return
    if scheduler is None and workers is None:
        for experiment in todo:
            yield perform(job, experiment, store)
        return
    from gradlab.cluster import cluster_at, outcomes_of, pool_of  # Dask: an extra, and a second to import

    with cluster_at(scheduler) if scheduler is not None else pool_of(min(workers or 1, len(todo))) as client:
        yield from outcomes_of(client, todo, store, job)

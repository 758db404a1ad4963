"""Runs on Dask: a pool of processes on this machine, or whatever workers a scheduler has."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from gradlab.experiment import Experiment
from gradlab.jobs import DONE, FAILED, Job, Outcome, perform
from gradlab.store import Store

PATIENCE = "10s"  # for a scheduler to answer
IN_FLIGHT = 1000  # runs that the scheduler holds at a time: some hundred workers stay busy, and its memory stays small

_after_first_run: dict[str, int] = {}  # the memory of this process, if it is a worker


def _distributed() -> Any:
    """Return the module."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError('workers and schedulers need Dask: pip install "gradlab[sweep]"') from error
    return distributed


@contextmanager
def pool_of(workers: int) -> Iterator[Any]:
    """Give the client of spawned processes on this machine, with one thread each, and stop them afterwards.

    They listen on the loopback interface only. One that is killed is replaced.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker that reads the script it is of
        raise RuntimeError(
            'a pool starts processes that read the script anew: put the call under `if __name__ == "__main__":`'
        )
    distributed = _distributed()
    with (
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None takes the default port, and warns where that is taken
            memory_limit=0,  # Dask would pause a worker that is near its share, and TensorFlow never gives any back
            silence_logs=logging.CRITICAL,  # of a worker that dies, the sweep tells
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def cluster_at(address: str) -> Iterator[Any]:
    """Give a client of the scheduler at an address.

    Raises:
        ConnectionError: there is none.
    """
    distributed = _distributed()
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(
            f"scheduler must be the address of a Dask scheduler, got {address!r}, where none answers ({error});"
            " start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`"
        ) from error
    with client:
        threads = [one["nthreads"] for one in client.scheduler_info()["workers"].values()]
        if not threads:
            _say(f"{address} has no workers yet, and the sweep waits; start some: dask worker {address} --nthreads 1")
        elif max(threads) > 1:
            _say(
                f"a worker has {max(threads)} threads, and the runs of one process take turns;"
                " start workers with --nthreads 1 --nworkers N"
            )
        yield client


def outcomes_of(client: Any, todo: list[Experiment], store: Store, job: Job) -> Iterator[Outcome]:
    """Yield what becomes of each run on a cluster, in the order in which they finish; cancel the rest when closed.

    Raises:
        StoreError: a worker cannot write to the store, or sees another one.
        ConnectionError: the scheduler was lost.
    """
    distributed = _distributed()
    waiting, running = iter(todo), dict[Any, Experiment]()
    suspects: list[Experiment] = []  # at a worker when it died, but perhaps only in its queue
    tried_alone: set[Experiment] = set()
    finished = distributed.as_completed(loop=client.loop)

    def submit() -> None:
        experiment = next(waiting, None)
        if experiment is None and suspects and not running:
            tried_alone.add(experiment := suspects.pop())
        if experiment is not None:
            # of one group, so that the scheduler keeps the queue and not the workers; the token, for another sweep may
            # be at the same run; the count, for what has failed once under a name has failed
            key = (f"run-{job.token}", experiment.key, int(experiment in tried_alone))
            future = client.submit(work, job, experiment, key=key, pure=False)
            running[future] = experiment
            finished.add(future)

    try:
        for _ in range(IN_FLIGHT):
            submit()
        for future in finished:
            experiment = running.pop(future)
            if future.cancelled() or future.status == "lost":
                raise ConnectionError(_lost(client, store))
            error = future.exception() if future.status == "error" else None
            if isinstance(error, distributed.KilledWorker) and experiment not in tried_alone:
                suspects.append(experiment)
            elif isinstance(error, distributed.KilledWorker):
                said = "KilledWorker: every worker that was at this run died, it may need more memory than they have"
                store.write_failure(experiment, said, f"{said}\n")  # Dask's words name a machine
                yield Outcome(experiment, FAILED, error=said)
            elif error is not None:
                raise error
            else:
                yield future.result()
            submit()
    except (distributed.comm.CommClosedError, CancelledError) as error:
        raise ConnectionError(_lost(client, store)) from error
    finally:
        if running and client.status == "running":
            client.cancel(list(running), force=True)


def work(job: Job, experiment: Experiment) -> Outcome:
    """Make one run in a worker, which is replaced by a fresh one if it has grown too much."""
    outcome = perform(job, experiment)
    # one that was not made here says nothing of memory; one that failed, the next worker would have to do again
    if outcome.status != DONE or not outcome.seconds:
        return outcome
    worker = _distributed().get_worker()
    memory = int(worker.monitor.proc.memory_info().rss)
    if memory > _after_first_run.setdefault("bytes", memory) + job.growth and worker.nanny:
        # The result is in the store, where the worker that is given this run next finds it. To close gracefully may
        # hang when all workers do so at once; that one dies, Dask is prepared for.
        os._exit(0)
    return outcome


def _lost(client: Any, store: Store) -> str:
    """Return what to say when the scheduler is gone."""
    return (
        f"the scheduler at {client.scheduler.address if client.scheduler else 'the address given'} was lost; every"
        f" finished run is in {store.location}: start it again and make the same call, which runs only what is missing"
    )


def _say(text: str) -> None:
    """Print to where the progress bar is."""
    tqdm.write(text, file=sys.stderr)

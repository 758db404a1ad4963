"""Work in two stages on several cores: the first in the order of each line of jobs, the second when there is time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Condition
from types import TracebackType
from typing import Generic, TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")
AHEAD = 2  # jobs of a line that wait, at most: they take memory


class TwoStages(Generic[Job, Made]):
    """Calls second(job, first(job)) for all jobs, in threads; the first stages of a line are done in its order.

    Who has done a first stage does the second one too, while what it works on is still in that core's cache; another
    may go on with the line. So no more than one result for each thread is held.

    To be used in a `with` statement, which ends when all is done. What a stage raises comes out of `add` or of the end
    of the statement, and nothing more is begun.

    Args:
        first: what a job has to wait for its predecessor with.
        second: what it has not.
        lines: how many.
        workers: threads.

    Example:
        >>> done = []
        >>> with TwoStages(lambda x: x * x, lambda x, y: done.append((x, y)), lines=2, workers=3) as work:
        ...     for x in range(4):
        ...         work.add(x % 2, x)
        >>> sorted(done)
        [(0, 0), (1, 1), (2, 4), (3, 9)]
    """

    def __init__(
        self, first: Callable[[Job], Made], second: Callable[[Job, Made], None], *, lines: int, workers: int
    ) -> None:
        self._first, self._second = first, second
        self._jobs: list[deque[Job]] = [deque() for _ in range(lines)]
        self._busy = [False] * lines
        self._ended = self._failed = False
        self._changed = Condition()
        self._pool = ThreadPoolExecutor(workers)
        self._workers = workers
        self._threads: list[Future[None]] = []

    def add(self, line: int, job: Job) -> None:
        """Put a job at the end of a line; waits while there are as many as may wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or len(self._jobs[line]) < AHEAD)
            self._jobs[line].append(job)
            self._changed.notify_all()
            failed = self._failed
        if failed:
            self._raise()

    def __enter__(self) -> TwoStages[Job, Made]:
        """Start the threads, or as many as the system lets start."""
        try:
            for _ in range(self._workers):
                self._threads.append(self._pool.submit(self._work))
        except BaseException as error:
            if not (isinstance(error, RuntimeError) and self._threads):
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait until all is done; or, after an error, for what has begun."""
        with self._changed:
            self._ended, self._failed = True, self._failed or kind is not None
            self._changed.notify_all()
        try:
            self._pool.shutdown()
        except BaseException:  # interrupted: begin nothing more
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        """Raise what a thread has raised, once they all have ended."""
        for thread in self._threads:
            thread.result()

    def _work(self) -> None:
        """Do what there is to do until there is no more."""
        try:
            while (task := self._next()) is not None:
                task()
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise

    def _next(self) -> Callable[[], None] | None:
        """Wait for a job whose predecessor is through with its first stage; None when there will be no more."""
        with self._changed:
            while not self._failed:
                line = next((i for i, jobs in enumerate(self._jobs) if jobs and not self._busy[i]), None)
                if line is not None:
                    self._busy[line] = True
                    job = self._jobs[line].popleft()
                    self._changed.notify_all()
                    return partial(self._both, line, job)
                if self._ended and not any(self._jobs):
                    return None
                self._changed.wait()
            return None

    def _both(self, line: int, job: Job) -> None:
        """Do both stages of a job."""
        made = self._first(job)
        with self._changed:
            self._busy[line] = False
            self._changed.notify_all()
        self._second(job, made)

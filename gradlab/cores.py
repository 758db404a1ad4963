"""Pieces of work shared out among the cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from gradlab.blas import one_blas_thread

Piece = TypeVar("Piece")


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_cores(call: Callable[[Piece], object], pieces: Iterable[Piece]) -> None:
    """Do call(piece) for all pieces, on all cores, each with one BLAS thread.

    The calling thread takes part, so that it works, if slower, where the system lets no other start. After an error no
    further piece is begun, and the error comes out when the others have ended.

    Example:
        >>> squares = [0] * 5
        >>> def square(i):
        ...     squares[i] = i * i
        >>> over_cores(square, range(5))
        >>> squares
        [0, 1, 4, 9, 16]
    """
    waiting = deque(pieces)

    def work() -> None:
        while True:
            try:
                piece = waiting.popleft()
            except IndexError:
                return
            try:
                call(piece)
            except BaseException:
                waiting.clear()
                raise

    helpers = min(usable_cores(), len(waiting)) - 1
    others: list[Future[None]] = []
    with one_blas_thread(), ThreadPoolExecutor(max(1, helpers)) as pool:
        with suppress(RuntimeError):  # as many as can be started
            for _ in range(helpers):
                others.append(pool.submit(work))
        work()
    for other in others:
        other.result()

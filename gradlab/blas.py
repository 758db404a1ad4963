"""BLAS kept to one thread while many small matrices are worked on."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_holders = 0
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread for a while: on small matrices its threads cost more than they bring.

    The limit is the whole process's, so callers in several threads share it: the first sets it, the last lifts it.
    """
    global _holders, _limit
    with _lock:
        if _holders == 0:
            _limit = _libraries().limit(limits=1, user_api="blas")
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                _release_control()  # from the thread that set the limit: no other may lift it otherwise
                _limit.restore_original_limits()
                _release_control()


def _release_control() -> None:
    """Let any thread set the limits; threadpoolctl keeps that to the first that did, and others then do nothing."""
    for library in _libraries().lib_controllers:
        release = getattr(library, "clear_controlling_thread", None)
        if release is not None:
            release(force=True)


@functools.cache
def _libraries() -> ThreadpoolController:
    """The BLAS libraries of NumPy and SciPy; looking for them takes milliseconds, so once."""
    return ThreadpoolController()

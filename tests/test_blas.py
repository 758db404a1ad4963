"""The one-thread limit on BLAS is shared by callers in several threads, and lifted by the last."""

from __future__ import annotations

import threading

from threadpoolctl import threadpool_info

from gradlab.blas import one_blas_thread


def threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_the_last_to_leave_lifts_the_limit() -> None:
    before = threads()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with one_blas_thread():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with one_blas_thread():
        other.start()
        assert inside.wait(10)
    assert set(threads()) == {1}  # the other one is still at work
    leave.set()
    other.join()
    assert threads() == before

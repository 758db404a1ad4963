"""Work over cores: everything is done once, errors come out, and it goes on where no thread can be started."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab import cores


@settings(deadline=None, max_examples=30)
@given(pieces=st.integers(0, 12), available=st.integers(1, 4))
def test_all_is_done_once(pieces: int, available: int) -> None:
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cores, "usable_cores", lambda: available)
        cores.over_cores(done.append, range(pieces))
    assert sorted(done) == list(range(pieces))


def test_cores_work_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    together = threading.Barrier(3, timeout=10)
    cores.over_cores(lambda piece: together.wait(), range(3))  # raises unless three are at work


@pytest.mark.parametrize("available", [1, 3])
def test_an_error_comes_out_and_nothing_more_is_begun(available: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: available)
    begun = []

    def call(piece: int) -> None:
        begun.append(piece)
        raise ZeroDivisionError(str(piece))

    with pytest.raises(ZeroDivisionError):
        cores.over_cores(call, range(100))
    assert len(begun) <= available


def test_the_caller_does_it_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(cores, "usable_cores", lambda: 4)
    monkeypatch.setattr(threading.Thread, "start", start)
    by: list[int] = []
    cores.over_cores(lambda piece: by.append(threading.get_ident()), range(5))
    assert by == [threading.get_ident()] * 5

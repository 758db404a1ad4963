"""Work in two stages: the order of lines, who does what, and what happens to errors."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.two_stages import AHEAD, TwoStages


@settings(deadline=None, max_examples=30)
@given(lines=st.integers(1, 4), workers=st.integers(1, 4), jobs=st.integers(0, 12))
def test_all_is_done_once_and_lines_keep_their_order(lines: int, workers: int, jobs: int) -> None:
    begun: list[list[int]] = [[] for _ in range(lines)]
    done = []
    within = [0] * lines

    def first(job: tuple[int, int]) -> int:
        line, number = job
        within[line] += 1
        assert within[line] == 1  # its predecessor has ended
        begun[line].append(number)
        within[line] -= 1
        return 10 * number

    with TwoStages(first, lambda job, made: done.append((job, made)), lines=lines, workers=workers) as work:
        for number in range(jobs):
            for line in range(lines):
                work.add(line, (line, number))
    assert begun == [list(range(jobs))] * lines
    assert sorted(done) == [((line, number), 10 * number) for line in range(lines) for number in range(jobs)]


def test_a_line_goes_on_while_the_second_stage_is_done() -> None:
    together = threading.Barrier(2, timeout=10)
    by: dict[tuple[str, int], int] = {}

    def first(job: int) -> int:
        by["first", job] = threading.get_ident()
        if job == 1:
            together.wait()
        return job

    def second(job: int, made: int) -> None:
        by["second", job] = threading.get_ident()
        if job == 0:
            together.wait()  # raises unless the other stage is begun meanwhile

    with TwoStages(first, second, lines=1, workers=2) as work:
        for job in range(3):
            work.add(0, job)
    for job in range(3):
        assert by["first", job] == by["second", job]  # what it works on is in that core's cache


def test_no_more_waits_than_may() -> None:
    go_on, added = threading.Event(), []

    def first(job: int) -> int:
        assert go_on.wait(10)
        return job

    def add(work: TwoStages[int, int]) -> None:
        for job in range(AHEAD + 3):
            work.add(0, job)
            added.append(job)

    with TwoStages(first, lambda job, made: None, lines=1, workers=1) as work:
        adding = threading.Thread(target=add, args=(work,))
        adding.start()
        time.sleep(0.2)
        assert len(added) <= AHEAD + 1  # one is being done
        go_on.set()
        adding.join()
    assert len(added) == AHEAD + 3


@pytest.mark.parametrize("stage", ["first", "second"])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_stage_raises_comes_out(stage: str, workers: int) -> None:
    def first(job: int) -> int:
        if stage == "first" and job == 3:
            raise ArithmeticError("in the first")
        return job

    def second(job: int, made: int) -> None:
        if stage == "second" and job == 3:
            raise ArithmeticError("in the second")

    def run() -> None:
        with TwoStages(first, second, lines=2, workers=workers) as work:
            for job in range(100):
                work.add(job % 2, job)

    with pytest.raises(ArithmeticError, match=f"in the {stage}"):
        run()


def test_an_error_of_the_one_who_adds_ends_it() -> None:
    done: list[int] = []

    def run() -> None:
        with TwoStages(lambda job: job, lambda job, made: done.append(job), lines=1, workers=2) as work:
            work.add(0, 1)
            raise KeyError("elsewhere")

    with pytest.raises(KeyError, match="elsewhere"):
        run()
    assert len(done) <= 1


@pytest.mark.parametrize("started", [0, 1])
def test_threads_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    """With one at least all is done; with none that is said, and nothing is left waiting."""
    begin, count = threading.Thread.start, 0

    def start(thread: threading.Thread) -> None:
        nonlocal count
        count += 1
        if count > started:
            raise RuntimeError("can't start new thread")
        begin(thread)

    done: list[int] = []

    def run() -> None:
        with TwoStages(lambda job: job, lambda job, made: done.append(job), lines=1, workers=3) as work:
            for job in range(5):
                work.add(0, job)

    monkeypatch.setattr(threading.Thread, "start", start)
    if started:
        run()
        assert done == list(range(5))
    else:
        with pytest.raises(RuntimeError, match="can't start"):
            run()

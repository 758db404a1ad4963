"""Contenders taking turns: how many times as long one takes as another, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

RESAMPLES = 10_000
PAUSE = 0.1  # seconds between turns: worker threads of the one before go on spinning for a while
Name = TypeVar("Name", bound=Hashable)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, after a pause."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(runs: dict[Name, Callable[[], Any]], rounds: int) -> tuple[dict[Name, list[float]], dict[Name, Any]]:
    """Return (seconds of each turn, results) of contenders, turns interleaved after one that is not counted."""
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    results = {name: run() for name, run in runs.items()}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return seconds, results


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return median(ours) / median(theirs) and its 95 % interval, from turns drawn again together (percentiles).

    Turn by turn, as what else the machine did slowed both down. A few turns cannot say more than that the ratio lies
    among them: with one, the interval is that one.
    """
    pairs = np.array([ours, theirs], np.float64)
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    medians = np.median(pairs[:, drawn], axis=2)
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    ratio = np.median(pairs[0]) / np.median(pairs[1])
    return float(ratio), float(low), float(high)


def with_interval(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the ratio of medians as text, such as "0.75 [0.72, 0.81]"."""
    ratio, low, high = ratio_of_medians(ours, theirs)
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"

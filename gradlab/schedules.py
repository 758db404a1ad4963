"""When to look: functions of a count of epochs or steps that say whether this is one to measure at."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from gradlab.validation import positive_integer

Schedule = Callable[[int], bool]


def linear(every: int = 1) -> Schedule:
    """Measure at 0 and at every multiple of a number.

    Args:
        every: the distance between two measurements.

    Returns:
        A function of the count, True where it is a multiple.

    Raises:
        TypeError: not an integer.
        ValueError: less than one.

    Example:
        >>> [i for i in range(10) if linear(4)(i)]
        [0, 4, 8]
    """
    distance = positive_integer("every", every)
    return lambda count: count % distance == 0


def logarithmic(per_decade: float = 3) -> Schedule:
    """Measure at 0 and at round(10^(j/m)), j = 0, 1, 2 …: densely at first, where most happens, and seldom later.

    Of N counts about m·log10 N are measured.

    Args:
        per_decade: m, how many measurements each tenfold takes, where there are so many counts.

    Returns:
        A function of the count.

    Raises:
        TypeError: not a number.
        ValueError: not positive and finite.

    Example:
        >>> [i for i in range(101) if logarithmic(5)(i)]
        [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100]
    """
    if isinstance(per_decade, bool) or not isinstance(per_decade, Real):
        raise TypeError(f"per_decade must be a number, got {per_decade!r} of type {type(per_decade).__name__}")
    m = float(per_decade)
    if not 0.0 < m < math.inf:
        raise ValueError(f"per_decade must be positive and finite, got {per_decade}")

    def schedule(count: int) -> bool:
        if count < 1:
            return count == 0
        near = round(m * math.log10(count))  # the j whose power lies nearest; its neighbours round to the same at most
        return any(round(10.0 ** (j / m)) == count for j in (near - 1, near, near + 1))

    return schedule


def checked(schedule: Any) -> Schedule:
    """Return a schedule, or say what one is.

    Raises:
        TypeError: something that cannot be called with a count.
    """
    if not callable(schedule):
        raise TypeError(
            f"schedule must be a function of a count, such as gl.schedules.linear(5), got {schedule!r} of type"
            f" {type(schedule).__name__}"
        )
    made: Schedule = schedule
    return made

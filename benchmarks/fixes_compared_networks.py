"""The fixes that `fixes_compared.py` tries: what each changes, and how many units the parameter budget leaves it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import gradlab as gl

NAIVE = "tanh, naive"
LARGE = "tanh, W too large"


@dataclass(frozen=True)
class Fix:
    """One setting.

    Attributes:
        group: what kind of remedy it is.
        cell: as in `gradlab.Experiment`.
        changes: fields of `gradlab.Experiment`; a gain may be a function of the number of units.
        against: the setting that it is to improve on.
        source: who proposed it, or the values.
    """

    group: str
    cell: str
    changes: dict[str, Any] = field(default_factory=dict)
    against: str = NAIVE
    source: str = ""


def _naive(units: int) -> float:
    """Return the gain at which W_ij ~ N(0, 0.05²), the default of keras.initializers.RandomNormal."""
    return 0.05 * math.sqrt(units)


_ORTHOGONAL: dict[str, Any] = {"initializer": "orthogonal"}
# one setting each, that of the source or of Keras where these name one; none was tuned on the task
FIXES: dict[str, Fix] = {
    NAIVE: Fix("nothing", "tanh", {"gain": _naive}, source="W_ij ~ N(0, 0.05²), RandomNormal of Keras"),
    "ReLU, He": Fix("activation and W", "relu", {"gain": math.sqrt(2.0)}, source="W_ij ~ N(0, 2/n): He et al. 2015"),
    "ReLU, W = I (IRNN)": Fix("activation and W", "relu", {"initializer": "identity"}, source="Le et al. 2015"),
    "tanh, Xavier": Fix("activation and W", "tanh", {"initializer": "glorot"}, source="Glorot & Bengio 2010"),
    "tanh, orthogonal": Fix("activation and W", "tanh", _ORTHOGONAL, source="Saxe et al. 2014"),
    "Ω penalty": Fix("penalty", "tanh", {"gain": _naive, "omega": 2.0}, source="weight 2: code of Pascanu et al. 2013"),
    "gradient flossing": Fix(
        "penalty",
        "tanh",
        {"gain": _naive, "flossing": 1.0, "flossing_exponents": 4},
        source="after Engelken 2023; all the time, k = 4",
    ),
    "leaky, α = 0.1": Fix("update", "tanh", {"gain": _naive, "leak": 0.1}, source="after Jaeger et al. 2007"),
    "residual, α = 0.1": Fix("update", "tanh", {"gain": _naive, "residual": 0.1}, source="after He et al. 2016"),
    "LSTM, bias 0": Fix("gates", "lstm", _ORTHOGONAL | {"forget_bias": 0.0}, source="Gers et al. 2000"),
    "LSTM, bias 1": Fix("gates", "lstm", _ORTHOGONAL | {"forget_bias": 1.0}, source="Jozefowicz et al. 2015"),
    "LSTM, chrono": Fix("gates", "lstm", _ORTHOGONAL | {"forget_bias": "chrono"}, source="Tallec & Ollivier 2018"),
    "GRU": Fix("gates", "gru", _ORTHOGONAL, source="Cho et al. 2014"),
    LARGE: Fix("exploding", "tanh", {"gain": 3.0}, LARGE, source="W_ij ~ N(0, 9/n): chaotic"),
    "clip by norm": Fix(
        "exploding", "tanh", {"gain": 3.0, "global_clip_norm": 1.0}, LARGE, source="θ = 1: Pascanu et al. 2013"
    ),
    "clip by value": Fix(
        "exploding", "tanh", {"gain": 3.0, "clip_value": 1.0}, LARGE, source="clipvalue of Keras, |g_ij| ≤ 1"
    ),
}


def parameters(cell: str, units: int, features: int, classes: int) -> int:
    """Return how many weights a recurrent layer and its readout have.

    Example:
        >>> parameters("tanh", 50, 6, 4), parameters("lstm", 24, 6, 4), parameters("gru", 28, 6, 4)
        (3054, 3076, 3140)
    """
    gates, biases = {"lstm": (4, 1), "gru": (3, 2)}.get(cell, (1, 1))
    return gates * (units * units + features * units + biases * units) + (units + 1) * classes


def units_of(cell: str, budget: int, features: int, classes: int) -> int:
    """Return the number of units at which a cell's parameters come nearest to a budget."""
    return min(range(1, 513), key=lambda n: abs(parameters(cell, n, features, classes) - budget))


def experiments(
    fixes: list[str], seeds: int, *, units: int, features: int, classes: int, **common: Any
) -> dict[tuple[str, int], gl.Experiment]:
    """Return the description of every fix and seed, all fixes of a seed after another.

    In this order what else the machine does falls on all fixes alike, whose processor times are compared.

    Args:
        fixes: names in `FIXES`.
        seeds: how many networks of each; networks of the same number have the same data, the same order of batches, and
            the same stream of initial weights.
        units: of the simple networks, which set the parameter budget.
        features: d of the task.
        classes: of the task.
        **common: what else all have, fields of `gradlab.Experiment`.
    """
    budget = parameters("tanh", units, features, classes)
    settings = {}
    for name in fixes:
        fix = FIXES[name]
        n = units_of(fix.cell, budget, features, classes)
        changes = {key: value(n) if callable(value) else value for key, value in fix.changes.items()}
        settings[name] = {"cell": fix.cell, "units": n, "clip_norm": None} | common | changes
    return {(name, seed): gl.Experiment(seed=seed, **settings[name]) for seed in range(seeds) for name in fixes}

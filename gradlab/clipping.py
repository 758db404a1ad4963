"""Gradient clipping: the three rules of Keras's optimisers, and what they do to the gradients of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from gradlab.validation import Array, finite, positive_number, real_array

Rule = Literal["norm", "value", "global_norm"]
RULES: tuple[Rule, ...] = ("norm", "value", "global_norm")


def clip(gradients: Mapping[str, ArrayLike], rule: Rule, threshold: float) -> dict[str, Array]:
    """Return gradients clipped as Keras's optimisers clip them.

    "norm" (clipnorm): g ← g·min(1, θ/‖g‖) for each weight by itself. "value" (clipvalue): every entry into [−θ, θ].
    "global_norm" (global_clipnorm): all weights by the factor min(1, θ/√Σ‖g‖²) (Pascanu, Mikolov & Bengio 2013). The
    first and the last keep the direction of what they clip; the second does not.

    Args:
        gradients: ∂L/∂w of any shape, by the name of the weight.
        rule: one of the three.
        threshold: θ > 0.

    Returns:
        The clipped gradients in float64, by name.

    Raises:
        ValueError: an unknown rule, a threshold that is not positive and finite, gradients that are not finite.

    Example:
        >>> g = {"W": [3.0, 4.0], "b": [0.5]}
        >>> {name: one.round(3).tolist() for name, one in clip(g, "norm", 1.0).items()}
        {'W': [0.6, 0.8], 'b': [0.5]}
        >>> {name: one.tolist() for name, one in clip(g, "value", 1.0).items()}
        {'W': [1.0, 1.0], 'b': [0.5]}
    """
    theta = checked_threshold(rule, threshold)
    arrays = {name: finite(f"the gradient of {name}", real_array(name, one)) for name, one in gradients.items()}
    if rule == "value":
        return {name: np.clip(one, -theta, theta) for name, one in arrays.items()}
    norms = {name: norm(one) for name, one in arrays.items()}
    if rule == "global_norm":
        norms = dict.fromkeys(norms, math.hypot(*norms.values()))
    return {name: one * (theta / norms[name]) if norms[name] > theta else one for name, one in arrays.items()}


def clipping_of(optimizer: Any) -> tuple[Rule, float] | None:
    """Return (rule, threshold) that an optimiser is set to, None where it clips nothing; of several, as Keras does.

    Example:
        >>> import keras
        >>> clipping_of(keras.optimizers.SGD(clipnorm=2.0))
        ('norm', 2.0)
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
    named: tuple[tuple[str, Rule], ...] = (
        ("clipnorm", "norm"),
        ("global_clipnorm", "global_norm"),
        ("clipvalue", "value"),
    )
    for attribute, rule in named:
        threshold = getattr(inner, attribute, None)
        if threshold is not None and threshold > 0:
            return rule, float(threshold)
    return None


def checked_threshold(rule: str, threshold: float) -> float:
    """Return the threshold of a known rule.

    Raises:
        ValueError: an unknown rule, or a threshold that is not positive and finite.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {list(RULES)}, got {rule!r}")
    return positive_number(f"the threshold of {rule!r}", threshold)


def norm(array: Array) -> float:
    """Return ‖a‖ over all entries, free of overflow and underflow in the squares."""
    largest = float(np.abs(array).max(initial=0.0))
    return largest * float(np.linalg.norm(array / largest)) if largest > 0.0 else 0.0

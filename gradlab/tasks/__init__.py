"""Sequences to train and analyse on: real ones out of installed packages, and the classical synthetic tasks.

Every task comes with the score of an answer without memory (`Task.baseline`) and with what counts as success. Nothing
here needs TensorFlow until batches are asked for.
"""

from __future__ import annotations

from typing import Any

from gradlab.tasks.arjovsky2016 import adding, copy
from gradlab.tasks.bengio1994 import latching
from gradlab.tasks.pascanu2013 import (
    addition,
    memorization,
    multiplication,
    random_permutation,
    temporal_order,
    temporal_order_3bit,
)
from gradlab.tasks.real import digits, gunpoint, vowels
from gradlab.tasks.task import Task
from gradlab.tasks.white_noise import noise

__all__ = [
    "Task",
    "adding",
    "addition",
    "copy",
    "digits",
    "gunpoint",
    "latching",
    "memorization",
    "multiplication",
    "noise",
    "random_permutation",
    "stream",
    "temporal_order",
    "temporal_order_3bit",
    "vowels",
]


def __getattr__(name: str) -> Any:
    if name == "stream":  # a keras.utils.PyDataset
        from gradlab.tasks.batches import stream

        return stream
    raise AttributeError(f"gradlab.tasks has no {name!r}; it has {__all__}")

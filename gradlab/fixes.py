"""Remedies against vanishing and exploding gradients that Keras lacks: penalties to train with, and initial weights."""

from __future__ import annotations

from gradlab.gated_initializers import BlockInitializer, ChronoInitializer
from gradlab.penalties import Flossing, NormPreservation, RegularizedModel

__all__ = ["BlockInitializer", "ChronoInitializer", "Flossing", "NormPreservation", "RegularizedModel"]

"""What theory predicts, in the mean or in a limit: to be shown beside a measurement, with a tolerance.

`lyapunov_exponents` measures what most of this is about, and gives the standard error of the measurement.
"""

from __future__ import annotations

from gradlab.predictions.continuous_time import LeakyMean, leaky_mean_exponent, mirrored_exponents
from gradlab.predictions.diagonal import (
    SensitivityMoments,
    diagonal_log_singular_values,
    sensitivity_moments,
    stable_eigenvalues,
)
from gradlab.predictions.gated_edge import gated_edge
from gradlab.predictions.growth import JacobianGrowth, jacobian_growth
from gradlab.predictions.memory import ChronoBiases, GateMemory, chrono_biases, gate_memory
from gradlab.predictions.random_matrices import (
    CircularLaw,
    GatedDisc,
    GinibreExponents,
    ProductMoments,
    circular_law,
    gated_disc,
    ginibre_exponents,
    ginibre_limit,
    ginibre_product_moments,
)
from gradlab.predictions.tanh_networks import MeanField, MeanFieldPath, mean_field, mean_field_path

__all__ = [
    "ChronoBiases",
    "CircularLaw",
    "GateMemory",
    "GatedDisc",
    "GinibreExponents",
    "JacobianGrowth",
    "LeakyMean",
    "MeanField",
    "MeanFieldPath",
    "ProductMoments",
    "SensitivityMoments",
    "chrono_biases",
    "circular_law",
    "diagonal_log_singular_values",
    "gate_memory",
    "gated_disc",
    "gated_edge",
    "ginibre_exponents",
    "ginibre_limit",
    "ginibre_product_moments",
    "jacobian_growth",
    "leaky_mean_exponent",
    "mean_field",
    "mean_field_path",
    "mirrored_exponents",
    "sensitivity_moments",
    "stable_eigenvalues",
]

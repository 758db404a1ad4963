"""Rigorous bounds on ∂h_T/∂h_t: what must hold, up to rounding, with hypotheses and sources in the docstrings.

Arrays along a trajectory have t = 0 … T−1 on their time axis and speak of P_t = J_T ··· J_{t+1}, so sums run from the
end; others take lags k = T − t of any shape. Values are natural logarithms where a name or docstring does not say
otherwise; −∞ is the logarithm of an exact zero. A step that a mask leaves out is the identity: it adds nothing and does
not count.
"""

from __future__ import annotations

from gradlab.bounds.determinants import log_determinant, log_determinant_from_slopes
from gradlab.bounds.ends import Chain, LowerEnd, chain, induced_norm_bound, lower_end
from gradlab.bounds.entries import (
    LOCAL_FACTOR_ARGMAX,
    LOCAL_FACTOR_PEAK,
    DominanceCertificate,
    EntryBound,
    dominance_certificate,
    dominating_entries,
    entry_bound,
    local_factor,
    logistic_entry_bound,
)
from gradlab.bounds.gates import gate_path, gru_dominating_matrix, lstm_dominating_matrix
from gradlab.bounds.gradient import clip_gradient, gradient_sandwich, norm_preservation_penalty
from gradlab.bounds.latching import LatchingCertificate, latching_certificate, latching_threshold
from gradlab.bounds.orthogonal import SoftOrthogonality, orthogonal_bound, soft_orthogonality
from gradlab.bounds.powers import (
    KreissBounds,
    SteinBound,
    henrici_power_bound,
    kreiss_bounds,
    numerical_radius_power_bound,
    spectral_radius_power_bound,
    stein_power_bound,
)
from gradlab.bounds.sums import EigenvalueSums, eigenvalue_sums, leading_sums, leading_sums_at_split

__all__ = [
    "LOCAL_FACTOR_ARGMAX",
    "LOCAL_FACTOR_PEAK",
    "Chain",
    "DominanceCertificate",
    "EigenvalueSums",
    "EntryBound",
    "KreissBounds",
    "LatchingCertificate",
    "LowerEnd",
    "SoftOrthogonality",
    "SteinBound",
    "chain",
    "clip_gradient",
    "dominance_certificate",
    "dominating_entries",
    "eigenvalue_sums",
    "entry_bound",
    "gate_path",
    "gradient_sandwich",
    "gru_dominating_matrix",
    "henrici_power_bound",
    "induced_norm_bound",
    "kreiss_bounds",
    "latching_certificate",
    "latching_threshold",
    "leading_sums",
    "leading_sums_at_split",
    "local_factor",
    "log_determinant",
    "log_determinant_from_slopes",
    "logistic_entry_bound",
    "lower_end",
    "lstm_dominating_matrix",
    "norm_preservation_penalty",
    "numerical_radius_power_bound",
    "orthogonal_bound",
    "soft_orthogonality",
    "spectral_radius_power_bound",
    "stein_power_bound",
]

"""What the variables of a result are: dims, long name, units and formula, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BT, BTM, BM, B, SCALAR = ("batch", "time"), ("batch", "time", "mode"), ("batch", "mode"), ("batch",), ()
BTP = ("batch", "time", "path")
EL, EW = ("epoch", "layer"), ("epoch", "weight")
LAG, RBW, RB = ("lag",), ("rule", "minibatch", "weight"), ("rule", "minibatch")
HM = ("held_out", "mode")  # sequences of `gradlab.run` that are not in the batch

# name: (dims, long name, units, formula or meaning)
VARIABLES: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "log_singular_values": (BTM, "log singular values of the state-to-state Jacobian", "nats", "ln σ_i(∂h_T/∂h_t)"),
    "log_singular_values_error": (BTM, "estimated error of the log singular values", "nats", "|Δ ln σ_i|"),
    "horizon_float32": (
        BM, "lag from which on a product formed in float32 has lost the mode", "steps",
        "min k: |Δ ln σ_i(k')| > 0.1 for all k' ≥ k, P ← P·J_s and SVD in float32; ∞: never in this sequence",
    ),
    "horizon_float64": (
        BM, "lag from which on a product formed in float64 has lost the mode", "steps",
        "min k: |Δ ln σ_i(k')| > 0.1 for all k' ≥ k, P ← P·J_s and SVD in float64; ∞: never in this sequence",
    ),
    "log_determinant": (BT, "log determinant of the state-to-state Jacobian", "nats", "Σ_s ln|det J_s|"),
    "log_gradient_norm": (BT, "log norm of the gradient", "nats", "ln‖∂L/∂h_t‖"),
    "log_direct_gradient_norm": (BT, "log norm of its direct part", "nats", "ln‖∂L/∂h_t‖, later states held fixed"),
    "log_recurrent_gradient_norm": (
        BT, "log norm of the part that came back through time", "nats", "ln‖J_{t+1}ᵀ ∂L/∂h_{t+1}‖"
    ),
    "gradient_upper_bound": (BT, "upper end of the sandwich", "nats", "ln σ_1(∂h_T/∂h_t) + ln‖∂L/∂h_T‖"),
    "gradient_lower_bound": (BT, "lower end of the sandwich", "nats", "ln σ_n(∂h_T/∂h_t) + ln‖∂L/∂h_T‖"),
    "log_step_norm": (BT, "log norm of the step Jacobian", "nats", "ln‖J_t‖; NaN at t = 0 and where masked"),
    "bound_step_norms": (BT, "bound of ln σ_1 by step norms", "nats", "Σ_s ln‖J_s‖"),
    "bound_slopes": (BT, "bound of ln σ_1 by actual slopes", "nats", "Σ_s ln(max_i φ'(a_{s,i}) σ_1(W))"),
    "bound_promise": (BT, "bound of ln σ_1 known beforehand", "nats", "k ln(γ σ_1(W))"),
    "bound_leading_sums": (
        BTM, "bound of the sum of leading log singular values", "nats", "Σ_s Σ_{i≤m} ln σ_i(J_s), mode m (Horn 1950)"
    ),
    "lower_step_norms": (BT, "bound of ln σ_n from below", "nats", "Σ_s ln σ_n(J_s)"),
    "lower_slopes": (
        BT, "bound of ln σ_n from below by actual slopes", "nats", "Σ_s ln min_i |φ'(a_{s,i})| + k ln σ_n(W)"
    ),
    "dominance_radius": (
        SCALAR, "bound of the factor per step on every trajectory", "1",
        "a number ≥ ρ(γ|W|); < 1 certifies vanishing, whatever the inputs",
    ),
    "gate_path_largest": (
        BT, "largest derivative along the carried state, the gates held fixed", "nats",
        "max_i Σ_s ln f_{s,i} (LSTM), z (GRU); a part of the Jacobian, no bound of it",
    ),
    "gate_path_mean": (
        BT, "mean log derivative along the carried state, the gates held fixed", "nats", "mean_i Σ_s ln f_{s,i} (or z)"
    ),
    "norm_preservation_penalty": (
        B, "penalty on steps that change the gradient's norm", "1",
        "Ω = Σ_s (‖J_sᵀg_s‖/‖g_s‖ − 1)², g = ∂L/∂h (Pascanu et al. 2013); NaN where some g_s is 0",
    ),
    "largest_slope": (BT, "largest slope of a unit", "1", "max_i |φ'(a_{t,i})|; NaN at t = 0 and where masked"),
    "mean_slope": (BT, "mean slope of the units", "1", "mean_i |φ'(a_{t,i})|; NaN at t = 0 and where masked"),
    "activation_slope": (
        ("batch", "time", "unit"), "slope of each unit", "1", "φ'(a_{t,i}); NaN at t = 0 and where masked"
    ),
    "path_share_of_gradient": (
        BTP, "share of a path in the gradient that comes back through a step", "1",
        "r·(J_{t,p}ᵀ g_t)/‖r‖², g_t = ∂L/∂h_t, r = J_tᵀ g_t; NaN at t = 0, where masked and where r = 0",
    ),
    "path_share_of_singular_value": (
        BTP, "share of a path in the largest singular value of a step", "1",
        "u_1ᵀ J_{t,p} v_1/σ_1 of J_t; NaN at t = 0, where masked and where J_t = 0",
    ),
    "path_share_of_product": (
        BTP, "share of a path of a step in the largest singular value of the whole product", "1",
        "u_1ᵀ (J_T···J_{t+1}) J_{t,p} (J_{t−1}···J_1) v_1/σ_1 of ∂h_T/∂h_0; NaN at t = 0 and where masked",
    ),
    "budget_promise": (BT, "promise", "nats", "k ln(γ σ_1(W))"),
    "budget_saturation": (BT, "saturation", "nats", "Σ_s ln(max_i φ'(a_{s,i})/γ)"),
    "budget_within_step": (BT, "within the step", "nats", "Σ_s ln(‖J_s‖ / (max_i φ'(a_{s,i}) σ_1(W)))"),
    "budget_step_norms": (BT, "step norms", "nats", "Σ_s ln‖J_s‖"),
    "budget_between_steps": (BT, "between steps", "nats", "ln σ_1(∂h_T/∂h_t) − Σ_s ln‖J_s‖"),
    "budget_direction": (BT, "direction", "nats", "ln‖Pᵀg_T‖ − ln σ_1(P) − ln‖g_T‖"),
    "budget_other_times": (BT, "losses at other times", "nats", "ln‖∂L/∂h_t‖ − ln‖Pᵀg_T‖"),
    "budget_measured": (BT, "measured", "nats", "ln‖∂L/∂h_t‖ − ln‖∂L/∂h_T‖"),
    "lyapunov_exponent": (BM, "Lyapunov exponents over the sequence", "nats/step", "λ_i, the first tenth left out"),
    "lyapunov_standard_error": (BM, "standard error of the Lyapunov exponents", "nats/step", "s(λ_i)"),
    "held_out_lyapunov_exponent": (
        HM, "Lyapunov exponents over other sequences", "nats/step", "λ_i, the first tenth left out"
    ),
    "held_out_lyapunov_standard_error": (
        HM, "standard error of the Lyapunov exponents over other sequences", "nats/step", "s(λ_i)"
    ),
    "decay_rate": (B, "fitted rate of the gradient norm over lag", "nats/step", "d ln‖∂L/∂h_t‖/dk; < 0: vanishing"),
    "decay_rate_standard_error": (B, "standard error of the fitted rate", "nats/step", "s(rate)"),
    "decay_half_life": (B, "half-life of the gradient", "steps", "−ln 2 / rate; ∞ where it does not shrink"),
    "decay_first_lag": (B, "first lag of the fit", "steps", "k"),
    "decay_last_lag": (B, "last lag of the fit", "steps", "k"),
    "decay_rate_interval": (
        ("end",), "95 % interval of the fitted rate's mean over sequences", "nats/step",
        "bootstrap over the batch, this network given; NaN below 7 sequences",
    ),
    "decay_drift": (B, "change of the rate from the first to the second half of its lags", "nats/step", "⟨Δ⟩₂ − ⟨Δ⟩₁"),
    "decay_correlation_time": (
        B, "lags over which increments of the log norm hang together", "steps", "1 + 2 Σ_j ρ_j, from blocks of ⌈√N⌉"
    ),
    "decay_long_enough": (B, "whether the sequence was long enough for the rate", "1", "1: yes; 0: no"),
    "lyapunov_interval": (
        ("end", "mode"), "95 % interval of the Lyapunov exponents' means over sequences", "nats/step",
        "bootstrap over the batch, this network given; NaN below 7 sequences and for −∞",
    ),
    "lyapunov_drift": (
        BM, "change of the exponent from the first half to the second", "nats/step", "⟨ln R_ii⟩₂ − ⟨ln R_ii⟩₁"
    ),
    "lyapunov_correlation_time": (
        BM, "steps over which the growth hangs together", "steps", "1 + 2 Σ_j ρ_j, from blocks of ⌈√N⌉ steps"
    ),
    "lyapunov_long_enough": (
        BM, "whether the sequence was long enough for the exponent", "1", "1: yes; 0: no; NaN: −∞"
    ),
    "latching_eta": (B, "largest step norm", "1", "η = max_s‖J_s‖; η < 1 certifies vanishing (Bengio et al. 1994)"),
    "mean_field_rate": (B, "mean-field rate", "nats/step", "⟨½ ln χ_1⟩ with g = ‖W‖_F/√n and the inputs' variances"),
    "recurrent_matrix": (("to", "from"), "recurrent matrix as it acts, a = W h", "1", "W; the block that attrs name"),
    "eigenvalue_real": (("eigenvalue",), "eigenvalues of W, real part", "1", "Re λ(W)"),
    "eigenvalue_imag": (("eigenvalue",), "eigenvalues of W, imaginary part", "1", "Im λ(W)"),
    "spectral_radius": (SCALAR, "spectral radius of W", "1", "ρ(W) = max|λ|"),
    "sigma_max": (SCALAR, "largest singular value of W", "1", "σ_1(W)"),
    "numerical_radius": (SCALAR, "numerical radius of W", "1", "w(W) = max_θ λ_max(Re e^{iθ}W)"),
    "henrici_departure": (SCALAR, "Henrici's departure of W from normality", "1", "√(‖W‖_F² − Σ|λ|²)"),
    "kreiss_lower_bound": (SCALAR, "lower bound of the Kreiss constant of W", "1", "(|z|−1)‖(zI−W)⁻¹‖ for one |z| > 1"),
    "transient_peak": (SCALAR, "largest norm of a power of W", "1", "the largest ‖W^k‖ found; ∞ for ρ > 1"),
    "eigenvector_condition": (SCALAR, "condition of the eigenvectors of W", "1", "κ(V); ‖W^k‖ ≤ κ(V) ρ^k"),
    # a model while it trains: of the gradients and rates above there is one for each epoch and layer
    "log_singular_values_at_lag": (
        ("epoch", "layer", "spectrum_lag", "mode"), "log singular values of the state-to-state Jacobian", "nats",
        "ln σ_i(∂h_T/∂h_{T−k}), median over sequences of the probe batch; NaN where none is k steps long",
    ),
    "largest_lyapunov_exponent": (EL, "largest Lyapunov exponent", "nats/step", "λ_1, mean over the probe batch"),
    "saturation": (EL, "share of activations on their flat parts", "1", "share of φ'(a) < 0.1·sup φ'"),
    "probe_loss": (("epoch",), "loss on the probe batch", "1", "L"),
    "log_weight_gradient_norm": (EW, "log norm of the gradient of a weight", "nats", "ln‖∂L/∂w‖"),
    "log_clipped_weight_gradient_norm": (
        EW, "log norm of the gradient of a weight after clipping", "nats", "ln‖clip(∂L/∂w)‖"
    ),
    "training_loss": (("epoch",), "loss in training", "1", "mean over the batches of an epoch, with penalties"),
    "test_loss": (("epoch",), "loss on the test sequences", "1", "mean after each epoch, without penalties"),
    "training_accuracy": (("epoch",), "share of labels right in training", "1", "mean over the batches of an epoch"),
    "test_accuracy": (("epoch",), "share of labels right on the test sequences", "1", "after each epoch"),
    "test_success": (("epoch",), "share of test sequences answered right", "1", "after each epoch"),
    "credit_log_norm": (LAG, "log norm of the contribution of a lag to the gradient of a weight", "nats", "ln‖G_k‖"),
    "credit_cosine": (LAG, "cosine of the contribution of a lag with the gradient", "1", "cos(G_k, ∂L/∂W)"),
    "credit_share": (LAG, "share of a lag in the gradient", "1", "⟨G_k, ∂L/∂W⟩/‖∂L/∂W‖²"),
    "credit_cumulative": (LAG, "share of all lags up to this one", "1", "Σ_{j≤k} ⟨G_j, ∂L/∂W⟩/‖∂L/∂W‖²"),
    "truncation_bias": (
        LAG, "relative bias of backpropagation truncated after k steps back", "1", "‖Σ_{j≤k} G_j − ∂L/∂W‖/‖∂L/∂W‖"
    ),
    "truncation_cosine": (
        LAG, "cosine of the gradient truncated after k steps back with the whole", "1", "cos(Σ_{j≤k} G_j, ∂L/∂W)"
    ),
    "log_weight_gradient": (SCALAR, "log norm of the gradient of the weight", "nats", "ln‖∂L/∂W‖"),
    "credit_horizon": (
        SCALAR, "credit horizon", "steps", "least lag from which on all lags up to it hold 90 % of ∂L/∂W"
    ),
    "log_total_gradient_norm": (("layer", "time"), "log norm of the gradient of an output", "nats", "ln‖∂L/∂y_t‖"),
    "log_output_gradient_norm": (
        ("layer", "time"), "log norm of what a tape gives for the output tensor", "nats",
        "ln‖∂L/∂y_t‖, later outputs of the layer held fixed",
    ),
    "left_out": (("layer", "time"), "share of the gradient that is left out", "1", "‖total − tape‖/‖total‖ at t"),
    "left_out_overall": (
        ("layer",), "share of the gradient that is left out, over all steps", "1", "‖total − tape‖/‖total‖"
    ),
    "clip_active": (RBW, "whether the gradient of a weight was clipped", "1", "clip(g) ≠ g"),
    "clip_norm_ratio": (RBW, "what clipping leaves of the norm", "1", "‖clip(g)‖/‖g‖"),
    "clip_cosine": (RBW, "cosine between the gradient before and after clipping", "1", "cos(clip(g), g)"),
    "clip_total_norm_ratio": (RB, "what clipping leaves of the norm, all weights together", "1", "‖clip(g)‖/‖g‖"),
    "clip_total_cosine": (RB, "cosine before and after clipping, all weights together", "1", "cos(clip(g), g)"),
    "clip_profile": (
        ("profile_rule", "lag"), "log share of a lag in the norms of all lags of the recurrent gradient", "nats",
        "ln(‖G_k‖/Σ_j‖G_j‖), each G_k scaled entry by entry as clipping scales their sum",
    ),
    "tracking_seconds": (("epoch",), "time that the look took", "seconds", ""),
}  # fmt: skip


def labels(name: str) -> dict[str, str]:
    """Return the long name, units and formula of a variable as its attributes."""
    _, long_name, units, formula = VARIABLES[name]
    return {"long_name": long_name, "units": units, "formula": formula}


def labelled(values: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any, dict[str, str]]]:
    """Return variables with their dims and attributes, as `xarray.Dataset` takes them."""
    return {name: (VARIABLES[name][0], value, labels(name)) for name, value in values.items()}

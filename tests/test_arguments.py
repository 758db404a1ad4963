"""What a bound, a prediction or a fit cannot take is refused, and the message names the argument."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from gradlab import bounds, decay, predictions

J = np.full((1, 2, 2, 2), 0.25)
W = np.array([[0.5, 0.25], [0.0, 0.5]])
PHI = np.full((1, 2, 2), 0.5)
LAGS = np.array([0, 1, 2])
OF_W = {"recurrent_matrix": W, "lags": LAGS, "slope_supremum": 1.0}
POWER = {"W": W, "lags": LAGS}
# arguments that each function takes; every one of them is spoilt in turn
TAKES = [
    (bounds.chain, {"J": J, "recurrent_matrix": np.ones((2, 2)), "slopes": PHI, "slope_supremum": 1.0}),
    (bounds.lower_end, {"J": J, "recurrent_matrix": W, "slopes": PHI}),
    (bounds.induced_norm_bound, {"J": J, "order": 1}),
    (bounds.log_determinant, {"J": J}),
    (bounds.log_determinant_from_slopes, {"recurrent_matrix": W, "slopes": PHI}),
    (bounds.leading_sums, {"J": J}),
    (bounds.leading_sums_at_split, {"early": [1.0, 0.0], "late": [2.0, 1.0]}),
    (bounds.eigenvalue_sums, {"J": J}),
    (bounds.entry_bound, OF_W),
    (bounds.logistic_entry_bound, {"n": 2, "largest_weight": 1.0, "lags": LAGS}),
    (bounds.local_factor, {"w": 1.0, "output": 1.0}),
    (bounds.dominating_entries, OF_W),
    (bounds.dominance_certificate, OF_W),
    (bounds.gate_path, {"gates": PHI}),
    (
        bounds.lstm_dominating_matrix,
        {
            "recurrent_matrices": np.ones((4, 2, 2)),
            "forget_supremum": 0.5,
            "input_supremum": 1.0,
            "output_supremum": 1.0,
        },
    ),
    (
        bounds.gru_dominating_matrix,
        {
            "recurrent_matrices": np.ones((3, 2, 2)),
            "update_supremum": 0.5,
            "update_infimum": 0.0,
            "reset_supremum": 1.0,
            "recurrent_bias": 0.0,
        },
    ),
    (bounds.gradient_sandwich, {"log_singular_values": [[1.0, 0.0]], "log_gradient_norm": 1.0}),
    (bounds.clip_gradient, {"gradient": [3.0, 4.0], "threshold": 1.0}),
    (bounds.norm_preservation_penalty, {"J": J, "gradients": np.ones((1, 3, 2))}),
    (bounds.latching_certificate, {"J": J}),
    (bounds.latching_threshold, {"w": 2.0}),
    (bounds.orthogonal_bound, {"recurrent_matrix": np.eye(2), "slopes": PHI}),
    (bounds.soft_orthogonality, POWER),
    (bounds.spectral_radius_power_bound, POWER),
    (bounds.numerical_radius_power_bound, POWER),
    (bounds.henrici_power_bound, POWER),
    (bounds.stein_power_bound, POWER),
    (bounds.kreiss_bounds, {"W": W}),
    (predictions.circular_law, {"gain": 1.0}),
    (predictions.ginibre_exponents, {"n": 2, "scale": 1.0}),
    (predictions.ginibre_limit, {"position": 0.5, "scale": 1.0}),
    (predictions.ginibre_product_moments, {"factors": 2, "n": 3}),
    (predictions.gated_disc, {"update": 0.5, "gain": 1.0, "mean_square_slope": 1.0}),
    (
        predictions.gated_edge,
        {"keep": [0.5, 0.5], "into": np.ones((1, 2)), "reads": np.ones((1, 2)), "gains": [1.0]},
    ),
    (predictions.mean_field, {"gain": 1.5, "input_variance": 0.0, "bias_variance": 0.0}),
    (
        predictions.mean_field_path,
        {"gain": 1.5, "input_variances": [0.0], "bias_variance": 0.0, "initial_variance": 0.0},
    ),
    (predictions.leaky_mean_exponent, {"dt": 0.5, "n": 2, "gain": 1.0}),
    (predictions.mirrored_exponents, {"exponents": [1.0, 0.0]}),
    (predictions.diagonal_log_singular_values, {"eigenvalues": [0.5], "lags": LAGS}),
    (predictions.stable_eigenvalues, {"nu": [0.0], "theta": [0.0]}),
    (predictions.sensitivity_moments, {"eigenvalue": 0.5}),
    (predictions.jacobian_growth, {"exponent": 0.1, "standard_error": 0.1, "lags": LAGS, "steps": 9}),
    (predictions.gate_memory, {"bias": 1.0}),
    (predictions.chrono_biases, {"units": 2, "longest": 9.0, "seed": 0}),
    (decay.fit_decay, {"log_norms": [-3.0, -2.0, -1.0, 0.0], "lags": [3, 2, 1, 0], "skip": 0}),
    (
        decay.decay_budget,
        {
            "log_singular_values": [-2.0, -1.0],
            "log_step_norms": [-1.0, -1.0],
            "log_gradient_norms": [-2.0, -1.0, 0.0],
            "slopes": [[0.5], [0.5]],
            "sigma_max": 1.0,
            "slope_supremum": 1.0,
            "log_terminal_gradient": [-2.0, -1.0, 0.0],
        },
    ),
]
NAMES = [function.__name__ for function, _ in TAKES]


@pytest.mark.parametrize(("function", "arguments"), TAKES, ids=NAMES)
def test_each_takes_what_it_should(function, arguments):
    function(**arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [(function, arguments, name) for function, arguments in TAKES for name in arguments if name != "seed"],
    ids=[f"{function.__name__}-{name}" for function, arguments in TAKES for name in arguments if name != "seed"],
)
def test_text_and_what_is_not_finite_are_refused_by_name(function, arguments, name):
    number = np.array(arguments[name], np.float64)
    number.flat[0] = np.nan
    for bad in (np.full(number.shape, "a"), number):
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must"):
            function(**{**arguments, name: bad if bad.ndim else bad[()]})


@pytest.mark.parametrize("name", sorted(set(bounds.__all__) | set(predictions.__all__)))
def test_every_public_function_is_looked_at(name):
    found = getattr(bounds, name, None) or getattr(predictions, name)
    assert not inspect.isfunction(found) or name in NAMES


@pytest.mark.parametrize(
    ("function", "arguments"),
    [one for one in TAKES if "mask" in inspect.signature(one[0]).parameters],
    ids=[one.__name__ for one, _ in TAKES if "mask" in inspect.signature(one).parameters],
)
def test_a_mask_of_other_things_is_refused(function, arguments):
    with pytest.raises(TypeError, match=r"^mask must hold True or False"):
        function(**arguments, mask=["a", "b"])
    with pytest.raises(ValueError, match=r"^mask must be"):
        function(**arguments, mask=[True, True, True])

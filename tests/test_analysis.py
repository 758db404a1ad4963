"""The dataset of `analyze`: complete, consistent with its parts, and never crossing its own bounds."""

from __future__ import annotations

import functools
import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import xarray as xr

import gradlab as gl
from gradlab.analysis import random_direction_loss
from gradlab.variables import VARIABLES

EPS = np.finfo(float).eps
B, T, D, N = 3, 12, 2, 4


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((B, T, D))


def ragged_mask() -> np.ndarray:
    return np.arange(T) < np.array([[12], [7], [1]])


CELLS = {
    "tanh": lambda: gl.VanillaRNNCell(N, "tanh", recurrent_gain=1.4, seed=0),
    "relu": lambda: gl.VanillaRNNCell(N, "relu", recurrent_gain=1.2, seed=0),
    "simple": lambda: keras.layers.SimpleRNN(N, activation="sigmoid"),
    "lstm": lambda: keras.layers.LSTM(N),
    "gru": lambda: keras.layers.GRU(N),
    "stack": lambda: [keras.layers.LSTMCell(N), gl.VanillaRNNCell(N, seed=1)],
}


@pytest.fixture(scope="module", params=[(name, masked) for name in CELLS for masked in (False, True)], ids=str)
def analysed(request: pytest.FixtureRequest) -> tuple[str, bool, xr.Dataset]:
    name, masked = request.param
    keras.utils.set_random_seed(0)
    return name, masked, gl.analyze(CELLS[name](), inputs(), mask=ragged_mask() if masked else None, return_error=True)


def rounding(ds: xr.Dataset) -> float:
    """What a sum of T logarithms of this size may be off by, the error of each ln σ included."""
    size = float(np.abs(ds["log_singular_values"].where(np.isfinite(ds["log_singular_values"]))).max())
    error = float(ds["log_singular_values_error"].where(np.isfinite(ds["log_singular_values"])).max())
    return 100.0 * T * EPS * max(1.0, size) + 30.0 * error


def test_every_variable_is_described(analysed: tuple[str, bool, xr.Dataset]) -> None:
    _, _, ds = analysed
    for name, values in ds.data_vars.items():
        dims, long_name, units, formula = VARIABLES[str(name)]
        assert values.dims == dims
        assert values.dtype == np.float64
        described = tuple(values.attrs[key] for key in ("long_name", "units", "formula"))
        assert described == (long_name, units, formula)
    assert dict(ds.sizes) | {"batch": B, "time": T + 1} == dict(ds.sizes)
    for attribute in ("gradlab_version", "commit", "dirty", "seed", "dtype", "command", "created_utc", "cell", "loss"):
        assert attribute in ds.attrs
    parts = json.loads(ds.attrs["state_parts"])
    assert parts[-1]["stop"] == ds.sizes["mode"]


def test_gated_cells_carry_no_bound_that_does_not_hold_for_them(analysed: tuple[str, bool, xr.Dataset]) -> None:
    name, _, ds = analysed
    simple = name in ("tanh", "relu", "simple")
    of_simple = ("bound_slopes", "bound_promise", "budget_promise", "largest_slope", "lower_slopes", "dominance_radius")
    for bound in of_simple:
        assert (bound in ds) == simple
    assert ("gate_path_largest" in ds) == ("gate_path_mean" in ds) == (name in ("lstm", "gru"))
    assert ("mean_field_rate" in ds) == (name == "tanh")
    assert "spectral_radius" in ds
    expected = {"lstm": "W_c", "gru": "W_h", "stack": "layer2.W"}.get(name, "W of")
    assert expected in ds.attrs["recurrent_matrix"]


def test_no_bound_is_crossed(analysed: tuple[str, bool, xr.Dataset]) -> None:
    _, _, ds = analysed
    allowance = rounding(ds)
    top, bottom = ds["log_singular_values"].isel(mode=0), ds["log_singular_values"].isel(mode=-1)
    links = [top] + [ds[name] for name in ("bound_step_norms", "bound_slopes", "bound_promise") if name in ds]
    for tighter, looser in itertools.pairwise(links):
        assert bool((tighter <= looser + allowance).all())
    assert bool((bottom >= ds["lower_step_norms"] - allowance).all())
    if "lower_slopes" in ds:
        # σn of a step is known to ε times the condition of W alone, W of these seeds to less than 1e3
        assert bool((ds["lower_step_norms"] >= ds["lower_slopes"] - 1e3 * allowance).all())
    assert bool((ds["log_gradient_norm"] <= ds["gradient_upper_bound"] + allowance).all())
    assert bool((ds["log_gradient_norm"] >= ds["gradient_lower_bound"] - allowance).all())
    with np.errstate(invalid="ignore"):  # −∞ − −∞ of dead units
        sums = np.cumsum(ds["log_singular_values"].values, axis=2) - ds["bound_leading_sums"].values
    assert not (sums > 1e3 * N * allowance).any()
    if "dominance_radius" in ds and float(ds["dominance_radius"]) < 1:
        assert bool((ds["lyapunov_exponent"] < 0).all())


def test_the_penalty_and_the_gate_path_are_those_of_the_bounds(analysed: tuple[str, bool, xr.Dataset]) -> None:
    name, masked, ds = analysed
    arrived = np.isfinite(ds["log_gradient_norm"].values[:, 1:]).all(axis=1)
    np.testing.assert_array_equal(np.isnan(ds["norm_preservation_penalty"]), ~arrived)
    # g of a loss at T is all that comes back, so that each term is (‖g_{s−1}‖/‖g_s‖ − 1)²
    growth = -np.diff(ds["log_gradient_norm"].values, axis=1)
    real = ragged_mask() if masked else np.ones((B, T), bool)
    with np.errstate(invalid="ignore"):
        expected = np.where(real, np.expm1(growth) ** 2, 0.0).sum(axis=1)
    finite = np.isfinite(ds["log_gradient_norm"].values).all(axis=1)
    np.testing.assert_allclose(ds["norm_preservation_penalty"].values[finite], expected[finite], rtol=1e-10, atol=1e-14)
    if name in ("lstm", "gru"):
        assert bool((ds["gate_path_mean"] <= ds["gate_path_largest"]).all())
        assert bool((ds["gate_path_largest"] <= 0).all())
        assert bool((ds["gate_path_largest"].isel(time=-1) == 0).all())
        assert bool((ds["gate_path_largest"].diff("time") >= 0).all())  # later is a shorter way


def test_intervals_are_over_sequences_and_need_seven() -> None:
    cell, x = CELLS["tanh"](), np.random.default_rng(1).standard_normal((9, 40, D))
    ds = gl.analyze(cell, x)
    assert ds["end"].values.tolist() == ["low", "high"]
    for name, interval in (("decay_rate", "decay_rate_interval"), ("lyapunov_exponent", "lyapunov_interval")):
        low, high = ds[interval].values
        mean = ds[name].mean("batch").values
        assert ((low < mean) & (mean < high)).all()
    one = gl.interval(ds, "lyapunov_exponent", mode=2)
    # two draws of 9999 resamples: each end is known to 0.03 standard errors
    width = one.high - one.low
    assert ds["lyapunov_interval"].values[:, 1] == pytest.approx((one.low, one.high), abs=4 * 0.03 * width / 4)
    assert np.isnan(gl.analyze(cell, x[:6])["decay_rate_interval"]).all()


def test_determinant_identity(analysed: tuple[str, bool, xr.Dataset]) -> None:
    _, _, ds = analysed
    total = ds["log_singular_values"].sum("mode").values
    finite = np.isfinite(total) & np.isfinite(ds["log_determinant"].values)
    assert np.abs(total[finite] - ds["log_determinant"].values[finite]).max() <= N * rounding(ds)


def test_the_budget_adds_up(analysed: tuple[str, bool, xr.Dataset]) -> None:
    _, _, ds = analysed
    terms = sum(ds[name] for name in json.loads(ds.attrs["budget_terms"]))
    finite = np.isfinite(ds["budget_measured"].values)
    assert finite[:, -1].all()
    assert np.abs((terms - ds["budget_measured"]).values[finite]).max() <= rounding(ds)


def test_lag_counts_steps_that_count(analysed: tuple[str, bool, xr.Dataset]) -> None:
    _, masked, ds = analysed
    lengths = ragged_mask().sum(axis=1) if masked else np.full(B, T)
    np.testing.assert_array_equal(ds["lag"].isel(time=0), lengths)
    np.testing.assert_array_equal(ds["lag"].isel(time=-1), 0)
    padded = ds["lag"].values == 0
    assert (ds["log_singular_values"].values[padded] == 0.0).all()


def test_padding_changes_no_number() -> None:
    cell = CELLS["tanh"]()
    x = inputs()
    long = gl.analyze(cell, x[1:2], lambda h: h[:, -1, 0], mask=ragged_mask()[1:2])
    short = gl.analyze(cell, x[1:2, :7], lambda h: h[:, -1, 0])
    for name in ("log_singular_values", "log_gradient_norm", "bound_promise", "budget_direction"):
        # the same steps in the same order: only the identity steps of the padding, exact by themselves, lie between
        np.testing.assert_allclose(long[name].values[:, :8], short[name].values, rtol=0, atol=1e-12)
    for name in ("lyapunov_exponent", "decay_rate", "mean_field_rate", "latching_eta"):
        np.testing.assert_allclose(long[name], short[name], rtol=1e-12)


def test_a_loss_at_other_times_is_accounted_for() -> None:
    ds = gl.analyze(CELLS["tanh"](), inputs(), lambda h: tf.reduce_sum(h[:, 5] + h[:, -1], axis=-1))
    other = ds["budget_other_times"].values
    assert (np.abs(other[:, 6:]) < 1e-12).all()  # after t = 5 nothing but h_T enters
    assert (np.abs(other[:, 5]) > 1e-3).all()


def test_the_default_loss_is_a_unit_direction_and_seeded() -> None:
    x, cell = inputs(), CELLS["tanh"]()
    first, again, other = (gl.analyze(cell, x, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_allclose(first["log_gradient_norm"].isel(time=-1), 0.0, atol=1e-15)
    np.testing.assert_array_equal(first["log_gradient_norm"], again["log_gradient_norm"])
    assert not np.allclose(first["log_gradient_norm"], other["log_gradient_norm"])
    u = random_direction_loss(2, 3, 0)(tf.eye(3, batch_shape=[2], dtype=tf.float64)[:, :, :])
    assert u.shape == (2,)


def test_a_chosen_block_and_an_unknown_one() -> None:
    layer = keras.layers.LSTM(N)
    ds = gl.analyze(layer, inputs(), recurrent_block="f")
    forget = np.asarray(layer.cell.recurrent_kernel)[:, N : 2 * N].T
    np.testing.assert_allclose(ds["spectral_radius"], np.abs(np.linalg.eigvals(forget.astype(float))).max(), rtol=1e-12)
    with pytest.raises(ValueError, match=r"recurrent_block must be one of \['c', 'f', 'i', 'o'\], got 'W'"):
        gl.analyze(layer, inputs(), recurrent_block="W")


def test_a_trajectory_brings_its_own_inputs() -> None:
    cell = CELLS["tanh"]()
    traj = gl.rollout(cell, inputs())
    xr.testing.assert_equal(gl.analyze(traj, None), gl.analyze(cell, inputs()))
    with pytest.raises(TypeError, match="its own inputs"):
        gl.analyze(traj, inputs())
    with pytest.raises(TypeError, match="got None"):
        gl.analyze(cell, None)


def test_an_activation_that_mixes_units_is_refused() -> None:
    cell = gl.VanillaRNNCell(N, activation=tf.nn.softmax, seed=0)
    with pytest.raises(ValueError, match="does not act on each unit by itself"):
        gl.analyze(cell, inputs())


def test_a_callable_step_and_a_network_without_recurrent_matrix() -> None:
    step = gl.as_step(lambda h, x: 0.5 * h + 0.1 * tf.reduce_sum(x, axis=-1, keepdims=True), state_size=3)
    ds = gl.analyze(step, inputs())
    assert ds.attrs["recurrent_matrix"] == "none known for this cell"
    k = ds["lag"].values[:, :, None]
    np.testing.assert_allclose(ds["log_singular_values"], np.broadcast_to(k * np.log(0.5), (B, T + 1, 3)), rtol=1e-13)


def test_round_trip_through_a_file(tmp_path) -> None:
    ds = gl.analyze(CELLS["relu"](), inputs())
    xr.testing.assert_identical(gl.load(gl.save(ds, tmp_path / "one.nc")), ds)


def test_the_sandwich_is_there_only_where_it_holds() -> None:
    everywhere = gl.analyze(CELLS["tanh"](), inputs(), lambda h: tf.reduce_sum(h**2, axis=(1, 2)))
    assert "gradient_upper_bound" not in everywhere
    at_the_end = gl.analyze(CELLS["tanh"](), inputs(), lambda h: tf.reduce_sum(h[:, -1] ** 2, axis=-1))
    assert "gradient_upper_bound" in at_the_end


def test_the_order_of_reading_and_the_loss_are_on_record() -> None:
    both = keras.layers.Bidirectional(keras.layers.GRU(N))
    both.build((None, T, D))
    assert gl.analyze(both.backward_layer, inputs()).attrs["go_backwards"] is True

    def squared(states: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.reduce_sum(states[:, -1] ** 2, axis=axis)

    ds = gl.analyze(both.forward_layer, inputs(), functools.partial(squared, axis=-1))
    assert (ds.attrs["go_backwards"], ds.attrs["loss"]) == (False, "partial")


def test_float32_rounding_of_an_orthogonal_matrix_is_no_growth() -> None:
    ds = gl.analyze(gl.VanillaRNNCell(16, "linear", seed=0), inputs())
    assert float(ds["transient_peak"]) == 1.0


def test_the_recurrent_matrix_is_part_of_the_dataset() -> None:
    cell = gl.VanillaRNNCell(3, seed=0)
    ds = gl.analyze(cell, np.random.default_rng(0).standard_normal((1, 5, 2)))
    eigenvalues = np.sort_complex(np.linalg.eigvals(ds.recurrent_matrix.values))
    assert (
        np.abs(eigenvalues - np.sort_complex(ds.eigenvalue_real.values + 1j * ds.eigenvalue_imag.values)).max() < 1e-12
    )
    assert gl.plot.pseudospectrum(ds).has_data()

"""The figure of the decay: what it draws, at which lag, and what it says of the rate."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from drawing import assert_inside, legend, line
from matplotlib.collections import LineCollection, PolyCollection

from gradlab import plotting

pytestmark = pytest.mark.usefixtures("close_figures")


def test_decay_draws_the_median_relative_to_lag_zero(vanilla):
    ax = plotting.decay(vanilla)
    lags, drawn = line(ax, "gradient")
    relative = vanilla.log_gradient_norm - vanilla.log_gradient_norm.isel(time=-1)
    np.testing.assert_array_equal(lags, np.arange(41))
    np.testing.assert_allclose(drawn, relative.median("batch").values[::-1], rtol=0, atol=1e-14)
    for label, name in (("promise", "bound_promise"), ("slopes", "bound_slopes"), ("step norms", "bound_step_norms")):
        np.testing.assert_array_equal(line(ax, label)[1], vanilla[name].median("batch").values[::-1])
    sigma = vanilla.log_singular_values.median("batch").values[::-1]
    np.testing.assert_array_equal(line(ax, r"$\sigma_1")[1], sigma[:, 0])
    np.testing.assert_array_equal(line(ax, r"$\sigma_n")[1], sigma[:, -1])
    (band,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() >= relative.min()
    assert corners[:, 1].max() <= relative.max()


def test_decay_s_frame_holds_the_gradient_and_is_not_crushed_by_a_bound(vanilla):
    ax = plotting.decay(vanilla.assign(bound_promise=1e6 * vanilla.bound_promise))
    low, high = ax.get_ylim()
    drawn = line(ax, "gradient")[1]
    assert low < drawn.min()
    assert high > drawn.max()
    assert high - low < 4 * max(np.ptp(drawn), np.ptp(line(ax, r"$\sigma_1")[1]))


def test_decay_names_rate_and_half_life(vanilla):
    rates = np.array([-0.10, -0.12, -0.11, -0.09, -0.13])
    ds = vanilla.assign(decay_rate=("batch", rates), decay_half_life=("batch", np.log(2) / -rates))
    ax = plotting.decay(ds)
    (label,) = [text for text in legend(ax) if text.startswith("fit")]
    assert label == "fit: −0.1100 ± 0.0071\nhalf-life 6.3 steps"  # 0.0158/√5
    lags, fitted = line(ax, "fit")
    np.testing.assert_allclose(np.diff(fitted), -0.11, rtol=0, atol=1e-12)
    assert fitted.mean() == pytest.approx(line(ax, "gradient")[1][lags].mean(), abs=1e-12)
    # one sequence: its own standard error
    (label,) = [text for text in legend(plotting.decay(ds.isel(batch=[0]))) if text.startswith("fit")]
    assert label.startswith("fit: −0.1000 ± 0.0040\n")
    growing = ds.assign(decay_rate=-ds.decay_rate, decay_half_life=xr.full_like(ds.decay_half_life, np.inf))
    assert any("does not vanish" in text for text in legend(plotting.decay(growing)))
    nothing = ds.assign(decay_rate=xr.full_like(ds.decay_rate, np.nan))
    assert not any(text.startswith("fit") for text in legend(plotting.decay(nothing)))


def test_sequences_are_compared_at_equal_lag():
    # two sequences of 3 and 2 real steps, padded at the end: −k and −2k at lag k
    lag = np.array([[3, 2, 1, 0, 0], [2, 2, 1, 1, 0], [1, 1, 1, 1, 0]])
    values = -lag * np.array([[1.0], [2.0], [6.0]])
    ds = xr.Dataset({"log_gradient_norm": (("batch", "time"), 5.0 + values)}, coords={"lag": (("batch", "time"), lag)})
    lags, drawn = line(plotting.decay(ds), "gradient")
    # lag 3 is reached by one sequence of three, fewer than half; at lag 2 the median is of two
    np.testing.assert_array_equal(lags, [0, 1, 2])
    np.testing.assert_array_equal(drawn, [0.0, -2.0, -3.0])
    shuffled = ds.transpose("time", "batch")
    np.testing.assert_array_equal(line(plotting.decay(shuffled), "gradient")[1], drawn)
    np.testing.assert_array_equal(line(plotting.decay(ds.isel(batch=1)), "gradient")[1], [0.0, -2.0, -4.0])


def test_of_steps_at_the_same_lag_the_earliest_counts():
    # a gap of two steps in the mask, and a loss that reads the states inside it: ∂L/∂h_t grows towards the earlier t
    lag = np.array([[2, 1, 1, 1, 0]])
    values = np.array([[-7.0, -4.0, -5.0, -6.0, 0.0]])
    modes = np.stack([values, values - 1.0], axis=-1)
    ds = xr.Dataset(
        {
            "log_gradient_norm": (("batch", "time"), values),
            "log_singular_values": (("batch", "time", "mode"), modes),
            **{f"budget_{name}": (("batch", "time"), values) for name in ("step_norms", "measured")},
            **{f"budget_{name}": (("batch", "time"), 0.0 * values) for name in ("between_steps", "direction")},
        },
        coords={"lag": (("batch", "time"), lag)},
    )
    np.testing.assert_array_equal(line(plotting.decay(ds), "gradient")[1], [0.0, -4.0, -7.0])
    (lines,) = [c for c in plotting.fan(ds).collections if isinstance(c, LineCollection)]
    np.testing.assert_array_equal(lines.get_paths()[0].vertices[:, 1], [0.0, -4.0, -7.0])
    np.testing.assert_array_equal(plotting.budget(ds, per_step=False).lines[1].get_ydata(), [0.0, -4.0, -7.0])


def test_a_rate_of_rounding_size_is_called_so():
    rng = np.random.default_rng(0)
    noise = 1e-15 * rng.standard_normal((3, 9))
    ds = xr.Dataset(
        {
            "log_gradient_norm": (("batch", "time"), noise),
            "bound_promise": (("batch", "time"), noise),
            "decay_rate": ("batch", [-1.2e-17, 3e-18, -2e-17]),
            "decay_half_life": ("batch", [5e16, np.inf, 3e16]),
        },
        coords={"lag": (("batch", "time"), np.tile(np.arange(9)[::-1], (3, 1)))},
    )
    ax = plotting.decay(ds)
    assert "fit: 0 within rounding" in legend(ax)
    assert "promise $\\gamma\\sigma_1(W)$: 0" in legend(ax)
    assert np.diff(ax.get_ylim())[0] == pytest.approx(1e-6)
    assert_inside(plotting.decay(ds.assign(log_singular_values=(("batch", "time", "mode"), np.stack([noise] * 2, -1)))))
    terms = {"step_norms": noise, "between_steps": noise, "direction": noise, "measured": noise}
    ax = plotting.budget(ds.assign({f"budget_{name}": (("batch", "time"), term) for name, term in terms.items()}))
    assert legend(ax) == ["step norms: 0", "measured: 0"]
    assert np.diff(ax.get_ylim())[0] >= 1e-6


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-0.11, 0.0071, "−0.1100 ± 0.0071"),
        (-0.105360516, 1.3e-17, "−0.105361 ± 1e−17"),
        (-1e-17, 0.01, "−0.000 ± 0.010"),
        (-1e-17, np.nan, "0 within rounding"),
        (-0.5, np.nan, "−0.5"),
    ],
)
def test_a_rate_has_a_sensible_number_of_digits(value, error, text):
    assert plotting._with_error(value, error) == text


def test_sigma_bounds_only_a_part_unless_the_loss_is_at_the_end(vanilla):
    at_end, elsewhere = vanilla, vanilla.drop_vars(["gradient_upper_bound", "gradient_lower_bound"])
    note = "$\\sigma$: of the part\nfrom $h_T$ alone"
    assert not any(note in text for text in legend(plotting.decay(at_end)))
    assert sum(note in text for text in legend(plotting.decay(elsewhere))) == 1
    no_spectrum = elsewhere.drop_vars("log_singular_values")
    assert not any(note in text for text in legend(plotting.decay(no_spectrum)))


def test_a_gradient_of_zero_at_the_end_is_an_error(vanilla):
    with pytest.raises(ValueError, match="decay needs a gradient at T, got ∂L/∂h_T = 0 in every sequence"):
        plotting.decay(vanilla.assign(log_gradient_norm=xr.full_like(vanilla.log_gradient_norm, -np.inf)))

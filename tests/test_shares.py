"""The figure of the paths through the gates, and the variables that it draws."""

from __future__ import annotations

import itertools

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from drawing import assert_inside
from matplotlib.patches import StepPatch

import gradlab as gl
from gradlab import plotting

B, T, D, N = 3, 12, 2, 4
KINDS = ("gradient", "singular_value", "product")
MASK = np.arange(T) < np.array([[12], [7], [1]])


pytestmark = pytest.mark.usefixtures("close_figures")


@pytest.fixture(scope="module", params=["lstm", "gru", "masked gru"])
def ds(request) -> xr.Dataset:
    keras.utils.set_random_seed(0)
    layer = keras.layers.LSTM(N) if request.param == "lstm" else keras.layers.GRU(N)
    inputs = np.random.default_rng(0).standard_normal((B, T, D))
    return gl.analyze(layer, inputs, mask=MASK if "masked" in request.param else None)


def made(shares, lag) -> xr.Dataset:
    shares = np.asarray(shares, float)
    names = ["highway", "update_gate", "reset_gate", "candidate"][: shares.shape[-1]]
    variables = {"path_share_of_gradient": (("batch", "time", "path"), shares)}
    return xr.Dataset(variables, coords={"lag": (("batch", "time"), np.asarray(lag)), "path": names})


def stacks(ax):
    """Return the bars as (baseline, top) pairs: for each path the one above 0 and the one below."""
    drawn = [patch.get_data() for patch in ax.patches if isinstance(patch, StepPatch)]
    return [(np.asarray(one.baseline), np.asarray(one.values)) for one in drawn]


def test_the_variables_are_the_shares_at_the_steps_that_count(ds) -> None:
    masked = not (ds["lag"].isel(time=0) == T).all()
    taken = MASK if masked else np.ones((B, T), bool)
    for kind in KINDS:
        shares = ds[f"path_share_of_{kind}"]
        assert shares.dims == ("batch", "time", "path")
        assert np.isnan(shares.isel(time=0)).all()
        values = shares.values[:, 1:]
        assert np.isnan(values[~taken]).all()
        # divided by their sum: P − 1 additions
        assert (np.abs(values[taken].sum(-1) - 1) <= 10 * 2.0**-52 * np.abs(values[taken]).sum(-1)).all()
    assert ds["path"].values.tolist()[0] == "highway"


def test_the_dataset_survives_a_file(ds, tmp_path) -> None:
    back = gl.load(gl.save(ds, tmp_path / "one.nc"))
    xr.testing.assert_identical(back, ds)
    plotting.gate_paths(back)


def test_a_cell_without_gates_has_no_paths() -> None:
    ds = gl.analyze(gl.VanillaRNNCell(N, seed=0), np.ones((1, 3, D)))
    assert not {"path", *(f"path_share_of_{kind}" for kind in KINDS)} & set(ds.variables)
    with pytest.raises(ValueError, match=r"gate_paths needs .*path_share_of_gradient, .* for an LSTM or a GRU"):
        plotting.gate_paths(ds)


def test_a_cell_changed_after_its_run_is_analysed_without_paths() -> None:
    cell = keras.layers.GRUCell(N)
    traj = gl.rollout(cell, np.random.default_rng(0).standard_normal((1, 4, D)))
    cell.activation = keras.activations.sigmoid
    ds = gl.analyze(traj, None)
    assert "path" not in ds.variables
    assert "log_singular_values" in ds


@pytest.mark.parametrize("kind", KINDS)
def test_the_stacks_add_up(ds, kind) -> None:
    drawn = stacks(plotting.gate_paths(ds, of=kind))
    above, below = drawn[::2], drawn[1::2]
    assert len(above) == len(below) == ds.sizes["path"]
    for one in (above, below):
        assert (one[0][0] == 0.0).all()
        for (_, top), (base, _) in itertools.pairwise(one):
            np.testing.assert_array_equal(top, base)
    heights = above[-1][1] + below[-1][1]
    np.testing.assert_allclose(heights[np.isfinite(heights)], 1.0, rtol=0, atol=1e-12)
    assert np.isfinite(heights).any()


def test_means_are_over_sequences_at_equal_lag() -> None:
    nan = [np.nan, np.nan]
    # one step masked in the second sequence: its lag 0 is its second step, and at lag 1 it has but an end
    shares = [[nan, [0.5, 0.5], [1.5, -0.5]], [nan, [0.9, 0.1], nan]]
    ax = plotting.gate_paths(made(shares, [[2, 1, 0], [1, 0, 0]]))
    (_, first_above), (_, first_below), (_, second_above), (_, second_below) = stacks(ax)
    np.testing.assert_allclose(first_above, [1.2, 0.5])
    np.testing.assert_allclose(first_below, [0.0, 0.0])
    np.testing.assert_allclose(second_above, [1.2, 1.0])
    np.testing.assert_allclose(second_below, [-0.2, 0.0])
    low, high = ax.get_ylim()
    assert low < -0.2
    assert high > 1.2


def test_a_rare_cancellation_does_not_crush_the_rest() -> None:
    shares = np.tile([0.6, 0.4], (1, 101, 1))
    shares[0, 0] = np.nan
    shares[0, 40] = [1000.0, -999.0]
    low, high = plotting.gate_paths(made(shares, [np.arange(101)[::-1]])).get_ylim()
    assert high - low < 3


def test_a_frame_is_complete_and_in_the_caller_s_style(ds) -> None:
    ax = plotting.gate_paths(ds)
    assert "(steps" in ax.get_xlabel()
    assert "share" in ax.get_ylabel()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(texts) == ds.sizes["path"] + 1
    assert not any("nan" in text or "_" in text for text in texts)
    assert ax.figure.get_size_inches()[0] == 3.4
    assert_inside(ax)
    fig, own = plt.subplots()
    assert plotting.gate_paths(ds, ax=own) is own
    assert plt.get_fignums() == [1, fig.number]


def test_what_cannot_be_drawn_is_named(ds) -> None:
    with pytest.raises(ValueError, match=r"of must be one of \['gradient', 'singular_value', 'product'\], got 'norm'"):
        plotting.gate_paths(ds, of="norm")
    with pytest.raises(ValueError, match="gate_paths needs a step at which something comes back, got none"):
        plotting.gate_paths(made(np.full((1, 3, 2), np.nan), [[2, 1, 0]]))
    stages = xr.concat([ds, ds], xr.Variable("stage", ["initial", "trained"]))
    with pytest.raises(ValueError, match=r"gate_paths draws one network, .* ds.sel\(stage='trained'\)"):
        plotting.gate_paths(stages)

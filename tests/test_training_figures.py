from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from PIL import Image

mpl.use("Agg")

import matplotlib.pyplot as plt

from gradlab import plotting
from gradlab.results import load, save

E, T, K, N = 6, 20, 4, 8
EPOCHS = np.array([0.0, 1.0, 2.0, 3.0, 6.0, 10.0])
RULES = ["norm", "value", "global_norm"]
TRACKED = [
    plotting.gradient_flow,
    plotting.gradient_curves,
    plotting.rates,
    plotting.spectrum_over_training,
    plotting.weight_gradients,
]
OTHERS = [plotting.credit, plotting.truncation, plotting.left_out, plotting.clipping, plotting.clipping_profile]


def dataset():
    """What a tracker, the credit, the left-out part and the audit give, invented; the last look has diverged."""
    rng = np.random.default_rng(0)
    each, rate = ("epoch", "layer"), -0.3 / (1 + EPOCHS)
    curves = rate[:, None, None] * np.arange(T, -1, -1) + 0.1 * rng.standard_normal((E, 2, T + 1))
    direct = np.full_like(curves, -np.inf)
    direct[..., -1] = 0.0
    lags = np.array([1, 4, 8, T])
    spectrum = rate[:, None, None, None] * lags[:, None] * np.linspace(0.5, 2.0, N)
    spectrum = np.broadcast_to(spectrum, (E, 2, K, N)).copy()
    spectrum[2, :, -1, -1] = -np.inf  # a dead unit
    for one in (curves, direct, spectrum):
        one[-1] = np.nan
    scalars = np.stack([rate, rate + 0.01], axis=1)
    scalars[-1] = np.nan
    norms = np.log(np.abs(rng.standard_normal((E, 3))) + 0.1)
    share = np.abs(rng.standard_normal(T))
    share /= share.sum()
    cosine = np.where(np.array(RULES)[:, None, None] == "value", 0.9, 1.0) * np.ones((3, 5, 3))
    variables = {
        "log_gradient_norm": ((*each, "time"), curves),
        "log_direct_gradient_norm": ((*each, "time"), direct),
        "log_singular_values_at_lag": ((*each, "spectrum_lag", "mode"), spectrum),
        "decay_rate": (each, scalars),
        "largest_lyapunov_exponent": (each, scalars + 0.02),
        "spectral_radius": (each, np.exp(scalars + 0.1)),
        "log_weight_gradient_norm": (("epoch", "weight"), norms),
        "log_clipped_weight_gradient_norm": (("epoch", "weight"), np.minimum(norms, -0.5)),
        "credit_share": ("lag", share),
        "credit_cumulative": ("lag", np.cumsum(share)),
        "credit_horizon": ((), 15.0),
        "truncation_bias": ("lag", 1 - np.cumsum(share)),
        "truncation_cosine": ("lag", np.sqrt(np.cumsum(share))),
        "log_total_gradient_norm": (("layer", "t"), curves[0, :, 1:]),
        "log_output_gradient_norm": (("layer", "t"), direct[0, :, 1:]),
        "left_out_overall": ("layer", [0.97, 0.2]),
        "clip_active": (("rule", "minibatch", "weight"), np.ones((3, 5, 3))),
        "clip_norm_ratio": (("rule", "minibatch", "weight"), rng.uniform(0.1, 1.0, (3, 5, 3))),
        "clip_cosine": (("rule", "minibatch", "weight"), cosine),
        "clip_profile": (("profile_rule", "lag"), np.log(share) + np.array([0.0, 0.0, 0.2, 0.0])[:, None]),
    }
    ds = xr.Dataset(variables).assign_coords(
        epoch=EPOCHS,
        layer=["lower", "upper"],
        time=np.arange(T + 1),
        spectrum_lag=lags,
        weight=["net/lower/cell/kernel", "net/lower/cell/recurrent_kernel", "net/dense/bias"],
        rule=RULES,
        threshold=("rule", [1.0, 0.5, 1.0]),
        profile_rule=["none", *RULES],
        lag=np.arange(T),
    )
    return ds


def ready(figure):
    ds = dataset()
    if figure is not plotting.left_out:
        return ds
    names = ["log_total_gradient_norm", "log_output_gradient_norm", "left_out_overall"]
    return ds[names].drop_vars("time", errors="ignore").rename(t="time").assign_coords(time=np.arange(1, T + 1))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("figure", TRACKED + OTHERS)
def test_a_figure_is_complete_and_leaves_the_settings_alone(figure, tmp_path):
    ds, before = ready(figure), dict(mpl.rcParams)
    ax = figure(ds)
    assert dict(mpl.rcParams) == before
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ax.figure.draw_without_rendering()
    width, height = ax.figure.bbox.size
    for artist in (ax.get_legend(), ax.xaxis.label, ax.yaxis.label):
        if artist is not None:
            box = artist.get_window_extent()
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= width + 1
            assert box.y1 <= height + 1
    again = figure(load(save(ds, tmp_path / "saved.nc")))  # from the file alone
    assert again.get_ylabel() == ax.get_ylabel()


@pytest.mark.parametrize("figure", TRACKED + OTHERS)
def test_a_figure_draws_on_the_axes_given(figure):
    fig, (left, right) = plt.subplots(1, 2)
    assert figure(ready(figure), ax=right) is right
    assert plt.get_fignums() == [fig.number]
    assert not left.has_data()


@pytest.mark.parametrize("figure", TRACKED + OTHERS)
def test_a_missing_variable_is_named_with_its_maker(figure):
    with pytest.raises(ValueError, match=r"needs the variable \w+, which this dataset lacks; gl\.\w+"):
        figure(xr.Dataset(coords={"epoch": [0.0], "layer": ["rnn"]}))


@pytest.mark.parametrize("figure", [*TRACKED[:4], plotting.left_out])
def test_layers_are_chosen_by_name(figure):
    figure(ready(figure), layer="upper")
    with pytest.raises(ValueError, match=r"layer must be one of \['lower', 'upper'\], got 'rnn'"):
        figure(ready(figure), layer="rnn")


def test_numbers_drawn_are_those_of_the_dataset():
    ds = dataset()
    mesh = plotting.gradient_flow(ds, layer="upper").collections[0]
    norms = ds.log_gradient_norm.sel(layer="upper").values.T
    np.testing.assert_allclose(mesh.get_array()[:, :-1], norms[:, :-1] - norms[:, :-1].max(axis=0))
    assert mesh.get_array().mask[:, -1].all()  # diverged: left blank
    gradient = plotting.rates(ds).lines[1]
    np.testing.assert_array_equal(gradient.get_ydata(), ds.decay_rate[:, 0])
    top = plotting.spectrum_over_training(ds, lag=8).lines[1]
    np.testing.assert_allclose(top.get_ydata(), ds.log_singular_values_at_lag[:, 0, 2].max("mode") / 8)
    with pytest.raises(ValueError, match=r"lag must be one of \[1, 4, 8, 20\], got 5"):
        plotting.spectrum_over_training(ds, lag=5)


def test_the_film_has_a_frame_for_each_look(tmp_path):
    path = plotting.animate_spectrum(dataset(), tmp_path / "spectrum.gif", lags=[1, 20])
    with Image.open(path) as film:
        assert film.n_frames == E
        assert film.format == "GIF"
    assert [one.name for one in tmp_path.iterdir()] == ["spectrum.gif"]
    assert plt.get_fignums() == []
    with pytest.raises(ValueError, match=r'must end in "\.gif"'):
        plotting.animate_spectrum(dataset(), tmp_path / "spectrum.mp4")
    blank = dataset().map(lambda one: xr.full_like(one, np.nan) if one.dtype.kind == "f" else one)
    with pytest.raises(ValueError, match="that is finite, got none"):
        plotting.animate_spectrum(blank, tmp_path / "blank.gif")

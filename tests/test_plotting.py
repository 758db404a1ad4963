from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import synthetic
import xarray as xr

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex

from gradlab import plotting, variables

FIGURES = [plotting.decay, plotting.fan, plotting.eigenvalues, plotting.budget]
KINDS = {
    "vanilla": {},
    "gated": {"gated": True},
    "masked": {"lengths": [40, 35, 20, 12, 5], "gain": 2.0},
    "dead": {"dead": 3},
    "single": {"batch": 1},
    "one unit": {"n": 1},
    "one step": {"steps": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def ds(request) -> xr.Dataset:
    return synthetic.dataset(**KINDS[request.param])


@pytest.fixture(scope="module")
def vanilla() -> xr.Dataset:
    return synthetic.dataset()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def line(ax, start):
    """Return (x, y) of the line whose label begins with `start`."""
    (found,) = [drawn for drawn in ax.lines if str(drawn.get_label()).startswith(start)]
    return found.get_xdata(), found.get_ydata()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_synthetic_dataset_follows_the_schema(ds):
    for name, variable in ds.data_vars.items():
        dims, long_name, units, _ = variables.VARIABLES[name]
        assert variable.dims == dims
        assert (variable.attrs["long_name"], variable.attrs["units"]) == (long_name, units)
    terms = [name for name in ds if name.startswith("budget_") and name != "budget_measured"]
    # sums of T terms of order one
    np.testing.assert_allclose(sum(ds[name] for name in terms), ds.budget_measured, rtol=0, atol=1e-11)
    assert (ds.log_singular_values.isel(mode=0) <= ds.bound_step_norms + 1e-9).all()


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_is_complete_and_leaves_the_settings_alone(ds, figure):
    before = dict(mpl.rcParams)
    ax = figure(ds)
    assert isinstance(ax, plt.Axes)
    assert dict(mpl.rcParams) == before
    if figure is plotting.eigenvalues:
        assert ax.get_aspect() == 1.0
        assert r"\lambda" in ax.get_xlabel() + ax.get_ylabel()
    else:
        assert "(steps" in ax.get_xlabel()
        assert "(nats" in ax.get_ylabel()
    assert not any("nan" in text or "inf" in text for text in legend(ax))
    assert ax.figure.get_size_inches()[0] == 3.4


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_draws_on_the_axes_given_in_the_caller_s_style(vanilla, figure):
    with mpl.rc_context({"legend.fontsize": 21.0}):
        fig, (left, right) = plt.subplots(1, 2)
        assert figure(vanilla, ax=right) is right
    assert plt.get_fignums() == [fig.number]
    assert right.get_legend().get_texts()[0].get_fontsize() == 21.0
    assert not left.has_data()


@pytest.mark.parametrize("figure", FIGURES)
def test_nothing_sticks_out_of_the_figure(ds, figure):
    assert_inside(figure(ds))


def assert_inside(ax):
    ax.figure.draw_without_rendering()
    width, height = ax.figure.bbox.size
    for artist in (ax.get_legend(), ax.xaxis.label, ax.yaxis.label):
        box = artist.get_window_extent()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


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


@pytest.mark.parametrize("figure", [*FIGURES, plotting.horizon])
def test_several_networks_are_refused_and_one_of_them_is_drawn(vanilla, figure):
    for name in ("horizon_float32", "horizon_float64"):
        vanilla = vanilla.assign({name: xr.full_like(vanilla.lyapunov_exponent, np.inf)})
    stages = xr.concat([vanilla, vanilla], xr.Variable("stage", ["initial", "trained"])).assign(loss=("epoch", [0.5]))
    match = rf"{figure.__name__} draws .* has the extra dim 'stage' \(initial, trained\); .* ds.sel\(stage='trained'\)"
    with pytest.raises(ValueError, match=match):
        figure(stages)
    with pytest.raises(ValueError, match=r"'stage' \(2 of them\); choose one: ds.isel\(stage=0\)"):
        figure(stages.drop_vars("stage"))
    assert plt.get_fignums() == []
    assert legend(figure(stages.sel(stage="trained"))) == legend(figure(vanilla))


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


def test_the_budget_of_a_single_lag_is_a_bar():
    ax = plotting.budget(synthetic.dataset(steps=1))
    bands = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert bands
    for band in bands:
        corners = band.get_paths()[0].vertices
        assert np.ptp(corners[:, 0]) == pytest.approx(0.6)
        assert corners[:, 0].mean() == pytest.approx(1.0, abs=0.1)
    low, high = ax.get_xlim()
    assert low < 0.7
    assert high > 1.3
    assert ax.get_xticks().tolist() == [1]
    assert "nats per step at lag 1" in ax.get_legend().get_title().get_text()


@pytest.mark.parametrize("figure", [plotting.budget, plotting.decay])
def test_a_legend_is_not_cut_off_in_small_axes(vanilla, figure):
    fig, axes = plt.subplots(2, 2)
    for column in (0, 1):
        ax = figure(vanilla, ax=axes[1, column])
        end = axes[1, 1].get_window_extent().x0 if column == 0 else fig.bbox.x1
        assert ax.get_legend().get_window_extent().x1 <= end
    fig, ax = plt.subplots(figsize=(9, 4))
    wide = figure(vanilla, ax=ax).get_legend().get_window_extent()
    assert wide.width > wide.height  # there is room for two columns


def test_fan_draws_every_mode_and_counts_the_dead():
    ds = synthetic.dataset(dead=3)
    ax = plotting.fan(ds)
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    paths = lines.get_paths()
    assert len(paths) == ds.sizes["mode"]
    expected = ds.log_singular_values.median("batch").values[::-1]
    np.testing.assert_array_equal(paths[0].vertices[:, 1], expected[:, 0])
    np.testing.assert_array_equal(paths[-1].vertices, [[0.0, 0.0]])  # alive at lag 0 only
    assert r"3 of 8: $\sigma = 0$ at lag 40" in legend(ax)
    assert "medians of 5" in legend(ax)
    assert ax.get_ylim()[0] < expected[np.isfinite(expected)].min()
    one = plotting.fan(ds, batch=-1)
    (lines,) = [c for c in one.collections if isinstance(c, LineCollection)]
    np.testing.assert_array_equal(lines.get_paths()[1].vertices[:, 1], ds.log_singular_values.values[-1, ::-1, 1])
    assert not any(text.startswith("medians") for text in legend(one))
    with pytest.raises(IndexError, match="batch must be below 5, got 5"):
        plotting.fan(ds, batch=5)
    for wrong in ("a", 1.0, True):
        with pytest.raises(TypeError, match=rf"batch must be an integer or None, got {wrong!r}"):
            plotting.fan(ds, batch=wrong)
    # without a loss there is no gradient, and the fan is drawn all the same
    assert "gradient" not in legend(plotting.fan(ds.drop_vars("log_gradient_norm")))


def test_a_mode_that_dies_on_the_way_stops():
    ln_s = np.array([[[-3.0, -np.inf], [-2.0, -np.inf], [-1.0, -2.0], [0.0, 0.0]]])
    ds = xr.Dataset(
        {"log_singular_values": (("batch", "time", "mode"), ln_s)}, coords={"lag": (("batch", "time"), [[3, 2, 1, 0]])}
    )
    (lines,) = [c for c in plotting.fan(ds).collections if isinstance(c, LineCollection)]
    np.testing.assert_array_equal(lines.get_paths()[1].vertices, [[0, 0], [1, -2]])


def test_a_median_takes_minus_infinity_for_the_least_number():
    values = np.array([[-np.inf, -np.inf, 1.0], [-np.inf, 1.0, np.nan], [0.0, 2.0, 3.0]])
    np.testing.assert_array_equal(plotting._quantile(values, 0.5), [-np.inf, 1.0, 2.0])
    np.testing.assert_array_equal(plotting._quantile(values, 1.0), [0.0, 2.0, 3.0])
    random = np.random.default_rng(0).standard_normal((11, 4))
    np.testing.assert_array_equal(plotting._quantile(random, 0.1), np.quantile(random, 0.1, axis=0))


def test_eigenvalues_are_where_they_belong(vanilla):
    ax = plotting.eigenvalues(vanilla)
    (points,) = ax.collections
    np.testing.assert_array_equal(
        points.get_offsets(), np.column_stack([vanilla.eigenvalue_real, vanilla.eigenvalue_imag])
    )
    assert [circle.radius for circle in ax.patches] == [1.0, pytest.approx(float(vanilla.spectral_radius))]
    assert f"$\\sigma_1(W)$ = {float(vanilla.sigma_max):.3f}" in legend(ax)
    small, large = ax.get_xlim()
    assert large == -small == max(ax.get_ylim()) > max(1.0, float(vanilla.spectral_radius))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("per_step", [False, True])
def test_budget_bands_lead_from_the_promise_to_the_measurement(gated, per_step):
    ds = synthetic.dataset(gated=gated)
    ax = plotting.budget(ds, per_step=per_step)
    lags = np.arange(41)[1 if per_step else 0 :]
    scale = lags if per_step else 1.0
    top = ds.budget_step_norms if gated else ds.budget_promise
    np.testing.assert_allclose(ax.lines[0].get_ydata() * scale, top.mean("batch").values[::-1][lags], atol=1e-11)
    measured = ds.budget_measured.mean("batch").values[::-1][lags]
    np.testing.assert_allclose(ax.lines[1].get_ydata() * scale, measured, atol=1e-11)
    bands = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert len(bands) == (2 if gated else 4)  # other times: nothing, for a loss at T
    # each band ends where the next begins, the last at the measurement
    ends = [c.get_paths()[0].vertices for c in bands]
    ends = [v[v[:, 0] == lags[-1], 1] for v in ends]
    for above, below in itertools.pairwise(ends):
        assert above.min() == pytest.approx(below.max(), abs=1e-11)
    assert ends[-1].min() == pytest.approx(ax.lines[1].get_ydata()[-1], abs=1e-11)
    numbers = [float(text.split(": ")[1].replace("−", "-")) for text in legend(ax)]
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.0005 * len(numbers))  # three decimals each


def test_a_term_that_adds_is_hatched(vanilla):
    gain = 0.1 * vanilla.lag
    ax = plotting.budget(
        vanilla.assign(budget_other_times=gain, budget_measured=vanilla.budget_measured + gain), per_step=False
    )
    hatched = [c for c in ax.collections if isinstance(c, PolyCollection) and c.get_hatch()]
    assert len(hatched) == 1
    assert "other times: +0.100" in legend(ax)


def test_budget_leaves_out_a_gradient_that_is_exactly_zero(vanilla):
    dead = vanilla.copy(deep=True)
    for name in ("budget_direction", "budget_measured"):
        dead[name][0, :10] = -np.inf
        dead[name][1:, :5] = -np.inf
    ax = plotting.budget(dead)
    drawn = ax.lines[1]
    assert drawn.get_xdata()[-1] == 35  # beyond, every gradient is zero
    others = vanilla.budget_measured.isel(batch=slice(1, None)).mean("batch").values[::-1]
    np.testing.assert_allclose(drawn.get_ydata()[-5:], others[31:36] / np.arange(31, 36), rtol=1e-12)
    dead["budget_measured"][:, :-1] = -np.inf
    with pytest.raises(ValueError, match="budget needs a gradient that differs from zero"):
        plotting.budget(dead)


@pytest.mark.parametrize(
    ("figure", "missing", "how"),
    [
        (plotting.decay, "log_gradient_norm", "gl.analyze"),
        (plotting.decay, "lag", "gl.analyze"),
        (plotting.fan, "log_singular_values", "gl.analyze"),
        (plotting.eigenvalues, "eigenvalue_real", "recurrent matrix"),
        (plotting.budget, "budget_direction", "gl.analyze"),
        (plotting.budget, "budget_measured", "gl.analyze"),
        (plotting.budget, "budget_promise", "gl.analyze"),
    ],
)
def test_a_missing_variable_is_named_with_what_makes_it(vanilla, figure, missing, how):
    name = "budget_step_norms" if missing == "budget_promise" else missing
    with pytest.raises(ValueError, match=rf"{figure.__name__} needs the variable {name}, which .* lacks; .*{how}"):
        figure(vanilla.drop_vars(missing))
    assert plt.get_fignums() == []


@pytest.mark.parametrize("figure", FIGURES)
def test_what_is_not_a_dataset_is_named(figure):
    with pytest.raises(TypeError, match=r"ds must be an xarray.Dataset, got dict; gl.analyze returns one"):
        figure({})


def test_a_gradient_of_zero_at_the_end_is_an_error(vanilla):
    with pytest.raises(ValueError, match="decay needs a gradient at T, got ∂L/∂h_T = 0 in every sequence"):
        plotting.decay(vanilla.assign(log_gradient_norm=xr.full_like(vanilla.log_gradient_norm, -np.inf)))


@pytest.mark.parametrize("figure", FIGURES)
def test_files_are_the_same_bytes_every_time(vanilla, tmp_path, figure):
    written = []
    for run in ("a", "b"):
        pdf, png = plotting.save_figure(figure(vanilla).figure, tmp_path / run)
        written.append((pdf.read_bytes(), png.read_bytes()))
        plt.close("all")
    assert written[0] == written[1]
    pdf = written[0][0]
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert b"/Type3" not in pdf  # fonts embedded as TrueType
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]


def test_saved_names(tmp_path):
    fig = plt.figure()
    for name, base in (("a.pdf", "a"), ("b.png", "b"), ("gain_1.5", "gain_1.5"), ("c", "c")):
        pdf, png = plotting.save_figure(fig, tmp_path / name)
        assert (pdf.name, png.name) == (f"{base}.pdf", f"{base}.png")
        assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match="make it first"):
        plotting.save_figure(fig, tmp_path / "nowhere" / "a")
    with pytest.raises(TypeError, match="fig must be a matplotlib Figure, got Axes"):
        plotting.save_figure(fig.add_subplot(), tmp_path / "a")


def test_a_failed_save_leaves_the_old_figure(tmp_path, monkeypatch):
    fig = plt.figure()
    pdf, _ = plotting.save_figure(fig, tmp_path / "a")
    old = pdf.read_bytes()

    def half(target, **kwargs):
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(fig, "savefig", half)
    with pytest.raises(OSError, match="no space"):
        plotting.save_figure(fig, tmp_path / "a")
    assert pdf.read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png"]


def test_colours_differ_for_a_colour_blind_reader():
    with plotting.style():
        cycle = [to_hex(entry["color"]).upper() for entry in mpl.rcParams["axes.prop_cycle"]]
    okabe_ito = {"#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"}
    assert len(cycle) == len(okabe_ito)
    assert set(cycle) == okabe_ito


def test_a_figure_is_remade_from_a_file_without_tensorflow(vanilla, tmp_path):
    from gradlab import results

    path = results.save(vanilla, tmp_path / "run.nc")
    code = f"""
import sys
from gradlab import plotting, results
ds = results.load({str(path)!r})
for name in ("decay", "fan", "eigenvalues", "budget"):
    plotting.save_figure(getattr(plotting, name)(ds).figure, {str(tmp_path)!r} + "/" + name)
print([name for name in ("tensorflow", "keras") if name in sys.modules])
"""
    root = str(Path(plotting.__file__).resolve().parent.parent)
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
    assert len(list(tmp_path.glob("*.pdf"))) == 4


# --- The pseudospectrum ------------------------------------------------------------------------------------------


def drawn_levels(ax):
    """Return x, y and the contour set that the figure drew."""
    (filled, *_) = [c for c in ax.collections if hasattr(c, "levels")]
    return filled


@pytest.mark.parametrize(
    "W",
    [
        np.diag([0.5, -0.25]),
        [[0.5, 4.0], [0.0, 0.5]],
        0.2 * np.random.default_rng(0).standard_normal((30, 30)),
        3.0 * np.eye(3, k=1),
        np.zeros((2, 2)),
        [[0.5]],
    ],
)
def test_the_pseudospectrum_is_complete(W):
    before = dict(mpl.rcParams)
    ax = plotting.pseudospectrum(W)
    assert dict(mpl.rcParams) == before
    assert ax.get_aspect() == 1.0
    assert ax.get_xlabel() == "Re $z$"
    assert [round(float(p.radius), 9) for p in ax.patches] == [1.0]
    title = ax.get_legend().get_title().get_text()
    assert "nan" not in title
    assert "inf" not in title
    assert_inside(ax)
    assert ax.figure.get_size_inches()[0] == 3.4


def test_contours_of_a_normal_matrix_are_circles_about_its_eigenvalue():
    filled = drawn_levels(plotting.pseudospectrum([[0.5]]))
    levels = filled.levels
    assert 3 <= len(levels) <= 15
    for level, path in zip(levels[:-1], filled.get_paths(), strict=False):
        vertices = path.vertices[np.abs(path.vertices).max(axis=1) < 1.1]  # not those on the frame
        distance = np.log10(np.hypot(vertices[:, 0] - 0.5, vertices[:, 1]).clip(1e-9))
        near = np.abs(levels[:, None] - distance).min(axis=0)
        if level > -1:  # linear interpolation between grid points 0.014 apart
            assert near.max() < 0.05


def test_the_pseudospectrum_draws_what_it_says():
    W = np.array([[0.5, 4.0], [0.0, 0.5]])
    ax = plotting.pseudospectrum(W)
    (boundary,) = [one for one in ax.lines if len(one.get_xdata()) > 100]
    np.testing.assert_allclose(np.hypot(boundary.get_xdata() - 0.5, boundary.get_ydata()), 2.0, rtol=1e-9)
    assert "$w$ = 2.5" in ax.get_legend().get_title().get_text()
    points = [c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 2]
    np.testing.assert_allclose(points[0], [[0.5, 0.0], [0.5, 0.0]])
    assert "without end" in plotting.pseudospectrum(1.1 * np.eye(2)).get_legend().get_title().get_text()


def test_the_pseudospectrum_takes_axes_and_a_dataset_with_the_matrix(vanilla):
    W = np.array([[0.5, 1.0], [0.0, 0.25]])
    fig, (left, right) = plt.subplots(1, 2)
    assert plotting.pseudospectrum(xr.Dataset({"recurrent_matrix": (("to", "from"), W)}), ax=right) is right
    assert plt.get_fignums() == [fig.number]
    assert not left.has_data()
    with pytest.raises(ValueError, match=r"pseudospectrum needs the variable recurrent_matrix.*pass W itself"):
        plotting.pseudospectrum(vanilla)
    with pytest.raises(ValueError, match="at most 512 units, got 513"):
        plotting.pseudospectrum(np.eye(513))
    with pytest.raises(ValueError, match="square"):
        plotting.pseudospectrum(np.ones((2, 3)))

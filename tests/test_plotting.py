"""What holds of every figure: complete, in its frame, the caller's style, the same bytes every time; the budget."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic
import xarray as xr
from drawing import assert_inside, legend
from matplotlib.collections import PolyCollection
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


pytestmark = pytest.mark.usefixtures("close_figures")


@pytest.fixture(scope="module", params=KINDS)
def ds(request) -> xr.Dataset:
    return synthetic.dataset(**KINDS[request.param])


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

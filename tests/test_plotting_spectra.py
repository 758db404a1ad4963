"""The figures of spectra: the fan of singular values, eigenvalues, the pseudospectrum."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import synthetic
import xarray as xr
from drawing import assert_inside, legend
from matplotlib.collections import LineCollection

from gradlab import plotting

pytestmark = pytest.mark.usefixtures("close_figures")


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

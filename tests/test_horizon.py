"""The float horizon: where formed products lose singular values, by formula, by ball arithmetic, by definition."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pytest
import synthetic
from cases import jordan, permutations, random_orthogonal, relu_net, tanh_net
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import exact_log_singular_values

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

import gradlab as gl
from gradlab import horizon as module
from gradlab import plotting
from gradlab.horizon import reliability_horizon
from gradlab.products import log_singular_values

DTYPES = ("float32", "float64")


def by_definition(J, dtype, tolerance, exact):
    """min{k : |Δ ln σ_i(k')| > tolerance for every k' from k to T}, T + 1 if there is none; J [T, n, n]."""
    T, n, _ = J.shape
    wrong = np.ones((T + 1, n), bool)  # [k, i]
    P = np.eye(n, dtype=dtype)
    for k in range(1, T + 1):
        P = P @ J[T - k].astype(dtype)
        with np.errstate(divide="ignore", invalid="ignore"):
            formed = np.log(np.linalg.svd(P, compute_uv=False).astype(float))
            wrong[k] = ~((np.abs(formed - exact[T - k]) <= tolerance) | (formed == exact[T - k]))
    return [min([k for k in range(1, T + 1) if wrong[k:, i].all()], default=T + 1) for i in range(n)]


# --- exactly known ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "dtype", "expected"),
    [
        (0.5, "float32", 150),  # 2^−149 is the least number above 0
        (0.5, "float64", 1075),  # 2^−1074
        (2.0, "float32", 128),  # 2^128 is ∞
        (2.0, "float64", 1024),
        (1.0, "float32", 1101),  # never
        (-1.0, "float64", 1101),
    ],
)
def test_one_unit_is_lost_where_its_dtype_ends(base, dtype, expected):
    assert reliability_horizon(np.full((1100, 1, 1), base), dtype).tolist() == [expected]


def test_products_without_rounding_are_never_lost():
    for dtype in DTYPES:
        assert (reliability_horizon(permutations(5, 30, 0), dtype) == 31).all()


@pytest.mark.parametrize(("dtype", "unit"), [("float32", 2.0**-24), ("float64", 2.0**-53)])
@pytest.mark.parametrize("ratio", [0.5, 0.1, 1e-3])
def test_a_mode_is_lost_at_the_depth_of_rounding(dtype, unit, ratio):
    """σ_1 = 1, σ_2 = ratio^k: lost where the rounding of n-term sums, times k of them, is a tenth of ratio^k."""
    Q = random_orthogonal(4, np.random.default_rng(1))
    J = np.repeat((Q * [1.0, ratio, ratio, ratio] @ Q.T)[None], 60, axis=0)
    horizon = reliability_horizon(J, dtype)
    assert horizon[0] == 61
    # the error of the product is at least unit/32 (it would take luck to round better) and at most n²·k units
    least, most = (np.log(x) / np.log(ratio) for x in (16 * 60 * unit / 0.1, unit / 32 / 0.1))
    assert (horizon[1:] >= np.floor(least)).all()
    assert (horizon[1:] <= np.ceil(most) + 1).all()


def test_noise_in_place_of_a_dead_unit_is_no_zero():
    rng = np.random.default_rng(2)
    J = rng.standard_normal((6, 4, 4))
    J[2, 1] = 0.0  # one zero row at lag 4: σ_4 = 0 from there on, and rounding is what float64 makes of it
    assert np.isneginf(log_singular_values(J)[2, 3])
    assert reliability_horizon(J, "float64").tolist() == [7, 7, 7, 4]
    dead = np.zeros((3, 2, 2))
    assert reliability_horizon(dead, "float32").tolist() == [4, 4]  # exact zeros on both sides


# --- by other routes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "J",
    [tanh_net(5, 30, 3.0, 0), relu_net(5, 12, 1.4, 3, bias=0.5), jordan(0.9, 4, 25)],
    ids=["tanh", "relu", "jordan"],
)
def test_the_definition_against_ball_arithmetic(J, dtype):
    exact = np.stack([exact_log_singular_values(J[t:]) for t in range(len(J))])
    assert reliability_horizon(J, dtype).tolist() == by_definition(J, dtype, module.TOLERANCE, exact)


matrices = st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 4, 20]), st.integers(0, 2**32 - 1)).map(
    lambda shape: tanh_net(shape[0], shape[1], 4.0, shape[2])
)


@given(matrices, st.sampled_from(DTYPES), st.floats(1e-3, 10.0))
@settings(max_examples=40)
def test_more_tolerance_never_shortens_it_and_it_is_its_definition(J, dtype, tolerance):
    exact = log_singular_values(J)
    horizon = reliability_horizon(J, dtype, tolerance=tolerance, exact=exact)
    assert horizon.dtype == np.int64
    assert horizon.tolist() == by_definition(J, dtype, tolerance, exact)
    assert (reliability_horizon(J, dtype, tolerance=2 * tolerance, exact=exact) >= horizon).all()


@given(matrices, st.integers(-3, 3))
@settings(max_examples=20)
def test_powers_of_two_change_nothing(J, power):
    """They round nothing, and 2^±60 on top of the values stays within float64; all ln σ shift by the same."""
    scaled = 2.0**power * J
    exact = log_singular_values(J)
    shift = power * np.log(2.0) * np.arange(len(J), 0, -1)[:, None]
    # an |Δ ln σ| within rounding of the tolerance would be a coin toss, and has no business in 1e-10 of it
    ours = reliability_horizon(scaled, "float64", exact=exact + shift)
    assert ours.tolist() == reliability_horizon(J, "float64", exact=exact).tolist()


def test_a_batch_is_its_sequences_and_chunks_do_not_matter(monkeypatch):
    J = np.stack([tanh_net(4, 20, gain, 5) for gain in (1.0, 3.0)])
    whole = {dtype: reliability_horizon(J, dtype) for dtype in DTYPES}
    monkeypatch.setattr(module, "CHUNK_BYTES", 700)
    for dtype in DTYPES:
        assert whole[dtype].shape == (2, 4)
        assert (reliability_horizon(J, dtype) == whole[dtype]).all()
        assert all((reliability_horizon(one, dtype) == row).all() for one, row in zip(J, whole[dtype], strict=True))


@given(st.integers(0, 2**32 - 1), st.lists(st.booleans(), min_size=25, max_size=25))
@settings(max_examples=20)
def test_masked_steps_are_no_lag(seed, pattern):
    taken = np.array(pattern)
    taken[[0, -1]] = True
    J = np.repeat(np.eye(4)[None], 25, axis=0)
    J[taken] = tanh_net(4, int(taken.sum()), 3.0, seed)
    for dtype in DTYPES:
        assert (reliability_horizon(J, dtype, mask=taken) == reliability_horizon(J[taken], dtype)).all()


def test_no_convergence_counts_as_lost(monkeypatch):
    J = tanh_net(3, 4, 1.0, 0)
    exact, svd = log_singular_values(J), np.linalg.svd

    def stubborn(P, compute_uv):
        if P.ndim > 2 or np.array_equal(P, J[3] @ J[2] @ J[1] @ J[0]):
            raise np.linalg.LinAlgError("SVD did not converge")
        return svd(P, compute_uv=compute_uv)

    monkeypatch.setattr(np.linalg, "svd", stubborn)
    assert reliability_horizon(J, "float64", exact=exact).tolist() == [4, 4, 4]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "float16"}, ValueError, "dtype must be float32 or float64, got float16; LAPACK has no SVD"),
        ({"dtype": int}, ValueError, "dtype must be float32 or float64, got int64"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a positive number of nats, got 0.0"),
        ({"tolerance": np.nan}, ValueError, "tolerance must be a positive number of nats, got nan"),
        ({"exact": np.zeros((2, 2))}, ValueError, r"exact must be ln σ of shape \(3, 2\), got shape \(2, 2\); log"),
        ({"exact": np.full((3, 2), np.nan)}, ValueError, "exact must hold ln σ, finite or −∞, got NaN"),
        ({"mask": np.ones(2, bool)}, ValueError, r"mask must be of shape \(3,\), as J is, got shape \(2,\)"),
        ({"mask": np.ones(3)}, TypeError, r"mask must be boolean, .*, got float64; use mask.astype\(bool\)"),
        ({"J": np.zeros((2, 2))}, ValueError, r"J must be step Jacobians .*, got shape \(2, 2\)"),
        ({"J": np.full((3, 2, 2), np.inf)}, ValueError, "J must be finite, .* at batch 0, step 1"),
    ],
    ids=str,
)
def test_bad_input_says_what_came(arguments, error, message):
    with pytest.raises(error, match=message):
        reliability_horizon(**{"J": np.ones((3, 2, 2)), **arguments})


# --- in a dataset and on paper ---------------------------------------------------------------------------------------


def dataset(**options):
    """A synthetic dataset with horizons by the rule of thumb."""
    ds = synthetic.dataset(**options)
    ln_s, lag = ds.log_singular_values.values, ds.lag.values
    for dtype, bits in (("float32", 24), ("float64", 53)):
        right = ln_s >= ln_s[..., :1] - bits * np.log(2.0)
        last = np.where(right, lag[..., None], 0).max(axis=1)
        ds[f"horizon_{dtype}"] = (("batch", "mode"), np.where(last == lag[:, :1], np.inf, last + 1.0))
    return ds


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_analyze_carries_both_horizons():
    cell = gl.VanillaRNNCell(4, recurrent_initializer="gaussian", recurrent_gain=3.0, seed=0)
    inputs = np.random.default_rng(0).standard_normal((2, 30, 2))
    mask = np.arange(30) < np.array([[30], [20]])
    ds = gl.analyze(cell, inputs, mask=mask)
    J = gl.step_jacobians(gl.rollout(cell, inputs, mask=mask))
    for dtype in DTYPES:
        steps = ds[f"horizon_{dtype}"]
        assert steps.dims == ("batch", "mode")
        assert steps.attrs["units"] == "steps"
        expected = reliability_horizon(J, dtype, mask=mask).astype(float)
        expected[expected > np.array([[30], [20]])] = np.inf
        np.testing.assert_array_equal(steps, expected)
    assert np.isinf(ds["horizon_float64"]).any()
    assert np.isfinite(ds["horizon_float32"]).any()


@pytest.mark.parametrize(
    "options", [{}, {"dead": 3}, {"batch": 1}, {"n": 1}, {"steps": 1}, {"lengths": [40, 9, 8, 7, 6]}], ids=str
)
def test_the_figure_draws_every_mode_once_from_end_to_end(options):
    ds = dataset(gain=2.5, **options)
    before = dict(mpl.rcParams)
    ax = plotting.horizon(ds)
    assert dict(mpl.rcParams) == before
    pieces = [c.get_paths() for c in ax.collections if isinstance(c, LineCollection)]
    assert len(pieces) == 3
    n, dead = ds.sizes["mode"], options.get("dead", 0)
    for i in range(n - dead):
        parts = [p[i].vertices for p in pieces if len(p[i].vertices)]
        for one, other in itertools.pairwise(parts):
            np.testing.assert_array_equal(one[-1], other[0])  # no gap where the colour changes
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sum(int(text.split(": ")[1]) for text in texts if ": " in text) == n
    assert any("sigma = 0" in text for text in texts) == bool(dead)
    ax.figure.draw_without_rendering()
    width, height = ax.figure.bbox.size
    for artist in (ax.get_legend(), ax.xaxis.label, ax.yaxis.label):
        box = artist.get_window_extent()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -1


def test_the_figure_marks_where_a_mode_is_lost():
    ds = dataset(batch=1, gain=2.5)
    ax = plotting.horizon(ds, batch=0)
    dots = {line.get_markerfacecolor(): line for line in ax.lines if line.get_marker() == "o"}
    for face, dtype in (("#0072B2", "float32"), ("white", "float64")):
        steps = ds[f"horizon_{dtype}"].values[0]
        lost = np.isfinite(steps) & (steps > 1) & (steps - 1 < 40)
        np.testing.assert_array_equal(dots[face].get_xdata(), steps[lost] - 1)


def test_the_figure_says_what_it_lacks():
    with pytest.raises(ValueError, match=r"horizon needs the variable horizon_float32, .*; gl.analyze\(cell, inputs\)"):
        plotting.horizon(synthetic.dataset())
    with pytest.raises(IndexError, match="batch must be below 5, got 7"):
        plotting.horizon(dataset(), batch=7)

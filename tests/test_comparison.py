"""Intervals over sequences and networks, and differences of pairs: exact cases, coverage, and what does not pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab.statistics import cluster_bootstrap, mean_interval, paired_bootstrap, root_mean_square


def dataset(rates, seed=0, **more):
    rate = ("batch", np.asarray(rates, float), {"units": "nats/step"})
    return xr.Dataset({"decay_rate": rate, **more}, attrs={"seed": seed})


def networks(values):
    """One dataset for each row of values [networks, sequences]."""
    return [dataset(row, seed) for seed, row in enumerate(values)]


# --- Exact -------------------------------------------------------------------------------------------------------


def test_of_one_dataset_the_sequences_are_resampled_and_of_several_the_networks():
    values = np.random.default_rng(0).standard_normal((9, 8)) + np.arange(9)[:, None]
    one = gl.interval(dataset(values[0]))
    assert one == cluster_bootstrap(values[0], np.arange(8))
    several = gl.interval(networks(values))
    assert several == cluster_bootstrap(values.ravel(), np.repeat(np.arange(9), 8))
    assert several.clusters == 9
    # the networks differ, and a number of sequences does not make up for a number of networks
    unaware = gl.interval(dataset(values.ravel()))
    assert several.high - several.low > 2 * (unaware.high - unaware.low)


def test_labels_say_which_datasets_are_of_one_network_or_setting():
    values = np.random.default_rng(1).standard_normal((16, 3))
    pairs = np.arange(16) // 2
    found = gl.interval(networks(values), clusters=pairs)
    assert found == cluster_bootstrap(values.ravel(), np.repeat(pairs, 3))
    halves = np.arange(16) // 8
    shifted = networks(values + 100.0 * halves[:, None])
    assert gl.interval(shifted, strata=halves).high - gl.interval(shifted, strata=halves).low < 5
    assert gl.interval(dataset(values[:, 0]), clusters=pairs) == cluster_bootstrap(values[:, 0], pairs)


def test_a_mode_is_chosen_and_a_number_of_the_network_needs_several():
    exponents = np.random.default_rng(2).standard_normal((10, 3))
    ds = dataset(np.zeros(10), lyapunov_exponent=(("batch", "mode"), exponents))
    for mode in (1, 3):
        expected = cluster_bootstrap(exponents[:, mode - 1], np.arange(10))
        assert gl.interval(ds, "lyapunov_exponent", mode=mode) == expected
    radii = [dataset([0.0], seed, spectral_radius=((), 1.0 + seed)) for seed in range(8)]
    assert gl.interval(radii, "spectral_radius").estimate == 4.5
    with pytest.raises(ValueError, match="got 1 clusters"):
        gl.interval(radii[0], "spectral_radius")


def test_the_difference_of_means_is_the_mean_of_differences():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 9, 4))
    found = gl.compare(networks(a), networks(b))
    differences = cluster_bootstrap((a - b).ravel(), np.repeat(np.arange(9), 4))
    got = found.difference
    # the same resamples; sums in another order
    assert (got.estimate, got.low, got.high) == pytest.approx(
        (differences.estimate, differences.low, differences.high), abs=1e-14
    )
    assert (found.first, found.second) == pytest.approx((a.mean(), b.mean()), abs=1e-15)
    assert (found.pairs, found.over, got.clusters, got.degrees_of_freedom) == (36, "networks", 9, 8)
    swapped = gl.compare(networks(b), networks(a)).difference
    assert swapped.estimate == pytest.approx(-got.estimate, abs=1e-15)


def test_what_both_share_cancels():
    rng = np.random.default_rng(4)
    shared = 10 * rng.standard_normal(12)
    a, b = (dataset(shared + shift + 0.1 * rng.standard_normal(12)) for shift in (0.5, 0.0))
    found = gl.compare(a, b)
    assert found.settled
    assert found.over == "sequences"
    assert found.difference.high - found.difference.low < 0.5
    assert not gl.compare(a, a).settled
    for low, high in ((np.nan, np.nan), (1.0, np.inf), (1.0, np.nan)):
        assert not replace(found, difference=replace(found.difference, low=low, high=high)).settled
    unpaired = [gl.interval(ds) for ds in (a, b)]
    assert min(one.high - one.low for one in unpaired) > 5
    assert str(found).startswith("decay_rate: ")
    assert "nats/step, difference +0.5" in str(found)
    assert str(found).endswith("over 12 sequences, 12 pairs")


def test_a_missing_value_leaves_out_its_pair():
    a, b = np.arange(9.0), np.arange(9.0)[::-1].copy()
    b[2] = np.nan
    found = gl.compare(dataset(a), dataset(b))
    keep = np.arange(9) != 2
    assert found.pairs == 8
    assert found.difference == paired_bootstrap(a[keep], b[keep], np.arange(9)[keep])
    assert found.first == a[keep].mean()


def test_other_statistics_are_compared_as_they_are():
    a, b = np.random.default_rng(5).standard_normal((2, 40)) * np.array([[3.0], [1.0]])
    found = paired_bootstrap(a, b, np.arange(40), root_mean_square)
    assert found.estimate == pytest.approx(root_mean_square(a) - root_mean_square(b), abs=1e-15)
    assert found.low > 0


def test_many_means_at_once_are_those_one_by_one():
    values = np.random.default_rng(6).standard_normal((25, 3, 2))
    values[4, 1, 1] = -np.inf
    low, high = mean_interval(values, resamples=40_000)
    assert low.shape == high.shape == (3, 2)
    assert np.isnan(low[1, 1])
    assert np.isnan(high[1, 1])
    for i, j in ((0, 0), (2, 1)):
        one = cluster_bootstrap(values[:, i, j], np.arange(25), resamples=40_000)
        # each end is a quantile at 0.019 of 40000 draws, to √(p/N)/φ(2.07) = 0.015 standard errors; both are random
        tolerance = 4 * np.sqrt(2) * 0.015 * values[:, i, j].std() / 5
        assert (low[i, j], high[i, j]) == pytest.approx((one.low, one.high), abs=tolerance)
    with pytest.raises(ValueError, match="got 6 clusters in 1 strata"):
        mean_interval(values[:6])
    with pytest.raises(ValueError, match="confidence"):
        mean_interval(values, confidence=0.0)


# --- Coverage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clusters", "each"), [(8, 4), (20, 1), (20, 6)])
def test_a_difference_is_covered_as_often_as_promised(clusters, each):
    """Pairs share an effect of their sequence, clusters a difference of their own; 500 trials, 4 binomial errors."""
    rng, hits = np.random.default_rng(7), 0
    labels = np.repeat(np.arange(clusters), each)
    for seed in range(500):
        shared = 3.0 * rng.standard_normal(len(labels))
        difference = 0.3 + 0.5 * rng.standard_normal(clusters)[labels] + 0.2 * rng.standard_normal(len(labels))
        found = paired_bootstrap(shared + difference, shared, labels, resamples=1999, seed=seed)
        hits += found.low <= 0.3 <= found.high
    assert hits / 500 == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 500))


def test_means_at_once_are_covered_as_often_as_promised():
    values = np.random.default_rng(8).standard_normal((8, 500))
    low, high = mean_interval(values)
    # one set of resamples for all columns, and 500 independent columns
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 500))


# --- Bad inputs --------------------------------------------------------------------------------------------------


def test_what_does_not_pair_is_refused():
    a = networks(np.zeros((8, 2)))
    with pytest.raises(ValueError, match="one dataset for each seed, in the same order, got 8 and 7"):
        gl.compare(a, a[:7])
    with pytest.raises(ValueError, match=r"same seeds in the same order, got \(0, 7\) in pair 0"):
        gl.compare(a, a[::-1])
    with pytest.raises(ValueError, match="the same sequences, got 2 and 3 in pair 0"):
        gl.compare(a, networks(np.zeros((8, 3))))
    with pytest.raises(TypeError, match="both be datasets or both be lists"):
        gl.compare(a, a[0])
    lags = [dataset(np.zeros(8)).assign_coords(lag=(("batch", "time"), np.full((8, 1), k))) for k in (3, 4)]
    with pytest.raises(ValueError, match="sequences of other lengths in pair 0"):
        gl.compare(*lags)
    with pytest.raises(ValueError, match=r"first and second .* got shapes \(3,\) and \(4,\)"):
        paired_bootstrap(np.zeros(3), np.zeros(4), np.arange(3))


def test_what_is_not_there_is_named():
    ds = dataset(np.zeros(8), lyapunov_exponent=(("batch", "mode"), np.zeros((8, 2))))
    with pytest.raises(ValueError, match=r"has no 'rate'; it has \['decay_rate', 'lyapunov_exponent'\]"):
        gl.interval(ds, "rate")
    for mode in (0, 3):
        with pytest.raises(ValueError, match=f"mode must lie between 1 and 2, got {mode}"):
            gl.interval(ds, "lyapunov_exponent", mode=mode)
    with pytest.raises(ValueError, match=r"got dims \('stage', 'batch'\); .*stage='trained'"):
        gl.interval(xr.concat([ds, ds], xr.Variable("stage", ["initial", "trained"])))
    with pytest.raises(TypeError, match="an empty list"):
        gl.interval([])
    with pytest.raises(TypeError, match=r"list of such, got \['ndarray'\]"):
        gl.interval([np.zeros(3)])
    with pytest.raises(ValueError, match=r"clusters must have one label for each dataset, 2, got shape \(3,\)"):
        gl.interval([ds, ds], clusters=[0, 1, 2])
    with pytest.raises(ValueError, match="got 1 infinite"):
        gl.interval(dataset([-np.inf, *np.zeros(7)]))

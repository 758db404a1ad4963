"""Intervals over clusters: exact properties, and coverage where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gradlab.statistics import cluster_bootstrap, root_mean_square


def clustered(rng, clusters, each, between=1.0, within=0.5):
    """Values that share a normal effect within their cluster, and the labels of the clusters."""
    labels = np.repeat(np.arange(clusters), each)
    return between * rng.standard_normal(clusters)[labels] + within * rng.standard_normal(len(labels)), labels


# --- Exact -------------------------------------------------------------------------------------------------------


def test_it_is_the_t_interval_of_the_cluster_means_where_these_are_many():
    """For means of equal clusters the bootstrap distribution tends to the normal one, and its expansion to Student."""
    values, labels = clustered(np.random.default_rng(0), 60, 4)
    means = values.reshape(60, 4).mean(axis=1)
    expected = stats.t.interval(0.95, 59, means.mean(), means.std(ddof=1) / np.sqrt(60))
    found = cluster_bootstrap(values, labels, resamples=40_000)
    assert found.estimate == pytest.approx(values.mean(), abs=1e-15)
    assert (found.clusters, found.degrees_of_freedom) == (60, 59)
    # the ends are quantiles at 0.0247 of 40000: to ~√(p/N)/φ(2) = 0.015 standard errors; four of those, and a skewness
    # of the means of 60 clusters of some hundredths of a standard error
    tolerance = 0.1 * means.std(ddof=1) / np.sqrt(60)
    assert (found.low, found.high) == pytest.approx(expected, abs=tolerance)


def test_labels_order_and_missing_values_do_not_matter():
    rng = np.random.default_rng(1)
    values, labels = clustered(rng, 9, 3)
    plain = cluster_bootstrap(values, labels)
    names = np.array(list("abcdefghi"))[labels]
    assert cluster_bootstrap(values, names) == plain
    padded = np.append(values, [np.nan, np.nan]), np.append(names, ["a", "z"])
    assert cluster_bootstrap(*padded) == plain
    shuffle = rng.permutation(len(values))
    mixed = cluster_bootstrap(values[shuffle], labels[shuffle])
    # the same sums in another order
    assert (mixed.low, mixed.high) == pytest.approx((plain.low, plain.high), rel=1e-13)
    assert cluster_bootstrap(values, labels, seed=1) != plain


def test_clusters_of_unequal_size_weigh_by_their_values():
    values = np.array([1.0] * 30 + [0.0] * 10)
    labels = np.concatenate([np.repeat(np.arange(5), 6), np.arange(5, 15)])
    found = cluster_bootstrap(values, labels)
    assert found.estimate == 0.75
    assert 0.0 < found.low < 0.75 < found.high <= 1.0


def test_the_spread_between_strata_is_not_in_the_interval():
    """A thousand added to one stratum moves the interval of the mean by half of that and does not widen it."""
    values, labels = clustered(np.random.default_rng(2), 20, 3)
    strata = labels // 10
    plain = cluster_bootstrap(values, labels, strata=strata)
    moved = cluster_bootstrap(values + 1000.0 * strata, labels, strata=strata)
    assert (moved.low - 500, moved.high - 500) == pytest.approx((plain.low, plain.high), abs=1e-9)
    assert plain.degrees_of_freedom == 18
    unaware = cluster_bootstrap(values + 1000.0 * strata, labels)
    assert unaware.high - unaware.low > 100


def test_what_all_clusters_agree_on_is_known():
    found = cluster_bootstrap(np.full(24, -2.0), np.arange(24) // 3, root_mean_square)
    assert (found.estimate, found.low, found.high) == (2.0, 2.0, 2.0)


# --- Coverage ----------------------------------------------------------------------------------------------------


def coverage(statistic, truth, clusters, each, strata=1, trials=500):
    """How often the interval holds the truth; strata are set apart, which must not matter to the mean."""
    hits, rng = 0, np.random.default_rng(3)
    for seed in range(trials):
        values, labels = clustered(rng, clusters, each)
        stratum = labels // (clusters // strata)
        heights = np.linspace(-1.0, 1.0, strata) if strata > 1 else np.zeros(1)
        found = cluster_bootstrap(
            values + heights[stratum], labels, statistic, strata=stratum, resamples=1999, seed=seed
        )
        hits += found.low <= truth <= found.high
    return hits / trials


@pytest.mark.parametrize(("clusters", "each", "strata"), [(7, 6, 1), (20, 6, 1), (18, 2, 6), (30, 2, 6)])
def test_the_mean_is_covered_as_often_as_promised(clusters, each, strata):
    """From as few clusters as are taken on; 500 trials, 4 binomial errors."""
    found = coverage(np.nanmean, 0.0, clusters, each, strata)
    assert found == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 500))


@pytest.mark.parametrize(("clusters", "strata", "expected"), [(8, 1, 0.88), (60, 12, 0.94)])
def test_root_mean_squares_of_few_clusters_are_covered_less_often(clusters, strata, expected):
    """As the docstring says: a few clusters seldom hold the large errors that matter most."""
    heights = np.linspace(-1.0, 1.0, strata) if strata > 1 else np.zeros(1)
    truth = np.sqrt(1.25 + (heights**2).mean())
    found = coverage(root_mean_square, truth, clusters, 2, strata)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 500))


def test_values_resampled_apart_are_covered_far_too_seldom():
    """What the clusters are for: 5 numbers a cluster with a correlation of 0.8 among them."""
    rng, hits = np.random.default_rng(4), {"clusters": 0, "values": 0}
    for seed in range(300):
        values, labels = clustered(rng, 10, 5)
        for name, taken in (("clusters", labels), ("values", np.arange(50))):
            found = cluster_bootstrap(values, taken, resamples=999, seed=seed)
            hits[name] += found.low <= 0.0 <= found.high
    assert hits["clusters"] / 300 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 300)
    assert hits["values"] / 300 < 0.75


# --- Bad inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "labels", "strata", "message"),
    [
        (np.zeros(18), np.arange(18) // 3, None, "got 6 clusters in 1 strata, 6 in the smallest; draw more clusters"),
        (np.zeros(18), np.arange(18), np.r_[0, [1] * 17], "at least 2 clusters in each stratum .* 1 in the smallest"),
        (np.zeros(20), np.arange(20) // 2, np.arange(20) % 2, "each cluster must lie in one stratum"),
        (np.zeros((4, 5)), np.arange(20), None, r"must be \[m\], got shapes \(4, 5\)"),
        (np.zeros(20), np.arange(19), None, r"got shapes \(20,\), \(19,\)"),
        (np.r_[np.inf, np.zeros(19)], np.arange(20), None, "got 1 infinite"),
        (np.full(20, np.nan), np.arange(20), None, "20 values, all missing"),
    ],
)
def test_what_gives_no_interval_is_refused(values, labels, strata, message):
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(values, labels, strata=strata)


def test_other_bad_arguments_are_refused():
    values, labels = np.arange(20.0), np.arange(20)
    with pytest.raises(TypeError, match="values must hold real numbers"):
        cluster_bootstrap(np.array(["a"] * 20), labels)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        cluster_bootstrap(values, labels, confidence=95)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        cluster_bootstrap(values, labels, resamples=0)

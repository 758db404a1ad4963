"""How far a number would move with other draws, where what is drawn is a cluster of numbers, not each by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from gradlab.validation import Array, positive_integer, real_array

LEAST_DEGREES = 6  # of freedom; below, a resampling has too few different outcomes to say where its tails are
BATCH_ENTRIES = 1 << 21  # values that are resampled at a time


@dataclass(frozen=True)
class Interval:
    """A statistic with its confidence interval.

    Attributes:
        estimate: the statistic of all values.
        low: lower end.
        high: upper end.
        clusters: how many independent clusters there were.
        degrees_of_freedom: clusters less strata.
    """

    estimate: float
    low: float
    high: float
    clusters: int
    degrees_of_freedom: int


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    statistic: Callable[..., Any] = np.nanmean,
    *,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return a statistic and its interval by resampling whole clusters, within each stratum if there are any.

    A cluster is what is drawn independently (a random network), its values are not (the network before and after
    training). A stratum is what is chosen, not drawn (an architecture at one gain): every resample holds as many
    clusters of it as there are, so that the spread between strata does not enter the interval.

    The interval is the expanded percentile interval: a resample of n clusters scatters less than n new ones by
    √((n − 1)/n), and a percentile knows nothing of how well that scatter is known. With the tail probability
    Φ(−√(n/(n − 1))·t_ν(1 − α/2)) in the place of α/2 both are made up for; n is the size of the smallest stratum and
    ν the number of clusters less that of strata. Simulated coverage for normal clusters: of a mean what is asked for,
    from 7 clusters on; of a root mean square 0.88 instead of 0.95 for 8 clusters, 0.94 for 60 in 12 strata.

    Args:
        values: the numbers [m]; NaN is a missing one.
        clusters: which cluster each belongs to [m], any labels.
        statistic: maps values [..., k] and `axis` to [...]; it must leave out NaN, which fills up smaller clusters.
        strata: which stratum each belongs to [m]; None: one for all.
        confidence: 1 − α.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        The statistic with the ends of its interval.

    Raises:
        ValueError: shapes that do not fit, infinite values, a cluster in several strata, fewer than two clusters in
            a stratum, or fewer than 6 clusters more than strata: an interval from these would not cover what it says.
        TypeError: values that are not real numbers.

    Source:
        Davison & Hinkley 1997, sections 3.2 (strata) and 3.8 (clusters); Hesterberg 2015 (expanded percentile).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clusters = np.repeat(np.arange(20), 5)
        >>> values = rng.standard_normal(20)[clusters] + 0.1 * rng.standard_normal(100)
        >>> together, apart = cluster_bootstrap(values, clusters), cluster_bootstrap(values, np.arange(100))
        >>> (together.high - together.low) / (apart.high - apart.low) > 2  # 100 numbers, but 20 draws
        True
    """
    numbers, cluster, stratum = _labelled(values, clusters, strata)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    table, groups = _by_cluster(numbers, cluster, stratum)
    smallest, freedom = min(map(len, groups)), len(table) - len(groups)
    if smallest < 2 or freedom < LEAST_DEGREES:
        raise ValueError(
            f"an interval takes at least 2 clusters in each stratum and {LEAST_DEGREES} more clusters than strata,"
            f" got {len(table)} clusters in {len(groups)} strata, {smallest} in the smallest; draw more clusters"
        )

    def resampled(*chosen: NDArray[np.int64], axis: int = -1) -> Array:
        rows = np.concatenate(chosen, axis=axis)
        return np.asarray(statistic(table[rows].reshape(*rows.shape[:-1], -1), axis=-1))

    quantile = np.sqrt(smallest / (smallest - 1)) * stats.t.ppf(0.5 + confidence / 2, freedom)
    found = stats.bootstrap(
        groups,
        resampled,
        n_resamples=positive_integer("resamples", resamples),
        batch=max(1, BATCH_ENTRIES // table.size),
        vectorized=True,
        confidence_level=1.0 - 2.0 * special.ndtr(-quantile),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    estimate = float(statistic(numbers, axis=-1))
    return Interval(estimate, float(found.low), float(found.high), len(table), freedom)


def root_mean_square(values: ArrayLike, axis: int | None = None) -> Any:
    """Return √⟨x²⟩ along an axis, NaN left out: a statistic for `cluster_bootstrap`.

    Args:
        values: the numbers.
        axis: as in `np.mean`.

    Returns:
        The root mean square, without that axis.

    Example:
        >>> float(root_mean_square([3.0, np.nan, -3.0]))
        3.0
    """
    return np.sqrt(np.nanmean(np.square(values), axis=axis))


def _labelled(
    values: ArrayLike, clusters: ArrayLike, strata: ArrayLike | None
) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Return the values that are there [m], and the numbers of their clusters and strata, checked."""
    numbers, cluster = real_array("values", values), np.asarray(clusters)
    stratum = np.zeros(cluster.shape, int) if strata is None else np.asarray(strata)
    if numbers.ndim != 1 or cluster.shape != numbers.shape or stratum.shape != numbers.shape:
        raise ValueError(
            f"values, clusters and strata must be [m], got shapes {numbers.shape}, {cluster.shape}"
            + ("" if strata is None else f" and {stratum.shape}")
            + "; give every value a label"
        )
    if np.isinf(numbers).any():
        raise ValueError(f"values must be finite or NaN (missing), got {int(np.isinf(numbers).sum())} infinite ones")
    there = ~np.isnan(numbers)
    if not there.any():
        raise ValueError(f"values must hold a number, got {len(numbers)} values, all missing")
    _, cluster = np.unique(cluster[there], return_inverse=True)
    _, stratum = np.unique(stratum[there], return_inverse=True)
    return numbers[there], cluster, stratum


def _by_cluster(
    numbers: Array, cluster: NDArray[np.int64], stratum: NDArray[np.int64]
) -> tuple[Array, tuple[NDArray[np.int64], ...]]:
    """Return the values, a row for each cluster, filled up with NaN, and the rows of each stratum."""
    sizes = np.bincount(cluster)
    order = np.argsort(cluster, kind="stable")
    within = np.arange(len(numbers)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table = np.full((len(sizes), sizes.max()), np.nan)
    table[cluster[order], within] = numbers[order]
    home = np.empty(len(sizes), np.int64)
    home[cluster] = stratum
    if (home[cluster] != stratum).any():
        raise ValueError("each cluster must lie in one stratum, got one in several; leave out the strata")
    return table, tuple(np.flatnonzero(home == s) for s in range(int(home.max()) + 1))

"""One variable over several sequences or networks with its interval, and its difference between two settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from gradlab.statistics import Interval, cluster_bootstrap, paired_bootstrap
from gradlab.validation import Array

Datasets = xr.Dataset | Sequence[xr.Dataset]


@dataclass(frozen=True)
class Comparison:
    """A variable under two settings, on the same draws; printed, a line.

    Attributes:
        variable: its name.
        units: its units.
        first: the statistic under the first setting.
        second: the same under the second.
        difference: first less second, with its interval.
        pairs: how many pairs of values there were.
        over: what was resampled, "sequences" or "networks".
    """

    variable: str
    units: str
    first: float
    second: float
    difference: Interval
    pairs: int
    over: str

    @property
    def settled(self) -> bool:
        """Whether the interval of the difference, with finite ends, leaves out 0: it is then known which is larger."""
        low, high = self.difference.low, self.difference.high
        return bool(np.isfinite([low, high]).all()) and not low <= 0.0 <= high

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{self.variable}: {self.first:+.4g} against {self.second:+.4g} {self.units}, difference"
            f" {d.estimate:+.4g} [{d.low:+.4g}, {d.high:+.4g}] over {d.clusters} {self.over}, {self.pairs} pairs"
        )


def interval(
    datasets: Datasets,
    variable: str = "decay_rate",
    *,
    mode: int = 1,
    statistic: Callable[..., Any] = np.nanmean,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return a variable of a dataset, or of several, with its bootstrap interval.

    Of one dataset the sequences are resampled: the interval is for other sequences through *this* network. Of several,
    one for each seed, the networks are resampled, each with all of its sequences: the interval is for other networks.

    Args:
        datasets: what `analyze` returns, or a list of such; of `run`, with one stage selected.
        variable: its name; one number, one for each sequence, or one for each sequence and mode.
        mode: which mode, from 1, of a variable that has modes.
        statistic: maps values [..., m] and `axis` to [...]; leaves out NaN (`np.nanmean`, `np.nanmedian`).
        clusters: of a list, which network each dataset is of; None: each of another. Of one dataset, which cluster each
            sequence belongs to.
        strata: of a list, which setting each dataset is of; the spread between settings is then left out. Of one
            dataset, likewise of each sequence.
        confidence: 1 − α.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        `Interval`.

    Raises:
        ValueError: a variable or mode that is not there, further dims, infinite values (a rate of −∞), or fewer than 7
            sequences or networks.
        TypeError: something that is no dataset.

    Source:
        See `gradlab.statistics.cluster_bootstrap`.

    Example:
        >>> ds = xr.Dataset({"decay_rate": ("batch", -0.1 - 0.01 * np.arange(9))})
        >>> found = interval(ds)
        >>> round(found.estimate, 6), found.low < found.estimate < found.high, found.clusters
        (-0.14, True, 9)
    """
    several = _several(datasets, "datasets")
    values = [_values(ds, variable, mode) for ds in several]
    labels = [_labels(name, given, datasets, values) for name, given in (("clusters", clusters), ("strata", strata))]
    cluster = _of_each(datasets, values) if labels[0] is None else labels[0]
    return cluster_bootstrap(
        np.concatenate(values),
        cluster,
        statistic,
        strata=labels[1],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def compare(
    a: Datasets,
    b: Datasets,
    variable: str = "decay_rate",
    *,
    mode: int = 1,
    statistic: Callable[..., Any] = np.nanmean,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Return the difference of a variable between two settings that saw the same inputs and seeds, with its interval.

    Two datasets are compared sequence by sequence, two lists of datasets network by network: a[i] and b[i] belong
    together (the same seed under two settings), and so do their sequences. Pairs are resampled, whole clusters of them
    at a time, so that what both settings share, an easy sequence or a lucky seed, cancels.

    Args:
        a: what `analyze` returns for the first setting, or a list of such, one for each seed.
        b: the same for the second, in the same order.
        variable: its name; one number, one for each sequence, or one for each sequence and mode.
        mode: which mode, from 1, of a variable that has modes.
        statistic: as in `interval`; the difference of it is returned.
        clusters: as in `interval`, of the pairs.
        strata: as in `interval`, of the pairs.
        confidence: 1 − α.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        `Comparison`.

    Raises:
        ValueError: as `interval`; settings that do not pair: lists of different lengths, other seeds, other numbers or
            lengths of sequences.
        TypeError: something that is no dataset, or a dataset on one side and a list on the other.

    Source:
        See `gradlab.statistics.paired_bootstrap`.

    Example:
        >>> shared = np.random.default_rng(0).standard_normal(12)
        >>> a, b = (xr.Dataset({"decay_rate": ("batch", shared + shift)}) for shift in (0.0, 0.25))
        >>> found = compare(a, b)
        >>> round(found.difference.low, 6), round(found.difference.high, 6), found.settled
        (-0.25, -0.25, True)
    """
    if isinstance(a, xr.Dataset) != isinstance(b, xr.Dataset):
        raise TypeError("a and b must both be datasets or both be lists of datasets, got one of each")
    pairs = _paired(_several(a, "a"), _several(b, "b"))
    first, second = ([_values(ds, variable, mode) for ds in side] for side in zip(*pairs, strict=True))
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        if len(one) != len(other):
            raise ValueError(f"a and b must hold the same sequences, got {len(one)} and {len(other)} in pair {i}")
    labels = [_labels(name, given, a, first) for name, given in (("clusters", clusters), ("strata", strata))]
    cluster = _of_each(a, first) if labels[0] is None else labels[0]
    x, y = np.concatenate(first), np.concatenate(second)
    difference = paired_bootstrap(
        x, y, cluster, statistic, strata=labels[1], confidence=confidence, resamples=resamples, seed=seed
    )
    there = ~np.isnan(x + y)
    of_first, of_second = (float(statistic(side[there], axis=-1)) for side in (x, y))
    over = "sequences" if isinstance(a, xr.Dataset) else "networks"
    units = str(pairs[0][0][variable].attrs.get("units", ""))
    return Comparison(variable, units, of_first, of_second, difference, int(there.sum()), over)


def _several(datasets: Datasets, name: str) -> list[xr.Dataset]:
    """Return a list of datasets."""
    several = [datasets] if isinstance(datasets, xr.Dataset) else list(datasets)
    wrong = [type(one).__name__ for one in several if not isinstance(one, xr.Dataset)]
    if wrong or not several:
        raise TypeError(f"{name} must be a dataset of gl.analyze or a list of such, got {wrong or 'an empty list'}")
    return several


def _paired(a: list[xr.Dataset], b: list[xr.Dataset]) -> list[tuple[xr.Dataset, xr.Dataset]]:
    """Return the pairs, checked to be of the same seeds and of sequences of the same lengths."""
    if len(a) != len(b):
        raise ValueError(f"a and b must hold one dataset for each seed, in the same order, got {len(a)} and {len(b)}")
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        seeds = one.attrs.get("seed"), other.attrs.get("seed")
        if seeds[0] != seeds[1]:
            raise ValueError(f"a and b must be of the same seeds in the same order, got {seeds} in pair {i}")
        if "lag" in one.variables and "lag" in other.variables and not one["lag"].equals(other["lag"]):
            raise ValueError(f"a and b must have seen the same inputs, got sequences of other lengths in pair {i}")
    return list(zip(a, b, strict=True))


def _values(ds: xr.Dataset, variable: str, mode: int) -> Array:
    """Return a variable of each sequence [B], or [1] where it is of the network."""
    if variable not in ds:
        raise ValueError(f"the dataset has no {variable!r}; it has {sorted(map(str, ds.data_vars))}")
    found = ds[variable]
    if "mode" in found.dims:
        if not 1 <= mode <= found.sizes["mode"]:
            raise ValueError(f"mode must lie between 1 and {found.sizes['mode']}, got {mode}")
        found = found.isel(mode=mode - 1)
    further = [str(dim) for dim in found.dims if dim not in ("batch", "held_out")]
    if further or found.ndim > 1:
        raise ValueError(
            f"{variable} must be one number for each sequence, got dims {found.dims}; select one of each other dim"
            f" first, as ds.sel(stage='trained') or ds.isel(time=0)"
        )
    return np.atleast_1d(found.values.astype(np.float64))


def _of_each(datasets: Datasets, values: list[Array]) -> Any:
    """Return which cluster each value is of: its sequence in one dataset, its dataset in a list."""
    if isinstance(datasets, xr.Dataset):
        return np.arange(len(values[0]))
    return np.repeat(np.arange(len(values)), [len(one) for one in values])


def _labels(name: str, given: ArrayLike | None, datasets: Datasets, values: list[Array]) -> Any:
    """Return the label of every value, from one for each sequence or for each dataset; None where none are given."""
    if given is None:
        return None
    labels, single = np.asarray(given), isinstance(datasets, xr.Dataset)
    wanted = len(values[0]) if single else len(values)
    if labels.shape != (wanted,):
        what = "sequence" if single else "dataset"
        raise ValueError(f"{name} must have one label for each {what}, {wanted}, got shape {labels.shape}")
    return labels if single else np.repeat(labels, [len(one) for one in values])

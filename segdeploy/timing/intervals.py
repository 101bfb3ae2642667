"""95 % intervals of a median by order statistics, wider where neighbouring calls are alike.

For independent calls the ranks are those of the sign test, which asks nothing of how the times are distributed. From
`CORRELATION_FROM` calls on, n correlated calls count as n / `inflation` independent ones. How often such an interval
holds the median is measured by benchmarks/interval_coverage.py.
"""

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from segdeploy.timing.result_types import Interval

FEWEST = 6  # from the first to the last of five independent calls is a 93.75 % interval
CORRELATION_FROM = 50  # calls; with fewer, their correlation cannot be told from chance
LEAST_INDEPENDENT = 3.5  # n / inflation: below, the inflation is too large to be estimated
Z = NormalDist().inv_cdf(0.975)
MOST_CORRELATED = 0.99
TOO_FEW = "too few independent calls for an interval"

Array = NDArray[np.float64]


def of_median(samples: Sequence[float]) -> Interval | None:
    """The 95 % interval of the median of calls in the order of their time; None where they are too few."""
    low, high = (float(bound[0]) for bound in bounds(np.asarray(samples, np.float64)[None]))
    if np.isnan(low):
        return None
    return Interval(low=low, high=high, assumes_independent=len(samples) < CORRELATION_FROM)


def bounds(samples: Array) -> tuple[Array, Array]:
    """(T, N): N calls each of T measurements -> (T,) lower and (T,) upper bounds; NaN where the calls are too few."""
    trials, count = samples.shape
    inflated = inflation(samples) if count >= CORRELATION_FROM else np.ones(trials)
    is_given = (count >= FEWEST) & (count / inflated >= LEAST_INDEPENDENT)
    ranks_aside = Z / 2 * np.sqrt(count * inflated)
    rank = np.clip(np.floor((count + 1) / 2 - ranks_aside), 1, None).astype(np.int64) - 1
    ordered, trial = np.sort(samples, axis=1), np.arange(trials)
    low, high = (ordered[trial, np.minimum(each, count - 1)] for each in (rank, count - 1 - rank))
    return np.where(is_given, low, np.nan), np.where(is_given, high, np.nan)


def inflation(samples: Array) -> Array:
    """(T, N) -> (T,): by how much correlation inflates the variance of the median; at least 1.

    (1 + r) / (1 - r) of a first-order autoregression of the ranks' normal scores, with r corrected for its bias
    (Kendall 1954, Biometrika 41:403), times that of its residuals (Andrews and Monahan 1992, Econometrica 60:953).
    """
    count = samples.shape[1]
    scores = _centred(_normal_scores(samples))
    r = (scores[:, 1:] * scores[:, :-1]).sum(axis=1) / _squares(scores)
    r = np.clip((count * r + 1) / (count - 3), 0, MOST_CORRELATED)
    residuals = _centred(scores[:, 1:] - r[:, None] * scores[:, :-1])
    inflated: Array = (1 + r) / (1 - r) * np.maximum(_long_run(residuals), 1)
    return inflated


def _long_run(residuals: Array) -> Array:
    """(T,): the long-run variance over the variance, with Bartlett's weights over 2 sqrt(N) lags."""
    variance, lags = _squares(residuals), round(2 * math.sqrt(residuals.shape[1]))
    found = np.ones(len(residuals))
    for lag in range(1, lags + 1):
        found += 2 * (1 - lag / (lags + 1)) * (residuals[:, lag:] * residuals[:, :-lag]).sum(axis=1) / variance
    return found


def _centred(values: Array) -> Array:
    centred: Array = values - values.mean(axis=1, keepdims=True)
    return centred


def _squares(values: Array) -> Array:
    """Their sums; 1 where all calls took the same time, and nothing can be correlated."""
    found: Array = (values**2).sum(axis=1)
    found[found == 0] = 1
    return found


def _normal_scores(samples: Array) -> Array:
    """(T, N) -> (T, N): the normal quantile of each call's rank; calls of the same time share their middle rank."""
    trials, count = samples.shape
    order = np.argsort(samples, axis=1)
    ordered, place, edge = np.take_along_axis(samples, order, axis=1), np.arange(count), np.ones((trials, 1), bool)
    changes = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(np.hstack([edge, changes]), place, 0), axis=1)
    last_from_right = np.where(np.hstack([changes, edge]), place, count - 1)[:, ::-1]
    last = np.minimum.accumulate(last_from_right, axis=1)[:, ::-1]
    scores = np.empty_like(samples)
    np.put_along_axis(scores, order, _quantiles(count)[first + last], axis=1)
    return scores


@functools.lru_cache(maxsize=64)
def _quantiles(count: int) -> Array:
    """By twice the rank, from 0."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((doubled + 1) / (2 * count)) for doubled in range(2 * count - 1)])


def in_words(interval: Interval | None) -> str:
    """For a sentence, of a ratio: three decimals."""
    if interval is None:
        return TOO_FEW
    condition = "95 % if calls are independent" if interval.assumes_independent else "95 %"
    return f"{condition}: {interval.low:.3f} to {interval.high:.3f}"
